use super::event::{Parent, Published};
use super::unit::{CommandEnd, CommandExit, PeakMemory, WorkerResult};
use super::*;
use crate::model::definition::{CallSource, MapOptions, ProcessSetup, Work};
use crate::model::task::{Cause, TaskState};
use proptest::prelude::*;

const CALLS: MapId = MapId(1);
const COMMANDS: MapId = MapId(2);
const TIMED: MapId = MapId(3);

/// A core with a simulated environment: a worker that reads tokens in order, a command, a controller's ledger, a clock.
struct Simulation {
    core: Core,
    now: Now,
    /// Tickets in the worker, waiting for their tokens.
    frames: VecDeque<u32>,
    /// Ticket of the started unit.
    started: Option<u32>,
    workers: Vec<WorkerKey>,
    /// The worker that last received units.
    active: Option<WorkerKey>,
    starting: bool,
    spare: bool,
    command: bool,
    sent: Vec<Held>,
    results: Vec<(Held, TaskState)>,
    outcomes: Vec<(Held, Outcome)>,
    /// Reported with the ends of units.
    peak: Option<u64>,
    command_peak: PeakMemory,
    oom_killed: bool,
    /// Of the tasks that are sent.
    ask: Ask,
    sequences: Vec<u64>,
    returned: Vec<Held>,
    signals: Vec<StopStep>,
    left: bool,
}

fn definition(work: Work, timeout_s: Option<f64>) -> Arc<MapDefinition> {
    let options = MapOptions {
        timeout_s,
        ..MapOptions::default()
    };
    Arc::new(MapDefinition { work, options })
}

