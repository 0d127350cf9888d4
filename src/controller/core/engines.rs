//! The table of engines: registration, liveness and load.
//!
//! An engine is connected (seen recently), away (disconnected or silent; it keeps its tasks until its lease expires), or
//! gone (not in this table). Every change keeps the load order up to date, so that no task requires a scan.
use crate::model::engine::EngineFacts;
use crate::model::{EngineId, EngineUuid, MapId, TaskId, UnixTime};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Engine {
    pub id: EngineId,
    pub facts: EngineFacts,
    pub native: bool,
    pub registered: UnixTime,
    /// Since the controller's start.
    pub last_seen: Duration,
    /// When the controller last answered its heartbeat.
    pub last_pong: Option<Duration>,
    /// When its lease expires and its tasks are reassigned, unless it is seen before.
    pub away_until: Option<Duration>,
    /// Map tasks assigned to it, with their run.
    pub tasks: HashMap<TaskId, u32>,
    /// Requests of ipyparallel clients assigned to it.
    pub requests: HashSet<String>,
    /// The subset of `requests` expected to be short.
    pub quick: HashSet<String>,
    /// Maps whose definition was sent to it.
    pub definitions: HashSet<MapId>,
    /// Hashes of the bundles it has, least recently used first.
    pub bundles: Vec<String>,
    /// It supports [`crate::wire::content::engine::Settled`] and the other combined messages.
    pub joined: bool,
    /// Acknowledgements to send in the next batch: recorded results; below, finished maps.
    pub recorded: Vec<u64>,
    pub to_forget: Vec<MapId>,
    pub finished: u64,
    /// Its assigned tasks are uncertain (the controller restarted, or the connection broke): it must register again.
    pub uncertain: bool,
    /// A `give_back` request is outstanding.
    pub recall_pending: bool,
    /// It was asked to return tasks because its queue made no progress, and has finished none since.
    pub stuck: bool,
    /// `finished` at the last check for stuck queues.
    pub finished_seen: u64,
    /// It is shutting down: no new tasks.
    pub leaving: bool,
    /// Why it cannot run Python; such an engine gets commands only.
    pub unavailable: Option<String>,
    /// When one of its replies was last forwarded to a client.
    pub last_reply: Option<Duration>,
    turn: u64,
}

impl Engine {
    pub(crate) fn load(&self) -> u32 {
        (self.tasks.len() + self.requests.len()) as u32
    }
    /// Increases with each assignment; the engine with the smallest has waited longest.
    pub(crate) fn turn(&self) -> u64 {
        self.turn
    }
    /// True unless a task with this timeout could outlast the engine's job.
    pub(crate) fn has_time_for(&self, limit_s: Option<f64>, now: UnixTime) -> bool {
        match (self.facts.ends, limit_s) {
            (Some(ends), Some(limit)) => now.0 + limit <= ends.0,
            _ => true,
        }
    }
    /// True if it holds nothing that could block prefetched requests.
    pub(crate) fn holds_only_quick(&self) -> bool {
        self.native && !self.stuck && self.tasks.is_empty() && self.quick.len() == self.requests.len()
    }
    /// Returns false if it did not hold the request.
    pub(crate) fn drop_request(&mut self, msg_id: &str) -> bool {
        self.quick.remove(msg_id);
        self.requests.remove(msg_id)
    }
    pub(crate) fn is_connected(&self) -> bool {
        self.away_until.is_none()
    }
    /// The kind of work it may take, if any.
    fn order(&self) -> Option<Eligibility> {
        match (self.is_connected() && !self.leaving, &self.unavailable) {
            (false, _) => None,
            (true, None) => Some(Eligibility::Any),
            (true, Some(_)) => Some(Eligibility::CommandsOnly),
        }
    }
}

