use super::unit::{CommandEnd, CommandExit, WorkerResult};
use super::*;
use crate::model::definition::{CallSource, MapOptions, Work};
use crate::model::task::TaskState;
use proptest::prelude::*;

const CALLS: MapId = MapId(1);
const COMMANDS: MapId = MapId(2);
const TIMED: MapId = MapId(3);

/// A core, its world (a worker that reads tokens in order, a command, a controller's ledger), and a clock.
struct World {
    core: Core,
    now: Now,
    /// Tickets in the worker that wait for their token.
    frames: VecDeque<u32>,
    /// Ticket that has begun.
    begun: Option<u32>,
    workers: Vec<WorkerKey>,
    /// The one that was given something last.
    active: Option<WorkerKey>,
    starting: bool,
    spare: bool,
    command: bool,
    sent: Vec<Held>,
    results: Vec<(Held, TaskState)>,
    sequences: Vec<u64>,
    returned: Vec<Held>,
    signals: Vec<Stage>,
    left: bool,
}

fn definition(work: Work, timeout_s: Option<f64>) -> Arc<MapDefinition> {
    let options = MapOptions {
        timeout_s,
        ..MapOptions::default()
    };
    Arc::new(MapDefinition { work, options })
}

impl World {
    fn new() -> World {
        let settings = CoreSettings {
            interrupt: Duration::from_secs(1),
            terminate: Duration::from_secs(1),
            python: "python3".into(),
            shell_at_start: false,
        };
        let mut world = World {
            core: Core::new(settings),
            now: Now {
                instant: Instant::now(),
                unix: UnixTime(1000.0),
            },
            frames: VecDeque::new(),
            begun: None,
            workers: Vec::new(),
            active: None,
            starting: false,
            spare: false,
            command: false,
            sent: Vec::new(),
            results: Vec::new(),
            sequences: Vec::new(),
            returned: Vec::new(),
            signals: Vec::new(),
            left: false,
        };
        world.event(Event::Registered { drop: Vec::new() });
        let call = Work::Call {
            from: CallSource::Module { module: "m".into() },
            function: "f".into(),
        };
        let command = Work::Command { argv: vec!["true".into()] };
        for (map, definition) in [
            (CALLS, definition(call.clone(), None)),
            (COMMANDS, definition(command, Some(5.0))),
            (TIMED, definition(call, Some(2.0))),
        ] {
            world.event(Event::Defined { map, definition });
        }
        world
    }

    fn event(&mut self, event: Event) {
        let effects = self.core.handle(self.now, event);
        for effect in effects {
            self.effect(effect);
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::StartWorker { .. } => {
                assert!(!self.spare && !self.starting, "one spare at a time");
                self.starting = true;
            }
            Effect::AssignSpare { worker } => {
                assert!(std::mem::take(&mut self.spare));
                self.workers.push(worker);
            }
            Effect::EndWorker { worker } => {
                assert!(self.active != Some(worker) || (self.frames.is_empty() && self.begun.is_none()));
                assert!(self.workers.contains(&worker));
                self.workers.retain(|other| *other != worker);
            }
            Effect::GiveTasks { worker, first, inputs, .. } => {
                assert!(self.workers.contains(&worker));
                assert!(
                    self.active == Some(worker) || (self.frames.is_empty() && self.begun.is_none()),
                    "one worker has units at a time"
                );
                self.active = Some(worker);
                self.frames.extend((0..inputs.len() as u32).map(|i| first.wrapping_add(i)));
            }
            Effect::TakeTokens { .. } => {
                let count = self.frames.len();
                self.frames.clear();
                self.event(Event::TokensTaken { count });
            }
            Effect::ReadOutput { .. } => self.event(Event::OutputRead {
                output: Default::default(),
            }),
            Effect::StartCommand { .. } => {
                assert!(
                    !self.command && self.begun.is_none() && self.frames.is_empty(),
                    "one thing at a time"
                );
                self.command = true;
            }
            Effect::SendResults(results) => {
                assert!(results.results.len() <= 512);
                self.sequences.push(results.sequence);
                self.results
                    .extend(results.results.iter().map(|r| (held(r.map, r.index), r.outcome.status)));
            }
            Effect::SendReturned(returned) => self.returned.extend(returned.tasks),
            Effect::SignalWorker { signal, .. } | Effect::SignalCommand { signal } => self.signals.push(signal),
            Effect::Leave { .. } => self.left = true,
            _ => {}
        }
    }

