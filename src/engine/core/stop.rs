//! Recalls units, stops the running unit (in steps: SIGINT, SIGTERM, SIGKILL), and leaves the cluster.
use super::event::{Effect, Now, StopStep};
use super::unit::{Method, Unit};
use super::{Core, Dispatched};
use crate::model::task::{Outcome, TaskState};
use crate::wire::content::engine::{Held, Returned};
use std::collections::HashSet;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Stop {
    pub reason: StopReason,
    stage: StopStep,
    /// When to take the next step.
    pub next: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum StopReason {
    Cancelled,
    TimedOut {
        seconds: f64,
    },
    OverMemory {
        limit: u64,
        used: u64,
    },
    /// The engine is leaving.
    Leaving,
    /// The controller has dropped the task and discards its result.
    Dropped,
}

/// The action to take once all units that have not started are recalled from the worker.
#[derive(Debug)]
pub(super) enum AfterRecall {
    Return(usize),
    Cancel { tasks: HashSet<Held>, drop: bool },
    TimeOut { seconds: f64 },
    OverMemory { limit: u64, used: u64 },
    Abort(Option<Vec<String>>),
    AbortExecutions,
    Leave,
}

#[derive(Debug)]
pub(super) struct LeaveState {
    reason: String,
    /// The process continues and registers again.
    as_new_engine: bool,
    /// When to stop the running unit.
    grace: Option<Instant>,
    /// When to leave even if results are not recorded.
    flush_deadline: Option<Instant>,
    left: bool,
}

impl LeaveState {
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.left { None } else { self.flush_deadline.or(self.grace) }
    }
}

/// How long a leaving engine waits for the acknowledgement of its results.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of ids of requests to abort that have not arrived yet.
const MAX_ABORTED: usize = 10_000;

/// Returned units, until the controller acknowledges that it has recorded them: a message sent while the connection breaks may be lost.
#[derive(Debug, Default)]
pub(super) struct Returns {
    sequence: u64,
    pub unconfirmed: Vec<Returned>,
}

impl Returns {
    pub(super) fn recorded(&mut self, sequence: u64) {
        self.unconfirmed.retain(|returned| returned.sequence != sequence);
    }

    /// Creates the message for returned units. Units that cannot be returned, because they belong to this engine, are skipped.
    fn record(&mut self, units: impl IntoIterator<Item = Unit>) -> Returned {
        let mut back = Returned::default();
        for unit in units.into_iter().filter(Unit::is_returnable) {
            match unit {
                Unit::Task { held, .. } => back.tasks.push(held),
                Unit::Request(request) => {
                    back.requests.push(request.msg_id().to_string());
                    back.runs.push(request.run);
                }
            }
        }
        if !back.is_empty() {
            self.sequence += 1;
            back.sequence = self.sequence;
            self.unconfirmed.push(back.clone());
        }
        back
    }
}

impl Core {
    /// Sends the message even if it is empty: it answers a request.
    pub(super) fn return_units(&mut self, units: impl IntoIterator<Item = Unit>, effects: &mut Vec<Effect>) {
        effects.push(Effect::SendReturned(self.returns.record(units)));
    }

    pub(super) fn recall_then(&mut self, now: Now, then: AfterRecall, effects: &mut Vec<Effect>) {
        if self.dispatched.is_empty() {
            self.after_recall(now, then, effects);
            return;
        }
        if self.after_recall.is_empty()
            && let Some(worker) = self.workers.active()
        {
            effects.push(Effect::TakeBackTokens { worker });
        }
        self.after_recall.push(then);
    }

    /// Takes back the last `count` units of the worker, which have not started.
    pub(super) fn recalled(&mut self, now: Now, count: usize, effects: &mut Vec<Effect>) {
        let count = count.min(self.dispatched.len());
        for _ in 0..count {
            if let Some(Dispatched { unit, .. }) = self.dispatched.pop_back() {
                self.queue.push_front(unit);
            }
        }
        if self.dispatched.is_empty() && self.command.is_none() {
            self.current = None;
        }
        for then in std::mem::take(&mut self.after_recall) {
            self.after_recall(now, then, effects);
        }
    }

