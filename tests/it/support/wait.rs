//! Waiting for a state.
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; no test depends on how long it is.
const TIMEOUT: Duration = Duration::from_secs(90);

/// Polls until there is an answer; fails, naming what it waited for, on timeout.
pub fn wait_until<T>(what: &str, mut answer: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = answer() {
            return answer;
        }
        assert!(begun.elapsed() < TIMEOUT, "waited {TIMEOUT:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
