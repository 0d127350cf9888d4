//! Connects a process to its supervisor with a socket pair. When one of the two ends for any
//! reason, the other immediately reads end-of-file, whichever of them started the other. Before an
//! orderly exit the process sends its exit code, which only its parent could learn otherwise.
use crate::sys::child_setup::{ChildSetup, set_up_child};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// The environment variable that passes the other end to the child: its file descriptor and the
/// creator's pid.
const VARIABLE: &str = "PCLUSTER_BOND";

/// Maximum length of a reason in bytes; it fits into the socket's buffer, so that sending does not
/// block.
const MAX_REASON_BYTES: usize = 2000;

/// The bytes that a process sent before it exited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ExitReport(pub Vec<u8>);

impl ExitReport {
    pub(super) fn code(&self) -> Option<u8> {
        self.0.last().copied()
    }

    pub(super) fn reason(&self) -> Option<String> {
        let (_, reason) = self.0.split_last()?;
        (!reason.is_empty()).then(|| String::from_utf8_lossy(reason).into_owned())
    }
}

/// One end of the socket pair.
#[derive(Debug)]
pub(super) struct LivenessSocket(UnixStream);

impl LivenessSocket {
    /// Passes the other end to the child that `command` starts. Drop the command afterwards, since
    /// it keeps that end open.
    pub(super) fn attach(command: &mut Command) -> io::Result<LivenessSocket> {
        let (ours, theirs) = UnixStream::pair()?;
        command.env(VARIABLE, format!("{} {}", theirs.as_raw_fd(), std::process::id()));
        set_up_child(command, vec![ChildSetup::KeepOpen(theirs.into())]);
        Ok(LivenessSocket(ours))
    }

    /// The end that this process inherited, and the pid of the process at the other end. Only the
    /// first call returns it.
    pub(super) fn inherited() -> Option<(LivenessSocket, u32)> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let text = std::env::var(VARIABLE).ok()?;
        let (number, creator) = text.split_once(' ')?;
        let (number, creator): (RawFd, u32) = (number.parse().ok()?, creator.parse().ok()?);
        if number < 3 || TAKEN.swap(true, Ordering::SeqCst) {
            return None;
        }
        // SAFETY: before taking ownership, checks that the descriptor is open and of the expected kind;
        // no other code in this process owns that one, which was left open for this call.
        #[expect(unsafe_code, reason = "an inherited descriptor has no owner yet")]
        unsafe {
            let borrowed = BorrowedFd::borrow_raw(number);
            // The variable may have been inherited by a process that it was not meant for; then the
            // descriptor is another socket, or none.
            let made_by = getsockopt(&borrowed, PeerCredentials).ok()?.pid();
            let is_ours = u32::try_from(made_by).is_ok_and(|pid| pid == creator);
            if !is_ours || fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).is_err() {
                return None;
            }
            Some((LivenessSocket(OwnedFd::from_raw_fd(number).into()), creator))
        }
    }

    /// From now on `read` does not block.
    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        self.0.set_nonblocking(true)
    }

    pub(super) fn try_clone(&self) -> io::Result<LivenessSocket> {
        self.0.try_clone().map(LivenessSocket)
    }

    /// Sends the reason, if any, and the exit code as the last byte. The other process may already
    /// be gone.
    pub(super) fn send_exit_code(&self, code: u8, reason: &str) {
        let reason = reason.as_bytes();
        let reason = &reason[..reason.len().min(MAX_REASON_BYTES)];
        let _ = (&self.0).write_all(&[reason, &[code]].concat());
    }

    /// Blocks until the other process is gone.
    pub(super) fn wait(&self) -> ExitReport {
        let mut report = ExitReport::default();
        loop {
            match self.read() {
                Ok(Some(byte)) => report.0.push(byte),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(None) | Err(_) => return report,
            }
        }
    }

    /// Reads what the other process sends; none if it is gone.
    pub(super) fn read(&self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        match (&self.0).read(&mut byte) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(byte[0])),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for LivenessSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    fn run_shell(script: &str) -> (LivenessSocket, std::process::Child) {
        let mut command = Command::new("bash");
        command.args(["-c", script]).stdin(Stdio::null());
        let socket = LivenessSocket::attach(&mut command).unwrap();
        let child = command.spawn().unwrap();
        (socket, child)
    }

    #[test]
    fn an_orderly_exit_sends_its_code_and_a_kill_sends_nothing() {
        // The script writes to the descriptor that the variable names. Its own children, which
        // inherit it, have exited before.
        let (socket, mut child) = run_shell("set -- $PCLUSTER_BOND; sleep 0; printf '\\005' >&$1");
        let report = socket.wait();
        assert_eq!((report.code(), report.reason()), (Some(5), None));
        child.wait().unwrap();
        let (socket, mut child) = run_shell("set -- $PCLUSTER_BOND; printf 'disk full\\113' >&$1");
        let report = socket.wait();
        assert_eq!((report.code(), report.reason().as_deref()), (Some(0o113), Some("disk full")));
        child.wait().unwrap();
        let (socket, mut child) = run_shell("kill -KILL $$");
        assert_eq!(socket.wait(), ExitReport::default());
        child.wait().unwrap();
    }

    #[test]
    fn the_child_reads_end_of_file_when_its_creator_closes_the_socket() {
        let (socket, mut child) = run_shell("set -- $PCLUSTER_BOND; cat <&$1; exit 9");
        drop(socket);
        assert_eq!(child.wait().unwrap().code(), Some(9));
    }
}