    fn after_recall(&mut self, now: Now, then: AfterRecall, effects: &mut Vec<Effect>) {
        match then {
            AfterRecall::Return(max_count) => self.return_queued(max_count, effects),
            AfterRecall::Cancel { tasks, drop } => {
                self.cancel_queued(now, &tasks, drop, effects);
                let running = self.command.as_ref().or(self.dispatched.back().map(|dispatched| &dispatched.unit));
                if running.and_then(Unit::held).is_some_and(|held| tasks.contains(&held)) {
                    self.begin_stop(now, if drop { StopReason::Dropped } else { StopReason::Cancelled }, effects);
                }
            }
            // With more than one unit left, the first has ended in time.
            AfterRecall::OverMemory { .. } | AfterRecall::TimeOut { .. } if self.dispatched.len() > 1 => {}
            AfterRecall::TimeOut { seconds } => self.begin_stop(now, StopReason::TimedOut { seconds }, effects),
            AfterRecall::OverMemory { limit, used } => self.begin_stop(now, StopReason::OverMemory { limit, used }, effects),
            AfterRecall::Abort(msg_ids) => self.abort_queued(now, msg_ids, effects),
            AfterRecall::AbortExecutions => {
                let is_execution = |unit: &Unit| matches!(unit, Unit::Request(request) if request.method == Method::Execute);
                self.abort_where(now, is_execution, effects);
            }
            AfterRecall::Leave => {
                let back = std::mem::take(&mut self.queue);
                if back.iter().any(Unit::is_returnable) {
                    self.return_units(back, effects);
                }
            }
        }
    }

    // ---- returning units

    pub(super) fn recall_and_return(&mut self, now: Now, max_count: usize, effects: &mut Vec<Effect>) {
        let queued = self.queue.iter().filter(|unit| unit.is_returnable()).count();
        if queued >= max_count || self.dispatched.len() < 2 {
            self.return_queued(max_count, effects);
        } else {
            self.recall_then(now, AfterRecall::Return(max_count), effects);
        }
    }

    fn return_queued(&mut self, max_count: usize, effects: &mut Vec<Effect>) {
        let (mut back, mut retained) = (Vec::new(), Vec::new());
        while back.len() < max_count
            && let Some(unit) = self.queue.pop_back()
        {
            if unit.is_returnable() { &mut back } else { &mut retained }.push(unit);
        }
        self.queue.extend(retained.into_iter().rev());
        self.return_units(back, effects);
    }

    // ---- cancelling

    /// With `drop` no results are reported for the tasks.
    pub(super) fn cancel(&mut self, now: Now, tasks: HashSet<Held>, drop: bool, effects: &mut Vec<Effect>) {
        let in_worker = self
            .dispatched
            .iter()
            .any(|dispatched| dispatched.unit.held().is_some_and(|held| tasks.contains(&held)));
        let then = AfterRecall::Cancel { tasks, drop };
        match in_worker {
            true => self.recall_then(now, then, effects),
            false => self.after_recall(now, then, effects),
        }
    }

    fn cancel_queued(&mut self, now: Now, tasks: &HashSet<Held>, drop: bool, effects: &mut Vec<Effect>) {
        if drop {
            self.closing.retain(|closing| !tasks.contains(&closing.held));
        }
        let mut cancelled = Vec::new();
        self.queue.retain(|unit| match unit.held() {
            Some(held) if tasks.contains(&held) => {
                cancelled.push(held);
                false
            }
            _ => true,
        });
        for held in cancelled {
            if !drop {
                let outcome = Outcome::failure(
                    TaskState::Aborted,
                    "TaskCancelled",
                    "cancelled before it started",
                    now.unix,
                    now.unix,
                );
                self.push_outcome(now, held, outcome);
            }
            self.forget(held.map, effects);
        }
    }

    fn abort_queued(&mut self, now: Now, msg_ids: Option<Vec<String>>, effects: &mut Vec<Effect>) {
        let Some(msg_ids) = msg_ids else {
            self.abort_where(now, |unit| matches!(unit, Unit::Request(_)), effects);
            return;
        };
        let mut targets: HashSet<String> = msg_ids.into_iter().collect();
        let is_target = |unit: &Unit| matches!(unit, Unit::Request(request) if targets.remove(request.msg_id()));
        self.abort_where(now, is_target, effects);
        if self.aborted.len() + targets.len() <= MAX_ABORTED {
            self.aborted.extend(targets);
        }
    }

    fn abort_where(&mut self, now: Now, mut wanted: impl FnMut(&Unit) -> bool, effects: &mut Vec<Effect>) {
        for unit in std::mem::take(&mut self.queue) {
            match unit {
                unit if !wanted(&unit) => self.queue.push_back(unit),
                Unit::Request(request) => self.reply_aborted(now, request, effects),
                task => self.queue.push_back(task),
            }
        }
    }

    // ---- stopping the running unit

