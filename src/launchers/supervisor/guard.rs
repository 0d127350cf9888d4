//! The other half of supervision: what is supervised watches its supervisor, and when that is gone starts another one, which takes it
//! over as it runs. So only who ends both at the same instant ends them for good.
//!
//! A thread that sleeps does it, beside whatever the process does; it knows nothing of that.
use super::bond::Bond;
use super::{FIRST_PAUSE, LONGEST_PAUSE, Supervised, WELL};
use crate::sys::process::{Mark, SUPERVISOR};
use std::io;
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What this process knows of its supervisor, if it has one.
static STATE: Mutex<State> = Mutex::new(State { bond: None, ends: false });

struct State {
    bond: Option<Bond>,
    /// This process is about to end in order: whoever is there is told, and nobody new is started.
    ends: bool,
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to watch the supervisor that has started this process, if one has. `supervisor` is what would run in its place.
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

/// This process ends in order, with this exit code, for this reason if it failed.
pub fn ends(code: u8, reason: &str) {
    let mut state = state();
    state.ends = true;
    if let Some(bond) = &state.bond {
        bond.say(code, reason);
    }
}

/// The same, from wherever a thread has panicked: it may be the one that knows the supervisor.
pub fn ends_by_panic(code: u8) {
    if let Ok(mut state) = STATE.try_lock() {
        state.ends = true;
        if let Some(bond) = &state.bond {
            bond.say(code, "");
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
            // It has ended, or will at once: nothing ties it to this process any more.
            let _ = child.wait();
        }
        if since.elapsed() >= WELL {
            pause = Duration::ZERO;
        }
        loop {
            std::thread::sleep(pause);
            pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            // Whoever ends meanwhile waits until the new one can be told.
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
    // Before it starts: an end that is closed behind it would tell it that this process is gone.
    let again = bond.again()?;
    let mark = Mark {
        is_supervisor: true,
        ..mark
    };
    let child = command.env(SUPERVISOR, mark.to_string()).spawn()?;
    Ok((child, bond, again))
}
