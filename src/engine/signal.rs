//! Signals to processes, and how they ended.
use nix::sys::signal::Signal;
use std::os::unix::process::ExitStatusExt;

/// Signals a process group; ignores a group that does not exist.
pub(crate) fn signal_group(pid: i32, signal: i32) {
    is_group_signalled(pid, signal);
}

/// Signals a process group; returns whether it exists.
pub(crate) fn is_group_signalled(pid: i32, signal: i32) -> bool {
    let Ok(signal) = Signal::try_from(signal) else { return false };
    pid > 1 && nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), signal).is_ok()
}

/// Signals one process; ignores a process that does not exist.
pub(crate) fn signal_one(pid: i32, signal: i32) {
    if pid > 1
        && let Ok(signal) = Signal::try_from(signal)
    {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
    }
}

/// `ended with exit code 3`, `was killed by signal 11 (SIGSEGV)`.
pub(crate) fn describe(status: std::process::ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (_, Some(number)) => format!("was killed by signal {number} ({})", signal_name(number)),
        _ => "ended".into(),
    }
}

pub(crate) fn signal_name(number: i32) -> String {
    Signal::try_from(number).map_or_else(|_| "unknown".into(), |signal| signal.as_str().to_string())
}
