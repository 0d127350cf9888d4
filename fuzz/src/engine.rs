//! An engine's core: scripts of what its controller, its worker, its commands and the clock do. Numbers that a script names may be anything;
//! the worker is as it is, it reads its tokens in order. Each attempt that came ends once: with a result, or given back.
//!
//! A line of a script is a word and up to three numbers, between blanks: `tasks 1 0 5` (map, first index, count), `call 1`, `limited 1` and `command 2` (definitions),
//! `forget 1`, `cancel 1 0`, `request 7 1` (id, whether it executes), `abort 7`, `abort`, `back 3`, `recorded 2`, `registered 1 0` (one to drop), `unknown`,
//! `shutdown 1 500` (whether it drains, grace); `ready`, `refuses`, `begin`, `publish`, `end 0`…`end 3`, `crash`, `ended 0`; `tick 100`, `memory 1000`.
use bytes::Bytes;
use pcluster::testing::engine::{CommandEnd, CommandExit, Method, WorkerKey, WorkerResult};
use pcluster::testing::engine::{Core, CoreSettings, Effect, Event, Now, Request};
use pcluster::testing::engine::{Parent, Published};
use pcluster::testing::model::{CallSource, MapDefinition, MapOptions, Work};
use pcluster::testing::model::{MapId, UnixTime};
use pcluster::testing::wire::content::engine::{Channel, Held};
use pcluster::testing::wire::{EMPTY, to_json};
use pcluster::testing::wire::{Header, Message};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

const MAX_LINES: usize = 200;

pub fn run(input: &[u8]) {
    let mut world = World::new();
    for line in input.split(|b| *b == b'\n').take(MAX_LINES) {
        let line = String::from_utf8_lossy(line);
        let mut words = line.split_whitespace();
        let Some(word) = words.next() else { continue };
        let numbers: Vec<Option<u64>> = words.map(|word| word.parse().ok()).collect();
        world.step(word, |at| numbers.get(at).copied().flatten());
    }
    world.end();
}

struct World {
    core: Core,
    now: Now,
    /// Tickets in the worker that wait for their token, and the one that has begun.
    frames: VecDeque<u32>,
    begun: Option<u32>,
    requests: HashSet<u32>,
    workers: Vec<WorkerKey>,
    /// The one that was given something last.
    active: Option<WorkerKey>,
    starting: bool,
    spare: bool,
    command: bool,
    left: bool,
    /// Attempts that came: whether they have ended.
    came: HashMap<Held, bool>,
    dropped: HashSet<Held>,
    /// Of the messages with results that have come.
    sequences: HashSet<u64>,
}

impl World {
    fn new() -> World {
        let settings = CoreSettings {
            interrupt: Duration::from_secs(1),
            terminate: Duration::from_secs(1),
            python: "python3".into(),
            shell_at_start: false,
            process: Default::default(),
        };
        let mut world = World {
            core: Core::new(settings),
            now: Now {
                instant: Instant::now(),
                unix: UnixTime(1e9),
            },
            frames: VecDeque::new(),
            begun: None,
            requests: HashSet::new(),
            workers: Vec::new(),
            active: None,
            starting: false,
            spare: false,
            command: false,
            left: false,
            came: HashMap::new(),
            dropped: HashSet::new(),
            sequences: HashSet::new(),
        };
        world.event(Event::Registered { drop: Vec::new() });
        world
    }

    fn step(&mut self, word: &str, number: impl Fn(usize) -> Option<u64>) {
        let small = |at: usize| u32::try_from(number(at).unwrap_or(0)).unwrap_or(u32::MAX);
        let map = MapId(small(0));
        let held = Held {
            map,
            index: small(1),
            run: 1,
        };
        match word {
            "call" => self.define(map, None),
            "limited" => self.define(map, Some(2.0)),
            "command" => {
                let work = Work::Command { argv: vec!["true".into()] };
                self.defined(map, work, Some(5.0));
            }
            "tasks" => self.tasks(map, small(1), small(2).min(50)),
            "forget" => self.event(Event::MapForgotten { map }),
            "cancel" => self.event(Event::CancelRequested { tasks: vec![held] }),
            "registered" => {
                let drop: Vec<Held> = number(0).map(|_| held).into_iter().collect();
                // Requests that the controller took back: no result is expected, and none counts.
                self.dropped.extend(drop.iter().filter(|held| self.came.contains_key(held)));
                self.event(Event::Registered { drop });
            }
            "unknown" => self.event(Event::EngineUnknown),
            "back" => self.event(Event::ReturnRequested { max_count: small(0) }),
            // A controller that calls recorded what it was not sent has itself lost it.
            "recorded" => {
                if let Some(sequence) = number(0).filter(|sequence| self.sequences.contains(sequence)) {
                    self.event(Event::Recorded { sequence });
                }
            }
            "request" => self.request(small(0), small(1) == 1),
            "abort" => {
                let msg_ids = number(0).map(|id| vec![format!("m_{id}")]);
                self.event(Event::AbortRequested { msg_ids });
            }
            "shutdown" => self.event(Event::ShutdownRequested {
                drain: small(0) == 1,
                reason: "requested".into(),
                grace_period_ms: number(1),
            }),
            "ready" => self.ready(),
            "refuses" if std::mem::take(&mut self.starting) => self.event(Event::WorkerFailed { reason: "no".into() }),
            "begin" => self.begin(),
            "publish" => self.publish(),
            "end" => self.finish(small(0)),
            "crash" => self.crash(),
            "ended" => self.end_command(small(0)),
            "memory" => self.event(Event::MemoryMeasured {
                bytes: number(0).unwrap_or(0),
            }),
            "tick" => self.pass(number(0).unwrap_or(100).min(100_000)),
            _ => {}
        }
    }

