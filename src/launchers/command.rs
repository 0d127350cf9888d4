//! Runs a command line to completion, with a timeout. A trait, because the commands of a batch
//! system may run on another host.
use super::batch::{CommandLine, CommandOutput, environment};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Maximum captured output; the rest is read and discarded.
const MAX_OUTPUT_BYTES: usize = 64 << 20;
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How long to wait for the end of the output, which the command's children may keep open.
const OUTPUT_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs commands, locally or elsewhere.
pub(crate) trait Runner: Send + Sync {
    /// Returns the command's output, whatever its exit code. Kills the command when the timeout
    /// expires.
    fn run(&self, command: &CommandLine, timeout: Duration) -> Result<CommandOutput, RunError>;
}

/// Why a command produced no output.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("{program}: command not found")]
    NotFound { program: String },
    #[error("{program}: {source}")]
    Start { program: String, source: io::Error },
    #[error("{program} timed out after {seconds} s")]
    TimedOut { program: String, seconds: f64 },
}

/// Runs commands on this host. Each command has its own process group: Ctrl-C in the shell does not
/// reach it, and a timeout also kills its children.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LocalRunner;

impl Runner for LocalRunner {
    fn run(&self, line: &CommandLine, timeout: Duration) -> Result<CommandOutput, RunError> {
        let mut command = command(line, std::env::vars_os());
        command.stdin(if line.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => RunError::NotFound {
                program: line.program.clone(),
            },
            _ => RunError::Start {
                program: line.program.clone(),
                source,
            },
        };
        let mut child = command.spawn().map_err(failed)?;
        if let (Some(mut stdin), Some(text)) = (child.stdin.take(), line.stdin.clone()) {
            // Ignore errors: a command that does not read all its input reports why itself.
            std::thread::spawn(move || stdin.write_all(text.as_bytes()));
        }
        let stdout = PipeReader::new(child.stdout.take());
        let stderr = PipeReader::new(child.stderr.take());
        let status = wait(&mut child, timeout);
        let code = match status {
            Ok(Some(status)) => status.code(),
            Ok(None) => {
                return Err(RunError::TimedOut {
                    program: line.program.clone(),
                    seconds: timeout.as_secs_f64(),
                });
            }
            Err(source) => return Err(failed(source)),
        };
        Ok(CommandOutput {
            code,
            stdout: stdout.text(),
            stderr: stderr.text(),
        })
    }
}

/// Builds the command with this environment, minus the removed variables.
fn command(line: &CommandLine, environment: impl IntoIterator<Item = (OsString, OsString)>) -> Command {
    let mut command = Command::new(&line.program);
    command.args(&line.arguments).env_clear().process_group(0);
    for (name, value) in environment {
        match environment::is_removed(&name.to_string_lossy(), &line.removed_vars, &line.kept_vars) {
            true => tracing::debug!("{}: removed the environment variable {}", line.program, name.display()),
            false => drop(command.env(name, value)),
        }
    }
    if line.in_c_locale {
        command.env("LC_ALL", "C").env_remove("LANGUAGE");
    }
    command.envs(line.env.iter().map(|(k, v)| (k, v)));
    command
}

/// Waits for the exit status; none if the timeout expired and the command was killed.
fn wait(child: &mut Child, timeout: Duration) -> io::Result<Option<std::process::ExitStatus>> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            // The child is not reaped yet, so its pid is still valid.
            let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Reads in a separate thread: a full pipe would block the command.
struct PipeReader {
    read: Arc<Mutex<Vec<u8>>>,
    ended: Receiver<()>,
}

impl PipeReader {
    fn new(pipe: Option<impl Read + Send + 'static>) -> PipeReader {
        let (sender, ended) = mpsc::channel();
        let read = Arc::new(Mutex::new(Vec::new()));
        let into = read.clone();
        std::thread::spawn(move || {
            let _sender = sender;
            let mut piece = [0; 8192];
            let Some(mut pipe) = pipe else { return };
            while let Ok(count @ 1..) = pipe.read(&mut piece) {
                let mut into = into.lock().unwrap_or_else(PoisonError::into_inner);
                if into.len() < MAX_OUTPUT_BYTES {
                    into.extend_from_slice(&piece[..count]);
                }
            }
        });
        PipeReader { read, ended }
    }

