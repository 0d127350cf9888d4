//! Stops work on signals.
use super::{CommandError, Context, ErrorKind};
use tokio::signal::unix::{SignalKind, signal};

/// Runs `work` to completion, or until Ctrl-C, SIGTERM or SIGHUP: then everything that it started is stopped.
pub(crate) fn interruptible<T, E>(context: &Context, work: impl Future<Output = Result<T, E>>) -> Result<T, CommandError>
where
    CommandError: From<E>,
{
    let finished = context.block_on(async {
        // The handlers are installed before `work` is first polled.
        // Under nohup(1) SIGHUP stays ignored.
        let ignores_hangup = is_ignored(SignalKind::hangup());
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [Ok(mut interrupted), Ok(mut terminated), Ok(mut hung_up)] = kinds.map(signal) else {
            return Some(work.await);
        };
        tokio::select! {
            result = work => Some(result),
            _ = interrupted.recv() => None,
            _ = terminated.recv() => None,
            _ = hung_up.recv(), if !ignores_hangup => None,
        }
    })?;
    match finished {
        Some(result) => Ok(result?),
        None => Err(CommandError::new(
            ErrorKind::Interrupted,
            "interrupted; what was started has been stopped",
        )),
    }
}

/// Whether this process was started with this signal ignored (`SigIgn` of proc_pid_status(5)).
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (kind.as_raw_value() - 1) & 1 == 1)
}
