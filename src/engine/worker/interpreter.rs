//! The warm interpreter: a Python process that has imported the workers' dependencies but no user code, and forks workers on request.
//!
//! Requests and reports are messages on a sequential-packet socket. A request is the number of the new worker (u32, little endian), a
//! byte that is 1 if it sends its hello only after creating IPython's shell, its mark (`orphans.rs`), and its files. Reports start with
//! a letter: `F` number and pid of a new worker (u32, i32); `N` number, and why the fork failed; `X` pid and wait status of a worker that
//! has ended (i32, i32).
use super::files::OutputFile;
use crate::engine::forker::Forker;
use crate::engine::signal::{is_group_signalled, signal_one};
use crate::sys::async_fd::watch_readable;
use crate::sys::child_setup::{ChildSetup, set_up_child};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, recv, sendmsg, shutdown, socketpair};
use std::collections::HashMap;
use std::io::{self, IoSlice, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::unix::AsyncFd;
use tokio::process::Child;
use tokio::sync::oneshot;

const BOOTSTRAP: &str = include_str!("bootstrap.py");
/// One script of modules that share a namespace.
const WORKER: &str = concat!(
    include_str!("state.py"),
    "\n",
    include_str!("records.py"),
    "\n",
    include_str!("values.py"),
    "\nRENDERING = r'''",
    include_str!("rendering.py"),
    "'''\n",
    include_str!("bundle.py"),
    "\n",
    include_str!("code.py"),
    "\n",
    include_str!("frames.py"),
    "\n",
    include_str!("streams.py"),
    "\n",
    include_str!("worker.py"),
    "\n",
    include_str!("interpreter.py"),
);

/// How to start an interpreter.
#[derive(Clone, Debug)]
pub(crate) struct InterpreterCommand {
    pub python: String,
    pub cwd: Option<String>,
    pub env: Vec<(String, String)>,
    /// Inside of a batch job, whose system may signal a warning to all its processes; only the engine handles it.
    pub in_job: bool,
}

/// The process id of a worker, once it is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct WorkerPid(Arc<KnownPid>);

#[derive(Debug, Default)]
struct KnownPid {
    pid: AtomicI32,
    has_ended: AtomicBool,
}

impl WorkerPid {
    /// The process id; 0 before it is known.
    pub(crate) fn get(&self) -> i32 {
        self.0.pid.load(Ordering::SeqCst)
    }

    /// Signals the worker and the processes in its group.
    pub(crate) fn signal(&self, number: i32) {
        let pid = self.get();
        // It may not have its own group yet. After its end the process id may be reused.
        if !is_group_signalled(pid, number) && !self.0.has_ended.load(Ordering::SeqCst) {
            signal_one(pid, number);
        }
    }

    pub(crate) fn kill_unless_ended(&self) {
        if !self.0.has_ended.load(Ordering::SeqCst) {
            self.signal(nix::libc::SIGKILL);
        }
    }

    fn set(&self, pid: i32) {
        self.0.pid.store(pid, Ordering::SeqCst);
    }

    fn set_ended(&self) {
        self.0.has_ended.store(true, Ordering::SeqCst);
    }
}

/// How a worker's process ended.
#[derive(Clone, Debug)]
pub(crate) enum ProcessEnd {
    Ended(ExitStatus),
    /// Together with its interpreter; `last_output` is from the interpreter's stderr.
    WithInterpreter {
        status: Option<ExitStatus>,
        last_output: String,
    },
    NotForked(String),
}

struct Fork {
    pid: WorkerPid,
    ended: oneshot::Sender<ProcessEnd>,
}

/// Requested workers that have not ended; or the end of the interpreter.
type Forks = Mutex<Result<HashMap<u32, Fork>, ProcessEnd>>;

pub(crate) struct Interpreter {
    socket: Arc<AsyncFd<OwnedFd>>,
    forks: Arc<Forks>,
    pid: i32,
}

fn lock(forks: &Forks) -> MutexGuard<'_, Result<HashMap<u32, Fork>, ProcessEnd>> {
    forks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a worker cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("interpreter {0:?} not found")]
    NotFound(String),
    #[error("{0}: its working directory {1} is not a directory")]
    WorkingDirectory(String, String),
    #[error("{python}: {what}: {error}")]
    Interpreter {
        python: String,
        what: &'static str,
        error: io::Error,
    },
    #[error("cannot create pipes for a worker: {0}")]
    Pipes(io::Error),
    #[error("cannot watch the output of a worker: {0}")]
    Output(io::Error),
}

