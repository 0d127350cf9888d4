//! Starts child processes from one thread that lives as long as the engine: the kernel kills a child when the thread
//! that started it ends, and threads of the runtime come and go.
use super::exec::{self, Process, Program, Starter};
use super::leftovers::{Leftovers, MARK, Owner};
use super::worker::process::{keep_open, signal_group};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid, pipe2, setsid};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, mpsc};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

enum Job {
    Child(Box<Command>, oneshot::Sender<io::Result<Child>>),
    Program(Box<Program>, [OwnedFd; 2], oneshot::Sender<io::Result<Process>>),
}

#[derive(Clone)]
pub struct Forker {
    jobs: mpsc::Sender<Job>,
    /// Programs are started without a copy of the engine.
    is_quick: bool,
    leftovers: Arc<Leftovers>,
}

/// A program that was started.
pub struct Started {
    pub pid: i32,
    /// The near ends of its pipes, which do not block.
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    end: End,
    owner: Option<Owner>,
    leftovers: Arc<Leftovers>,
}

enum End {
    Told(Pid, AsyncFd<OwnedFd>),
    /// On a kernel that cannot tell.
    Child(Box<Child>),
}

impl Forker {
    /// Must be called within a tokio runtime.
    pub fn new() -> io::Result<Forker> {
        Forker::that_is_quick(exec::is_possible())
    }

    pub(super) fn that_is_quick(is_quick: bool) -> io::Result<Forker> {
        let runtime = tokio::runtime::Handle::current();
        let (jobs, to_start) = mpsc::channel::<Job>();
        let nothing = File::open("/dev/null")?;
        let leftovers = Leftovers::new();
        std::thread::Builder::new().name("forker".into()).spawn(move || {
            let _within = runtime.enter();
            let mut starter = Starter::default();
            for job in to_start {
                match job {
                    Job::Child(mut command, reply) => drop(reply.send(command.spawn())),
                    Job::Program(program, [out, err], reply) => {
                        let stdio = [nothing.as_fd(), out.as_fd(), err.as_fd()];
                        drop(reply.send(starter.start(&program, stdio)));
                    }
                }
            }
        })?;
        Ok(Forker { jobs, is_quick, leftovers })
    }

    pub fn leftovers(&self) -> &Arc<Leftovers> {
        &self.leftovers
    }

    /// Starts a process in a session of its own, to which the kernel sends `at_death` when the engine dies; `kept` stay open in it.
    pub async fn spawn(&self, mut command: Command, kept: Vec<RawFd>, at_death: Signal) -> io::Result<Child> {
        let engine = getpid();
        #[expect(unsafe_code, reason = "between fork and exec only system calls are made")]
        unsafe {
            command.pre_exec(move || {
                setsid()?;
                set_pdeathsig(at_death)?;
                if getppid() != engine {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                keep_open(&kept)
            });
        }
        self.asked(|reply| Job::Child(Box::new(command), reply)).await
    }

    /// The same for a program of a task, which reads nothing and writes into pipes.
    pub async fn start(&self, mut program: Program) -> io::Result<Started> {
        let owner = self.leftovers.owner();
        program.environment.insert(MARK.into(), owner.mark().into());
        let (owner, leftovers) = (Some(owner), self.leftovers.clone());
        if !self.is_quick {
            let mut command = program.command();
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = self.spawn(command, Vec::new(), Signal::SIGKILL).await?;
            let gone = || io::Error::other("it has no pipe");
            return Ok(Started {
                pid: child.id().unwrap_or_default() as i32,
                stdout: child.stdout.take().ok_or_else(gone)?.into_owned_fd()?,
                stderr: child.stderr.take().ok_or_else(gone)?.into_owned_fd()?,
                end: End::Child(Box::new(child)),
                owner,
                leftovers,
            });
        }
        let ((out, out_of_child), (err, err_of_child)) = (pipe2(OFlag::O_CLOEXEC)?, pipe2(OFlag::O_CLOEXEC)?);
        for near in [&out, &err] {
            fcntl(near, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let ends = [out_of_child, err_of_child];
        let Process { pid, end } = self.asked(|reply| Job::Program(Box::new(program), ends, reply)).await?;
        #[expect(unsafe_code, reason = "an OwnedFd is the same file until it is dropped")]
        let end = match unsafe { AsyncFd::register_with_interest(end, Interest::READABLE) } {
            Ok(end) => End::Told(pid, end),
            Err(error) => {
                signal_group(pid.as_raw(), Signal::SIGKILL as i32);
                let _ = exec::how_it_ended(pid);
                return Err(error.into());
            }
        };
        Ok(Started {
            pid: pid.as_raw(),
            stdout: out,
            stderr: err,
            end,
            owner,
            leftovers,
        })
    }

    async fn asked<T>(&self, job: impl FnOnce(oneshot::Sender<io::Result<T>>) -> Job) -> io::Result<T> {
        let (reply, answer) = oneshot::channel();
        let gone = || io::Error::other("the engine is ending");
        self.jobs.send(job(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Started {
    /// Waits for its end. It may be asked again until it has told of it.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = match &mut self.end {
            End::Child(child) => child.wait().await,
            End::Told(pid, end) => {
                let _ = end.readable().await?;
                exec::how_it_ended(*pid)
            }
        };
        self.owner.take().into_iter().for_each(Owner::end);
        status
    }

    /// After its end: waits until what it has left behind has been ended.
    pub async fn sweep(&self) {
        self.leftovers.sweep().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::ffi::OsString;
    use tokio::io::AsyncReadExt;
    use tokio::net::unix::pipe::Receiver;

    /// What became of it in words; and what it wrote.
    async fn outcome(forker: &Forker, argv: &[&str], environment: &[(&str, &str)], directory: Option<&str>) -> (String, String, String) {
        let pairs = environment
            .iter()
            .map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let program = Program {
            argv: argv.iter().map(|word| word.to_string()).collect(),
            environment: pairs.collect::<BTreeMap<_, _>>(),
            directory: directory.map(String::from),
        };
        let mut started = match forker.start(program).await {
            Ok(started) => started,
            Err(error) => return (format!("{:?}", error.kind()), String::new(), String::new()),
        };
        let (mut out, mut err) = (String::new(), String::new());
        let pipe = |fd: &OwnedFd| Receiver::from_owned_fd(fd.try_clone().unwrap()).unwrap();
        pipe(&started.stdout).read_to_string(&mut out).await.unwrap();
        pipe(&started.stderr).read_to_string(&mut err).await.unwrap();
        // Each has its own mark.
        let out = out
            .lines()
            .filter(|line| !line.starts_with(MARK))
            .map(|line| format!("{line}\n"))
            .collect();
        (started.wait().await.unwrap().to_string(), out, err)
    }

    #[tokio::test]
    async fn a_program_is_the_same_however_it_is_started() {
        let dir = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str, mode| {
            let path = dir.path().join(name);
            // By another process: this one's other tests fork, and who would execute a file that is open for writing is refused.
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
        let (quick, other) = (Forker::that_is_quick(true).unwrap(), Forker::that_is_quick(false).unwrap());
        // Words, environment, directory; how it ends, what is in its output.
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
            // Signals as they were at first, nothing open but the three files, a session of its own, nothing to read.
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
        for (argv, environment, directory, end, says) in cases {
            let seen = outcome(&quick, argv, environment, *directory).await;
            assert_eq!(seen, outcome(&other, argv, environment, *directory).await, "{argv:?}");
            assert!(seen.0 == *end && seen.1.contains(says), "{argv:?}: {seen:?}");
        }
    }
}
