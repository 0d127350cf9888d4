//! Expiry: deletes records that ended longer ago than `controller.retention_days`. The records list candidates in batches; this
//! module skips those that are still in use.
use super::Core;
use super::effect::QueryKind;
use super::event::Expired;
use super::outbox::Timer;
use crate::model::change::{Change, Purge};
use crate::model::{MapId, UnixTime};
use std::collections::HashMap;
use std::time::Duration;

const DAY_S: f64 = 86_400.0;
/// The first check, after the start.
pub(super) const FIRST_CHECK: Duration = Duration::from_secs(1);
/// Between two steps while expired records remain.
const STEP_INTERVAL: Duration = Duration::from_millis(100);
/// Between checks that find nothing: a tenth of the retention time, within these bounds.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(600);
/// A client that requested a map's results this recently may request more.
const READ_GRACE: Duration = Duration::from_secs(600);

/// Finished maps that clients read, with the time of the last request.
#[derive(Debug, Default)]
pub(super) struct Readers(HashMap<MapId, Duration>);

impl Core {
    /// The clock by which records age: it advances only while a controller runs, and never ahead of the wall clock. A step of the
    /// wall clock, in either direction, ages nothing.
    fn retention_clock(&self) -> UnixTime {
        let aged = self.retention_base.0 + self.out.now().since_start.as_secs_f64();
        UnixTime(aged.min(self.out.now().unix.0))
    }

    /// Restores the clock of the previous controller, or, if none was recorded, the time of the newest record.
    pub(super) fn restore_retention_clock(&mut self, clock: UnixTime) {
        let base = clock.0 - self.out.now().since_start.as_secs_f64();
        self.retention_base = UnixTime(base.min(self.retention_base.0));
    }

    pub(super) fn check_expired(&mut self) {
        let Some(days) = self.config.retention_days else { return };
        let clock = self.retention_clock();
        self.out.record(Change::RetentionClock { at: clock });
        let before = UnixTime(clock.0 - days * DAY_S);
        self.out.own_query(QueryKind::Expired { before });
    }

    pub(super) fn expired_found(&mut self, expired: Expired) {
        let now = self.out.now().since_start;
        self.readers.0.retain(|_, read| now.saturating_sub(*read) < READ_GRACE);
        let mut purges = Vec::new();
        for map in expired.maps {
            let followed = self.maps.iter().any(|(_, open)| open.options().after == Some(map));
            if !(self.maps.is_open(map) || followed || self.readers.0.contains_key(&map)) {
                self.maps.forget(map);
                purges.push(Purge::Map(map));
            }
        }
        let requests: Vec<String> = expired.requests.into_iter().filter(|id| !self.is_in_use(id)).collect();
        if !requests.is_empty() {
            purges.push(Purge::Requests(requests));
        }
        for map in expired.empty {
            // The client may still be connected: its next request starts a new submission.
            if !self.requests.open.values().any(|open| open.task.map == map) {
                self.requests.sessions.retain(|_, (own, _)| *own != map);
                purges.push(Purge::EmptySession(map));
            }
        }
        let keep = Duration::try_from_secs_f64(self.config.retention_days.unwrap_or(0.0) * DAY_S / 10.0).unwrap_or(MAX_INTERVAL);
        let pause = if purges.is_empty() {
            keep.clamp(MIN_INTERVAL, MAX_INTERVAL)
        } else {
            STEP_INTERVAL
        };
        for what in purges {
            self.out.record(Change::Purged { what });
        }
        self.out.set_timer(pause, Timer::Retention);
    }

    /// True for a finished request that is part of an unfinished broadcast, or runs again.
    fn is_in_use(&self, msg_id: &str) -> bool {
        let is_part = || {
            self.requests
                .broadcasts
                .keys()
                .any(|original| msg_id.starts_with(original.as_str()))
        };
        self.requests.is_open(msg_id) || is_part()
    }

    /// Notes that a client requested the results of a finished map.
    pub(super) fn note_reader(&mut self, map: MapId) {
        if self.config.retention_days.is_some() {
            self.readers.0.insert(map, self.out.now().since_start);
        }
    }
}
