//! What a child process does between fork and exec.
//!
//! Source: signal-safety(7).
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::unistd::{Pid, getppid, setsid};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

pub(crate) enum ChildSetup {
    NewSession,
    /// Keeps no inherited file except stdin, stdout and stderr, if the kernel supports it (Linux 5.11).
    CloseInherited,
    KeepOpen(OwnedFd),
    UnblockSignals,
    /// Ignores a signal until the program installs a handler.
    Ignore(Signal),
    /// The kernel sends the signal when the thread of the parent that starts the child ends.
    DieWithParent(Pid, Signal),
}

/// Adds steps for the child that `command` starts. The kept files stay open here until `command` is dropped.
pub(crate) fn set_up_child(command: &mut Command, steps: Vec<ChildSetup>) {
    // SAFETY: between fork and exec, the steps make only system calls, none of which accesses memory of this process; no handler is
    // replaced by another handler.
    #[expect(unsafe_code, reason = "the standard library has no safe function for these")]
    unsafe {
        command.pre_exec(move || {
            for step in &steps {
                match step {
                    ChildSetup::NewSession => {
                        setsid()?;
                    }
                    ChildSetup::CloseInherited => {
                        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
                    }
                    ChildSetup::KeepOpen(file) => {
                        fcntl(file, FcntlArg::F_SETFD(FdFlag::empty()))?;
                    }
                    ChildSetup::UnblockSignals => SigSet::empty().thread_set_mask()?,
                    ChildSetup::Ignore(ignored) => {
                        signal(*ignored, SigHandler::SigIgn)?;
                    }
                    ChildSetup::DieWithParent(parent, signal) => {
                        set_pdeathsig(*signal)?;
                        if getppid() != *parent {
                            return Err(io::ErrorKind::BrokenPipe.into());
                        }
                    }
                }
            }
            Ok(())
        });
    }
}
