//! A cluster in virtual time around the controller's core: engines on nodes that complete their tasks after the durations of
//! their map, and a ledger of what each node gives out, which knows nothing of the core's accounts.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    dead_code,
    reason = "a simulation that cannot go on fails; benchmarks and tests use different parts"
)]
use bytes::Bytes;
use pcluster::testing::ControllerConfig;
use pcluster::testing::controller::{ClientChannel, Core, Effect, Event, EventTime, Facts};
use pcluster::testing::model::*;
use pcluster::testing::wire::content::{client, engine};
use pcluster::testing::wire::{Message, Session};
use serde_json::Value;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

/// xorshift64*.
pub struct Rng(pub u64);

impl Rng {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides.max(1)
    }
}

struct Task {
    map: MapId,
    index: u32,
    run: u32,
}

struct Engine {
    uuid: EngineUuid,
    node: usize,
    queue: VecDeque<Task>,
    /// When the task at the front began, and when it ends; [`Engine::ended`] was set at that time.
    began: u64,
    turn: u64,
    sequence: u64,
    /// What the node gives this engine while it holds tasks.
    cpus: u32,
    gpus: Vec<String>,
    allocation: Option<(MapId, Allocation)>,
    is_gone: bool,
    is_away: bool,
}

/// An engine got tasks.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    pub map: MapId,
    pub tasks: usize,
    pub node: usize,
    pub was_idle: bool,
}

/// What happens to engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// An engine, of those that have been there, is lost with what it holds.
    Lost(usize),
    /// It is not connected until the time given in microseconds, and goes on with its work.
    Away(usize, u64),
    Returns(usize),
    /// Another engine joins this node.
    Joins(usize),
    /// It returns at most N tasks that it has not started.
    GivesBack(usize, u32),
}

impl Task {
    fn held(&self) -> engine::Held {
        engine::Held {
            map: self.map,
            index: self.index,
            run: self.run,
        }
    }
}

#[derive(Default)]
struct Node {
    has: NodeFacts,
    engines: u32,
    in_use: u32,
    gpus: HashMap<String, u32>,
}

/// What became of a map.
#[derive(Clone, Debug, Default)]
pub struct Account {
    pub options: MapOptions,
    /// The range of durations in microseconds.
    pub takes: (u64, u64),
    pub count: u32,
    pub started: u32,
    pub done: u32,
    /// Processors times seconds.
    pub cpu_s: f64,
    /// The longest time between two starts of its tasks, or submission and the first, while some were ready.
    pub longest_wait_us: u64,
    last_start: u64,
    inputs_sent: u32,
}

impl Account {
    pub fn ready(&self) -> u32 {
        self.count - self.started
    }
}

pub struct Simulation {
    pub core: Core,
    pub rng: Rng,
    /// Microseconds.
    pub now: u64,
    pub maps: HashMap<MapId, Account>,
    pub events: u64,
    /// For each message with tasks.
    pub starts: Vec<Start>,
    session: Session,
    engines: Vec<Engine>,
    by_uuid: HashMap<EngineUuid, usize>,
    nodes: Vec<Node>,
    agenda: BinaryHeap<Reverse<(u64, usize, u64)>>,
    changes: BinaryHeap<Reverse<(u64, Change)>>,
    /// Tasks of all maps that have ended.
    pub ended: u32,
    /// How long a request to give tasks back travels.
    pub network_us: u64,
    /// How often engines were requested to give tasks back.
    pub given_back: u32,
    last_reply: Value,
    effects: Vec<Effect>,
    /// Processors in use times microseconds, and when they last changed.
    busy_cpu_us: u128,
    busy_cpus: u64,
    busy_since: u64,
}

/// Inputs in one message.
const CHUNK: u32 = 20_000;

impl Simulation {
    pub fn new(seed: u64, config: ControllerConfig) -> Simulation {
        let facts = Facts {
            cluster_id: String::new(),
            pid: 1,
            host: "here".into(),
            started: UnixTime(1e9),
            session: "simulation".into(),
            engine_file: Value::Null,
            seed,
        };
        // Its engines send no heartbeats.
        let config = ControllerConfig {
            heartbeat_interval_ms: 3_600_000,
            lease_ms: 100 * 3_600_000,
            ..config
        };
        Simulation {
            core: Core::new(config, facts, Simulation::time(0)),
            rng: Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            now: 0,
            maps: HashMap::new(),
            events: 0,
            starts: Vec::new(),
            session: Session::new(b"key", "simulation", "me"),
            engines: Vec::new(),
            by_uuid: HashMap::new(),
            nodes: Vec::new(),
            agenda: BinaryHeap::new(),
            changes: BinaryHeap::new(),
            ended: 0,
            network_us: 500,
            given_back: 0,
            last_reply: Value::Null,
            effects: Vec::new(),
            busy_cpu_us: 0,
            busy_cpus: 0,
            busy_since: 0,
        }
    }