impl Simulation {
    fn new() -> Simulation {
        let settings = CoreSettings {
            interrupt: Duration::from_secs(1),
            terminate: Duration::from_secs(1),
            python: "python3".into(),
            shell_at_start: false,
            process: ProcessSetup::default(),
        };
        let mut sim = Simulation {
            core: Core::new(settings),
            now: Now {
                instant: Instant::now(),
                unix: UnixTime(1000.0),
            },
            frames: VecDeque::new(),
            started: None,
            workers: Vec::new(),
            active: None,
            starting: false,
            spare: false,
            command: false,
            sent: Vec::new(),
            results: Vec::new(),
            outcomes: Vec::new(),
            peak: None,
            command_peak: PeakMemory::Unknown,
            oom_killed: false,
            ask: Ask::default(),
            sequences: Vec::new(),
            returned: Vec::new(),
            signals: Vec::new(),
            left: false,
        };
        sim.event(Event::Registered { drop: Vec::new() });
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
            sim.event(Event::Defined { map, definition });
        }
        sim
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
                assert!(self.active != Some(worker) || (self.frames.is_empty() && self.started.is_none()));
                assert!(self.workers.contains(&worker));
                self.workers.retain(|other| *other != worker);
            }
            Effect::DispatchTasks { worker, first, inputs, .. } => {
                assert!(self.workers.contains(&worker));
                assert!(
                    self.active == Some(worker) || (self.frames.is_empty() && self.started.is_none()),
                    "one worker has units at a time"
                );
                self.active = Some(worker);
                self.frames.extend((0..inputs.len() as u32).map(|i| first.wrapping_add(i)));
            }
            Effect::TakeBackTokens { .. } => {
                let count = self.frames.len();
                self.frames.clear();
                self.event(Event::TokensTakenBack { count });
            }
            Effect::ReadOutput { .. } => self.event(Event::OutputRead {
                output: Default::default(),
            }),
            Effect::StartCommand { .. } => {
                assert!(
                    !self.command && self.started.is_none() && self.frames.is_empty(),
                    "one thing at a time"
                );
                self.command = true;
            }
            Effect::SendResults(results) => {
                assert!(results.results.len() <= 512);
                self.sequences.push(results.sequence);
                self.outcomes
                    .extend(results.results.iter().map(|r| (held(r.map, r.index), r.outcome.clone())));
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
        let tasks: Vec<_> = indices
            .into_iter()
            .map(|index| (index, 1, Bytes::from_static(b"[]"), self.ask))
            .collect();
        self.sent.extend(tasks.iter().map(|(index, ..)| held(map, *index)));
        self.event(Event::TasksReceived { map, tasks });
    }

    fn ready(&mut self) {
        if self.starting {
            (self.starting, self.spare) = (false, true);
            self.event(Event::WorkerReady);
        }
    }

    /// The worker reads its next token.
    fn start_next(&mut self) {
        if self.started.is_none() {
            self.started = self.frames.pop_front();
        }
    }

    fn finish(&mut self, seconds: f64) {
        let Some(ticket) = self.started.take() else { return };
        let started = UnixTime(self.now.unix.0 - seconds);
        self.event(Event::UnitEnded {
            worker: self.active.unwrap(),
            ticket,
            started,
            ended: self.now.unix,
            output: Default::default(),
            peak_memory: self.peak,
            result: WorkerResult::Value(Bytes::from_static(b"1")),
        });
    }

    fn end_command(&mut self) {
        if std::mem::take(&mut self.command) {
            let end = CommandEnd {
                started: self.now.unix,
                ended: self.now.unix,
                how: CommandExit::Code(0),
                peak: self.command_peak,
                oom_killed: self.oom_killed,
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
                    self.started = None;
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
                oom_killed: self.oom_killed,
                stderr_tail,
                output,
            });
        }
    }

    /// Runs until no work is left.
    fn run_until_idle(&mut self) {
        for _ in 0..100_000 {
            self.ready();
            self.start_next();
            self.finish(0.001);
            self.end_command();
            self.pass(3);
            if self.core.holds().is_empty() && self.core.outbox_is_sent() {
                return;
            }
        }
        panic!("still busy: {:?}", self.core.holds());
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

fn running_sim() -> Simulation {
    let mut sim = Simulation::new();
    sim.send(CALLS, 0..10);
    sim.ready();
    sim.start_next();
    sim
}

#[test]
fn prefetch_is_two_for_unknown_and_large_for_short_tasks() {
    let mut sim = running_sim();
    assert_eq!(sim.frames.len(), 1, "one started, one queued behind it");
    sim.send(CALLS, 10..5000);
    for _ in 0..30 {
        sim.start_next();
        sim.finish(0.000_01);
    }
    assert!(sim.frames.len() > 100, "{} prefetched", sim.frames.len());
}

#[test]
fn simultaneous_ends_are_one_step() {
    let mut sim = running_sim();
    sim.send(CALLS, 10..5000);
    for _ in 0..30 {
        sim.start_next();
        sim.finish(0.000_001);
    }
    sim.start_next();
    let tickets: Vec<u32> = sim.started.take().into_iter().chain(sim.frames.drain(..)).collect();
    assert!(tickets.len() > 512, "{} prefetched", tickets.len());
    let (worker, at) = (sim.active.unwrap(), sim.now.unix);
    let ends = tickets.iter().map(|ticket| Event::UnitEnded {
        worker,
        ticket: *ticket,
        started: at,
        ended: at,
        output: Default::default(),
        peak_memory: None,
        result: WorkerResult::Value(Bytes::from_static(b"1")),
    });
    for effect in sim.core.handle_all(sim.now, ends) {
        sim.effect(effect);
    }
    assert!(!sim.frames.is_empty(), "more units are dispatched");
    sim.run_until_idle();
    let mut ended: Vec<u32> = sim.results.iter().map(|(held, _)| held.index).collect();
    ended.sort();
    assert_eq!(ended, (0..5000).collect::<Vec<_>>(), "each once");
}

#[test]
fn nothing_is_prefetched_behind_a_long_task() {
    let mut sim = running_sim();
    for _ in 0..4 {
        sim.finish(0.000_01);
        sim.start_next();
    }
    sim.event(Event::ReturnRequested { max_count: 100 });
    assert!(sim.frames.is_empty());
    let not_started = sim.returned.len();
    sim.pass(1000);
    assert_eq!((sim.returned.len(), not_started), (not_started, 5));
}

#[test]
fn returned_units_are_reported_until_the_controller_records_them() {
    let mut sim = running_sim();
    let unconfirmed = |sim: &Simulation| -> Vec<(u64, usize)> {
        let returns = sim.core.unconfirmed_returns();
        returns.iter().map(|back| (back.sequence, back.tasks.len())).collect()
    };
    sim.event(Event::ReturnRequested { max_count: 2 });
    sim.event(Event::ReturnRequested { max_count: 3 });
    assert_eq!(unconfirmed(&sim), [(1, 2), (2, 3)]);
    // A registration does not acknowledge messages sent after it.
    sim.event(Event::Registered { drop: vec![] });
    sim.event(Event::ReturnRecorded { sequence: 1 });
    assert_eq!(unconfirmed(&sim), [(2, 3)]);
    sim.event(Event::ReturnRecorded { sequence: 2 });
    // An empty return needs no acknowledgement.
    while !sim.core.holds().is_empty() {
        sim.ready();
        sim.start_next();
        sim.finish(0.001);
    }
    sim.event(Event::ReturnRequested { max_count: 3 });
    assert_eq!(unconfirmed(&sim), []);
}

#[test]
fn a_timeout_applies_to_the_running_task() {
    let mut sim = Simulation::new();
    sim.send(TIMED, 0..3);
    sim.ready();
    sim.start_next();
    // It has ended and the next has started, but the report is still in transit.
    let first = sim.started.take();
    sim.start_next();
    let second = std::mem::replace(&mut sim.started, first);
    sim.pass(2500);
    assert_eq!(sim.signals, [], "the first has ended in time");
    sim.finish(0.1);
    sim.started = second;
    sim.pass(1900);
    assert_eq!(sim.signals, []);
    sim.pass(200);
    assert_eq!(sim.signals, [StopStep::Interrupt]);
    sim.pass(1000);
    sim.pass(1000);
    sim.pass(1000);
    assert_eq!(sim.signals, [StopStep::Interrupt, StopStep::Terminate, StopStep::Kill]);
    sim.crash();
    sim.run_until_idle();
    assert_eq!(
        sim.results.iter().map(|(_, state)| *state).collect::<Vec<_>>(),
        [TaskState::Ok, TaskState::Timeout, TaskState::Ok]
    );
}

#[test]
fn a_task_over_its_memory_limit_is_killed_immediately_and_the_next_one_is_not() {
    let mut sim = Simulation::new();
    let definition = MapDefinition {
        options: MapOptions {
            mem_bytes: Some(1000),
            ..MapOptions::default()
        },
        ..(*sim_definition(CALLS)).clone()
    };
    let (map, definition) = (MapId(9), Arc::new(definition));
    sim.event(Event::Defined { map, definition });
    sim.send(map, 0..2);
    sim.ready();
    sim.start_next();
    sim.pass(100);
    sim.event(Event::MemoryMeasured { bytes: 1000 });
    assert_eq!(sim.signals, []);
    sim.event(Event::MemoryMeasured { bytes: 1001 });
    // A second measurement while it dies changes nothing.
    sim.event(Event::MemoryMeasured { bytes: 2000 });
    assert_eq!(sim.signals, [StopStep::Kill]);
    sim.pass(60_000);
    assert_eq!(sim.signals, [StopStep::Kill]);
    sim.crash();
    sim.ready();
    sim.start_next();
    sim.event(Event::MemoryMeasured { bytes: 1 });
    sim.finish(0.1);
    sim.pass(1000);
    assert_eq!(sim.results, [(held(map, 0), TaskState::Lost), (held(map, 1), TaskState::Ok)]);
    let seen = sim.outcomes.iter().map(|(_, o)| (o.cause.clone(), o.peak_memory));
    let expected = [(Some(Cause::MemoryLimit), Some(2000)), (None, Some(1))];
    assert_eq!(seen.collect::<Vec<_>>(), expected);
}

#[test]
fn a_task_that_the_kernel_kills_for_lack_of_memory_is_not_just_a_crash() {
    let mut sim = Simulation::new();
    sim.oom_killed = true;
    sim.send(CALLS, 0..1);
    sim.ready();
    sim.start_next();
    sim.crash();
    sim.send(COMMANDS, 0..1);
    sim.end_command();
    sim.pass(1000);
    for (_, outcome) in &sim.outcomes {
        assert_eq!((outcome.status, outcome.crashed), (TaskState::Lost, true));
        assert_eq!(outcome.cause(), Some(Cause::MemoryCgroup));
        assert_eq!(outcome.error.as_ref().unwrap().ename, "OutOfMemory");
    }
    assert_eq!(sim.outcomes.len(), 2);
}

#[test]
fn an_attempt_that_asks_for_more_has_other_limits_than_its_map() {
    let mut sim = Simulation::new();
    sim.ask = Ask {
        mem_bytes: Some(1000),
        limit_ms: Some(4000),
    };
    sim.send(TIMED, 0..1);
    sim.ask = Ask::default();
    sim.send(TIMED, 1..2);
    sim.ready();
    sim.start_next();
    sim.pass(3900);
    sim.event(Event::MemoryMeasured { bytes: 1000 });
    assert_eq!(sim.signals, []);
    sim.pass(200);
    assert_eq!(sim.signals, [StopStep::Interrupt], "its own timeout");
    sim.finish(4.1);
    sim.start_next();
    sim.event(Event::MemoryMeasured { bytes: 2000 });
    sim.pass(2100);
    assert_eq!(sim.signals.len(), 2, "the next one has the map's timeout, and no memory limit");
    sim.finish(2.1);
    sim.pass(1000);
    let seen: Vec<_> = sim.outcomes.iter().map(|(_, o)| (o.status, o.cause(), o.peak_memory)).collect();
    let timeout = |peak| (TaskState::Timeout, Some(Cause::Timeout), peak);
    assert_eq!(seen, [timeout(Some(1000)), timeout(Some(2000))]);
}

#[test]
fn the_peak_of_a_task_is_the_largest_measurement() {
    let mut sim = Simulation::new();
    sim.send(CALLS, 0..2);
    sim.ready();
    sim.start_next();
    sim.peak = Some(500);
    sim.event(Event::MemoryMeasured { bytes: 700 });
    sim.event(Event::MemoryMeasured { bytes: 600 });
    sim.finish(0.1);
    // Measurements of one task are not those of the next.
    sim.start_next();
    sim.finish(0.1);
    sim.pass(1000);
    let seen: Vec<_> = sim.outcomes.iter().map(|(_, outcome)| outcome.peak_memory).collect();
    assert_eq!(seen, [Some(700), Some(500)]);
    for (peak, measured, expected) in [
        (PeakMemory::Measured(30), 20, Some(30)),
        (PeakMemory::Measured(30), 40, Some(40)),
        (PeakMemory::AtMost(30), 20, Some(20)),
        (PeakMemory::AtMost(30), 0, Some(30)),
        (PeakMemory::Unknown, 0, None),
    ] {
        sim.outcomes.clear();
        sim.command_peak = peak;
        sim.send(COMMANDS, [0]);
        sim.event(Event::MemoryMeasured { bytes: measured });
        sim.end_command();
        sim.pass(1000);
        assert_eq!(sim.outcomes[0].1.peak_memory, expected, "{peak:?} {measured}");
    }
}

#[test]
fn a_worker_that_keeps_exiting_while_idle_is_not_restarted_forever() {
    // A kill may have a cause outside of the worker.
    for (killed, limit) in [(false, 3), (true, 10)] {
        let mut sim = Simulation::new();
        for deaths in 0..limit {
            assert_eq!(sim.results, [], "after {deaths} deaths");
            sim.send(CALLS, [sim.sent.len() as u32]);
            sim.ready();
            sim.frames.clear();
            (sim.workers, sim.started) = (Vec::new(), None);
            let unread = 100;
            sim.event(Event::WorkerExited {
                worker: Some(WorkerKey::Map(CALLS)),
                unread,
                how: "died".into(),
                killed,
                oom_killed: false,
                stderr_tail: String::new(),
                output: Default::default(),
            });
        }
        sim.pass(10);
        assert_eq!((sim.results.len(), sim.returned.len()), (0, limit), "they may run elsewhere");
        sim.pass(11_000);
        sim.ready();
        sim.send(CALLS, [77]);
        sim.run_until_idle();
        assert_eq!(sim.results.last(), Some(&(held(CALLS, 77), TaskState::Ok)));
    }
}

#[test]
fn a_worker_killed_before_it_is_ready_is_restarted_a_limited_number_of_times() {
    let killed = || Event::WorkerExited {
        worker: None,
        unread: 0,
        how: "the Python worker was killed by signal 9 (SIGKILL)".into(),
        killed: true,
        oom_killed: false,
        stderr_tail: String::new(),
        output: Default::default(),
    };
    let mut sim = Simulation::new();
    sim.send(CALLS, [1]);
    sim.starting = false;
    sim.event(killed());
    sim.run_until_idle();
    assert_eq!(sim.results, [(held(CALLS, 1), TaskState::Ok)]);
    let mut sim = Simulation::new();
    sim.send(CALLS, [1]);
    for _ in 0..10 {
        assert_eq!(sim.results, []);
        sim.starting = false;
        sim.event(killed());
    }
    sim.pass(10);
    assert_eq!((&sim.results[..], &sim.returned[..]), (&[][..], &[held(CALLS, 1)][..]));
}

#[test]
fn a_dying_worker_does_not_affect_a_command() {
    let mut sim = running_sim();
    sim.send(COMMANDS, [50]);
    while !sim.command {
        sim.start_next();
        sim.finish(0.001);
    }
    sim.crash();
    sim.end_command();
    sim.pass(3);
    assert_eq!(sim.results.last(), Some(&(held(COMMANDS, 50), TaskState::Ok)));
}

#[test]
fn results_are_kept_until_they_are_recorded() {
    let mut sim = running_sim();
    sim.run_until_idle();
    let before = sim.sequences.clone();
    assert_eq!(before, (1..=before.len() as u64).collect::<Vec<_>>());
    assert!(before.len() >= 2, "{before:?}");
    // Recording the second message does not acknowledge the first, which may have been lost with a connection.
    sim.event(Event::Recorded { sequence: 2 });
    sim.sequences.clear();
    sim.event(Event::Registered { drop: Vec::new() });
    assert_eq!(sim.sequences, [&before[..1], &before[2..]].concat());
    for sequence in before {
        sim.event(Event::Recorded { sequence });
    }
    sim.sequences.clear();
    sim.event(Event::Registered { drop: Vec::new() });
    assert!(sim.sequences.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Send(u8, u8),
    Ready,
    StartNext,
    Finish,
    FinishShort,
    EndCommand,
    Crash,
    Pass(u16),
    Return(u8),
    Cancel(u8, u8),
    Forget(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u8..3, 1u8..20).prop_map(|(map, count)| Step::Send(map, count)),
        3 => Just(Step::Ready),
        6 => Just(Step::StartNext),
        3 => Just(Step::Finish),
        4 => Just(Step::FinishShort),
        3 => Just(Step::EndCommand),
        1 => Just(Step::Crash),
        3 => (0u16..3000).prop_map(Step::Pass),
        1 => (0u8..30).prop_map(Step::Return),
        1 => (0u8..60, 1u8..10).prop_map(|(from, count)| Step::Cancel(from, count)),
        1 => (0u8..3).prop_map(Step::Forget),
    ]
}

fn map_of(number: u8) -> MapId {
    [CALLS, COMMANDS, TIMED][usize::from(number) % 3]
}

proptest! {
    /// Under any sequence of events, a received task ends in exactly one result or is returned once.
    #[test]
    fn every_task_ends_exactly_once(steps in proptest::collection::vec(step(), 1..120), leaves in any::<bool>()) {
        let mut sim = Simulation::new();
        let mut next = 0;
        for step in steps {
            match step {
                Step::Send(map, count) => {
                    sim.send(map_of(map), next..next + u32::from(count));
                    next += u32::from(count);
                }
                Step::Ready => sim.ready(),
                Step::StartNext => sim.start_next(),
                Step::Finish => sim.finish(1.0),
                Step::FinishShort => sim.finish(0.000_02),
                Step::EndCommand => sim.end_command(),
                Step::Crash => sim.crash(),
                Step::Pass(ms) => sim.pass(u64::from(ms)),
                Step::Return(max_count) => sim.event(Event::ReturnRequested { max_count: u32::from(max_count) }),
                Step::Cancel(from, count) => {
                    let tasks = sim.sent.iter().skip(usize::from(from)).take(usize::from(count)).copied().collect();
                    sim.event(Event::CancelRequested { tasks });
                }
                Step::Forget(map) => {
                    // Only a map without unfinished tasks is forgotten.
                    let map = map_of(map);
                    if !sim.core.holds().iter().any(|held| held.map == map) {
                        sim.event(Event::MapForgotten { map });
                        let definition = sim_definition(map);
                        sim.event(Event::Defined { map, definition });
                    }
                }
            }
        }
        if leaves {
            sim.event(Event::ShutdownRequested { drain: true, reason: "test".into(), grace_period_ms: Some(10) });
        }
        sim.run_until_idle();
        let mut ended: Vec<Held> = sim.results.iter().map(|(held, _)| *held).chain(sim.returned.iter().copied()).collect();
        let mut sent = sim.sent.clone();
        ended.sort_by_key(|held| (held.map, held.index));
        sent.sort_by_key(|held| (held.map, held.index));
        prop_assert_eq!(ended, sent);
        if leaves {
            for sequence in sim.sequences.clone() {
                sim.event(Event::Recorded { sequence });
            }
            prop_assert!(sim.left);
        }
    }
}

fn sim_definition(map: MapId) -> Arc<MapDefinition> {
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
fn published_messages_have_their_own_request_as_parent() {
    let mut sim = Simulation::new();
    sim.event(Event::WorkerReady);
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
    let now = sim.now;
    let mut parents = |event| {
        let effects = sim.core.handle(now, event);
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
    parents(Event::RequestReceived(request("running")));
    assert_eq!(
        parents(published(Parent::Running)),
        [Some(Bytes::from_static(br#"{"msg_id":"running"}"#))]
    );
    assert_eq!(parents(published(Parent::Ended(ended.clone()))), [Some(ended)]);
    assert_eq!(parents(published(Parent::None)), [None]);
    assert_eq!(parents(unclaimed()), [None]);
}

impl Simulation {
    fn define(&mut self, map: MapId, work: Work) {
        let definition = definition(work, None);
        self.event(Event::Defined { map, definition });
    }

    /// Sends these tasks and runs until they have ended.
    fn run(&mut self, map: MapId, indices: std::ops::Range<u32>) {
        self.send(map, indices);
        self.run_until_idle();
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
fn each_map_has_a_worker_until_it_is_forgotten_and_interactive_work_has_its_own() {
    let mut sim = Simulation::new();
    let called = |interactive| {
        let options = MapOptions {
            interactive,
            ..MapOptions::default()
        };
        let work = sim_definition(CALLS).work.clone();
        Arc::new(MapDefinition { work, options })
    };
    for (map, interactive) in [(MapId(11), false), (MapId(12), true)] {
        let definition = called(interactive);
        sim.event(Event::Defined { map, definition });
        sim.run(map, 0..3);
    }
    sim.define(MapId(13), execution());
    sim.run(MapId(13), 0..1);
    assert_eq!(sim.workers, [WorkerKey::Map(MapId(11)), WorkerKey::Interactive]);
    assert!(sim.starting || sim.spare, "the next spare is starting or ready");
    for map in [11, 12, 13] {
        sim.event(Event::MapForgotten { map: MapId(map) });
    }
    assert_eq!(sim.workers, [WorkerKey::Interactive]);
}

#[test]
fn many_open_maps_do_not_keep_many_workers() {
    let mut sim = Simulation::new();
    sim.define(MapId(100), execution());
    sim.run(MapId(100), 0..1);
    for map in 11..30 {
        sim.define(MapId(map), sim_definition(CALLS).work.clone());
        sim.run(MapId(map), 0..2);
    }
    // The one that ran last and those before it; the interactive worker is not counted.
    let expected: Vec<WorkerKey> = (25..30).map(|map| WorkerKey::Map(MapId(map))).collect();
    assert_eq!(sim.workers, [&[WorkerKey::Interactive], &expected[..]].concat());
    // A map whose worker was ended gets a new one.
    sim.run(MapId(11), 2..3);
    assert_eq!(sim.results.last(), Some(&(held(MapId(11), 2), TaskState::Ok)));
}

#[test]
fn an_engine_that_loses_its_namespace_while_idle_leaves() {
    let exited = |worker| Event::WorkerExited {
        worker,
        unread: 0,
        how: "died".into(),
        killed: true,
        oom_killed: false,
        stderr_tail: String::new(),
        output: Default::default(),
    };
    let mut sim = Simulation::new();
    sim.define(MapId(100), execution());
    sim.run(MapId(100), 0..1);
    sim.run(CALLS, 1..2);
    sim.workers.retain(|worker| *worker == WorkerKey::Interactive);
    sim.event(exited(Some(WorkerKey::Map(CALLS))));
    assert!(!sim.left);
    sim.workers.clear();
    sim.event(exited(Some(WorkerKey::Interactive)));
    for sequence in sim.sequences.clone() {
        sim.event(Event::Recorded { sequence });
    }
    assert!(sim.left);
}

fn tasks(sim: &mut Simulation, map: MapId, indices: std::ops::Range<u32>) -> Vec<Effect> {
    let tasks = indices.map(|index| (index, 1, Bytes::from_static(b"[]"), Ask::default())).collect();
    sim.core.handle(sim.now, Event::TasksReceived { map, tasks })
}

fn fails(sim: &mut Simulation) -> Vec<Effect> {
    let reason = "no interpreter".to_string();
    sim.core.handle(sim.now, Event::WorkerFailed { reason })
}

#[test]
fn tasks_are_returned_after_a_python_failure_is_reported() {
    let mut sim = Simulation::new();
    let effects = tasks(&mut sim, CALLS, 0..3);
    assert!(matches!(effects[..], [Effect::StartWorker { .. }, ..]), "{effects:?}");
    let effects = fails(&mut sim);
    let [Effect::ReportAvailability { reason: Some(reason) }, Effect::SendReturned(returned)] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(reason, "no interpreter");
    assert_eq!(returned.tasks, [held(CALLS, 0), held(CALLS, 1), held(CALLS, 2)]);
    // Tasks in transit are returned too; commands run.
    let effects = tasks(&mut sim, CALLS, 3..4);
    assert!(
        matches!(&effects[..], [Effect::SendReturned(back)] if back.tasks == [held(CALLS, 3)]),
        "{effects:?}"
    );
    let effects = tasks(&mut sim, COMMANDS, 0..1);
    assert!(matches!(effects[..], [Effect::StartCommand { .. }]), "{effects:?}");
    // Python tasks behind the running command are returned immediately.
    let effects = tasks(&mut sim, CALLS, 4..5);
    assert!(
        matches!(&effects[..], [Effect::SendReturned(back)] if back.tasks == [held(CALLS, 4)]),
        "{effects:?}"
    );
}

#[test]
fn python_is_retried_with_backoff_until_it_works() {
    let mut sim = Simulation::new();
    tasks(&mut sim, CALLS, 0..1);
    fails(&mut sim);
    let mut delays = Vec::new();
    for _ in 0..8 {
        let at = sim.core.next_deadline().unwrap();
        delays.push((at - sim.now.instant).as_secs());
        sim.now.instant = at;
        let effects = sim.core.handle(sim.now, Event::Tick);
        assert!(matches!(effects[..], [Effect::StartWorker { .. }]), "{effects:?}");
        assert!(fails(&mut sim).is_empty(), "the same reason is reported once");
    }
    assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
    sim.now.instant = sim.core.next_deadline().unwrap();
    sim.core.handle(sim.now, Event::Tick);
    let effects = sim.core.handle(sim.now, Event::WorkerReady);
    assert!(matches!(effects[..], [Effect::ReportAvailability { reason: None }]), "{effects:?}");
    let effects = tasks(&mut sim, CALLS, 1..2);
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::DispatchTasks { .. })),
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

impl Simulation {
    fn code_fails(&mut self) -> Vec<Effect> {
        let hash = self.core.bundle_of(BUNDLED).map(String::from);
        let reason = "no space".to_string();
        self.core.handle(self.now, Event::CodeFailed { hash, reason })
    }
}

#[test]
fn tasks_are_returned_after_a_code_storage_failure_is_reported() {
    let mut sim = Simulation::new();
    sim.event(Event::WorkerReady);
    for (map, targets) in [
        (BUNDLED, None),
        (
            MapId(51),
            Some(crate::model::targets::Targets::Some(vec![crate::model::EngineId(0)])),
        ),
    ] {
        let definition = bundled(targets);
        sim.event(Event::Defined { map, definition });
    }
    let effects = sim.code_fails();
    let [Effect::ReportAvailability { reason: Some(reason) }] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(reason, "the code of maps cannot be stored: no space");
    let effects = tasks(&mut sim, BUNDLED, 0..3);
    assert!(
        matches!(&effects[..], [Effect::SendReturned(back), ..] if back.tasks.len() == 3),
        "{effects:?}"
    );
    // Tasks bound to this engine fail with the reason; tasks without a bundle run.
    let effects = tasks(&mut sim, MapId(51), 0..1);
    let Some(Effect::SendResults(results)) = effects.iter().find(|effect| matches!(effect, Effect::SendResults(_))) else {
        panic!("{effects:?}");
    };
    let error = results.results[0].outcome.error.as_ref().unwrap();
    assert_eq!((error.ename.as_str(), error.evalue.as_str()), ("CodeUnavailable", reason.as_str()));
    let effects = tasks(&mut sim, CALLS, 0..1);
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::DispatchTasks { .. })),
        "{effects:?}"
    );
}

#[test]
fn storing_code_is_retried_with_backoff_and_then_everything_is_requested() {
    let mut sim = Simulation::new();
    let definition = bundled(None);
    sim.event(Event::Defined { map: BUNDLED, definition });
    sim.code_fails();
    let mut delays = Vec::new();
    for _ in 0..8 {
        let at = sim.core.next_deadline().unwrap();
        delays.push((at - sim.now.instant).as_secs());
        sim.now.instant = at;
        let effects = sim.core.handle(sim.now, Event::Tick);
        assert!(matches!(effects[..], [Effect::RetryCodeStorage]), "{effects:?}");
        let again = Event::CodeFailed {
            hash: None,
            reason: "no space".into(),
        };
        assert!(sim.core.handle(sim.now, again).is_empty(), "the same reason is reported once");
    }
    assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
    let usable = |sim: &mut Simulation| {
        sim.now.instant = sim.core.next_deadline().unwrap();
        sim.core.handle(sim.now, Event::Tick);
        let effects = sim.core.handle(sim.now, Event::CodeUsable);
        assert!(
            matches!(effects[..], [Effect::Register { .. }, Effect::ReportAvailability { reason: None }]),
            "{effects:?}"
        );
    };
    usable(&mut sim);
    // The success was premature: the backoff continues. It is reset once the code has arrived.
    sim.code_fails();
    assert_eq!((sim.core.next_deadline().unwrap() - sim.now.instant).as_secs(), 60);
    usable(&mut sim);
    let hash = sim.core.bundle_of(BUNDLED).unwrap().to_string();
    sim.event(Event::CodeWritten { hash });
    sim.code_fails();
    assert_eq!((sim.core.next_deadline().unwrap() - sim.now.instant).as_secs(), 1);
}

#[test]
fn a_reduction_whose_values_cannot_be_stored_is_returned_and_the_reason_reported() {
    let mut sim = Simulation::new();
    sim.event(Event::WorkerReady);
    let (only_here, held) = (MapId(61), |map| Held { map, index: 0, run: 1 });
    let here = crate::model::targets::Targets::Some(vec![crate::model::EngineId(0)]);
    for (map, targets) in [(MapId(60), None), (only_here, Some(here))] {
        let mut definition = (*bundled(targets)).clone();
        definition.options.reduces = Some(crate::model::definition::Reduces {
            map: MapId(1),
            work: definition.work.clone(),
        });
        let definition = Arc::new(definition);
        sim.event(Event::Defined { map, definition });
    }
    let send = |sim: &mut Simulation, map| {
        let tasks = vec![(0, 1, bytes::Bytes::from_static(b"{\"values\":[\"1.0\"]}"), Ask::default())];
        let effects = sim.core.handle(sim.now, Event::TasksReceived { map, tasks });
        assert!(
            effects.iter().any(|effect| matches!(effect, Effect::SendValuesRequest(_))),
            "{effects:?}"
        );
        let held = held(map);
        let file = Err("/tmp/x: no space".to_string());
        sim.core.handle(sim.now, Event::ValuesStored { held, file })
    };
    // Only this engine may run it: it fails, and others are not affected.
    let effects = send(&mut sim, only_here);
    let failed = effects.iter().any(
        |effect| matches!(effect, Effect::SendResults(results) if results.results[0].outcome.error.as_ref().is_some_and(|e| e.ename == "ValueUnavailable")),
    );
    assert!(
        failed && !effects.iter().any(|effect| matches!(effect, Effect::ReportAvailability { .. })),
        "{effects:?}"
    );
    // Otherwise other engines get it, after the controller knows that this one is unavailable.
    let mut delays = Vec::new();
    for _ in 0..2 {
        let effects = send(&mut sim, MapId(60));
        let [
            Effect::DeleteValues { .. },
            Effect::ReportAvailability { reason: Some(reason) },
            Effect::SendReturned(back),
            ..,
        ] = &effects[..]
        else {
            panic!("{effects:?}");
        };
        assert_eq!(
            (reason.as_str(), back.tasks.len()),
            ("the values of a reduction cannot be stored: /tmp/x: no space", 1)
        );
        let at = sim.core.next_deadline().unwrap();
        delays.push((at - sim.now.instant).as_secs());
        sim.now.instant = at;
        sim.core.handle(sim.now, Event::Tick);
        sim.core.handle(sim.now, Event::CodeUsable);
    }
    assert_eq!(delays, [1, 2]);
}

#[test]
fn removed_code_is_sent_to_its_worker_again() {
    let mut sim = Simulation::new();
    sim.event(Event::WorkerReady);
    let definition = bundled(None);
    sim.event(Event::Defined { map: BUNDLED, definition });
    let defines = |effects: &[Effect]| effects.iter().filter(|effect| matches!(effect, Effect::Define { .. })).count();
    assert_eq!(defines(&tasks(&mut sim, BUNDLED, 0..1)), 1);
    sim.code_fails();
    sim.now.instant = sim.core.next_deadline().unwrap().max(sim.now.instant + Duration::from_secs(1));
    sim.core.handle(sim.now, Event::Tick);
    sim.core.handle(sim.now, Event::CodeUsable);
    assert_eq!(defines(&tasks(&mut sim, BUNDLED, 1..2)), 1);
}