/// How Python's allocator treats large blocks (mallopt(3)): by default each has a mapping of its own, and its pages are cleared, as are those at
/// the end of the heap. Large values then cost more than their encoding.
const MALLOC: [(&str, &str); 2] = [("MALLOC_MMAP_THRESHOLD_", "33554432"), ("MALLOC_TRIM_THRESHOLD_", "33554432")];

impl Interpreter {
    pub(crate) async fn start(command: &InterpreterCommand, forker: &Forker) -> Result<Interpreter, StartError> {
        let failed = |what: &'static str, error: io::Error| StartError::Interpreter {
            python: command.python.clone(),
            what,
            error,
        };
        let script = script().map_err(|e| failed("cannot create its script", e))?;
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (near, far) = pair.map_err(|e| failed("cannot create a socket for it", e.into()))?;
        let output = OutputFile::new("interpreter").map_err(|e| failed("cannot create a file for its output", e))?;
        let inherited = [script.into(), far];
        let mut process = tokio::process::Command::new(&command.python);
        process
            .arg("-c")
            .arg(BOOTSTRAP)
            .args(inherited.each_ref().map(|file: &OwnedFd| file.as_raw_fd().to_string()));
        process.stdin(Stdio::null());
        process.stdout(output.for_child().map_err(|e| failed("stdout", e))?);
        process.stderr(output.for_child().map_err(|e| failed("stderr", e))?);
        let is_set = |name: &str| std::env::var_os(name).is_some() || command.env.iter().any(|(known, _)| known == name);
        if !MALLOC.iter().any(|(name, _)| is_set(name)) {
            // The bootstrap removes them: they are not for the programs that tasks start.
            process.args(MALLOC.map(|(name, _)| name)).envs(MALLOC);
        }
        process.envs(command.env.iter().map(|(k, v)| (k, v)));
        if let Some(cwd) = &command.cwd {
            if !Path::new(cwd).is_dir() {
                return Err(StartError::WorkingDirectory(command.python.clone(), cwd.clone()));
            }
            process.current_dir(cwd);
        }
        if command.in_job {
            // They end a program by default; user code may install a handler.
            let warnings = [Signal::SIGUSR1, Signal::SIGUSR2];
            set_up_child(process.as_std_mut(), warnings.map(ChildSetup::Ignore).into());
        }
        // When the engine ends, the interpreter ends its workers and then itself.
        let child = forker
            .spawn(process, inherited.into(), Signal::SIGTERM)
            .await
            .map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => StartError::NotFound(command.python.clone()),
                _ => failed("cannot start it", e),
            })?;
        let pid = child.id().unwrap_or_default() as i32;
        let nonblocking = fcntl(&near, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(io::Error::from);
        let nonblocking = nonblocking.and_then(|_| watch_readable(near));
        let socket = Arc::new(nonblocking.map_err(|e| failed("cannot watch its socket", e))?);
        let forks = Arc::new(Mutex::new(Ok(HashMap::new())));
        tokio::spawn(listen(socket.clone(), forks.clone(), child, output));
        Ok(Interpreter { socket, forks, pid })
    }

    pub(crate) fn has_ended(&self) -> bool {
        lock(&self.forks).is_err()
    }

    /// Requests a worker with these files. The receiver gets its end, or the failure of the fork.
    pub(crate) fn fork(
        &self,
        number: u32,
        hello_after_shell: bool,
        mark: &str,
        files: &[RawFd],
    ) -> (WorkerPid, oneshot::Receiver<ProcessEnd>) {
        let (ended, end) = oneshot::channel();
        let pid = WorkerPid::default();
        let fork = Fork { pid: pid.clone(), ended };
        match &mut *lock(&self.forks) {
            Ok(forks) => drop(forks.insert(number, fork)),
            Err(end_of_interpreter) => {
                let _ = fork.ended.send(end_of_interpreter.clone());
                return (pid, end);
            }
        }
        let mut request = number.to_le_bytes().to_vec();
        request.push(hello_after_shell.into());
        request.extend_from_slice(mark.as_bytes());
        let rights = [ControlMessage::ScmRights(files)];
        let sent = sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&request)],
            &rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        // If the interpreter has just ended, `listen` reports that.
        if let Err(error) = sent
            && error != nix::errno::Errno::EPIPE
            && error != nix::errno::Errno::ECONNRESET
            && let Ok(forks) = &mut *lock(&self.forks)
            && let Some(fork) = forks.remove(&number)
        {
            let _ = fork.ended.send(ProcessEnd::NotForked(format!(
                "cannot send the request to its interpreter: {error}"
            )));
        }
        (pid, end)
    }
}