    fn pass(&mut self, ms: u64) {
        self.now.instant += Duration::from_millis(ms);
        self.now.unix.0 += ms as f64 / 1000.0;
        self.event(Event::Tick);
    }

    fn send(&mut self, map: MapId, indices: impl IntoIterator<Item = u32>) {
        let tasks: Vec<_> = indices.into_iter().map(|index| (index, 1, Bytes::from_static(b"[]"))).collect();
        self.sent.extend(tasks.iter().map(|(index, ..)| held(map, *index)));
        self.event(Event::TasksCame { map, tasks });
    }

    fn ready(&mut self) {
        if self.starting {
            (self.starting, self.spare) = (false, true);
            self.event(Event::WorkerReady);
        }
    }

    /// The worker reads its next token.
    fn begin(&mut self) {
        if self.begun.is_none() {
            self.begun = self.frames.pop_front();
        }
    }

    fn finish(&mut self, seconds: f64) {
        let Some(ticket) = self.begun.take() else { return };
        let started = UnixTime(self.now.unix.0 - seconds);
        self.event(Event::UnitEnded {
            worker: self.active.unwrap(),
            ticket,
            started,
            ended: self.now.unix,
            output: Default::default(),
            result: WorkerResult::Value(Bytes::from_static(b"1")),
        });
    }

    fn end_command(&mut self) {
        if std::mem::take(&mut self.command) {
            let end = CommandEnd {
                started: self.now.unix,
                ended: self.now.unix,
                how: CommandExit::Code(0),
            };
            self.event(Event::CommandEnded(end));
        }
    }

    fn crash(&mut self) {
        let worker = self.active.filter(|active| self.workers.contains(active));
        if worker.is_some() || self.starting || self.spare {
            match worker {
                Some(worker) => {
                    self.workers.retain(|other| *other != worker);
                    self.begun = None;
                }
                None => (self.starting, self.spare) = (false, false),
            }
            let unread = std::mem::take(&mut self.frames).len();
            let (how, stderr_tail) = ("died".to_string(), String::new());
            let output: [Bytes; 2] = Default::default();
            self.event(Event::WorkerExited {
                worker,
                unread,
                how,
                killed: false,
                stderr_tail,
                output,
            });
        }
    }

    /// Works until nothing is left to do.
    fn run_dry(&mut self) {
        for _ in 0..100_000 {
            self.ready();
            self.begin();
            self.finish(0.001);
            self.end_command();
            self.pass(3);
            if self.core.holds().is_empty() && self.core.outbox_is_sent() {
                return;
            }
        }
        panic!("never dry: {:?}", self.core.holds());
    }
}

impl Core {
    fn outbox_is_sent(&self) -> bool {
        self.outbox.deadline().is_none()
    }
}

use bytes::Bytes;

fn held(map: MapId, index: u32) -> Held {
    Held { map, index, run: 1 }
}

fn running_world() -> World {
    let mut world = World::new();
    world.send(CALLS, 0..10);
    world.ready();
    world.begin();
    world
}

#[test]
fn unknown_tasks_go_in_pairs_and_short_ones_in_heaps() {
    let mut world = running_world();
    assert_eq!(world.frames.len(), 1, "one begun, one behind it");
    world.send(CALLS, 10..5000);
    for _ in 0..30 {
        world.begin();
        world.finish(0.000_01);
    }
    assert!(world.frames.len() > 100, "{} are ahead", world.frames.len());
}

