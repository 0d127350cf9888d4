//! What ties a process to its supervisor: a pair of sockets, one end with each. When one of the two is gone, however that came,
//! the other reads the end of its socket at once, whichever of the two started the other. Before an end in order the process
//! says its exit code, which nobody but a parent could learn otherwise.
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// Names the other end to the process that is started: its number there, and who made it.
const VARIABLE: &str = "PCLUSTER_BOND";

/// Bytes of a reason; a socket's buffer takes them without waiting.
const MAX_REASON: usize = 2000;

/// What a process has sent before its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastWords(pub Vec<u8>);

impl LastWords {
    pub fn code(&self) -> Option<u8> {
        self.0.last().copied()
    }

    pub fn reason(&self) -> Option<String> {
        let (_, reason) = self.0.split_last()?;
        (!reason.is_empty()).then(|| String::from_utf8_lossy(reason).into_owned())
    }
}

/// One end.
#[derive(Debug)]
pub struct Bond(UnixStream);

impl Bond {
    /// The other end goes with what `command` starts. The command must be dropped then, as that end stays open with it.
    pub fn to(command: &mut Command) -> io::Result<Bond> {
        let (ours, theirs) = UnixStream::pair()?;
        command.env(VARIABLE, format!("{} {}", theirs.as_raw_fd(), std::process::id()));
        // SAFETY: between fork and exec only a system call is made.
        #[allow(unsafe_code, reason = "the standard library has no other way to leave a file open")]
        unsafe {
            command.pre_exec(move || stay_open(theirs.as_fd(), true))
        };
        Ok(Bond(ours))
    }

    /// The end that this process was started with, and who holds the other. Only the first call finds it.
    pub fn inherited() -> Option<(Bond, u32)> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let text = std::env::var(VARIABLE).ok()?;
        let (number, maker) = text.split_once(' ')?;
        let (number, maker): (RawFd, u32) = (number.parse().ok()?, maker.parse().ok()?);
        if number < 3 || TAKEN.swap(true, Ordering::SeqCst) {
            return None;
        }
        // SAFETY: whether the number is a file, and which, is asked before it is taken.
        #[allow(unsafe_code, reason = "what a process inherits has no owner yet")]
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        // The variable may have come to a process that it is not meant for; the socket itself then is another one, or none.
        let made_by = getsockopt(&borrowed, PeerCredentials).ok()?.pid();
        if u32::try_from(made_by).ok()? != maker || stay_open(borrowed, false).is_err() {
            return None;
        }
        // SAFETY: nothing else in this process has it: it is the one that was left open for it.
        #[allow(unsafe_code, reason = "what a process inherits has no owner yet")]
        let owned = unsafe { OwnedFd::from_raw_fd(number) };
        Some((Bond(owned.into()), maker))
    }

    /// From now on `read` does not wait.
    pub fn never_wait(&self) -> io::Result<()> {
        self.0.set_nonblocking(true)
    }

    pub fn again(&self) -> io::Result<Bond> {
        self.0.try_clone().map(Bond)
    }

    /// Sends the reason, if there is one, and the exit code as the last byte. The other may be gone already.
    pub fn say(&self, code: u8, reason: &str) {
        let reason = reason.as_bytes();
        let reason = &reason[..reason.len().min(MAX_REASON)];
        let _ = (&self.0).write_all(&[reason, &[code]].concat());
    }

    /// Waits until the other is gone.
    pub fn wait(&self) -> LastWords {
        let mut said = LastWords::default();
        loop {
            match self.read() {
                Ok(Some(byte)) => said.0.push(byte),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(None) | Err(_) => return said,
            }
        }
    }

    /// What the other says; none when it is gone.
    pub fn read(&self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        match (&self.0).read(&mut byte) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(byte[0])),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Bond {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether it stays open in what this process becomes by `exec`.
fn stay_open(file: BorrowedFd<'_>, stays: bool) -> io::Result<()> {
    let flags = if stays { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(file, FcntlArg::F_SETFD(flags))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    fn shell(script: &str) -> (Bond, std::process::Child) {
        let mut command = Command::new("bash");
        command.args(["-c", script]).stdin(Stdio::null());
        let bond = Bond::to(&mut command).unwrap();
        let child = command.spawn().unwrap();
        (bond, child)
    }

    #[test]
    fn an_end_in_order_says_its_code_and_a_kill_says_nothing() {
        // The process writes where the variable says; a child of its own, which has it too, is gone before.
        let (bond, mut child) = shell("set -- $PCLUSTER_BOND; sleep 0; printf '\\005' >&$1");
        let said = bond.wait();
        assert_eq!((said.code(), said.reason()), (Some(5), None));
        child.wait().unwrap();
        let (bond, mut child) = shell("set -- $PCLUSTER_BOND; printf 'disk full\\113' >&$1");
        let said = bond.wait();
        assert_eq!((said.code(), said.reason().as_deref()), (Some(0o113), Some("disk full")));
        child.wait().unwrap();
        let (bond, mut child) = shell("kill -KILL $$");
        assert_eq!(bond.wait(), LastWords::default());
        child.wait().unwrap();
    }

    #[test]
    fn the_end_of_the_maker_is_read_by_what_it_has_started() {
        let (bond, mut child) = shell("set -- $PCLUSTER_BOND; cat <&$1; exit 9");
        drop(bond);
        assert_eq!(child.wait().unwrap().code(), Some(9));
    }
}
