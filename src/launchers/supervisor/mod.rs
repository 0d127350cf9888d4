//! Keeps one process running: starts it, waits, and restarts it if it was killed or has crashed.
//!
//! The supervisor is a single sleeping thread, so it must start before this process has an async
//! runtime. If the supervisor itself is killed, the supervised process continues and starts a new
//! supervisor ([`guard`]), which adopts it. All of them belong to the session of the first one and
//! carry its mark; [`process::orphans_of`] finds them.
//!
//! Modules: `liveness_socket` (notifies each of the two when the other ends), [`guard`] (the
//! supervised side).
pub(crate) mod guard;
mod liveness_socket;

use crate::sys::child_setup::{ChildSetup, set_up_child};
use crate::sys::problem::{ProblemFile, StartProblem};
use crate::sys::process::{self, Mark, ProcessId};
use liveness_socket::{ExitReport, LivenessSocket};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The delay before the first restart; doubles with each further one,
const INITIAL_DELAY: Duration = Duration::from_millis(100);
/// ... up to this.
const MAX_DELAY: Duration = Duration::from_secs(10);
/// A process that ran this long is considered stable: the delay is reset.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// Maximum number of consecutive refusals to start.
const MAX_REFUSALS: u32 = 10;
/// Exit codes of crashes: a bug (cli/error.rs) and a panic.
const CRASH_EXIT_CODES: [i32; 2] = [70, 101];
/// The exit code for a temporary failure (sysexits.h: EX_TEMPFAIL): a full disk, an address in use.
pub(crate) const TEMPORARY: u8 = 75;

/// Poll interval while a process that has closed its files exits.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The process to keep running.
#[derive(Clone, Debug)]
pub(crate) struct Supervised {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// Further arguments for restarts.
    pub restart_arguments: Vec<OsString>,
    /// Whether to retry if it ran before and now refuses to start (its port is in use, its disk is
    /// full).
    pub retries_refusals: bool,
    /// Whether it watches its supervisor ([`guard`]).
    pub watches_supervisor: bool,
    /// The file in which to record why the process is not running, while restarts are pending.
    pub problem: Option<PathBuf>,
    /// Whether the program is this executable.
    pub is_own_program: bool,
}

/// What to do after the process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextAction {
    /// Exit with this code.
    Exit(u8),
    /// Restart it after a delay.
    Restart(Duration),
}

/// The history that determines the next action.
#[derive(Debug)]
struct RestartState {
    retries_refusals: bool,
    starts: u32,
    refusals: u32,
    delay: Duration,
    /// The number of consecutive failed starts, and when the first of them ended.
    failures: u32,
    since: Option<SystemTime>,
}

impl RestartState {
    fn new(retries_refusals: bool) -> RestartState {
        RestartState {
            retries_refusals,
            starts: 0,
            refusals: 0,
            delay: INITIAL_DELAY,
            failures: 0,
            since: None,
        }
    }

    /// Records a failed start. A killed process does not count as failed.
    fn record_failure(&mut self, reason: String, file: Option<&ProblemFile>) {
        let since = *self.since.get_or_insert_with(SystemTime::now);
        self.failures += 1;
        if let Some(file) = file {
            file.note(&StartProblem {
                reason,
                attempts: self.failures,
                since: since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            });
        }
    }

    fn ended(&mut self, status: ExitStatus, lived: Duration, stop_requested: bool) -> NextAction {
        let code = status.code().unwrap_or(128 + status.signal().unwrap_or_default());
        let end = NextAction::Exit(u8::try_from(code).unwrap_or(u8::MAX));
        if stop_requested || status.success() {
            return end;
        }
        if lived >= STABLE_AFTER {
            (self.delay, self.refusals) = (INITIAL_DELAY, 0);
            (self.failures, self.since) = (0, None);
        }
        let was_stable = self.starts > 1 || lived >= STABLE_AFTER;
        if code == i32::from(TEMPORARY) && self.retries_refusals && was_stable {
            // Retry without a limit.
            self.refusals = 0;
            return self.next_delay();
        }
        let refused = status.code().is_some_and(|code| !CRASH_EXIT_CODES.contains(&code));
        if refused {
            self.refusals += 1;
            if !self.retries_refusals || !was_stable || self.refusals >= MAX_REFUSALS {
                return end;
            }
        } else {
            self.refusals = 0;
        }
        self.next_delay()
    }

