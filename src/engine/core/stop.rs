//! Taking units back, stopping what runs (step by step: SIGINT, SIGTERM, SIGKILL), and leaving.
use super::event::{Effect, Now, Stage};
use super::unit::{Method, Unit};
use super::{Core, Given};
use crate::model::task::{Outcome, TaskState};
use crate::wire::content::engine::{Held, Returned};
use std::collections::HashSet;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Stop {
    pub reason: StopReason,
    stage: Stage,
    /// When to be harder.
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
    /// The engine leaves.
    Leaving,
    /// The controller does not want its result.
    Dropped,
}

/// What to do once the worker holds nothing that has not begun.
#[derive(Debug)]
pub(super) enum AfterRecall {
    GiveBack(usize),
    Cancel { tasks: HashSet<Held>, drop: bool },
    TimeOut { seconds: f64 },
    OverMemory { limit: u64, used: u64 },
    Abort(Option<Vec<String>>),
    AbortExecutions,
    Leave,
}

#[derive(Debug)]
pub(super) struct Leaving {
    reason: String,
    /// Its process stays, and registers anew.
    as_another: bool,
    /// When what runs is stopped.
    grace: Option<Instant>,
    /// When to go even if results are not recorded.
    last_word: Option<Instant>,
    gone: bool,
}

impl Leaving {
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.gone { None } else { self.last_word.or(self.grace) }
    }
}

/// How long an engine that leaves waits for the word that its results are recorded.
const LAST_WORD: Duration = Duration::from_secs(2);
/// Ids of requests to abort that have not come yet, at most.
const MOST_ABORTED: usize = 10_000;

/// What has been given back, until the controller says that this is on its disk: what is said as a connection breaks may be lost.
#[derive(Debug, Default)]
pub(super) struct GivenBack {
    sequence: u64,
    pub unheard: Vec<Returned>,
}

impl GivenBack {
    pub fn recorded(&mut self, sequence: u64) {
        self.unheard.retain(|returned| returned.sequence != sequence);
    }

    /// What is said of units that go back; of those that cannot (they are this engine's alone) nothing.
    fn say(&mut self, units: impl IntoIterator<Item = Unit>) -> Returned {
        let mut back = Returned::default();
        for unit in units.into_iter().filter(Unit::may_go_back) {
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
            self.unheard.push(back.clone());
        }
        back
    }
}

impl Core {
    /// Also when there is nothing: somebody has asked.
    pub(super) fn send_back(&mut self, units: impl IntoIterator<Item = Unit>, effects: &mut Vec<Effect>) {
        effects.push(Effect::SendReturned(self.given_back.say(units)));
    }

    pub(super) fn recall_then(&mut self, now: Now, then: AfterRecall, effects: &mut Vec<Effect>) {
        if self.given.is_empty() {
            self.after_recall(now, then, effects);
            return;
        }
        if self.after_recall.is_empty()
            && let Some(worker) = self.workers.active()
        {
            effects.push(Effect::TakeTokens { worker });
        }
        self.after_recall.push(then);
    }

    /// The last `count` units in the worker have not begun: they are ours again.
    pub(super) fn recalled(&mut self, now: Now, count: usize, effects: &mut Vec<Effect>) {
        let count = count.min(self.given.len());
        for _ in 0..count {
            if let Some(Given { unit, .. }) = self.given.pop_back() {
                self.queue.push_front(unit);
            }
        }
        if self.given.is_empty() && self.command.is_none() {
            self.current = None;
        }
        for then in std::mem::take(&mut self.after_recall) {
            self.after_recall(now, then, effects);
        }
    }

    fn after_recall(&mut self, now: Now, then: AfterRecall, effects: &mut Vec<Effect>) {
        match then {
            AfterRecall::GiveBack(at_most) => self.give_back_queued(at_most, effects),
            AfterRecall::Cancel { tasks, drop } => {
                self.cancel_queued(now, &tasks, drop, effects);
                let running = self.command.as_ref().or(self.given.back().map(|given| &given.unit));
                if running.and_then(Unit::held).is_some_and(|held| tasks.contains(&held)) {
                    self.begin_stop(now, if drop { StopReason::Dropped } else { StopReason::Cancelled }, effects);
                }
            }
            // With more than one left, the first has ended in time.
            AfterRecall::OverMemory { .. } | AfterRecall::TimeOut { .. } if self.given.len() > 1 => {}
            AfterRecall::TimeOut { seconds } => self.begin_stop(now, StopReason::TimedOut { seconds }, effects),
            AfterRecall::OverMemory { limit, used } => self.begin_stop(now, StopReason::OverMemory { limit, used }, effects),
            AfterRecall::Abort(msg_ids) => self.abort_queued(now, msg_ids, effects),
            AfterRecall::AbortExecutions => {
                let is_execution = |unit: &Unit| matches!(unit, Unit::Request(request) if request.method == Method::Execute);
                self.abort_where(now, is_execution, effects);
            }
            AfterRecall::Leave => {
                let back = std::mem::take(&mut self.queue);
                if back.iter().any(Unit::may_go_back) {
                    self.send_back(back, effects);
                }
            }
        }
    }

    // ---- giving back

