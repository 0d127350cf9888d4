//! The table of engines: registration, liveness and load.
//!
//! An engine is connected (seen recently), away (disconnected or silent; it keeps its tasks until its lease expires), or
//! gone (not in this table). Every change keeps the load order up to date, so that no task requires a scan.
mod cores;
mod departures;
mod engine;
mod nodes;
mod why_not;

pub(super) use departures::{ANNOUNCE_AGAIN, Departures, ORPHAN_GRACE, announce};
pub(crate) use engine::Engine;
pub(crate) use why_not::{Obstacle, Room, Runs, Unit, WhyNot};

use super::outbox::{Outbox, Timer};
use crate::model::engine::{EngineFacts, EngineStatus};
use crate::model::resources::{Allocation, Request};
use crate::model::{EngineId, EngineUuid, MapId, UnixTime};
use crate::wire::content::engine as wire;
use engine::Eligibility;
use nodes::Nodes;
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
    /// Engines that may take any work, by load, then by waiting time.
    by_load: BTreeSet<(u32, u64, EngineUuid)>,
    /// The same for engines without a working Python: they may take commands.
    commands_only: BTreeSet<(u32, u64, EngineUuid)>,
    /// The number of pcluster engines in `by_load`.
    native_free: u32,
    turns: u64,
    /// An engine's load decreased, or it may take work again.
    freed: bool,
    next_id: u32,
    nodes: Nodes,
    /// Engines with a share of their node, by the map that it is for.
    shared: BTreeMap<MapId, BTreeSet<EngineUuid>>,
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

    /// Changes an engine and updates the load order.
    pub(crate) fn change<T>(&mut self, uuid: &EngineUuid, change: impl FnOnce(&mut Engine) -> T) -> Option<T> {
        let engine = self.by_uuid.get_mut(uuid)?;
        let (load, turn, order, was_busy) = (engine.load(), engine.turn(), engine.eligibility(), engine.uses_one_cpu());
        let result = change(engine);
        if let Some(share) = engine.take_unused_share() {
            self.nodes.give_back(engine.node(), &share);
            remove_from(&mut self.shared, share.map, uuid);
            self.freed = true;
        }
        let is_busy = engine.uses_one_cpu();
        if is_busy != was_busy {
            self.nodes.set_busy(engine.node(), is_busy);
        }
        let (new_load, new_order) = (engine.load(), engine.eligibility());
        if (new_load, new_order) != (load, order) {
            let (was_free, is_free) = (order == Some(Eligibility::Any), new_order == Some(Eligibility::Any));
            self.freed |= is_free && (new_load < load || !was_free);
            match order {
                Some(Eligibility::Any) => self.by_load.remove(&(load, turn, uuid.clone())),
                Some(Eligibility::CommandsOnly) => self.commands_only.remove(&(load, turn, uuid.clone())),
                None => false,
            };
            if engine.is_native() {
                self.native_free = self.native_free + u32::from(is_free) - u32::from(was_free);
            }
            if new_load > load {
                // To the end of the queue of equally loaded engines.
                self.turns += 1;
                engine.set_turn(self.turns);
            }
            match new_order {
                Some(Eligibility::Any) => self.by_load.insert((new_load, engine.turn(), uuid.clone())),
                Some(Eligibility::CommandsOnly) => self.commands_only.insert((new_load, engine.turn(), uuid.clone())),
                None => false,
            };
        }
        Some(result)
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
        self.by_load.insert((0, engine.turn(), uuid.clone()));
        self.native_free += u32::from(engine.is_native());
        self.by_id.insert(id, uuid.clone());
        self.by_uuid.insert(uuid, engine);
    }

    pub(crate) fn remove(&mut self, uuid: &EngineUuid) -> Option<Engine> {
        let engine = self.by_uuid.remove(uuid)?;
        let key = (engine.load(), engine.turn(), uuid.clone());
        if self.by_load.remove(&key) {
            self.native_free -= u32::from(engine.is_native());
        }
        self.commands_only.remove(&key);
        self.by_id.remove(&engine.id());
        if engine.uses_one_cpu() {
            self.nodes.set_busy(engine.node(), false);
        }
        if let Some(share) = engine.share() {
            self.nodes.give_back(engine.node(), share);
            remove_from(&mut self.shared, share.map, uuid);
        }
        self.nodes.leave(engine.node(), uuid);
        Some(engine)
    }

    /// Returns true if an engine gained capacity since the last call.
    pub(crate) fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    /// Engines that may take any work, least loaded first.
    pub(crate) fn by_load(&self) -> impl DoubleEndedIterator<Item = (&EngineUuid, &Engine)> {
        self.by_load.iter().filter_map(|(_, _, uuid)| Some((uuid, self.by_uuid.get(uuid)?)))
    }

    /// The least loaded pcluster engine that may take a task of this map: a command, or one that needs Python. Engines that
    /// have a share of their node, for another map, are not among them.
    pub(crate) fn least_loaded(&self, map: MapId, is_command: bool) -> Option<(&EngineUuid, &Engine)> {
        self.least_loaded_of(map, is_command, |_| true)
    }

    /// The same among the engines that `may` accept.
    pub(crate) fn least_loaded_of(&self, map: MapId, is_command: bool, may: impl Fn(&Engine) -> bool) -> Option<(&EngineUuid, &Engine)> {
        let may = |e: &Engine| self.admits(e, Some(map)) && may(e);
        let any = self.by_load().find(|(_, e)| e.is_native() && may(e));
        let limited = self.commands_only.iter().filter(|_| is_command);
        let mut limited = limited.filter_map(|(_, _, uuid)| Some((uuid, self.by_uuid.get(uuid)?)));
        let limited = limited.find(|(_, e)| may(e));
        any.into_iter().chain(limited).min_by_key(|(_, e)| (e.load(), e.turn()))
    }

    /// Whether the engine may take a task that needs one processor: of this map, or None for a request.
    pub(crate) fn admits(&self, engine: &Engine, map: Option<MapId>) -> bool {
        engine.share().is_none() && self.nodes.admits(engine.node(), engine.load() == 0, map)
    }

    /// Why this engine cannot take such a task now; None if it can.
    pub(crate) fn why_not(&self, engine: &Engine, unit: &Unit, now: UnixTime) -> Option<WhyNot> {
        if let Some(why) = engine.why_never(unit.runs) {
            return Some(why);
        }
        if !engine.has_time_for(unit.limit_s, now) {
            return engine.facts().ends.map(|ends| WhyNot::EndsTooSoon { ends });
        }
        let has_room = unit.room.admits(engine.load(), engine.holds_only_quick());
        let busy = WhyNot::Busy { load: engine.load() };
        match (engine.share(), &unit.request) {
            (Some(share), Some(_)) if share.map == unit.map => (!has_room).then_some(busy),
            (Some(share), _) => Some(WhyNot::Dedicated { map: share.map }),
            (None, Some(_)) if engine.load() > 0 => Some(busy),
            (None, request) => {
                let in_node = self.nodes.why_not(engine.node(), engine.load() == 0, unit.map, request.as_ref());
                let lacks_cores = || self.nodes.lacks_cores(engine, request.as_ref()?);
                in_node.or_else(lacks_cores).or_else(|| (!has_room).then_some(busy))
            }
        }
    }

    /// An engine for tasks that ask for more than one processor, with what it gives them. First idle ones, which get a share of
    /// their node; then, if `refill` finds room, those that have one for this map.
    pub(crate) fn place(
        &mut self,
        map: MapId,
        request: &Request,
        may: impl Fn(&Engine) -> bool,
        refill: impl Fn(&Engine) -> bool,
    ) -> Option<EngineUuid> {
        let idle = |uuid: &&EngineUuid| {
            self.by_uuid
                .get(*uuid)
                .is_some_and(|e| e.load() == 0 && e.share().is_none() && may(e) && self.nodes.lacks_cores(e, request).is_none())
        };
        let mut roomy = self
            .nodes
            .with_room(request)
            .filter(|(node, _)| self.nodes.leaves_reserved(*node, Some(map), request));
        let chosen = roomy.find_map(|(node, engines)| Some((node, engines.iter().find(idle)?.clone())));
        drop(roomy);
        if let Some((node, uuid)) = chosen {
            let engine = self.by_uuid.get_mut(&uuid)?;
            let share = self.nodes.take(node, map, request, &engine.facts().node.cores)?;
            engine.set_share(share);
            self.shared.entry(map).or_default().insert(uuid.clone());
            return Some(uuid);
        }
        let own = self.shared.get(&map)?.iter().filter_map(|uuid| self.by_uuid.get_key_value(uuid));
        let roomy = own.filter(|(_, e)| may(e) && refill(e));
        roomy.min_by_key(|(_, e)| e.load()).map(|(uuid, _)| uuid.clone())
    }

    /// What this engine gives to tasks of this map; None for one processor.
    pub(crate) fn allocation(&self, uuid: &EngineUuid, map: MapId) -> Option<Allocation> {
        let engine = self.by_uuid.get(uuid)?;
        let share = engine.share().filter(|share| share.map == map)?;
        Some(self.nodes.allocation(engine.node(), share))
    }

    /// After a restart: the engine holds tasks of a map that has resources, and will report which.
    pub(crate) fn await_share(&mut self, uuid: &EngineUuid) {
        if let Some(engine) = self.by_uuid.get(uuid) {
            self.nodes.await_share(engine.node(), uuid);
        }
    }

    /// Notes the share that a reconnected engine reports for a map whose tasks it holds.
    pub(crate) fn restore_share(&mut self, uuid: &EngineUuid, held: Option<(MapId, &Request, &Allocation)>) {
        let Some(engine) = self.by_uuid.get_mut(uuid) else { return };
        self.nodes.end_wait(engine.node(), uuid);
        let Some((map, request, allocation)) = held.filter(|_| engine.share().is_none()) else {
            return;
        };
        let was_busy = engine.uses_one_cpu();
        if let Some(share) = self.nodes.take_again(engine.node(), map, request, allocation) {
            engine.set_share(share);
            engine.note_share_in_use();
            self.shared.entry(map).or_default().insert(uuid.clone());
            if was_busy {
                self.nodes.set_busy(engine.node(), false);
            }
        }
        // Without a task of that map it is not needed any more.
        self.change(uuid, |_| ());
    }

    /// Begins a round of dispatching, in which maps come in their order.
    pub(crate) fn begin_round(&mut self) {
        self.nodes.begin_round();
    }

    /// Lets a node run empty for a map that waits: later maps of this round leave it alone.
    /// Only nodes with an engine that `may` run its tasks once it is idle are considered.
    pub(crate) fn reserve(&mut self, map: MapId, request: &Request, may: impl Fn(&Engine) -> bool) {
        let by_uuid = &self.by_uuid;
        self.nodes.reserve(map, request, |uuid| by_uuid.get(uuid).is_some_and(&may));
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
        self.native_free + if is_command { self.commands_only.len() as u32 } else { 0 }
    }

    /// Checks the invariants of the table; for tests and debug builds.
    pub(crate) fn check(&self) {
        assert_eq!(self.by_id.len(), self.by_uuid.len());
        for (uuid, engine) in &self.by_uuid {
            assert_eq!(self.by_id.get(&engine.id()), Some(uuid));
            let key = (engine.load(), engine.turn(), uuid.clone());
            assert_eq!(
                self.by_load.contains(&key),
                engine.eligibility() == Some(Eligibility::Any),
                "{uuid} in the load order"
            );
            assert_eq!(
                self.commands_only.contains(&key),
                engine.eligibility() == Some(Eligibility::CommandsOnly),
                "{uuid} among those for commands"
            );
        }
        for (uuid, engine) in &self.by_uuid {
            let is_shared = engine
                .share()
                .map(|share| self.shared.get(&share.map).is_some_and(|engines| engines.contains(uuid)));
            assert!(is_shared != Some(false), "{uuid} is listed with its share");
        }
        self.nodes.check(self.by_uuid.values());
        assert!(self.by_load.len() + self.commands_only.len() <= self.by_uuid.len());
        assert_eq!(self.native_free as usize, self.by_load().filter(|(_, e)| e.is_native()).count());
    }
}

fn remove_from(shared: &mut BTreeMap<MapId, BTreeSet<EngineUuid>>, map: MapId, uuid: &EngineUuid) {
    if let Some(engines) = shared.get_mut(&map) {
        engines.remove(uuid);
        if engines.is_empty() {
            shared.remove(&map);
        }
    }
}