    fn next_delay(&mut self) -> NextAction {
        let delay = self.delay;
        self.delay = (delay * 2).min(MAX_DELAY);
        NextAction::Restart(delay)
    }
}

/// Runs the process until it exits in order, refuses to start, or this process receives SIGTERM or
/// SIGINT. These signals are forwarded, as are SIGUSR1 and SIGUSR2. If this process replaces a
/// supervisor that is gone, it first adopts the supervised process. Returns the last exit code, or
/// 128 plus the number of the fatal signal.
pub(crate) fn run(supervised: &Supervised) -> io::Result<u8> {
    let mut mask = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGCHLD]
        .into_iter()
        .for_each(|signal| mask.add(signal));
    mask.thread_block()?;
    let mut signals = SignalReceiver {
        file: SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
        stop_requested: false,
    };
    let mut record = RestartState::new(supervised.retries_refusals);
    let mut adopted = AdoptedProcess::inherited()?;
    let problem = supervised.problem.as_deref().map(ProblemFile::prepare);
    loop {
        record.starts += 1;
        let running = match adopted.take() {
            Some(process) => Ok(SupervisedProcess::Adopted(process)),
            None => supervised.start(record.starts > 1),
        };
        let next = match running {
            Ok(mut running) => {
                let (status, lived) = signals.wait_for(&mut running)?;
                let next = record.ended(status, lived, signals.stop_requested);
                if let NextAction::Restart(delay) = next {
                    tracing::warn!("process {} ended ({status}); restarting it in {delay:?}", running.pid());
                    if status.code().is_some() {
                        let reason = running.reason().unwrap_or_else(|| format!("exited with {status}"));
                        record.record_failure(reason, problem.as_ref());
                    }
                }
                next
            }
            Err(error) if record.starts == 1 => return Err(error),
            Err(error) => {
                let reason = format!("cannot restart {}: {error}", supervised.program.display());
                tracing::error!("{reason}");
                record.record_failure(reason, problem.as_ref());
                record.next_delay()
            }
        };
        match next {
            NextAction::Exit(code) => return Ok(code),
            NextAction::Restart(delay) if signals.stop_requested_within(delay)? => return Ok(0),
            NextAction::Restart(_) => {}
        }
    }
}

impl Supervised {
    fn start(&self, is_restart: bool) -> io::Result<SupervisedProcess> {
        let mut command = self.command(is_restart);
        let socket = match self.watches_supervisor {
            true => Some(LivenessSocket::attach(&mut command)?),
            false => None,
        };
        command.env(process::SUPERVISOR, Mark::for_supervised().to_string());
        Ok(SupervisedProcess::Child {
            child: command.spawn()?,
            begun: Instant::now(),
            socket,
        })
    }

    fn command(&self, is_restart: bool) -> Command {
        // If the program on disk was replaced, continue with the running version.
        let program = if self.program.exists() || !self.is_own_program {
            self.program.clone()
        } else {
            "/proc/self/exe".into()
        };
        let mut command = Command::new(program);
        command.arg0(&self.program).args(&self.arguments);
        if is_restart {
            command.args(&self.restart_arguments);
        }
        set_up_child(&mut command, vec![ChildSetup::UnblockSignals]);
        command
    }
}

/// The supervised process.
enum SupervisedProcess {
    Child {
        child: Child,
        begun: Instant,
        /// Open as long as this process lives: closing it signals the end of this process.
        socket: Option<LivenessSocket>,
    },
    Adopted(AdoptedProcess),
}

/// A process that another supervisor started.
struct AdoptedProcess {
    process: ProcessId,
    begun: Instant,
    socket: LivenessSocket,
    report: ExitReport,
}

