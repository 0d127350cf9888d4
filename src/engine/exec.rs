//! Starts a program without copying this process: until the child executes it, it runs in this process's memory while the thread that
//! starts it waits (`CLONE_VM` and `CLONE_VFORK`, clone(2)). posix_spawn(3) does the same, but has no way to say `PR_SET_PDEATHSIG`; and a
//! fork copies the page tables of an engine, which takes longer than many a program runs.
use super::worker::process::signal_group;
use nix::libc::{self, c_char, c_int, c_void};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::{Pid, getpid};
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use tokio::process::Command;

/// Where programs are looked for when there is no `PATH` (confstr(3), `_CS_PATH`).
const DEFAULT_PATH: &str = "/bin:/usr/bin";
const SHELL: &std::ffi::CStr = c"/bin/sh";
/// Of the child until it executes the program.
const STACK: usize = 128 << 10;

/// A program and all that it starts with.
pub struct Program {
    /// Its name, which is looked up in the environment's `PATH`, and the arguments.
    pub argv: Vec<String>,
    pub environment: BTreeMap<OsString, OsString>,
    pub directory: Option<String>,
}

/// The same as the system takes it.
struct Texts {
    /// Tried one after the other, as execvp(3) does.
    paths: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    directory: Option<CString>,
}

impl Program {
    fn texts(&self) -> io::Result<Texts> {
        let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::from);
        let name = self.argv.first().map(String::as_bytes).unwrap_or_default();
        let paths = if name.is_empty() || name.contains(&b'/') {
            vec![text(name)?]
        } else {
            let path = self.environment.get(OsStr::new("PATH"));
            let places = path
                .map_or(DEFAULT_PATH.as_bytes(), |path| path.as_bytes())
                .split(|byte| *byte == b':');
            let path_at = |place: &[u8]| match place {
                // An empty one is the working directory.
                b"" => name.to_vec(),
                place => [place, b"/", name].concat(),
            };
            places.map(|place| text(&path_at(place))).collect::<io::Result<_>>()?
        };
        let pair = |(name, value): (&OsString, &OsString)| text(&[name.as_bytes(), b"=", value.as_bytes()].concat());
        Ok(Texts {
            paths,
            arguments: self.argv.iter().map(|word| text(word.as_bytes())).collect::<io::Result<_>>()?,
            environment: self.environment.iter().map(pair).collect::<io::Result<_>>()?,
            directory: self.directory.as_ref().map(|directory| text(directory.as_bytes())).transpose()?,
        })
    }

    /// For the standard library's way.
    pub fn command(&self) -> Command {
        let (name, arguments) = self.argv.split_first().map_or(("", &[][..]), |(name, rest)| (name, rest));
        let mut command = Command::new(name);
        command.args(arguments).env_clear().envs(&self.environment);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }
}

/// A process that was started, with the descriptor that tells of its end.
pub struct Process {
    pub pid: Pid,
    pub end: OwnedFd,
}

/// Whether this kernel gives such descriptors (Linux 5.3 for all that is asked of them here).
pub fn is_possible() -> bool {
    end_of(getpid()).is_ok()
}

