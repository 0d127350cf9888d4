//! Fake engines and clients around a core, in virtual time.
use super::super::effect::{ClientChannel, Effect, Query, QueryKind};
use super::super::event::{Event, FoundClient, FoundMap, FoundReply, FoundTask, Restored, UnfinishedRequest};
use super::super::transition;
use super::super::{Core, EventTime, Facts};
use super::fake_requests::Serving;
use crate::model::change::{Change, Purge, Reply, Request, UsedRetries};
use crate::model::definition::{CallSource, MapDefinition, MapOptions, Work};
use crate::model::engine::EngineFacts;
use crate::model::node::NodeFacts;
use crate::model::output::Output;
use crate::model::resources::Allocation;
use crate::model::task::{Ask, Cause, Counts, INPUTS_MISSING, Outcome, TaskState};
use crate::model::{EngineId, EngineUuid, MapId, TaskId, UnixTime};
use crate::profile::config::ControllerConfig;
use crate::wire::content::client;
use crate::wire::content::engine::{self, Channel, Held, TaskResult};
use crate::wire::message::to_json;
use crate::wire::{Message, Session};
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

/// The state of all tasks according to the records alone.
#[derive(Default)]
pub(super) struct Ledger {
    pub tasks: BTreeMap<TaskId, (TaskState, u32)>,
    /// The number of times each task finished.
    pub finished: HashMap<TaskId, u32>,
    pub completed: Vec<MapId>,
    pub story: Vec<String>,
    pub client_keys: Vec<String>,
    pub purged: Vec<Purge>,
    /// Batch jobs as reported.
    pub jobs: Vec<crate::model::job::JobRow>,
    maps: BTreeMap<MapId, LedgerMap>,
    inputs: HashMap<TaskId, Bytes>,
    places: HashMap<TaskId, EngineId>,
    /// Attempts that failed, and that crashed.
    attempts: HashMap<TaskId, (u32, u32)>,
    /// What tasks ask for in place of their map's request, and the retries that they have used.
    pub asks: HashMap<TaskId, (Ask, UsedRetries)>,
    /// Attempts that had too little memory, and too little time, of maps that give more.
    grown: HashMap<TaskId, (u32, u32)>,
    cancelling: HashSet<TaskId>,
    pub requests: HashMap<String, TaskId>,
    sent: BTreeMap<TaskId, Request>,
    replies: BTreeMap<TaskId, Reply>,
    pub undelivered: BTreeSet<TaskId>,
    abandoned: HashSet<MapId>,
    /// Replies that were written to their connections: noted in a file in that moment.
    pub delivered: HashSet<TaskId>,
    engines: BTreeMap<EngineId, EngineFacts>,
    next_engine: u32,
    /// The recorded output of the current run of each task.
    pub written: HashMap<TaskId, Vec<u8>>,
    /// Every run writes [`output_of`].
    pub all_write: bool,
}

/// The output of a run of a task.
pub(super) fn output_of(task: TaskId, run: u32) -> Vec<u8> {
    let seed = task
        .index
        .wrapping_mul(31)
        .wrapping_add(run.wrapping_mul(17))
        .wrapping_add(task.map.0);
    (0..seed % 23).map(|at| (seed.wrapping_add(at * at)) as u8).collect()
}

struct LedgerMap {
    definition: MapDefinition,
    key: String,
    closed: bool,
    complete: bool,
}

impl Ledger {
    fn go(&mut self, task: TaskId, to: TaskState, run: u32) {
        let (from, had) = *self.tasks.get(&task).unwrap_or_else(|| panic!("{task} was never added"));
        assert!(
            transition::is_allowed(from, to),
            "{task}: {from} → {to} is not in the table\n{}",
            self.story_of(task)
        );
        assert!(run >= had, "{task}: run {run} after run {had}\n{}", self.story_of(task));
        self.tasks.insert(task, (to, run));
    }

    /// The rest of what a run has written: none of it is missing or there twice.
    fn end_output(&mut self, task: TaskId, run: u32, outcome: &Outcome) {
        let mut all = self.written.remove(&task).unwrap_or_default();
        if self.all_write {
            assert!(
                outcome.error.as_ref().is_none_or(|e| e.ename != "OutputLost"),
                "{task}\n{}",
                self.story_of(task)
            );
            all.extend_from_slice(&outcome.stdout.bytes);
            let truth = output_of(task, run);
            assert!(truth.starts_with(&all), "{task} run {run}\n{}", self.story_of(task));
            if outcome.status == TaskState::Ok {
                assert_eq!(all, truth, "{task} run {run}\n{}", self.story_of(task));
            }
        }
    }

    fn used(&self, task: TaskId) -> UsedRetries {
        let (errors, crashes) = self.attempts.get(&task).copied().unwrap_or_default();
        let plain = UsedRetries {
            errors,
            crashes,
            ..UsedRetries::default()
        };
        self.asks.get(&task).map_or(plain, |(_, used)| *used)
    }

