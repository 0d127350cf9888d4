//! Assigns requests of ipyparallel's clients to engines. Unknown and long functions are limited by `hwm` alone; short ones are
//! prefetched by pcluster's own engines.
use super::Core;
use super::engines::{Engine, LaneId, Room, Runs, Unit, Wanted};
use super::prefetch::Prefetch;
use super::requests::{OpenRequest, Placement};
use crate::model::change::Change;
use crate::model::{EngineUuid, MapId};
use std::collections::{HashSet, VecDeque};

/// Engines checked for a free slot, least loaded first.
const MAX_CANDIDATES: usize = 8;
/// An engine holds one request of unknown duration, beyond those that `hwm` allows.
const UNKNOWN_DEPTH: u32 = 1;

impl Core {
    /// Puts a balanced task into the right queue, or fails it if it can never run.
    pub(super) fn admit(&mut self, msg_id: &str) {
        if let Err(why) = self.requests.enqueue(msg_id) {
            self.fail_request(msg_id, "InvalidDependency", why);
        }
    }

    /// What the first unconstrained request of a session needs of an engine.
    pub(super) fn unit_of_session(&self, lane: LaneId) -> Option<Unit> {
        let first = self
            .requests
            .first_ready(lane.map)
            .filter(|_| lane.lane == LaneId::first(lane.map).lane)?;
        let function = first.function().filter(|_| first.timeout().is_none());
        let depth = function.map_or(1, |function| self.prefetch.depth(self.requests.mean(function), UNKNOWN_DEPTH));
        let mut unit = self.message(lane);
        unit.room.short = if depth > 1 { depth / 2 } else { 0 };
        Some(unit)
    }

    /// What a request needs of an engine, beyond its own constraints.
    pub(super) fn message(&self, lane: LaneId) -> Unit {
        Unit {
            lane,
            runs: Runs::Message,
            request: None,
            limit_s: None,
            known_s: None,
            room: Room {
                below: self.config.hwm,
                short: 0,
            },
            claim: self.queue.claim(lane.map, 1, None, self.out.now().since_start),
        }
    }

    /// Sends requests of a session that may run anywhere to one engine: one, or several short ones. Returns false if no engine
    /// can take any.
    pub(super) fn send_from_session(&mut self, lane: LaneId) -> bool {
        let Some(unit) = self.unit_of_session(lane) else { return false };
        let now = self.out.now();
        if let Some(engine) = self.policy.choose(&self.engines, &unit, now, &|_| true) {
            let Some(msg_id) = self.requests.take_ready(lane.map) else {
                return false;
            };
            self.send_request(&msg_id, &engine);
            return true;
        }
        unit.room.short > 0 && self.send_short(lane, &unit)
    }

    /// Sends short requests to an engine that is already at `hwm`.
    fn send_short(&mut self, lane: LaneId, unit: &Unit) -> bool {
        let may = |e: &Engine| e.holds_only_quick() && self.engines.why_not(e, unit, self.out.now()).is_none();
        let candidate = self.engines.by_load().take(MAX_CANDIDATES).find(|(_, e)| may(e));
        let Some((engine, load)) = candidate.map(|(uuid, e)| (uuid.clone(), e.load())) else {
            return false;
        };
        let function = self.next_function(lane.map);
        let depth = function.map_or(1, |function| self.prefetch.depth(self.requests.mean(function), UNKNOWN_DEPTH));
        let share = self.requests.ready(lane.map).div_ceil(self.engines.count().max(1)) as u32;
        let count = Prefetch::room(depth, load).min(share);
        for _ in 0..count {
            if self.next_function(lane.map) == function
                && let Some(msg_id) = self.requests.take_ready(lane.map)
            {
                self.send_request(&msg_id, &engine);
            }
        }
        count > 0
    }

