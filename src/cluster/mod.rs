//! A cluster: one controller and its engines in one profile, under one cluster id.
//!
//! Parts: [`start`], `adopt` (engines of a dead cluster), [`engines`] (adding), [`scale`] (removing), [`stop`] (and cleaning up), [`walltime_restart`] (new jobs for
//! engines after walltime), [`jobs`] (records of batch jobs), [`list`] (clusters and their state), [`logs`], [`remote`] (remote
//! clusters, over ssh). Below them: [`state_file`] (the processes of a cluster), `ipyparallel_file` (the same for ipyparallel),
//! [`lock`] (one command at a time), [`error`]. Knows nothing of tasks or output.
mod adopt;
pub mod engines;
pub mod error;
mod ipyparallel_file;
pub mod jobs;
mod launch;
pub mod list;
pub mod lock;
pub mod logs;
pub mod remote;
pub mod scale;
pub mod start;
pub mod state_file;
pub mod stop;
#[cfg(test)]
mod tests;
pub mod walltime_restart;

pub use engines::{AddOptions, add_engines};
pub use error::ClusterError;
pub use list::{ClusterSummary, Condition, controller_trouble, is_supervised, list, list_profile, status};
pub use scale::{Removed, Scaled, Which, remove_engines, scale};
pub use start::{StartOptions, StartProgress, Started, Wait, start};
pub use state_file::ClusterState;
pub use stop::{StopProgress, Stopped, clean, stop};

use crate::model::shell;
use crate::profile::ProfileDir;

/// `the cluster of profile "x"`, with its id if it has one.
fn in_words(profile: &ProfileDir, cluster_id: &str) -> String {
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
        cluster: in_words(profile, cluster_id),
        options: options_of(profile, cluster_id),
    }
}