    /// Counts an attempt that is repeated.
    fn count_attempt(&mut self, task: TaskId, outcome: &Outcome) {
        let options = &self.maps[&task.map].definition.options;
        let had_too_little = outcome.cause().is_some_and(|cause| cause.is_out_of_memory());
        let grown = self.grown.entry(task).or_default();
        match (had_too_little, outcome.status) {
            (true, _) if options.retry_mem.is_some() => grown.0 += 1,
            (_, TaskState::Timeout) if options.retry_time.is_some() => grown.1 += 1,
            _ => {
                let used = self.attempts.entry(task).or_default();
                match outcome.crashed {
                    true => used.1 += 1,
                    false => used.0 += 1,
                }
            }
        }
    }

    /// An attempt asks for more exactly if the one before had too little, and never for too much.
    fn asks(&mut self, task: TaskId, ask: Ask, used: UsedRetries) {
        let options = &self.maps[&task.map].definition.options;
        let (before, had) = self.asks.get(&task).copied().unwrap_or_default();
        let story = || format!("{task} asks for {ask:?}, used {used:?}\n{}", self.story_of(task));
        let grown = self.grown.get(&task).copied().unwrap_or_default();
        assert_eq!((used.memory, used.time), grown, "{}", story());
        assert_eq!(
            (used.errors, used.crashes),
            self.attempts.get(&task).copied().unwrap_or_default(),
            "{}",
            story()
        );
        let mem = |ask: &Ask| ask.mem_bytes.or(options.mem_bytes);
        let time = |ask: &Ask| ask.limit_s().or(options.timeout_s);
        assert_eq!(mem(&ask) > mem(&before), used.memory > had.memory, "{}", story());
        assert_eq!(time(&ask) > time(&before), used.time > had.time, "{}", story());
        assert!(mem(&ask) >= mem(&before) && time(&ask) >= time(&before), "{}", story());
        assert!(options.max_mem_bytes.is_none_or(|max| ask.mem_bytes <= Some(max)), "{}", story());
        assert!(options.max_time_s.is_none_or(|max| ask.limit_s() <= Some(max)), "{}", story());
        assert!(used.memory.max(used.time) <= 10, "{}", story());
        self.story.push(format!("{task} asks for {ask:?}"));
        self.asks.insert(task, (ask, used));
    }

    fn map_of(&self, key: &str) -> Option<MapId> {
        self.maps.iter().find(|(_, map)| map.key == key).map(|(id, _)| *id)
    }