    fn time(now: u64) -> EventTime {
        EventTime {
            since_start: Duration::from_micros(now),
            unix: UnixTime(1e9 + now as f64 / 1e6),
        }
    }

    /// Adds a node with engines.
    pub fn add_node(&mut self, has: NodeFacts, engines: u32) {
        let node = self.nodes.len();
        self.nodes.push(Node {
            engines,
            has,
            ..Node::default()
        });
        (0..engines).for_each(|_| self.add_engine(node));
    }

    fn add_engine(&mut self, node: usize) {
        let at = self.engines.len();
        let uuid = EngineUuid::from(format!("{node}-{at}").as_str());
        self.by_uuid.insert(uuid.clone(), at);
        self.engines.push(Engine {
            uuid,
            node,
            queue: VecDeque::new(),
            began: 0,
            turn: 0,
            sequence: 0,
            cpus: 0,
            gpus: Vec::new(),
            allocation: None,
            is_gone: false,
            is_away: false,
        });
        self.register(at);
    }

    fn register(&mut self, at: usize) {
        let engine = &self.engines[at];
        let facts = EngineFacts {
            uuid: engine.uuid.clone(),
            host: format!("node{}", engine.node),
            pid: 1,
            version: "0".into(),
            python: String::new(),
            capabilities: vec!["call".into(), EngineFacts::JOINED.into()],
            job: String::new(),
            ends: None,
            node: self.nodes[engine.node].has.clone(),
        };
        let register = engine::Register {
            protocol: PROTOCOL_VERSION,
            facts,
            id: None,
            holds: engine.queue.iter().map(Task::held).collect(),
            requests: Vec::new(),
            allocations: engine.allocation.clone().into_iter().collect(),
            returned: Vec::new(),
            unavailable: None,
        };
        let uuid = engine.uuid.clone();
        let message = self.session.message("", engine::REGISTER, None, &register);
        self.engine_event(uuid, message);
    }

