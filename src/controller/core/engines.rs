//! The engines: who is registered, who beats, who is away, how loaded each is.
//!
//! An engine is `here` (heard of lately), `away` (its connection ended, or it has been silent; its tasks stay with it until the
//! lease is over) or gone (not in this table). The order by load is kept with every change, so that nothing is scanned per task.
use crate::model::engine::EngineFacts;
use crate::model::{EngineId, EngineUuid, MapId, TaskId, UnixTime};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

#[derive(Debug)]
pub struct Engine {
    pub id: EngineId,
    pub facts: EngineFacts,
    pub native: bool,
    pub registered: UnixTime,
    /// Since the controller's start.
    pub heard: Duration,
    /// When its heartbeat was last answered.
    pub answered: Option<Duration>,
    /// Its tasks are taken from it at that time, unless it is heard of before.
    pub away_until: Option<Duration>,
    /// pcluster's own tasks that are there, with their run.
    pub tasks: HashMap<TaskId, u32>,
    /// Requests of ipyparallel clients that are there.
    pub requests: HashSet<String>,
    /// Those of them that are expected to be short.
    pub quick: HashSet<String>,
    /// Maps whose definition it has.
    pub definitions: HashSet<MapId>,
    /// Bundles that it has, by their hashes; the last one was used last.
    pub bundles: Vec<String>,
    /// It understands [`crate::wire::content::engine::Settled`] and what else holds several things.
    pub joined: bool,
    /// What it is to be told when there is time: results that are on disk, maps that are finished.
    pub recorded: Vec<u64>,
    pub to_forget: Vec<MapId>,
    pub finished: u64,
    /// What it holds is not known for sure (the controller is new, or its connection broke): it is asked to register again.
    pub unsure: bool,
    /// A `give_back` is on its way.
    pub asked_back: bool,
    /// It was asked for tasks because its queue did not move, and has finished none since.
    pub stuck: bool,
    /// `finished` at the last look for stuck queues.
    pub finished_seen: u64,
    /// It was told to stop: no new tasks.
    pub leaving: bool,
    /// Why it cannot run Python: it gets commands only.
    pub unavailable: Option<String>,
    /// When a reply of its was last passed on to a client.
    pub last_reply: Option<Duration>,
    turn: u64,
}

impl Engine {
    pub fn load(&self) -> u32 {
        (self.tasks.len() + self.requests.len()) as u32
    }
    /// Grows with each thing that an engine is given: the smallest has waited longest.
    pub fn turn(&self) -> u64 {
        self.turn
    }
    /// Whether a task of this timeout can end there before the end of its job, where both are known.
    pub fn has_time_for(&self, limit_s: Option<f64>, now: UnixTime) -> bool {
        match (self.facts.ends, limit_s) {
            (Some(ends), Some(limit)) => now.0 + limit <= ends.0,
            _ => true,
        }
    }
    /// Nothing is there that could hold up what is sent ahead.
    pub fn holds_only_quick(&self) -> bool {
        self.native && !self.stuck && self.tasks.is_empty() && self.quick.len() == self.requests.len()
    }
    /// False when it did not have it.
    pub fn drop_request(&mut self, msg_id: &str) -> bool {
        self.quick.remove(msg_id);
        self.requests.remove(msg_id)
    }
    pub fn is_here(&self) -> bool {
        self.away_until.is_none()
    }
    /// Which of the orders by load it is in, if it may take work.
    fn order(&self) -> Option<Order> {
        match (self.is_here() && !self.leaving, &self.unavailable) {
            (false, _) => None,
            (true, None) => Some(Order::Any),
            (true, Some(_)) => Some(Order::CommandsOnly),
        }
    }
}

/// What an engine may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Any,
    CommandsOnly,
}

#[derive(Debug, Default)]
pub struct Engines {
    by_uuid: HashMap<EngineUuid, Engine>,
    by_id: BTreeMap<EngineId, EngineUuid>,
    /// Engines that may take work: load, then who waited longest.
    by_load: BTreeSet<(u32, u64, EngineUuid)>,
    /// The same for engines without a Python that works: they may take commands.
    commands_only: BTreeSet<(u32, u64, EngineUuid)>,
    /// How many in `by_load` are of our own kind.
    native_free: u32,
    turns: u64,
    /// An engine has less to do than before, or may take work again.
    freed: bool,
    pub next_id: u32,
}

/// Engines may wish for ids below this.
const MOST_WISHED: u32 = 1 << 31;

impl Engines {
    pub fn get(&self, uuid: &EngineUuid) -> Option<&Engine> {
        self.by_uuid.get(uuid)
    }
    pub fn uuid_of(&self, id: EngineId) -> Option<&EngineUuid> {
        self.by_id.get(&id)
    }
    pub fn by_id(&self, id: EngineId) -> Option<&Engine> {
        self.by_uuid.get(self.by_id.get(&id)?)
    }
    /// By ascending id.
    pub fn iter(&self) -> impl Iterator<Item = (&EngineUuid, &Engine)> {
        self.by_id.values().filter_map(|uuid| Some((uuid, self.by_uuid.get(uuid)?)))
    }
    pub fn count(&self) -> usize {
        self.by_uuid.len()
    }