    fn define(&mut self, map: MapId, timeout_s: Option<f64>) {
        let work = Work::Call {
            from: CallSource::Module { module: "m".into() },
            function: "f".into(),
        };
        self.defined(map, work, timeout_s);
    }

    fn defined(&mut self, map: MapId, work: Work, timeout_s: Option<f64>) {
        let options = MapOptions {
            timeout_s,
            ..MapOptions::default()
        };
        let definition = Arc::new(MapDefinition { work, options });
        self.event(Event::Defined { map, definition });
    }

    /// A controller sends each attempt once.
    fn tasks(&mut self, map: MapId, first: u32, count: u32) {
        let mut tasks = Vec::new();
        for index in first..first.saturating_add(count) {
            let held = Held { map, index, run: 1 };
            if let std::collections::hash_map::Entry::Vacant(new) = self.came.entry(held) {
                new.insert(false);
                tasks.push((index, 1, Bytes::from_static(b"[]"), Default::default()));
            }
        }
        self.event(Event::TasksReceived { map, tasks });
    }

    fn request(&mut self, id: u32, executes: bool) {
        let header = Header {
            msg_id: format!("m_{id}"),
            ..Header::default()
        };
        let message = Message {
            identities: Vec::new(),
            header_json: to_json(&header),
            header,
            parent_json: EMPTY,
            metadata_json: EMPTY,
            content_json: EMPTY,
            buffers: Vec::new(),
            buffer_file: Default::default(),
        };
        let (channel, method) = match executes {
            true => (Channel::Mux, Method::Execute),
            false => (Channel::Task, Method::Apply),
        };
        let request = Request::new(channel, vec![Bytes::from_static(b"c")], method, message);
        self.event(Event::RequestReceived(Arc::new(request)));
    }

    fn ready(&mut self) {
        if std::mem::take(&mut self.starting) {
            self.spare = true;
            self.event(Event::WorkerReady);
        }
    }

    fn begin(&mut self) {
        if self.begun.is_some() {
            return;
        }
        self.begun = self.frames.pop_front();
        if let (Some(ticket), Some(worker)) = (self.begun.filter(|ticket| self.requests.contains(ticket)), self.active) {
            let output = [Bytes::from_static(b"begun"), Bytes::new()];
            self.event(Event::UnitStarted { worker, ticket, output });
        }
    }

    fn publish(&mut self) {
        if let (Some(_), Some(worker)) = (self.begun, self.active) {
            let published = Published {
                parent: Parent::Running,
                kind: "stream".into(),
                topic: "stream".into(),
                metadata: Default::default(),
                content: EMPTY,
                buffers: Vec::new(),
            };
            self.event(Event::Published {
                worker,
                output: [Bytes::from_static(b"out"), Bytes::from_static(b"err")],
                published,
            });
        }
    }

