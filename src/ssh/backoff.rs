//! When to reconnect: delays between attempts grow, and end early when this host resumes after a suspend.
use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// The interval between checks of a connection.
pub(crate) const TICK: Duration = Duration::from_secs(1);
/// The host was suspended if its clocks differ by more than this.
const SUSPENDED: Duration = Duration::from_secs(5);
/// The delay before the first attempt; it doubles with each further one,
const FIRST_DELAY: Duration = Duration::from_millis(300);
/// up to this one, which also applies where the user must act first.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(15);
const DELAY_WHEN_REFUSED: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { next: FIRST_DELAY }
    }
}

impl Backoff {
    /// Call after a success.
    pub(crate) fn reset(&mut self) {
        self.next = FIRST_DELAY;
    }

    fn take(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(MAX_DELAY);
        delay
    }

    /// Waits until the next attempt. `may_pass`: a retry may help without an action of the user.
    pub(crate) async fn wait(&mut self, may_pass: bool) {
        let delay = self.take();
        sleep_or_resume(if may_pass { delay } else { DELAY_WHEN_REFUSED }).await;
    }
}

/// Ends early when the host resumes.
async fn sleep_or_resume(delay: Duration) {
    let end = Instant::now() + delay;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let detector = SuspendDetector::now();
        tokio::time::sleep(left.min(TICK)).await;
        if detector.suspended() {
            return;
        }
    }
}

/// Compares the clock that stops while the host is suspended with the one that does not (clock_gettime(2)).
pub(crate) struct SuspendDetector {
    awake: Option<Duration>,
    all: Option<Duration>,
}

impl SuspendDetector {
    pub(crate) fn now() -> SuspendDetector {
        let read = |clock| clock_gettime(clock).ok().map(Duration::from);
        SuspendDetector {
            awake: read(ClockId::CLOCK_MONOTONIC),
            all: read(ClockId::CLOCK_BOOTTIME),
        }
    }

    /// Returns whether the host was suspended since the last call.
    pub(crate) fn suspended(&self) -> bool {
        let now = SuspendDetector::now();
        let since = |now: Option<Duration>, then: Option<Duration>| Some(now?.saturating_sub(then?));
        match (since(now.awake, self.awake), since(now.all, self.all)) {
            (Some(awake), Some(all)) => all > awake + SUSPENDED,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_bound_and_reset() {
        let mut backoff = Backoff::default();
        let taken: Vec<Duration> = (0..10).map(|_| backoff.take()).collect();
        assert!(taken.is_sorted() && taken[0] == FIRST_DELAY && taken[9] == MAX_DELAY, "{taken:?}");
        backoff.reset();
        assert_eq!(backoff.take(), FIRST_DELAY);
        assert!(!SuspendDetector::now().suspended());
    }
}