#[test]
fn ends_that_come_together_are_one_step() {
    let mut world = running_world();
    world.send(CALLS, 10..5000);
    for _ in 0..30 {
        world.begin();
        world.finish(0.000_001);
    }
    world.begin();
    let tickets: Vec<u32> = world.begun.take().into_iter().chain(world.frames.drain(..)).collect();
    assert!(tickets.len() > 512, "{} are ahead", tickets.len());
    let (worker, at) = (world.active.unwrap(), world.now.unix);
    let ends = tickets.iter().map(|ticket| Event::UnitEnded {
        worker,
        ticket: *ticket,
        started: at,
        ended: at,
        output: Default::default(),
        result: WorkerResult::Value(Bytes::from_static(b"1")),
    });
    for effect in world.core.handle_all(world.now, ends) {
        world.effect(effect);
    }
    assert!(!world.frames.is_empty(), "more is given");
    world.run_dry();
    let mut ended: Vec<u32> = world.results.iter().map(|(held, _)| held.index).collect();
    ended.sort();
    assert_eq!(ended, (0..5000).collect::<Vec<_>>(), "each once");
}

#[test]
fn nothing_is_given_behind_a_long_task() {
    let mut world = running_world();
    for _ in 0..4 {
        world.finish(0.000_01);
        world.begin();
    }
    world.event(Event::GiveBackAsked { at_most: 100 });
    assert!(world.frames.is_empty());
    let unbegun = world.returned.len();
    world.pass(1000);
    assert_eq!((world.returned.len(), unbegun), (unbegun, 5));
}

#[test]
fn what_is_given_back_is_remembered_until_it_is_on_the_controllers_disk() {
    let mut world = running_world();
    let unheard = |world: &World| -> Vec<(u64, usize)> {
        let returns = world.core.unheard_returns();
        returns.iter().map(|back| (back.sequence, back.tasks.len())).collect()
    };
    world.event(Event::GiveBackAsked { at_most: 2 });
    world.event(Event::GiveBackAsked { at_most: 3 });
    assert_eq!(unheard(&world), [(1, 2), (2, 3)]);
    // A registration alone says nothing of what was said after it.
    world.event(Event::Registered { drop: vec![] });
    world.event(Event::ReturnRecorded { sequence: 1 });
    assert_eq!(unheard(&world), [(2, 3)]);
    world.event(Event::ReturnRecorded { sequence: 2 });
    // Where there is nothing, there is nothing to be remembered.
    while !world.core.holds().is_empty() {
        world.ready();
        world.begin();
        world.finish(0.001);
    }
    world.event(Event::GiveBackAsked { at_most: 3 });
    assert_eq!(unheard(&world), []);
}

#[test]
fn a_timeout_is_for_the_task_that_runs() {
    let mut world = World::new();
    world.send(TIMED, 0..3);
    world.ready();
    world.begin();
    // It ended, the next has begun, and the word of it is on its way.
    let first = world.begun.take();
    world.begin();
    let second = std::mem::replace(&mut world.begun, first);
    world.pass(2500);
    assert_eq!(world.signals, [], "the first has ended in time");
    world.finish(0.1);
    world.begun = second;
    world.pass(1900);
    assert_eq!(world.signals, []);
    world.pass(200);
    assert_eq!(world.signals, [Stage::Interrupt]);
    world.pass(1000);
    world.pass(1000);
    world.pass(1000);
    assert_eq!(world.signals, [Stage::Interrupt, Stage::Terminate, Stage::Kill]);
    world.crash();
    world.run_dry();
    assert_eq!(
        world.results.iter().map(|(_, state)| *state).collect::<Vec<_>>(),
        [TaskState::Ok, TaskState::Timeout, TaskState::Ok]
    );
}

