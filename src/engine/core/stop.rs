//! State of recalls, of the stop of a unit, and of leaving.
use super::event::StopStep;
use super::unit::Unit;
use crate::wire::content::engine::{Held, Returned};
use std::collections::HashSet;
use std::time::Instant;

#[derive(Debug)]
pub(super) struct Stop {
    pub reason: StopReason,
    pub stage: StopStep,
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
    pub reason: String,
    /// The process continues and registers again.
    pub as_new_engine: bool,
    /// When to stop the running unit.
    pub grace: Option<Instant>,
    /// When to leave even if results are not recorded.
    pub flush_deadline: Option<Instant>,
    pub left: bool,
}

impl LeaveState {
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.left { None } else { self.flush_deadline.or(self.grace) }
    }
}

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
    pub(super) fn record(&mut self, units: impl IntoIterator<Item = Unit>) -> Returned {
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
