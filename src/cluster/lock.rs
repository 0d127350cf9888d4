//! One command at a time starts, changes or stops a cluster.
//!
//! The lock is the kernel's (flock), which ends with its process; the file says whose it is, for the other's error. It
//! is removed by its owner, so a lock counts only if the path still leads to the locked file.
use super::ClusterError;
use crate::connection::process;
use crate::profile::ProfileDir;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The keeper gives its lock back after so long at most: two submissions that are not answered.
const KEEPER_TAKES: Duration = Duration::from_secs(240);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

#[derive(Serialize, Deserialize)]
struct Holder {
    host: String,
    pid: u32,
    /// It is the cluster's keeper, which gives it back by itself.
    #[serde(default)]
    keeper: bool,
}

impl Lock {
    /// For a command. One that finds the cluster's keeper at work waits until that is done.
    pub async fn wait(profile: &ProfileDir, cluster_id: &str) -> Result<Lock, ClusterError> {
        let begun = Instant::now();
        loop {
            match Lock::take(profile, cluster_id) {
                Err(ClusterError::Busy { passes: true, .. }) if begun.elapsed() < KEEPER_TAKES => tokio::time::sleep(LOOK_EVERY).await,
                taken => return taken,
            }
        }
    }

    pub fn take(profile: &ProfileDir, cluster_id: &str) -> Result<Lock, ClusterError> {
        Lock::take_as(profile, cluster_id, false)
    }

    pub fn take_as_keeper(profile: &ProfileDir, cluster_id: &str) -> Result<Lock, ClusterError> {
        Lock::take_as(profile, cluster_id, true)
    }

    fn take_as(profile: &ProfileDir, cluster_id: &str, keeper: bool) -> Result<Lock, ClusterError> {
        let path = profile.lock_file(cluster_id);
        let failed = |e: io::Error| ClusterError::StateFile {
            doing: "lock",
            path: path.clone(),
            why: e.to_string(),
        };
        loop {
            let mut file = File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .mode(0o600)
                .open(&path)
                .map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(busy(path)),
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
            let ours = file.metadata().map_err(failed)?;
            let same = fs::metadata(&path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()));
            if !same {
                continue; // its last owner removed it between our opening and our locking
            }
            let holder = Holder {
                host: process::host(),
                pid: std::process::id(),
                keeper,
            };
            let text = serde_json::to_string(&holder).map_err(|e| failed(e.into()))?;
            file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).map_err(failed)?;
            return Ok(Lock { path, _file: file });
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before the kernel's lock ends with the file.
        let _ = fs::remove_file(&self.path);
    }
}

fn busy(path: PathBuf) -> ClusterError {
    let read = |path: &Path| serde_json::from_str(&fs::read_to_string(path).ok()?).ok();
    let holder: Option<Holder> = read(&path);
    ClusterError::Busy {
        path,
        passes: holder.as_ref().is_some_and(|h| h.keeper),
        holder: holder.map(|h| format!("process {} on {}", h.pid, h.host)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wins_and_the_other_is_told_who() {
        let dir = tempfile::tempdir().unwrap();
        let profile = ProfileDir::named("x", Some(dir.path())).unwrap();
        profile.create().unwrap();
        let lock = Lock::take(&profile, "").unwrap();
        let error = Lock::take(&profile, "").unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {} on {}", std::process::id(), process::host())),
            "{error}"
        );
        let other = Lock::take(&profile, "other").unwrap();
        drop(lock);
        assert!(!profile.lock_file("").exists());
        drop(Lock::take(&profile, "").unwrap());
        drop(other);
    }

    #[tokio::test]
    async fn a_command_waits_for_the_keeper_and_for_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let profile = ProfileDir::named("x", Some(dir.path())).unwrap();
        profile.create().unwrap();
        let command = Lock::take(&profile, "").unwrap();
        assert!(matches!(Lock::wait(&profile, "").await, Err(ClusterError::Busy { .. })));
        drop(command);
        let keeper = Lock::take_as_keeper(&profile, "").unwrap();
        let waits = Lock::wait(&profile, "");
        let ends = async {
            assert!(matches!(Lock::take(&profile, ""), Err(ClusterError::Busy { passes: true, .. })));
            drop(keeper);
        };
        let (taken, ()) = tokio::join!(waits, ends);
        drop(taken.unwrap());
    }

    #[test]
    fn of_many_at_once_one_at_a_time_has_it() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let profile = ProfileDir::named("x", Some(dir.path())).unwrap();
        profile.create().unwrap();
        let (holding, taken) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while taken.load(Ordering::SeqCst) < 200 {
                        if let Ok(lock) = Lock::take(&profile, "") {
                            assert_eq!(holding.fetch_add(1, Ordering::SeqCst), 0);
                            taken.fetch_add(1, Ordering::SeqCst);
                            holding.fetch_sub(1, Ordering::SeqCst);
                            drop(lock);
                        }
                    }
                });
            }
        });
    }
}
