//! What an engine decides: which unit runs when, what a worker holds, what a stop or a crash means, what is told to the
//! controller. Pure: time comes with each event, and everything done leaves as an effect.
//!
//! A unit ([`unit::Unit`]) that has come is in exactly one place: `queue` (not begun, ours to give back), `given` (in the
//! worker; only the first of them can have begun), `command` (running), `closing` (ended, its output on its way), or gone (its
//! result in `outbox`, or returned).
//! What is in the worker and has not begun can be called back: each unit needs a token, and tokens that are not read
//! are ours again ([`Effect::TakeTokens`]).
//!
//! Parts: [`event`], [`unit`], [`output`], [`outbox`]; `workers` and `code` (what Python tasks need), `feed` (giving work out), `finish` (units that end), `stop`
//! (cancelling, timeouts, leaving).
mod code;
pub mod event;
mod feed;
mod finish;
pub mod outbox;
pub mod output;
mod stop;
#[cfg(test)]
mod tests;
pub mod unit;
mod values;
mod workers;

pub use event::{Effect, Event, Now, RequestReply, Stage};
use event::{Parent, Published};
pub use unit::{Request, Unit, WorkerKey};

use crate::model::definition::MapDefinition;
use crate::model::task::Outcome;
use crate::model::{MapId, UnixTime};
use crate::wire::content::engine::{Held, OutputRecorded, Part, Progress, Returned};
use crate::wire::message::to_json;
use bytes::Bytes;
use code::Code;
use outbox::Outbox;
use output::{Streams, Text, WINDOW};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use stop::{AfterRecall, GivenBack, Leaving, Stop, StopReason};
use values::Gathered;
use workers::Workers;

/// What a core must know beforehand.
#[derive(Clone, Debug)]
pub struct CoreSettings {
    pub interrupt: Duration,
    pub terminate: Duration,
    /// How the interpreter is called, for errors.
    pub python: String,
    /// The interactive worker is made at the start, with IPython's shell.
    pub shell_at_start: bool,
}

#[derive(Debug)]
struct MapState {
    definition: Arc<MapDefinition>,
    /// Its worker has the definition.
    in_worker: bool,
    forgotten: bool,
    /// Of its tasks, seconds.
    mean: Option<f64>,
}

#[derive(Debug)]
struct Given {
    ticket: u32,
    unit: Unit,
}

/// What is known of the unit that runs: the first one in the worker, or the command.
#[derive(Debug)]
struct Current {
    since: Instant,
    started: UnixTime,
    wrote: Wrote,
    /// The controller was told that it runs.
    told: bool,
    next_look: Instant,
    timeout: Option<Instant>,
    memory: Option<MemoryWatch>,
    stop: Option<Stop>,
}

/// What a unit has written.
#[derive(Debug)]
enum Wrote {
    /// A task: kept until it is on record.
    Kept(Box<Streams>),
    /// A request: passed on.
    Passed([Text; 2]),
}

impl Wrote {
    fn of(unit: &Unit) -> Wrote {
        match unit {
            Unit::Task { .. } => Wrote::Kept(Box::default()),
            Unit::Request(_) => Wrote::Passed(Default::default()),
        }
    }
}

/// A task that has ended and whose output is on its way: its result follows when what is left of that is short.
#[derive(Debug)]
struct Closing {
    held: Held,
    started: UnixTime,
    outcome: Outcome,
    streams: Streams,
}

/// Of a task with a limit.
#[derive(Clone, Copy, Debug)]
struct MemoryWatch {
    limit: u64,
    next: Instant,
}

/// How often memory is looked at.
const MEMORY_LOOK: Duration = Duration::from_millis(50);
/// A task's first progress is told after so long,
const FIRST_LOOK: Duration = Duration::from_millis(200);
/// ... then new output about so often.
const LOOK: Duration = Duration::from_millis(100);
const SLOW_LOOK: Duration = Duration::from_millis(250);

/// Parts in one message.
const PARTS: usize = 2;

/// While so many bytes of values are on their way, no task is begun.
const VALUES_WINDOW: usize = 64 << 20;

