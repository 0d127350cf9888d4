//! Seeded random simulations: engines register, disconnect, reconnect and die; tasks succeed, fail, crash; maps are cancelled; the controller
//! dies before or after a commit and starts again on its records; clients repeat what was not answered, and those of
//! ipyparallel come back for their replies. At the end every task is done exactly once, and every reply has come. A failing seed is printed; run it alone with `PCLUSTER_SEED=<n>`.
use super::super::Event;
use super::clients::TestClient;
use super::harness::*;
use crate::model::definition::{CallSource, MapDefinition, MapOptions, Work};
use crate::model::node::{Gpu, GpuVendor, NodeFacts, NumaCores};
use crate::model::output::Stream;
use crate::model::resources::TaskResources;
use crate::model::task::TaskState;
use crate::model::{MapId, TaskId};
use crate::wire::content::client;
use crate::wire::content::engine;
use bytes::Bytes;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

/// xorshift64*: small, seeded, the same everywhere.
pub(super) struct Rng(pub u64);

impl Rng {
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }
}

/// A client that wants a map run, whatever becomes of the controller: it repeats what was not answered.
struct Wish {
    key: String,
    options: MapOptions,
    count: u32,
    map: Option<MapId>,
    /// All inputs come with the first request.
    whole: bool,
    asked: bool,
    sent: u32,
    closed: bool,
    refused: bool,
}

impl Wish {
    fn step(&mut self, w: &mut Harness, rng: &mut Rng) {
        let Some(map) = self.map else {
            let work = Work::Call {
                from: CallSource::Module { module: "m".into() },
                function: "f".into(),
            };
            let definition = MapDefinition {
                work,
                options: self.options.clone(),
            };
            let lines: Vec<String> = (0..self.count).map(|i| format!("[{i}]")).collect();
            let request = client::MapRequest {
                key: self.key.clone(),
                definition,
                whole: self.whole,
                watch: None,
                with_bundle: false,
            };
            let buffers = match self.whole {
                true => vec![Bytes::from(lines.join("\n"))],
                false => vec![],
            };
            let again = std::mem::replace(&mut self.asked, true);
            if let Some(reply) = w.try_ask_again(client::MAP, &request, buffers, again) {
                self.closed = self.whole;
                self.map = reply["map"].as_u64().map(|m| MapId(m as u32));
                // The map that it was to follow has failed: that, too, is an answer.
                self.refused = self.map.is_none();
            }
            return;
        };
        let count = (self.count - self.sent).min(1 + rng.roll(20) as u32);
        let last = self.sent + count == self.count;
        let lines: Vec<String> = (self.sent..self.sent + count).map(|i| format!("[{i}]")).collect();
        let request = client::InputsRequest {
            map,
            first: self.sent,
            last,
            abandoned: None,
        };
        if let Some(reply) = w.try_ask(client::INPUTS, &request, vec![Bytes::from(lines.join("\n"))]) {
            match reply["status"].as_str() {
                Some("ok") => self.sent = reply["total"].as_u64().unwrap() as u32,
                // Cancelled meanwhile, or complete.
                _ => self.closed = true,
            }
            self.closed |= last && self.sent == self.count;
        }
    }

    fn is_over(&self) -> bool {
        self.closed || self.refused
    }
}

/// What each node of a life has.
fn node() -> NodeFacts {
    let gpu = |name: &str, numa: u32| Gpu {
        vendor: GpuVendor::Nvidia,
        name: name.into(),
        model: String::new(),
        numa: Some(numa),
    };
    let cores = |numa: u32, list: &str| NumaCores {
        numa,
        cores: list.parse().unwrap(),
    };
    NodeFacts {
        cpus: 4,
        // Fewer than processors, so that these may run out first.
        cores: vec![cores(0, "0-1"), cores(1, "2")],
        mem_bytes: 8 << 30,
        gpus: vec![gpu("0", 0), gpu("1", 1)],
        named: BTreeMap::from([("licence".into(), 2)]),
    }
}