#[test]
fn a_task_over_its_memory_is_killed_at_once_and_the_next_one_is_not() {
    let mut world = World::new();
    let definition = MapDefinition {
        options: MapOptions {
            mem_bytes: Some(1000),
            ..MapOptions::default()
        },
        ..(*world_definition(CALLS)).clone()
    };
    let (map, definition) = (MapId(9), Arc::new(definition));
    world.event(Event::Defined { map, definition });
    world.send(map, 0..2);
    world.ready();
    world.begin();
    world.pass(100);
    world.event(Event::MemoryMeasured { bytes: 1000 });
    assert_eq!(world.signals, []);
    world.event(Event::MemoryMeasured { bytes: 1001 });
    // A second look while it dies changes nothing.
    world.event(Event::MemoryMeasured { bytes: 2000 });
    assert_eq!(world.signals, [Stage::Kill]);
    world.pass(60_000);
    assert_eq!(world.signals, [Stage::Kill]);
    world.crash();
    world.ready();
    world.begin();
    world.event(Event::MemoryMeasured { bytes: 1 });
    world.finish(0.1);
    world.pass(1000);
    assert_eq!(world.results, [(held(map, 0), TaskState::Lost), (held(map, 1), TaskState::Ok)]);
}

#[test]
fn a_worker_that_ends_for_nothing_is_not_started_for_ever() {
    // One that is killed may have met somebody else's problem.
    for (killed, most) in [(false, 3), (true, 10)] {
        let mut world = World::new();
        for deaths in 0..most {
            assert_eq!(world.results, [], "after {deaths} deaths");
            world.send(CALLS, [world.sent.len() as u32]);
            world.ready();
            world.frames.clear();
            (world.workers, world.begun) = (Vec::new(), None);
            let unread = 100;
            world.event(Event::WorkerExited {
                worker: Some(WorkerKey::Map(CALLS)),
                unread,
                how: "died".into(),
                killed,
                stderr_tail: String::new(),
                output: Default::default(),
            });
        }
        world.pass(10);
        assert_eq!((world.results.len(), world.returned.len()), (0, most), "they may run elsewhere");
        world.pass(11_000);
        world.ready();
        world.send(CALLS, [77]);
        world.run_dry();
        assert_eq!(world.results.last(), Some(&(held(CALLS, 77), TaskState::Ok)));
    }
}

#[test]
fn a_worker_that_is_killed_before_it_is_ready_is_started_again_and_not_for_ever() {
    let killed = || Event::WorkerExited {
        worker: None,
        unread: 0,
        how: "the Python worker was killed by signal 9 (SIGKILL)".into(),
        killed: true,
        stderr_tail: String::new(),
        output: Default::default(),
    };
    let mut world = World::new();
    world.send(CALLS, [1]);
    world.starting = false;
    world.event(killed());
    world.run_dry();
    assert_eq!(world.results, [(held(CALLS, 1), TaskState::Ok)]);
    let mut world = World::new();
    world.send(CALLS, [1]);
    for _ in 0..10 {
        assert_eq!(world.results, []);
        world.starting = false;
        world.event(killed());
    }
    world.pass(10);
    assert_eq!((&world.results[..], &world.returned[..]), (&[][..], &[held(CALLS, 1)][..]));
}

#[test]
fn a_worker_that_dies_leaves_a_command_alone() {
    let mut world = running_world();
    world.send(COMMANDS, [50]);
    while !world.command {
        world.begin();
        world.finish(0.001);
    }
    world.crash();
    world.end_command();
    world.pass(3);
    assert_eq!(world.results.last(), Some(&(held(COMMANDS, 50), TaskState::Ok)));
}

#[test]
fn results_are_kept_until_they_are_recorded() {
    let mut world = running_world();
    world.run_dry();
    let before = world.sequences.clone();
    assert_eq!(before, (1..=before.len() as u64).collect::<Vec<_>>());
    assert!(before.len() >= 2, "{before:?}");
    // That the second one is recorded says nothing of the first, which may have been lost with a connection.
    world.event(Event::Recorded { sequence: 2 });
    world.sequences.clear();
    world.event(Event::Registered { drop: Vec::new() });
    assert_eq!(world.sequences, [&before[..1], &before[2..]].concat());
    for sequence in before {
        world.event(Event::Recorded { sequence });
    }
    world.sequences.clear();
    world.event(Event::Registered { drop: Vec::new() });
    assert!(world.sequences.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Send(u8, u8),
    Ready,
    Begin,
    Finish,
    FinishShort,
    EndCommand,
    Crash,
    Pass(u16),
    GiveBack(u8),
    Cancel(u8, u8),
    Forget(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u8..3, 1u8..20).prop_map(|(map, count)| Step::Send(map, count)),
        3 => Just(Step::Ready),
        6 => Just(Step::Begin),
        3 => Just(Step::Finish),
        4 => Just(Step::FinishShort),
        3 => Just(Step::EndCommand),
        1 => Just(Step::Crash),
        3 => (0u16..3000).prop_map(Step::Pass),
        1 => (0u8..30).prop_map(Step::GiveBack),
        1 => (0u8..60, 1u8..10).prop_map(|(from, count)| Step::Cancel(from, count)),
        1 => (0u8..3).prop_map(Step::Forget),
    ]
}

