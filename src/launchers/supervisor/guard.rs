//! The supervised side: the process watches its supervisor and, when that is gone, starts a new
//! one, which adopts the running process. Only killing both at the same instant ends them for good.
//!
//! This runs in a separate, sleeping thread, invisible to the rest of the process.
use super::bond::Bond;
use super::{FIRST_PAUSE, LONGEST_PAUSE, Supervised, WELL};
use crate::sys::process::{Mark, SUPERVISOR};
use std::io;
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The state of this process's supervision, if it is supervised.
static STATE: Mutex<State> = Mutex::new(State { bond: None, ends: false });

struct State {
    bond: Option<Bond>,
    /// This process is exiting in order: it sends its exit code and starts no new supervisor.
    ends: bool,
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts watching the supervisor of this process, if it has one. `supervisor` describes the
/// supervisor to start as a replacement.
pub fn begin(supervisor: Supervised) {
    let (Some((bond, _)), Some(mark)) = (Bond::inherited(), Mark::of_this_process()) else {
        return;
    };
    let begun = bond.again().and_then(|again| {
        state().bond = Some(again);
        let watch = move || watch(bond, &supervisor, mark);
        std::thread::Builder::new().name("guard".into()).spawn(watch)
    });
    if let Err(error) = begun {
        tracing::warn!("the supervisor of this process is not watched: {error}");
    }
}

/// Announces an orderly exit with this exit code.
pub fn ends(code: u8) {
    let mut state = state();
    state.ends = true;
    if let Some(bond) = &state.bond {
        bond.say(code);
    }
}

/// The same for a panicking thread, which may hold the lock: skips the announcement in that case.
pub fn ends_by_panic(code: u8) {
    if let Ok(mut state) = STATE.try_lock() {
        state.ends = true;
        if let Some(bond) = &state.bond {
            bond.say(code);
        }
    }
}

fn watch(mut bond: Bond, supervisor: &Supervised, mark: Mark) {
    let mut child: Option<Child> = None;
    let mut pause = Duration::ZERO;
    loop {
        let since = Instant::now();
        bond.wait();
        if let Some(mut child) = child.take() {
            // It has ended or is about to: nothing connects it to this process any more.
            let _ = child.wait();
        }
        if since.elapsed() >= WELL {
            pause = Duration::ZERO;
        }
        loop {
            std::thread::sleep(pause);
            pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            // A concurrent exit waits for this lock until the new supervisor can be notified.
            let mut state = state();
            if state.ends {
                return;
            }
            match successor(supervisor, mark) {
                Ok((started, other, ours)) => {
                    tracing::warn!("the supervisor of this process is gone; process {} takes its place", started.id());
                    child = Some(started);
                    bond = other;
                    state.bond = Some(ours);
                    break;
                }
                Err(error) => tracing::error!(
                    "the supervisor of this process is gone, and {} cannot be started in its place: {error}",
                    supervisor.program.display()
                ),
            }
        }
    }
}

fn successor(supervisor: &Supervised, mark: Mark) -> io::Result<(Child, Bond, Bond)> {
    let mut command = supervisor.command(false);
    let bond = Bond::to(&mut command)?;
    // Clone it before the start: otherwise closing the other copy would look like the end of this
    // process.
    let again = bond.again()?;
    let mark = Mark {
        is_supervisor: true,
        ..mark
    };
    let child = command.env(SUPERVISOR, mark.to_string()).spawn()?;
    Ok((child, bond, again))
}
