//! A whole cluster: one controller and its engines in one profile, under one cluster id.
//!
//! Parts: [`start`], [`engines`] (more of them for a running cluster), [`scale`] (fewer of them), [`stop`] (and clearing away what a
//! dead one left), [`keep`] (new jobs for engines whose time was over), [`jobs`] (what a batch system says, for the records), [`list`] (what there is and whether it runs), [`logs`], [`remote`] (clusters on other hosts, over ssh); beneath
//! them [`state_file`] (which processes the cluster is,
//! for the next pcluster command), `ipyparallel_file` (the same for ipyparallel), [`lock`] (one command changes a cluster at a time), [`error`].
//! Tasks are not known here, nor what is printed.
pub mod engines;
pub mod error;
mod ipyparallel_file;
pub mod jobs;
pub mod keep;
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

/// The options that name a cluster, with a blank before each.
fn options_of(profile: &ProfileDir, cluster_id: &str) -> String {
    shell::cluster_options(profile.name(), cluster_id)
}

fn not_running(profile: &ProfileDir, cluster_id: &str) -> ClusterError {
    ClusterError::NotRunning {
        cluster: in_words(profile, cluster_id),
        options: options_of(profile, cluster_id),
    }
}
