//! Keeping a connection that breaks now and then: pauses between attempts, which grow, and are cut short when this host wakes up.
use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// How often one looks whether the ssh process still holds its connection.
pub const TICK: Duration = Duration::from_secs(1);
/// A clock that has gone so much further than this process has slept.
const SLEPT: Duration = Duration::from_secs(5);
/// The pause before a new connection; each further one is longer,
pub const FIRST_PAUSE: Duration = Duration::from_millis(300);
/// ... up to this; and to this where somebody must do something first.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(15);
pub const PAUSE_WHEN_REFUSED: Duration = Duration::from_secs(60);

/// The pauses between attempts.
#[derive(Debug)]
pub struct Pauses {
    next: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Pauses { next: FIRST_PAUSE }
    }
}

impl Pauses {
    /// After something that worked.
    pub fn start_again(&mut self) {
        self.next = FIRST_PAUSE;
    }

    fn take(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST_PAUSE);
        pause
    }

    /// Waits until the next attempt. `may_pass`: trying again may help without anybody doing anything.
    pub async fn wait(&mut self, may_pass: bool) {
        let pause = self.take();
        sleep_or_wake(if may_pass { pause } else { PAUSE_WHEN_REFUSED }).await;
    }
}

/// Ends early when the host wakes up.
async fn sleep_or_wake(pause: Duration) {
    let end = Instant::now() + pause;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let clocks = Clocks::now();
        tokio::time::sleep(left.min(TICK)).await;
        if clocks.slept() {
            return;
        }
    }
}

/// The clock that stands still while the host sleeps, and the one that does not (clock_gettime(2)).
pub struct Clocks {
    awake: Option<Duration>,
    all: Option<Duration>,
}

impl Clocks {
    pub fn now() -> Clocks {
        let read = |clock| clock_gettime(clock).ok().map(Duration::from);
        Clocks {
            awake: read(ClockId::CLOCK_MONOTONIC),
            all: read(ClockId::CLOCK_BOOTTIME),
        }
    }

    /// Whether the host has slept since.
    pub fn slept(&self) -> bool {
        let now = Clocks::now();
        let since = |now: Option<Duration>, then: Option<Duration>| Some(now?.saturating_sub(then?));
        match (since(now.awake, self.awake), since(now.all, self.all)) {
            (Some(awake), Some(all)) => all > awake + SLEPT,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_start_again() {
        let mut pauses = Pauses::default();
        let taken: Vec<Duration> = (0..10).map(|_| pauses.take()).collect();
        assert!(
            taken.is_sorted() && taken[0] == FIRST_PAUSE && taken[9] == LONGEST_PAUSE,
            "{taken:?}"
        );
        pauses.start_again();
        assert_eq!(pauses.take(), FIRST_PAUSE);
        assert!(!Clocks::now().slept());
    }
}
