//! Starts child processes from one thread that lives as long as the engine: the kernel kills a child when the thread that started
//! it ends, and threads of the runtime are short-lived.
use super::core::unit::PeakMemory;
use super::exec::{self, Program, StartedProcess, Starter};
use super::orphans::{MARK, OrphanReaper, ProcessOwner};
use super::signal::signal_group;
use crate::model::cores::CoreSet;
use crate::sys::async_fd::watch_readable;
use crate::sys::child_setup::{ChildSetup, set_up_child};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, pipe2};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, mpsc};
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

enum StartRequest {
    Child(Box<Command>, CoreSet, oneshot::Sender<io::Result<Child>>),
    Program(Box<Program>, [OwnedFd; 2], oneshot::Sender<io::Result<StartedProcess>>),
}

#[derive(Clone)]
pub(crate) struct Forker {
    requests: mpsc::Sender<StartRequest>,
    /// Start programs with `CLONE_VM`, without copying the engine's page tables.
    uses_clone_vm: bool,
    reaper: Arc<OrphanReaper>,
}

/// A started program.
pub(crate) struct StartedProgram {
    pub pid: i32,
    /// The non-blocking read ends of its pipes.
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    end: ExitWaiter,
    own_peak: u64,
    owner: Option<ProcessOwner>,
    reaper: Arc<OrphanReaper>,
}

enum ExitWaiter {
    Pidfd(Pid, AsyncFd<OwnedFd>),
    /// On a kernel without pidfd support.
    Child(Box<Child>),
}

impl Forker {
    /// Must be called within a tokio runtime.
    pub(crate) fn new() -> io::Result<Forker> {
        Forker::with_clone_vm(exec::is_supported())
    }

    pub(super) fn with_clone_vm(uses_clone_vm: bool) -> io::Result<Forker> {
        let runtime = tokio::runtime::Handle::current();
        let (requests, to_start) = mpsc::channel::<StartRequest>();
        let nothing = File::open("/dev/null")?;
        let reaper = OrphanReaper::new();
        std::thread::Builder::new().name("forker".into()).spawn(move || {
            let _within = runtime.enter();
            let mut starter = Starter::default();
            for request in to_start {
                match request {
                    StartRequest::Child(mut command, cores, reply) => drop(reply.send(bound_to(&cores, || command.spawn()))),
                    StartRequest::Program(program, [out, err], reply) => {
                        let stdio = [nothing.as_fd(), out.as_fd(), err.as_fd()];
                        drop(reply.send(bound_to(&program.cores, || starter.start(&program, stdio))));
                    }
                }
            }
        })?;
        Ok(Forker {
            requests,
            uses_clone_vm,
            reaper,
        })
    }

    pub(crate) fn reaper(&self) -> &Arc<OrphanReaper> {
        &self.reaper
    }

    /// Starts a process in a new session. The kernel sends it `at_death` when the engine dies; the files `kept` stay open in it.
    pub(crate) async fn spawn(&self, command: Command, kept: Vec<OwnedFd>, at_death: Signal) -> io::Result<Child> {
        self.spawn_on(&CoreSet::default(), command, kept, at_death).await
    }

    async fn spawn_on(&self, cores: &CoreSet, mut command: Command, kept: Vec<OwnedFd>, at_death: Signal) -> io::Result<Child> {
        let mut steps = vec![ChildSetup::NewSession, ChildSetup::DieWithParent(getpid(), at_death)];
        steps.extend(kept.into_iter().map(ChildSetup::KeepOpen));
        set_up_child(command.as_std_mut(), steps);
        self.send_request(|reply| StartRequest::Child(Box::new(command), cores.clone(), reply))
            .await
    }

