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
    pub has_registered: bool,
    /// Since when not all of its engines are registered.
    pub incomplete_s: f64,
    pub registered: BTreeMap<EngineId, EngineRecord>,
    /// Units that its engines have finished.
    pub finished: u64,
    /// When it was asked to leave or cancelled.
    pub asked_s: Option<f64>,
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
            is_leaving: false,
            has_ended: false,
        }
    }
}

/// Since when something is missing, in how many answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Absence {
    pub since_s: f64,
    pub answers: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct EngineRecord {
    pub finished: u64,
    /// When `finished` last changed, or it registered.
    pub changed_s: f64,
    pub idle_since_s: Option<f64>,
    /// It takes no calls, or is silent.
    pub is_unusable: bool,
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
    /// Answers that did not list all of its jobs.
    pub answers: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ShapeRecord {
    /// Submissions that failed since the last one that worked.
    pub rejections: u32,
    /// Jobs that ended early since an engine last registered.
    pub early_failures: u32,
    /// How often jobs ended since one of their engines last finished a unit.
    pub fruitless: u32,
    pub backoff: Option<Backoff>,
    pub paused: Option<Pause>,
    pub submitted_s: Option<f64>,
    /// Since when more jobs are queued than there is work for.
    pub surplus_since_s: Option<f64>,
    /// What the node of a full job has, as its engines reported it.
    pub node: Option<NodeFacts>,
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
