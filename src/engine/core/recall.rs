//! Recalls units from the worker, to return, cancel or abort them.
use super::event::{Effect, Now};
use super::stop::{AfterRecall, StopReason};
use super::unit::{Method, Unit};
use super::{Core, Dispatched};
use crate::model::task::{Outcome, TaskState};
use crate::wire::content::engine::Held;
use std::collections::HashSet;

/// Maximum number of ids of requests to abort that have not arrived yet.
const MAX_ABORTED: usize = 10_000;

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
}
