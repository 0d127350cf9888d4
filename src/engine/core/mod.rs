//! Decides for an engine: which unit runs when, which units a worker holds, how to handle a stop or a crash, and which
//! messages to send to the controller. Pure: each event carries the time, and every action is returned as an effect.
//!
//! A received unit ([`unit::Unit`]) is in exactly one place: `queue` (not started, returnable), `dispatched` (in the worker;
//! only the first of them can have started), `command` (running), `closing` (ended, its output still being sent), or done
//! (its result in `outbox`, or returned).
//! The core can recall a unit from the worker until it starts: each unit needs a token, and the core can take back tokens
//! that the worker has not read ([`Effect::TakeBackTokens`]).
//!
//! The state and its types: here, [`unit`], [`output`], [`outbox`], `code` (whether code can be stored), `values` (inputs of
//! reductions), `stop`, `workers`. What happens to them: `dispatch` (sends units to workers), `fetch` (values), `finish` (units that
//! end), `report` (output and progress), `recall` (returning, cancelling), `leave` (stopping, timeouts, leaving), `storage` (code and
//! values that this host cannot store).
mod code;
mod dispatch;
pub(crate) mod event;
mod fetch;
mod finish;
mod leave;
mod outage;
pub(crate) mod outbox;
pub(crate) mod output;
mod recall;
mod report;
mod stop;
mod storage;
#[cfg(test)]
mod tests;
pub(crate) mod unit;
mod values;
mod workers;

pub use event::{Effect, Event, Now};
pub(crate) use event::{RequestReply, StopStep};
pub use unit::Request;
pub(crate) use unit::{Unit, WorkerKey};

use crate::model::definition::{MapDefinition, ProcessSetup};
use crate::model::resources::Allocation;
use crate::model::task::{Ask, Outcome};
use crate::model::{MapId, UnixTime};
use crate::wire::content::engine::{Held, Returned};
use bytes::Bytes;
use code::Code;
use outbox::Outbox;
use output::{Streams, TextBuffer, WINDOW, unclaimed};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use stop::{AfterRecall, LeaveState, Returns, Stop, StopReason};
use values::ValueFetches;
use workers::Workers;

/// The configuration of a core.
#[derive(Clone, Debug)]
pub struct CoreSettings {
    pub interrupt: Duration,
    pub terminate: Duration,
    /// The interpreter's command, for error messages.
    pub python: String,
    /// Create the interactive worker, with IPython's shell, at the start.
    pub shell_at_start: bool,
    /// Of processes that run tasks of maps. The interactive worker has the engine's environment.
    pub process: ProcessSetup,
}

#[derive(Debug)]
struct MapState {
    /// With the environment of the allocation.
    definition: Arc<MapDefinition>,
    /// As the controller sent it.
    sent: Arc<MapDefinition>,
    allocation: Option<Allocation>,
    /// Its worker has received the definition.
    in_worker: bool,
    forgotten: bool,
    /// Average duration of its tasks, in seconds.
    mean: Option<f64>,
}

#[derive(Debug)]
struct Dispatched {
    ticket: u32,
    unit: Unit,
}

/// State of the running unit: the first one in the worker, or the command.
#[derive(Debug)]
struct RunningUnit {
    since: Instant,
    started: UnixTime,
    output: UnitOutput,
    /// The controller has been informed of its start.
    announced: bool,
    next_poll: Instant,
    timeout: Option<Instant>,
    memory: Option<MemoryWatch>,
    stop: Option<Stop>,
}

/// Output of a unit.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for the running unit; a box would cost an allocation for each task"
)]
enum UnitOutput {
    /// Of a task: buffered until the controller has recorded it.
    Buffered(Streams),
    /// Of a request: forwarded as it arrives.
    Forwarded([TextBuffer; 2]),
}

impl UnitOutput {
    fn of(unit: &Unit) -> UnitOutput {
        match unit {
            Unit::Task { .. } => UnitOutput::Buffered(Streams::default()),
            Unit::Request(_) => UnitOutput::Forwarded(Default::default()),
        }
    }
}

/// A task that has ended and whose output is still being sent: its result follows once the rest of the output is short.
#[derive(Debug)]
struct Closing {
    held: Held,
    started: UnixTime,
    outcome: Outcome,
    streams: Streams,
}

/// Measurements of a running task's processes.
#[derive(Clone, Copy, Debug)]
struct MemoryWatch {
    limit: Option<u64>,
    peak: u64,
    next: Instant,
    interval: Duration,
}

