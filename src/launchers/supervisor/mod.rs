//! Keeps one process running: starts it, waits, and starts it again when it was killed or has crashed.
//!
//! It is one thread that sleeps, so it must begin before this process has a runtime. What it runs goes on when the supervisor
//! itself is killed, and starts another one ([`guard`]), which takes it over. All of them are in the session of the first, and are
//! marked with it; [`process::orphans_of`] finds them.
//!
//! Parts: `bond` (how one of the two learns of the other's end), [`guard`] (the other half, in the process that is supervised).
mod bond;
pub mod guard;

use crate::sys::problem::{Trouble, TroubleFile};
use crate::sys::process::{self, Mark, ProcessId};
use bond::{Bond, LastWords};
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
/// The exit code of a process that failed for a cause that may pass (sysexits.h: EX_TEMPFAIL): a full disk, an address in use.
pub const TEMPORARY: u8 = 75;

/// How often one looks whether a process that has closed its files is gone.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What is to be kept running.
#[derive(Clone, Debug)]
pub struct Supervised {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// Further arguments for the second start and later ones.
    pub again: Vec<OsString>,
    /// Whether one that ran before and then cannot start (its port is taken, its disk is full) is to be tried again.
    pub insists: bool,
    /// Whether it watches its supervisor ([`guard`]).
    pub watches: bool,
    /// Where to note why it does not run, while it is to be started again.
    pub problem: Option<PathBuf>,
    /// Whether the program is this one.
    pub is_this_program: bool,
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
    /// Failed starts in a row, and when the first of them ended.
    failures: u32,
    since: Option<SystemTime>,
}

impl Record {
    fn new(insists: bool) -> Record {
        Record {
            insists,
            starts: 0,
            refusals: 0,
            pause: FIRST_PAUSE,
            failures: 0,
            since: None,
        }
    }

    /// Notes a failed start. One that was killed has not failed.
    fn failed(&mut self, reason: String, file: Option<&TroubleFile>) {
        let since = *self.since.get_or_insert_with(SystemTime::now);
        self.failures += 1;
        if let Some(file) = file {
            file.note(&Trouble {
                reason,
                attempts: self.failures,
                since: since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            });
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
            (self.failures, self.since) = (0, None);
        }
        let was_well = self.starts > 1 || lived >= WELL;
        if code == i32::from(TEMPORARY) && self.insists && was_well {
            // However long that takes.
            self.refusals = 0;
            return self.pause();
        }
        let refused = status.code().is_some_and(|code| !MISTAKES.contains(&code));
        if refused {
            self.refusals += 1;
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
/// are SIGUSR1 and SIGUSR2). Where this process was started in the place of a supervisor that is gone, what that had kept
/// running is taken over first. Its last exit code, or 128 and the number of the signal that ended it.
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
    let problem = supervised.problem.as_deref().map(TroubleFile::prepare);
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
                    if status.code().is_some() {
                        let reason = running.reason().unwrap_or_else(|| format!("it ended with {status}"));
                        record.failed(reason, problem.as_ref());
                    }
                }
                next
            }
            Err(error) if record.starts == 1 => return Err(error),
            Err(error) => {
                let reason = format!("cannot start {} again: {error}", supervised.program.display());
                tracing::error!("{reason}");
                record.failed(reason, problem.as_ref());
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
            bond,
        })
    }

    fn command(&self, again: bool) -> Command {
        // A program that was replaced on disk meanwhile goes on as it was.
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
        // SAFETY: between fork and exec only a system call is made.
        #[allow(unsafe_code, reason = "the standard library leaves the signals blocked that are blocked here")]
        unsafe {
            command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?))
        };
        command
    }
}

/// What is kept running.
enum Running {
    Child {
        child: Child,
        begun: Instant,
        /// Open as long as this process lives: its end says that.
        bond: Option<Bond>,
    },
    TakenOver(TakenOver),
}

