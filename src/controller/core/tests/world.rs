//! Fake engines and clients around a core, in virtual time.
use super::super::effect::{ClientChannel, Effect};
use super::super::event::Event;
use super::super::transition;
use super::super::{Core, Facts, Now};
use crate::model::change::Change;
use crate::model::definition::{CallSource, MapDefinition, MapOptions, Work};
use crate::model::engine::EngineFacts;
use crate::model::task::{Outcome, TaskState};
use crate::model::{EngineId, EngineUuid, MapId, TaskId, UnixTime};
use crate::profile::config::ControllerConfig;
use crate::wire::content::client as say;
use crate::wire::content::engine::{self as tell, Channel, Held, TaskResult};
use crate::wire::{Message, Session};
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// What a task is according to the records alone.
#[derive(Default)]
pub struct Ledger {
    pub tasks: BTreeMap<TaskId, (TaskState, u32)>,
    /// How often each finished.
    pub finished: HashMap<TaskId, u32>,
    pub completed: Vec<MapId>,
    pub story: Vec<String>,
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

    pub fn story_of(&self, task: TaskId) -> String {
        let word = format!("{task} ");
        self.story
            .iter()
            .filter(|line| line.starts_with(&word))
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::TasksAdded {
                map, first, inputs, state, ..
            } => {
                for i in 0..inputs.len() as u32 {
                    let task = TaskId::new(*map, first + i);
                    assert!(self.tasks.insert(task, (*state, 1)).is_none(), "{task} was added twice");
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
                }
            }
            Change::TaskBegun { task, run, .. } => self.go(*task, TaskState::Running, *run),
            Change::TaskFinished { task, run, outcome, .. } => {
                self.story.push(format!("{task} run {run} finished {}", outcome.status));
                self.go(*task, outcome.status, *run);
                *self.finished.entry(*task).or_default() += 1;
            }
            Change::TaskReturned { task, run, .. } => {
                self.story.push(format!("{task} returned, next run {run}"));
                self.go(*task, TaskState::Ready, *run);
            }
            Change::TaskResubmitted { task, run } => {
                self.go(*task, TaskState::Ready, *run);
                self.finished.remove(task);
            }
            Change::MapCompleted { map, at: Some(_) } => self.completed.push(*map),
            _ => {}
        }
    }
}

/// A fake engine: what it was given and has not answered.
#[derive(Default)]
pub struct FakeEngine {
    pub queue: Vec<Held>,
    pub definitions: Vec<MapId>,
    pub sequence: u64,
    pub gave_back: u32,
}

pub struct World {
    pub core: Core,
    pub now: Duration,
    pub ledger: Ledger,
    pub engines: BTreeMap<String, FakeEngine>,
    /// Replies and other messages to clients, in order.
    pub to_clients: Vec<(ClientChannel, Vec<Bytes>, Message)>,
    pub other: Vec<Effect>,
    pub session: Session,
}

pub fn config() -> ControllerConfig {
    ControllerConfig {
        lease_ms: 10_000,
        ..ControllerConfig::default()
    }
}

impl World {
    pub fn new() -> World {
        World::with(config())
    }

    pub fn with(config: ControllerConfig) -> World {
        let facts = Facts {
            cluster_id: String::new(),
            pid: 1,
            host: "here".into(),
            started: UnixTime(1e9),
            session: "core".into(),
            engine_file: Value::Null,
            seed: 1,
        };
        let now = Now {
            since_start: Duration::ZERO,
            unix: UnixTime(1e9),
        };
        World {
            core: Core::new(config, facts, now),
            now: Duration::ZERO,
            ledger: Ledger::default(),
            engines: BTreeMap::new(),
            to_clients: Vec::new(),
            other: Vec::new(),
            session: Session::new(b"", "client", "me"),
        }
    }

    pub fn event(&mut self, event: Event) {
        let mut effects = Vec::new();
        let now = Now {
            since_start: self.now,
            unix: UnixTime(1e9 + self.now.as_secs_f64()),
        };
        self.core.handle(now, event, &mut effects);
        self.core.check();
        for effect in effects {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Record(change) => self.ledger.apply(&change),
            Effect::ToClient { channel, route, message } => self.to_clients.push((channel, route, message)),
            Effect::ToEngine {
                engine,
                channel: Channel::Native,
                message,
                ..
            } => self.engine_hears(&engine.0, &message),
            other => self.other.push(other),
        }
    }

    fn engine_hears(&mut self, name: &str, message: &Message) {
        // What is sent to a dead engine is lost.
        let Some(engine) = self.engines.get_mut(name) else { return };
        match message.msg_type() {
            tell::DEFINITION => engine.definitions.push(message.content::<tell::Definition>().unwrap().map),
            tell::TASKS => {
                let tasks: tell::Tasks = message.content().unwrap();
                assert!(
                    engine.definitions.contains(&tasks.map),
                    "the definition of {} comes before its tasks",
                    tasks.map
                );
                engine.queue.extend(tasks.tasks.iter().map(|t| Held {
                    map: tasks.map,
                    index: t.index,
                    run: t.run,
                }));
            }
            tell::GIVE_BACK => engine.gave_back = message.content::<tell::GiveBack>().unwrap().at_most,
            _ => {}
        }
    }

