//! Which engine takes a task. [`Engines::why_not`] decides for one engine, and is what explanations quote.
use super::super::event::EventTime;
use super::nodes::{NodeIndex, Reservation};
use super::order::Order;
use super::why_not::Obstacle;
use super::{Engine, Engines, Failed, Runs, Unit, Wanted, WhyNot};
use crate::model::EngineUuid;
use crate::model::resources::Request;
use std::time::Duration;

/// Engines with tasks that are considered for more, least loaded first.
const MAX_LOADED: usize = 8;

impl Wanted {
    /// Whether this engine could take such a task, if it became idle.
    fn could_use(&self, engine: &Engine, now: EventTime) -> bool {
        let is_among = self.engines.as_ref().is_none_or(|engines| engines.contains(&engine.facts().uuid));
        is_among && engine.why_never(self.unit.runs).is_none() && engine.has_time_for(self.unit.limit_s, now.unix)
    }
}

impl Engines {
    /// Why this engine cannot take such a task now; None if it can.
    pub(crate) fn why_not(&self, engine: &Engine, unit: &Unit, now: EventTime) -> Option<WhyNot> {
        if let Some(why) = engine.why_never(unit.runs) {
            return Some(why);
        }
        if !engine.has_time_for(unit.limit_s, now.unix) {
            return engine.facts().ends.map(|ends| WhyNot::EndsTooSoon { ends });
        }
        let has_room = unit.room.admits(engine.load(), engine.holds_only_quick());
        let busy = WhyNot::Busy { load: engine.load() };
        let lane = unit.lane;
        match (engine.share(), &unit.request) {
            (Some(share), Some(_)) if share.lane == lane => match has_room {
                true => self
                    .wanted_by(engine, unit, now)
                    .or_else(|| self.nodes.keeps_from_refill(engine.node(), Some(share), unit)),
                false => Some(busy),
            },
            (Some(share), _) => Some(WhyNot::Dedicated { map: share.lane.map }),
            (None, Some(_)) if engine.load() > 0 => Some(busy),
            (None, Some(request)) => {
                let in_node = self.why_not_there(engine.node(), request, unit, now);
                in_node.or_else(|| self.nodes.lacks_cores(engine, request))
            }
            (None, None) if engine.load() > 0 => {
                let in_node = self.nodes.obstacle_to_one_cpu(engine.node(), false).map(WhyNot::Node);
                let may_queue = unit.runs == Runs::Message || engine.holds_only(lane.map) || engine.is_free_soon(now.since_start);
                in_node
                    .or_else(|| (!has_room || !may_queue).then_some(busy))
                    .or_else(|| self.nodes.keeps_from_refill(engine.node(), None, unit))
                    .or_else(|| self.wanted_by(engine, unit, now))
            }
            (None, None) => {
                let in_node = self.nodes.obstacle_to_one_cpu(engine.node(), true).map(WhyNot::Node);
                in_node.or_else(|| self.reserved_there(engine.node(), &Request::default(), unit, now))
            }
        }
    }

    /// Why this node has nothing for a task that gets a share of it.
    fn why_not_there(&self, node: usize, request: &Request, unit: &Unit, now: EventTime) -> Option<WhyNot> {
        let obstacle = self.nodes.obstacle(node, request).map(WhyNot::Node);
        obstacle.or_else(|| self.reserved_there(node, request, unit, now))
    }

    /// The lane that comes first and has a reservation which these resources would delay. Tasks that are known to end before
    /// it can start do not.
    fn reserved_there(&self, node: usize, taken: &Request, unit: &Unit, now: EventTime) -> Option<WhyNot> {
        let mut delayed = self.nodes.delayed_reservations(node, taken, unit);
        let ends = unit
            .known_s
            .and_then(|s| Duration::try_from_secs_f64(s).ok())
            .map(|takes| now.since_start + takes);
        let ends_before = |reserved: &Reservation| ends.zip(reserved.starts).is_some_and(|(ends, starts)| ends <= starts);
        let holder = delayed.find(|reservation| !ends_before(reservation))?;
        Some(WhyNot::Reserved { map: holder.lane.map })
    }

