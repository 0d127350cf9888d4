//! A registered engine: its facts, its assigned work, and what it has been sent.
use super::node::Share;
use super::nodes::NodeIndex;
use super::order::Place;
use super::why_not::{Runs, WhyNot};
use crate::model::engine::{EngineFacts, EngineState, EngineStatus};
use crate::model::{EngineId, MapId, TaskId, UnixTime};
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// Bundles that an engine caches, besides those that open maps need.
const MAX_BUNDLES: usize = 32;

/// Tasks are queued behind those of other maps if these end within this time.
const SOON: Duration = Duration::from_millis(50);

/// Durations are since the controller's start.
#[derive(Debug)]
pub(crate) struct Engine {
    id: EngineId,
    facts: EngineFacts,
    native: bool,
    /// It supports [`crate::wire::content::engine::Settled`] and the other combined messages.
    joined: bool,
    registered: UnixTime,
    last_seen: Duration,
    /// When the controller last answered its heartbeat.
    last_pong: Option<Duration>,
    /// When its lease expires and its tasks are reassigned, unless it is seen before.
    away_until: Option<Duration>,
    /// Map tasks assigned to it, with their run.
    tasks: HashMap<TaskId, u32>,
    /// Requests of ipyparallel clients assigned to it, with the submission of their session.
    requests: HashMap<String, MapId>,
    /// The subset of `requests` expected to be short.
    quick: HashSet<String>,
    /// The maps and submissions that have tasks here.
    holders: Vec<Holder>,
    /// Changes of the processors that they hold.
    holder_changes: Vec<(MapId, i32)>,
    /// How long one of its tasks takes at most, as far as known, and since when it runs the current one.
    pace: Option<Duration>,
    pace_since: Duration,
    /// Maps whose definition was sent to it.
    definitions: HashSet<MapId>,
    /// Hashes of the bundles it has, least recently used first.
    bundles: Vec<String>,
    /// Acknowledgements to send in the next batch: recorded results; below, finished maps.
    recorded: Vec<u64>,
    to_forget: Vec<MapId>,
    finished: u64,
    /// Its assigned tasks are uncertain (the controller restarted, or the connection broke): it must register again.
    uncertain: bool,
    /// The batch system has ended its job because that used too much memory.
    out_of_memory: bool,
    /// A `give_back` request is outstanding.
    recall_pending: bool,
    /// It was asked to return tasks because its queue made no progress, and has finished none since.
    stuck: bool,
    /// `finished` at the last check for stuck queues.
    finished_seen: u64,
    /// It is shutting down: no new tasks.
    leaving: bool,
    /// Why it cannot run Python; such an engine gets commands only.
    unavailable: Option<String>,
    /// When one of its replies was last forwarded to a client.
    last_reply: Option<Duration>,
    turn: u64,
    node: NodeIndex,
    /// What of its node its tasks have.
    share: Option<Share>,
    /// It has held a task of the share's map.
    share_in_use: bool,
}

#[derive(Debug)]
struct Holder {
    map: MapId,
    tasks: u32,
    cpus: u32,
}

/// The kind of work that an engine may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Eligibility {
    Any,
    CommandsOnly,
}

impl Engine {
    pub(crate) fn note_out_of_memory(&mut self) {
        self.out_of_memory = true;
    }
    pub(crate) fn is_out_of_memory(&self) -> bool {
        self.out_of_memory
    }

    pub(super) fn new(id: EngineId, facts: EngineFacts, node: NodeIndex, registered: UnixTime, now: Duration) -> Engine {
        Engine {
            id,
            native: facts.is_native(),
            joined: facts.supports_joined(),
            facts,
            registered,
            last_seen: now,
            last_pong: None,
            away_until: None,
            tasks: HashMap::new(),
            requests: HashMap::new(),
            quick: HashSet::new(),
            holders: Vec::new(),
            holder_changes: Vec::new(),
            pace: None,
            pace_since: Duration::ZERO,
            definitions: HashSet::new(),
            bundles: Vec::new(),
            recorded: Vec::new(),
            to_forget: Vec::new(),
            finished: 0,
            uncertain: false,
            out_of_memory: false,
            recall_pending: false,
            stuck: false,
            finished_seen: 0,
            leaving: false,
            unavailable: None,
            last_reply: None,
            turn: 0,
            node,
            share: None,
            share_in_use: false,
        }
    }

    pub(crate) fn id(&self) -> EngineId {
        self.id
    }
    pub(crate) fn facts(&self) -> &EngineFacts {
        &self.facts
    }
    /// False for an `ipengine`.
    pub(crate) fn is_native(&self) -> bool {
        self.native
    }
    pub(crate) fn registered(&self) -> UnixTime {
        self.registered
    }