fn map_of(number: u8) -> MapId {
    [CALLS, COMMANDS, TIMED][usize::from(number) % 3]
}

proptest! {
    /// Whatever happens, a task that has come ends in one result, or is returned once.
    #[test]
    fn every_task_ends_exactly_once(steps in proptest::collection::vec(step(), 1..120), leaves in any::<bool>()) {
        let mut world = World::new();
        let mut next = 0;
        for step in steps {
            match step {
                Step::Send(map, count) => {
                    world.send(map_of(map), next..next + u32::from(count));
                    next += u32::from(count);
                }
                Step::Ready => world.ready(),
                Step::Begin => world.begin(),
                Step::Finish => world.finish(1.0),
                Step::FinishShort => world.finish(0.000_02),
                Step::EndCommand => world.end_command(),
                Step::Crash => world.crash(),
                Step::Pass(ms) => world.pass(u64::from(ms)),
                Step::GiveBack(at_most) => world.event(Event::GiveBackAsked { at_most: u32::from(at_most) }),
                Step::Cancel(from, count) => {
                    let tasks = world.sent.iter().skip(usize::from(from)).take(usize::from(count)).copied().collect();
                    world.event(Event::CancelAsked { tasks });
                }
                Step::Forget(map) => {
                    // Only a map without unfinished tasks is forgotten.
                    let map = map_of(map);
                    if !world.core.holds().iter().any(|held| held.map == map) {
                        world.event(Event::Forgotten { map });
                        let definition = world_definition(map);
                        world.event(Event::Defined { map, definition });
                    }
                }
            }
        }
        if leaves {
            world.event(Event::ShutdownAsked { drain: true, reason: "test".into(), grace_period_ms: Some(10) });
        }
        world.run_dry();
        let mut ended: Vec<Held> = world.results.iter().map(|(held, _)| *held).chain(world.returned.iter().copied()).collect();
        let mut sent = world.sent.clone();
        ended.sort_by_key(|held| (held.map, held.index));
        sent.sort_by_key(|held| (held.map, held.index));
        prop_assert_eq!(ended, sent);
        if leaves {
            for sequence in world.sequences.clone() {
                world.event(Event::Recorded { sequence });
            }
            prop_assert!(world.left);
        }
    }
}

fn world_definition(map: MapId) -> Arc<MapDefinition> {
    let call = Work::Call {
        from: CallSource::Module { module: "m".into() },
        function: "f".into(),
    };
    match map {
        COMMANDS => definition(Work::Command { argv: vec!["true".into()] }, Some(5.0)),
        TIMED => definition(call, Some(2.0)),
        _ => definition(call, None),
    }
}