    pub(super) fn story_of(&self, task: TaskId) -> String {
        let word = format!("{task} ");
        self.story
            .iter()
            .filter(|line| line.starts_with(&word) || line.starts_with("the controller"))
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// The state that a controller restores from these records.
    pub(super) fn restored(&self) -> Restored {
        let mut restored = Restored {
            next_map: self.maps.keys().last().map_or(1, |m| m.0 + 1),
            next_engine: self.next_engine,
            ..Restored::default()
        };
        restored.outcomes = self.outcomes();
        restored.delivered = self.delivered.clone();
        restored.engines = self.engines.iter().map(|(id, facts)| (*id, facts.clone(), UnixTime(1e9))).collect();
        for (id, map) in &self.maps {
            if let Work::Client { curve_key } = &map.definition.work {
                restored.clients.push(self.client(*id, map.key.clone(), curve_key.clone()));
                continue;
            }
            let tasks = || self.tasks.range(TaskId::new(*id, 0)..=TaskId::new(*id, u32::MAX));
            let mut counts = Counts {
                total: tasks().count() as u64,
                ..Counts::default()
            };
            for (_, (state, _)) in tasks() {
                if let Some(counter) = counts.done_counter(*state) {
                    *counter += 1;
                }
            }
            if map.complete {
                restored.finished.push((*id, counts.failed() > 0));
                continue;
            }
            let found = |(task, (state, run)): (&TaskId, &(TaskState, u32))| FoundTask {
                index: task.index,
                run: *run,
                attempts: 0,
                state: *state,
                engine: matches!(state, TaskState::Assigned | TaskState::Running).then(|| self.places[task]),
                used: self.used(*task),
                ask: self.asks.get(task).map_or_else(Ask::default, |(ask, _)| *ask),
                cancelled: self.cancelling.contains(task),
                written: match state {
                    TaskState::Running => [self.written.get(task).map_or(0, |bytes| bytes.len() as u64), 0, 0],
                    _ => [0; 3],
                },
                input: self.inputs[task].clone(),
            };
            restored.maps.push(FoundMap {
                map: *id,
                definition: map.definition.clone(),
                key: map.key.clone(),
                closed: map.closed,
                abandoned: self.abandoned.contains(id),
                counts,
                tasks: tasks().filter(|(_, (state, _))| !state.is_done()).map(found).collect(),
            });
        }
        restored
    }

    /// The outcomes of requests that others may depend on.
    fn outcomes(&self) -> Vec<(String, bool, Option<EngineUuid>)> {
        let ended = self.replies.iter();
        ended
            .map(|(task, reply)| {
                let engine = reply.engine.as_ref().map(|(_, uuid)| uuid.clone());
                (self.sent[task].msg_id.clone(), reply.status == TaskState::Ok, engine)
            })
            .collect()
    }

    fn client(&self, map: MapId, session: String, key: Option<String>) -> FoundClient {
        let range = TaskId::new(map, 0)..=TaskId::new(map, u32::MAX);
        let requests = self.sent.range(range.clone()).filter(|(task, _)| !self.tasks[task].0.is_done());
        let unfinished = |(task, request): (&TaskId, &Request)| UnfinishedRequest {
            task: *task,
            run: self.tasks[task].1,
            engine: match &request.engine {
                Some(uuid) => self.engines.iter().find(|(_, facts)| facts.uuid == *uuid).map(|(id, _)| *id),
                None => self.places.get(task).copied().filter(|_| self.tasks[task].0 != TaskState::Ready),
            },
            request: request.clone(),
        };
        let undelivered = |task: &TaskId| {
            let (request, reply) = (&self.sent[task], &self.replies[task]);
            FoundReply {
                task: *task,
                msg_id: request.msg_id.clone(),
                queue: request.queue.into(),
                metadata: request.metadata.clone(),
                engine: reply.engine.as_ref().map(|(_, uuid)| uuid.to_string()),
                reply: Message {
                    identities: vec![],
                    header: serde_json::from_slice(&reply.header).unwrap(),
                    header_json: reply.header.clone(),
                    parent_json: request.header.clone(),
                    metadata_json: reply.metadata.clone(),
                    content_json: reply.content.clone(),
                    buffers: reply.buffers.clone(),
                    buffer_file: Default::default(),
                },
            }
        };
        FoundClient {
            session,
            key,
            map,
            next_index: self.sent.range(range.clone()).last().map_or(0, |(task, _)| task.index + 1),
            requests: requests.map(unfinished).collect(),
            undelivered: self.undelivered.range(range).map(undelivered).collect(),
        }
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::MapAdded {
                map, definition, client, ..
            } => {
                let entry = LedgerMap {
                    definition: (**definition).clone(),
                    key: client.clone(),
                    closed: false,
                    complete: false,
                };
                assert!(self.maps.insert(*map, entry).is_none(), "map {map} was added twice");
            }
            Change::MapPriority { map, priority } => self.maps.get_mut(map).unwrap().definition.options.priority = *priority,
            Change::MapClosed { map, .. } => self.maps.get_mut(map).unwrap().closed = true,
            Change::ReplyUndelivered { task } => {
                self.undelivered.insert(*task);
            }
            Change::RepliesDelivered { tasks } => tasks.iter().for_each(|task| {
                self.undelivered.remove(task);
            }),
            Change::Purged { what } => self.purged.push(what.clone()),
            Change::JobsSeen { jobs } => self.jobs.extend(jobs.clone()),
            Change::ClientKnown { map, curve_key } => {
                self.client_keys.push(curve_key.clone());
                if let Some(map) = self.maps.get_mut(map) {
                    map.definition.work = Work::Client {
                        curve_key: Some(curve_key.clone()),
                    };
                }
            }
            Change::TaskCancelling { task } => {
                self.cancelling.insert(*task);
            }
            Change::EngineRegistered { id, facts, .. } => {
                self.next_engine = self.next_engine.max(id.0 + 1);
                assert!(
                    self.engines.insert(*id, (**facts).clone()).is_none(),
                    "engine {id} was registered twice"
                );
            }
            Change::EngineGone { id, .. } => {
                self.engines.remove(id);
            }
            Change::RequestAdded { task, request } => {
                let state = if request.engine.is_some() {
                    TaskState::Assigned
                } else {
                    TaskState::Ready
                };
                assert!(self.tasks.insert(*task, (state, 1)).is_none(), "{task} was added twice");
                self.requests.insert(request.msg_id.clone(), *task);
                let (id, queue) = (&request.msg_id, request.queue);
                self.story.push(format!(
                    "{task} {id} added to {queue} {}",
                    String::from_utf8_lossy(&request.metadata)
                ));
                self.sent.insert(*task, (**request).clone());
            }
            Change::RequestFinished { msg_id, reply } => {
                let task = self.requests[msg_id];
                let run = self.tasks[&task].1;
                self.replies.insert(task, (**reply).clone());
                self.story.push(format!(
                    "{task} finished {} {}",
                    reply.status,
                    String::from_utf8_lossy(&reply.content)
                ));
                self.go(task, reply.status, run);
                *self.finished.entry(task).or_default() += 1;
            }
            Change::TasksAdded {
                map, first, inputs, state, ..
            } => {
                for i in 0..inputs.len() as u32 {
                    let task = TaskId::new(*map, first + i);
                    assert!(self.tasks.insert(task, (*state, 1)).is_none(), "{task} was added twice");
                    self.inputs.insert(task, inputs[i as usize].clone());
                    self.story.push(format!("{task} added {state}"));
                }
            }
            Change::MapReleased { map } => {
                let waiting: Vec<TaskId> = self
                    .tasks
                    .iter()
                    .filter(|(t, (s, _))| t.map == *map && *s == TaskState::Waiting)
                    .map(|(t, _)| *t)
                    .collect();
                for task in waiting {
                    self.go(task, TaskState::Ready, 1);
                }
            }
            Change::TasksAssigned {
                map,
                first,
                count,
                run,
                engine,
            } => {
                for i in 0..*count {
                    let task = TaskId::new(*map, first + i);
                    self.story.push(format!("{task} run {run} to engine {engine}"));
                    self.go(task, TaskState::Assigned, *run);
                    self.places.insert(task, *engine);
                }
            }
            Change::TaskBegun { task, run, .. } => self.go(*task, TaskState::Running, *run),
            Change::OutputAdded { task, stream, bytes } => {
                assert_eq!(*stream, crate::model::output::Stream::Stdout);
                assert_eq!(self.tasks[task].0, TaskState::Running, "{task}");
                self.written.entry(*task).or_default().extend_from_slice(bytes);
            }
            Change::TaskFinished {
                task,
                run,
                outcome,
                engine,
            } => {
                if outcome.error.as_ref().is_some_and(|error| error.ename == INPUTS_MISSING) {
                    self.abandoned.insert(task.map);
                }
                assert!(outcome.status.is_done(), "{task} ends as {}", outcome.status);
                if let Some(engine) = engine {
                    assert_eq!(self.places.get(task), Some(engine), "{task} ends where it is");
                }
                self.end_output(*task, *run, outcome);
                self.story.push(format!("{task} run {run} finished {}", outcome.status));
                self.go(*task, outcome.status, *run);
                *self.finished.entry(*task).or_default() += 1;
            }
            Change::TaskReturned { task, run, attempt } => {
                let before = self.tasks[task].1;
                match attempt {
                    Some(attempt) => self.end_output(*task, before, &attempt.outcome),
                    None => drop(self.written.remove(task)),
                }
                if let Some(attempt) = attempt {
                    self.count_attempt(*task, &attempt.outcome);
                }
                self.story.push(format!("{task} returned, next run {run}"));
                self.go(*task, TaskState::Ready, *run);
            }
            Change::TaskAsks { task, ask, used } => self.asks(*task, *ask, *used),
            Change::TaskResubmitted { task, run } => {
                self.go(*task, TaskState::Ready, *run);
                self.finished.remove(task);
                self.asks.remove(task);
                self.grown.remove(task);
                self.attempts.remove(task);
            }
            Change::MapCompleted { map, at } => {
                self.maps.get_mut(map).unwrap().complete = at.is_some();
                if at.is_some() {
                    self.completed.push(*map);
                }
            }
            _ => {}
        }
    }
}

