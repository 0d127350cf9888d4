//! Starts a program without copying this process: until the child executes it, the child runs in this process's memory while the
//! starting thread waits (`CLONE_VM` and `CLONE_VFORK`, clone(2)). posix_spawn(3) does the same, but does not support
//! `PR_SET_PDEATHSIG`; fork copies the page tables of an engine, which takes longer than many programs run.
use super::signal::signal_group;
use crate::model::cores::CoreSet;
use nix::libc::{self, c_char, c_int, c_void};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::{Pid, getpid};
use rustix::process::PidfdFlags;
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use tokio::process::Command;

/// The search path without `PATH` (confstr(3), `_CS_PATH`).
const DEFAULT_PATH: &str = "/bin:/usr/bin";
const SHELL: &std::ffi::CStr = c"/bin/sh";
/// Size of the child's stack until it executes the program.
const STACK: usize = 128 << 10;

/// A program with its arguments, environment and working directory.
pub(crate) struct Program {
    /// The name, resolved with the environment's `PATH`, and the arguments.
    pub argv: Vec<String>,
    pub environment: BTreeMap<OsString, OsString>,
    pub directory: Option<String>,
    /// The processors to which it is bound; empty for those of this process.
    pub cores: CoreSet,
}

/// The program as C strings.
struct ExecStrings {
    /// Candidates in the order of execvp(3).
    paths: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    directory: Option<CString>,
}

impl Program {
    fn exec_strings(&self) -> io::Result<ExecStrings> {
        let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::from);
        let name = self.argv.first().map(String::as_bytes).unwrap_or_default();
        let paths = if name.is_empty() || name.contains(&b'/') {
            vec![text(name)?]
        } else {
            let path = self.environment.get(OsStr::new("PATH"));
            let folders = path
                .map_or(DEFAULT_PATH.as_bytes(), |path| path.as_bytes())
                .split(|byte| *byte == b':');
            let path_at = |folder: &[u8]| match folder {
                // An empty entry is the working directory.
                b"" => name.to_vec(),
                folder => [folder, b"/", name].concat(),
            };
            folders.map(|folder| text(&path_at(folder))).collect::<io::Result<_>>()?
        };
        let pair = |(name, value): (&OsString, &OsString)| text(&[name.as_bytes(), b"=", value.as_bytes()].concat());
        Ok(ExecStrings {
            paths,
            arguments: self.argv.iter().map(|word| text(word.as_bytes())).collect::<io::Result<_>>()?,
            environment: self.environment.iter().map(pair).collect::<io::Result<_>>()?,
            directory: self.directory.as_ref().map(|directory| text(directory.as_bytes())).transpose()?,
        })
    }

    /// The program as a command of the standard library.
    pub(crate) fn command(&self) -> Command {
        let (name, arguments) = self.argv.split_first().map_or(("", &[][..]), |(name, rest)| (name, rest));
        let mut command = Command::new(name);
        command.args(arguments).env_clear().envs(&self.environment);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }
}

/// A started process, with a pidfd that is readable when it ends.
pub(super) struct StartedProcess {
    pub pid: Pid,
    pub end: OwnedFd,
    /// This process's own peak memory while the child ran in it, in bytes: the kernel reports no lower one for the child.
    pub own_peak: u64,
}

/// Two measurements of one peak differ by less (the kernel counts pages for each processor).
const INACCURACY: u64 = 1 << 20;

/// This process's peak memory since the last reset, in bytes.
fn own_peak() -> u64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(u64::MAX, |usage| ((usage.max_rss().max(0) as u64) << 10) + INACCURACY)
}

/// Returns whether the kernel supports pidfds (Linux 5.3 for all operations used).
pub(super) fn is_supported() -> bool {
    open_pidfd(getpid()).is_ok()
}

/// Opens a pidfd for a process that has not been reaped.
fn open_pidfd(pid: Pid) -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_open(known(pid)?, PidfdFlags::empty())?)
}

