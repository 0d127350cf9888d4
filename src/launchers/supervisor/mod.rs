//! Keeps one process running: starts it, waits, and starts it again when it was killed or has crashed.
//!
//! It is one thread that sleeps, so it must begin before this process has a runtime. What it runs knows nothing of it, and
//! goes on when the supervisor itself is killed; [`process::left_by`] finds it then.
use crate::connection::process;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// The pause before a new start; each further one is twice as long,
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// ... up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A process that lived so long was well: pauses are short again.
const WELL: Duration = Duration::from_secs(60);
/// Refusals in a row before it is given up.
const MOST_REFUSALS: u32 = 10;
/// Exit codes of a process that failed by a mistake of its own: cli/error.rs has the one, a panic the other.
const MISTAKES: [i32; 2] = [70, 101];

/// What is kept running.
#[derive(Clone, Debug)]
pub struct Supervised {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// Further arguments for the second start and later ones.
    pub again: Vec<OsString>,
    /// Whether one that ran before and then cannot start (its port is taken, its disk is full) is to be tried again.
    pub insists: bool,
}

/// What to do about a process that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// End too, with this exit code.
    End(u8),
    /// Start it again after a pause.
    Again(Duration),
}

/// What is remembered from one start to the next.
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

/// Runs it until it ends in order, refuses to start, or this process gets SIGTERM or SIGINT (which are passed on, as
/// are SIGUSR1 and SIGUSR2). Its
/// last exit code, or 128 and the number of the signal that ended it.
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
    loop {
        record.starts += 1;
        let next = match supervised.start(record.starts > 1) {
            Ok(mut child) => {
                let begun = Instant::now();
                let status = signals.wait_for(&mut child)?;
                let next = record.ended(status, begun.elapsed(), signals.told_to_end);
                if let Next::Again(pause) = next {
                    tracing::warn!("process {} ended ({status}); starting it again in {pause:?}", child.id());
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
    fn start(&self, again: bool) -> io::Result<Child> {
        let own = std::process::id();
        // A program that was replaced on disk meanwhile goes on as it was.
        let program = if self.program.exists() {
            self.program.clone()
        } else {
            "/proc/self/exe".into()
        };
        let mut command = Command::new(program);
        command.arg0(&self.program).args(&self.arguments);
        if again {
            command.args(&self.again);
        }
        command.env(
            process::SUPERVISOR,
            process::mark(own, process::started_of(own).unwrap_or_default()),
        );
        // SAFETY: between fork and exec only a system call is made.
        #[allow(unsafe_code, reason = "the standard library leaves the signals blocked that are blocked here")]
        unsafe {
            command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?))
        };
        command.spawn()
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
    fn wait_for(&mut self, child: &mut Child) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            for signal in self.next(None)? {
                if signal != Signal::SIGCHLD {
                    // SIGUSR1 and SIGUSR2 are for what runs to make something of.
                    self.told_to_end |= ends(signal);
                    // Not waited for yet, so the number is still its own.
                    let _ = nix::sys::signal::kill(Pid::from_raw(child.id() as i32), signal);
                }
            }
        }
    }

    /// Whether, within this time, it was told to end.
    fn told_within(&mut self, time: Duration) -> io::Result<bool> {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            self.told_to_end |= self.next(Some(left))?.iter().any(|signal| ends(*signal));
            if self.told_to_end || Instant::now() >= until {
                return Ok(self.told_to_end);
            }
        }
    }

    /// The signals that came; none when the time is over.
    fn next(&mut self, at_most: Option<Duration>) -> io::Result<Vec<Signal>> {
        let timeout = match at_most {
            None => PollTimeout::NONE,
            Some(time) => PollTimeout::try_from(time + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
        };
        match poll(&mut [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)], timeout) {
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