/// A descriptor that tells of the end of a process, which must not have been waited for.
fn end_of(pid: Pid) -> io::Result<OwnedFd> {
    #[expect(unsafe_code, reason = "nix has no pidfd_open; what the system gives is nobody else's")]
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0);
        match RawFd::try_from(fd) {
            Ok(fd @ 0..) => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Starts one program after the other.
pub struct Starter {
    /// For the child's first steps.
    stack: Vec<u128>,
    /// Where the last one was found. As shells do, it is looked for there first.
    last: Option<Found>,
}

struct Found {
    name: String,
    path: Option<OsString>,
    at: CString,
}

impl Default for Starter {
    fn default() -> Starter {
        Starter {
            stack: vec![0; STACK / size_of::<u128>()],
            last: None,
        }
    }
}

/// What the child finds, and what it leaves behind.
struct Shared {
    paths: Vec<*const c_char>,
    arguments: Vec<*const c_char>,
    /// Where a script without `#!` is given to the shell: its second place is for the script.
    shell_arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    directory: *const c_char,
    stdio: [RawFd; 3],
    parent: Pid,
    /// Which of the paths it tried last.
    tried: usize,
    /// Why it did not become the program.
    errno: c_int,
}

impl Starter {
    /// Starts it in a session of its own, with these three files as its standard ones. The kernel kills it when the calling thread ends.
    pub fn start(&mut self, program: &Program, stdio: [BorrowedFd<'_>; 3]) -> io::Result<Process> {
        let pointers = |texts: &[CString]| {
            let pointers = texts.iter().map(|text| text.as_ptr());
            pointers.chain([std::ptr::null()]).collect::<Vec<_>>()
        };
        let mut texts = program.texts()?;
        let path = program.environment.get(OsStr::new("PATH"));
        let known = self.last.as_ref();
        let known = known.filter(|last| program.argv.first() == Some(&last.name) && path == last.path.as_ref());
        if let Some(known) = known {
            texts.paths.insert(0, known.at.clone());
        }
        let arguments = pointers(&texts.arguments);
        let mut shared = Shared {
            paths: pointers(&texts.paths),
            shell_arguments: [SHELL.as_ptr(), std::ptr::null()]
                .into_iter()
                .chain(arguments.iter().skip(1).copied())
                .collect(),
            arguments,
            environment: pointers(&texts.environment),
            directory: texts.directory.as_ref().map_or(std::ptr::null(), |directory| directory.as_ptr()),
            stdio: stdio.map(|fd| fd.as_raw_fd()),
            parent: getpid(),
            tried: 0,
            errno: 0,
        };
        // A handler that ran in the child would run in this process's memory.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let pid = {
            let top = self.stack.as_mut_ptr_range().end;
            let shared = &raw mut shared;
            #[expect(unsafe_code, reason = "this thread waits until the child has left its memory; see `child`")]
            unsafe {
                libc::clone(child, top.cast(), flags, shared.cast::<c_void>())
            }
        };
        let failed = (pid < 0).then(io::Error::last_os_error);
        before.thread_set_mask()?;
        if let Some(error) = failed {
            return Err(error);
        }
        let pid = Pid::from_raw(pid);
        if shared.errno != 0 {
            let _ = how_it_ended(pid);
            return Err(io::Error::from_raw_os_error(shared.errno));
        }
        let end = end_of(pid).inspect_err(|_| {
            signal_group(pid.as_raw(), libc::SIGKILL);
            let _ = how_it_ended(pid);
        })?;
        if shared.tried > 0 {
            self.last = texts.paths.get(shared.tried).map(|at| Found {
                name: program.argv.first().cloned().unwrap_or_default(),
                path: path.cloned(),
                at: at.clone(),
            });
        }
        Ok(Process { pid, end })
    }
}

/// Of a child that has ended, or will soon: it is waited for.
pub fn how_it_ended(pid: Pid) -> io::Result<ExitStatus> {
    let mut status = 0;
    loop {
        #[expect(unsafe_code, reason = "nix has no word for an end by a real-time signal")]
        let ended = unsafe { libc::waitpid(pid.as_raw(), &mut status, 0) };
        match io::Error::last_os_error() {
            _ if ended >= 0 => return Ok(ExitStatus::from_raw(status)),
            error if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
    }
}

/// Runs in the parent's memory, on a stack of its own: it may call what is async-signal-safe, and must not allocate or panic.
extern "C" fn child(shared: *mut c_void) -> c_int {
    #[expect(unsafe_code, reason = "the parent lent it, and waits")]
    let shared = unsafe { &mut *shared.cast::<Shared>() };
    shared.errno = become_program(shared);
    127
}

/// Returns the reason if it cannot.
#[expect(unsafe_code, reason = "system calls on what the parent prepared")]
fn become_program(shared: &mut Shared) -> c_int {
    unsafe {
        let errno = || *libc::__errno_location();
        if libc::setsid() < 0 || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 {
            return errno();
        }
        if libc::getppid() != shared.parent.as_raw() {
            return libc::ESRCH;
        }
        for (wanted, fd) in (0..).zip(shared.stdio) {
            if libc::dup2(fd, wanted) < 0 {
                return errno();
            }
        }
        if !shared.directory.is_null() && libc::chdir(shared.directory) < 0 {
            return errno();
        }
        signals_as_at_first();
        let mut refused = 0;
        for (place, path) in shared.paths.iter().copied().enumerate().take_while(|(_, path)| !path.is_null()) {
            shared.tried = place;
            libc::execve(path, shared.arguments.as_ptr(), shared.environment.as_ptr());
            if errno() == libc::ENOEXEC {
                if let Some(script) = shared.shell_arguments.get_mut(1) {
                    *script = path;
                }
                libc::execve(SHELL.as_ptr(), shared.shell_arguments.as_ptr(), shared.environment.as_ptr());
            }
            match errno() {
                libc::EACCES => refused = libc::EACCES,
                libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ESTALE | libc::ETIMEDOUT => {}
                other => return other,
            }
        }
        if refused != 0 { refused } else { libc::ENOENT }
    }
}

/// No handlers of the parent's, no SIGPIPE that is ignored (Rust's runtime does that), and none held back.
#[expect(unsafe_code, reason = "system calls")]
unsafe fn signals_as_at_first() {
    unsafe {
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
    }
}
