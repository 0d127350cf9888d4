//! The end of a batch job's time: an engine leaves before it, so that no task is cut off that could have ended elsewhere.
use super::Driver;
use crate::engine::link::unix_now;
use std::time::{Duration, Instant};

/// An engine leaves when this part of its job's time is left,
const PART: f64 = 0.1;
/// ... but not later than so many seconds before the end, and not earlier.
const LATEST_S: f64 = 10.0;
const EARLIEST_S: f64 = 60.0;
/// Seconds that results and the farewell take.
const FAREWELL_S: f64 = 2.0;

/// How many seconds before the end an engine leaves that has so many left.
fn margin(left_s: f64) -> f64 {
    (left_s * PART).clamp(LATEST_S, EARLIEST_S)
}

impl Driver {
    /// When to leave; none where the job has no known end.
    pub(super) fn leave_at(&self) -> Option<Instant> {
        let left = self.facts.ends?.0 - unix_now().0;
        let until = (left - margin(left)).max(0.0);
        Some(Instant::now() + Duration::try_from_secs_f64(until).ok()?)
    }

    /// How long a task may go on that runs now, in milliseconds: as long as there is time to stop it and to say so.
    pub(super) fn grace_in_job(&self) -> u64 {
        let Some(ends) = self.facts.ends else {
            return self.settings.grace_ms;
        };
        let to_stop = (self.settings.interrupt_ms + self.settings.terminate_ms) as f64 / 1000.0;
        let left = (ends.0 - unix_now().0 - FAREWELL_S).max(0.0);
        // Where that little time is left, a task gets the signal sooner rather than never.
        ((left - to_stop).max(left / 2.0) * 1000.0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_leaves_in_time_but_not_long_before() {
        assert_eq!(margin(36_000.0), 60.0);
        assert_eq!(margin(300.0), 30.0);
        assert_eq!(margin(60.0), 10.0);
    }
}
