//! Stops the running unit (in steps: SIGINT, SIGTERM, SIGKILL), and leaves the cluster.
use super::Core;
use super::event::{Effect, Now, StopStep};
use super::stop::{AfterRecall, LeaveState, Stop, StopReason};
use std::time::Duration;

/// How long a leaving engine waits for the acknowledgement of its results.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
impl Core {
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
        let Some(memory) = self.current.as_mut().and_then(|current| current.memory.as_mut()) else {
            return;
        };
        memory.peak = memory.peak.max(used);
        if let Some(limit) = memory.limit.filter(|limit| used > *limit) {
            // Not twice, whatever the recall yields.
            memory.limit = None;
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