impl AdoptedProcess {
    /// Adopts the process that started this one, if it requests supervision.
    fn inherited() -> io::Result<Option<AdoptedProcess>> {
        let Some((socket, pid)) = LivenessSocket::inherited() else {
            return Ok(None);
        };
        socket.set_nonblocking()?;
        tracing::info!("adopting process {pid}, whose supervisor is gone");
        Ok(Some(AdoptedProcess {
            process: ProcessId::of(pid),
            begun: Instant::now(),
            socket,
            report: ExitReport::default(),
        }))
    }

    fn is_running(&self) -> bool {
        self.process.runs()
    }
}

impl SupervisedProcess {
    fn pid(&self) -> u32 {
        match self {
            SupervisedProcess::Child { child, .. } => child.id(),
            SupervisedProcess::Adopted(adopted) => adopted.process.pid,
        }
    }

    /// The descriptor that becomes readable when the process may have ended. For a child SIGCHLD
    /// serves this purpose.
    fn end(&self) -> Option<BorrowedFd<'_>> {
        match self {
            SupervisedProcess::Child { .. } => None,
            SupervisedProcess::Adopted(process) => Some(process.socket.as_fd()),
        }
    }

    /// The exit status and the lifetime, if it has ended.
    fn ended(&mut self) -> io::Result<Option<(ExitStatus, Duration)>> {
        match self {
            SupervisedProcess::Child { child, begun, .. } => Ok(child.try_wait()?.map(|status| (status, begun.elapsed()))),
            SupervisedProcess::Adopted(adopted) => {
                match adopted.socket.read() {
                    Ok(Some(byte)) => adopted.report.0.push(byte),
                    Ok(None) => {
                        let lived = adopted.process.age().unwrap_or(adopted.begun.elapsed());
                        // Its files are closed a moment before it exits; wait, so that two never
                        // run at the same time.
                        while adopted.is_running() {
                            std::thread::sleep(POLL_INTERVAL);
                        }
                        // Without an exit code it was killed or has crashed, whatever the cause.
                        let status = adopted.report.code().map_or(Signal::SIGKILL as i32, |code| i32::from(code) << 8);
                        return Ok(Some((ExitStatus::from_raw(status), lived)));
                    }
                    Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                    Err(error) => return Err(error),
                }
                Ok(None)
            }
        }
    }

    /// The reason that it sent; available after its end.
    fn reason(&self) -> Option<String> {
        match self {
            SupervisedProcess::Child { socket, .. } => {
                let socket = socket.as_ref()?;
                // Its children may still hold the other end open.
                socket.set_nonblocking().ok()?;
                socket.wait().reason()
            }
            SupervisedProcess::Adopted(adopted) => adopted.report.reason(),
        }
    }

    fn signal(&self, signal: Signal) {
        // A child is not reaped yet, so its pid is still valid.
        if matches!(self, SupervisedProcess::Adopted(process) if !process.is_running()) {
            return;
        }
        let _ = nix::sys::signal::kill(Pid::from_raw(self.pid() as i32), signal);
    }
}

fn requests_stop(signal: Signal) -> bool {
    matches!(signal, Signal::SIGTERM | Signal::SIGINT)
}

struct SignalReceiver {
    file: SignalFd,
    stop_requested: bool,
}

impl SignalReceiver {
    /// Returns the exit status and the lifetime.
    fn wait_for(&mut self, running: &mut SupervisedProcess) -> io::Result<(ExitStatus, Duration)> {
        loop {
            if let Some(ended) = running.ended()? {
                return Ok(ended);
            }
            for signal in self.next(running.end(), None)? {
                if signal != Signal::SIGCHLD {
                    // SIGUSR1 and SIGUSR2 are handled by the supervised process.
                    self.stop_requested |= requests_stop(signal);
                    running.signal(signal);
                }
            }
        }
    }