fn known(pid: Pid) -> io::Result<rustix::process::Pid> {
    rustix::process::Pid::from_raw(pid.as_raw()).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Starts programs, one at a time.
pub(super) struct Starter {
    /// The child's stack.
    stack: Vec<u128>,
    /// The location of the last program, which is tried first (shells do the same).
    last: Option<LastProgram>,
    /// `/proc/self/clear_refs`, if the kernel has it.
    clear_refs: Option<File>,
}

struct LastProgram {
    name: String,
    path: Option<OsString>,
    at: CString,
}

impl Default for Starter {
    fn default() -> Starter {
        Starter {
            stack: vec![0; STACK / size_of::<u128>()],
            last: None,
            clear_refs: File::options().write(true).open("/proc/self/clear_refs").ok(),
        }
    }
}

/// Input and output of the child.
struct ChildContext {
    paths: Vec<*const c_char>,
    arguments: Vec<*const c_char>,
    /// Arguments of the shell for a script without `#!`; the second element is replaced by the script.
    shell_arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    directory: *const c_char,
    stdio: [RawFd; 3],
    parent: Pid,
    /// Index of the path that was tried last.
    path_index: usize,
    /// Why executing the program failed.
    errno: c_int,
}

impl Starter {
    /// Starts a program in a new session, with these files as stdin, stdout and stderr. The kernel kills it when the calling thread ends.
    pub(super) fn start(&mut self, program: &Program, stdio: [BorrowedFd<'_>; 3]) -> io::Result<StartedProcess> {
        let pointers = |exec_strings: &[CString]| {
            let pointers = exec_strings.iter().map(|text| text.as_ptr());
            pointers.chain([std::ptr::null()]).collect::<Vec<_>>()
        };
        let mut exec_strings = program.exec_strings()?;
        let path = program.environment.get(OsStr::new("PATH"));
        let known = self.last.as_ref();
        let known = known.filter(|last| program.argv.first() == Some(&last.name) && path == last.path.as_ref());
        if let Some(known) = known {
            exec_strings.paths.insert(0, known.at.clone());
        }
        let arguments = pointers(&exec_strings.arguments);
        let mut context = ChildContext {
            paths: pointers(&exec_strings.paths),
            shell_arguments: [SHELL.as_ptr(), std::ptr::null()]
                .into_iter()
                .chain(arguments.iter().skip(1).copied())
                .collect(),
            arguments,
            environment: pointers(&exec_strings.environment),
            directory: exec_strings
                .directory
                .as_ref()
                .map_or(std::ptr::null(), |directory| directory.as_ptr()),
            stdio: stdio.map(|fd| fd.as_raw_fd()),
            parent: getpid(),
            path_index: 0,
            errno: 0,
        };
        if let Some(file) = &mut self.clear_refs {
            // Resets this process's peak (proc_pid_clear_refs(5)).
            let _ = file.write(b"5");
        }
        // A signal handler in the child would run in this process's memory.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let pid = {
            let top = self.stack.as_mut_ptr_range().end;
            let context = &raw mut context;
            // SAFETY: this thread waits until the child has left its memory; see `child`.
            #[expect(unsafe_code, reason = "starts a process in this memory")]
            unsafe {
                libc::clone(child, top.cast(), flags, context.cast::<c_void>())
            }
        };
        let failed = (pid < 0).then(io::Error::last_os_error);
        before.thread_set_mask()?;
        if let Some(error) = failed {
            return Err(error);
        }
        let pid = Pid::from_raw(pid);
        if context.errno != 0 {
            let _ = wait_for_exit(pid);
            return Err(io::Error::from_raw_os_error(context.errno));
        }
        let end = open_pidfd(pid).inspect_err(|_| {
            signal_group(pid.as_raw(), libc::SIGKILL);
            let _ = wait_for_exit(pid);
        })?;
        if context.path_index > 0 {
            self.last = exec_strings.paths.get(context.path_index).map(|at| LastProgram {
                name: program.argv.first().cloned().unwrap_or_default(),
                path: path.cloned(),
                at: at.clone(),
            });
        }
        let own_peak = own_peak();
        Ok(StartedProcess { pid, end, own_peak })
    }
}

/// Reaps a child that has ended or will end soon. Also returns the peak memory of its largest process, in bytes (wait4(2)).
pub(super) fn wait_for_exit(pid: Pid) -> io::Result<(ExitStatus, u64)> {
    let mut status = 0;
    loop {
        // SAFETY: both point to variables of this function; zeros are a valid `rusage`.
        #[expect(unsafe_code, reason = "neither nix nor rustix has wait4")]
        let (ended, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            (libc::wait4(pid.as_raw(), &mut status, 0, &mut usage), usage)
        };
        match ended {
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return Err(io::Error::last_os_error()),
            _ => return Ok((ExitStatus::from_raw(status), (usage.ru_maxrss.max(0) as u64) << 10)),
        }
    }
}

/// Runs in the parent's memory on its own stack: must call only async-signal-safe functions, and must not allocate or panic.
extern "C" fn child(context: *mut c_void) -> c_int {
    // SAFETY: the parent prepared the arguments of these system calls, and waits meanwhile.
    #[expect(unsafe_code, reason = "system calls")]
    unsafe {
        let context = &mut *context.cast::<ChildContext>();
        let errno = || *libc::__errno_location();
        context.errno = 'failed: {
            if libc::setsid() < 0 || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 {
                break 'failed errno();
            }
            if libc::getppid() != context.parent.as_raw() {
                break 'failed libc::ESRCH;
            }
            for (wanted, fd) in (0..).zip(context.stdio) {
                if libc::dup2(fd, wanted) < 0 {
                    break 'failed errno();
                }
            }
            if !context.directory.is_null() && libc::chdir(context.directory) < 0 {
                break 'failed errno();
            }
            // Handlers of the parent, and SIGPIPE, which Rust's runtime ignores.
            let mut default: libc::sigaction = std::mem::zeroed();
            default.sa_sigaction = libc::SIG_DFL;
            for signal in 1..=libc::SIGSYS {
                let mut now: libc::sigaction = std::mem::zeroed();
                let is_known = libc::sigaction(signal, std::ptr::null(), &mut now) == 0;
                let is_caught = now.sa_sigaction != libc::SIG_DFL && now.sa_sigaction != libc::SIG_IGN;
                if is_known && (is_caught || signal == libc::SIGPIPE) {
                    libc::sigaction(signal, &default, std::ptr::null_mut());
                }
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            let mut access_error = 0;
            for (folder, path) in context.paths.iter().copied().enumerate().take_while(|(_, path)| !path.is_null()) {
                context.path_index = folder;
                libc::execve(path, context.arguments.as_ptr(), context.environment.as_ptr());
                if errno() == libc::ENOEXEC {
                    if let Some(script) = context.shell_arguments.get_mut(1) {
                        *script = path;
                    }
                    libc::execve(SHELL.as_ptr(), context.shell_arguments.as_ptr(), context.environment.as_ptr());
                }
                match errno() {
                    libc::EACCES => access_error = libc::EACCES,
                    libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ESTALE | libc::ETIMEDOUT => {}
                    other => break 'failed other,
                }
            }
            if access_error != 0 { access_error } else { libc::ENOENT }
        };
    }
    127
}
