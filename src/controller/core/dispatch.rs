//! Assigns what waits to engines, lane by lane in the order of the queue. Maps with targets come first: their tasks go to
//! their engines at once, or as soon as these have what they need.
use super::Core;
use super::engines::{LaneId, Runs};
use super::scheduler::Shape;
use crate::model::MapId;

impl Core {
    /// Sends all that can be sent.
    pub(super) fn dispatch(&mut self) {
        let recheck = self.requests.take_recheck();
        let freed = self.engines.take_freed() && self.requests.has_bound();
        self.update_queue();
        self.engines.begin_round();
        self.dispatch_bound_maps();
        let mut after = None;
        while let Some((place, shape)) = self.queue.next(after) {
            let lane = place.lane();
            let was_sent = match self.maps.is_open(lane.map) {
                true => self.send_from_map(lane, shape),
                false if lane.lane == LaneId::BOUND => self.send_bound(lane, recheck || freed),
                false => self.send_from_session(lane),
            };
            match was_sent {
                true => {
                    self.queue.serve(lane.map);
                    self.update_queue();
                }
                false => after = Some(place),
            }
        }
        self.level_queues();
    }

    /// Brings the queue up to date with maps, sessions, and what engines hold of them.
    fn update_queue(&mut self) {
        for (owner, held) in self.engines.take_touched() {
            self.queue.set_held(owner, held);
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
                    _ => self.queue.insert(lane, 0, shape),
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
                _ => self.queue.insert(lane, map.priority(), shape),
            }
        }
    }
}