fn resources(rng: &mut Rng) -> TaskResources {
    let mut resources = TaskResources::default();
    if rng.roll(2) == 0 {
        resources.cpus = 1 + rng.roll(4) as u32;
        resources.pin = resources.cpus <= 3 && rng.roll(3) == 0;
        resources.gpus.thousandths = [0, 0, 300, 500, 1000, 2000][rng.roll(6) as usize];
        if rng.roll(4) == 0 {
            resources.named.insert("licence".into(), 1 + rng.roll(2));
        }
    }
    resources
}

/// Tasks that had too little memory or time may get more, up to what there is.
fn with_growth(mut options: MapOptions, rng: &mut Rng) -> MapOptions {
    let factor = || "x1.5".parse().ok();
    if options.mem_bytes.is_some() && rng.roll(2) == 0 {
        (options.retry_mem, options.max_mem_bytes) = (factor(), Some(8 << 30));
    }
    if options.timeout_s.is_some() && rng.roll(2) == 0 {
        options.retry_time = factor();
        options.max_time_s = (rng.roll(2) == 0).then_some(150.0);
    }
    options
}

pub(super) const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn live(seed: u64) {
    let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut w = Harness::new();
    w.ledger.all_write = true;
    w.check_every = 32;
    w.node = node();
    w.connected = Some(HashSet::new());
    let mut clients = TestClient::three();
    let mut wishes: Vec<Wish> = Vec::new();
    for step in 0..200 {
        let name = NAMES[rng.roll(4) as usize];
        let alive = w.engines.contains_key(name);
        if rng.roll(25) == 0 {
            w.dies = Some(if rng.roll(2) == 0 { Dies::BeforeCommit } else { Dies::BeforeSend });
        }
        match rng.roll(22) {
            0 => {
                let done: Vec<MapId> = wishes.iter().filter_map(|wish| wish.map).collect();
                let options = MapOptions {
                    retries: rng.roll(3) as u32,
                    max_crashes: rng.roll(3) as u32,
                    resources: resources(&mut rng),
                    mem_bytes: (rng.roll(8) == 0).then(|| (1 + rng.roll(7)) << 30),
                    timeout_s: (rng.roll(4) == 0).then_some(60.0),
                    wait_for_resources: true,
                    priority: rng.roll(3) as i32 - 1,
                    max_running: (rng.roll(4) == 0).then(|| 1 + rng.roll(5) as u32),
                    after: done.last().copied().filter(|_| rng.roll(4) == 0),
                    ..MapOptions::default()
                };
                let options = with_growth(options, &mut rng);
                let count = rng.roll(40) as u32;
                wishes.push(Wish {
                    key: format!("wish {step}"),
                    options,
                    count,
                    map: None,
                    whole: rng.roll(2) == 0,
                    asked: false,
                    sent: 0,
                    closed: false,
                    refused: false,
                });
            }
            1..=3 => {
                if let Some(wish) = wishes.iter_mut().find(|wish| !wish.is_over()) {
                    wish.step(&mut w, &mut rng);
                }
            }
            4 if !alive || w.engines[name].cut => w.register(name),
            5 if alive => w.register(name),
            // The network: nothing gets through, which the controller may or may not notice.
            6 if alive => {
                w.engines.get_mut(name).unwrap().cut = true;
                if rng.roll(2) == 0 {
                    w.event(Event::EngineDisconnected { engine: name.into() });
                }
            }
            // It dies: all that it held is gone, its connection ends.
            7 if alive => {
                w.engines.remove(name);
                w.event(Event::EngineDisconnected { engine: name.into() });
            }
            8 if alive => {
                let n = rng.roll(3) as usize;
                let engine = w.engines.get_mut(name).unwrap();
                let keep = engine.queue.len().saturating_sub(n);
                let tasks = engine.queue.split_off(keep);
                w.engine_sends(
                    name,
                    engine::RETURNED,
                    &engine::Returned {
                        tasks,
                        ..Default::default()
                    },
                );
            }
            9 => {
                let map = wishes.get(rng.roll(6) as usize).and_then(|wish| wish.map);
                let selection = match map {
                    Some(map) if rng.roll(3) == 0 => client::Selection {
                        maps: vec![map],
                        ..Default::default()
                    },
                    Some(map) => client::Selection {
                        tasks: vec![TaskId::new(map, rng.roll(40) as u32)],
                        ..Default::default()
                    },
                    None => continue,
                };
                w.select(client::CANCEL, selection);
            }
            16..=19 => {
                let who = rng.roll(3) as usize;
                let (earlier, others) = clients.split_at_mut(who);
                if let Some((test_client, later)) = others.split_first_mut() {
                    test_client.step(&mut w, &mut rng, earlier.iter().chain(&*later));
                }
            }
            20 => {
                let who = rng.roll(3) as usize;
                clients[who].leave(&mut w, &mut rng);
            }
            21 if alive => w.give_requests_back(name, rng.roll(3) as usize),
            10 => w.pass(Duration::from_millis(rng.roll(4000))),
            _ if alive => work(&mut w, name, &mut rng),
            _ => {}
        }
        clients.iter_mut().for_each(|test_client| test_client.read(&w));
        w.to_clients.clear();
    }
    settle(&mut w, &mut wishes, &mut rng);
    w.assert_all_done();
    for test_client in &mut clients {
        test_client.come(&mut w);
        test_client.read(&w);
        test_client.assert_answered(&w);
    }
    for map in wishes.iter().filter_map(|wish| wish.map) {
        assert!(w.ledger.completed.contains(&map), "map {map} is complete");
    }
}