    pub(super) fn give_back(&mut self, now: Now, at_most: usize, effects: &mut Vec<Effect>) {
        let queued = self.queue.iter().filter(|unit| unit.may_go_back()).count();
        if queued >= at_most || self.given.len() < 2 {
            self.give_back_queued(at_most, effects);
        } else {
            self.recall_then(now, AfterRecall::GiveBack(at_most), effects);
        }
    }

    fn give_back_queued(&mut self, at_most: usize, effects: &mut Vec<Effect>) {
        let (mut back, mut kept) = (Vec::new(), Vec::new());
        while back.len() < at_most
            && let Some(unit) = self.queue.pop_back()
        {
            if unit.may_go_back() { &mut back } else { &mut kept }.push(unit);
        }
        self.queue.extend(kept.into_iter().rev());
        self.send_back(back, effects);
    }

    // ---- cancelling

    /// With `drop` nothing more is said of the tasks.
    pub(super) fn cancel(&mut self, now: Now, tasks: HashSet<Held>, drop: bool, effects: &mut Vec<Effect>) {
        let in_worker = self
            .given
            .iter()
            .any(|given| given.unit.held().is_some_and(|held| tasks.contains(&held)));
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
                let outcome = Outcome::failure(TaskState::Aborted, "TaskCancelled", "cancelled before it began", now.unix, now.unix);
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
        let mut wanted: HashSet<String> = msg_ids.into_iter().collect();
        let is_wanted = |unit: &Unit| matches!(unit, Unit::Request(request) if wanted.remove(request.msg_id()));
        self.abort_where(now, is_wanted, effects);
        if self.aborted.len() + wanted.len() <= MOST_ABORTED {
            self.aborted.extend(wanted);
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

    // ---- stopping what runs

    /// Units in front of the last one in the worker have ended, their results are on the way: they are not what runs.
    pub(super) fn begin_stop(&mut self, now: Now, reason: StopReason, effects: &mut Vec<Effect>) {
        if self.given.len() > 1 {
            self.stop_next = self.given.back().map(|given| (given.ticket, reason));
            return;
        }
        let (stage, next) = match reason {
            // It would only take more.
            StopReason::OverMemory { .. } => (Stage::Kill, None),
            _ => (Stage::Interrupt, Some(now.instant + self.settings.interrupt)),
        };
        let Some(current) = self.current.as_mut().filter(|current| current.stop.is_none()) else {
            return;
        };
        current.stop = Some(Stop { reason, stage, next });
        effects.push(self.signal(stage));
    }

    fn signal(&self, signal: Stage) -> Effect {
        match self.command {
            Some(_) => Effect::SignalCommand { signal },
            None => Effect::SignalWorker {
                worker: self.workers.active(),
                signal,
            },
        }
    }

    /// Timeouts, and the next step of a stop.
    pub(super) fn check_stop(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Some(current) = &mut self.current else { return };
        match &mut current.stop {
            None => {
                if current.timeout.is_some_and(|timeout| now.instant >= timeout) {
                    // Not twice, whatever the recall says.
                    let timeout = current.timeout.take();
                    let seconds = timeout.map_or(0.0, |timeout| (timeout - current.since).as_secs_f64());
                    self.recall_then(now, AfterRecall::TimeOut { seconds }, effects);
                }
            }
            Some(stop) => {
                if stop.next.is_some_and(|next| now.instant >= next) {
                    (stop.stage, stop.next) = match stop.stage {
                        Stage::Interrupt => (Stage::Terminate, Some(now.instant + self.settings.terminate)),
                        Stage::Terminate | Stage::Kill => (Stage::Kill, None),
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
            // Not twice, whatever the recall says.
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
            leaving.as_another = false;
            // Told again: the shorter grace.
            leaving.grace = match (leaving.grace, grace) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            return;
        }
        self.leaving = Some(Leaving {
            reason,
            as_another: false,
            grace,
            last_word: None,
            gone: false,
        });
        self.recall_then(now, AfterRecall::Leave, effects);
    }

    /// The namespace that clients have filled is lost. An engine of the same id with an empty one would mislead them: to them
    /// this engine is dead, as an `ipengine` would be, and another one comes.
    pub(super) fn leave_as_another(&mut self, now: Now, how: &str, effects: &mut Vec<Effect>) {
        if self.leaving.is_none() {
            self.leave(
                now,
                true,
                format!("{how}: with its namespace lost, it comes back as another engine"),
                None,
                effects,
            );
            self.leaving.iter_mut().for_each(|leaving| leaving.as_another = true);
        }
    }

    pub(super) fn check_leaving(&mut self, now: Now, idle: bool, effects: &mut Vec<Effect>) {
        let recorded = self.outbox.is_empty();
        let Some(leaving) = &mut self.leaving else { return };
        if leaving.gone || !self.after_recall.is_empty() {
            return;
        }
        if !idle {
            if leaving.grace.is_some_and(|grace| now.instant >= grace) {
                leaving.grace = None;
                self.begin_stop(now, StopReason::Leaving, effects);
            }
            return;
        }
        let last_word = *leaving.last_word.get_or_insert(now.instant + LAST_WORD);
        if recorded || now.instant >= last_word {
            leaving.gone = true;
            effects.push(Effect::Leave {
                reason: leaving.reason.clone(),
                as_another: leaving.as_another,
            });
        }
    }
}
