//! Expiry: deletes records that ended longer ago than `controller.retention_days`. The records list candidates in batches; this
//! module skips those that are still in use.
use super::effect::QueryKind;
use super::event::{EventTime, Expired};
use super::maps::Maps;
use super::outbox::{Outbox, Timer};
use super::requests::{Broadcasts, Requests};
use crate::model::change::{Change, Purge};
use crate::model::{MapId, UnixTime};
use std::collections::HashMap;
use std::time::Duration;

const DAY_S: f64 = 86_400.0;
/// The first check, after the start.
const FIRST_CHECK: Duration = Duration::from_secs(1);
/// Between two steps while expired records remain.
const STEP_INTERVAL: Duration = Duration::from_millis(100);
/// Between checks that find nothing: a tenth of the retention time, within these bounds.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(600);
/// A client that requested a map's results this recently may request more.
const READ_GRACE: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct Retention {
    /// None: nothing expires.
    days: Option<f64>,
    /// The clock by which records age, at the start of this controller.
    base: UnixTime,
    /// Finished maps that clients read, with the time of the last request.
    readers: HashMap<MapId, Duration>,
}

impl Retention {
    /// Also schedules the first check.
    pub(super) fn new(days: Option<f64>, out: &mut Outbox) -> Retention {
        if days.is_some() {
            out.set_timer(FIRST_CHECK, Timer::Retention);
        }
        let now = out.now();
        Retention {
            days,
            base: UnixTime(now.unix.0 - now.since_start.as_secs_f64()),
            readers: HashMap::new(),
        }
    }

    /// The clock by which records age: it advances only while a controller runs, and never ahead of the wall clock. A step of the
    /// wall clock, in either direction, ages nothing.
    fn clock(&self, now: EventTime) -> UnixTime {
        let aged = self.base.0 + now.since_start.as_secs_f64();
        UnixTime(aged.min(now.unix.0))
    }

    /// Restores the clock of the previous controller, or, if none was recorded, the time of the newest record.
    pub(super) fn restore_clock(&mut self, clock: UnixTime, now: EventTime) {
        let base = clock.0 - now.since_start.as_secs_f64();
        self.base = UnixTime(base.min(self.base.0));
    }

    /// Notes that a client requested the results of a finished map.
    pub(super) fn note_reader(&mut self, map: MapId, now: EventTime) {
        if self.days.is_some() {
            self.readers.insert(map, now.since_start);
        }
    }

    /// Asks the records for expired ones.
    pub(super) fn check(&self, out: &mut Outbox) {
        let Some(days) = self.days else { return };
        let clock = self.clock(out.now());
        out.record(Change::RetentionClock { at: clock });
        let before = UnixTime(clock.0 - days * DAY_S);
        out.own_query(QueryKind::Expired { before });
    }

    /// Deletes expired records that are not in use, and schedules the next check.
    pub(super) fn purge(&mut self, expired: Expired, maps: &mut Maps, requests: &mut Requests, broadcasts: &Broadcasts, out: &mut Outbox) {
        let now = out.now().since_start;
        self.readers.retain(|_, read| now.saturating_sub(*read) < READ_GRACE);
        let mut purges = Vec::new();
        for map in expired.maps {
            let followed = maps.iter().any(|(_, open)| open.options().after == Some(map));
            if !(maps.is_open(map) || followed || self.readers.contains_key(&map)) {
                maps.forget(map);
                purges.push(Purge::Map(map));
            }
        }
        // A finished request may be part of an unfinished broadcast, or run again.
        let is_in_use = |msg_id: &String| requests.is_open(msg_id) || broadcasts.has_part(msg_id);
        let unused: Vec<String> = expired.requests.into_iter().filter(|id| !is_in_use(id)).collect();
        if !unused.is_empty() {
            purges.push(Purge::Requests(unused));
        }
        // The client may still be connected.
        let empty = expired.empty.into_iter().filter(|map| requests.forget_session(*map));
        purges.extend(empty.map(Purge::EmptySession));
        let tenth = Duration::try_from_secs_f64(self.days.unwrap_or(0.0) * DAY_S / 10.0).unwrap_or(MAX_INTERVAL);
        let pause = match purges.is_empty() {
            true => tenth.clamp(MIN_INTERVAL, MAX_INTERVAL),
            false => STEP_INTERVAL,
        };
        for what in purges {
            out.record(Change::Purged { what });
        }
        out.set_timer(pause, Timer::Retention);
    }
}
