//! Tasks of ipyparallel clients: `apply_request` and `execute_request` through the direct (`mux`), balanced (`task`) and
//! broadcast schedulers.
mod broadcasts;
mod open;
mod reconnects;

pub(super) use broadcasts::{Broadcasts, Part, is_joined, original_of};
pub(super) use open::{Client, OpenRequest, client_channel};
pub(super) use reconnects::Reconnects;

use super::dependency::Dependency;
use super::effect::ClientChannel;
use super::engines::Engines;
use super::outbox::Outbox;
use super::prefetch::{Functions, MeanTime};
use crate::model::change::Change;
use crate::model::{EngineUuid, MapId, TaskId};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

/// Outcomes kept for dependencies of later requests.
const MAX_OUTCOMES: usize = 200_000;
/// With fewer unfinished requests, clients probably wait for each one.
const MIN_OPEN_TO_BATCH: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Requests {
    open: HashMap<String, OpenRequest>,
    /// Balanced requests by the submission of their session.
    queues: BTreeMap<MapId, Queues>,
    /// Submissions whose queues may have become empty, or not empty.
    changed: Vec<MapId>,
    recheck: bool,
    /// Finished balanced tasks: success, and the engine.
    outcomes: HashMap<String, (bool, Option<EngineUuid>)>,
    outcome_order: VecDeque<String>,
    /// Each client session is one submission: its number, and the index of its next request.
    sessions: HashMap<String, (MapId, u32)>,
    /// Requests of engines that left; a late reply may still arrive.
    orphaned: HashMap<EngineUuid, Vec<String>>,
    functions: Functions,
    /// A request that may be long was sent: its engine must not wait for a batch.
    flush_now: bool,
}

/// The unassigned requests of a session, in order.
#[derive(Debug, Default)]
struct Queues {
    /// Those that may run on any engine.
    ready: VecDeque<String>,
    /// Those that are bound to certain engines or wait for others: rechecked after changes.
    bound: VecDeque<String>,
    /// The engines that some of those in `bound` wait for, at the last check.
    awaited: HashSet<EngineUuid>,
}

/// Where a balanced request may run now.
pub(super) enum Placement {
    On(HashSet<EngineUuid>),
    /// It waits for other requests.
    Waits,
    /// It can never run.
    Impossible(&'static str),
}

impl Requests {
    pub(super) fn get(&self, msg_id: &str) -> Option<&OpenRequest> {
        self.open.get(msg_id)
    }
    /// The open request with this task id. Scans all of them.
    pub(super) fn of_task(&self, task: TaskId) -> Option<&OpenRequest> {
        self.open.values().find(|open| open.task() == task)
    }
    pub(super) fn get_mut(&mut self, msg_id: &str) -> Option<&mut OpenRequest> {
        self.open.get_mut(msg_id)
    }
    pub(super) fn is_open(&self, msg_id: &str) -> bool {
        self.open.contains_key(msg_id)
    }
    /// True if effects may wait some milliseconds to share a commit and messages with later ones: if many requests are open, and
    /// no engine would be idle. Asked once for each batch of effects.
    pub(super) fn may_batch(&mut self) -> bool {
        !std::mem::take(&mut self.flush_now) && self.open.len() >= MIN_OPEN_TO_BATCH
    }

    pub(super) fn insert(&mut self, request: OpenRequest) {
        self.open.insert(request.message().header.msg_id.clone(), request);
    }
    /// Removes an assigned request.
    pub(super) fn remove(&mut self, msg_id: &str) -> Option<OpenRequest> {
        self.open.remove(msg_id)
    }
    /// Removes a request that may be queued.
    pub(super) fn remove_queued(&mut self, msg_id: &str) -> Option<OpenRequest> {
        let request = self.open.remove(msg_id)?;
        let queues = self.queues_of(request.task().map);
        queues.ready.retain(|id| id != msg_id);
        queues.bound.retain(|id| id != msg_id);
        Some(request)
    }

    // ---- sessions

