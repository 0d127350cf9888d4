//! A worker process: its fork, its pipes (the engine's event loop never blocks on them), its tokens, its end.
use super::interpreter::{Interpreter, ProcessEnd, StartError, WorkerPid};
use super::output::{ForWorker, OutputPipe, Outputs};
use super::protocol::Record;
use super::reader::{RecordError, read_records};
use super::writer::FrameWriter;
use crate::engine::orphans::ProcessOwner;
use crate::engine::signal::describe;
use bytes::Bytes;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

/// Sent before the first request of an ipyparallel client.
pub(crate) const IPYTHON: &str = concat!(
    include_str!("origins.py"),
    "\n",
    include_str!("kernel.py"),
    "\n",
    include_str!("ipython.py")
);

/// Capacity of the pipes, if the system permits it.
const PIPE_SIZE: i32 = 1 << 20;

/// An event of a worker, sent together with the worker's number, which distinguishes it from earlier workers.
#[derive(Debug)]
pub(crate) enum WorkerEvent {
    Records(Vec<Record>),
    /// The answer to [`Worker::sync_output`]: all records in the pipe at that time have been reported.
    OutputSynced,
    /// The last event of a worker.
    Exited(WorkerExit),
}

/// The end of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkerExit {
    /// `was killed by signal 9 (SIGKILL)`.
    pub how: String,
    /// Killed by a signal, other than for an invalid record.
    pub killed: bool,
    /// The last stderr output of the interpreter, if the worker ended together with it.
    pub last_output: String,
}

impl WorkerExit {
    /// `broken`: the invalid record for which it was killed.
    fn of(end: Option<ProcessEnd>, broken: Option<RecordError>) -> WorkerExit {
        let (how, killed, last_output) = match end {
            Some(ProcessEnd::Ended(status)) => (describe(status), status.signal().is_some(), String::new()),
            Some(ProcessEnd::WithInterpreter { status, last_output }) => {
                let how = status.map_or("ended".into(), describe);
                (how, status.is_some_and(|status| status.signal().is_some()), last_output)
            }
            Some(ProcessEnd::NotForked(why)) => (why, false, String::new()),
            None => ("ended".into(), false, String::new()),
        };
        match broken {
            Some(why) => WorkerExit {
                how: format!("was killed because it {why}"),
                killed: false,
                last_output,
            },
            None => WorkerExit { how, killed, last_output },
        }
    }
}

pub(crate) struct Worker {
    pub number: u64,
    /// Dropped after the process group is killed.
    _owner: ProcessOwner,
    pub pid: WorkerPid,
    /// The code for ipyparallel clients has been sent to it.
    pub has_ipython: bool,
    frames: Option<FrameWriter>,
    queued: Vec<Bytes>,
    /// A non-blocking second reader of the token pipe: tokens read here are not read by the worker.
    tokens_in: std::fs::File,
    tokens_out: std::fs::File,
    pub stdout: OutputPipe,
    pub stderr: OutputPipe,
    /// Tokens that did not fit into the pipe.
    unsent: Vec<u8>,
    /// The pipe of records, until it is enlarged.
    records: Option<OwnedFd>,
    /// Requests to the reader of records.
    sync: UnboundedSender<()>,
    /// The ends of stdout and stderr at the pending sync. At [`WorkerEvent::OutputSynced`], unread output before them belongs to no unit
    /// whose end has been reported. A worker reports the end of a unit before it starts the next one, so the output belongs to the running unit.
    pub sync_positions: Option<(u64, u64)>,
    /// The core requested the sync and expects an answer.
    pub is_requested: bool,
    /// The ends of its output when it ended; leftover processes may continue to write.
    pub ends: Option<(u64, u64)>,
    /// Set while there is unread output.
    pub pending_output: Option<PendingOutput>,
    /// A pipe was filling up at the last poll.
    pub fills_fast: bool,
    /// The peak memory that it last reported, in bytes.
    pub peak: Option<u64>,
}

/// When output was first noticed, and when to poll again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingOutput {
    pub since: Instant,
    pub next: Instant,
}

impl Worker {
    /// Requests a fork from the interpreter. With `hello_after_shell` the worker sends its hello only after creating IPython's shell.
    pub(crate) fn start(
        interpreter: &Interpreter,
        owner: ProcessOwner,
        hello_after_shell: bool,
        events: UnboundedSender<(u64, WorkerEvent)>,
    ) -> Result<Worker, StartError> {
        let (number, mark) = (owner.number, owner.mark());
        let files = WorkerFiles::make(&mark).map_err(StartError::Pipes)?;
        let (pid, end) = interpreter.fork(number as u32, hello_after_shell, &mark, &files.for_worker());
        let WorkerFiles {
            frames_in: _,
            frames_out,
            records_in,
            records_out: _,
            tokens_in,
            tokens_out,
            outputs,
        } = files;
        let [stdout, stderr] = outputs.pipes;
        let tokens_in = reopened(&tokens_in).map_err(StartError::Pipes)?;
        let frames = FrameWriter::new(frames_out.into());
        let large = records_in.try_clone().map_err(StartError::Pipes)?;
        let (wake_out, wake_in) = oneshot::channel();
        let (sync_sender, sync_receiver) = unbounded_channel();
        let exit = tokio::spawn(async move {
            let ended = end.await;
            // Wakes the reader.
            drop(wake_out);
            ended
        });
        let killed = pid.clone();
        tokio::spawn(async move {
            let kill = || killed.signal(nix::libc::SIGKILL);
            let broken = read_records(records_in, wake_in, sync_receiver, number, &events, kill).await;
            let end = exit.await.ok().and_then(Result::ok);
            let _ = events.send((number, WorkerEvent::Exited(WorkerExit::of(end, broken))));
        });
        Ok(Worker {
            number,
            _owner: owner,
            pid,
            has_ipython: false,
            frames: Some(frames),
            queued: Vec::new(),
            tokens_in,
            tokens_out,
            stdout,
            stderr,
            unsent: Vec::new(),
            records: Some(large),
            sync: sync_sender,
            sync_positions: None,
            is_requested: false,
            ends: None,
            pending_output: None,
            fills_fast: false,
            peak: None,
        })
    }