impl Drop for Interpreter {
    fn drop(&mut self) {
        // It ends its workers, then itself. During its start (a `sitecustomize` may hang) it does not listen yet; then the signal ends it.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        signal_one(self.pid, nix::libc::SIGTERM);
    }
}

/// The script in a memory file, because pipes can be as small as a page (pipe(7), pipe-user-pages-soft).
fn script() -> io::Result<std::fs::File> {
    let mut script = std::fs::File::from(memfd_create("script", MFdFlags::MFD_CLOEXEC)?);
    script.write_all(WORKER.as_bytes())?;
    script.rewind()?;
    Ok(script)
}

/// Handles reports until the interpreter has ended; then all its workers have ended too.
async fn listen(socket: Arc<AsyncFd<OwnedFd>>, forks: Arc<Forks>, mut child: Child, output: OutputFile) {
    let mut pids: HashMap<i32, u32> = HashMap::new();
    let mut report = [0; 4096];
    let mut ended = None;
    loop {
        tokio::select! {
            biased;
            ready = socket.readable() => {
                let Ok(mut ready) = ready else { break };
                match recv(socket.as_raw_fd(), &mut report, MsgFlags::MSG_DONTWAIT) {
                    Ok(0) => break,
                    Ok(count) => handle_report(&report[..count], &forks, &mut pids),
                    Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
                    Err(nix::errno::Errno::EINTR) => {}
                    Err(_) => break,
                }
            }
            status = child.wait(), if ended.is_none() => {
                // Its earlier reports remain to be read.
                ended = Some(status.ok());
            }
        }
    }
    let status = match ended {
        Some(status) => status,
        None => child.wait().await.ok(),
    };
    let last_output = output.last_output(4096);
    let end = ProcessEnd::WithInterpreter { status, last_output };
    let remaining = std::mem::replace(&mut *lock(&forks), Err(end.clone()));
    for (_, fork) in remaining.into_iter().flatten() {
        fork.pid.signal(nix::libc::SIGKILL);
        fork.pid.set_ended();
        let _ = fork.ended.send(end.clone());
    }
}

fn handle_report(report: &[u8], forks: &Forks, pids: &mut HashMap<i32, u32>) {
    let Some((kind, rest)) = report.split_first() else { return };
    let word = |at: usize| rest.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
    let mut forks = lock(forks);
    let Ok(forks) = forks.as_mut() else { return };
    match kind {
        b'F' => {
            let (number, pid) = (u32::from_le_bytes(word(0)), i32::from_le_bytes(word(4)));
            if let Some(fork) = forks.get(&number) {
                fork.pid.set(pid);
                pids.insert(pid, number);
            }
        }
        b'N' => {
            if let Some(fork) = forks.remove(&u32::from_le_bytes(word(0))) {
                let why = String::from_utf8_lossy(rest.get(4..).unwrap_or_default()).into_owned();
                let _ = fork.ended.send(ProcessEnd::NotForked(why));
            }
        }
        b'X' => {
            let (pid, status) = (i32::from_le_bytes(word(0)), i32::from_le_bytes(word(4)));
            if let Some(fork) = pids.remove(&pid).and_then(|number| forks.remove(&number)) {
                fork.pid.set_ended();
                let _ = fork.ended.send(ProcessEnd::Ended(ExitStatus::from_raw(status)));
            }
        }
        _ => {}
    }
}
