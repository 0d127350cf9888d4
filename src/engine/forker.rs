//! Starts child processes from one thread that lives as long as the engine: the kernel kills a child when the thread
//! that started it ends, and threads of the runtime come and go.
use super::worker::process::keep_open;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid, setsid};
use std::io;
use std::os::fd::RawFd;
use std::sync::mpsc;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

struct Job {
    command: Command,
    reply: oneshot::Sender<io::Result<Child>>,
}

#[derive(Clone)]
pub struct Forker {
    jobs: mpsc::Sender<Job>,
}

impl Forker {
    /// Must be called within a tokio runtime.
    pub fn new() -> io::Result<Forker> {
        let runtime = tokio::runtime::Handle::current();
        let (jobs, to_start) = mpsc::channel::<Job>();
        std::thread::Builder::new().name("forker".into()).spawn(move || {
            let _within = runtime.enter();
            for mut job in to_start {
                let _ = job.reply.send(job.command.spawn());
            }
        })?;
        Ok(Forker { jobs })
    }

    /// Starts a process in a session of its own, which the kernel kills when the engine dies; `kept` stay open in it.
    pub async fn spawn(&self, mut command: Command, kept: Vec<RawFd>) -> io::Result<Child> {
        let engine = getpid();
        #[expect(unsafe_code, reason = "between fork and exec only system calls are made")]
        unsafe {
            command.pre_exec(move || {
                setsid()?;
                set_pdeathsig(Signal::SIGKILL)?;
                if getppid() != engine {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                keep_open(&kept)
            });
        }
        let (reply, answer) = oneshot::channel();
        let gone = || io::Error::other("the engine is ending");
        self.jobs.send(Job { command, reply }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}
