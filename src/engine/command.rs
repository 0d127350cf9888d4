//! Runs commands: tasks that are a program with arguments, without a shell and without Python.
use super::core::unit::{CommandEnd, CommandExit, PeakMemory};
use super::exec::Program;
use super::forker::Forker;
use super::signal::{signal_group, signal_name};
use crate::model::UnixTime;
use crate::model::definition::MapOptions;
use bytes::Bytes;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::mpsc::Sender;

/// How long to read a command's pipes after its end while its child processes hold them open.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(200);
const CHUNK: usize = 64 << 10;
/// Commands that end within this time are short.
const SHORT_COMMAND: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) enum CommandEvent {
    Output([Bytes; 2]),
    Ended(CommandEnd),
}

/// The arguments of a command for one input. `{}` is the whole input (its strings joined by spaces), `{1}`, `{2}`, … one of
/// its strings (empty if there are fewer); without a placeholder the strings of the input are appended as arguments.
pub(super) fn argv(template: &[String], input: &[String]) -> Vec<String> {
    let mut replaced = false;
    let mut words: Vec<String> = template
        .iter()
        .map(|word| {
            let (filled, found) = fill(word, input);
            replaced |= found;
            filled
        })
        .collect();
    if !replaced {
        words.extend_from_slice(input);
    }
    words
}

fn fill(word: &str, input: &[String]) -> (String, bool) {
    let (mut out, mut rest, mut found) = (String::new(), word, false);
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        let inner = &rest[open + 1..];
        let Some(close) = inner.find('}') else {
            rest = &rest[open..];
            break;
        };
        let name = &inner[..close];
        if name.is_empty() {
            out.push_str(&input.join(" "));
        } else if name.bytes().all(|b| b.is_ascii_digit())
            && let Ok(column @ 1..) = name.parse::<usize>()
        {
            out.push_str(input.get(column - 1).map_or("", String::as_str));
        } else {
            // Not a placeholder: copy the brace and continue after it.
            out.push('{');
            rest = inner;
            continue;
        }
        found = true;
        rest = &inner[close + 1..];
    }
    out.push_str(rest);
    (out, found)
}

/// A task's input as strings: a JSON list of them, as `map` writes it; other JSON as its text.
pub(super) fn input_words(input: &[u8]) -> Vec<String> {
    fn word(value: serde_json::Value) -> String {
        match value {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        }
    }
    match serde_json::from_slice(input) {
        Ok(serde_json::Value::Array(values)) => values.into_iter().map(word).collect(),
        Ok(value) => vec![word(value)],
        Err(_) => vec![String::from_utf8_lossy(input).into_owned()],
    }
}

/// A command that is running or about to start.
#[derive(Clone, Debug, Default)]
pub(super) struct RunningCommand {
    /// 0 before the start.
    pid: Arc<AtomicI32>,
    /// A signal received before the start.
    early: Arc<AtomicI32>,
    signalled: Arc<AtomicBool>,
}

impl RunningCommand {
    /// The process id while the command is running.
    pub(super) fn pid(&self) -> Option<i32> {
        Some(self.pid.load(Ordering::SeqCst)).filter(|pid| *pid > 0)
    }

    fn was_signalled(&self) -> bool {
        self.signalled.load(Ordering::SeqCst)
    }

    pub(super) fn signal(&self, signal: i32) {
        self.signalled.store(true, Ordering::SeqCst);
        match self.pid.load(Ordering::SeqCst) {
            0 => {
                self.early.store(signal, Ordering::SeqCst);
                // The command may have started in the meantime.
                let pid = self.pid.load(Ordering::SeqCst);
                signal_group(pid, signal);
            }
            pid => signal_group(pid, signal),
        }
    }
}

pub(super) struct CommandSpec {
    pub argv: Vec<String>,
    pub options: MapOptions,
    /// The engine's own working directory and environment for tasks.
    pub cwd: Option<String>,
    pub env: BTreeMap<String, String>,
}

/// Runs one command to its end; reports its output and its end.
pub(super) async fn run(
    to_run: CommandSpec,
    forker: Forker,
    running: RunningCommand,
    events: Sender<CommandEvent>,
    clock: fn() -> UnixTime,
) {
    let started = clock();
    let mut peak = PeakMemory::Unknown;
    let how = run_inner(&to_run, &forker, &running, &events, &mut peak).await;
    running.pid.store(-1, Ordering::SeqCst);
    let ended = clock();
    let _ = events
        .send(CommandEvent::Ended(CommandEnd {
            started,
            ended,
            how,
            peak,
            oom_killed: false,
        }))
        .await;
}