    fn finish(&mut self, how: u32) {
        let (Some(ticket), Some(worker)) = (self.begun.take(), self.active) else {
            return;
        };
        let result = match (self.requests.contains(&ticket), how) {
            (true, 0) => reply("ok"),
            (true, 1) => reply("error"),
            (true, _) => WorkerResult::Reply {
                meta: Bytes::from_static(b"not JSON"),
                content: EMPTY,
                buffers: Vec::new(),
            },
            (false, 0) => WorkerResult::Value(Bytes::from_static(b"1")),
            (false, 1) => WorkerResult::Error(Bytes::from_static(br#"{"ename": "E", "evalue": "v", "traceback": "t"}"#)),
            (false, 2) => WorkerResult::Pickled {
                meta: Bytes::from_static(b"not JSON"),
                rendering: Bytes::from_static(b"[1]"),
                pickle: Bytes::new(),
            },
            (false, _) => WorkerResult::Error(Bytes::from_static(b"\xff")),
        };
        let (started, ended) = (self.now.unix, self.now.unix);
        self.event(Event::UnitEnded {
            worker,
            ticket,
            started,
            ended,
            output: [Bytes::from_static(b"last"), Bytes::new()],
            peak_memory: Some(1 << 20),
            result,
        });
    }

    fn crash(&mut self) {
        let worker = self.active.filter(|active| self.workers.contains(active));
        match worker {
            Some(worker) => {
                self.workers.retain(|other| *other != worker);
                self.begun = None;
            }
            None if self.starting || self.spare => (self.starting, self.spare) = (false, false),
            None => return,
        }
        let unread = std::mem::take(&mut self.frames).len();
        self.event(Event::WorkerExited {
            worker,
            unread,
            how: "died".into(),
            killed: false,
            oom_killed: false,
            stderr_tail: String::new(),
            output: Default::default(),
        });
    }

    fn end_command(&mut self, code: u32) {
        if std::mem::take(&mut self.command) {
            let (started, ended) = (self.now.unix, self.now.unix);
            let how = CommandExit::Code(i32::try_from(code).unwrap_or(1));
            self.event(Event::CommandEnded(CommandEnd {
                started,
                ended,
                how,
                peak: Default::default(),
                oom_killed: code == 137,
            }));
        }
    }

    fn pass(&mut self, ms: u64) {
        let time = Duration::from_millis(ms);
        self.now.instant += time;
        self.now.unix.0 += time.as_secs_f64();
        self.event(Event::Tick);
    }

    fn event(&mut self, event: Event) {
        for effect in self.core.handle(self.now, event) {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::StartWorker { .. } => {
                assert!(!self.spare && !self.starting, "a second spare");
                self.starting = true;
            }
            Effect::AssignSpare { worker } => {
                assert!(std::mem::take(&mut self.spare), "no spare is there");
                self.workers.push(worker);
            }
            // A spare that takes too long is killed, and not waited for.
            Effect::SignalWorker { worker: None, .. } => (self.starting, self.spare) = (false, false),
            Effect::EndWorker { worker } => self.workers.retain(|other| *other != worker),
            Effect::DispatchTasks { worker, first, inputs, .. } => {
                assert!(self.workers.contains(&worker), "{worker:?} is not there");
                self.active = Some(worker);
                let count = u32::try_from(inputs.len()).unwrap_or(0);
                self.frames.extend((0..count).map(|i| first.wrapping_add(i)));
            }
            Effect::DispatchRequest { ticket, .. } => {
                self.active = Some(WorkerKey::Interactive);
                self.requests.insert(ticket);
                self.frames.push_back(ticket);
            }
            Effect::TakeBackTokens { .. } => {
                let count = std::mem::take(&mut self.frames).len();
                self.event(Event::TokensTakenBack { count });
            }
            Effect::ReadOutput { .. } => self.event(Event::OutputRead {
                output: Default::default(),
            }),
            Effect::StartCommand { .. } => {
                assert!(!self.command, "a second command");
                self.command = true;
            }
            Effect::SendResults(results) if self.sequences.insert(results.sequence) => {
                let ended = results.results.iter();
                ended.for_each(|result| {
                    self.ends(Held {
                        map: result.map,
                        index: result.index,
                        run: result.run,
                    });
                });
            }
            Effect::SendReturned(returned) => returned.tasks.into_iter().for_each(|held| self.ends(held)),
            Effect::Leave { .. } => self.left = true,
            _ => {}
        }
    }

    fn ends(&mut self, held: Held) {
        if let Some(ended) = self.came.get_mut(&held).filter(|_| !self.dropped.contains(&held)) {
            assert!(!std::mem::replace(ended, true), "{held:?} ended twice");
        }
    }

    fn open(&self) -> Vec<&Held> {
        let open = self.came.iter().filter(|(held, ended)| !**ended && !self.dropped.contains(held));
        open.map(|(held, _)| held).collect()
    }

    /// Everyone does what is to be done.
    fn end(&mut self) {
        self.event(Event::Registered { drop: Vec::new() });
        for _ in 0..2_000 {
            self.ready();
            self.begin();
            self.finish(0);
            self.end_command(0);
            self.pass(100);
            if self.left || self.open().is_empty() {
                return;
            }
        }
        let open = self.open();
        // Of a map that it has no definition of, it waits for that.
        let held = self.core.holds();
        assert!(open.iter().all(|open| held.contains(open)), "neither held nor ended: {open:?}");
    }
}

fn reply(status: &str) -> WorkerResult {
    WorkerResult::Reply {
        meta: to_json(&serde_json::json!({"status": status, "ename": "E"})),
        content: EMPTY,
        buffers: Vec::new(),
    }
}
