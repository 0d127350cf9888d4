//! Keeps one process running: starts it, waits, and restarts it if it was killed or has crashed.
//!
//! The supervisor is a single sleeping thread, so it must start before this process has an async
//! runtime. If the supervisor itself is killed, the supervised process continues and starts a new
//! supervisor ([`guard`]), which adopts it. All of them belong to the session of the first one and
//! carry its mark; [`process::left_by`] finds them.
//!
//! Modules: `bond` (notifies each of the two when the other ends), [`guard`] (the supervised side).
mod bond;
pub mod guard;

use crate::sys::process::{self, Mark, ProcessId};
use bond::Bond;
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
use std::time::{Duration, Instant};

/// The delay before the first restart; doubles with each further one,
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// ... up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A process that ran this long is considered stable: the delay is reset.
const WELL: Duration = Duration::from_secs(60);
/// Maximum number of consecutive refusals to start.
const MOST_REFUSALS: u32 = 10;
/// Exit codes of crashes: a bug (cli/error.rs) and a panic.
const MISTAKES: [i32; 2] = [70, 101];

/// Poll interval while a process that has closed its files exits.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The process to keep running.
#[derive(Clone, Debug)]
pub struct Supervised {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// Further arguments for restarts.
    pub again: Vec<OsString>,
    /// Whether to retry if it ran before and now refuses to start (its port is in use, its disk is
    /// full).
    pub insists: bool,
    /// Whether it watches its supervisor ([`guard`]).
    pub watches: bool,
    /// Whether the program is this executable.
    pub is_this_program: bool,
}

/// What to do after the process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Exit with this code.
    End(u8),
    /// Restart it after a delay.
    Again(Duration),
}

/// The history that determines the next action.
#[derive(Debug)]
struct Record {
    insists: bool,
    starts: u32,
    refusals: u32,
    pause: Duration,
}

impl Record {
    fn new(insists: bool) -> Record {
        Record {
            insists,
            starts: 0,
            refusals: 0,
            pause: FIRST_PAUSE,
        }
    }

    fn ended(&mut self, status: ExitStatus, lived: Duration, told_to_end: bool) -> Next {
        let code = status.code().unwrap_or(128 + status.signal().unwrap_or_default());
        let end = Next::End(u8::try_from(code).unwrap_or(u8::MAX));
        if told_to_end || status.success() {
            return end;
        }
        if lived >= WELL {
            (self.pause, self.refusals) = (FIRST_PAUSE, 0);
        }
        let refused = status.code().is_some_and(|code| !MISTAKES.contains(&code));
        if refused {
            self.refusals += 1;
            let was_well = self.starts > 1 || lived >= WELL;
            if !self.insists || !was_well || self.refusals >= MOST_REFUSALS {
                return end;
            }
        } else {
            self.refusals = 0;
        }
        self.pause()
    }

    fn pause(&mut self) -> Next {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        Next::Again(pause)
    }
}

/// Runs the process until it exits in order, refuses to start, or this process receives SIGTERM or
/// SIGINT. These signals are forwarded, as are SIGUSR1 and SIGUSR2. If this process replaces a
/// supervisor that is gone, it first adopts the supervised process. Returns the last exit code, or
/// 128 plus the number of the fatal signal.
pub fn run(supervised: &Supervised) -> io::Result<u8> {
    let mut mask = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGCHLD]
        .into_iter()
        .for_each(|signal| mask.add(signal));
    mask.thread_block()?;
    let mut signals = Signals {
        file: SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
        told_to_end: false,
    };
    let mut record = Record::new(supervised.insists);
    let mut taken_over = TakenOver::inherited()?;
    loop {
        record.starts += 1;
        let running = match taken_over.take() {
            Some(process) => Ok(Running::TakenOver(process)),
            None => supervised.start(record.starts > 1),
        };
        let next = match running {
            Ok(mut running) => {
                let (status, lived) = signals.wait_for(&mut running)?;
                let next = record.ended(status, lived, signals.told_to_end);
                if let Next::Again(pause) = next {
                    tracing::warn!("process {} ended ({status}); starting it again in {pause:?}", running.pid());
                }
                next
            }
            Err(error) if record.starts == 1 => return Err(error),
            Err(error) => {
                tracing::error!("cannot start {} again: {error}", supervised.program.display());
                record.pause()
            }
        };
        match next {
            Next::End(code) => return Ok(code),
            Next::Again(pause) if signals.told_within(pause)? => return Ok(0),
            Next::Again(_) => {}
        }
    }
}