    /// Returns whether a stop was requested within this time.
    fn stop_requested_within(&mut self, time: Duration) -> io::Result<bool> {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            self.stop_requested |= self.next(None, Some(left))?.iter().any(|signal| requests_stop(*signal));
            if self.stop_requested || Instant::now() >= until {
                return Ok(self.stop_requested);
            }
        }
    }

    /// The signals received; none if `other` became readable, or the timeout expired.
    fn next(&mut self, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<Vec<Signal>> {
        let timeout = match timeout {
            None => PollTimeout::NONE,
            Some(time) => PollTimeout::try_from(time + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
        };
        let mut files = vec![PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
        files.extend(other.map(|other| PollFd::new(other, PollFlags::POLLIN)));
        match poll(&mut files, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut received = Vec::new();
        while let Some(info) = self.file.read_signal()? {
            received.extend(Signal::try_from(info.ssi_signo as i32).ok());
        }
        Ok(received)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    fn signal(signal: Signal) -> ExitStatus {
        ExitStatus::from_raw(signal as i32)
    }

    const SHORT: Duration = Duration::from_millis(5);

    #[test]
    fn a_killed_or_crashed_process_is_restarted_with_growing_delays() {
        let mut record = RestartState::new(false);
        let mut delays = Vec::new();
        for status in [signal(Signal::SIGKILL), signal(Signal::SIGSEGV), code(70), code(101)] {
            record.starts += 1;
            match record.ended(status, SHORT, false) {
                NextAction::Restart(delay) => delays.push(delay.as_millis()),
                end => panic!("{end:?}"),
            }
        }
        assert_eq!(delays, [100, 200, 400, 800]);
        for _ in 0..10 {
            record.ended(signal(Signal::SIGKILL), SHORT, false);
        }
        assert_eq!(record.ended(signal(Signal::SIGKILL), SHORT, false), NextAction::Restart(MAX_DELAY));
        assert_eq!(
            record.ended(signal(Signal::SIGKILL), STABLE_AFTER, false),
            NextAction::Restart(INITIAL_DELAY)
        );
    }

    #[test]
    fn an_orderly_exit_a_refusal_and_a_requested_stop_are_final() {
        for retries_refusals in [false, true] {
            let mut record = RestartState::new(retries_refusals);
            record.starts = 1;
            assert_eq!(record.ended(code(0), STABLE_AFTER, false), NextAction::Exit(0));
            assert_eq!(record.ended(code(5), SHORT, false), NextAction::Exit(5));
            assert_eq!(record.ended(signal(Signal::SIGKILL), SHORT, true), NextAction::Exit(137));
        }
    }

    #[test]
    fn a_later_refusal_is_retried_a_limited_number_of_times_if_configured() {
        let mut record = RestartState::new(true);
        record.starts = 2;
        for _ in 1..MAX_REFUSALS {
            assert!(matches!(record.ended(code(5), SHORT, false), NextAction::Restart(_)));
        }
        assert_eq!(record.ended(code(5), SHORT, false), NextAction::Exit(5));
        let mut record = RestartState::new(false);
        record.starts = 2;
        assert_eq!(record.ended(code(4), STABLE_AFTER, false), NextAction::Exit(4));
    }

    #[test]
    fn a_transient_cause_never_ends_a_process_that_ran_and_delays_are_bounded() {
        let temporary = || code(i32::from(TEMPORARY));
        assert_eq!(
            RestartState {
                starts: 1,
                ..RestartState::new(true)
            }
            .ended(temporary(), SHORT, false),
            NextAction::Exit(TEMPORARY)
        );
        let mut record = RestartState::new(true);
        record.starts = 2;
        for _ in 0..10 * MAX_REFUSALS {
            assert!(matches!(record.ended(temporary(), SHORT, false), NextAction::Restart(delay) if delay <= MAX_DELAY));
        }
        // In between, a persistent cause is counted from the start again.
        for _ in 1..MAX_REFUSALS {
            assert!(matches!(record.ended(code(5), SHORT, false), NextAction::Restart(_)));
        }
        assert_eq!(record.ended(code(5), SHORT, false), NextAction::Exit(5));
        assert_eq!(record.ended(temporary(), SHORT, true), NextAction::Exit(TEMPORARY));
    }
}
