//! Jobs as a batch system reports them.
use serde::{Deserialize, Serialize};
use std::fmt;

/// A batch system's own id of a submission: `4711`, `19[].pbs1`, `12;east`. Only that system
/// interprets it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct JobId(pub String);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A whole submission, or one job of its array.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct JobTarget {
    pub job: JobId,
    /// Starts at 1; none means the whole array.
    pub element: Option<u32>,
}

/// One job in a query's output. Each known element of an array has its own row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobRow {
    pub job: JobId,
    /// Starts at 1; none if the job is not an array, or the system reports the array as a whole.
    pub element: Option<u32>,
    pub status: JobStatus,
    /// The state in the system's own terms.
    pub word: String,
    /// The reason in the system's own terms (`Resources`, `Priority`, a PBS comment).
    pub reason: Option<String>,
    /// The node, or the first of several.
    pub host: Option<String>,
    /// The job's name, if the output contains it unabbreviated.
    pub name: Option<String>,
    /// Set for a job that has ended, if the output contains it.
    pub exit_code: Option<i32>,
}

impl JobRow {
    pub(crate) fn new(job: impl Into<String>, element: Option<u32>, status: JobStatus, word: impl Into<String>) -> JobRow {
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

    pub(crate) fn with_reason(mut self, reason: Option<String>) -> JobRow {
        self.reason = reason;
        self
    }
}

/// The meaning of a system's state. An unrecognized state is `Unknown`: it is displayed, and counts
/// as neither ended nor failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum JobStatus {
    /// Waiting in the queue.
    Queued,
    /// A user, an administrator or a dependency prevents the start.
    Held,
    /// The system cannot start the job without intervention (SGE's `Eqw`).
    Stuck,
    /// Being started on its node.
    Starting,
    Running,
    Suspended,
    /// Has ended; cleanup is in progress.
    Completing,
    Completed,
    Failed,
    Cancelled,
    TimedOut,
    NodeFailed,
    OutOfMemory,
    Preempted,
    /// The system will start it again.
    Requeued,
    Unknown(String),
}

impl JobStatus {
    /// Whether the job has ended, successfully or not, and will not restart by itself.
    pub(crate) fn is_over(&self) -> bool {
        use JobStatus::*;
        matches!(
            self,
            Completed | Failed | Cancelled | TimedOut | NodeFailed | OutOfMemory | Preempted
        )
    }

    /// Whether the job has not started yet and still may.
    pub(crate) fn is_waiting(&self) -> bool {
        use JobStatus::*;
        matches!(self, Queued | Held | Stuck | Starting | Requeued)
    }

    /// Lower-case text for display.
    pub(crate) fn words(&self) -> &str {
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