impl Supervised {
    fn start(&self, again: bool) -> io::Result<Running> {
        let mut command = self.command(again);
        let bond = match self.watches {
            true => Some(Bond::to(&mut command)?),
            false => None,
        };
        command.env(process::SUPERVISOR, Mark::for_supervised().to_string());
        Ok(Running::Child {
            child: command.spawn()?,
            begun: Instant::now(),
            _bond: bond,
        })
    }

    fn command(&self, again: bool) -> Command {
        // If the program on disk was replaced, continue with the running version.
        let program = if self.program.exists() || !self.is_this_program {
            self.program.clone()
        } else {
            "/proc/self/exe".into()
        };
        let mut command = Command::new(program);
        command.arg0(&self.program).args(&self.arguments);
        if again {
            command.args(&self.again);
        }
        // SAFETY: only a system call is made between fork and exec.
        #[allow(unsafe_code, reason = "the standard library leaves the signals blocked that are blocked here")]
        unsafe {
            command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?))
        };
        command
    }
}

/// The supervised process.
enum Running {
    Child {
        child: Child,
        begun: Instant,
        /// Open as long as this process lives: closing it signals the end of this process.
        _bond: Option<Bond>,
    },
    TakenOver(TakenOver),
}

/// A process that another supervisor started.
struct TakenOver {
    process: ProcessId,
    begun: Instant,
    bond: Bond,
    /// The exit code that it sent.
    code: Option<u8>,
}

impl TakenOver {
    /// Adopts the process that started this one, if it requests supervision.
    fn inherited() -> io::Result<Option<TakenOver>> {
        let Some((bond, pid)) = Bond::inherited() else { return Ok(None) };
        bond.never_wait()?;
        tracing::info!("process {pid}, whose supervisor is gone, is kept running");
        Ok(Some(TakenOver {
            process: ProcessId::of(pid),
            begun: Instant::now(),
            bond,
            code: None,
        }))
    }

    fn runs(&self) -> bool {
        self.process.runs()
    }
}

impl Running {
    fn pid(&self) -> u32 {
        match self {
            Running::Child { child, .. } => child.id(),
            Running::TakenOver(taken) => taken.process.pid,
        }
    }