/// The kind of work that an engine may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Eligibility {
    Any,
    CommandsOnly,
}

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
    pub next_id: u32,
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
        let (load, turn, order) = (engine.load(), engine.turn, engine.order());
        let result = change(engine);
        let (new_load, new_order) = (engine.load(), engine.order());
        if (new_load, new_order) != (load, order) {
            let (was_free, is_free) = (order == Some(Eligibility::Any), new_order == Some(Eligibility::Any));
            self.freed |= is_free && (new_load < load || !was_free);
            match order {
                Some(Eligibility::Any) => self.by_load.remove(&(load, turn, uuid.clone())),
                Some(Eligibility::CommandsOnly) => self.commands_only.remove(&(load, turn, uuid.clone())),
                None => false,
            };
            if engine.native {
                self.native_free = self.native_free + u32::from(is_free) - u32::from(was_free);
            }
            if new_load > load {
                // To the end of the queue of equally loaded engines.
                self.turns += 1;
                engine.turn = self.turns;
            }
            match new_order {
                Some(Eligibility::Any) => self.by_load.insert((new_load, engine.turn, uuid.clone())),
                Some(Eligibility::CommandsOnly) => self.commands_only.insert((new_load, engine.turn, uuid.clone())),
                None => false,
            };
        }
        Some(result)
    }

    /// Chooses the id of a new engine: the requested one if free, else the next. Ids are never reused.
    pub(crate) fn choose_id(&mut self, requested: Option<EngineId>) -> EngineId {
        // A huge id would leave no ids for other engines.
        let sensible = |id: &EngineId| id.0 < MAX_REQUESTED_ID && !self.by_id.contains_key(id);
        let id = requested.filter(sensible).unwrap_or(EngineId(self.next_id));
        self.next_id = self.next_id.max(id.0.saturating_add(1));
        id
    }

    pub(crate) fn add(&mut self, id: EngineId, facts: EngineFacts, registered: UnixTime, now: Duration) {
        let uuid = facts.uuid.clone();
        self.turns += 1;
        let engine = Engine {
            id,
            native: facts.is_native(),
            joined: facts.supports_joined(),
            recorded: Vec::new(),
            to_forget: Vec::new(),
            facts,
            registered,
            last_seen: now,
            last_pong: None,
            away_until: None,
            tasks: HashMap::new(),
            requests: HashSet::new(),
            quick: HashSet::new(),
            definitions: HashSet::new(),
            bundles: Vec::new(),
            finished: 0,
            uncertain: false,
            recall_pending: false,
            stuck: false,
            finished_seen: 0,
            leaving: false,
            unavailable: None,
            last_reply: None,
            turn: self.turns,
        };
        self.by_load.insert((0, engine.turn, uuid.clone()));
        self.native_free += u32::from(engine.native);
        self.by_id.insert(id, uuid.clone());
        self.by_uuid.insert(uuid, engine);
    }

    pub(crate) fn remove(&mut self, uuid: &EngineUuid) -> Option<Engine> {
        let engine = self.by_uuid.remove(uuid)?;
        let key = (engine.load(), engine.turn, uuid.clone());
        if self.by_load.remove(&key) {
            self.native_free -= u32::from(engine.native);
        }
        self.commands_only.remove(&key);
        self.by_id.remove(&engine.id);
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

    /// The least loaded pcluster engine that may take a task: a command, or one that needs Python.
    pub(crate) fn least_loaded(&self, is_command: bool) -> Option<(&EngineUuid, &Engine)> {
        self.least_loaded_of(is_command, |_| true)
    }

    /// The same among the engines that `may` accept.
    pub(crate) fn least_loaded_of(&self, is_command: bool, may: impl Fn(&Engine) -> bool) -> Option<(&EngineUuid, &Engine)> {
        let any = self.by_load().find(|(_, e)| e.native && may(e));
        let limited = self.commands_only.iter().filter(|_| is_command);
        let mut limited = limited.filter_map(|(_, _, uuid)| Some((uuid, self.by_uuid.get(uuid)?)));
        let limited = limited.find(|(_, e)| may(e));
        any.into_iter().chain(limited).min_by_key(|(_, e)| (e.load(), e.turn))
    }

    /// The number of pcluster engines that may take such a task.
    pub(crate) fn free(&self, is_command: bool) -> u32 {
        self.native_free + if is_command { self.commands_only.len() as u32 } else { 0 }
    }

    /// Checks the invariants of the table; for tests and debug builds.
    pub(crate) fn check(&self) {
        assert_eq!(self.by_id.len(), self.by_uuid.len());
        for (uuid, engine) in &self.by_uuid {
            assert_eq!(self.by_id.get(&engine.id), Some(uuid));
            let key = (engine.load(), engine.turn, uuid.clone());
            assert_eq!(
                self.by_load.contains(&key),
                engine.order() == Some(Eligibility::Any),
                "{uuid} in the load order"
            );
            assert_eq!(
                self.commands_only.contains(&key),
                engine.order() == Some(Eligibility::CommandsOnly),
                "{uuid} among those for commands"
            );
        }
        assert!(self.by_load.len() + self.commands_only.len() <= self.by_uuid.len());
        assert_eq!(self.native_free as usize, self.by_load().filter(|(_, e)| e.native).count());
    }
}