/// How often memory is measured if it is limited,
const MEMORY_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// ... and, at most, if it is not: the interval begins with `FIRST_POLL` and doubles.
const MAX_MEMORY_POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Delay before a task's first progress report,
const FIRST_POLL: Duration = Duration::from_millis(200);
/// ... then the interval at which new output is reported.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
const SLOW_POLL_INTERVAL: Duration = Duration::from_millis(250);

pub struct Core {
    settings: CoreSettings,
    registered: bool,
    maps: HashMap<MapId, MapState>,
    queue: VecDeque<Unit>,
    workers: Workers,
    code: Code,
    /// Units in the active worker.
    dispatched: VecDeque<Dispatched>,
    next_ticket: u32,
    command: Option<Unit>,
    current: Option<RunningUnit>,
    closing: Vec<Closing>,
    outbox: Outbox,
    returns: Returns,
    after_recall: Vec<AfterRecall>,
    /// The unit to stop once it is the first in the worker.
    stop_next: Option<(u32, StopReason)>,
    leaving: Option<LeaveState>,
    aborted: HashSet<String>,
    fetches: ValueFetches,
}

impl Core {
    pub fn new(settings: CoreSettings) -> Core {
        Core {
            settings,
            registered: false,
            maps: HashMap::new(),
            queue: VecDeque::new(),
            workers: Workers::default(),
            code: Code::default(),
            dispatched: VecDeque::new(),
            next_ticket: 0,
            command: None,
            current: None,
            closing: Vec::new(),
            outbox: Outbox::default(),
            returns: Returns::default(),
            after_recall: Vec::new(),
            stop_next: None,
            leaving: None,
            aborted: HashSet::new(),
            fetches: ValueFetches::default(),
        }
    }

    /// Returns whether user code is running.
    pub fn is_busy(&self) -> bool {
        self.current.is_some()
    }

    /// The worker that is running a unit.
    pub fn running_worker(&self) -> Option<WorkerKey> {
        self.workers.active().filter(|_| !self.dispatched.is_empty())
    }