pub struct Core {
    settings: CoreSettings,
    registered: bool,
    maps: HashMap<MapId, MapState>,
    queue: VecDeque<Unit>,
    workers: Workers,
    code: Code,
    /// In the active worker.
    given: VecDeque<Given>,
    next_ticket: u32,
    command: Option<Unit>,
    current: Option<Current>,
    closing: Vec<Closing>,
    outbox: Outbox,
    given_back: GivenBack,
    after_recall: Vec<AfterRecall>,
    /// To be stopped when its result is the next to come.
    stop_next: Option<(u32, StopReason)>,
    leaving: Option<Leaving>,
    aborted: HashSet<String>,
    gathered: Gathered,
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
            given: VecDeque::new(),
            next_ticket: 0,
            command: None,
            current: None,
            closing: Vec::new(),
            outbox: Outbox::default(),
            given_back: GivenBack::default(),
            after_recall: Vec::new(),
            stop_next: None,
            leaving: None,
            aborted: HashSet::new(),
            gathered: Gathered::default(),
        }
    }

    /// Whether user code runs.
    pub fn is_busy(&self) -> bool {
        self.current.is_some()
    }

    /// The worker that runs something.
    pub fn running_worker(&self) -> Option<WorkerKey> {
        self.workers.active().filter(|_| !self.given.is_empty())
    }

    /// The only way in.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Effect> {
        self.handle_all(now, [event])
    }

    /// Several events that came together, as one step: what follows from the state is looked for once.
    pub fn handle_all(&mut self, now: Now, events: impl IntoIterator<Item = Event>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for event in events {
            self.dispatch(now, event, &mut effects);
        }
        self.settle(now, &mut effects);
        effects
    }

    fn dispatch(&mut self, now: Now, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Registered { drop } => {
                self.registered = true;
                if !drop.is_empty() {
                    self.cancel(now, drop.into_iter().collect(), true, effects);
                }
                self.outbox.resend(effects);
                if let Some(current) = &mut self.current {
                    current.told = false;
                    if let Wrote::Kept(streams) = &mut current.wrote {
                        streams.rewind();
                    }
                }
                self.closing.iter_mut().for_each(|closing| closing.streams.rewind());
                self.send_parts(effects);
                self.gather_again(effects);
            }
            Event::LimitKnown { max_message } => self.outbox.set_limit(max_message),
            Event::Unknown => {
                self.registered = false;
                effects.push(Effect::Register { holds: self.holds() });
            }
            Event::Defined { map, definition } => {
                let state = MapState {
                    definition,
                    in_worker: false,
                    forgotten: false,
                    mean: None,
                };
                match self.maps.get_mut(&map) {
                    // Sent again, not changed.
                    Some(known) if known.definition == state.definition => known.forgotten = false,
                    _ => {
                        self.maps.insert(map, state);
                    }
                }
            }
            Event::Forgotten { map } => {
                if let Some(state) = self.maps.get_mut(&map) {
                    state.forgotten = true;
                }
                self.forget(map, effects);
            }
            Event::TasksCame { map, tasks } => {
                let units = tasks.into_iter().map(|(index, run, input)| Unit::Task {
                    held: Held { map, index, run },
                    input,
                });
                if self.leaving.is_some() {
                    self.send_back(units, effects);
                } else {
                    self.queue.extend(units);
                }
            }
            Event::Recorded { sequence } => self.outbox.recorded(sequence),
            Event::OutputRecorded(recorded) => self.output_recorded(now, recorded, effects),
            Event::ValuesCame(values, bytes) => self.values_came(now, values, bytes, effects),
            Event::ValuesKept { held, place } => self.values_kept(now, held, place, effects),
            Event::ReturnRecorded { sequence } => self.given_back.recorded(sequence),
            Event::GiveBackAsked { at_most } => self.give_back(now, at_most as usize, effects),
            Event::CancelAsked { tasks } => self.cancel(now, tasks.into_iter().collect(), false, effects),
            Event::ShutdownAsked {
                drain,
                reason,
                grace_period_ms,
            } => self.leave(now, drain, reason, grace_period_ms, effects),
            Event::RequestCame(request) => {
                if self.aborted.remove(request.msg_id()) {
                    self.reply_aborted(now, request, effects);
                } else if self.leaving.is_none() {
                    self.queue.push_back(Unit::Request(request));
                } else if request.may_go_back() {
                    self.send_back([Unit::Request(request)], effects);
                }
            }
            Event::AbortAsked { msg_ids } => self.recall_then(now, AfterRecall::Abort(msg_ids), effects),

            Event::CodeFailed { hash, reason } => self.code_failed(now, hash, reason),
            Event::CodeWritten { hash } => self.code_written(&hash),
            Event::CodeUsable => self.code_usable(effects),

            Event::WorkerReady => self.spare_is_ready(effects),
            Event::WorkerFailed { reason } => self.spare_failed(now, reason),
            Event::UnitBegun { worker, .. } | Event::UnitEnded { worker, .. } if !self.workers.is_active(worker) => {}
            Event::UnitBegun { ticket, output, .. } => {
                self.wrote(output, effects);
                if self.given.front().is_some_and(|given| given.ticket == ticket) {
                    self.tell_begun(effects);
                }
            }
            Event::UnitEnded {
                worker: _,
                ticket,
                started,
                ended,
                output,
                result,
            } => {
                self.wrote(output, effects);
                self.unit_ended(now, ticket, started, ended, result, effects);
            }
            Event::Published { worker, output, published } => {
                let is_active = self.workers.is_active(worker);
                match is_active {
                    true => self.wrote(output, effects),
                    false => unclaimed(output, effects),
                }
                if is_active || published.parent != Parent::Running {
                    self.publish(published, effects);
                }
            }
            Event::OutputUnclaimed { output } => unclaimed(output, effects),
            Event::WorkerExited {
                worker,
                unread,
                how,
                killed,
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
                    if !self.given.is_empty() && self.workers.is_active(worker) {
                        self.wrote(output, effects);
                    }
                    self.worker_exited(now, worker, unread, (how, killed), stderr_tail, effects);
                }
            },
            Event::TokensTaken { count } => self.recalled(now, count, effects),
            Event::Wrote { output } | Event::CommandWrote { output } => self.wrote(output, effects),
            Event::OutputRead { output } => {
                self.wrote(output, effects);
                self.tell_progress(effects);
            }
            Event::MemoryMeasured { bytes } => self.memory_measured(now, bytes, effects),
            Event::CommandEnded(end) => self.command_ended(now, end, effects),
            Event::Tick => {}
        }
    }

    /// What follows from the state alone, after any event.
    fn settle(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.check_times(now, effects);
        self.report_availability(effects);
        if self.after_recall.is_empty() {
            self.feed(now, effects);
        }
        self.forget_values(effects);
        let idle = self.queue.is_empty() && self.given.is_empty() && self.command.is_none() && self.closing.is_empty();
        self.outbox.flush(now, idle, self.registered, effects);
        self.keep_spare(now, idle, effects);
        self.check_leaving(now, idle, effects);
    }

    /// When to send [`Event::Tick`] at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        let current = self.current.as_ref();
        [
            self.outbox.deadline(),
            current.map(|current| current.next_look),
            current.and_then(|current| current.timeout.filter(|_| current.stop.is_none())),
            current.and_then(|current| current.stop.as_ref()?.next),
            current.and_then(|current| Some(current.memory.filter(|_| current.stop.is_none())?.next)),
            self.workers.deadline(),
            self.code.deadline(),
            self.leaving.as_ref().and_then(Leaving::deadline),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Tasks that have come and not ended.
    pub fn holds(&self) -> Vec<Held> {
        let given = self.given.iter().map(|given| &given.unit);
        let units = given.chain(&self.command).chain(&self.queue).filter_map(Unit::held);
        self.closing.iter().map(|closing| closing.held).chain(units).collect()
    }

    /// Requests of ipyparallel clients that have come and not ended.
    pub fn held_requests(&self) -> impl Iterator<Item = String> {
        let given = self.given.iter().map(|given| &given.unit);
        given.chain(&self.queue).filter_map(|unit| match unit {
            Unit::Request(request) => Some(request.msg_id().to_string()),
            Unit::Task { .. } => None,
        })
    }

    /// What was given back and may not have arrived.
    pub fn unheard_returns(&self) -> Vec<Returned> {
        self.given_back.unheard.clone()
    }

    fn check_times(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.check_spare(now, effects);
        self.check_code(now, effects);
        let worker = self.workers.active().filter(|_| self.command.is_none());
        let Some(current) = &mut self.current else { return };
        if current.stop.is_none()
            && let Some(memory) = current.memory.as_mut().filter(|memory| now.instant >= memory.next)
        {
            memory.next = now.instant + MEMORY_LOOK;
            let limit = memory.limit;
            effects.push(Effect::MeasureMemory { worker, limit });
        }
        if now.instant >= current.next_look {
            let age = now.instant - current.since;
            current.next_look = now.instant + if age > Duration::from_secs(10) { SLOW_LOOK } else { LOOK };
            match worker {
                Some(worker) => {
                    self.tell_begun(effects);
                    effects.push(Effect::ReadOutput { worker });
                }
                None => self.tell_progress(effects),
            }
        }
        self.check_stop(now, effects);
    }

    /// What runs is being stopped.
    pub fn is_stopping(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.stop.is_some())
    }

    /// Whether more output is to be read. One who writes faster than the controller records waits. What is being stopped may say some
    /// more: a full pipe is not to hold it up.
    pub fn has_room(&self) -> bool {
        let of_current = match &self.current {
            Some(Current {
                wrote: Wrote::Kept(streams),
                stop,
                ..
            }) if stop.as_ref().is_none_or(|stop| stop.reason != StopReason::Dropped) => streams.bytes(),
            _ => 0,
        };
        let of_closing: usize = self.closing.iter().map(|closing| closing.streams.bytes()).sum();
        of_current + of_closing < if self.is_stopping() { 2 * WINDOW } else { WINDOW }
    }

    /// Output of what runs.
    fn wrote(&mut self, output: [Bytes; 2], effects: &mut Vec<Effect>) {
        if output.iter().all(Bytes::is_empty) {
            return;
        }
        self.tell_begun(effects);
        let Some(current) = &mut self.current else { return };
        let is_dropped = current.stop.as_ref().is_some_and(|stop| stop.reason == StopReason::Dropped);
        match &mut current.wrote {
            // Nobody wants it.
            Wrote::Kept(_) if is_dropped => {}
            Wrote::Kept(streams) => {
                streams.push(output);
                if !streams.is_short() {
                    self.send_parts(effects);
                }
            }
            Wrote::Passed(texts) => {
                let Some(Unit::Request(request)) = self.given.front().map(|given| &given.unit) else {
                    return;
                };
                for ((text, bytes), stderr) in texts.iter_mut().zip(output).zip([false, true]) {
                    text.push(&bytes);
                    let text = text.take();
                    if !text.is_empty() {
                        let request = request.clone();
                        effects.push(Effect::Stream { request, stderr, text });
                    }
                }
            }
        }
    }

    /// Parts of long outputs that were not sent.
    fn send_parts(&mut self, effects: &mut Vec<Effect>) {
        if !self.registered {
            return;
        }
        for closing in &mut self.closing {
            send(closing.held, closing.started, closing.streams.take_parts(true), effects);
        }
        let unit = self.command.as_ref().or(self.given.front().map(|given| &given.unit));
        if let (Some(current), Some(held)) = (&mut self.current, unit.and_then(Unit::held))
            && let Wrote::Kept(streams) = &mut current.wrote
            && !streams.is_short()
        {
            let parts = streams.take_parts(false);
            current.told |= !parts.is_empty();
            send(held, current.started, parts, effects);
        }
    }

    fn output_recorded(&mut self, now: Now, recorded: OutputRecorded, effects: &mut Vec<Effect>) {
        let OutputRecorded {
            task,
            stdout,
            stderr,
            value,
        } = recorded;
        if let Some(at) = self.closing.iter().position(|closing| closing.held == task) {
            let streams = &mut self.closing[at].streams;
            streams.recorded([stdout, stderr, value]);
            if streams.is_short() {
                let closing = self.closing.remove(at);
                self.close(now, closing, effects);
            }
            self.send_parts(effects);
            return;
        }
        let unit = self.command.as_ref().or(self.given.front().map(|given| &given.unit));
        if let (Some(current), Some(held)) = (&mut self.current, unit.and_then(Unit::held))
            && held == task
            && let Wrote::Kept(streams) = &mut current.wrote
        {
            streams.recorded([stdout, stderr, value]);
            if !streams.is_short() {
                self.send_parts(effects);
            }
        }
    }

    /// Whether more tasks are to be run: one whose values are recorded more slowly than they are made waits.
    fn has_room_for_values(&self) -> bool {
        self.closing.iter().map(|closing| closing.streams.value_bytes()).sum::<usize>() < VALUES_WINDOW
    }

    fn publish(&mut self, published: Published, effects: &mut Vec<Effect>) {
        let parent = match &published.parent {
            Parent::Running => {
                self.tell_begun(effects);
                match self.given.front().map(|given| &given.unit) {
                    Some(Unit::Request(request)) => Some(request.message.header_json.clone()),
                    _ => return,
                }
            }
            Parent::Ended(header) => Some(header.clone()),
            Parent::None => None,
        };
        effects.push(Effect::Publish { parent, published });
    }

    /// Says once that a request runs: when it has something to say or has run for a while. Of one that ends at once its end
    /// is enough; each message costs the client more than it costs us.
    fn tell_begun(&mut self, effects: &mut Vec<Effect>) {
        if let (Some(Unit::Request(request)), Some(current)) = (self.given.front().map(|given| &given.unit), &mut self.current)
            && !std::mem::replace(&mut current.told, true)
        {
            effects.push(Effect::RequestBegun(request.clone()));
        }
    }

    fn tell_progress(&mut self, effects: &mut Vec<Effect>) {
        let unit = self.command.as_ref().or(self.given.front().map(|given| &given.unit));
        let (Some(current), Some(task)) = (&mut self.current, unit.and_then(Unit::held)) else {
            return;
        };
        if !self.registered || current.stop.is_some() {
            return;
        }
        let parts = match &mut current.wrote {
            Wrote::Kept(streams) => streams.take_parts(true),
            Wrote::Passed(_) => return,
        };
        if !std::mem::replace(&mut current.told, true) && parts.is_empty() {
            effects.push(progress(task, current.started, parts));
        } else {
            send(task, current.started, parts, effects);
        }
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

fn send(task: Held, started: UnixTime, parts: Vec<(Part, Bytes)>, effects: &mut Vec<Effect>) {
    let mut parts = parts.into_iter().peekable();
    while parts.peek().is_some() {
        effects.push(progress(task, started, parts.by_ref().take(PARTS).collect()));
    }
}

fn progress(task: Held, started: UnixTime, parts: Vec<(Part, Bytes)>) -> Effect {
    let (parts, bytes) = parts.into_iter().unzip();
    let started = started.0;
    Effect::SendProgress(Progress { task, started, parts }, bytes)
}

/// Output of no unit: published as of no request.
fn unclaimed(output: [Bytes; 2], effects: &mut Vec<Effect>) {
    for (name, bytes) in ["stdout", "stderr"].into_iter().zip(output) {
        let mut text = Text::default();
        text.push(&bytes);
        let text = text.finish();
        if !text.is_empty() {
            let published = Published {
                parent: Parent::None,
                kind: "stream".into(),
                topic: name.into(),
                metadata: Default::default(),
                content: to_json(&serde_json::json!({ "name": name, "text": text })),
                buffers: Vec::new(),
            };
            effects.push(Effect::Publish { parent: None, published });
        }
    }
}
