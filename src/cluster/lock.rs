//! One command at a time starts, changes or stops a cluster.
use super::ClusterError;
use crate::connection::lock::{self, NotLocked};
use crate::profile::ProfileDir;

/// Held until it is dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "what counts is that it is there")] lock::Lock);

impl Lock {
    pub fn take(profile: &ProfileDir, cluster_id: &str) -> Result<Lock, ClusterError> {
        let path = profile.lock_file(cluster_id);
        match lock::Lock::take(path.clone()) {
            Ok(lock) => Ok(Lock(lock)),
            Err(NotLocked::Held(holder)) => Err(ClusterError::Busy {
                path,
                holder: holder.map(|h| format!("process {} on {}", h.pid, h.host)),
            }),
            Err(NotLocked::Failed(error)) => Err(ClusterError::StateFile {
                doing: "lock",
                path,
                why: error.to_string(),
            }),
        }
    }
}