    /// Lets time pass, with every reminder on its way.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(wake) = self.core.next_wake().filter(|wake| *wake <= end) {
            self.now = self.now.max(wake);
            self.event(Event::TimePassed);
        }
        self.now = end;
        self.event(Event::TimePassed);
    }

    // ---- engines

    pub fn engine_says<T: Serialize>(&mut self, name: &str, msg_type: &str, content: &T) {
        let message = self.session.message("", msg_type, None, content);
        let engine = EngineUuid::from(name);
        self.event(Event::EngineSaid {
            engine,
            native: true,
            channel: Channel::Native,
            client: Bytes::new(),
            message,
        });
    }

    pub fn register(&mut self, name: &str) {
        let holds = self.engines.entry(name.to_string()).or_default().queue.clone();
        let facts = EngineFacts {
            uuid: name.into(),
            host: "node".into(),
            pid: 2,
            version: "0".into(),
            python: String::new(),
            capabilities: vec!["call".into()],
        };
        let register = tell::Register {
            protocol: crate::model::PROTOCOL_VERSION,
            facts,
            id: None,
            holds,
        };
        self.engine_says(name, tell::REGISTER, &register);
    }

    /// The engine ends the first of its tasks.
    pub fn finish_one(&mut self, name: &str, outcome: Outcome) -> Option<TaskId> {
        let engine = self.engines.get_mut(name)?;
        if engine.queue.is_empty() {
            return None;
        }
        let Held { map, index, run } = engine.queue.remove(0);
        engine.sequence += 1;
        let results = tell::Results {
            sequence: engine.sequence,
            results: vec![TaskResult { map, index, run, outcome }],
        };
        self.engine_says(name, tell::RESULTS, &results);
        Some(TaskId::new(map, index))
    }

    pub fn ok(&self) -> Outcome {
        let mut outcome = self.failed(TaskState::Ok);
        outcome.error = None;
        outcome
    }

    pub fn failed(&self, status: TaskState) -> Outcome {
        let at = UnixTime(1e9 + self.now.as_secs_f64());
        Outcome::failure(status, "ValueError", "no", at, at)
    }

    pub fn crashed(&self) -> Outcome {
        Outcome {
            crashed: true,
            ..self.failed(TaskState::Lost)
        }
    }

    // ---- clients

    pub fn ask<T: Serialize>(&mut self, msg_type: &str, content: &T, buffers: Vec<Bytes>) {
        let mut message = self.session.message("", msg_type, None, content);
        message.identities = vec![Bytes::from_static(b"me")];
        message.buffers = buffers;
        self.event(Event::ClientSaid {
            channel: ClientChannel::Registration,
            message,
        });
    }

    /// The content of the last reply to a client.
    pub fn reply(&self) -> Value {
        self.to_clients.last().map(|(_, _, m)| m.content().unwrap()).unwrap_or_default()
    }

    /// Submits a map of `count` tasks.
    pub fn submit(&mut self, count: u32, options: MapOptions) -> MapId {
        let map = self.open_map(options);
        self.inputs(map, 0, count, true);
        map
    }

    pub fn open_map(&mut self, options: MapOptions) -> MapId {
        let work = Work::Call {
            from: CallSource::Module { module: "m".into() },
            function: "f".into(),
        };
        let key = format!("key {}", self.session.next_id());
        self.ask(
            say::MAP,
            &say::MapRequest {
                key,
                definition: MapDefinition { work, options },
            },
            vec![],
        );
        let reply = self.reply();
        assert_eq!(reply["status"], "ok", "{reply}");
        MapId(reply["map"].as_u64().unwrap() as u32)
    }

    pub fn inputs(&mut self, map: MapId, first: u32, count: u32, last: bool) {
        let lines: Vec<String> = (first..first + count).map(|i| format!("[{i}]")).collect();
        self.ask(
            say::INPUTS,
            &say::InputsRequest { map, first, last },
            vec![Bytes::from(lines.join("\n"))],
        );
    }

    pub fn select(&mut self, msg_type: &str, selection: say::Selection) {
        self.ask(msg_type, &say::SelectionRequest { selection }, vec![]);
    }

    pub fn state(&self, map: MapId, index: u32) -> TaskState {
        self.ledger.tasks[&TaskId::new(map, index)].0
    }

    /// Everything is done, each task once.
    pub fn assert_all_done(&self) {
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

pub fn engine(id: u32) -> EngineId {
    EngineId(id)
}
