//! The worker as a process: starting it, its pipes (the engine's own loop never waits for them), its tokens, its end.
use super::files::OutputFile;
use super::protocol::Record;
use super::reader::read_records;
use super::writer::FrameWriter;
use crate::engine::core::output::Pieces;
use crate::engine::forker::Forker;
use bytes::Bytes;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::stat::Mode;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use tokio::sync::mpsc::UnboundedSender;

const BOOTSTRAP: &str = include_str!("bootstrap.py");
/// One script of parts that share a namespace.
const WORKER: &str = concat!(
    include_str!("state.py"),
    "\n",
    include_str!("records.py"),
    "\n",
    include_str!("values.py"),
    "\n",
    include_str!("bundle.py"),
    "\n",
    include_str!("code.py"),
    "\n",
    include_str!("worker.py"),
);
/// Sent before the first request of an ipyparallel client.
pub const IPYTHON: &str = include_str!("ipython.py");

/// What the pipes hold, where the system allows it.
const PIPE_SIZE: i32 = 1 << 20;

/// What a worker says, with the number of the worker: an earlier one's last words are told apart.
#[derive(Debug)]
pub enum WorkerEvent {
    Records(Vec<Record>),
    /// The answer to [`Worker::look`]: what it had said when it was looked at has been told.
    Looked,
    /// Its last event.
    Exited(WorkerExit),
}

/// How a worker ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerExit {
    /// `was killed by signal 9 (SIGKILL)`.
    pub how: String,
    /// By a signal that was not sent for something that it wrote.
    pub killed: bool,
}

/// How to start a worker.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    pub python: String,
    pub cwd: Option<String>,
    pub env: Vec<(String, String)>,
    /// It says hello only after it has been told to make IPython's shell.
    pub greets_late: bool,
    /// Inside a batch job, whose system may warn every process of it; the warning is the engine's to understand.
    pub in_job: bool,
}

pub struct Worker {
    pub number: u64,
    pub pid: i32,
    frames: Option<FrameWriter>,
    later: Vec<Bytes>,
    /// The reading end is open here too, without waiting: what is read here will not be read there.
    tokens_in: std::fs::File,
    tokens_out: std::fs::File,
    pub stdout: OutputFile,
    pub stderr: OutputFile,
    /// Wakes the thread that reads.
    look: std::fs::File,
    /// The ends of stdout and stderr at the look that is under way.
    looked_at: Option<(u64, u64)>,
}

impl Worker {
    /// Errors are in words, with the interpreter.
    pub async fn start(
        command: &WorkerCommand,
        number: u64,
        forker: &Forker,
        events: UnboundedSender<(u64, WorkerEvent)>,
    ) -> Result<Worker, String> {
        let said = |what: &str, e: &dyn std::fmt::Display| format!("{}: {what}: {e}", command.python);
        let parts = Parts::make().map_err(|e| said("cannot make pipes for it", &e))?;
        let inherited = parts.inherited();
        let mut process = tokio::process::Command::new(&command.python);
        process.arg("-c").arg(BOOTSTRAP).args(inherited.map(|fd| fd.to_string()));
        process.args(command.greets_late.then_some("shell"));
        process.stdin(Stdio::null());
        process.stdout(parts.stdout.for_child().map_err(|e| said("stdout", &e))?);
        process.stderr(parts.stderr.for_child().map_err(|e| said("stderr", &e))?);
        process.envs(command.env.iter().map(|(k, v)| (k, v)));
        if let Some(cwd) = &command.cwd {
            if !Path::new(cwd).is_dir() {
                return Err(format!("{}: its working directory {cwd} is not a directory", command.python));
            }
            process.current_dir(cwd);
        }
        if command.in_job {
            ignore_warnings(&mut process);
        }
        let mut child = forker.spawn(process, inherited.to_vec()).await.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => format!("no interpreter {:?}", command.python),
            _ => said("cannot start it", &e),
        })?;
        let pid = child.id().unwrap_or_default() as i32;
        let Parts {
            script: _,
            frames_in: _,
            frames_out,
            records_in,
            records_out: _,
            tokens_in,
            tokens_out,
            stdout,
            stderr,
        } = parts;
        let tokens_in = reopened(&tokens_in).map_err(|e| said("cannot read its tokens", &e))?;

        let frames = FrameWriter::new(frames_out.into()).map_err(|e| said("cannot start a thread", &e))?;
        let (wake_in, wake_out) = pipe().map_err(|e| said("cannot make a pipe", &e))?;
        let (look_in, look_out) = pipe().map_err(|e| said("cannot make a pipe", &e))?;
        let waiting = tokio::spawn(async move {
            let ended = child.wait().await;
            // The reader sees the pipe close.
            drop(wake_out);
            ended
        });
        tokio::spawn(async move {
            let broken = read_records(records_in, wake_in, look_in, number, &events, pid).await;
            let status = waiting.await.ok();
            let killed = broken.is_none() && status.as_ref().is_some_and(|s| s.as_ref().is_ok_and(|s| s.signal().is_some()));
            let how = match status {
                Some(Ok(status)) => describe(status),
                Some(Err(e)) => format!("ended ({e})"),
                None => "ended".into(),
            };
            let how = broken.map_or(how, |why| format!("was killed, because it {why}"));
            let _ = events.send((number, WorkerEvent::Exited(WorkerExit { how, killed })));
        });
        Ok(Worker {
            number,
            pid,
            frames: Some(frames),
            later: Vec::new(),
            tokens_in,
            tokens_out,
            stdout,
            stderr,
            look: look_out.into(),
            looked_at: None,
        })
    }

    /// Asks for [`WorkerEvent::Looked`], to which [`Worker::written`] is what had been written by now.
    pub fn look(&mut self) {
        let ends = (self.stdout.size(), self.stderr.size());
        if self.looked_at.is_none() && self.look.write_all(b"?").is_ok() {
            self.looked_at = Some(ends);
        }
    }

    /// At [`WorkerEvent::Looked`]: what was written before the look and is not of a unit whose end has been told. A worker
    /// tells the end of a unit before it begins the next, so this is of the one that runs.
    pub fn written(&mut self) -> [Pieces; 2] {
        match self.looked_at.take() {
            Some((out, err)) => [self.stdout.read_to(Some(out)), self.stderr.read_to(Some(err))],
            None => Default::default(),
        }
    }

    /// Frames are written in order; what the pipe does not take at once, in the background.
    pub fn send(&mut self, mut frames: Vec<Bytes>) {
        if let Some(pipe) = &mut self.frames {
            if !self.later.is_empty() {
                frames.splice(0..0, self.later.drain(..));
            }
            pipe.send(frames);
        }
    }

    /// In front of what is sent next.
    pub fn send_later(&mut self, frame: Bytes) {
        self.later.push(frame);
    }

    /// No more frames: an idle worker ends.
    pub fn close(&mut self) {
        self.frames = None;
    }

    /// Lets the worker begin so many units more.
    pub fn allow(&mut self, count: usize) {
        let _ = self.tokens_out.write_all(&vec![b'g'; count]);
    }

    /// Makes the worker skip what it has not begun; says how many units that were.
    pub fn recall(&mut self) -> usize {
        let tokens = self.unread_tokens();
        let _ = self.tokens_out.write_all(&vec![b's'; tokens.len()]);
        tokens.iter().filter(|token| **token == b'g').count()
    }

    /// Of a worker that has ended: how many units it had not begun.
    pub fn left_over(&mut self) -> usize {
        self.unread_tokens().iter().filter(|token| **token == b'g').count()
    }

    fn unread_tokens(&mut self) -> Vec<u8> {
        let (mut tokens, mut chunk) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = self.tokens_in.read(&mut chunk) {
            tokens.extend_from_slice(&chunk[..count]);
        }
        tokens
    }

    /// To the worker and all that it has started.
    pub fn signal(&self, signal: i32) {
        signal_group(self.pid, signal);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        signal_group(self.pid, nix::libc::SIGKILL);
    }
}

