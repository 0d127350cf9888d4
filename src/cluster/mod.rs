//! A cluster: one controller and its engines in one profile, under one cluster id.
//!
//! Parts: [`start`], `adopt` (engines of a dead cluster), [`engines`] (adding), [`scale`] (removing), [`stop`] (and cleaning up), [`walltime_restart`] (new jobs for
//! engines after walltime), [`elastic`] (decides how many engines there are), [`allocator`] (carries that out), [`jobs`] (records of batch jobs), [`list`] (clusters and their state), [`outlook`] (engines that do not run), [`logs`], [`remote`] (remote
//! clusters, over ssh). Below them: [`state_file`] (the processes of a cluster), `ipyparallel_file` (the same for ipyparallel),
//! [`lock`] (one command at a time), [`error`]. Knows nothing of tasks or output.
mod adopt;
pub(crate) mod allocator;
pub(crate) mod elastic;
pub(crate) mod engines;
pub(crate) mod error;
mod ipyparallel_file;
pub(crate) mod jobs;
mod launch;
pub(crate) mod list;
pub(crate) mod lock;
pub(crate) mod logs;
pub(crate) mod outlook;
mod progress;
pub(crate) mod remote;
pub(crate) mod scale;
pub(crate) mod start;
pub(crate) mod state_file;
pub(crate) mod stop;
#[cfg(test)]
mod tests;
pub(crate) mod walltime_restart;

pub(crate) use engines::{AddOptions, add_engines};
pub(crate) use error::ClusterError;
pub(crate) use list::{ClusterSummary, Condition, controller_problem, is_supervised, list, list_profile, status};
pub(crate) use progress::{StartProgress, Wait};
pub(crate) use scale::{EngineSelection, Removed, Scaled, remove_engines, scale};
pub(crate) use start::{StartOptions, StartReport, start};
pub(crate) use state_file::ClusterState;
pub(crate) use stop::{StopProgress, Stopped, clean, stop};

use crate::model::shell;
use crate::profile::ProfileDir;

/// `the cluster of profile "x"`, with its id if it has one.
fn describe(profile: &ProfileDir, cluster_id: &str) -> String {
    match cluster_id {
        "" => format!("the cluster of profile {:?}", profile.name()),
        id => format!("the cluster {id:?} of profile {:?}", profile.name()),
    }
}

/// The options that select a cluster, each preceded by a space.
fn options_of(profile: &ProfileDir, cluster_id: &str) -> String {
    shell::cluster_options(profile.name(), cluster_id)
}

fn not_running(profile: &ProfileDir, cluster_id: &str) -> ClusterError {
    ClusterError::NotRunning {
        cluster: describe(profile, cluster_id),
        options: options_of(profile, cluster_id),
    }
}

async fn in_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ClusterError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| ClusterError::Internal(e.to_string()))
}
