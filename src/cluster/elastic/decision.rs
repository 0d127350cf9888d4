//! What to do, and why.
use super::observation::JobName;
use serde::{Deserialize, Serialize};

/// One row of `pcluster elastic log`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Decision {
    pub shape: String,
    pub action: Action,
    /// One line.
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub(crate) enum Action {
    /// Submit jobs whose names contain `launch`, after the state has been stored: then they are found again by name.
    Submit {
        launch: u64,
        jobs: u32,
        engines_per_job: u32,
    },
    /// Cancel these jobs if they are still queued. A job that has started meanwhile must not be cancelled.
    CancelQueued {
        jobs: Vec<JobName>,
    },
    /// Cancel these jobs, which run and have never registered an engine, unless one has registered meanwhile.
    CancelUnregistered {
        jobs: Vec<JobName>,
    },
    /// All engines of these jobs are idle: ask them to leave, also those that register later. One that has just got a task
    /// finishes it first.
    Retire {
        jobs: Vec<JobName>,
    },
    /// Ask the engines of these jobs to leave when they have finished what they run.
    Drain {
        jobs: Vec<JobName>,
    },
    /// No job of this submission has appeared: it is not expected any more.
    GiveUp {
        launch: u64,
    },
    /// Nothing more is submitted until `resume`.
    Pause,
    Resume,
}
