//! The table of engines: registration, liveness and load.
//!
//! An engine is connected (seen recently), away (disconnected or silent; it keeps its tasks until its lease expires), or
//! gone (not in this table). Every change keeps the load order up to date, so that no task requires a scan.
mod cores;
mod departures;
mod engine;
mod node;
mod nodes;
mod order;
mod placement;
mod why_not;

pub(super) use departures::{ANNOUNCE_AGAIN, Departures, ORPHAN_GRACE, announce};
pub(crate) use engine::Engine;
pub(crate) use why_not::{Claim, Failed, LaneId, MIN_TOLERANCE_US, Obstacle, Room, Runs, Unit, Wanted, WhyNot};

use super::outbox::{Outbox, Timer};
use crate::model::engine::{EngineFacts, EngineStatus};
use crate::model::resources::{Allocation, Request};
use crate::model::{EngineId, EngineUuid, MapId, UnixTime};
use crate::wire::content::engine as wire;
use engine::Eligibility;
use nodes::{NodeIndex, Nodes};
use order::Order;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

/// Recorded replies are acknowledged in batches after this delay,
const RECORDED_DELAY: Duration = Duration::from_millis(20);
/// or immediately for a reply of at least this size, since the engine keeps it until then.
const RECORDED_FLUSH_BYTES: usize = 1 << 20;
/// The maximum number of refused engines to remember.
const MAX_REFUSED: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Engines {
    by_uuid: HashMap<EngineUuid, Engine>,
    by_id: BTreeMap<EngineId, EngineUuid>,
    /// Engines that may take any work.
    any_work: Order,
    /// Engines without a working Python: they may take commands.
    commands_only: Order,
    /// The number of pcluster engines that may take any work.
    native_free: u32,
    turns: u64,
    /// An engine's load decreased, or it may take work again.
    freed: bool,
    /// Processors that each map's tasks, and each session's requests, hold; those that changed.
    held: HashMap<MapId, u32>,
    touched: Vec<MapId>,
    /// Engines that hold tasks, and fewer than before.
    with_room: Vec<EngineUuid>,
    next_id: u32,
    nodes: Nodes,
    /// Engines with a share of their node, by the lane that it is for and by load.
    shared: BTreeMap<LaneId, BTreeSet<(u32, EngineUuid)>>,
    /// Lanes that wait, in the order of the last round: other lanes must not refill engines that could take their tasks.
    wanted: Vec<Wanted>,
    /// `ipengine`s that requested registration and have not answered a ping yet.
    incoming: HashMap<EngineUuid, EngineId>,
    /// Engines that violated the protocol, with the reason: they are not registered again.
    refused: HashMap<EngineUuid, String>,
    /// Engines with pending acknowledgements: results on disk, finished maps.
    unsettled: BTreeSet<EngineUuid>,
    /// Recorded replies that are not acknowledged yet.
    recorded_replies: HashMap<EngineUuid, Vec<String>>,
}

/// Engines may request ids below this.
const MAX_REQUESTED_ID: u32 = 1 << 31;

