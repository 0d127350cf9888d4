//! Everything that a decision is based on, as values.
use super::work::ReadyWork;
use crate::launchers::launched::Detail;
use crate::launchers::{JobOutcome, MemberState, Stage};
use crate::model::node::NodeFacts;
use crate::model::{EngineId, UnixTime};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Observation {
    pub now: UnixTime,
    /// Seconds since the previous decision by a clock that is never set. None for the first decision of a process: then how long
    /// jobs ran meanwhile is not known, and they are charged their whole walltime unless [`ObservedJob::ran_s`] is known.
    pub elapsed_s: Option<f64>,
    /// Units that are ready and that a new engine could run. None if the controller cannot be asked: nothing is decided then.
    pub work: Option<Vec<ReadyWork>>,
    /// Whether the batch system answered. If not, jobs that are missing here are unknown.
    pub is_answered: bool,
    /// The age of this answer, if it comes from a cache.
    pub answer_age_s: f64,
    /// Every job of an elastic launch; those that ended until they have been reported as ended once.
    pub jobs: Vec<ObservedJob>,
    /// Submissions that the system rejected for certain; jobs of them that it accepted are in `jobs`. Nothing is reported of one with an unclear end, such as a timeout: its
    /// jobs are found by name, or given up after some minutes.
    pub rejected: Vec<Rejection>,
    pub controls: Vec<Control>,
}

/// The unique name of a job: one element of an array, one independent job, or one local process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct JobName(pub String);

impl std::fmt::Display for JobName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ObservedJob {
    pub name: JobName,
    /// The number in the decision that submitted it.
    pub launch: u64,
    pub shape: String,
    /// The engines that it was submitted with.
    pub engines: u32,
    pub phase: JobPhase,
    /// Why it waits (`Priority`), or how it ended: the scheduler's words, the end of its log, the kept script. May be empty.
    pub reason: String,
    pub expected_start: Option<UnixTime>,
    /// Seconds that it has held its allocation, if the system reports them.
    pub ran_s: Option<f64>,
    /// Its engines that are registered now.
    pub registered: Vec<ObservedEngine>,
    /// Whether any of its engines has registered since it started, as far as is known.
    pub has_registered: bool,
    /// It was asked to leave, or to be cancelled.
    pub is_leaving: bool,
    /// What its node has, as its engines report it.
    pub node: Option<NodeFacts>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum JobPhase {
    /// Submitted, and not listed yet: it may have started.
    Submitted,
    /// Listed as waiting, held or requeued.
    Queued,
    /// Holds its allocation; its engines may not have registered yet.
    Running,
    Suspended,
    /// Its system did not answer.
    #[default]
    Unknown,
    /// Its system answered, and did not list it. It counts as present until this has been repeated for some time.
    Missing,
    /// The system, or its process, proves that it ended.
    Ended(#[serde(skip)] Option<JobOutcome>),
}

impl JobPhase {
    /// `is_job`: of a batch system, whose answer may lack a job that exists; the end of a local process is certain.
    pub(crate) fn of(state: &MemberState, is_job: bool) -> JobPhase {
        match (state.stage, state.outcome) {
            (Stage::Queued, _) if state.detail == Detail::Submitted => JobPhase::Submitted,
            (Stage::Queued, _) => JobPhase::Queued,
            (Stage::Running, _) => JobPhase::Running,
            (Stage::Suspended, _) => JobPhase::Suspended,
            (Stage::Unknown, _) => JobPhase::Unknown,
            (Stage::Ended, None) if is_job => JobPhase::Missing,
            (Stage::Ended, outcome) => JobPhase::Ended(outcome),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ObservedEngine {
    pub id: EngineId,
    pub activity: Activity,
    /// Units that it has finished since it registered.
    pub finished: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    Idle,
    Busy,
    /// Its heartbeats are missing. It may be busy.
    Silent,
    /// Idle, and its Python does not work: it takes no calls.
    Unusable,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rejection {
    pub launch: u64,
    /// The system's words.
    pub text: String,
}

/// What users ask for. `set` is a change of the settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Control {
    /// Submits nothing more of this shape, or of all.
    Pause(Option<String>),
    /// Submits again, and clears all counters of failures.
    Resume(Option<String>),
}
