//! A reverse tunnel's process: started, waited for until its ports are there, and ended.
use super::target::channels;
use super::{Phase, ReverseError, ReverseState};
use crate::connection::ConnectionFile;
use crate::launchers::EnginesLaunch;
use crate::profile::ProfileDir;
use crate::ssh::control_dir;
use crate::sys::process::{self, ProcessId};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(25);
/// All steps of a first connection together; each has a limit of its own, and says so.
const FIRST: Duration = Duration::from_secs(120);

/// A tunnel that is up.
#[derive(Debug)]
pub struct Opened {
    /// Its state file, by which it is ended.
    pub file: PathBuf,
    /// The ports of the other host's loopback, by channel.
    pub ports: BTreeMap<String, u16>,
}

/// Starts a process that keeps a tunnel from `host` to this cluster's controller, and waits until it leads there. `id` is unlike
/// that of any other.
pub async fn open(launch: &EnginesLaunch, host: &str, id: &str, engine_file: &ConnectionFile) -> Result<Opened, ReverseError> {
    let file = launch.profile.reverse_file(id);
    let channels = channels(launch.kind, engine_file);
    ReverseState::new(host, &launch.profile, &launch.cluster_id, channels).write(&file)?;
    let mut undo = Undo {
        file: &file,
        child: None,
        armed: true,
    };
    let log = launch.profile.reverse_log(&launch.cluster_id, host);
    undo.child = Some(start_process(&launch.program, host, &file, &log, "--first")?);
    let ports = wait(&mut undo, host).await?;
    undo.armed = false;
    drop(undo);
    Ok(Opened { file, ports })
}

/// In a session of its own (it sees to that itself), so that neither Ctrl-C nor the terminal's end reaches it.
fn start_process(program: &Path, host: &str, file: &Path, path: &Path, how: &str) -> Result<Child, ReverseError> {
    let failed = |why: std::io::Error| ReverseError::State {
        doing: "log to",
        path: path.into(),
        why: why.to_string(),
    };
    let log = File::options().create(true).append(true).mode(0o600).open(path).map_err(failed)?;
    let mut command = Command::new(program);
    command.args(["tunnel", "--supervise", how, "--reverse"]).arg(file);
    // Its own directory would otherwise be one that cannot be unmounted.
    command.current_dir("/").stdin(Stdio::null());
    command.stdout(log.try_clone().map_err(failed)?).stderr(log);
    command.spawn().map_err(|e| ReverseError::Ended {
        to: host.into(),
        said: format!("cannot start {}: {e}", program.display()),
    })
}

/// Starts the process of a tunnel again that is gone, with this host for instance: its engines know its ports. Does not wait until it is
/// up. Whether it was gone.
pub fn bring_back(program: &Path, file: &Path) -> Result<bool, ReverseError> {
    let Some(state) = ReverseState::read(file)?.filter(|state| state.runs() == Some(false)) else {
        return Ok(false);
    };
    let log = ProfileDir::at(&state.profile).reverse_log(&state.cluster_id, &state.to);
    start_process(program, &state.to, file, &log, "--again")?;
    Ok(true)
}

/// Ends a tunnel that did not become one, also when nobody waits any more (Ctrl-C).
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

async fn wait(undo: &mut Undo<'_>, host: &str) -> Result<BTreeMap<String, u16>, ReverseError> {
    let begun = Instant::now();
    loop {
        // Asked before the state is read: what it has written last is then read.
        let ended = undo.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))));
        let state = ReverseState::read(undo.file)?;
        let problem = state.as_ref().and_then(|s| s.problem.clone()).unwrap_or_default();
        match state.map(|state| (state.phase, state.ports)) {
            Some((Phase::Up, ports)) => return Ok(ports),
            Some((Phase::Failed, _)) => {
                return Err(ReverseError::Told {
                    to: host.into(),
                    why: problem,
                });
            }
            _ if ended => {
                return Err(ReverseError::Ended {
                    to: host.into(),
                    said: problem,
                });
            }
            _ => {}
        }
        if begun.elapsed() > FIRST {
            return Err(ReverseError::Late {
                to: host.into(),
                seconds: FIRST.as_secs(),
                said: problem,
            });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Ends a tunnel and removes what it has made here. One whose process is on another host sees that its state is gone, and ends itself.
pub fn end(file: &Path) {
    end_with(file, &mut None);
}

/// Ends all that there are of a cluster, also those of a start that was killed.
pub fn end_all(profile: &ProfileDir, cluster_id: &str) {
    for path in std::fs::read_dir(profile.pid_dir())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
    {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_one = name.starts_with("reverse-") && name.ends_with(".json");
        if is_one && matches!(ReverseState::read(&path), Ok(Some(state)) if state.cluster_id == cluster_id) {
            end(&path);
        }
    }
}

fn end_with(file: &Path, child: &mut Option<Child>) {
    let mut processes: Vec<ProcessId> = child.iter().map(|child| ProcessId::of(child.id())).collect();
    let state = ReverseState::read(file).ok().flatten();
    // From here on it may not write its state any more.
    if let Err(error) = std::fs::remove_file(file)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!("cannot remove {}: {error}", file.display());
    }
    let Some(state) = state.filter(|state| state.host == process::host()) else {
        process::end(&processes, child);
        return;
    };
    processes.extend(state.processes().cloned());
    process::end(&processes, child);
    if let Some(path) = &state.place {
        control_dir::clear(path);
    }
}