/// Two engines share a node.
fn host_of(engine: &str) -> &'static str {
    match engine {
        "a" | "b" => "node1",
        _ => "node",
    }
}

/// A fake engine with its unanswered tasks.
#[derive(Default)]
pub(super) struct FakeEngine {
    pub queue: Vec<Held>,
    pub definitions: Vec<MapId>,
    /// Every definition that it was sent, those that it was to forget too.
    pub defined: Vec<MapId>,
    /// Every bundle that it was sent.
    pub bundles: Vec<String>,
    pub sequence: u64,
    pub gave_back: u32,
    pub signals: Vec<i32>,
    pub recorded_replies: Vec<String>,
    /// Messages to it and from it are lost until it registers again.
    pub cut: bool,
    /// Results that the controller has not called recorded.
    pub kept: Vec<(u64, TaskResult)>,
    cancelled: Vec<Held>,
    /// The acknowledged output bytes.
    pub output_recorded: HashMap<Held, u64>,
    /// What it was given for its tasks of each map.
    allocations: HashMap<MapId, Allocation>,
    pub fake_requests: Serving,
}

pub(super) struct Harness {
    pub core: Core,
    pub now: Duration,
    pub ledger: Ledger,
    pub engines: BTreeMap<String, FakeEngine>,
    /// Replies and other messages to clients, in order.
    pub to_clients: Vec<(ClientChannel, Vec<Bytes>, Message)>,
    pub other: Vec<Effect>,
    pub session: Session,
    config: ControllerConfig,
    /// The controller dies after its next event: before or after the commit of what it recorded.
    pub dies: Option<Dies>,
    events: u64,
    /// The core's invariants are checked after this number of events.
    pub check_every: u64,
    /// Answers of engines to the messages of this event, sent once all of them are delivered.
    answers: Vec<(String, engine::Results)>,
    /// Replies just handed over.
    given: Vec<TaskId>,
    /// The connections of ipyparallel clients; none where a test plays their part and that of the engines.
    pub connected: Option<HashSet<(ClientChannel, Bytes)>>,
    /// When the jobs of engines end, in seconds after the start.
    pub ends: Option<f64>,
    /// What the nodes of engines have.
    pub node: NodeFacts,
    /// The batch job of engines that register.
    pub job: String,
    /// Messages to engines that the harness does not simulate.
    pub received: Vec<(String, Message)>,
    /// Events to handle after all effects of an event are carried out.
    pub next: VecDeque<Event>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dies {
    BeforeCommit,
    /// Recorded, but not sent.
    BeforeSend,
}

pub(super) fn config() -> ControllerConfig {
    ControllerConfig {
        lease_ms: 10_000,
        ..ControllerConfig::default()
    }
}

impl Harness {
    pub(super) fn new() -> Harness {
        Harness::with(config())
    }

    pub(super) fn with(config: ControllerConfig) -> Harness {
        Harness {
            core: Harness::start(&config, Duration::ZERO),
            config,
            dies: None,
            events: 0,
            check_every: 1,
            answers: Vec::new(),
            given: Vec::new(),
            connected: None,
            ends: None,
            job: String::new(),
            node: NodeFacts::default(),
            received: Vec::new(),
            next: VecDeque::new(),
            now: Duration::ZERO,
            ledger: Ledger::default(),
            engines: BTreeMap::new(),
            to_clients: Vec::new(),
            other: Vec::new(),
            session: Session::new(b"", "client", "me"),
        }
    }