/// A process that another supervisor has started.
struct TakenOver {
    process: ProcessId,
    begun: Instant,
    bond: Bond,
    said: LastWords,
}

impl TakenOver {
    /// The process that has started this one, if that is to be kept running.
    fn inherited() -> io::Result<Option<TakenOver>> {
        let Some((bond, pid)) = Bond::inherited() else { return Ok(None) };
        bond.never_wait()?;
        tracing::info!("process {pid}, whose supervisor is gone, is kept running");
        Ok(Some(TakenOver {
            process: ProcessId::of(pid),
            begun: Instant::now(),
            bond,
            said: LastWords::default(),
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

    /// What can be read from when it may have ended. Of a child a signal tells.
    fn end(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Running::Child { .. } => None,
            Running::TakenOver(process) => Some(process.bond.as_fd()),
        }
    }

    /// How it ended, if it has, and how long it had lived.
    fn ended(&mut self) -> io::Result<Option<(ExitStatus, Duration)>> {
        match self {
            Running::Child { child, begun, .. } => Ok(child.try_wait()?.map(|status| (status, begun.elapsed()))),
            Running::TakenOver(taken) => {
                match taken.bond.read() {
                    Ok(Some(byte)) => taken.said.0.push(byte),
                    Ok(None) => {
                        let lived = taken.process.age().unwrap_or(taken.begun.elapsed());
                        // Its files are closed a moment before it is gone; never are there two.
                        while taken.runs() {
                            std::thread::sleep(LOOK_EVERY);
                        }
                        // One that says nothing was killed or has crashed, however that was.
                        let status = taken.said.code().map_or(Signal::SIGKILL as i32, |code| i32::from(code) << 8);
                        return Ok(Some((ExitStatus::from_raw(status), lived)));
                    }
                    Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                    Err(error) => return Err(error),
                }
                Ok(None)
            }
        }
    }

    /// Why it ended, as it has said; after its end.
    fn reason(&self) -> Option<String> {
        match self {
            Running::Child { bond, .. } => {
                let bond = bond.as_ref()?;
                // What it has started may hold the other end still.
                bond.never_wait().ok()?;
                bond.wait().reason()
            }
            Running::TakenOver(taken) => taken.said.reason(),
        }
    }

    fn signal(&self, signal: Signal) {
        // A child is not waited for yet, so the number is still its own.
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
    /// How it ended, and how long it had lived.
    fn wait_for(&mut self, running: &mut Running) -> io::Result<(ExitStatus, Duration)> {
        loop {
            if let Some(ended) = running.ended()? {
                return Ok(ended);
            }
            for signal in self.next(running.end(), None)? {
                if signal != Signal::SIGCHLD {
                    // SIGUSR1 and SIGUSR2 are for what runs to make something of.
                    self.told_to_end |= ends(signal);
                    running.signal(signal);
                }
            }
        }
    }

    /// Whether, within this time, it was told to end.
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

    /// The signals that came; none when there is something to read from `other`, or the time is over.
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

    #[test]
    fn a_cause_that_may_pass_ends_nothing_that_ran_before_and_pauses_stay_bounded() {
        let temporary = || code(i32::from(TEMPORARY));
        assert_eq!(
            Record {
                starts: 1,
                ..Record::new(true)
            }
            .ended(temporary(), SHORT, false),
            Next::End(TEMPORARY)
        );
        let mut record = Record::new(true);
        record.starts = 2;
        for _ in 0..10 * MOST_REFUSALS {
            assert!(matches!(record.ended(temporary(), SHORT, false), Next::Again(pause) if pause <= LONGEST_PAUSE));
        }
        // Between them a lasting cause is counted anew.
        for _ in 1..MOST_REFUSALS {
            assert!(matches!(record.ended(code(5), SHORT, false), Next::Again(_)));
        }
        assert_eq!(record.ended(code(5), SHORT, false), Next::End(5));
        assert_eq!(record.ended(temporary(), SHORT, true), Next::End(TEMPORARY));
    }
}