/// An engine ends some of its tasks, one way or another.
fn work(w: &mut Harness, name: &str, rng: &mut Rng) {
    for _ in 0..rng.roll(8) {
        let outcome = match rng.roll(12) {
            0 => w.failed(TaskState::Error),
            1 => w.crashed(),
            2 => w.failed(TaskState::Timeout),
            3 | 4 => w.out_of_memory(),
            _ => w.ok(),
        };
        let Some(engine) = w.engines.get(name) else { return };
        if rng.roll(4) == 0
            && let Some(held) = engine.queue.first().copied()
        {
            // Parts that come again, and others behind a gap: what was sent before a connection broke, or its answer, is lost.
            let truth = output_of(TaskId::new(held.map, held.index), held.run);
            let (mut parts, mut buffers) = (Vec::new(), Vec::new());
            for _ in 0..rng.roll(4) {
                let start = rng.roll(truth.len() as u64 + 1);
                let end = start + rng.roll(truth.len() as u64 - start + 1);
                parts.push(engine::Part {
                    stream: Stream::Stdout,
                    start,
                });
                buffers.push(Bytes::copy_from_slice(&truth[start as usize..end as usize]));
            }
            let progress = engine::Progress {
                task: held,
                started: 1e9,
                parts,
            };
            w.engine_sends_with(name, engine::PROGRESS, &progress, buffers);
        }
        w.finish_one(name, outcome);
    }
    for _ in 0..rng.roll(4) {
        w.answer_one(name, rng.roll(10));
    }
}

/// The end: everyone is well, nothing new comes.
fn settle(w: &mut Harness, wishes: &mut [Wish], rng: &mut Rng) {
    w.dies = None;
    for _ in 0..2000 {
        while let Some(wish) = wishes.iter_mut().find(|wish| !wish.is_over()) {
            wish.step(w, rng);
        }
        for name in NAMES {
            w.register(name);
            let outcome = w.ok();
            while w.finish_one(name, outcome.clone()).is_some() {}
            while w.answer_one(name, 9) {}
        }
        if w.ledger.tasks.values().all(|(state, _)| state.is_done()) {
            return;
        }
        w.pass(Duration::from_secs(1));
    }
}

/// `PCLUSTER_SEEDS` lives, 400 without it, shared out over four tests that run side by side.
fn lives(part: u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    let seeds: Vec<u64> = match number("PCLUSTER_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("PCLUSTER_SEEDS").unwrap_or(400))
            .filter(|seed| seed % 4 == part)
            .collect(),
    };
    for seed in seeds {
        if let Err(panic) = std::panic::catch_unwind(|| live(seed)) {
            eprintln!("this was the life of PCLUSTER_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn every_task_ends_exactly_once_whatever_happens_1() {
    lives(0);
}

#[test]
fn every_task_ends_exactly_once_whatever_happens_2() {
    lives(1);
}

#[test]
fn every_task_ends_exactly_once_whatever_happens_3() {
    lives(2);
}

#[test]
fn every_task_ends_exactly_once_whatever_happens_4() {
    lives(3);
}