    fn start(config: &ControllerConfig, now: Duration) -> Core {
        let facts = Facts {
            cluster_id: String::new(),
            pid: 1,
            host: "here".into(),
            started: UnixTime(1e9),
            session: format!("core {}", now.as_millis()),
            engine_file: Value::Null,
            seed: 1,
        };
        Core::new(config.clone(), facts, Harness::time(now))
    }

    fn time(now: Duration) -> EventTime {
        EventTime {
            since_start: now,
            unix: UnixTime(1e9 + now.as_secs_f64()),
        }
    }

    pub(super) fn event(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.core.handle(Harness::time(self.now), event, &mut effects);
        self.events += 1;
        if self.events.is_multiple_of(self.check_every) {
            self.core.check();
        }
        match self.dies.take() {
            None => effects.into_iter().for_each(|effect| self.carry_out(effect)),
            Some(Dies::BeforeCommit) => self.restart(),
            Some(Dies::BeforeSend) => {
                for effect in effects {
                    if let Effect::Record(change) = effect {
                        self.ledger.apply(&change);
                    }
                }
                self.restart();
            }
        }
        if !self.given.is_empty() {
            let tasks = std::mem::take(&mut self.given);
            self.event(Event::RepliesDelivered { tasks });
        }
        while !self.answers.is_empty() {
            let (name, results) = self.answers.remove(0);
            self.engine_sends(&name, engine::RESULTS, &results);
        }
        while let Some(next) = self.next.pop_front() {
            self.event(next);
        }
    }

    /// Another controller on the same records. Engines have to find it.
    pub(super) fn restart(&mut self) {
        self.ledger.story.push("the controller dies and starts again".into());
        self.engines.values_mut().for_each(|e| e.cut = true);
        self.connected.iter_mut().for_each(HashSet::clear);
        // Messages to the dead controller are lost.
        self.next.clear();
        self.core = Harness::start(&self.config, self.now);
        let mut effects = Vec::new();
        self.core.restore(Harness::time(self.now), self.ledger.restored(), &mut effects);
        self.core.check();
        effects.into_iter().for_each(|effect| self.carry_out(effect));
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Record(change) => self.ledger.apply(&change),
            Effect::Reply { channel, client, reply } if !self.is_connected(channel, &client) => {
                self.next.push_back(Event::ReplyUndelivered { channel, client, reply });
            }
            Effect::Reply { channel, client, reply } => {
                let route = std::iter::once(client).chain(reply.engine).collect();
                self.to_clients.push((channel, route, reply.message));
                self.ledger.delivered.extend(reply.tasks.iter().copied());
                self.given.extend(reply.tasks);
            }
            Effect::ToClient { channel, route, message } => self.to_clients.push((channel, route, message)),
            Effect::ToEngine {
                engine,
                channel: Channel::Native,
                message,
                ..
            } => self.deliver_to_engine(&engine.0, &message),
            Effect::ToEngine {
                engine,
                channel,
                client,
                message,
                ..
            } if self.connected.is_some() => self.engine_is_asked(&engine.0, channel, client, message),
            Effect::Query(Query {
                kind: QueryKind::MapOf { key, request, .. },
                ..
            }) => {
                let map = self.ledger.map_of(&key);
                self.event(Event::MapFound {
                    request,
                    map,
                    bundle: None,
                });
            }
            other => self.other.push(other),
        }
    }

    fn is_connected(&self, channel: ClientChannel, client: &Bytes) -> bool {
        let among = |connected: &HashSet<_>| connected.contains(&(channel, client.clone()));
        self.connected.as_ref().is_none_or(among)
    }