    /// All units before the last one in the worker have ended and their results are in transit: the last one is running.
    pub(super) fn begin_stop(&mut self, now: Now, reason: StopReason, effects: &mut Vec<Effect>) {
        if self.dispatched.len() > 1 {
            self.stop_next = self.dispatched.back().map(|dispatched| (dispatched.ticket, reason));
            return;
        }
        let (stage, next) = match reason {
            // With more time it would only use more memory.
            StopReason::OverMemory { .. } => (StopStep::Kill, None),
            _ => (StopStep::Interrupt, Some(now.instant + self.settings.interrupt)),
        };
        let Some(current) = self.current.as_mut().filter(|current| current.stop.is_none()) else {
            return;
        };
        current.stop = Some(Stop { reason, stage, next });
        effects.push(self.signal(stage));
    }

    fn signal(&self, signal: StopStep) -> Effect {
        match self.command {
            Some(_) => Effect::SignalCommand { signal },
            None => Effect::SignalWorker {
                worker: self.workers.active(),
                signal,
            },
        }
    }

    /// Handles timeouts and the next step of a stop.
    pub(super) fn check_stop(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Some(current) = &mut self.current else { return };
        match &mut current.stop {
            None => {
                if current.timeout.is_some_and(|timeout| now.instant >= timeout) {
                    // Not twice, whatever the recall yields.
                    let timeout = current.timeout.take();
                    let seconds = timeout.map_or(0.0, |timeout| (timeout - current.since).as_secs_f64());
                    self.recall_then(now, AfterRecall::TimeOut { seconds }, effects);
                }
            }
            Some(stop) => {
                if stop.next.is_some_and(|next| now.instant >= next) {
                    (stop.stage, stop.next) = match stop.stage {
                        StopStep::Interrupt => (StopStep::Terminate, Some(now.instant + self.settings.terminate)),
                        StopStep::Terminate | StopStep::Kill => (StopStep::Kill, None),
                    };
                    let stage = stop.stage;
                    effects.push(self.signal(stage));
                }
            }
        }
    }

    pub(super) fn memory_measured(&mut self, now: Now, used: u64, effects: &mut Vec<Effect>) {
        let limit = self.current.as_ref().and_then(|current| Some(current.memory?.limit));
        if let Some(limit) = limit.filter(|limit| used > *limit) {
            // Not twice, whatever the recall yields.
            if let Some(current) = &mut self.current {
                current.memory = None;
            }
            self.recall_then(now, AfterRecall::OverMemory { limit, used }, effects);
        }
    }

    // ---- leaving

    pub(super) fn leave(&mut self, now: Now, drain: bool, reason: String, grace_period_ms: Option<u64>, effects: &mut Vec<Effect>) {
        let grace = match (drain, grace_period_ms) {
            (false, _) => Some(now.instant),
            (true, None) => None,
            (true, Some(ms)) => Some(now.instant + Duration::from_millis(ms)),
        };
        if let Some(leaving) = &mut self.leaving {
            leaving.as_new_engine = false;
            // Requested again: the shorter grace period applies.
            leaving.grace = match (leaving.grace, grace) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            return;
        }
        self.leaving = Some(LeaveState {
            reason,
            as_new_engine: false,
            grace,
            flush_deadline: None,
            left: false,
        });
        self.recall_then(now, AfterRecall::Leave, effects);
    }

    /// The namespace that clients have filled is lost. An engine with the same id and an empty namespace would mislead them: for
    /// them this engine is dead, as an `ipengine` would be, and the process registers as a new engine.
    pub(super) fn leave_as_new_engine(&mut self, now: Now, how: &str, effects: &mut Vec<Effect>) {
        if self.leaving.is_none() {
            self.leave(
                now,
                true,
                format!("{how}: its namespace is lost; registering as a new engine"),
                None,
                effects,
            );
            self.leaving.iter_mut().for_each(|leaving| leaving.as_new_engine = true);
        }
    }

    pub(super) fn check_leaving(&mut self, now: Now, idle: bool, effects: &mut Vec<Effect>) {
        let recorded = self.outbox.is_empty();
        let Some(leaving) = &mut self.leaving else { return };
        if leaving.left || !self.after_recall.is_empty() {
            return;
        }
        if !idle {
            if leaving.grace.is_some_and(|grace| now.instant >= grace) {
                leaving.grace = None;
                self.begin_stop(now, StopReason::Leaving, effects);
            }
            return;
        }
        let flush_deadline = *leaving.flush_deadline.get_or_insert(now.instant + FLUSH_TIMEOUT);
        if recorded || now.instant >= flush_deadline {
            leaving.left = true;
            effects.push(Effect::Leave {
                reason: leaving.reason.clone(),
                as_new_engine: leaving.as_new_engine,
            });
        }
    }
}