    /// Changes an engine and keeps the order by load.
    pub fn change<T>(&mut self, uuid: &EngineUuid, change: impl FnOnce(&mut Engine) -> T) -> Option<T> {
        let engine = self.by_uuid.get_mut(uuid)?;
        let (load, turn, order) = (engine.load(), engine.turn, engine.order());
        let result = change(engine);
        let (new_load, new_order) = (engine.load(), engine.order());
        if (new_load, new_order) != (load, order) {
            let (was_free, is_free) = (order == Some(Order::Any), new_order == Some(Order::Any));
            self.freed |= is_free && (new_load < load || !was_free);
            match order {
                Some(Order::Any) => self.by_load.remove(&(load, turn, uuid.clone())),
                Some(Order::CommandsOnly) => self.commands_only.remove(&(load, turn, uuid.clone())),
                None => false,
            };
            if engine.native {
                self.native_free = self.native_free + u32::from(is_free) - u32::from(was_free);
            }
            if new_load > load {
                // To the end of the line of those equally loaded.
                self.turns += 1;
                engine.turn = self.turns;
            }
            match new_order {
                Some(Order::Any) => self.by_load.insert((new_load, engine.turn, uuid.clone())),
                Some(Order::CommandsOnly) => self.commands_only.insert((new_load, engine.turn, uuid.clone())),
                None => false,
            };
        }
        Some(result)
    }

    /// The id that a new engine gets: the one it asks for when free, else the next. Ids are not used twice.
    pub fn choose_id(&mut self, wish: Option<EngineId>) -> EngineId {
        // What is far beyond all ids would leave none for others.
        let sensible = |id: &EngineId| id.0 < MOST_WISHED && !self.by_id.contains_key(id);
        let id = wish.filter(sensible).unwrap_or(EngineId(self.next_id));
        self.next_id = self.next_id.max(id.0.saturating_add(1));
        id
    }

    pub fn add(&mut self, id: EngineId, facts: EngineFacts, registered: UnixTime, now: Duration) {
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
            heard: now,
            answered: None,
            away_until: None,
            tasks: HashMap::new(),
            requests: HashSet::new(),
            quick: HashSet::new(),
            definitions: HashSet::new(),
            bundles: Vec::new(),
            finished: 0,
            unsure: false,
            asked_back: false,
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

    pub fn remove(&mut self, uuid: &EngineUuid) -> Option<Engine> {
        let engine = self.by_uuid.remove(uuid)?;
        let key = (engine.load(), engine.turn, uuid.clone());
        if self.by_load.remove(&key) {
            self.native_free -= u32::from(engine.native);
        }
        self.commands_only.remove(&key);
        self.by_id.remove(&engine.id);
        Some(engine)
    }

    /// Whether an engine has got room since this was asked last.
    pub fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    /// Those that may take work, least loaded first.
    pub fn by_load(&self) -> impl DoubleEndedIterator<Item = (&EngineUuid, &Engine)> {
        self.by_load.iter().filter_map(|(_, _, uuid)| Some((uuid, self.by_uuid.get(uuid)?)))
    }

    /// Of our own kind, the least loaded that may take a task: a command, or one that needs Python.
    pub fn least_loaded(&self, is_command: bool) -> Option<(&EngineUuid, &Engine)> {
        self.least_loaded_of(is_command, |_| true)
    }

    /// The same of those that `may`.
    pub fn least_loaded_of(&self, is_command: bool, may: impl Fn(&Engine) -> bool) -> Option<(&EngineUuid, &Engine)> {
        let any = self.by_load().find(|(_, e)| e.native && may(e));
        let limited = self.commands_only.iter().filter(|_| is_command);
        let mut limited = limited.filter_map(|(_, _, uuid)| Some((uuid, self.by_uuid.get(uuid)?)));
        let limited = limited.find(|(_, e)| may(e));
        any.into_iter().chain(limited).min_by_key(|(_, e)| (e.load(), e.turn))
    }

    /// How many of our own kind may take such a task.
    pub fn free(&self, is_command: bool) -> u32 {
        self.native_free + if is_command { self.commands_only.len() as u32 } else { 0 }
    }

    /// Holds the table against itself; for tests and debug builds.
    pub fn check(&self) {
        assert_eq!(self.by_id.len(), self.by_uuid.len());
        for (uuid, engine) in &self.by_uuid {
            assert_eq!(self.by_id.get(&engine.id), Some(uuid));
            let key = (engine.load(), engine.turn, uuid.clone());
            assert_eq!(
                self.by_load.contains(&key),
                engine.order() == Some(Order::Any),
                "{uuid} in the order by load"
            );
            assert_eq!(
                self.commands_only.contains(&key),
                engine.order() == Some(Order::CommandsOnly),
                "{uuid} among those for commands"
            );
        }
        assert!(self.by_load.len() + self.commands_only.len() <= self.by_uuid.len());
        assert_eq!(self.native_free as usize, self.by_load().filter(|(_, e)| e.native).count());
    }
}