    /// When such a task could start on this node, as far as the durations of what runs there are known.
    fn start_on(&self, node: usize, request: &Request, now: Duration) -> Option<Duration> {
        let here = self
            .nodes
            .engines(node)
            .filter_map(|uuid| self.by_uuid.get(uuid))
            .filter(|e| e.load() > 0);
        let mut ends: Vec<(Option<Duration>, &Engine)> = here.map(|e| (e.expected_end(now), e)).collect();
        ends.sort_by_key(|(end, _)| end.unwrap_or(Duration::MAX));
        let ends = ends.into_iter().map(|(end, e)| (end, e.share(), e.uses_one_cpu()));
        self.nodes.start_on(node, request, ends)
    }

    /// The lane that comes first and could use this engine, if it became idle.
    fn wanted_by(&self, engine: &Engine, unit: &Unit, now: EventTime) -> Option<WhyNot> {
        let before = self.wanted.iter().take_while(|wanted| wanted.unit.lane != unit.lane);
        let before = before.filter(|wanted| wanted.unit.claim.outweighs(wanted.unit.cpus(), &unit.claim));
        let mut before = before.filter(|wanted| wanted.could_use(engine, now));
        before.next().map(|wanted| WhyNot::Wanted { map: wanted.unit.lane.map })
    }

    /// Whether lanes with a higher priority wait for this engine, or its node. They come first in every round.
    pub(crate) fn is_wanted_above(&self, priority: i32, engine: &Engine, now: EventTime) -> bool {
        let mut wanted = self.wanted.iter().filter(|wanted| wanted.unit.claim.priority > priority);
        wanted.any(|wanted| wanted.could_use(engine, now)) || self.nodes.is_reserved_above(priority, engine.node(), engine.share())
    }

    // ---- a round, in which lanes come in their order

    pub(crate) fn begin_round(&mut self) {
        self.wanted.clear();
        self.nodes.begin_round();
    }

    pub(crate) fn has_reservations(&self) -> bool {
        self.nodes.has_reservations()
    }

    /// The highest priority of the lanes that wait for an engine or a node.
    pub(crate) fn highest_waiting(&self) -> Option<i32> {
        let wanted = self.wanted.iter().map(|wanted| wanted.unit.claim.priority);
        wanted.chain(self.nodes.reserved_priorities()).max()
    }

    /// Notes that this task waits for an engine.
    pub(crate) fn want(&mut self, wanted: Wanted) {
        self.wanted.push(wanted);
    }

    /// The least loaded engine that may take such a task, which needs no more than an engine: an idle one, or one of the first
    /// that hold tasks.
    pub(crate) fn choose(&self, unit: &Unit, now: EventTime) -> Option<EngineUuid> {
        let any = self.choose_from(&self.any_work, unit, now);
        let limited = (unit.runs == Runs::Command).then(|| self.choose_from(&self.commands_only, unit, now));
        let least = [any, limited.flatten()].into_iter().flatten().min_by_key(|e| (e.load(), e.turn()));
        least.map(|engine| engine.facts().uuid.clone())
    }

    fn choose_from(&self, order: &Order, unit: &Unit, now: EventTime) -> Option<&Engine> {
        let may = |e: &&Engine| e.is_native() && self.why_not(e, unit, now).is_none();
        let engine = |uuid: &EngineUuid| self.by_uuid.get(uuid);
        let is_free = |node: NodeIndex| self.reserved_there(node, &Request::default(), unit, now).is_none();
        let mut idle = order.idle_nodes().filter(|(node, _)| is_free(*node));
        idle.find_map(|(_, engines)| engines.filter_map(engine).find(may)).or_else(|| {
            let loaded = order.loaded().filter_map(engine).filter(|e| e.is_native());
            let with_room = loaded.take_while(|e| unit.room.admits(e.load(), false));
            with_room.take(MAX_LOADED).find(may)
        })
    }

