//! The supervised side: the process watches its supervisor and, when that is gone, starts a new
//! one, which adopts the running process. Only killing both at the same instant ends them for good.
//!
//! This runs in a separate, sleeping thread, invisible to the rest of the process.
use super::liveness_socket::LivenessSocket;
use super::{INITIAL_DELAY, MAX_DELAY, STABLE_AFTER, Supervised};
use crate::sys::process::{Mark, SUPERVISOR};
use std::io;
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The state of this process's supervision, if it is supervised.
static STATE: Mutex<GuardState> = Mutex::new(GuardState {
    socket: None,
    exiting: false,
});

struct GuardState {
    socket: Option<LivenessSocket>,
    /// This process is exiting in order: it sends its exit code and starts no new supervisor.
    exiting: bool,
}

fn state() -> MutexGuard<'static, GuardState> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts watching the supervisor of this process, if it has one. `supervisor` describes the
/// supervisor to start as a replacement.
pub(crate) fn start_watching(supervisor: Supervised) {
    let (Some((socket, _)), Some(mark)) = (LivenessSocket::inherited(), Mark::of_this_process()) else {
        return;
    };
    let begun = socket.try_clone().and_then(|clone| {
        state().socket = Some(clone);
        let watch = move || watch(socket, &supervisor, mark);
        std::thread::Builder::new().name("guard".into()).spawn(watch)
    });
    if let Err(error) = begun {
        tracing::warn!("cannot watch the supervisor of this process: {error}");
    }
}

/// Announces an orderly exit with this exit code, and with the reason if it failed.
pub(crate) fn exiting(code: u8, reason: &str) {
    let mut state = state();
    state.exiting = true;
    if let Some(socket) = &state.socket {
        socket.send_exit_code(code, reason);
    }
}

/// The same for a panicking thread, which may hold the lock: skips the announcement in that case.
pub(crate) fn exiting_by_panic(code: u8) {
    if let Ok(mut state) = STATE.try_lock() {
        state.exiting = true;
        if let Some(socket) = &state.socket {
            socket.send_exit_code(code, "");
        }
    }
}

fn watch(mut socket: LivenessSocket, supervisor: &Supervised, mark: Mark) {
    let mut child: Option<Child> = None;
    let mut delay = Duration::ZERO;
    loop {
        let since = Instant::now();
        socket.wait();
        if let Some(mut child) = child.take() {
            // It has ended or is about to: nothing connects it to this process any more.
            let _ = child.wait();
        }
        if since.elapsed() >= STABLE_AFTER {
            delay = Duration::ZERO;
        }
        loop {
            std::thread::sleep(delay);
            delay = (delay * 2).clamp(INITIAL_DELAY, MAX_DELAY);
            // A concurrent exit waits for this lock until the new supervisor can be notified.
            let mut state = state();
            if state.exiting {
                return;
            }
            match start_replacement(supervisor, mark) {
                Ok((started, other, ours)) => {
                    tracing::warn!("the supervisor of this process is gone; process {} replaces it", started.id());
                    child = Some(started);
                    socket = other;
                    state.socket = Some(ours);
                    break;
                }
                Err(error) => tracing::error!(
                    "the supervisor of this process is gone, and its replacement {} failed to start: {error}",
                    supervisor.program.display()
                ),
            }
        }
    }
}

fn start_replacement(supervisor: &Supervised, mark: Mark) -> io::Result<(Child, LivenessSocket, LivenessSocket)> {
    let mut command = supervisor.command(false);
    let socket = LivenessSocket::attach(&mut command)?;
    // Clone it before the start: otherwise closing the other copy would look like the end of this
    // process.
    let clone = socket.try_clone()?;
    let mark = Mark {
        is_supervisor: true,
        ..mark
    };
    let child = command.env(SUPERVISOR, mark.to_string()).spawn()?;
    Ok((child, socket, clone))
}