async fn run_inner(
    to_run: &CommandSpec,
    forker: &Forker,
    running: &RunningCommand,
    events: &Sender<CommandEvent>,
    peak: &mut PeakMemory,
) -> CommandExit {
    let Some(program) = to_run.argv.first() else {
        return CommandExit::NotStarted("CommandNotFound".into(), "the command is empty".into());
    };
    let options = &to_run.options;
    // The directory in which the map was submitted, if it exists on this host.
    let submitted_in = options.directory.as_ref().filter(|directory| Path::new(directory).is_dir());
    let directory = match (&options.cwd, submitted_in, &to_run.cwd) {
        (Some(cwd), _, _) | (None, None, Some(cwd)) => Some(with_home(cwd)),
        (None, Some(directory), _) => Some(directory.clone()),
        (None, None, None) => None,
    };
    if let Some(cwd) = &directory
        && submitted_in != Some(cwd)
        && !Path::new(cwd).is_dir()
    {
        let evalue = format!(
            "cannot run {program:?}: its working directory {cwd} is not a directory on {}",
            host()
        );
        return CommandExit::NotStarted("DirectoryNotFound".into(), evalue);
    }
    let set = to_run.env.iter().chain(&options.process.env).chain(&options.env);
    let set = set.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let unset = &options.process.unset;
    let inherited = std::env::vars_os().filter(|(name, _)| !unset.iter().any(|unset| name == unset.as_str()));
    let to_start = Program {
        argv: to_run.argv.clone(),
        environment: inherited.chain(set).collect(),
        directory: directory.clone(),
        cores: options.process.cores.clone(),
    };
    let mut child = match forker.start(to_start).await {
        Ok(child) => child,
        Err(e) => return not_started(program, directory.as_deref(), &e),
    };
    let pid = child.pid;
    running.pid.store(pid, Ordering::SeqCst);
    let early = running.early.load(Ordering::SeqCst);
    if early != 0 {
        signal_group(pid, early);
    }
    let (mut out, mut err) = (vec![0; CHUNK], vec![0; CHUNK]);
    // Most short commands write little: watching their pipes is not worthwhile.
    let mut status = tokio::time::timeout(SHORT_COMMAND, child.wait()).await.ok();
    let (mut stdout, mut stderr) = match &status {
        None => (watched(child.stdout.as_fd()), watched(child.stderr.as_fd())),
        Some(_) => {
            kill_remaining(pid, running);
            child.sweep().await;
            let (out_count, out_ended) = read_available(child.stdout.as_fd(), &mut out);
            let (err_count, err_ended) = read_available(child.stderr.as_fd(), &mut err);
            send_output(events, [&out[..out_count], &err[..err_count]]).await;
            let watch_unless = |ended: bool, fd: &OwnedFd| if ended { None } else { watched(fd.as_fd()) };
            (watch_unless(out_ended, &child.stdout), watch_unless(err_ended, &child.stderr))
        }
    };
    let status = loop {
        if status.is_some() && stdout.is_none() && stderr.is_none() {
            break status;
        }
        let quiet = async {
            match status {
                Some(_) => tokio::time::sleep(DRAIN_TIMEOUT).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            count = read(&mut stdout, &mut out) => send_output(events, [&out[..count], &[]]).await,
            count = read(&mut stderr, &mut err) => send_output(events, [&[], &err[..count]]).await,
            ended = child.wait(), if status.is_none() => {
                status = Some(ended);
                kill_remaining(pid, running);
                child.sweep().await;
            }
            () = quiet => break status,
        }
    };
    match status {
        Some(Ok((status, measured))) => {
            *peak = measured;
            match (status.code(), status.signal()) {
                (Some(code), _) => CommandExit::Code(code),
                (None, signal) => {
                    let number = signal.unwrap_or_default();
                    CommandExit::Signal(number, signal_name(number))
                }
            }
        }
        Some(Err(e)) => CommandExit::NotStarted("CommandLost".into(), format!("cannot wait for {program:?}: {e}")),
        None => CommandExit::NotStarted("CommandLost".into(), format!("{program:?} has ended with an unknown status")),
    }
}

/// Kills the remaining processes of a signalled command (a shell's background jobs ignore SIGINT).
fn kill_remaining(pid: i32, running: &RunningCommand) {
    if running.was_signalled() {
        signal_group(pid, nix::libc::SIGKILL);
    }
}

/// Reads the available bytes into the buffer; returns their number and whether the pipe has ended.
fn read_available(fd: BorrowedFd<'_>, into: &mut [u8]) -> (usize, bool) {
    let mut count = 0;
    while count < into.len() {
        match nix::unistd::read(fd, &mut into[count..]) {
            Ok(0) => return (count, true),
            Ok(more) => count += more,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => break,
            Err(_) => return (count, true),
        }
    }
    (count, false)
}

/// Returns None if the pipe cannot be watched: its output is not read.
fn watched(fd: BorrowedFd<'_>) -> Option<Receiver> {
    let watched = fd.try_clone_to_owned().and_then(Receiver::from_owned_fd);
    watched
        .inspect_err(|error| tracing::warn!(%error, "cannot read the output of a command"))
        .ok()
}

/// Reads from the pipe; waits forever if it is closed.
async fn read(from: &mut Option<impl AsyncRead + Unpin>, into: &mut [u8]) -> usize {
    let Some(pipe) = from else {
        return std::future::pending().await;
    };
    match pipe.read(into).await {
        Ok(count @ 1..) => count,
        _ => {
            *from = None;
            0
        }
    }
}

async fn send_output(events: &Sender<CommandEvent>, [out, err]: [&[u8]; 2]) {
    if !out.is_empty() || !err.is_empty() {
        let output = [out, err].map(Bytes::copy_from_slice);
        let _ = events.send(CommandEvent::Output(output)).await;
    }
}

fn not_started(program: &str, directory: Option<&str>, e: &std::io::Error) -> CommandExit {
    let interpreter = match e.kind() {
        std::io::ErrorKind::NotFound => missing_interpreter(program, directory),
        _ => None,
    };
    let (ename, why) = match e.kind() {
        _ if interpreter.is_some() => ("InterpreterNotFound", interpreter.unwrap_or_default()),
        std::io::ErrorKind::NotFound if program.contains('/') => ("CommandNotFound", "no such file".to_string()),
        std::io::ErrorKind::NotFound => ("CommandNotFound", "not found in PATH".to_string()),
        std::io::ErrorKind::PermissionDenied => ("PermissionDenied", "permission denied (is it executable?)".to_string()),
        _ => ("CommandNotStarted", e.to_string()),
    };
    CommandExit::NotStarted(ename.into(), format!("cannot run {program:?} on {}: {why}", host()))
}

/// Explains why an existing file is "not found": the interpreter of its first line is missing.
fn missing_interpreter(program: &str, directory: Option<&str>) -> Option<String> {
    let path = match program.contains('/') {
        true => Path::new(directory.unwrap_or(".")).join(program),
        false => std::env::split_paths(&std::env::var_os("PATH")?)
            .map(|folder| folder.join(program))
            .find(|path| path.is_file())?,
    };
    let mut begin = Vec::new();
    std::fs::File::open(path).ok()?.take(256).read_to_end(&mut begin).ok()?;
    let Some(line) = begin.strip_prefix(b"#!") else {
        return Some("the file exists, but its loader is missing (was it built for another system?)".into());
    };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let hint = match line.ends_with(b"\r") {
        true => "; its lines end with CRLF: convert it with dos2unix",
        false => "",
    };
    Some(format!(
        "its first line, \"#!{}\", names a missing interpreter{hint}",
        line.escape_ascii()
    ))
}

pub(super) fn host() -> String {
    nix::unistd::gethostname().map_or_else(|_| "this host".into(), |name| name.to_string_lossy().into_owned())
}

fn with_home(path: &str) -> String {
    match (path.strip_prefix('~'), std::env::var("HOME")) {
        (Some(rest), Ok(home)) if rest.is_empty() || rest.starts_with('/') => format!("{home}{rest}"),
        _ => path.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| text.to_string()).collect()
    }

    #[test]
    fn placeholders_are_filled() {
        let input = words(&["a b", "c"]);
        for (template, expected) in [
            (&["echo"][..], &["echo", "a b", "c"][..]),
            (&["echo", "{}"], &["echo", "a b c"]),
            (&["echo", "x{1}y", "{2}", "{3}"], &["echo", "xa by", "c", ""]),
            (&["awk", "{print $1}", "{2}"], &["awk", "{print $1}", "c"]),
            (&["awk", "{print}"], &["awk", "{print}", "a b", "c"]),
            (&["{{1}}", "{0}", "{"], &["{a b}", "{0}", "{"]),
        ] {
            assert_eq!(argv(&words(template), &input), words(expected), "{template:?}");
        }
        assert_eq!(input_words(br#"["x", 1, null]"#), words(&["x", "1", "null"]));
        assert_eq!(input_words(br#""x y""#), words(&["x y"]));
    }

    #[test]
    fn a_script_whose_interpreter_is_missing_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let why = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            missing_interpreter(&format!("./{name}"), dir.path().to_str()).unwrap()
        };
        let crlf = why("crlf.sh", "#!/bin/sh\r\necho hi\r\n");
        assert!(crlf.contains(r##""#!/bin/sh\r""##) && crlf.contains("CRLF"), "{crlf}");
        let missing = why("missing.sh", "#!/no/such/python -u\n");
        assert!(
            missing.contains(r##""#!/no/such/python -u""##) && !missing.contains("CRLF"),
            "{missing}"
        );
        assert!(why("binary", "\x7fELF").contains("its loader is missing"));
        assert_eq!(missing_interpreter("./nothing", dir.path().to_str()), None);
        assert_eq!(missing_interpreter("no-such-command-anywhere", None), None);
    }

    proptest! {
        #[test]
        fn filling_never_panics(template in proptest::collection::vec("[{}0-9a é]{0,8}", 0..4), input in proptest::collection::vec("\\PC{0,4}", 0..3)) {
            let filled = argv(&template, &input);
            prop_assert!(filled.len() == template.len() || filled.len() == template.len() + input.len());
        }
    }
}