    pub(crate) fn status(&self) -> EngineStatus {
        let state = match (self.is_connected(), self.load()) {
            (false, _) => EngineState::Silent,
            _ if self.leaving => EngineState::Leaving,
            (true, 0) if self.unavailable.is_some() => EngineState::Unavailable,
            (true, 0) => EngineState::Idle,
            (true, _) => EngineState::Busy,
        };
        EngineStatus {
            id: self.id,
            facts: self.facts.clone(),
            state,
            reason: self.unavailable.clone(),
            assigned: self.load(),
            finished: self.finished,
            registered: self.registered,
            uses: self.share.as_ref().map(|share| share.request().clone()),
        }
    }

    // ---- connection

    pub(crate) fn is_connected(&self) -> bool {
        self.away_until.is_none()
    }
    pub(crate) fn is_uncertain(&self) -> bool {
        self.uncertain
    }
    pub(crate) fn is_unavailable(&self) -> bool {
        self.unavailable.is_some()
    }
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving
    }
    pub(super) fn unavailable(&self) -> Option<&String> {
        self.unavailable.as_ref()
    }
    pub(crate) fn is_silent(&self, max_silence: Duration, now: Duration) -> bool {
        self.is_connected() && now.saturating_sub(self.last_seen) > max_silence
    }
    pub(crate) fn is_lease_expired(&self, now: Duration) -> bool {
        self.away_until.is_some_and(|until| until <= now)
    }
    pub(crate) fn last_reply(&self) -> Option<Duration> {
        self.last_reply
    }

    pub(crate) fn saw(&mut self, now: Duration) {
        self.last_seen = now;
        self.away_until = None;
    }
    /// Messages in transit in either direction may be lost.
    pub(crate) fn lose_connection(&mut self) {
        self.uncertain = true;
    }
    /// Returns false if its lease ends earlier.
    pub(crate) fn expect_until(&mut self, until: Duration) -> bool {
        let is_earlier = self.away_until.is_none_or(|earlier| earlier > until);
        if is_earlier {
            self.away_until = Some(until);
        }
        is_earlier
    }
    /// It may be a new process under the same uuid: definitions are sent again.
    pub(crate) fn register_again(&mut self) {
        self.definitions.clear();
        self.bundles.clear();
        self.recall_pending = false;
        self.uncertain = false;
    }
    pub(crate) fn leave(&mut self) {
        self.leaving = true;
    }
    /// Returns true if this changes whether, or why not, it can run Python.
    pub(crate) fn set_unavailable(&mut self, reason: Option<String>) -> bool {
        let changed = self.unavailable != reason;
        self.unavailable = reason;
        changed
    }
    /// Returns true if its heartbeat is due for an answer, which follows.
    pub(crate) fn answer_heartbeat(&mut self, now: Duration, interval: Duration) -> bool {
        let due = self.last_pong.is_none_or(|at| now.saturating_sub(at) >= interval);
        if due {
            self.last_pong = Some(now);
        }
        due
    }
    pub(crate) fn note_reply(&mut self, now: Duration) {
        self.last_reply = Some(now);
    }

    // ---- resources

    pub(super) fn node(&self) -> NodeIndex {
        self.node
    }
    pub(super) fn share(&self) -> Option<&Share> {
        self.share.as_ref()
    }
    pub(super) fn set_share(&mut self, share: Share) {
        self.share = Some(share);
        self.share_in_use = false;
    }
    /// The share is not new: without tasks of its map it is given back.
    pub(super) fn note_share_in_use(&mut self) {
        self.share_in_use = true;
        let Some(share) = &self.share else { return };
        let cpus = share.request().resources.cpus;
        for holder in self.holders.iter_mut().filter(|holder| holder.map == share.lane.map) {
            self.holder_changes.push((holder.map, cpus as i32 - holder.cpus as i32));
            holder.cpus = cpus;
        }
    }
    /// Takes its share if no task needs it any more.
    pub(super) fn take_unused_share(&mut self) -> Option<Share> {
        let map = self.share.as_ref()?.lane.map;
        let holds_any = self.holders.iter().any(|holder| holder.map == map);
        let is_unused = self.share_in_use && !holds_any;
        self.share_in_use |= holds_any;
        self.share.take_if(|_| is_unused)
    }
    /// It holds tasks and has no share for them: it uses one processor.
    pub(super) fn uses_one_cpu(&self) -> bool {
        self.share.is_none() && self.load() > 0
    }

    /// Whether it could begin tasks that get a share of its node.
    pub(super) fn is_free_for_share(&self) -> bool {
        self.load() == 0 && self.share.is_none() && self.eligibility().is_some()
    }
    /// Where it stands in the order of engines.
    pub(super) fn place(&self) -> Place {
        Place {
            node: self.node,
            load: self.load(),
            turn: self.turn,
        }
    }

    fn enter(&mut self, map: MapId) {
        if let Some(holder) = self.holders.iter_mut().find(|holder| holder.map == map) {
            holder.tasks += 1;
            return;
        }
        let share = self.share.as_ref().filter(|share| share.lane.map == map);
        let cpus = share.map_or(1, |share| share.request().resources.cpus);
        self.holders.push(Holder { map, tasks: 1, cpus });
        self.holder_changes.push((map, cpus as i32));
    }
    fn exit(&mut self, map: MapId) {
        let Some(at) = self.holders.iter().position(|holder| holder.map == map) else {
            return;
        };
        self.holders[at].tasks -= 1;
        if self.holders[at].tasks == 0 {
            let holder = self.holders.swap_remove(at);
            self.holder_changes.push((map, -(holder.cpus as i32)));
        }
    }
    /// The maps and submissions that have tasks here, with the processors that they hold.
    pub(crate) fn holders(&self) -> impl Iterator<Item = (MapId, u32)> {
        self.holders.iter().map(|holder| (holder.map, holder.cpus))
    }
    /// Changes since the last call of the processors that maps and submissions hold.
    pub(super) fn take_holder_changes(&mut self) -> Vec<(MapId, i32)> {
        std::mem::take(&mut self.holder_changes)
    }
    /// Notes how long its new tasks take, if known; `is_first`: it was idle.
    pub(crate) fn set_pace(&mut self, each_s: Option<f64>, is_first: bool, now: Duration) {
        let each = each_s.and_then(|each| Duration::try_from_secs_f64(each).ok());
        if is_first {
            (self.pace, self.pace_since) = (each, now);
        } else {
            self.pace = self.pace.zip(each).map(|(one, other)| one.max(other));
        }
    }
    /// Whether all that it holds belongs to this map, or session.
    pub(crate) fn holds_only(&self, map: MapId) -> bool {
        self.holders.iter().all(|holder| holder.map == map)
    }
    /// Whether it is expected to end all that it holds soon: tasks of others may be queued behind.
    pub(super) fn is_free_soon(&self, now: Duration) -> bool {
        self.expected_end(now).is_some_and(|end| end <= now + SOON)
    }
    /// It begins the next task, after one of this map with this duration.
    pub(crate) fn restart_pace(&mut self, map: MapId, each_s: Option<f64>, now: Duration) {
        self.pace_since = now;
        if self.pace.is_none() && self.holds_only(map) {
            self.pace = each_s.and_then(|each| Duration::try_from_secs_f64(each).ok());
        }
    }
    /// When it began the task or request that it runs, or what it was sent first.
    pub(crate) fn works_since(&self) -> Duration {
        self.pace_since
    }
    /// When it is expected to have ended all that it holds; None if that is unknown, or overdue.
    pub(crate) fn expected_end(&self, now: Duration) -> Option<Duration> {
        if self.load() == 0 {
            return Some(now);
        }
        let end = self.pace_since.checked_add(self.pace?.checked_mul(self.load())?)?;
        (end >= now).then_some(end)
    }

    // ---- work

    pub(crate) fn load(&self) -> u32 {
        (self.tasks.len() + self.requests.len()) as u32
    }
    /// Increases with each assignment; the engine with the smallest has waited longest.
    pub(crate) fn turn(&self) -> u64 {
        self.turn
    }
    pub(super) fn set_turn(&mut self, turn: u64) {
        self.turn = turn;
    }
    /// The kind of work it may take, if any.
    pub(super) fn eligibility(&self) -> Option<Eligibility> {
        match (self.is_connected() && !self.leaving, &self.unavailable) {
            (false, _) => None,
            (true, None) => Some(Eligibility::Any),
            (true, Some(_)) => Some(Eligibility::CommandsOnly),
        }
    }
    /// Why it takes no work of this kind, whatever it holds.
    pub(super) fn why_never(&self, runs: Runs) -> Option<WhyNot> {
        if !self.is_connected() {
            return Some(WhyNot::Silent);
        }
        if self.is_leaving() {
            return Some(WhyNot::Leaving);
        }
        match runs {
            Runs::Command | Runs::Python if !self.is_native() => Some(WhyNot::Ipengine),
            Runs::Command => None,
            Runs::Python | Runs::Message => self.unavailable().cloned().map(WhyNot::NoPython),
        }
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
    pub(crate) fn holds(&self, task: TaskId, run: u32) -> bool {
        self.tasks.get(&task) == Some(&run)
    }
    pub(crate) fn holds_request(&self, msg_id: &str) -> bool {
        self.requests.contains_key(msg_id)
    }
    pub(crate) fn tasks(&self) -> impl Iterator<Item = (TaskId, u32)> {
        self.tasks.iter().map(|(task, run)| (*task, *run))
    }
    pub(crate) fn requests(&self) -> impl Iterator<Item = &String> {
        self.requests.keys()
    }
    pub(crate) fn finished(&self) -> u64 {
        self.finished
    }

    pub(crate) fn assign(&mut self, task: TaskId, run: u32) {
        if self.tasks.insert(task, run).is_none() {
            self.enter(task.map);
        }
    }
    /// `map`: the submission of its session.
    pub(crate) fn assign_request(&mut self, msg_id: &str, map: MapId, is_quick: bool) {
        if self.requests.insert(msg_id.to_string(), map).is_none() {
            self.enter(map);
        }
        if is_quick {
            self.quick.insert(msg_id.to_string());
        }
    }
    pub(crate) fn drop_task(&mut self, task: TaskId) {
        if self.tasks.remove(&task).is_some() {
            self.exit(task.map);
        }
    }
    pub(crate) fn drop_request(&mut self, msg_id: &str) -> bool {
        self.quick.remove(msg_id);
        let map = self.requests.remove(msg_id);
        map.map(|map| self.exit(map)).is_some()
    }
    pub(crate) fn finish_task(&mut self, task: TaskId) {
        self.drop_task(task);
        self.finished += 1;
    }
    pub(crate) fn finish_request(&mut self, msg_id: &str) {
        if self.drop_request(msg_id) {
            self.stuck = false;
            self.finished += 1;
        }
    }

    // ---- stuck queues

    /// True if it has work queued that it could return.
    pub(crate) fn has_queue(&self) -> bool {
        self.native && !(self.tasks.is_empty() && self.quick.is_empty())
    }
    /// True if it has finished nothing since the last check, and holds a request or task that another engine could run.
    pub(crate) fn is_stuck(&self, is_balanced: impl Fn(MapId) -> bool) -> bool {
        let is_idle = !self.recall_pending && self.finished == self.finished_seen;
        is_idle && (!self.quick.is_empty() || self.tasks.keys().any(|task| is_balanced(task.map)))
    }
    pub(crate) fn check_progress(&mut self) {
        self.finished_seen = self.finished;
    }
    pub(crate) fn recall(&mut self) {
        (self.recall_pending, self.stuck) = (true, true);
    }
    /// Like [`Engine::recall`], of a queue that makes progress.
    pub(crate) fn ask_back(&mut self) {
        self.recall_pending = true;
    }
    pub(crate) fn is_recalled(&self) -> bool {
        self.recall_pending
    }
    pub(crate) fn end_recall(&mut self) {
        self.recall_pending = false;
    }

    // ---- definitions and acknowledgements

    /// Returns true if the definition must be sent.
    pub(crate) fn learn_definition(&mut self, map: MapId) -> bool {
        self.to_forget.retain(|other| *other != map);
        self.definitions.insert(map)
    }
    pub(crate) fn supports_joined(&self) -> bool {
        self.joined
    }
    /// Returns true if the engine must be notified that the map is forgotten.
    pub(super) fn forget_definition(&mut self, map: MapId) -> bool {
        let knew = self.definitions.remove(&map);
        if knew {
            self.to_forget.push(map);
        }
        knew
    }
    /// Returns false if the bundle must be sent.
    pub(crate) fn use_bundle(&mut self, hash: &str) -> bool {
        let place = self.bundles.iter().position(|known| known == hash);
        let known = place.map(|place| self.bundles.remove(place));
        let has = known.is_some();
        self.bundles.push(known.unwrap_or_else(|| hash.to_string()));
        has
    }
    /// Removes the oldest bundles that no open map needs, and returns them.
    pub(crate) fn take_superfluous_bundles<'a>(&mut self, bundle_of: impl Fn(&MapId) -> Option<&'a str>) -> Vec<String> {
        let Some(many) = self.bundles.len().checked_sub(MAX_BUNDLES).filter(|many| *many > 0) else {
            return Vec::new();
        };
        let needed: HashSet<&str> = self.definitions.iter().filter_map(bundle_of).collect();
        let oldest = self.bundles[..self.bundles.len() - 1].iter();
        let superfluous = oldest.filter(|hash| !needed.contains(hash.as_str())).take(many);
        let superfluous: Vec<String> = superfluous.cloned().collect();
        self.bundles.retain(|hash| !superfluous.contains(hash));
        superfluous
    }
    /// Notes recorded results. Returns false if the acknowledgement cannot wait for the next batch.
    pub(super) fn record_results(&mut self, sequence: u64) -> bool {
        self.recorded.push(sequence);
        // A leaving engine waits for it.
        self.joined && !self.leaving
    }
    /// Recorded results, and finished maps.
    pub(super) fn take_acknowledgements(&mut self) -> (Vec<u64>, Vec<MapId>) {
        (std::mem::take(&mut self.recorded), std::mem::take(&mut self.to_forget))
    }
}