    /// The output so far; waits briefly for its end.
    fn text(self) -> String {
        let _ = self.ended.recv_timeout(OUTPUT_TIMEOUT);
        let bytes = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> CommandLine {
        CommandLine::new("sh", ["-c", script])
    }
    const TEST_TIMEOUT: Duration = Duration::from_secs(60);

    #[test]
    fn output_and_exit_code_are_returned() {
        let mut line = sh("read x; echo \"got $x $Y\"; echo bad >&2; exit 3").with_env("Y", "z");
        line.stdin = Some("hello\n".into());
        let output = LocalRunner.run(&line, TEST_TIMEOUT).unwrap();
        assert_eq!(
            (output.code, output.stdout.as_str(), output.stderr.as_str()),
            (Some(3), "got hello z\n", "bad\n")
        );
        let output = LocalRunner.run(&sh("kill -9 $$"), TEST_TIMEOUT).unwrap();
        assert_eq!(output.code, None);
    }

    #[test]
    fn removed_variables_are_not_passed_to_a_command() {
        let here = [
            ("SITE_A", "1"),
            ("SITE_B", "2"),
            ("OTHER", "a\nSITE_C=3"),
            ("LC_ALL", "de_DE"),
            ("LANGUAGE", "de"),
        ];
        let gets = |line: &CommandLine| {
            let command = command(line, here.map(|(name, value)| (name.into(), value.into())));
            let set = command
                .get_envs()
                .filter_map(|(name, value)| Some((name.to_str()?.to_string(), value?.to_str()?.to_string())));
            set.collect::<std::collections::BTreeMap<String, String>>()
        };
        let of = |pairs: &[(&str, &str)]| pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let mut line = CommandLine::new("env", [""; 0]);
        assert_eq!(gets(&line), of(&here));
        line.in_c_locale = true;
        (line.removed_vars, line.kept_vars) = (vec!["SITE*"], vec!["SITE_B"]);
        let expected = of(&[("SITE_B", "2"), ("OTHER", "a\nSITE_C=3"), ("LC_ALL", "C")]);
        assert_eq!(gets(&line), expected);
    }

    /// The command gets only the environment that it was given, not that of this process.
    #[test]
    fn a_command_gets_only_the_given_environment() {
        let mut command = command(&CommandLine::new("/usr/bin/env", [""; 0]), [("ONLY".into(), "this".into())]);
        assert_eq!(String::from_utf8(command.output().unwrap().stdout).unwrap(), "ONLY=this\n");
    }

    #[test]
    fn large_output_does_not_block_a_command() {
        let output = LocalRunner.run(&sh("seq 1 200000; seq 1 200000 >&2"), TEST_TIMEOUT).unwrap();
        assert_eq!((output.stdout.lines().count(), output.stderr.lines().count()), (200_000, 200_000));
    }

    #[test]
    fn a_command_that_times_out_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > '{}'; wait", pid.display());
        let error = LocalRunner.run(&sh(&script), Duration::from_millis(300)).unwrap_err();
        assert_eq!(error.to_string(), "sh timed out after 0.3 s");
        let pid: u32 = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        let deadline = Instant::now() + TEST_TIMEOUT;
        while crate::sys::process::exists(pid) {
            assert!(Instant::now() < deadline, "its child still runs");
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    #[test]
    fn background_children_do_not_delay_the_result() {
        let output = LocalRunner.run(&sh("sleep 1000 & echo $!"), TEST_TIMEOUT).unwrap();
        assert_eq!(output.code, Some(0));
        let pid: i32 = output.stdout.trim().parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }

    #[test]
    fn a_missing_command_is_named() {
        let line = CommandLine::new("nonexistent-sbatch", ["x"]);
        assert_eq!(
            LocalRunner.run(&line, TEST_TIMEOUT).unwrap_err().to_string(),
            "nonexistent-sbatch: command not found"
        );
    }
}
