//! What must survive a restart. The caller stores it before it carries out decisions.
//!
//! Times are seconds of a clock that advances only while decisions are made, so that a change of the system's clock, or a pause of
//! the process, never makes a wait look longer than it was.
use super::observation::{JobName, JobPhase};
use crate::model::node::NodeFacts;
use crate::model::{EngineId, UnixTime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ElasticState {
    pub clock_s: f64,
    pub next_launch: u64,
    /// Core-seconds of jobs that ended.
    pub used_core_s: f64,
    pub jobs: BTreeMap<JobName, JobRecord>,
    /// Submissions of which not every job has appeared.
    pub launches: BTreeMap<u64, LaunchRecord>,
    pub shapes: BTreeMap<String, ShapeRecord>,
}

/// A job that has not ended, or whose end is still reported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct JobRecord {
    pub launch: u64,
    pub shape: String,
    pub engines: u32,
    pub cores: u32,
    pub walltime_s: Option<f64>,
    pub phase: JobPhase,
    /// When it was last seen to hold no allocation.
    pub not_running_s: f64,
    pub is_running: bool,
    /// Seconds of earlier runs, of a job that was requeued.
    pub earlier_s: f64,
    /// How long it ran is not known: it is charged its walltime.
    pub is_charged_fully: bool,
    pub missing: Option<Absence>,
    /// Whether any of its engines has registered, in the present run.
    pub has_registered: bool,
    /// Since when not all of its engines are registered.
    pub incomplete_s: f64,
    pub registered: BTreeMap<EngineId, EngineRecord>,
    /// Units that its engines have finished.
    pub finished: u64,
    /// When it was last decided that it leaves or is cancelled; None again if that was not done.
    pub asked_s: Option<f64>,
    pub was_asked: bool,
    /// The caller reports that it was asked.
    pub is_leaving: bool,
    pub has_ended: bool,
}

impl Default for JobRecord {
    fn default() -> Self {
        JobRecord {
            launch: 0,
            shape: String::new(),
            engines: 1,
            cores: 1,
            walltime_s: None,
            phase: JobPhase::Unknown,
            not_running_s: 0.0,
            is_running: false,
            earlier_s: 0.0,
            is_charged_fully: true,
            missing: None,
            has_registered: false,
            incomplete_s: 0.0,
            registered: BTreeMap::new(),
            finished: 0,
            asked_s: None,
            was_asked: false,
            is_leaving: false,
            has_ended: false,
        }
    }
}

/// Answers that do not list something.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Absence {
    /// The first one.
    pub since_s: f64,
    pub last_s: f64,
    /// The time between one and the next, without that in which there was no answer.
    pub total_s: f64,
}

/// Between two answers, at most.
const ANSWER_INTERVAL_S: f64 = 90.0;

impl Absence {
    /// Notes one more answer; returns the total.
    pub(super) fn note(absence: &mut Option<Absence>, clock: f64) -> Absence {
        let absence = absence.get_or_insert(Absence {
            since_s: clock,
            last_s: clock,
            total_s: 0.0,
        });
        if clock - absence.last_s <= ANSWER_INTERVAL_S {
            absence.total_s += clock - absence.last_s;
        }
        absence.last_s = clock;
        *absence
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct EngineRecord {
    pub finished: u64,
    /// When it last finished a unit or began to work.
    pub changed_s: f64,
    pub idle_since_s: Option<f64>,
    /// It takes no calls, or is silent.
    pub is_unusable: bool,
}

impl JobRecord {
    pub(super) fn is_going(&self) -> bool {
        self.is_leaving || self.asked_s.is_some()
    }

    pub(super) fn is_staying(&self) -> bool {
        !self.has_ended && !self.is_going()
    }

    pub(super) fn busy(&self) -> u32 {
        self.registered.values().filter(|engine| engine.idle_since_s.is_none()).count() as u32
    }

    /// For how long all of its registered engines have been idle, by the one that was busy last. None if one is busy, or none
    /// registered.
    pub(super) fn idle_s(&self, clock: f64) -> Option<f64> {
        let idle = |engine: &EngineRecord| Some(clock - engine.idle_since_s?);
        let times: Option<Vec<f64>> = self.registered.values().map(idle).collect();
        times?.into_iter().reduce(f64::min)
    }

    /// The core-seconds that it may be charged at most.
    pub(super) fn reserved_core_s(&self) -> f64 {
        match self.has_ended {
            true => 0.0,
            false => (self.earlier_s + self.walltime_s.unwrap_or(0.0)) * f64::from(self.cores),
        }
    }

    /// How long the present run has been, at most.
    pub(super) fn run_s(&self, clock: f64) -> f64 {
        match self.walltime_s {
            Some(walltime) if self.is_charged_fully => walltime,
            limit => (clock - self.not_running_s).max(0.0).min(limit.unwrap_or(f64::INFINITY)),
        }
    }

    /// The core-seconds that it has used at most.
    pub(super) fn used_core_s(&self, clock: f64, ran_s: Option<f64>) -> f64 {
        ran_s.unwrap_or(self.earlier_s + self.run_s(clock)) * f64::from(self.cores)
    }
}

impl LaunchRecord {
    /// Jobs that have not appeared.
    pub(super) fn unseen(&self) -> u32 {
        self.jobs.saturating_sub(self.seen)
    }

    pub(super) fn reserved_core_s(&self) -> f64 {
        f64::from(self.unseen()) * f64::from(self.cores_per_job) * self.walltime_s.unwrap_or(0.0)
    }
}

impl ElasticState {
    /// What jobs that have not ended may use at most.
    pub(super) fn reserved_core_s(&self) -> f64 {
        let jobs = self.jobs.values().map(JobRecord::reserved_core_s);
        jobs.chain(self.launches.values().map(LaunchRecord::reserved_core_s)).sum()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LaunchRecord {
    pub shape: String,
    pub jobs: u32,
    /// How many of its jobs have appeared.
    pub seen: u32,
    pub engines_per_job: u32,
    pub cores_per_job: u32,
    pub walltime_s: Option<f64>,
    pub submitted_s: f64,
    pub submitted: UnixTime,
    pub missing: Option<Absence>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ShapeRecord {
    /// Submissions that failed since the last one that worked.
    pub rejections: u32,
    /// Jobs that ended early since an engine last registered.
    pub early_failures: u32,
    /// How often jobs ended soon since an engine last finished a unit.
    pub fruitless: u32,
    /// Jobs that were retired without having got any of the ready work since an engine last finished a unit.
    pub unused: u32,
    pub backoff: Option<Backoff>,
    pub paused: Option<Pause>,
    pub submitted_s: Option<f64>,
    /// Since when more jobs are queued than there is work for.
    pub surplus_since_s: Option<f64>,
    /// Since when there has always been ready work.
    pub ready_since_s: Option<f64>,
    /// What the node of a full job has, as its engines reported it, with the number of its engines.
    pub node: Option<(u32, NodeFacts)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Backoff {
    pub until_s: f64,
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pause {
    pub by_user: bool,
    /// One line.
    pub why: String,
    pub since: UnixTime,
}