    fn deliver_to_engine(&mut self, name: &str, message: &Message) {
        if !self.engines.contains_key(name) {
            self.received.push((name.to_string(), message.clone()));
        }
        // Messages to a dead engine are lost.
        let Some(engine) = self.engines.get_mut(name).filter(|e| !e.cut) else {
            return;
        };
        match message.msg_type() {
            engine::REGISTERED => {
                let reply: engine::Registered = message.content().unwrap();
                assert_eq!(reply.status, "ok", "{reply:?}");
                engine.queue.retain(|held| !reply.drop.contains(held));
                engine.sequence += 1;
                let sequence = engine.sequence;
                let results: Vec<TaskResult> = engine.kept.iter().map(|(_, r)| r.clone()).collect();
                engine.kept.iter_mut().for_each(|(s, _)| *s = sequence);
                let again = engine.fake_requests.replies_of(name);
                self.answers.push((name.to_string(), engine::Results { sequence, results }));
                self.next.extend(again);
            }
            engine::RECORDED => {
                let recorded: engine::Recorded = message.content().unwrap();
                engine.kept.retain(|(sequence, _)| *sequence > recorded.sequence);
            }
            engine::SETTLED => {
                let settled: engine::Settled = message.content().unwrap();
                engine.kept.retain(|(sequence, _)| !settled.recorded.contains(sequence));
                engine.definitions.retain(|map| !settled.forget.contains(map));
            }
            engine::FORGET => {
                let forget: engine::Forget = message.content().unwrap();
                engine.definitions.retain(|map| *map != forget.map);
            }
            engine::CANCEL => engine.cancelled.extend(message.content::<engine::Cancel>().unwrap().tasks),
            engine::BUNDLE => {
                let came: engine::BundleContent = message.content().unwrap();
                let bundle = crate::model::bundle::Bundle::from(message.buffers[0].clone());
                assert_eq!(bundle.hash, came.hash);
                engine.bundles.push(came.hash);
            }
            engine::DEFINITION => {
                let engine::Definition { map, .. } = message.content().unwrap();
                engine.definitions.push(map);
                engine.defined.push(map);
            }
            engine::TASKS => {
                let tasks: engine::Tasks = message.content().unwrap();
                if tasks.definition.is_some() {
                    engine.definitions.push(tasks.map);
                    engine.defined.push(tasks.map);
                }
                assert!(
                    engine.definitions.contains(&tasks.map),
                    "the definition of {} comes before its tasks",
                    tasks.map
                );
                let map = tasks.map;
                let is_new = engine.allocations.get(&map) != tasks.allocation.as_ref();
                assert!(
                    !is_new || !engine.queue.iter().any(|held| held.map == map),
                    "the allocation of {map} changes while {name} holds its tasks"
                );
                match tasks.allocation {
                    Some(allocation) => engine.allocations.insert(map, allocation),
                    None => engine.allocations.remove(&map),
                };
                for t in &tasks.tasks {
                    let task = TaskId::new(map, t.index);
                    let ask = self.ledger.asks.get(&task).map_or_else(Ask::default, |(ask, _)| *ask);
                    assert_eq!((t.mem_bytes, t.limit_ms), (ask.mem_bytes, ask.limit_ms), "{task}");
                }
                engine.queue.extend(tasks.tasks.iter().map(|t| Held {
                    map,
                    index: t.index,
                    run: t.run,
                }));
                self.check_resources(name);
                self.check_max_running(map);
            }
            engine::REPLIES_RECORDED => {
                let reported: engine::RepliesRecorded = message.content().unwrap();
                engine.fake_requests.forget(&reported.msg_ids);
                engine.recorded_replies.extend(reported.msg_ids);
            }
            engine::OUTPUT_RECORDED => {
                let recorded: engine::OutputRecorded = message.content().unwrap();
                engine.output_recorded.insert(recorded.task, recorded.stdout);
            }
            engine::RETURN_RECORDED => {
                let recorded: engine::ReturnRecorded = message.content().unwrap();
                engine
                    .fake_requests
                    .returned
                    .retain(|returned| returned.sequence != recorded.sequence);
            }
            engine::SIGNAL => engine.signals.push(message.content::<engine::Signal>().unwrap().signal),
            engine::GIVE_BACK => engine.gave_back = message.content::<engine::GiveBack>().unwrap().at_most,
            _ => {}
        }
    }

    /// Whether the controller has not given up this engine, whose lease may have expired.
    fn is_known(&self, name: &str) -> bool {
        self.ledger.engines.values().any(|facts| &*facts.uuid.0 == name)
    }

    fn check_max_running(&self, map: MapId) {
        let known = self.engines.iter().filter(|(name, e)| !e.cut && self.is_known(name));
        let held = known.flat_map(|(_, e)| &e.queue).filter(|held| held.map == map).count();
        let max = self.ledger.maps[&map].definition.options.max_running;
        assert!(max.is_none_or(|max| held <= max as usize), "{held} tasks of {map} are with engines");
    }

    /// Nothing of this engine's node is promised twice, according to what its engines hold and were given.
    fn check_resources(&self, name: &str) {
        let host = host_of(name);
        let here = || {
            self.engines
                .iter()
                .filter(|(name, e)| host_of(name) == host && !e.cut && self.is_known(name))
        };
        let (mut cpus, mut mem, mut named) = (0, 0, 0);
        let mut gpus: HashMap<&str, u32> = HashMap::new();
        let mut cores: BTreeSet<u16> = BTreeSet::new();
        for (name, engine) in here() {
            let maps: BTreeSet<MapId> = engine.queue.iter().map(|held| held.map).collect();
            for map in &maps {
                let wants = self.ledger.maps[map].definition.options.request().is_some();
                assert_eq!(engine.allocations.contains_key(map), wants, "{name} has a share for {map}");
            }
            let with_share: Vec<MapId> = maps.iter().copied().filter(|map| engine.allocations.contains_key(map)).collect();
            assert!(with_share.len() <= 1, "{name} has shares for {with_share:?}");
            let Some(map) = with_share.first() else {
                cpus += u32::from(
                    !engine.queue.is_empty() || (engine.fake_requests.has_balanced() && self.core.has_load(&name.as_str().into())),
                );
                continue;
            };
            let (options, allocation) = (&self.ledger.maps[map].definition.options, &engine.allocations[map]);
            let wanted = &options.resources;
            assert_eq!(allocation.cpus, wanted.cpus);
            assert_eq!(
                allocation.gpus.len(),
                wanted.gpus.thousandths.div_ceil(1000) as usize,
                "{name}: {allocation:?}"
            );
            assert_eq!(allocation.cores.len(), if wanted.pin { wanted.cpus as usize } else { 0 });
            assert!(
                allocation.cores.iter().all(|core| cores.insert(core)),
                "{host}: cores {} twice",
                allocation.cores
            );
            cpus += allocation.cpus;
            mem += options.mem_bytes.unwrap_or_default();
            named += wanted.named.get("licence").copied().unwrap_or_default();
            for gpu in &allocation.gpus {
                *gpus.entry(&gpu.name).or_default() += wanted.gpus.thousandths.min(1000);
            }
        }
        let node = &self.node;
        assert!(gpus.values().all(|used| *used <= 1000), "gpus of {host}: {gpus:?}");
        assert!(
            mem <= node.mem_bytes && named <= node.named.get("licence").copied().unwrap_or_default(),
            "{host}: {mem}, {named}"
        );
        assert!(cpus <= node.cpus.max(here().count() as u32), "{host}: {cpus} cpus in use");
    }

