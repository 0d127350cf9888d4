//! What a batch system says about jobs.
use serde::{Deserialize, Serialize};
use std::fmt;

/// A batch system's own id of a submission: `4711`, `19[].pbs1`, `12;east`. Opaque but to its system.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub String);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A whole submission, or one job of its array.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobTarget {
    pub job: JobId,
    /// From 1; none is all of it.
    pub element: Option<u32>,
}

/// One job as a query shows it. Of an array each element that is known has a row of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRow {
    pub job: JobId,
    /// From 1; none where the job is no array, or the system speaks of the array as a whole.
    pub element: Option<u32>,
    pub status: JobStatus,
    /// The system's own word for it.
    pub word: String,
    /// Why, in the system's words (`Resources`, `Priority`, a PBS comment).
    pub reason: Option<String>,
    /// The node, or the first of several.
    pub host: Option<String>,
    /// The job's name, where the answer has it in full.
    pub name: Option<String>,
    /// For one that has ended, where the answer tells it.
    pub exit_code: Option<i32>,
}

impl JobRow {
    pub fn new(job: impl Into<String>, element: Option<u32>, status: JobStatus, word: impl Into<String>) -> JobRow {
        JobRow {
            job: JobId(job.into()),
            element,
            status,
            word: word.into(),
            reason: None,
            host: None,
            name: None,
            exit_code: None,
        }
    }

    pub(crate) fn because(mut self, reason: Option<String>) -> JobRow {
        self.reason = reason;
        self
    }
}

/// What a system's word means. A word never seen before is `Unknown`: shown, and neither an end nor a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// Waits for its turn.
    Queued,
    /// Somebody, or a dependency, keeps it from being started.
    Held,
    /// The system cannot start it, and will not without help (SGE's `Eqw`).
    Stuck,
    /// Is being brought to its node.
    Starting,
    Running,
    Suspended,
    /// Has ended, and is being cleared away.
    Completing,
    Completed,
    Failed,
    Cancelled,
    TimedOut,
    NodeFailed,
    OutOfMemory,
    Preempted,
    /// Will be started again by the system.
    Requeued,
    Unknown(String),
}

impl JobStatus {
    /// Whether it is over, for good or for bad, and will not come back by itself.
    pub fn is_over(&self) -> bool {
        use JobStatus::*;
        matches!(
            self,
            Completed | Failed | Cancelled | TimedOut | NodeFailed | OutOfMemory | Preempted
        )
    }

    /// Whether it has not begun, and may.
    pub fn is_waiting(&self) -> bool {
        use JobStatus::*;
        matches!(self, Queued | Held | Stuck | Starting | Requeued)
    }

    /// For people, lower case.
    pub fn words(&self) -> &str {
        use JobStatus::*;
        match self {
            Queued => "queued",
            Held => "held",
            Stuck => "stuck",
            Starting => "starting",
            Running => "running",
            Suspended => "suspended",
            Completing => "completing",
            Completed => "completed",
            Failed => "failed",
            Cancelled => "cancelled",
            TimedOut => "timed out",
            NodeFailed => "node failed",
            OutOfMemory => "out of memory",
            Preempted => "preempted",
            Requeued => "requeued",
            Unknown(word) => word,
        }
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}