    /// An engine for tasks that get a share of their node: an idle one, which gets it, on a node that has gained since the
    /// last attempt, else one that has a share for this lane.
    pub(crate) fn choose_with_share(&mut self, unit: &Unit, request: &Request, failed_at: u64, now: EventTime) -> Option<EngineUuid> {
        let may = |uuid: &&EngineUuid| self.by_uuid.get(*uuid).is_some_and(|e| self.why_not(e, unit, now).is_none());
        let mut nodes = self
            .nodes
            .worth_a_look(failed_at)
            .filter(|node| self.why_not_there(*node, request, unit, now).is_none());
        let chosen = nodes.find_map(|node| Some((node, self.nodes.free_engines(node).find(may)?.clone())));
        drop(nodes);
        if let Some((node, uuid)) = chosen {
            let of_engine = &self.by_uuid.get(&uuid)?.facts().node.cores;
            let share = self.nodes.take(node, unit.lane, request, of_engine)?;
            self.shared.entry(unit.lane).or_default().insert((0, uuid.clone()));
            self.change(&uuid, |e| e.set_share(share));
            return Some(uuid);
        }
        let own = self.shared.get(&unit.lane)?.iter();
        let mut own = own.take_while(|(load, _)| unit.room.admits(*load, false)).map(|(_, uuid)| uuid);
        own.find(may).cloned()
    }

    /// Gives this engine a share for a task that may run on no other. Returns false if that has to wait.
    pub(crate) fn take_share(&mut self, uuid: &EngineUuid, unit: &Unit, request: &Request, now: EventTime) -> bool {
        let engine = self.by_uuid.get(uuid).filter(|e| self.why_not(e, unit, now).is_none());
        let Some(engine) = engine else { return false };
        if engine.share().is_some() {
            return true;
        }
        let Some(share) = self.nodes.take(engine.node(), unit.lane, request, &engine.facts().node.cores) else {
            return false;
        };
        self.shared.entry(unit.lane).or_default().insert((0, uuid.clone()));
        self.change(uuid, |e| e.set_share(share)).is_some()
    }

    /// Reserves what such a task needs of the node of its engine, against all others.
    pub(crate) fn reserve_for(&mut self, uuid: &EngineUuid, unit: &Unit, request: &Request) {
        if let Some(engine) = self.by_uuid.get(uuid).filter(|_| self.nodes.may_reserve()) {
            let mut unit = unit.clone();
            unit.claim.is_binding = true;
            self.nodes.reserve(engine.node(), &unit, request, None);
        }
    }

    /// Whether the node of this engine could run such a task if it ran nothing else.
    pub(crate) fn could_run_there(&self, uuid: &EngineUuid, request: &Request) -> bool {
        let engine = self.by_uuid.get(uuid);
        engine.is_some_and(|e| self.nodes.obstacle(e.node(), request) != Some(Obstacle::TooSmall))
    }

    /// Lets nodes run empty for tasks that could not be placed: lanes after them leave what they need there. They are the same
    /// nodes as in the last round if those can still run them. Only nodes with an engine that could take one once idle are
    /// considered.
    pub(crate) fn reserve(&mut self, unit: &Unit, request: &Request, nodes: usize, failed: Failed, now: EventTime) -> Failed {
        let at = self.nodes.read_clock();
        if failed.hopeless_at.is_some_and(|hopeless_at| hopeless_at == self.nodes.changed()) {
            return Failed { at, ..failed };
        }
        let mut last = failed.reserved;
        let mut reserved = Vec::new();
        while reserved.len() < nodes {
            let could = |uuid: &EngineUuid| {
                let engine = self.by_uuid.get(uuid);
                engine.is_some_and(|e| e.why_never(unit.runs).is_none() && e.has_time_for(unit.limit_s, now.unix))
            };
            let Some(node) = self.nodes.choose_to_reserve(request, &mut last, &reserved, could) else {
                break;
            };
            let known = self.nodes.known_start(node, unit);
            let starts = known.unwrap_or_else(|| self.start_on(node, request, now.since_start));
            self.nodes.reserve(node, unit, request, starts);
            reserved.push(node);
        }
        let hopeless_at = (reserved.is_empty() && self.nodes.may_reserve()).then(|| self.nodes.changed());
        Failed { at, reserved, hopeless_at }
    }
}
