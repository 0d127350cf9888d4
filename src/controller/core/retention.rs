//! Forgetting unasked: what ended longer ago than `controller.retention_days`. The records say what that is, some at a time; here
//! it is decided what of it is still waited for.
use super::{Ask, Core, Due, Effect, Query};
use crate::model::change::{Change, Purge};
use crate::model::{MapId, UnixTime};
use bytes::Bytes;
use std::collections::HashMap;
use std::time::Duration;

const DAY_S: f64 = 86_400.0;
/// The first look, after the start.
pub(super) const FIRST: Duration = Duration::from_secs(1);
/// Between two steps while there is something to forget.
const STEP: Duration = Duration::from_millis(100);
/// Between looks that find nothing: a tenth of the time that is kept, within these.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(600);
/// Somebody who asked for a map's results so lately is about to ask for more.
const READING: Duration = Duration::from_secs(600);

/// What ended long ago, according to the records: the oldest of it, not necessarily all.
#[derive(Debug, Default)]
pub struct Expired {
    pub maps: Vec<MapId>,
    /// Requests of ipyparallel clients, by message id.
    pub requests: Vec<String>,
    /// Submissions of such clients without any request.
    pub empty: Vec<MapId>,
}

/// Finished maps that somebody reads.
#[derive(Debug, Default)]
pub(super) struct Readers(HashMap<MapId, Duration>);

impl Core {
    /// The time by which records age: it goes on only while a controller runs, and never ahead of the wall clock. A step of that
    /// clock, in either direction, ages nothing.
    fn retention_clock(&self) -> UnixTime {
        let aged = self.retention_base.0 + self.now.since_start.as_secs_f64();
        UnixTime(aged.min(self.now.unix.0))
    }

    /// The controller before had come so far; or, where none has noted it, the newest record is so old.
    pub(super) fn restore_retention_clock(&mut self, clock: UnixTime) {
        let base = clock.0 - self.now.since_start.as_secs_f64();
        self.retention_base = UnixTime(base.min(self.retention_base.0));
    }

    pub(super) fn look_for_expired(&mut self) {
        let Some(days) = self.config.retention_days else { return };
        let clock = self.retention_clock();
        self.record(Change::RetentionClock { at: clock });
        let before = UnixTime(clock.0 - days * DAY_S);
        self.effects.push(Effect::Query(Query {
            client: Bytes::new(),
            request: String::new(),
            parent: Bytes::new(),
            ask: Ask::Expired { before },
        }));
    }

    pub(super) fn expired_found(&mut self, expired: Expired) {
        let now = self.now.since_start;
        self.readers.0.retain(|_, read| now.saturating_sub(*read) < READING);
        let mut purges = Vec::new();
        for map in expired.maps {
            let followed = self.maps.values().any(|open| open.definition.options.after == Some(map));
            if !(self.maps.contains_key(&map) || followed || self.readers.0.contains_key(&map)) {
                self.finished.remove(&map);
                purges.push(Purge::Map(map));
            }
        }
        let requests: Vec<String> = expired.requests.into_iter().filter(|id| !self.is_waited_for(id)).collect();
        if !requests.is_empty() {
            purges.push(Purge::Requests(requests));
        }
        for map in expired.empty {
            // The client may be there: what it submits next is another submission.
            if !self.requests.open.values().any(|open| open.task.map == map) {
                self.requests.sessions.retain(|_, (own, _)| *own != map);
                purges.push(Purge::EmptySession(map));
            }
        }
        let keep = Duration::try_from_secs_f64(self.config.retention_days.unwrap_or(0.0) * DAY_S / 10.0).unwrap_or(LONGEST);
        let pause = if purges.is_empty() { keep.clamp(SHORTEST, LONGEST) } else { STEP };
        for what in purges {
            self.record(Change::Purged { what });
        }
        self.remind(pause, Due::Retention);
    }

    /// A finished request that is part of an unfinished broadcast, or runs again.
    fn is_waited_for(&self, msg_id: &str) -> bool {
        let is_part = || {
            self.requests
                .broadcasts
                .keys()
                .any(|original| msg_id.starts_with(original.as_str()))
        };
        self.requests.is_open(msg_id) || is_part()
    }

    /// Somebody asks for the results of a finished map.
    pub(super) fn note_reader(&mut self, map: MapId) {
        if self.config.retention_days.is_some() {
            self.readers.0.insert(map, self.now.since_start);
        }
    }
}