    /// Handles one event. Together with [`Core::handle_all`] the only entry point.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Effect> {
        self.handle_all(now, [event])
    }

    /// Handles several events that arrived together as one step, with a single pass over the resulting state.
    pub fn handle_all(&mut self, now: Now, events: impl IntoIterator<Item = Event>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for event in events {
            self.apply(now, event, &mut effects);
        }
        self.settle(now, &mut effects);
        effects
    }

    fn apply(&mut self, now: Now, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Registered { drop } => self.registered(now, drop, effects),
            Event::MessageLimit { max_message } => self.outbox.set_limit(max_message),
            Event::EngineUnknown => {
                self.registered = false;
                effects.push(Effect::Register { holds: self.holds() });
            }
            Event::Defined { map, definition } => self.define(map, definition),
            Event::Allocated { map, allocation, env } => self.allocated(map, allocation, env, effects),
            Event::MapForgotten { map } => {
                if let Some(state) = self.maps.get_mut(&map) {
                    state.forgotten = true;
                }
                self.forget(map, effects);
            }
            Event::TasksReceived { map, tasks } => self.tasks_received(map, tasks, effects),
            Event::Recorded { sequence } => self.outbox.recorded(sequence),
            Event::OutputRecorded(recorded) => self.output_recorded(now, recorded, effects),
            Event::ValuesReceived(values, bytes) => self.values_received(now, values, bytes, effects),
            Event::ValuesStored { held, file } => self.values_stored(now, held, file, effects),
            Event::ReturnRecorded { sequence } => self.returns.recorded(sequence),
            Event::ReturnRequested { max_count } => self.recall_and_return(now, max_count as usize, effects),
            Event::CancelRequested { tasks } => self.cancel(now, tasks.into_iter().collect(), false, effects),
            Event::ShutdownRequested {
                drain,
                reason,
                grace_period_ms,
            } => self.leave(now, drain, reason, grace_period_ms, effects),
            Event::RequestReceived(request) => self.request_received(now, request, effects),
            Event::AbortRequested { msg_ids } => self.recall_then(now, AfterRecall::Abort(msg_ids), effects),

            Event::CodeFailed { hash, reason } => self.code_failed(now, hash, reason),
            Event::CodeWritten { hash } => self.code.written(&hash),
            Event::CodeUsable => self.code_usable(effects),

            Event::WorkerReady => self.spare_is_ready(effects),
            Event::WorkerFailed { reason } => self.spare_failed(now, reason),
            Event::UnitStarted { worker, .. } | Event::UnitEnded { worker, .. } if !self.workers.is_active(worker) => {}
            Event::UnitStarted { ticket, output, .. } => {
                self.output_arrived(output, effects);
                if self.dispatched.front().is_some_and(|dispatched| dispatched.ticket == ticket) {
                    self.announce_start(effects);
                }
            }
            Event::UnitEnded {
                worker: _,
                ticket,
                started,
                ended,
                output,
                peak_memory,
                result,
            } => {
                self.output_arrived(output, effects);
                self.unit_ended(now, ticket, (started, ended), result, peak_memory, effects);
            }
            Event::Published { worker, output, published } => self.published(worker, output, published, effects),
            Event::OutputUnclaimed { output } => unclaimed(output, effects),
            Event::WorkerExited {
                worker,
                unread,
                how,
                killed,
                oom_killed,
                stderr_tail,
                output,
            } => match worker {
                None => {
                    let reason = match stderr_tail.trim() {
                        "" => how.clone(),
                        tail => format!("{how}: {tail}"),
                    };
                    self.spare_exited(now, how, killed, reason);
                }
                Some(worker) => {
                    if !self.dispatched.is_empty() && self.workers.is_active(worker) {
                        self.output_arrived(output, effects);
                    }
                    self.worker_exited(now, worker, unread, (how, killed, oom_killed), stderr_tail, effects);
                }
            },
            Event::TokensTakenBack { count } => self.recalled(now, count, effects),
            Event::OutputArrived { output } | Event::CommandOutput { output } => self.output_arrived(output, effects),
            Event::OutputRead { output } => {
                self.output_arrived(output, effects);
                self.report_progress(effects);
            }
            Event::MemoryMeasured { bytes } => self.memory_measured(now, bytes, effects),
            Event::CommandEnded(end) => self.command_ended(now, end, effects),
            Event::Tick => {}
        }
    }

    fn registered(&mut self, now: Now, drop: Vec<Held>, effects: &mut Vec<Effect>) {
        self.registered = true;
        if !drop.is_empty() {
            self.cancel(now, drop.into_iter().collect(), true, effects);
        }
        self.outbox.resend(effects);
        if let Some(current) = &mut self.current {
            current.announced = false;
            if let UnitOutput::Buffered(streams) = &mut current.output {
                streams.rewind();
            }
        }
        self.closing.iter_mut().for_each(|closing| closing.streams.rewind());
        self.send_parts(effects);
        self.resend_value_request(effects);
    }

    fn define(&mut self, map: MapId, mut definition: Arc<MapDefinition>) {
        // It may change meanwhile.
        if definition.options.priority != 0 {
            Arc::make_mut(&mut definition).options.priority = 0;
        }
        match self.maps.get_mut(&map) {
            // Sent again, unchanged.
            Some(known) if known.sent == definition => known.forgotten = false,
            _ => {
                let sent = definition.clone();
                if unit::worker_of(map, &definition) != Some(WorkerKey::Interactive) {
                    Arc::make_mut(&mut definition).options.process = self.settings.process.clone();
                }
                let state = MapState {
                    sent,
                    definition,
                    allocation: None,
                    in_worker: false,
                    forgotten: false,
                    mean: None,
                };
                self.maps.insert(map, state);
            }
        }
    }

    fn tasks_received(&mut self, map: MapId, tasks: Vec<(u32, u32, Bytes, Ask)>, effects: &mut Vec<Effect>) {
        let task = |(index, run, input, ask)| Unit::Task {
            held: Held { map, index, run },
            input,
            ask,
        };
        match self.leaving.is_some() {
            true => self.return_units(tasks.into_iter().map(task), effects),
            false => self.queue.extend(tasks.into_iter().map(task)),
        }
    }

    fn request_received(&mut self, now: Now, request: Arc<Request>, effects: &mut Vec<Effect>) {
        if self.aborted.remove(request.msg_id()) {
            self.reply_aborted(now, request, effects);
        } else if self.leaving.is_none() {
            self.queue.push_back(Unit::Request(request));
        } else if request.is_returnable() {
            self.return_units([Unit::Request(request)], effects);
        }
    }

    /// Takes the actions that follow from the state alone, after every event.
    fn settle(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.check_times(now, effects);
        self.report_availability(effects);
        if self.after_recall.is_empty() {
            self.dispatch(now, effects);
        }
        self.delete_stale_values(effects);
        let idle = self.queue.is_empty() && self.dispatched.is_empty() && self.command.is_none() && self.closing.is_empty();
        self.outbox.flush(now, idle, self.registered, effects);
        self.keep_spare(now, idle, effects);
        self.check_leaving(now, idle, effects);
    }

    /// The latest time at which to send [`Event::Tick`].
    pub fn next_deadline(&self) -> Option<Instant> {
        let current = self.current.as_ref();
        [
            self.outbox.deadline(),
            current.map(|current| current.next_poll),
            current.and_then(|current| current.timeout.filter(|_| current.stop.is_none())),
            current.and_then(|current| current.stop.as_ref()?.next),
            current.and_then(|current| Some(current.memory.filter(|_| current.stop.is_none())?.next)),
            self.workers.deadline(),
            self.code.deadline(),
            self.leaving.as_ref().and_then(LeaveState::deadline),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Tasks received and not ended.
    pub fn holds(&self) -> Vec<Held> {
        let dispatched = self.dispatched.iter().map(|dispatched| &dispatched.unit);
        let units = dispatched.chain(&self.command).chain(&self.queue).filter_map(Unit::held);
        self.closing.iter().map(|closing| closing.held).chain(units).collect()
    }

    /// Requests of ipyparallel clients received and not ended.
    pub fn held_requests(&self) -> impl Iterator<Item = String> {
        let dispatched = self.dispatched.iter().map(|dispatched| &dispatched.unit);
        dispatched.chain(&self.queue).filter_map(|unit| match unit {
            Unit::Request(request) => Some(request.msg_id().to_string()),
            Unit::Task { .. } => None,
        })
    }

    /// Returned units whose message the controller has not acknowledged.
    pub fn unconfirmed_returns(&self) -> Vec<Returned> {
        self.returns.unconfirmed.clone()
    }

    fn check_times(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.check_spare(now, effects);
        self.check_code(now, effects);
        let worker = self.workers.active().filter(|_| self.command.is_none());
        let Some(current) = &mut self.current else { return };
        if current.stop.is_none()
            && let Some(memory) = current.memory.as_mut().filter(|memory| now.instant >= memory.next)
        {
            memory.next = now.instant + memory.interval;
            if memory.limit.is_none() {
                memory.interval = (2 * memory.interval).min(MAX_MEMORY_POLL_INTERVAL);
            }
            let limit = memory.limit.unwrap_or(u64::MAX);
            effects.push(Effect::MeasureMemory { worker, limit });
        }
        if now.instant >= current.next_poll {
            let age = now.instant - current.since;
            current.next_poll = now.instant
                + if age > Duration::from_secs(10) {
                    SLOW_POLL_INTERVAL
                } else {
                    POLL_INTERVAL
                };
            match worker {
                Some(worker) => {
                    self.announce_start(effects);
                    effects.push(Effect::ReadOutput { worker });
                }
                None => self.report_progress(effects),
            }
        }
        self.check_stop(now, effects);
    }

    /// Returns whether the running unit is being stopped.
    pub fn is_stopping(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.stop.is_some())
    }

    /// Returns whether to read more output. A unit that writes faster than the controller records is blocked. A unit that is being
    /// stopped may write some more, so that a full pipe does not delay its end.
    pub fn can_read_output(&self) -> bool {
        let of_current = match &self.current {
            Some(RunningUnit {
                output: UnitOutput::Buffered(streams),
                stop,
                ..
            }) if stop.as_ref().is_none_or(|stop| stop.reason != StopReason::Dropped) => streams.bytes(),
            _ => 0,
        };
        let of_closing: usize = self.closing.iter().map(|closing| closing.streams.bytes()).sum();
        of_current + of_closing < if self.is_stopping() { 2 * WINDOW } else { WINDOW }
    }

    fn forget(&mut self, map: MapId, effects: &mut Vec<Effect>) {
        let Some(state) = self.maps.get(&map) else { return };
        if state.forgotten && !self.holds().iter().any(|held| held.map == map) {
            let worker = unit::worker_of(map, &state.definition);
            self.forget_in_worker(map, worker, effects);
            self.maps.remove(&map);
        }
    }
}
