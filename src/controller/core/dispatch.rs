//! Assigns what waits to engines, lane by lane in the order of the queue. Maps with targets come first: their tasks go to
//! their engines at once, or as soon as these have what they need.
use super::Core;
use super::engines::{LaneId, Runs};
use super::scheduler::Shape;
use crate::model::{EngineUuid, MapId};

/// What a task of unknown duration is expected to take, in seconds.
const UNKNOWN_S: f64 = 1.0;

/// Lanes behind one of the same shape that are tried as well where nodes are reserved.
const MAX_FOLLOWING: usize = 16;

impl Core {
    /// Sends all that can be sent.
    pub(super) fn dispatch(&mut self) {
        let recheck = self.requests.take_recheck();
        let freed = self.engines.take_freed() && self.requests.has_bound();
        self.update_queue();
        self.engines.begin_round();
        self.dispatch_bound_maps();
        let is_due = recheck || freed;
        let mut after = None;
        while let Some((place, shape)) = self.queue.next(after) {
            if self.send_from(place.lane(), shape, is_due) {
                continue;
            }
            self.wait_for_engine(place.lane(), shape);
            after = Some(place);
            // Of tasks that fit the same engines, some may be known to end before a reserved node is needed.
            if self.engines.has_reservations() {
                for lane in self.queue.following(shape, place, MAX_FOLLOWING) {
                    while self.send_from(lane, shape, is_due) {}
                }
            }
        }
        for engine in self.engines.take_with_room() {
            self.refill(&engine);
        }
        self.level_queues();
        self.update_queue();
    }

    /// Sends tasks of a lane to one engine. Returns false if none can take any.
    fn send_from(&mut self, lane: LaneId, shape: usize, is_due: bool) -> bool {
        let was_sent = match self.maps.is_open(lane.map) {
            true => self.send_from_map(lane, shape),
            false if lane.lane == LaneId::BOUND => self.send_bound(lane, is_due),
            false => self.send_from_session(lane),
        };
        if was_sent {
            self.queue.serve(lane.map);
            self.update_queue();
        }
        was_sent
    }

    /// Sends an engine more tasks of the maps that it holds tasks of, unless lanes that come first may keep it from them.
    fn refill(&mut self, uuid: &EngineUuid) {
        let Some(engine) = self.engines.get(uuid) else { return };
        let lanes = engine.holders().flat_map(|(map, _)| self.queue.lanes_of(map));
        let lanes: Vec<LaneId> = lanes.filter(|lane| self.maps.is_open(lane.map)).collect();
        for lane in lanes {
            let (Some(unit), Some(engine)) = (self.unit_of(lane), self.engines.get(uuid)) else {
                continue;
            };
            if engine.load() > 0 && self.engines.why_not(engine, &unit, self.out.now()).is_none() {
                self.send_batch(&unit, uuid);
            }
        }
    }

    /// Brings the queue up to date with maps, sessions, and what engines hold of them.
    fn update_queue(&mut self) {
        let now = self.out.now().since_start;
        self.queue.apply_charges();
        for (owner, held) in self.engines.take_touched() {
            self.queue.set_held(owner, held, now);
        }
        for id in self.maps.take_changed() {
            self.update_map(id);
        }
        for (session, ready, bound) in self.requests.take_changed() {
            let lanes = [(LaneId::first(session).lane, ready), (LaneId::BOUND, bound)];
            for (lane, waiting) in lanes {
                let lane = LaneId { map: session, lane };
                let shape = || Shape {
                    runs: Runs::Message,
                    request: None,
                    limit_ms: None,
                    bound: (lane.lane == LaneId::BOUND).then_some(lane),
                };
                match waiting {
                    0 => self.queue.remove(lane),
                    _ => self.queue.insert(lane, 0, now, shape),
                }
            }
        }
    }

    fn update_map(&mut self, id: MapId) {
        let Some(map) = self.maps.get(id) else {
            return self.queue.remove_all(id);
        };
        if map.targets().is_some() {
            match map.request() {
                _ if !map.has_ready() => {}
                Some(_) => drop(self.bound_maps.insert(id)),
                None => self.dispatch_targeted(id),
            }
            return;
        }
        self.queue.set_priority(id, map.priority());
        let each_s = map.mean().seconds().unwrap_or(UNKNOWN_S);
        self.queue.set_ahead(id, map.cpus(), each_s * map.all_in_flight().len() as f64);
        for lane in 0..map.lanes() {
            let lane = LaneId { map: id, lane };
            let shape = || {
                let (request, limit_s) = map.needs_in(lane.lane);
                Shape {
                    runs: if map.is_command() { Runs::Command } else { Runs::Python },
                    request,
                    limit_ms: limit_s.map(|limit| (limit * 1000.0) as u64),
                    bound: None,
                }
            };
            match map.ready_in(lane.lane) {
                0 => self.queue.remove(lane),
                _ => self.queue.insert(lane, map.priority(), self.out.now().since_start, shape),
            }
        }
    }
}