    /// The next task of a client session; None for a new session.
    pub(super) fn next_task(&mut self, session: &str) -> Option<TaskId> {
        let (map, next) = self.sessions.get_mut(session)?;
        let task = TaskId::new(*map, *next);
        *next += 1;
        Some(task)
    }
    pub(super) fn add_session(&mut self, session: String, map: MapId, next: u32) {
        self.sessions.insert(session, (map, next));
    }
    pub(super) fn is_open_map(&self, map: MapId) -> bool {
        self.sessions.values().any(|(m, _)| *m == map)
    }
    /// Forgets a session without open requests: the next request of its client starts a new one. Returns false if it has some.
    pub(super) fn forget_session(&mut self, map: MapId) -> bool {
        let is_empty = !self.open.values().any(|open| open.task().map == map);
        if is_empty {
            self.sessions.retain(|_, (own, _)| *own != map);
        }
        is_empty
    }

    // ---- clients

    /// Addresses the replies to a client that connected. Returns the submissions whose key was unknown.
    pub(super) fn client_connected(&mut self, channel: ClientChannel, identity: &Bytes, key: &String) -> BTreeSet<MapId> {
        // Its first message may have arrived before this event.
        let mut newly_known = BTreeSet::new();
        for open in self.open.values_mut().filter(|open| open.channel() == channel) {
            let map = open.task().map;
            let client = open.client_mut();
            if client.identity == identity {
                if client.key.is_none() {
                    newly_known.insert(map);
                }
                client.key = Some(key.clone());
            } else if client.key.as_ref() == Some(key) {
                client.identity = identity.clone();
            }
        }
        newly_known
    }

    pub(super) fn client_disconnected(&mut self, channel: ClientChannel, identity: &Bytes) {
        for open in self.open.values_mut().filter(|open| open.channel() == channel) {
            let client = open.client_mut();
            if client.identity == identity && client.key.is_some() {
                client.identity = Bytes::new();
            }
        }
    }

    // ---- the queue

    /// The queues of a session, which may change.
    fn queues_of(&mut self, map: MapId) -> &mut Queues {
        self.changed.push(map);
        self.queues.entry(map).or_default()
    }
    /// Sessions whose queues may have become empty, or not empty, since the last call: their unconstrained and bound requests.
    pub(super) fn take_changed(&mut self) -> Vec<(MapId, usize, usize)> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        let sizes = |map: MapId| {
            let queues = self.queues.get(&map);
            (map, queues.map_or(0, |q| q.ready.len()), queues.map_or(0, |q| q.bound.len()))
        };
        let changed: Vec<(MapId, usize, usize)> = changed.into_iter().map(sizes).collect();
        let empty = changed.iter().filter(|(_, ready, bound)| ready + bound == 0);
        empty.for_each(|(map, ..)| drop(self.queues.remove(map)));
        changed
    }