#[test]
fn what_is_published_is_of_the_request_that_it_came_from() {
    let mut world = World::new();
    world.event(Event::WorkerReady);
    let request = |id: &str| {
        let message = crate::wire::Message {
            header_json: Bytes::from(format!(r#"{{"msg_id":"{id}"}}"#)),
            ..crate::wire::Message::default()
        };
        Arc::new(Request::new(
            crate::wire::content::engine::Channel::Mux,
            Vec::new(),
            unit::Method::Apply,
            message,
        ))
    };
    let published = |parent| Event::Published {
        worker: WorkerKey::Interactive,
        output: Default::default(),
        published: Published {
            parent,
            kind: "display_data".into(),
            topic: "displaypub".into(),
            metadata: Default::default(),
            content: Bytes::new(),
            buffers: Vec::new(),
        },
    };
    let now = world.now;
    let mut parents = |event| {
        let effects = world.core.handle(now, event);
        let parents = effects.into_iter().filter_map(|effect| match effect {
            Effect::Publish { parent, .. } => Some(parent),
            _ => None,
        });
        parents.collect::<Vec<_>>()
    };
    let ended = Bytes::from_static(br#"{"msg_id":"ended"}"#);
    let unclaimed = || Event::OutputUnclaimed {
        output: [Bytes::from_static(b"text"), Bytes::new()],
    };
    assert_eq!(parents(published(Parent::Running)), []);
    assert_eq!(parents(published(Parent::Ended(ended.clone()))), [Some(ended.clone())]);
    assert_eq!(parents(unclaimed()), [None]);
    parents(Event::RequestCame(request("running")));
    assert_eq!(
        parents(published(Parent::Running)),
        [Some(Bytes::from_static(br#"{"msg_id":"running"}"#))]
    );
    assert_eq!(parents(published(Parent::Ended(ended.clone()))), [Some(ended)]);
    assert_eq!(parents(published(Parent::None)), [None]);
    assert_eq!(parents(unclaimed()), [None]);
}

impl World {
    fn define(&mut self, map: MapId, work: Work) {
        let definition = definition(work, None);
        self.event(Event::Defined { map, definition });
    }

    /// Until these tasks have ended.
    fn run(&mut self, map: MapId, indices: std::ops::Range<u32>) {
        self.send(map, indices);
        self.run_dry();
    }
}

fn execution() -> Work {
    Work::Execute {
        code: "pass".into(),
        filename: "<exec>".into(),
        bundle: None,
    }
}

#[test]
fn each_map_has_a_worker_until_it_is_forgotten_and_interactive_work_another() {
    let mut world = World::new();
    let called = |interactive| {
        let options = MapOptions {
            interactive,
            ..MapOptions::default()
        };
        let work = world_definition(CALLS).work.clone();
        Arc::new(MapDefinition { work, options })
    };
    for (map, interactive) in [(MapId(11), false), (MapId(12), true)] {
        let definition = called(interactive);
        world.event(Event::Defined { map, definition });
        world.run(map, 0..3);
    }
    world.define(MapId(13), execution());
    world.run(MapId(13), 0..1);
    assert_eq!(world.workers, [WorkerKey::Map(MapId(11)), WorkerKey::Interactive]);
    assert!(world.starting || world.spare, "the next one is ready");
    for map in [11, 12, 13] {
        world.event(Event::Forgotten { map: MapId(map) });
    }
    assert_eq!(world.workers, [WorkerKey::Interactive]);
}

#[test]
fn many_open_maps_do_not_keep_many_workers() {
    let mut world = World::new();
    world.define(MapId(100), execution());
    world.run(MapId(100), 0..1);
    for map in 11..30 {
        world.define(MapId(map), world_definition(CALLS).work.clone());
        world.run(MapId(map), 0..2);
    }
    // The one that ran last, and those that ran before it; the namespace is not counted.
    let expected: Vec<WorkerKey> = (25..30).map(|map| WorkerKey::Map(MapId(map))).collect();
    assert_eq!(world.workers, [&[WorkerKey::Interactive], &expected[..]].concat());
    // One that was ended comes back for more.
    world.run(MapId(11), 2..3);
    assert_eq!(world.results.last(), Some(&(held(MapId(11), 2), TaskState::Ok)));
}

#[test]
fn a_namespace_that_is_lost_while_nothing_runs_takes_the_id_along() {
    let exited = |worker| Event::WorkerExited {
        worker,
        unread: 0,
        how: "died".into(),
        killed: true,
        stderr_tail: String::new(),
        output: Default::default(),
    };
    let mut world = World::new();
    world.define(MapId(100), execution());
    world.run(MapId(100), 0..1);
    world.run(CALLS, 1..2);
    world.workers.retain(|worker| *worker == WorkerKey::Interactive);
    world.event(exited(Some(WorkerKey::Map(CALLS))));
    assert!(!world.left);
    world.workers.clear();
    world.event(exited(Some(WorkerKey::Interactive)));
    for sequence in world.sequences.clone() {
        world.event(Event::Recorded { sequence });
    }
    assert!(world.left);
}

fn tasks(world: &mut World, map: MapId, indices: std::ops::Range<u32>) -> Vec<Effect> {
    let tasks = indices.map(|index| (index, 1, Bytes::from_static(b"[]"))).collect();
    world.core.handle(world.now, Event::TasksCame { map, tasks })
}

fn fails(world: &mut World) -> Vec<Effect> {
    let reason = "no interpreter".to_string();
    world.core.handle(world.now, Event::WorkerFailed { reason })
}

#[test]
fn tasks_of_an_engine_whose_python_fails_go_back_uncharged_after_it_has_reported_that() {
    let mut world = World::new();
    let effects = tasks(&mut world, CALLS, 0..3);
    assert!(matches!(effects[..], [Effect::StartWorker { .. }, ..]), "{effects:?}");
    let effects = fails(&mut world);
    let [Effect::ReportAvailability { reason: Some(reason) }, Effect::SendReturned(returned)] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(reason, "no interpreter");
    assert_eq!(returned.tasks, [held(CALLS, 0), held(CALLS, 1), held(CALLS, 2)]);
    // What was on its way goes back too, and commands run.
    let effects = tasks(&mut world, CALLS, 3..4);
    assert!(
        matches!(&effects[..], [Effect::SendReturned(back)] if back.tasks == [held(CALLS, 3)]),
        "{effects:?}"
    );
    let effects = tasks(&mut world, COMMANDS, 0..1);
    assert!(matches!(effects[..], [Effect::StartCommand { .. }]), "{effects:?}");
    // While that runs, Python tasks behind it do not wait for it.
    let effects = tasks(&mut world, CALLS, 4..5);
    assert!(
        matches!(&effects[..], [Effect::SendReturned(back)] if back.tasks == [held(CALLS, 4)]),
        "{effects:?}"
    );
}

#[test]
fn python_that_failed_is_tried_again_ever_more_rarely_until_it_works() {
    let mut world = World::new();
    tasks(&mut world, CALLS, 0..1);
    fails(&mut world);
    let mut delays = Vec::new();
    for _ in 0..8 {
        let at = world.core.next_deadline().unwrap();
        delays.push((at - world.now.instant).as_secs());
        world.now.instant = at;
        let effects = world.core.handle(world.now, Event::Tick);
        assert!(matches!(effects[..], [Effect::StartWorker { .. }]), "{effects:?}");
        assert!(fails(&mut world).is_empty(), "the same reason is reported once");
    }
    assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
    world.now.instant = world.core.next_deadline().unwrap();
    world.core.handle(world.now, Event::Tick);
    let effects = world.core.handle(world.now, Event::WorkerReady);
    assert!(matches!(effects[..], [Effect::ReportAvailability { reason: None }]), "{effects:?}");
    let effects = tasks(&mut world, CALLS, 1..2);
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::GiveTasks { .. })),
        "{effects:?}"
    );
}

const BUNDLED: MapId = MapId(50);

fn bundled(targets: Option<crate::model::targets::Targets>) -> Arc<MapDefinition> {
    let from = CallSource::File {
        name: "m.py".into(),
        text: "def f(): pass".into(),
    };
    let work = Work::Call {
        from,
        function: "f".into(),
    };
    let options = MapOptions {
        targets,
        ..MapOptions::default()
    };
    Arc::new(MapDefinition { work, options }.with_bundle())
}

impl World {
    fn code_fails(&mut self) -> Vec<Effect> {
        let hash = self.core.bundle_of(BUNDLED).map(String::from);
        let reason = "no space".to_string();
        self.core.handle(self.now, Event::CodeFailed { hash, reason })
    }
}

#[test]
fn tasks_whose_code_cannot_be_stored_go_back_uncharged_after_the_engine_has_reported_that() {
    let mut world = World::new();
    world.event(Event::WorkerReady);
    for (map, targets) in [
        (BUNDLED, None),
        (
            MapId(51),
            Some(crate::model::targets::Targets::Some(vec![crate::model::EngineId(0)])),
        ),
    ] {
        let definition = bundled(targets);
        world.event(Event::Defined { map, definition });
    }
    let effects = world.code_fails();
    let [Effect::ReportAvailability { reason: Some(reason) }] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(reason, "the code of maps cannot be stored: no space");
    let effects = tasks(&mut world, BUNDLED, 0..3);
    assert!(
        matches!(&effects[..], [Effect::SendReturned(back), ..] if back.tasks.len() == 3),
        "{effects:?}"
    );
    // What can run nowhere else says why; what needs no code runs.
    let effects = tasks(&mut world, MapId(51), 0..1);
    let Some(Effect::SendResults(results)) = effects.iter().find(|effect| matches!(effect, Effect::SendResults(_))) else {
        panic!("{effects:?}");
    };
    let error = results.results[0].outcome.error.as_ref().unwrap();
    assert_eq!((error.ename.as_str(), error.evalue.as_str()), ("CodeUnavailable", reason.as_str()));
    let effects = tasks(&mut world, CALLS, 0..1);
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::GiveTasks { .. })),
        "{effects:?}"
    );
}

