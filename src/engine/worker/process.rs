//! A worker as a process: having it forked, its pipes (the engine's own loop never waits for them), its tokens, its end.
use super::interpreter::{Interpreter, ProcessEnd, WorkerPid};
use super::output::{ForWorker, OutputPipe, Outputs};
use super::protocol::Record;
use super::reader::read_records;
use super::writer::FrameWriter;
use crate::engine::leftovers::Owner;
use bytes::Bytes;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

/// Sent before the first request of an ipyparallel client.
pub const IPYTHON: &str = concat!(
    include_str!("origins.py"),
    "\n",
    include_str!("kernel.py"),
    "\n",
    include_str!("ipython.py")
);

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
    /// On the stderr of the interpreter, where it has ended with that.
    pub last_words: String,
}

impl WorkerExit {
    /// `broken`: why it was killed, for something that it wrote.
    fn of(end: Option<ProcessEnd>, broken: Option<String>) -> WorkerExit {
        let (how, killed, last_words) = match end {
            Some(ProcessEnd::Ended(status)) => (describe(status), status.signal().is_some(), String::new()),
            Some(ProcessEnd::WithInterpreter { status, last_words }) => {
                let how = status.map_or("ended".into(), describe);
                (how, status.is_some_and(|status| status.signal().is_some()), last_words)
            }
            Some(ProcessEnd::NotForked(why)) => (why, false, String::new()),
            None => ("ended".into(), false, String::new()),
        };
        match broken {
            Some(why) => WorkerExit {
                how: format!("was killed, because it {why}"),
                killed: false,
                last_words,
            },
            None => WorkerExit { how, killed, last_words },
        }
    }
}

pub struct Worker {
    pub number: u64,
    /// Dropped behind the kill of its group.
    _owner: Owner,
    pub pid: WorkerPid,
    /// It was sent what serves ipyparallel's clients.
    pub has_ipython: bool,
    frames: Option<FrameWriter>,
    later: Vec<Bytes>,
    /// The reading end is open here too, without waiting: what is read here will not be read there.
    tokens_in: std::fs::File,
    tokens_out: std::fs::File,
    pub stdout: OutputPipe,
    pub stderr: OutputPipe,
    /// Tokens for which the pipe had no room.
    unsent: Vec<u8>,
    /// The pipe of records, until it is made large.
    records: Option<OwnedFd>,
    /// To what reads the records.
    look: UnboundedSender<()>,
    /// The ends of stdout and stderr at the look that is under way. What was not read up to there is, at [`WorkerEvent::Looked`], of no
    /// unit whose end has been told. A worker tells the end of a unit before it begins the next, so it is of the one that runs.
    pub looked_at: Option<(u64, u64)>,
    /// The look was asked for by the core, which wants to know of it.
    pub is_awaited: bool,
    /// How far its output goes, once it has ended: what it has left behind may write on.
    pub ends: Option<(u64, u64)>,
    /// It has written something that was not read yet.
    pub wrote: Option<Wrote>,
    /// The last time there was much of it.
    pub writes_much: bool,
}

/// When that was seen, and when to look at it again.
#[derive(Clone, Copy, Debug)]
pub struct Wrote {
    pub since: Instant,
    pub next: Instant,
}

impl Worker {
    /// Has the interpreter fork one. With `greets_late` it says hello only when it has made IPython's shell.
    pub fn start(
        interpreter: &Interpreter,
        owner: Owner,
        greets_late: bool,
        events: UnboundedSender<(u64, WorkerEvent)>,
    ) -> Result<Worker, String> {
        let said = |e: io::Error| format!("cannot make pipes for a worker: {e}");
        let (number, mark) = (owner.number, owner.mark());
        let parts = Parts::make(&mark).map_err(said)?;
        let (pid, end) = interpreter.fork(number as u32, greets_late, &mark, &parts.for_worker());
        let Parts {
            frames_in: _,
            frames_out,
            records_in,
            records_out: _,
            tokens_in,
            tokens_out,
            outputs,
        } = parts;
        let [stdout, stderr] = outputs.pipes;
        let tokens_in = reopened(&tokens_in).map_err(said)?;
        let frames = FrameWriter::new(frames_out.into());
        let large = records_in.try_clone().map_err(said)?;
        let (wake_out, wake_in) = oneshot::channel();
        let (look_out, look_in) = unbounded_channel();
        let waiting = tokio::spawn(async move {
            let ended = end.await;
            // The reader hears of it.
            drop(wake_out);
            ended
        });
        let killed = pid.clone();
        tokio::spawn(async move {
            let kill = || killed.signal(nix::libc::SIGKILL);
            let broken = read_records(records_in, wake_in, look_in, number, &events, kill).await;
            let end = waiting.await.ok().and_then(Result::ok);
            let _ = events.send((number, WorkerEvent::Exited(WorkerExit::of(end, broken))));
        });
        Ok(Worker {
            number,
            _owner: owner,
            pid,
            has_ipython: false,
            frames: Some(frames),
            later: Vec::new(),
            tokens_in,
            tokens_out,
            stdout,
            stderr,
            unsent: Vec::new(),
            records: Some(large),
            look: look_out,
            looked_at: None,
            is_awaited: false,
            ends: None,
            wrote: None,
            writes_much: false,
        })
    }

