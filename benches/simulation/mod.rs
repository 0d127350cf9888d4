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
}

#[derive(Default)]
struct Node {
    cpus: u32,
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
    /// Called after each message with tasks: the map, and how many of its tasks are sent to an engine that was idle.
    pub starts: Vec<(MapId, usize)>,
    session: Session,
    engines: Vec<Engine>,
    by_uuid: HashMap<EngineUuid, usize>,
    nodes: Vec<Node>,
    agenda: BinaryHeap<Reverse<(u64, usize, u64)>>,
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
            cpus: has.cpus,
            engines,
            ..Node::default()
        });
        for i in 0..engines {
            let uuid = EngineUuid::from(format!("{node}-{i}").as_str());
            let facts = EngineFacts {
                uuid: uuid.clone(),
                host: format!("node{node}"),
                pid: 1,
                version: "0".into(),
                python: String::new(),
                capabilities: vec!["call".into(), EngineFacts::JOINED.into()],
                job: String::new(),
                ends: None,
                node: has.clone(),
            };
            self.by_uuid.insert(uuid.clone(), self.engines.len());
            self.engines.push(Engine {
                uuid: uuid.clone(),
                node,
                queue: VecDeque::new(),
                began: 0,
                turn: 0,
                sequence: 0,
                cpus: 0,
                gpus: Vec::new(),
            });
            let register = engine::Register {
                protocol: PROTOCOL_VERSION,
                facts,
                id: None,
                holds: Vec::new(),
                requests: Vec::new(),
                allocations: Vec::new(),
                returned: Vec::new(),
                unavailable: None,
            };
            let message = self.session.message("", engine::REGISTER, None, &register);
            self.engine_event(uuid, message);
        }
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
        self.starts.push((content.map, content.tasks.len()));
        if was_idle {
            let cpus = content.allocation.as_ref().map_or(1, |allocation| allocation.cpus);
            assert_eq!(cpus, account.options.resources.cpus, "what {} was given", content.map);
            let gpus: Vec<String> = content.allocation.into_iter().flat_map(|a| a.gpus).map(|gpu| gpu.name).collect();
            let each = account.options.resources.gpus.thousandths.min(1000);
            let node = &mut self.nodes[engine.node];
            node.in_use += cpus;
            assert!(node.in_use <= node.cpus.max(node.engines), "{} cpus of {}", node.in_use, node.cpus);
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

    /// The next task ends. Returns false if none runs.
    pub fn step(&mut self) -> bool {
        let Some(Reverse((time, at, _))) = self.agenda.pop() else {
            return false;
        };
        self.pass(time);
        let engine = &mut self.engines[at];
        let task = engine.queue.pop_front().unwrap();
        engine.sequence += 1;
        let (began, sequence, uuid) = (engine.began, engine.sequence, engine.uuid.clone());
        let account = self.maps.get_mut(&task.map).unwrap();
        account.done += 1;
        account.cpu_s += f64::from(engine.cpus) * (self.now - began) as f64 / 1e6;
        if engine.queue.is_empty() {
            let each = account.options.resources.gpus.thousandths.min(1000);
            let cpus = std::mem::take(&mut engine.cpus);
            let node = &mut self.nodes[engine.node];
            node.in_use -= cpus;
            for gpu in engine.gpus.drain(..) {
                *node.gpus.get_mut(&gpu).unwrap() -= each;
            }
            self.change_busy(-i64::from(cpus));
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