    /// Plans a change.
    pub fn plan(&mut self, at: u64, change: Change) {
        self.changes.push(Reverse((at, change)));
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Joins(node) => {
                self.nodes[node].engines += 1;
                self.add_engine(node);
            }
            Change::Lost(at) if !self.engines[at].is_gone && !self.engines[at].is_away => {
                let engine = &mut self.engines[at];
                engine.is_gone = true;
                engine.turn += 1;
                let held: Vec<Task> = engine.queue.drain(..).collect();
                for task in &held {
                    self.maps.get_mut(&task.map).unwrap().started -= 1;
                }
                if let Some(task) = held.first() {
                    self.release(at, task.map);
                }
                let gone = engine::Unregister { reason: "lost".into() };
                let message = self.session.message("", engine::UNREGISTER, None, &gone);
                let uuid = self.engines[at].uuid.clone();
                self.engine_event(uuid, message);
            }
            Change::Away(at, until) if !self.engines[at].is_gone && !self.engines[at].is_away => {
                self.engines[at].is_away = true;
                let engine = self.engines[at].uuid.clone();
                self.event(Event::EngineDisconnected { engine });
                self.plan(until, Change::Returns(at));
            }
            Change::Returns(at) => {
                self.engines[at].is_away = false;
                self.register(at);
            }
            Change::GivesBack(at, at_most) => self.return_tasks(at, at_most),
            Change::Lost(_) | Change::Away(..) => {}
        }
    }

    /// Its node takes back what it gave to this engine.
    fn release(&mut self, at: usize, map: MapId) {
        let engine = &mut self.engines[at];
        let each = self.maps[&map].options.resources.gpus.thousandths.min(1000);
        let cpus = std::mem::take(&mut engine.cpus);
        engine.allocation = None;
        let node = &mut self.nodes[engine.node];
        node.in_use -= cpus;
        for gpu in engine.gpus.drain(..) {
            *node.gpus.get_mut(&gpu).unwrap() -= each;
        }
        self.change_busy(-i64::from(cpus));
    }

    fn return_tasks(&mut self, at: usize, at_most: u32) {
        let engine = &mut self.engines[at];
        if engine.is_gone || engine.is_away {
            return;
        }
        let unstarted = engine.queue.len().saturating_sub(1);
        let keep = engine.queue.len() - unstarted.min(at_most as usize);
        let tasks: Vec<engine::Held> = engine.queue.drain(keep..).map(|task| task.held()).collect();
        for task in &tasks {
            self.maps.get_mut(&task.map).unwrap().started -= 1;
        }
        let uuid = engine.uuid.clone();
        let returned = engine::Returned {
            tasks,
            ..engine::Returned::default()
        };
        let message = self.session.message("", engine::RETURNED, None, &returned);
        self.engine_event(uuid, message);
    }

    /// Processors of this node that are not in use.
    pub fn free_cpus(&self, node: usize) -> u32 {
        let node = &self.nodes[node];
        node.has.cpus.saturating_sub(node.in_use)
    }

    /// The number of engines that there are or were.
    pub fn engines(&self) -> usize {
        self.engines.len()
    }

    fn engine_event(&mut self, engine: EngineUuid, message: Message) {
        self.event(Event::EngineMessage {
            engine,
            native: true,
            channel: engine::Channel::Native,
            client: Bytes::new(),
            message,
        });
    }

    fn ask<T: serde::Serialize>(&mut self, msg_type: &str, content: &T, buffers: Vec<Bytes>) -> Value {
        let mut message = self.session.message("", msg_type, None, content);
        message.identities = vec![Bytes::from_static(b"me")];
        message.buffers = buffers;
        self.event(Event::ClientMessage {
            channel: ClientChannel::Registration,
            message,
        });
        std::mem::take(&mut self.last_reply)
    }

    /// Submits a map with the range of its tasks' durations, in microseconds.
    pub fn submit(&mut self, count: u32, options: MapOptions, takes: (u64, u64)) -> MapId {
        let definition = MapDefinition {
            work: Work::Call {
                from: CallSource::Module { module: "m".into() },
                function: "f".into(),
            },
            options: options.clone(),
        };
        let request = client::MapRequest {
            key: self.session.next_id(),
            definition,
            whole: false,
            watch: None,
            with_bundle: false,
        };
        let reply = self.ask(client::MAP, &request, vec![]);
        let map = MapId(reply["map"].as_u64().unwrap_or_else(|| panic!("{reply}")) as u32);
        let account = Account {
            options,
            takes,
            last_start: self.now,
            count,
            ..Account::default()
        };
        self.maps.insert(map, account);
        while self.maps[&map].inputs_sent < count {
            self.send_inputs(map);
        }
        map
    }

    fn send_inputs(&mut self, map: MapId) {
        let account = self.maps.get_mut(&map).unwrap();
        let first = account.inputs_sent;
        let count = (account.count - first).min(CHUNK);
        account.inputs_sent += count;
        let request = client::InputsRequest {
            map,
            first,
            last: first + count == account.count,
            abandoned: None,
        };
        let lines = "[0]\n".repeat(count as usize);
        self.ask(client::INPUTS, &request, vec![Bytes::from(lines)]);
    }

    fn event(&mut self, event: Event) {
        let mut effects = std::mem::take(&mut self.effects);
        self.core.handle(Simulation::time(self.now), event, &mut effects);
        self.events += 1;
        for effect in effects.drain(..) {
            match effect {
                Effect::ToEngine { engine, message, .. } if message.msg_type() == engine::TASKS => self.take_tasks(&engine, &message),
                Effect::ToEngine { engine, message, .. } if message.msg_type() == engine::GIVE_BACK => {
                    let content: engine::GiveBack = message.content().unwrap();
                    self.given_back += 1;
                    self.plan(
                        self.now + self.network_us,
                        Change::GivesBack(self.by_uuid[&engine], content.at_most),
                    );
                }
                Effect::ToEngine { message, .. } => assert_ne!(message.msg_type(), "error"),
                Effect::ToClient { message, .. } => self.last_reply = message.content().unwrap(),
                _ => {}
            }
        }
        self.effects = effects;
    }

    fn take_tasks(&mut self, engine: &EngineUuid, message: &Message) {
        let content: engine::Tasks = message.content().unwrap();
        let at = self.by_uuid[engine];
        let engine = &mut self.engines[at];
        let was_idle = engine.queue.is_empty();
        let new = content.tasks.iter().map(|task| Task {
            map: content.map,
            index: task.index,
            run: task.run,
        });
        engine.queue.extend(new);
        let account = self.maps.get_mut(&content.map).unwrap();
        account.longest_wait_us = account.longest_wait_us.max(self.now - account.last_start);
        account.last_start = self.now;
        account.started += content.tasks.len() as u32;
        self.starts.push(Start {
            map: content.map,
            tasks: content.tasks.len(),
            node: engine.node,
            was_idle,
        });
        if was_idle {
            let cpus = content.allocation.as_ref().map_or(1, |allocation| allocation.cpus);
            engine.allocation = content.allocation.clone().map(|allocation| (content.map, allocation));
            assert_eq!(cpus, account.options.resources.cpus, "what {} was given", content.map);
            let gpus: Vec<String> = content.allocation.into_iter().flat_map(|a| a.gpus).map(|gpu| gpu.name).collect();
            let each = account.options.resources.gpus.thousandths.min(1000);
            let node = &mut self.nodes[engine.node];
            node.in_use += cpus;
            let most = node.has.cpus.max(node.engines);
            assert!(node.in_use <= most, "{} cpus of {most}", node.in_use);
            for gpu in &gpus {
                let used = node.gpus.entry(gpu.clone()).or_default();
                *used += each;
                assert!(*used <= 1000, "gpu {gpu} is given twice");
            }
            (engine.cpus, engine.gpus) = (cpus, gpus);
            self.change_busy(i64::from(cpus));
            self.begin(at);
        }
    }

    fn change_busy(&mut self, by: i64) {
        self.busy_cpu_us += u128::from(self.busy_cpus) * u128::from(self.now - self.busy_since);
        self.busy_since = self.now;
        self.busy_cpus = self.busy_cpus.saturating_add_signed(by);
    }

    /// Processors in use so far times microseconds.
    pub fn busy_cpu_us(&mut self) -> u128 {
        self.change_busy(0);
        self.busy_cpu_us
    }

    fn begin(&mut self, at: usize) {
        let engine = &mut self.engines[at];
        let Some(task) = engine.queue.front() else { return };
        let (least, most) = self.maps[&task.map].takes;
        let takes = least + self.rng.roll(most - least + 1);
        engine.began = self.now;
        engine.turn += 1;
        self.agenda.push(Reverse((self.now + takes.max(1), at, engine.turn)));
    }

    fn change_next(&mut self) -> bool {
        let Some(Reverse((time, change))) = self.changes.pop() else {
            return false;
        };
        self.pass(time);
        self.apply(change);
        true
    }

    /// The next task ends, or the next change happens. Returns false if there is none.
    pub fn step(&mut self) -> bool {
        let (time, at) = loop {
            let change = self.changes.peek().map(|Reverse((time, _))| *time);
            let Some(Reverse((time, at, turn))) = self.agenda.peek().copied() else {
                return self.change_next();
            };
            if change.is_some_and(|change| change <= time) {
                return self.change_next();
            }
            self.agenda.pop();
            let engine = &self.engines[at];
            match engine.is_away {
                // Its results arrive when it has returned.
                true if engine.turn == turn => self.agenda.push(Reverse((time.max(change.unwrap_or(time) + 1), at, turn))),
                false if engine.turn == turn => break (time, at),
                _ => {}
            }
        };
        self.pass(time);
        let engine = &mut self.engines[at];
        let task = engine.queue.pop_front().unwrap();
        engine.sequence += 1;
        let (began, sequence, uuid) = (engine.began, engine.sequence, engine.uuid.clone());
        let account = self.maps.get_mut(&task.map).unwrap();
        account.done += 1;
        self.ended += 1;
        account.cpu_s += f64::from(engine.cpus) * (self.now - began) as f64 / 1e6;
        if engine.queue.is_empty() {
            self.release(at, task.map);
        } else {
            self.begin(at);
        }
        let unix = |us: u64| UnixTime(1e9 + us as f64 / 1e6);
        let mut outcome = Outcome::failure(TaskState::Ok, "", "", unix(began), unix(self.now));
        outcome.error = None;
        let results = engine::Results {
            sequence,
            results: vec![engine::TaskResult {
                map: task.map,
                index: task.index,
                run: task.run,
                outcome,
            }],
        };
        let message = self.session.message("", engine::RESULTS, None, &results);
        self.engine_event(uuid, message);
        true
    }

    /// Lets time pass, with the core's timers.
    fn pass(&mut self, until: u64) {
        while let Some(wake) = self.core.next_wake() {
            let wake = wake.as_micros() as u64 + 1;
            if wake > until {
                break;
            }
            self.now = self.now.max(wake);
            self.event(Event::TimePassed);
        }
        self.now = self.now.max(until);
    }

    pub fn account(&self, map: MapId) -> &Account {
        &self.maps[&map]
    }
}