impl Engines {
    pub(crate) fn get(&self, uuid: &EngineUuid) -> Option<&Engine> {
        self.by_uuid.get(uuid)
    }
    pub(crate) fn uuid_of(&self, id: EngineId) -> Option<&EngineUuid> {
        self.by_id.get(&id)
    }
    pub(crate) fn by_id(&self, id: EngineId) -> Option<&Engine> {
        self.by_uuid.get(self.by_id.get(&id)?)
    }
    /// By ascending id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&EngineUuid, &Engine)> {
        self.by_id.values().filter_map(|uuid| Some((uuid, self.by_uuid.get(uuid)?)))
    }
    pub(crate) fn count(&self) -> usize {
        self.by_uuid.len()
    }

    /// Changes an engine, and updates the load order and what its node has in use.
    pub(crate) fn change<T>(&mut self, uuid: &EngineUuid, change: impl FnOnce(&mut Engine) -> T) -> Option<T> {
        let engine = self.by_uuid.get_mut(uuid)?;
        let (before, may) = (engine.place(), engine.eligibility());
        let (was_busy, was_free) = (engine.uses_one_cpu(), engine.is_free_for_share());
        let result = change(engine);
        for (map, cpus) in engine.take_holder_changes() {
            let held = self.held.entry(map).or_default();
            *held = held.saturating_add_signed(cpus);
            self.touched.push(map);
        }
        let node = engine.node();
        let mut gained = false;
        if let Some(share) = engine.take_unused_share() {
            self.nodes.give_back(node, &share);
            remove_from(&mut self.shared, share.lane, (before.load, uuid));
            gained = true;
        }
        let is_busy = engine.uses_one_cpu();
        if is_busy != was_busy {
            self.nodes.set_busy(node, is_busy);
        }
        let is_free = engine.is_free_for_share();
        if is_free != was_free {
            self.nodes.set_free(node, uuid, is_free);
        }
        let (load, may_now) = (engine.load(), engine.eligibility());
        if (load, may_now) != (before.load, may) {
            let gives = may_now == Some(Eligibility::Any) && (load < before.load || may != Some(Eligibility::Any));
            gained |= gives;
            if load > before.load {
                // To the end of the queue of equally loaded engines.
                self.turns += 1;
                engine.set_turn(self.turns);
            }
            let orders = (&mut self.any_work, &mut self.commands_only);
            if let Some(order) = order_of(may, orders) {
                order.remove(before, uuid);
            }
            let orders = (&mut self.any_work, &mut self.commands_only);
            if let Some(order) = order_of(may_now, orders) {
                order.insert(engine.place(), uuid);
            }
            if let Some(share) = engine.share().filter(|_| load != before.load)
                && let Some(engines) = self.shared.get_mut(&share.lane)
            {
                engines.remove(&(before.load, uuid.clone()));
                engines.insert((load, uuid.clone()));
            }
        }
        if engine.is_native() {
            let counts = |may: Option<Eligibility>| u32::from(may == Some(Eligibility::Any));
            self.native_free = self.native_free + counts(may_now) - counts(may);
        }
        if gained {
            if engine.load() > 0 {
                self.with_room.push(uuid.clone());
            }
            self.freed = true;
            self.nodes.note_gain(node);
        }
        if may_now != may {
            self.nodes.note_change(node);
        }
        self.sync_node(node);
        Some(result)
    }

    /// Takes idle engines out of the load order while their node has no processor for them.
    fn sync_node(&mut self, node: NodeIndex) {
        let is_blocked = self.nodes.is_blocking(node);
        self.any_work.set_blocked(node, is_blocked);
        self.commands_only.set_blocked(node, is_blocked);
    }

    /// Engines that hold tasks, and fewer than at the last call.
    pub(crate) fn take_with_room(&mut self) -> Vec<EngineUuid> {
        std::mem::take(&mut self.with_room)
    }

    /// The owners of tasks whose number of processors changed since the last call, with what they hold now.
    pub(crate) fn take_touched(&mut self) -> Vec<(MapId, u32)> {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        let mut now = Vec::with_capacity(touched.len());
        for map in touched {
            let held = self.held.get(&map).copied().unwrap_or_default();
            if held == 0 {
                self.held.remove(&map);
            }
            now.push((map, held));
        }
        now
    }

    /// Chooses the id of a new engine: the requested one if free, else the next. Ids are never reused.
    pub(crate) fn choose_id(&mut self, requested: Option<EngineId>) -> EngineId {
        // A huge id would leave no ids for other engines.
        let is_free = |id: &EngineId| !self.by_id.contains_key(id) && !self.incoming.values().any(|promised| promised == id);
        let sensible = |id: &EngineId| id.0 < MAX_REQUESTED_ID && is_free(id);
        let id = requested.filter(sensible).unwrap_or(EngineId(self.next_id));
        self.next_id = self.next_id.max(id.0.saturating_add(1));
        id
    }

    pub(crate) fn restore_next_id(&mut self, next: u32) {
        self.next_id = next;
    }

    // ---- registration

    pub(crate) fn is_incoming(&self, uuid: &EngineUuid) -> bool {
        self.incoming.contains_key(uuid)
    }
    /// Promises an id to an `ipengine`, which has to answer a ping first.
    pub(crate) fn promise_id(&mut self, uuid: EngineUuid, requested: Option<EngineId>) -> EngineId {
        let id = self.choose_id(requested);
        self.incoming.insert(uuid, id);
        id
    }
    /// Ends the registration of an `ipengine`, if there is one; returns its id.
    pub(crate) fn end_registration(&mut self, uuid: &EngineUuid) -> Option<EngineId> {
        self.incoming.remove(uuid)
    }
    /// True if an `ipengine` waits for a ping.
    pub(crate) fn needs_ping(&self) -> bool {
        !self.incoming.is_empty() || self.iter().any(|(_, e)| !e.is_native())
    }
    pub(crate) fn refuse(&mut self, uuid: &EngineUuid, why: &str) {
        if self.refused.len() < MAX_REFUSED {
            self.refused.insert(uuid.clone(), why.to_string());
        }
    }
    /// Why this engine was refused, if it was.
    pub(crate) fn refusal(&self, uuid: &EngineUuid) -> Option<&String> {
        self.refused.get(uuid)
    }

    // ---- acknowledgements

    /// Acknowledges recorded results, with the next batch if the engine can wait for it.
    pub(super) fn acknowledge(&mut self, uuid: &EngineUuid, sequence: u64, out: &mut Outbox) {
        match self.change(uuid, |e| e.record_results(sequence)) {
            Some(true) => {
                self.unsettled.insert(uuid.clone());
            }
            _ => self.send_settled(uuid, out),
        }
    }

    /// Notes that a map which the engine may know is finished.
    pub(super) fn forget_map(&mut self, uuid: EngineUuid, map: MapId) {
        if self.change(&uuid, |e| e.forget_definition(map)) == Some(true) {
            self.unsettled.insert(uuid);
        }
    }

    /// Sends deferred acknowledgements: many results and maps in one message.
    pub(super) fn flush_settled(&mut self, out: &mut Outbox) {
        for uuid in std::mem::take(&mut self.unsettled) {
            self.send_settled(&uuid, out);
        }
    }

    fn send_settled(&mut self, uuid: &EngineUuid, out: &mut Outbox) {
        let lists = self.change(uuid, |e| (e.supports_joined(), e.take_acknowledgements()));
        match lists {
            Some((true, (recorded, forget))) if recorded.is_empty() && forget.is_empty() => {}
            Some((true, (recorded, forget))) => out.send_to_engine(uuid, wire::SETTLED, &wire::Settled { recorded, forget }),
            Some((false, (recorded, forget))) => {
                for sequence in recorded {
                    out.send_to_engine(uuid, wire::RECORDED, &wire::Recorded { sequence });
                }
                for map in forget {
                    out.send_to_engine(uuid, wire::FORGET, &wire::Forget { map });
                }
            }
            None => {}
        }
    }

    /// Schedules the acknowledgement of a recorded reply; the engine keeps the reply until then.
    pub(super) fn acknowledge_reply(&mut self, uuid: &EngineUuid, msg_id: String, bytes: usize, out: &mut Outbox) {
        let waiting = self.recorded_replies.entry(uuid.clone()).or_default();
        waiting.push(msg_id);
        let is_first = waiting.len() == 1;
        if bytes >= RECORDED_FLUSH_BYTES {
            self.send_replies_recorded(uuid, out);
        } else if is_first {
            out.set_timer(RECORDED_DELAY, Timer::RepliesRecorded(uuid.clone()));
        }
    }

    pub(super) fn send_replies_recorded(&mut self, uuid: &EngineUuid, out: &mut Outbox) {
        if let Some(msg_ids) = self.recorded_replies.remove(uuid) {
            out.send_to_engine(uuid, wire::REPLIES_RECORDED, &wire::RepliesRecorded { msg_ids });
        }
    }

    // ---- the table

    pub(crate) fn add(&mut self, id: EngineId, facts: EngineFacts, registered: UnixTime, now: Duration) {
        let uuid = facts.uuid.clone();
        self.turns += 1;
        let node = self.nodes.join(&facts);
        let mut engine = Engine::new(id, facts, node, registered, now);
        engine.set_turn(self.turns);
        let orders = (&mut self.any_work, &mut self.commands_only);
        if let Some(order) = order_of(engine.eligibility(), orders) {
            order.insert(engine.place(), &uuid);
        }
        self.native_free += u32::from(engine.is_native());
        self.by_id.insert(id, uuid.clone());
        self.by_uuid.insert(uuid, engine);
        self.freed = true;
        self.sync_node(node);
    }

    pub(crate) fn remove(&mut self, uuid: &EngineUuid) -> Option<Engine> {
        let engine = self.by_uuid.remove(uuid)?;
        let orders = (&mut self.any_work, &mut self.commands_only);
        if let Some(order) = order_of(engine.eligibility(), orders) {
            order.remove(engine.place(), uuid);
        }
        self.native_free -= u32::from(engine.is_native() && engine.eligibility() == Some(Eligibility::Any));
        self.by_id.remove(&engine.id());
        for (map, cpus) in engine.holders() {
            let held = self.held.entry(map).or_default();
            *held = held.saturating_sub(cpus);
            self.touched.push(map);
        }
        if engine.uses_one_cpu() {
            self.nodes.set_busy(engine.node(), false);
        }
        if let Some(share) = engine.share() {
            self.nodes.give_back(engine.node(), share);
            remove_from(&mut self.shared, share.lane, (engine.load(), uuid));
        }
        self.nodes.leave(engine.node(), uuid);
        self.sync_node(engine.node());
        Some(engine)
    }

    /// Returns true if an engine gained capacity since the last call.
    pub(crate) fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    /// Engines that may take any work, least loaded first; those of a node that can begin no task only if they hold some.
    pub(crate) fn by_load(&self) -> impl Iterator<Item = (&EngineUuid, &Engine)> {
        self.idle()
            .chain(self.any_work.loaded().filter_map(|uuid| self.by_uuid.get_key_value(uuid)))
    }
    /// The idle ones of these.
    pub(crate) fn idle(&self) -> impl Iterator<Item = (&EngineUuid, &Engine)> {
        let idle = self.any_work.idle_nodes().flat_map(|(_, engines)| engines);
        idle.filter_map(|uuid| self.by_uuid.get_key_value(uuid))
    }
    /// Engines that may take any work and hold more than the task that they run, most loaded first.
    pub(crate) fn with_queue(&self) -> impl Iterator<Item = (&EngineUuid, &Engine)> {
        let loaded = self.any_work.loaded().rev().filter_map(|uuid| self.by_uuid.get_key_value(uuid));
        loaded.take_while(|(_, e)| e.load() >= 2)
    }

    /// What this engine gives to tasks of this map; None for one processor.
    pub(crate) fn allocation(&self, uuid: &EngineUuid, map: MapId) -> Option<Allocation> {
        let engine = self.by_uuid.get(uuid)?;
        let share = engine.share().filter(|share| share.lane.map == map)?;
        Some(self.nodes.allocation(engine.node(), share))
    }

    /// After a restart: the engine holds tasks of a map that has resources, and will report which.
    pub(crate) fn await_share(&mut self, uuid: &EngineUuid) {
        if let Some(node) = self.by_uuid.get(uuid).map(Engine::node) {
            self.nodes.await_share(node, uuid);
            self.sync_node(node);
        }
    }

    /// Notes the share that a reconnected engine reports for a lane whose tasks it holds.
    pub(crate) fn restore_share(&mut self, uuid: &EngineUuid, held: Option<(LaneId, &Request, &Allocation)>) {
        let Some(engine) = self.by_uuid.get(uuid) else { return };
        let node = engine.node();
        self.nodes.end_wait(node, uuid);
        let held = held.filter(|_| engine.share().is_none());
        let share = held.and_then(|(lane, request, allocation)| self.nodes.take_again(node, lane, request, allocation));
        if let Some(share) = share {
            self.shared.entry(share.lane).or_default().insert((engine.load(), uuid.clone()));
            self.change(uuid, |e| {
                e.set_share(share);
                e.note_share_in_use();
            });
        }
        // Without a task of that lane it is not needed any more.
        self.change(uuid, |_| ());
        self.sync_node(node);
    }

    /// The engine, with what its node has by the latest report of an engine there.
    pub(crate) fn status(&self, engine: &Engine) -> EngineStatus {
        let mut status = engine.status();
        if let Some(has) = self.nodes.has(engine.node()) {
            status.facts.node = has.clone();
        }
        status
    }

    /// What is free of this engine's node, in words.
    pub(crate) fn node_free(&self, engine: &Engine) -> String {
        self.nodes.free(engine.node())
    }

    /// Whether this engine's node could run such a task if it ran nothing else.
    pub(crate) fn could_run(&self, engine: &Engine, request: &Request) -> bool {
        self.nodes.could_run_on(engine.node(), request)
    }

    pub(crate) fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// The number of pcluster engines that may take such a task.
    pub(crate) fn free(&self, is_command: bool) -> u32 {
        self.native_free + if is_command { self.commands_only.count() as u32 } else { 0 }
    }

    /// Checks the invariants of the table; for tests and debug builds.
    pub(crate) fn check(&self) {
        assert_eq!(self.by_id.len(), self.by_uuid.len());
        for (uuid, engine) in &self.by_uuid {
            assert_eq!(self.by_id.get(&engine.id()), Some(uuid));
            for (order, of) in [(&self.any_work, Eligibility::Any), (&self.commands_only, Eligibility::CommandsOnly)] {
                let is_listed = order.contains(engine.place(), uuid);
                assert_eq!(is_listed, engine.eligibility() == Some(of), "{uuid} among engines for {of:?}");
            }
        }
        for (uuid, engine) in &self.by_uuid {
            let is_shared = engine.share().map(|share| {
                self.shared
                    .get(&share.lane)
                    .is_some_and(|engines| engines.contains(&(engine.load(), uuid.clone())))
            });
            assert!(is_shared != Some(false), "{uuid} is listed with its share");
        }
        self.nodes.check(self.by_uuid.values());
        for order in [&self.any_work, &self.commands_only] {
            order.check(|node| self.nodes.is_blocking(node));
        }
        assert!(self.any_work.count() + self.commands_only.count() <= self.by_uuid.len());
        let native_free = |e: &&Engine| e.is_native() && e.eligibility() == Some(Eligibility::Any);
        assert_eq!(self.native_free as usize, self.by_uuid.values().filter(native_free).count());
    }
}

fn order_of<'a>(may: Option<Eligibility>, (any_work, commands_only): (&'a mut Order, &'a mut Order)) -> Option<&'a mut Order> {
    match may? {
        Eligibility::Any => Some(any_work),
        Eligibility::CommandsOnly => Some(commands_only),
    }
}

fn remove_from(shared: &mut BTreeMap<LaneId, BTreeSet<(u32, EngineUuid)>>, lane: LaneId, (load, uuid): (u32, &EngineUuid)) {
    if let Some(engines) = shared.get_mut(&lane) {
        engines.remove(&(load, uuid.clone()));
        if engines.is_empty() {
            shared.remove(&lane);
        }
    }
}