    /// Lets time pass, with every reminder on its way.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(wake) = self.core.next_wake().filter(|wake| *wake <= end) {
            self.now = self.now.max(wake);
            self.event(Event::TimePassed);
        }
        self.now = end;
        self.event(Event::TimePassed);
    }

    // ---- engines

    pub(super) fn engine_sends<T: Serialize>(&mut self, name: &str, msg_type: &str, content: &T) {
        self.engine_sends_with(name, msg_type, content, Vec::new());
    }

    pub(super) fn engine_sends_with<T: Serialize>(&mut self, name: &str, msg_type: &str, content: &T, buffers: Vec<Bytes>) {
        if self.engines.get(name).is_some_and(|e| e.cut) {
            return;
        }
        let mut message = self.session.message("", msg_type, None, content);
        message.buffers = buffers;
        let engine = EngineUuid::from(name);
        self.event(Event::EngineMessage {
            engine,
            native: true,
            channel: Channel::Native,
            client: Bytes::new(),
            message,
        });
    }

    pub(super) fn register(&mut self, name: &str) {
        self.register_as(name, None);
    }

    /// With the reason why it cannot run Python, if it cannot.
    pub(super) fn register_as(&mut self, name: &str, unavailable: Option<&str>) {
        let engine = self.engines.entry(name.to_string()).or_default();
        engine.cut = false;
        engine.definitions.clear();
        let holds = engine.queue.clone();
        let requests = engine.fake_requests.held();
        let facts = EngineFacts {
            uuid: name.into(),
            host: host_of(name).into(),
            pid: 2,
            version: "0".into(),
            python: String::new(),
            // Half of them are of the new kind.
            capabilities: match name.bytes().map(usize::from).sum::<usize>() % 2 {
                0 => vec!["call".into(), EngineFacts::JOINED.into()],
                _ => vec!["call".into()],
            },
            job: self.job.clone(),
            ends: self.ends.map(|seconds| UnixTime(1e9 + seconds)),
            node: self.node.clone(),
        };
        let register = engine::Register {
            protocol: crate::model::PROTOCOL_VERSION,
            facts,
            id: None,
            allocations: holds
                .iter()
                .filter_map(|held| Some((held.map, engine.allocations.get(&held.map)?.clone())))
                .collect(),
            holds,
            requests,
            returned: engine.fake_requests.returned.clone(),
            unavailable: unavailable.map(String::from),
        };
        self.engine_sends(name, engine::REGISTER, &register);
    }

    /// The engine ends the first of its tasks.
    pub(super) fn finish_one(&mut self, name: &str, outcome: Outcome) -> Option<TaskId> {
        let engine = self.engines.get_mut(name)?;
        if engine.queue.is_empty() {
            return None;
        }
        let held = engine.queue.remove(0);
        let Held { map, index, run } = held;
        engine.sequence += 1;
        let outcome = match engine.cancelled.contains(&held) {
            true => Outcome {
                status: TaskState::Aborted,
                crashed: false,
                ..outcome
            },
            false => outcome,
        };
        let mut outcome = outcome;
        if self.ledger.all_write {
            let start = engine.output_recorded.get(&held).copied().unwrap_or(0);
            let rest = output_of(TaskId::new(map, index), run).split_off(start as usize);
            outcome.stdout = Output::rest(start, rest);
        }
        engine.kept.push((
            engine.sequence,
            TaskResult {
                map,
                index,
                run,
                outcome: outcome.clone(),
            },
        ));
        let results = engine::Results {
            sequence: engine.sequence,
            results: vec![TaskResult { map, index, run, outcome }],
        };
        self.engine_sends(name, engine::RESULTS, &results);
        Some(TaskId::new(map, index))
    }

    pub(super) fn ok(&self) -> Outcome {
        let mut outcome = self.failed(TaskState::Ok);
        outcome.error = None;
        outcome
    }

    pub(super) fn failed(&self, status: TaskState) -> Outcome {
        let at = UnixTime(1e9 + self.now.as_secs_f64());
        Outcome::failure(status, "ValueError", "no", at, at)
    }

    pub(super) fn crashed(&self) -> Outcome {
        Outcome {
            crashed: true,
            ..self.failed(TaskState::Lost)
        }
    }

    /// It used more memory than it asked for.
    pub(super) fn out_of_memory(&self) -> Outcome {
        Outcome {
            cause: Some(Cause::MemoryLimit),
            ..self.crashed()
        }
    }

    // ---- clients

    pub(super) fn ask<T: Serialize>(&mut self, msg_type: &str, content: &T, buffers: Vec<Bytes>) {
        self.send_request(msg_type, content, buffers, false);
    }

    fn send_request<T: Serialize>(&mut self, msg_type: &str, content: &T, buffers: Vec<Bytes>, again: bool) {
        let mut message = self.session.message("", msg_type, None, content);
        message.identities = vec![Bytes::from_static(b"me")];
        message.buffers = buffers;
        message.metadata_json = to_json(&client::Again { again });
        self.event(Event::ClientMessage {
            channel: ClientChannel::Registration,
            message,
        });
    }

    /// Asks, and the reply to just this; none when it was lost.
    pub(super) fn try_ask<T: Serialize>(&mut self, msg_type: &str, content: &T, buffers: Vec<Bytes>) -> Option<Value> {
        self.try_ask_again(msg_type, content, buffers, false)
    }

    /// The same for a request that may have been sent before.
    pub(super) fn try_ask_again<T: Serialize>(&mut self, msg_type: &str, content: &T, buffers: Vec<Bytes>, again: bool) -> Option<Value> {
        let before = self.to_clients.len();
        self.send_request(msg_type, content, buffers, again);
        self.to_clients[before..]
            .iter()
            .find(|(_, _, m)| m.msg_type() == client::reply_type(msg_type))
            .map(|(_, _, m)| m.content().unwrap())
    }

    /// The content of the last reply to a client.
    pub(super) fn reply(&self) -> Value {
        self.to_clients.last().map(|(_, _, m)| m.content().unwrap()).unwrap_or_default()
    }

    /// Submits a map of `count` tasks.
    pub(super) fn submit(&mut self, count: u32, options: MapOptions) -> MapId {
        let map = self.open_map(options);
        self.inputs(map, 0, count, true);
        map
    }

    pub(super) fn open_map(&mut self, options: MapOptions) -> MapId {
        let work = Work::Call {
            from: CallSource::Module { module: "m".into() },
            function: "f".into(),
        };
        self.open_map_of(work, options)
    }

    pub(super) fn open_map_of(&mut self, work: Work, options: MapOptions) -> MapId {
        let key = format!("key {}", self.session.next_id());
        self.ask(
            client::MAP,
            &client::MapRequest {
                key,
                definition: MapDefinition { work, options },
                whole: false,
                watch: None,
                with_bundle: false,
            },
            vec![],
        );
        let reply = self.reply();
        assert_eq!(reply["status"], "ok", "{reply}");
        MapId(reply["map"].as_u64().unwrap() as u32)
    }

    pub(super) fn inputs(&mut self, map: MapId, first: u32, count: u32, last: bool) {
        let lines: Vec<String> = (first..first + count).map(|i| format!("[{i}]")).collect();
        self.ask(
            client::INPUTS,
            &client::InputsRequest {
                map,
                first,
                last,
                abandoned: None,
            },
            vec![Bytes::from(lines.join("\n"))],
        );
    }

    pub(super) fn select(&mut self, msg_type: &str, selection: client::Selection) {
        self.ask(msg_type, &client::SelectionRequest { selection }, vec![]);
    }

    /// The records' answer to a client that wants these tasks of an open map run again.
    pub(super) fn resubmit(&mut self, map: MapId, tasks: &[u32], state: TaskState) {
        let task = |index: &u32| FoundTask {
            index: *index,
            run: 1,
            attempts: 1,
            state,
            engine: None,
            used: UsedRetries {
                errors: 1,
                ..UsedRetries::default()
            },
            ask: Default::default(),
            cancelled: false,
            written: [0; 3],
            input: self.ledger.inputs[&TaskId::new(map, *index)].clone(),
        };
        let of = &self.ledger.maps[&map];
        let found = FoundMap {
            map,
            definition: of.definition.clone(),
            key: of.key.clone(),
            closed: of.closed,
            abandoned: false,
            counts: Counts::default(),
            tasks: tasks.iter().map(task).collect(),
        };
        self.event(Event::ResubmitFound {
            client: Bytes::from_static(b"client"),
            parent: Bytes::from_static(b"{}"),
            request: client::RESUBMIT.into(),
            selection: client::Selection {
                maps: vec![map],
                ..client::Selection::default()
            },
            definition: None,
            maps: vec![found],
        });
    }

    pub(super) fn state(&self, map: MapId, index: u32) -> TaskState {
        self.ledger.tasks[&TaskId::new(map, index)].0
    }

    /// Everything is done, each task once.
    pub(super) fn assert_all_done(&self) {
        for (task, (state, _)) in &self.ledger.tasks {
            assert!(state.is_done(), "{task} is {state}\n{}", self.ledger.story_of(*task));
            assert_eq!(
                self.ledger.finished.get(task),
                Some(&1),
                "{task} finished once\n{}",
                self.ledger.story_of(*task)
            );
        }
    }
}

pub(super) fn engine(id: u32) -> EngineId {
    EngineId(id)
}