    /// The descriptor that becomes readable when the process may have ended. For a child SIGCHLD
    /// serves this purpose.
    fn end(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Running::Child { .. } => None,
            Running::TakenOver(process) => Some(process.bond.as_fd()),
        }
    }

    /// The exit status and the lifetime, if it has ended.
    fn ended(&mut self) -> io::Result<Option<(ExitStatus, Duration)>> {
        match self {
            Running::Child { child, begun, .. } => Ok(child.try_wait()?.map(|status| (status, begun.elapsed()))),
            Running::TakenOver(taken) => {
                match taken.bond.read() {
                    Ok(Some(code)) => taken.code = Some(code),
                    Ok(None) => {
                        let lived = taken.process.age().unwrap_or(taken.begun.elapsed());
                        // Its files are closed a moment before it exits; wait, so that two never
                        // run at the same time.
                        while taken.runs() {
                            std::thread::sleep(LOOK_EVERY);
                        }
                        // Without an exit code it was killed or has crashed, whatever the cause.
                        let status = taken.code.map_or(Signal::SIGKILL as i32, |code| i32::from(code) << 8);
                        return Ok(Some((ExitStatus::from_raw(status), lived)));
                    }
                    Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                    Err(error) => return Err(error),
                }
                Ok(None)
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // A child is not reaped yet, so its pid is still valid.
        if matches!(self, Running::TakenOver(process) if !process.runs()) {
            return;
        }
        let _ = nix::sys::signal::kill(Pid::from_raw(self.pid() as i32), signal);
    }
}

fn ends(signal: Signal) -> bool {
    matches!(signal, Signal::SIGTERM | Signal::SIGINT)
}

struct Signals {
    file: SignalFd,
    told_to_end: bool,
}

impl Signals {
    /// Returns the exit status and the lifetime.
    fn wait_for(&mut self, running: &mut Running) -> io::Result<(ExitStatus, Duration)> {
        loop {
            if let Some(ended) = running.ended()? {
                return Ok(ended);
            }
            for signal in self.next(running.end(), None)? {
                if signal != Signal::SIGCHLD {
                    // SIGUSR1 and SIGUSR2 are handled by the supervised process.
                    self.told_to_end |= ends(signal);
                    running.signal(signal);
                }
            }
        }
    }

    /// Returns whether a stop was requested within this time.
    fn told_within(&mut self, time: Duration) -> io::Result<bool> {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            self.told_to_end |= self.next(None, Some(left))?.iter().any(|signal| ends(*signal));
            if self.told_to_end || Instant::now() >= until {
                return Ok(self.told_to_end);
            }
        }
    }

    /// The signals received; none if `other` became readable, or the timeout expired.
    fn next(&mut self, other: Option<BorrowedFd<'_>>, at_most: Option<Duration>) -> io::Result<Vec<Signal>> {
        let timeout = match at_most {
            None => PollTimeout::NONE,
            Some(time) => PollTimeout::try_from(time + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
        };
        let mut files = vec![PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
        files.extend(other.map(|other| PollFd::new(other, PollFlags::POLLIN)));
        match poll(&mut files, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut came = Vec::new();
        while let Some(info) = self.file.read_signal()? {
            came.extend(Signal::try_from(info.ssi_signo as i32).ok());
        }
        Ok(came)
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
    fn what_was_killed_or_crashed_comes_back_with_growing_pauses() {
        let mut record = Record::new(false);
        let mut pauses = Vec::new();
        for status in [signal(Signal::SIGKILL), signal(Signal::SIGSEGV), code(70), code(101)] {
            record.starts += 1;
            match record.ended(status, SHORT, false) {
                Next::Again(pause) => pauses.push(pause.as_millis()),
                end => panic!("{end:?}"),
            }
        }
        assert_eq!(pauses, [100, 200, 400, 800]);
        for _ in 0..10 {
            record.ended(signal(Signal::SIGKILL), SHORT, false);
        }
        assert_eq!(record.ended(signal(Signal::SIGKILL), SHORT, false), Next::Again(LONGEST_PAUSE));
        assert_eq!(record.ended(signal(Signal::SIGKILL), WELL, false), Next::Again(FIRST_PAUSE));
    }

    #[test]
    fn an_end_in_order_a_refusal_and_an_end_on_demand_are_final() {
        for insists in [false, true] {
            let mut record = Record::new(insists);
            record.starts = 1;
            assert_eq!(record.ended(code(0), WELL, false), Next::End(0));
            assert_eq!(record.ended(code(5), SHORT, false), Next::End(5));
            assert_eq!(record.ended(signal(Signal::SIGKILL), SHORT, true), Next::End(137));
        }
    }

    #[test]
    fn a_refusal_after_it_ran_is_tried_again_by_one_that_insists_but_not_for_ever() {
        let mut record = Record::new(true);
        record.starts = 2;
        for _ in 1..MOST_REFUSALS {
            assert!(matches!(record.ended(code(5), SHORT, false), Next::Again(_)));
        }
        assert_eq!(record.ended(code(5), SHORT, false), Next::End(5));
        let mut record = Record::new(false);
        record.starts = 2;
        assert_eq!(record.ended(code(4), WELL, false), Next::End(4));
    }
}