    /// Sends the first bound request of a session that can be sent, and fails those that can never run. Returns false if none can
    /// be sent. `is_due`: something may have changed for them.
    pub(super) fn send_bound(&mut self, lane: LaneId, is_due: bool) -> bool {
        let mut awaited = HashSet::new();
        let mut sent = None;
        if is_due {
            let mut failed: Vec<(String, &str)> = Vec::new();
            let mut waiting = VecDeque::new();
            for msg_id in self.requests.take_bound(lane.map) {
                let Some(open) = self.requests.get(&msg_id).filter(|_| sent.is_none()) else {
                    waiting.push_back(msg_id);
                    continue;
                };
                match self.requests.placement(open, &self.engines) {
                    Placement::Impossible(why) => failed.push((msg_id, why)),
                    Placement::Waits => waiting.push_back(msg_id),
                    Placement::On(engines) => {
                        let unit = self.message(lane);
                        let now = self.out.now();
                        match self.policy.choose(&self.engines, &unit, now, &|uuid| engines.contains(uuid)) {
                            Some(engine) => sent = Some((msg_id, engine)),
                            None => {
                                awaited.extend(engines);
                                waiting.push_back(msg_id);
                            }
                        }
                    }
                }
            }
            self.requests.return_bound(lane.map, waiting, awaited.clone());
            for (msg_id, why) in failed {
                self.fail_request(&msg_id, "ImpossibleDependency", why);
            }
        } else {
            awaited = self.requests.awaited(lane.map);
        }
        if let Some((msg_id, engine)) = sent {
            self.send_request(&msg_id, &engine);
            return true;
        }
        if !awaited.is_empty() {
            let unit = self.message(lane);
            self.engines.want(Wanted {
                unit,
                engines: Some(awaited),
            });
        }
        false
    }

    fn next_function(&self, session: MapId) -> Option<u64> {
        let open = self.requests.first_ready(session)?;
        open.function().filter(|_| open.timeout().is_none())
    }

    /// True if an engine may hold more than one such request.
    fn is_quick(&self, open: &OpenRequest) -> bool {
        let mean = open.function().map(|function| self.requests.mean(function));
        mean.is_some_and(|mean| self.prefetch.depth(mean, UNKNOWN_DEPTH) > 1)
    }

    pub(super) fn send_request(&mut self, msg_id: &str, uuid: &EngineUuid) {
        let Some(engine) = self.engines.get(uuid) else { return };
        let (id, native, supports_files) = (engine.id(), engine.is_native(), engine.facts().supports_files());
        self.sent_tasks += 1;
        let sent = if native { self.sent_tasks } else { 0 };
        self.requests.assign(msg_id, uuid, sent);
        let Some(open) = self.requests.get(msg_id) else { return };
        if open.is_balanced() {
            self.out.record(Change::TasksAssigned {
                map: open.task().map,
                first: open.task().index,
                count: 1,
                run: open.run(),
                engine: id,
            });
        }
        let is_quick = self.is_quick(open);
        self.out.push(open.to_engine(uuid, native, supports_files));
        self.requests.note_sent(is_quick);
        let Some(open) = self.requests.get(msg_id) else { return };
        let session = open.task().map;
        let each_s = open.function().and_then(|function| self.requests.mean(function).seconds());
        let now = self.out.now().since_start;
        self.engines.change(uuid, |e| {
            e.set_pace(each_s, e.load() == 0, now);
            e.assign_request(msg_id, session, is_quick);
        });
    }

    /// Resends requests to a reconnected engine that holds only `has`: the missing ones never reached it, or it returned them
    /// to the previous controller.
    pub(super) fn send_again(&mut self, uuid: &EngineUuid, has: &[String]) {
        let Some(engine) = self.engines.get(uuid) else { return };
        let (native, supports_files) = (engine.is_native(), engine.facts().supports_files());
        let missing = engine.requests().filter(|id| !has.contains(id));
        let mut missing: Vec<&OpenRequest> = missing.filter_map(|id| self.requests.get(id)).collect();
        missing.sort_by_key(|open| open.task());
        // Those sent by the previous controller need another run.
        let (of_before, resent): (Vec<&OpenRequest>, Vec<&OpenRequest>) =
            missing.into_iter().partition(|open| open.is_balanced() && open.sent() == 0);
        for open in resent {
            self.out.push(open.to_engine(uuid, native, supports_files));
        }
        let of_before: Vec<String> = of_before.iter().map(|open| open.message().header.msg_id.clone()).collect();
        for msg_id in of_before {
            self.engines.change(uuid, |e| e.drop_request(&msg_id));
            self.requests.withdraw(&msg_id, &mut self.out);
            self.send_request(&msg_id, uuid);
        }
    }

    pub(super) fn request_timed_out(&mut self, msg_id: &str, run: u32) {
        let is_waiting = |open: &OpenRequest| open.engine().is_none() && open.run() == run;
        if self.requests.get(msg_id).is_some_and(is_waiting) {
            self.fail_request(msg_id, "TaskTimeout", "it timed out waiting for an engine");
        }
    }
}