    /// Asks for [`WorkerEvent::Looked`].
    pub fn look(&mut self) {
        let ends = self.written();
        self.send_tokens(&[]);
        if self.looked_at.is_none() && self.look.send(()).is_ok() {
            self.looked_at = Some(ends);
        }
    }

    /// How much it has written to stdout and stderr.
    pub fn written(&self) -> (u64, u64) {
        (self.stdout.size(), self.stderr.size())
    }

    /// So many bytes of output up to there were not read.
    pub fn unread_output(&self, upto: Option<(u64, u64)>) -> u64 {
        self.stdout.unread_to(upto.map(|upto| upto.0)) + self.stderr.unread_to(upto.map(|upto| upto.1))
    }

    /// The next of it.
    pub fn read_output(&mut self, upto: Option<(u64, u64)>) -> [Bytes; 2] {
        [
            self.stdout.read_to(upto.map(|upto| upto.0)),
            self.stderr.read_to(upto.map(|upto| upto.1)),
        ]
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
        self.send_tokens(&vec![b'g'; count]);
    }

    /// Never waits: what the pipe does not take follows when the worker has read some.
    fn send_tokens(&mut self, tokens: &[u8]) {
        self.unsent.extend_from_slice(tokens);
        while !self.unsent.is_empty() {
            match self.tokens_out.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// It has said something: it may have read tokens.
    pub fn has_moved(&mut self) {
        if !self.unsent.is_empty() {
            self.send_tokens(&[]);
        }
    }

    /// It is going to work: its pipes hold more, where the system allows that.
    pub fn enlarge(&mut self) {
        for pipe in self
            .records
            .take()
            .iter()
            .map(AsFd::as_fd)
            .chain(self.frames.as_ref().map(FrameWriter::pipe))
        {
            let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
        }
        self.stdout.enlarge();
        self.stderr.enlarge();
    }

    /// Makes the worker skip what it has not begun; says how many units that were.
    pub fn recall(&mut self) -> usize {
        let tokens = self.unread_tokens();
        self.send_tokens(&vec![b's'; tokens.len()]);
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
        tokens.append(&mut self.unsent);
        tokens
    }

    /// To the worker and all that it has started.
    pub fn signal(&self, signal: i32) {
        self.pid.signal(signal);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.pid.signal(nix::libc::SIGKILL);
    }
}

/// A signal for a process group; one that is gone is no error.
pub fn signal_group(pid: i32, signal: i32) {
    is_group_signalled(pid, signal);
}

/// Whether there is such a group.
pub fn is_group_signalled(pid: i32, signal: i32) -> bool {
    let Ok(signal) = Signal::try_from(signal) else { return false };
    pid > 1 && nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), signal).is_ok()
}

/// A signal for one process; one that is gone is no error.
pub fn signal_one(pid: i32, signal: i32) {
    if pid > 1
        && let Ok(signal) = Signal::try_from(signal)
    {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
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
    frames_in: OwnedFd,
    frames_out: OwnedFd,
    records_in: OwnedFd,
    records_out: OwnedFd,
    tokens_in: std::fs::File,
    tokens_out: std::fs::File,
    outputs: Outputs,
}

impl Parts {
    /// Memory of this name is in the worker and in what it forks, and nowhere else.
    fn make(mark: &str) -> io::Result<Parts> {
        let (frames_in, frames_out) = pipe()?;
        let (records_in, records_out) = pipe()?;
        let (tokens_in, tokens_out) = pipe()?;
        for end in [&frames_out, &records_in, &tokens_out] {
            fcntl(end.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Parts {
            frames_in,
            frames_out,
            records_in,
            records_out,
            tokens_in: tokens_in.into(),
            tokens_out: tokens_out.into(),
            outputs: Outputs::new(mark)?,
        })
    }

    /// In the order in which `worker.py` expects them.
    fn for_worker(&self) -> [RawFd; 7] {
        let ForWorker { writers, counts, watch } = &self.outputs.for_worker;
        let [stdout, stderr] = writers;
        [
            self.frames_in.as_raw_fd(),
            self.records_out.as_raw_fd(),
            self.tokens_in.as_raw_fd(),
            stdout.as_raw_fd(),
            stderr.as_raw_fd(),
            counts.as_raw_fd(),
            watch.as_raw_fd(),
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