/// SIGUSR1 and SIGUSR2 end a program that does not expect them: here they do nothing until user code sets a handler of its own.
fn ignore_warnings(process: &mut tokio::process::Command) {
    let ignore = || {
        for warning in [Signal::SIGUSR1, Signal::SIGUSR2] {
            #[expect(unsafe_code, reason = "no handler of this program's is replaced by another")]
            unsafe {
                signal(warning, SigHandler::SigIgn)?;
            }
        }
        Ok(())
    };
    #[expect(unsafe_code, reason = "between fork and exec only system calls are made")]
    unsafe {
        process.pre_exec(ignore);
    }
}

/// A signal for a process group; one that is gone is no error.
pub fn signal_group(pid: i32, signal: i32) {
    if pid > 1
        && let Ok(signal) = Signal::try_from(signal)
    {
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), signal);
    }
}

/// `ended with exit code 3`, `was killed by signal 11 (SIGSEGV)`.
pub fn describe(status: std::process::ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (_, Some(number)) => format!("was killed by signal {number} ({})", signal_name(number)),
        _ => "ended".into(),
    }
}

pub fn signal_name(number: i32) -> String {
    Signal::try_from(number).map_or_else(|_| "unknown".into(), |signal| signal.as_str().to_string())
}

/// The files between engine and worker.
struct Parts {
    script: OwnedFd,
    frames_in: OwnedFd,
    frames_out: OwnedFd,
    records_in: OwnedFd,
    records_out: OwnedFd,
    tokens_in: std::fs::File,
    tokens_out: std::fs::File,
    stdout: OutputFile,
    stderr: OutputFile,
}

impl Parts {
    fn make() -> io::Result<Parts> {
        // In memory rather than in a pipe: pipes can be as small as a page (pipe(7), pipe-user-pages-soft).
        let mut script = std::fs::File::from(memfd_create("script", MFdFlags::MFD_CLOEXEC)?);
        script.write_all(WORKER.as_bytes())?;
        script.rewind()?;
        let (frames_in, frames_out) = pipe()?;
        let (records_in, records_out) = pipe()?;
        for end in [&frames_out, &records_out] {
            let _ = fcntl(end.as_fd(), FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
        }
        for end in [&frames_out, &records_in] {
            fcntl(end.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let (tokens_in, tokens_out) = pipe()?;
        Ok(Parts {
            script: script.into(),
            frames_in,
            frames_out,
            records_in,
            records_out,
            tokens_in: tokens_in.into(),
            tokens_out: tokens_out.into(),
            stdout: OutputFile::new("stdout")?,
            stderr: OutputFile::new("stderr")?,
        })
    }

    /// In the order in which `worker.py` expects them.
    fn inherited(&self) -> [RawFd; 6] {
        [
            self.script.as_raw_fd(),
            self.frames_in.as_raw_fd(),
            self.records_out.as_raw_fd(),
            self.tokens_in.as_raw_fd(),
            self.stdout.raw(),
            self.stderr.raw(),
        ]
    }
}

fn pipe() -> nix::Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC)
}

/// A second, never waiting, reader of a pipe.
fn reopened(pipe: &std::fs::File) -> io::Result<std::fs::File> {
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    Ok(open(path.as_str(), OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())?.into())
}

/// Lets a child process keep these files.
pub fn keep_open(fds: &[RawFd]) -> io::Result<()> {
    for fd in fds {
        #[expect(unsafe_code, reason = "the files are open for as long as the child is being started")]
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    Ok(())
}
