//! The process of a tunnel's daemon: starts it, waits until the tunnel is up, and ends it.
use super::error::TunnelError;
use super::state::{Direction, Phase, TunnelState};
use crate::profile::ProfileDir;
use crate::ssh::control_dir;
use crate::sys::process::{self, ProcessId};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const CHECKS_EVERY: Duration = Duration::from_millis(25);
/// The number of log lines that are shown of a failed daemon.
const LOG_LINES: usize = 6;

/// Starts a daemon, and waits until its tunnel is up. If that fails, or the wait is canceled (Ctrl-C), the daemon is ended.
pub(crate) async fn start(program: &Path, state: &TunnelState, file: &Path, timeout: Duration) -> Result<TunnelState, TunnelError> {
    state.write(file)?;
    let mut undo = Undo {
        file,
        child: None,
        armed: true,
    };
    undo.child = Some(spawn(program, state, file, true)?);
    let state = wait(file, timeout, undo.child.as_mut()).await?;
    undo.armed = false;
    Ok(state)
}

/// Restarts the daemon of a tunnel if it is gone, for example after a reboot of this host: engines know its ports. Does not wait until it is up.
/// Returns whether it was gone.
pub(crate) fn restart(program: &Path, file: &Path) -> Result<bool, TunnelError> {
    let Some(state) = TunnelState::read(file)?.filter(|state| state.runs() == Some(false)) else {
        return Ok(false);
    };
    spawn(program, &state, file, false)?;
    Ok(true)
}

/// It creates its own session, so that neither Ctrl-C nor the terminal's end reaches it.
fn spawn(program: &Path, state: &TunnelState, file: &Path, first: bool) -> Result<Child, TunnelError> {
    let path = state.log();
    let failed = |why: std::io::Error| TunnelError::State {
        doing: "log to",
        path: path.clone(),
        why: why.to_string(),
    };
    // Tunnels of several starts may share the log of a host.
    let appends = state.direction == Direction::Reverse || !first;
    let log = File::options()
        .create(true)
        .append(appends)
        .write(true)
        .truncate(!appends)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    let mut command = Command::new(program);
    command.args(["tunnel", "--supervise", if first { "--first" } else { "--again" }, "--state"]);
    command.arg(file);
    // Else the file system of its working directory could not be unmounted.
    command.current_dir("/").stdin(Stdio::null());
    command.stdout(log.try_clone().map_err(failed)?).stderr(log);
    command.spawn().map_err(|source| TunnelError::Start {
        program: program.into(),
        source,
    })
}

struct Undo<'a> {
    file: &'a Path,
    child: Option<Child>,
    armed: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if self.armed {
            end_with(self.file, &mut self.child);
        }
    }
}

/// Waits until the tunnel is up. `child`: its daemon, if this process has started it.
pub(crate) async fn wait(file: &Path, timeout: Duration, mut child: Option<&mut Child>) -> Result<TunnelState, TunnelError> {
    let begun = Instant::now();
    loop {
        // Checked before the state is read, so that the last state that it wrote is read.
        let ended = child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))));
        let Some(state) = TunnelState::read(file)? else {
            return Err(TunnelError::Internal("the tunnel was ended by another command".into()));
        };
        match state.phase {
            Phase::Up if state.runs() != Some(false) => return Ok(state),
            Phase::Failed => {
                return Err(TunnelError::Reported {
                    what: state.problem.unwrap_or_default(),
                    hints: state.hints,
                    missing: state.missing,
                });
            }
            _ => {}
        }
        let (to, log) = (state.destination.clone(), state.log());
        if ended {
            let output = state.problem.unwrap_or_else(|| log_tail(&log));
            return Err(TunnelError::Ended { to, output, log });
        }
        if begun.elapsed() > timeout {
            return Err(TunnelError::Late {
                to,
                seconds: timeout.as_secs(),
                output: state.problem.unwrap_or_default(),
                log,
            });
        }
        tokio::time::sleep(CHECKS_EVERY).await;
    }
}

fn log_tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

/// Ends a tunnel and removes its local files, also those of one that is gone. A daemon on another host notices that its
/// state file is gone, and exits.
pub(crate) fn end(file: &Path) {
    end_with(file, &mut None);
}