    /// The number of unassigned tasks.
    pub(super) fn queued(&self) -> usize {
        self.queues.values().map(|queues| queues.ready.len() + queues.bound.len()).sum()
    }
    /// Unassigned balanced tasks.
    pub(super) fn unassigned(&self) -> impl Iterator<Item = &String> {
        self.queues.values().flat_map(|queues| queues.ready.iter().chain(&queues.bound))
    }
    /// Splits an engine's requests into direct and balanced ones.
    pub(super) fn of_engine<'a>(&'a self, ids: impl Iterator<Item = &'a String>) -> (Vec<&'a String>, Vec<&'a String>) {
        ids.partition(|id| self.open.get(*id).is_some_and(|o| !o.is_balanced()))
    }

    /// Queues a balanced request. Returns why, if it can never run.
    pub(super) fn enqueue(&mut self, msg_id: &str) -> Result<(), &'static str> {
        let Some(open) = self.open.get(msg_id) else { return Ok(()) };
        let unknown = |id: &String| id == msg_id || !(self.open.contains_key(id) || self.outcomes.contains_key(id));
        if open.after().ids.iter().chain(&open.follow().ids).any(unknown) {
            return Err("it depends on itself or on an unknown task");
        }
        let (map, is_unconstrained) = (open.task().map, open.is_unconstrained());
        let queues = self.queues_of(map);
        match is_unconstrained {
            true => queues.ready.push_back(msg_id.to_string()),
            false => {
                queues.bound.push_back(msg_id.to_string());
                self.recheck = true;
            }
        }
        Ok(())
    }
    /// Queues a request that was not started, before all others of its session.
    pub(super) fn enqueue_first(&mut self, msg_id: &str) {
        let Some(map) = self.open.get(msg_id).map(|open| open.task().map) else {
            return;
        };
        self.queues_of(map).ready.push_front(msg_id.to_string());
    }
    /// The number of requests of a session that may run on any engine.
    pub(super) fn ready(&self, session: MapId) -> usize {
        self.queues.get(&session).map_or(0, |queues| queues.ready.len())
    }
    pub(super) fn first_ready(&self, session: MapId) -> Option<&OpenRequest> {
        self.open.get(self.queues.get(&session)?.ready.front()?)
    }
    pub(super) fn take_ready(&mut self, session: MapId) -> Option<String> {
        self.queues_of(session).ready.pop_front()
    }

    /// An engine joined or left, or a request ended: bound requests may run now, or never.
    pub(super) fn recheck(&mut self) {
        self.recheck = true;
    }
    /// Returns true if bound requests must be checked; `freed`: an engine has a free slot since.
    pub(super) fn take_recheck(&mut self) -> bool {
        std::mem::take(&mut self.recheck)
    }
    pub(super) fn has_bound(&self) -> bool {
        self.queues.values().any(|queues| !queues.bound.is_empty())
    }
    pub(super) fn take_bound(&mut self, session: MapId) -> VecDeque<String> {
        std::mem::take(&mut self.queues_of(session).bound)
    }
    /// Returns bound requests to the queue, before those added since [`Requests::take_bound`], with the engines that they wait
    /// for.
    pub(super) fn return_bound(&mut self, session: MapId, mut waiting: VecDeque<String>, awaited: HashSet<EngineUuid>) {
        let queues = self.queues_of(session);
        waiting.append(&mut queues.bound);
        queues.bound = waiting;
        queues.awaited = awaited;
    }
    /// The engines that bound requests waited for when they were last checked.
    pub(super) fn awaited(&self, session: MapId) -> HashSet<EngineUuid> {
        self.queues.get(&session).map(|queues| queues.awaited.clone()).unwrap_or_default()
    }

    /// Where a bound request may run, by its targets and dependencies.
    pub(super) fn placement(&self, open: &OpenRequest, engines: &Engines) -> Placement {
        let outcome = |id: &str| self.outcomes.get(id).map(|(ok, _)| *ok);
        let (after, follow) = (open.after(), open.follow());
        if after.is_unreachable(outcome) || follow.is_unreachable(outcome) {
            return Placement::Impossible("its dependency did not end as required");
        }
        if open.has_targets() && !open.targets_left().any(|target| engines.get(target).is_some()) {
            return Placement::Impossible("none of its target engines is left");
        }
        let places = self.engines_to_follow(open);
        if follow.all && places.len() > 1 {
            return Placement::Impossible("it must follow tasks that ran on different engines");
        }
        let all_ended = follow.ids.iter().all(|id| outcome(id).is_some());
        if !follow.is_empty() && all_ended && !places.iter().any(|place| engines.get(place).is_some()) {
            return Placement::Impossible("the engine of the tasks that it must follow left");
        }
        if !after.is_met(outcome) {
            return Placement::Waits;
        }
        let may = |uuid: &&EngineUuid| !open.is_excluded(uuid) && open.is_target(uuid) && self.may_follow_on(open, uuid);
        Placement::On(engines.by_load().map(|(uuid, _)| uuid).filter(may).cloned().collect())
    }

    /// Whether the requests that it must follow, if any, ran on this engine.
    pub(super) fn may_follow_on(&self, open: &OpenRequest, uuid: &EngineUuid) -> bool {
        let ran_here = |id: &str| {
            let outcome = self.outcomes.get(id).filter(|(_, engine)| engine.as_ref() == Some(uuid));
            outcome.map(|(ok, _)| *ok)
        };
        open.follow().is_met(ran_here)
    }

    /// Which other requests it waits for: `2 of the 3 requests that it comes after are unfinished`.
    pub(super) fn unmet(&self, open: &OpenRequest) -> Option<String> {
        let outcome = |id: &str| self.outcomes.get(id).map(|(ok, _)| *ok);
        let describe = |dependency: &Dependency, verb: &str| {
            let unfinished = dependency.ids.iter().filter(|id| outcome(id).is_none()).count();
            let all = dependency.ids.len();
            (!dependency.is_met(outcome)).then(|| format!("{unfinished} of {all} requests that it {verb} are unfinished"))
        };
        describe(open.after(), "comes after").or_else(|| describe(open.follow(), "follows"))
    }

    /// The engines that ran the requests which it must follow.
    fn engines_to_follow(&self, open: &OpenRequest) -> HashSet<&EngineUuid> {
        let ran_at = |id: &String| self.outcomes.get(id).and_then(|(_, engine)| engine.as_ref());
        open.follow().ids.iter().filter_map(ran_at).collect()
    }

    /// True if no engine is left that it may run on and has not failed it.
    pub(super) fn has_failed_everywhere(&self, open: &OpenRequest, engines: &Engines) -> bool {
        let places = self.engines_to_follow(open);
        let may = |uuid: &EngineUuid| open.is_target(uuid) && (open.follow().is_empty() || places.contains(uuid));
        engines.iter().all(|(uuid, _)| !may(uuid) || open.is_excluded(uuid))
    }

    // ---- runs

    pub(super) fn assign(&mut self, msg_id: &str, engine: &EngineUuid, sent: u64) -> Option<&OpenRequest> {
        let open = self.open.get_mut(msg_id)?;
        open.assign(engine.clone(), sent);
        Some(open)
    }
    /// Removes the assignment to an engine.
    pub(super) fn withdraw(&mut self, msg_id: &str, out: &mut Outbox) {
        let Some(open) = self.open.get_mut(msg_id) else { return };
        let run = open.withdraw();
        let task = open.task();
        out.record(Change::TaskReturned { task, run, attempt: None });
    }

    /// The mean duration of such requests.
    pub(super) fn mean(&self, function: u64) -> MeanTime {
        self.functions.mean(function)
    }
    pub(super) fn learn(&mut self, function: u64, seconds: f64) {
        self.functions.learn(function, seconds);
    }
    /// Notes that a request was sent.
    pub(super) fn note_sent(&mut self, is_quick: bool) {
        self.flush_now |= !is_quick;
    }

    /// Keeps an outcome for dependent requests, which are rechecked.
    pub(super) fn settle(&mut self, msg_id: &str, ok: bool, engine: Option<EngineUuid>) {
        if self.outcomes.insert(msg_id.to_string(), (ok, engine)).is_none() {
            self.outcome_order.push_back(msg_id.to_string());
        }
        if self.outcome_order.len() > MAX_OUTCOMES
            && let Some(old) = self.outcome_order.pop_front()
        {
            self.outcomes.remove(&old);
        }
        self.recheck = self.has_bound();
    }

    /// Notes the requests of an engine that left. It may reconnect and leave again before they end.
    pub(super) fn orphan(&mut self, engine: &EngineUuid, ids: &[String]) {
        self.orphaned.entry(engine.clone()).or_default().extend_from_slice(ids);
    }
    pub(super) fn has_orphans(&self, engine: &EngineUuid) -> bool {
        self.orphaned.contains_key(engine)
    }
    /// The orphans that no other engine has since, in the order in which they were sent.
    pub(super) fn take_orphans(&mut self, engine: &EngineUuid) -> Vec<String> {
        let ids = self.orphaned.remove(engine).unwrap_or_default();
        let sent = |id: &String| self.open.get(id).filter(|o| o.is_at(engine)).map(|o| o.sent());
        let mut left: Vec<(u64, String)> = ids.into_iter().filter_map(|id| Some((sent(&id)?, id))).collect();
        left.sort();
        left.dedup();
        left.into_iter().map(|(_, id)| id).collect()
    }

    pub(super) fn check(&self, engines: &Engines) {
        for (id, open) in &self.open {
            let Some(uuid) = open.engine() else { continue };
            // Orphaned requests wait even if their engine has reconnected.
            let orphaned = self.orphaned.get(uuid).is_some_and(|ids| ids.contains(id));
            if let Some(engine) = engines.get(uuid).filter(|_| !orphaned) {
                assert!(engine.holds_request(id), "{id} is assigned to its engine");
            }
        }
        for id in self.unassigned() {
            assert!(
                self.open.get(id).is_some_and(|o| o.engine().is_none()),
                "{id} is queued and unassigned"
            );
        }
    }
}