    /// Starts the program of a task, with an empty stdin and pipes as stdout and stderr.
    pub(crate) async fn start(&self, mut program: Program) -> io::Result<StartedProgram> {
        let owner = self.reaper.owner();
        program.environment.insert(MARK.into(), owner.mark().into());
        let (owner, reaper) = (Some(owner), self.reaper.clone());
        if !self.uses_clone_vm {
            let mut command = program.command();
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = self.spawn_on(&program.cores, command, Vec::new(), Signal::SIGKILL).await?;
            let gone = || io::Error::other("it has no pipe");
            return Ok(StartedProgram {
                pid: child.id().unwrap_or_default() as i32,
                stdout: child.stdout.take().ok_or_else(gone)?.into_owned_fd()?,
                stderr: child.stderr.take().ok_or_else(gone)?.into_owned_fd()?,
                end: ExitWaiter::Child(Box::new(child)),
                own_peak: 0,
                owner,
                reaper,
            });
        }
        let ((out, out_of_child), (err, err_of_child)) = (pipe2(OFlag::O_CLOEXEC)?, pipe2(OFlag::O_CLOEXEC)?);
        for near in [&out, &err] {
            fcntl(near, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let ends = [out_of_child, err_of_child];
        let StartedProcess { pid, end, own_peak } = self
            .send_request(|reply| StartRequest::Program(Box::new(program), ends, reply))
            .await?;
        let end = watch_readable(end).inspect_err(|_| {
            signal_group(pid.as_raw(), Signal::SIGKILL as i32);
            let _ = exec::wait_for_exit(pid);
        })?;
        Ok(StartedProgram {
            pid: pid.as_raw(),
            stdout: out,
            stderr: err,
            end: ExitWaiter::Pidfd(pid, end),
            own_peak,
            owner,
            reaper,
        })
    }

    async fn send_request<T>(&self, request: impl FnOnce(oneshot::Sender<io::Result<T>>) -> StartRequest) -> io::Result<T> {
        let (reply, answer) = oneshot::channel();
        let gone = || io::Error::other("the engine is ending");
        self.requests.send(request(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// Starts a child process that is bound to these processors, which it inherits from this thread.
fn bound_to<T>(cores: &CoreSet, start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if cores.is_empty() {
        return start();
    }
    let this_thread = Pid::from_raw(0);
    let old = sched_getaffinity(this_thread)?;
    let mut set = CpuSet::new();
    let add = |core: u16| set.set(usize::from(core));
    let bind = cores.iter().try_for_each(add).and_then(|()| sched_setaffinity(this_thread, &set));
    bind.map_err(|e| io::Error::other(format!("it cannot be bound to the processors {cores}: {e}")))?;
    let started = start();
    sched_setaffinity(this_thread, &old)?;
    started
}

impl StartedProgram {
    /// Waits for its end. Also returns the peak memory of its largest process. Cancellation safe.
    pub(crate) async fn wait(&mut self) -> io::Result<(ExitStatus, PeakMemory)> {
        let status = match &mut self.end {
            ExitWaiter::Child(child) => child.wait().await.map(|status| (status, PeakMemory::Unknown)),
            ExitWaiter::Pidfd(pid, end) => {
                let _ = end.readable().await?;
                exec::wait_for_exit(*pid).map(|(status, peak)| match peak > self.own_peak {
                    true => (status, PeakMemory::Measured(peak)),
                    false => (status, PeakMemory::AtMost(peak)),
                })
            }
        };
        self.owner.take().into_iter().for_each(ProcessOwner::end);
        status
    }

    /// Ends its leftover processes after its end, and waits for that.
    pub(crate) async fn sweep(&self) {
        self.reaper.sweep().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::ffi::OsString;
    use tokio::io::AsyncReadExt;
    use tokio::net::unix::pipe::Receiver;

    /// Exit status (or error kind), stdout and stderr of a program.
    async fn outcome(forker: &Forker, argv: &[&str], environment: &[(&str, &str)], directory: Option<&str>) -> (String, String, String) {
        let pairs = environment
            .iter()
            .map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let program = Program {
            argv: argv.iter().map(|word| word.to_string()).collect(),
            environment: pairs.collect::<BTreeMap<_, _>>(),
            directory: directory.map(String::from),
            cores: CoreSet::default(),
        };
        let mut started = match forker.start(program).await {
            Ok(started) => started,
            Err(error) => return (format!("{:?}", error.kind()), String::new(), String::new()),
        };
        let (mut out, mut err) = (String::new(), String::new());
        let pipe = |fd: &OwnedFd| Receiver::from_owned_fd(fd.try_clone().unwrap()).unwrap();
        pipe(&started.stdout).read_to_string(&mut out).await.unwrap();
        pipe(&started.stderr).read_to_string(&mut err).await.unwrap();
        // The mark differs for each program.
        let out = out
            .lines()
            .filter(|line| !line.starts_with(MARK))
            .map(|line| format!("{line}\n"))
            .collect();
        (started.wait().await.unwrap().0.to_string(), out, err)
    }

    #[tokio::test]
    async fn both_start_methods_behave_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str, mode| {
            let path = dir.path().join(name);
            // Written by another process: concurrent tests fork, and a file that is open for writing cannot be executed.
            let mut write = std::process::Command::new("sh");
            write
                .args(["-c", "printf %s \"$2\" > \"$1\" && chmod \"$3\" \"$1\"", "sh"])
                .arg(&path);
            assert!(write.args([text, mode]).status().unwrap().success());
            path.to_string_lossy().into_owned()
        };
        let without = script("without", "echo \"no interpreter: $0 $1 $X\"\n", "755");
        let with = script("with", "#!/bin/sh\necho \"$1\" >&2; exit 3\n", "755");
        let text = script("text", "echo no\n", "644");
        let bin = dir.path().to_string_lossy().into_owned();
        let path = format!("/nowhere:{bin}:/bin:/usr/bin");
        let (quick, other) = (Forker::with_clone_vm(true).unwrap(), Forker::with_clone_vm(false).unwrap());
        // Arguments, environment, directory; exit status, expected output.
        type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], Option<&'a str>, &'a str, &'a str);
        let cases: &[Case<'_>] = &[
            (&["true"], &[], None, "exit status: 0", ""),
            (
                &["/bin/sh", "-c", "pwd; env; exit 5"],
                &[("X", "a b=c")],
                Some("/"),
                "exit status: 5",
                "X=a b=c\n",
            ),
            (&["sh", "-c", "kill -9 $$"], &[("PATH", &path)], None, "signal: 9 (SIGKILL)", ""),
            (&["sh", "-c", "kill -35 $$"], &[], None, "signal: 35", ""),
            (
                &["without", "1"],
                &[("PATH", &path), ("X", "2")],
                None,
                "exit status: 0",
                "/without 1 2\n",
            ),
            (&[&without, "1"], &[], None, "exit status: 0", "/without 1 \n"),
            (&["with", "é"], &[("PATH", &path)], None, "exit status: 3", ""),
            (&["with", "é"], &[("PATH", &path)], None, "exit status: 3", ""),
            (&["with"], &[("PATH", "/bin")], None, "NotFound", ""),
            (&["with"], &[("PATH", &path)], None, "exit status: 3", ""),
            (&["./with", "é"], &[], Some(&bin), "exit status: 3", ""),
            (&["with"], &[("PATH", "")], Some(&bin), "exit status: 3", ""),
            (&[&with, ""], &[], None, "exit status: 3", ""),
            (&["no-such-program"], &[("PATH", &path)], None, "NotFound", ""),
            (&["no/such/program"], &[], None, "NotFound", ""),
            (&[&text], &[], None, "PermissionDenied", ""),
            (&["text"], &[("PATH", &path)], None, "PermissionDenied", ""),
            (&["true", "a\0b"], &[], None, "InvalidInput", ""),
            (&[""], &[], None, "NotFound", ""),
            // Default signals, no open files except for stdio, a new session, empty stdin.
            (
                &[
                    "sh",
                    "-c",
                    "grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status; ls /proc/self/fd; cat; ps -o sid= -p $$ | grep -cx \" *$$\"",
                ],
                &[("PATH", "/bin:/usr/bin")],
                None,
                "exit status: 0",
                "SigBlk:\t0000000000000000\n",
            ),
        ];
        for (argv, environment, directory, end, text) in cases {
            let seen = outcome(&quick, argv, environment, *directory).await;
            assert_eq!(seen, outcome(&other, argv, environment, *directory).await, "{argv:?}");
            assert!(seen.0 == *end && seen.1.contains(text), "{argv:?}: {seen:?}");
        }
    }
}
