//! The lock of a cluster: one command at a time starts, changes or stops it. Commands wait for its walltime monitor.
use super::ClusterError;
use crate::profile::ProfileDir;
use crate::sys::lock::{self, NotLocked};
use std::time::{Duration, Instant};

/// The maximum time that the walltime monitor holds the lock: two submissions that time out.
const MONITOR_TIMEOUT: Duration = Duration::from_secs(240);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Held until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held until dropped")] lock::Lock);

impl Lock {
    /// Takes the lock for a command, waiting while the cluster's walltime monitor holds it.
    pub(crate) async fn wait(profile: &ProfileDir, cluster_id: &str) -> Result<Lock, ClusterError> {
        let begun = Instant::now();
        loop {
            match Lock::take(profile, cluster_id) {
                Err(ClusterError::Busy { passes: true, .. }) if begun.elapsed() < MONITOR_TIMEOUT => {
                    tokio::time::sleep(POLL_INTERVAL).await
                }
                taken => return taken,
            }
        }
    }

    pub(crate) fn take(profile: &ProfileDir, cluster_id: &str) -> Result<Lock, ClusterError> {
        Lock::take_as(profile, cluster_id, false)
    }

    pub(crate) fn take_as_monitor(profile: &ProfileDir, cluster_id: &str) -> Result<Lock, ClusterError> {
        Lock::take_as(profile, cluster_id, true)
    }

    fn take_as(profile: &ProfileDir, cluster_id: &str, passes: bool) -> Result<Lock, ClusterError> {
        let path = profile.lock_file(cluster_id);
        match lock::Lock::take_for(path.clone(), passes) {
            Ok(lock) => Ok(Lock(lock)),
            Err(NotLocked::Held(holder)) => Err(ClusterError::Busy {
                path,
                passes: holder.as_ref().is_some_and(|h| h.passes),
                holder: holder.map(|h| h.process.to_string()),
            }),
            Err(NotLocked::Failed(error)) => Err(ClusterError::StateFile {
                doing: "lock",
                path,
                why: error.to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_waits_only_for_the_walltime_monitor() {
        let dir = tempfile::tempdir().unwrap();
        let profile = ProfileDir::named("x", Some(dir.path())).unwrap();
        profile.create().unwrap();
        let command = Lock::take(&profile, "").unwrap();
        assert!(matches!(Lock::wait(&profile, "").await, Err(ClusterError::Busy { .. })));
        drop(command);
        let monitor = Lock::take_as_monitor(&profile, "").unwrap();
        let waits = Lock::wait(&profile, "");
        let ends = async {
            assert!(matches!(Lock::take(&profile, ""), Err(ClusterError::Busy { passes: true, .. })));
            drop(monitor);
        };
        let (taken, ()) = tokio::join!(waits, ends);
        drop(taken.unwrap());
    }
}