/// Ends all reverse tunnels of a cluster, also those of a start that was killed.
pub(crate) fn end_reverse(profile: &ProfileDir, cluster_id: &str) {
    let files: Vec<PathBuf> = profile.reverse_files();
    let is_of_it = |file: &&PathBuf| matches!(TunnelState::read(file), Ok(Some(state)) if state.cluster_id == cluster_id);
    files.iter().filter(is_of_it).for_each(|file| end(file));
}

fn end_with(file: &Path, child: &mut Option<Child>) {
    let mut processes: Vec<ProcessId> = child.iter().map(|child| ProcessId::of(child.id())).collect();
    let state = TunnelState::read(file).ok().flatten();
    // From here on it must not write its state.
    if let Err(error) = std::fs::remove_file(file)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!("cannot remove {}: {error}", file.display());
    }
    let state = state.filter(|state| state.host == process::host());
    processes.extend(state.iter().flat_map(|state| state.processes().cloned()));
    process::end(&processes, child);
    if let Some(path) = state.and_then(|state| state.control_dir) {
        control_dir::clear(&path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts a daemon that runs `script` with its state file, `$5`.
    async fn started(script: &str) -> (Result<TunnelState, TunnelError>, bool) {
        let dir = tempfile::tempdir().unwrap();
        let profile = ProfileDir::at(dir.path());
        profile.create().unwrap();
        let program = dir.path().join("daemon");
        // Written by another process: a file that is open for writing in a process forked meanwhile cannot be run.
        let written = Command::new("sh")
            .args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$1\" >\"$0\" && chmod 755 \"$0\""])
            .arg(&program)
            .arg(script)
            .status();
        assert!(written.unwrap().success());
        let state = TunnelState::new(Direction::Forward, "login", profile.path(), "", vec!["mux".into()]);
        let file = profile.tunnel_file("");
        let started = start(&program, &state, &file, Duration::from_secs(60)).await;
        let is_left = file.exists();
        end(&file);
        (started, is_left)
    }

    #[tokio::test]
    async fn an_exited_daemon_is_reported_with_its_last_output_and_leaves_no_files() {
        let (error, is_left) = started("echo 'it is dark' >&2").await;
        let error = error.unwrap_err();
        assert!(
            matches!(&error, TunnelError::Ended { output, .. } if output == "it is dark"),
            "{error}"
        );
        assert!(!is_left);
        // A tunnel without a process counts as ended, even if its state is up.
        let (error, is_left) = started("sed -i 's/\"connecting\"/\"up\"/' \"$5\"").await;
        assert!(matches!(error, Err(TunnelError::Ended { .. })) && !is_left);
    }

    #[tokio::test]
    async fn an_error_reported_by_the_daemon_is_returned() {
        let failed = r#"sed -i 's/"connecting"/"failed"/; s/"problem": null/"problem": "no such cluster"/; s/"missing": false/"missing": true/' "$5""#;
        let (error, is_left) = started(failed).await;
        let error = error.unwrap_err();
        assert!(error.is_missing() && error.to_string() == "no such cluster", "{error}");
        assert!(!is_left);
    }

    #[tokio::test]
    async fn a_tunnel_is_up_once_its_daemon_reports_it_and_ends_with_its_state_file() {
        // Like a supervisor, it records its process.
        let up = r#"
            read -r stat <"/proc/$$/stat"; set -- "$5" ${stat##*) }
            node=$(uname -n); boot=$(cat /proc/sys/kernel/random/boot_id); pidns=$(readlink /proc/self/ns/pid)
            own="{\"pid\": $$, \"host\": \"$node\", \"ticks\": ${21}, \"boot_id\": \"$boot\", \"pid_namespace\": \"$pidns\"}"
            sed -i "s/\"connecting\"/\"up\"/; s/\"daemon\": null/\"daemon\": $own/" "$1"
            exec sleep 60"#;
        let (state, is_left) = started(up).await;
        let state = state.unwrap();
        assert!(is_left && state.phase == Phase::Up);
        assert!(state.daemon.unwrap().is_gone(), "it has been ended");
    }
}