#[test]
fn storing_code_is_tried_again_ever_more_rarely_and_then_all_of_it_is_asked_for() {
    let mut world = World::new();
    let definition = bundled(None);
    world.event(Event::Defined { map: BUNDLED, definition });
    world.code_fails();
    let mut delays = Vec::new();
    for _ in 0..8 {
        let at = world.core.next_deadline().unwrap();
        delays.push((at - world.now.instant).as_secs());
        world.now.instant = at;
        let effects = world.core.handle(world.now, Event::Tick);
        assert!(matches!(effects[..], [Effect::TryToStoreCode]), "{effects:?}");
        let again = Event::CodeFailed {
            hash: None,
            reason: "no space".into(),
        };
        assert!(world.core.handle(world.now, again).is_empty(), "the same reason is reported once");
    }
    assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
    let usable = |world: &mut World| {
        world.now.instant = world.core.next_deadline().unwrap();
        world.core.handle(world.now, Event::Tick);
        let effects = world.core.handle(world.now, Event::CodeUsable);
        assert!(
            matches!(effects[..], [Effect::Register { .. }, Effect::ReportAvailability { reason: None }]),
            "{effects:?}"
        );
    };
    usable(&mut world);
    // It was too early: the row goes on. Once the code has come, a new one begins.
    world.code_fails();
    assert_eq!((world.core.next_deadline().unwrap() - world.now.instant).as_secs(), 60);
    usable(&mut world);
    let hash = world.core.bundle_of(BUNDLED).unwrap().to_string();
    world.event(Event::CodeWritten { hash });
    world.code_fails();
    assert_eq!((world.core.next_deadline().unwrap() - world.now.instant).as_secs(), 1);
}

#[test]
fn code_that_was_removed_is_given_to_its_worker_again() {
    let mut world = World::new();
    world.event(Event::WorkerReady);
    let definition = bundled(None);
    world.event(Event::Defined { map: BUNDLED, definition });
    let defines = |effects: &[Effect]| effects.iter().filter(|effect| matches!(effect, Effect::Define { .. })).count();
    assert_eq!(defines(&tasks(&mut world, BUNDLED, 0..1)), 1);
    world.code_fails();
    world.now.instant = world.core.next_deadline().unwrap().max(world.now.instant + Duration::from_secs(1));
    world.core.handle(world.now, Event::Tick);
    world.core.handle(world.now, Event::CodeUsable);
    assert_eq!(defines(&tasks(&mut world, BUNDLED, 1..2)), 1);
}
