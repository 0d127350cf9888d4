//! What an engine decides: which unit runs when, what a worker holds, what a stop or a crash means, what is told to the
//! controller. Pure: time comes with each event, and everything done leaves as an effect.
//!
//! A unit ([`unit::Unit`]) that has come is in exactly one place: `queue` (not begun, ours to give back), `given` (in the
//! worker; only the first of them can have begun), `command` (running), or gone (its result in `outbox`, or returned).
//! What is in the worker and has not begun can be called back: each unit needs a token, and tokens that are not read
//! are ours again ([`Effect::TakeTokens`]).
//!
//! Parts: [`event`], [`unit`], [`output`], [`outbox`]; `feed` (giving work out), `finish` (units that end), `stop`
//! (cancelling, timeouts, leaving).
pub mod event;
mod feed;
mod finish;
pub mod outbox;
pub mod output;
mod stop;
#[cfg(test)]
mod tests;
pub mod unit;
mod workers;

pub use event::{Effect, Event, Now, RequestReply, Stage};
use event::{Parent, Published};
pub use unit::{Request, Unit, WorkerKey};

use crate::model::definition::MapDefinition;
use crate::model::{MapId, UnixTime};
use crate::wire::content::engine::{Held, Progress, Returned};
use crate::wire::message::to_json;
use outbox::Outbox;
use output::{Pieces, Text};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use stop::{AfterRecall, GivenBack, Leaving, Stop, StopReason};
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
    stdout: Text,
    stderr: Text,
    /// The controller was told that it runs.
    told: bool,
    next_look: Instant,
    timeout: Option<Instant>,
    memory: Option<MemoryWatch>,
    stop: Option<Stop>,
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

pub struct Core {
    settings: CoreSettings,
    registered: bool,
    maps: HashMap<MapId, MapState>,
    queue: VecDeque<Unit>,
    workers: Workers,
    /// In the active worker.
    given: VecDeque<Given>,
    next_ticket: u32,
    command: Option<Unit>,
    current: Option<Current>,
    outbox: Outbox,
    given_back: GivenBack,
    after_recall: Vec<AfterRecall>,
    /// To be stopped when its result is the next to come.
    stop_next: Option<(u32, StopReason)>,
    leaving: Option<Leaving>,
    aborted: HashSet<String>,
}

impl Core {
    pub fn new(settings: CoreSettings) -> Core {
        Core {
            settings,
            registered: false,
            maps: HashMap::new(),
            queue: VecDeque::new(),
            workers: Workers::default(),
            given: VecDeque::new(),
            next_ticket: 0,
            command: None,
            current: None,
            outbox: Outbox::default(),
            given_back: GivenBack::default(),
            after_recall: Vec::new(),
            stop_next: None,
            leaving: None,
            aborted: HashSet::new(),
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
        let mut effects = Vec::new();
        self.dispatch(now, event, &mut effects);
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
                }
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
            Event::ReturnRecorded { sequence } => self.given_back.recorded(sequence),
            Event::GiveBackAsked { at_most } => self.give_back(now, at_most as usize, effects),
            Event::CancelAsked { tasks } => self.cancel(now, tasks.into_iter().collect(), false, effects),
            Event::ShutdownAsked { drain, reason, grace_ms } => self.leave(now, drain, reason, grace_ms, effects),
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
            Event::OutputRead { output } => {
                self.wrote(output, effects);
                self.tell_progress(effects);
            }
            Event::MemoryMeasured { bytes } => self.memory_measured(now, bytes, effects),
            Event::CommandWrote { output } => self.wrote(output, effects),
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
            self.keep_spare(now, effects);
        }
        let idle = self.queue.is_empty() && self.given.is_empty() && self.command.is_none();
        self.outbox.flush(now, idle, self.registered, effects);
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
            self.leaving.as_ref().and_then(Leaving::deadline),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Tasks that have come and not ended.
    pub fn holds(&self) -> Vec<Held> {
        let given = self.given.iter().map(|given| &given.unit);
        given.chain(&self.command).chain(&self.queue).filter_map(Unit::held).collect()
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

    /// Output of what runs.
    fn wrote(&mut self, [stdout, stderr]: [Pieces; 2], effects: &mut Vec<Effect>) {
        if stdout.is_empty() && stderr.is_empty() {
            return;
        }
        self.tell_begun(effects);
        let Some(current) = &mut self.current else { return };
        current.stdout.push(stdout);
        current.stderr.push(stderr);
        if let Some(Unit::Request(request)) = self.given.front().map(|given| &given.unit) {
            for (stderr, text) in [(false, current.stdout.take()), (true, current.stderr.take())] {
                if !text.is_empty() {
                    let request = request.clone();
                    effects.push(Effect::Stream { request, stderr, text });
                }
            }
        }
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
        let (stdout, stderr) = (current.stdout.take(), current.stderr.take());
        if !current.told || !stdout.is_empty() || !stderr.is_empty() {
            current.told = true;
            effects.push(Effect::SendProgress(Progress {
                task,
                started: current.started.0,
                stdout,
                stderr,
            }));
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

/// Output of no unit: published as of no request.
fn unclaimed([stdout, stderr]: [Pieces; 2], effects: &mut Vec<Effect>) {
    for (name, pieces) in [("stdout", stdout), ("stderr", stderr)] {
        let mut text = Text::unbounded();
        text.push(pieces);
        let text = text.finish();
        if !text.is_empty() {
            let published = Published {
                parent: Parent::None,
                kind: "stream".into(),
                topic: name.into(),
                content: to_json(&serde_json::json!({ "name": name, "text": text })),
                buffers: Vec::new(),
            };
            effects.push(Effect::Publish { parent: None, published });
        }
    }
}