    /// Requests [`WorkerEvent::OutputSynced`].
    pub(crate) fn sync_output(&mut self) {
        let ends = self.written();
        self.send_tokens(&[]);
        if self.sync_positions.is_none() && self.sync.send(()).is_ok() {
            self.sync_positions = Some(ends);
        }
    }

    /// Number of bytes written to stdout and stderr.
    pub(crate) fn written(&self) -> (u64, u64) {
        (self.stdout.size(), self.stderr.size())
    }

    /// Number of unread bytes of output before `end`.
    pub(crate) fn unread_output(&self, end: Option<(u64, u64)>) -> u64 {
        self.stdout.unread_to(end.map(|end| end.0)) + self.stderr.unread_to(end.map(|end| end.1))
    }

    /// Reads the next chunk of output before `end`.
    pub(crate) fn read_output(&mut self, end: Option<(u64, u64)>) -> [Bytes; 2] {
        [self.stdout.read_to(end.map(|end| end.0)), self.stderr.read_to(end.map(|end| end.1))]
    }

    /// Sends frames in order; frames that do not fit into the pipe are written in the background.
    pub(crate) fn send(&mut self, mut frames: Vec<Bytes>) {
        if let Some(pipe) = &mut self.frames {
            if !self.queued.is_empty() {
                frames.splice(0..0, self.queued.drain(..));
            }
            pipe.send(frames);
        }
    }

    /// Queues a frame to send before the next frames.
    pub(crate) fn send_later(&mut self, frame: Bytes) {
        self.queued.push(frame);
    }

    /// Closes the pipe of frames: an idle worker exits.
    pub(crate) fn close(&mut self) {
        self.frames = None;
    }

    /// Lets the worker start this many further units.
    pub(crate) fn add_tokens(&mut self, count: usize) {
        self.send_tokens(&vec![b'g'; count]);
    }

    /// Does not block: tokens that do not fit into the pipe are sent after the worker has read some.
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

    /// It has error_text something: it may have read tokens.
    pub(crate) fn retry_tokens(&mut self) {
        if !self.unsent.is_empty() {
            self.send_tokens(&[]);
        }
    }

    /// Enlarges the pipes of a worker that is about to receive units, if the system permits it.
    pub(crate) fn enlarge(&mut self) {
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

    /// Makes the worker skip units that it has not started; returns their number.
    pub(crate) fn recall(&mut self) -> usize {
        let tokens = self.unread_tokens();
        self.send_tokens(&vec![b's'; tokens.len()]);
        tokens.iter().filter(|token| **token == b'g').count()
    }

    /// Number of units that a worker had not started when it ended.
    pub(crate) fn unstarted_units(&mut self) -> usize {
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

    /// Signals the worker and the processes that it started.
    pub(crate) fn signal(&self, signal: i32) {
        self.pid.signal(signal);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.pid.signal(nix::libc::SIGKILL);
    }
}

/// The pipes and files between engine and worker.
struct WorkerFiles {
    frames_in: OwnedFd,
    frames_out: OwnedFd,
    records_in: OwnedFd,
    records_out: OwnedFd,
    tokens_in: std::fs::File,
    tokens_out: std::fs::File,
    outputs: Outputs,
}

impl WorkerFiles {
    /// `mark` names memory that is mapped only by the worker and its forks.
    fn make(mark: &str) -> io::Result<WorkerFiles> {
        let (frames_in, frames_out) = pipe()?;
        let (records_in, records_out) = pipe()?;
        let (tokens_in, tokens_out) = pipe()?;
        for end in [&frames_out, &records_in, &tokens_out] {
            fcntl(end.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(WorkerFiles {
            frames_in,
            frames_out,
            records_in,
            records_out,
            tokens_in: tokens_in.into(),
            tokens_out: tokens_out.into(),
            outputs: Outputs::new(mark)?,
        })
    }

    /// The descriptors in the order in which `worker.py` expects them.
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

/// A second, never exit, reader of a pipe.
fn reopened(pipe: &std::fs::File) -> io::Result<std::fs::File> {
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    Ok(open(path.as_str(), OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())?.into())
}
