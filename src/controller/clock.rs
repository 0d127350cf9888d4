//! The time of events.
use super::core::EventTime;
use crate::model::UnixTime;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

pub(super) struct Clock {
    pub start: Instant,
}

impl Clock {
    pub(super) fn now(&self) -> EventTime {
        EventTime {
            since_start: self.start.elapsed(),
            unix: unix_now(),
        }
    }
}

pub(super) fn unix_now() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixTime((since.as_secs_f64() * 1e6).round() / 1e6)
}
