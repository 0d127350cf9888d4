//! Locks for operations that only one process at a time may perform: starting, changing or stopping a cluster, or being its controller.
//!
//! The lock is a kernel lock (flock(2)), which is released when its process ends. It is visible in every PID namespace and, if a network
//! file system propagates it, on every host. The file names the holder, for error messages. The holder removes the file, so a lock is
//! valid only if the path still refers to the locked file.
use super::process::ProcessId;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A held lock, released when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    _file: File,
}

/// The holder, as recorded in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    #[serde(flatten)]
    pub process: ProcessId,
    /// The holder will release the lock soon by itself.
    #[serde(default)]
    pub passes: bool,
}

#[derive(Debug)]
pub(crate) enum NotLocked {
    /// The holder, if it is recorded in the file.
    Held(Option<Holder>),
    Failed(io::Error),
}

/// The state of a lock, as seen by another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LockState {
    Free,
    /// The holder, if it is recorded in the file.
    Held(Option<Holder>),
    /// The file system has no locks, or the file cannot be opened.
    Unknown(String),
}

/// Queries whether a lock is held. Acquires it briefly as a shared lock, which [`Lock::take`] tolerates.
pub(crate) fn ask(path: &Path) -> LockState {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return LockState::Free,
        Err(error) => return LockState::Unknown(error.to_string()),
    };
    match file.try_lock_shared() {
        Ok(()) => LockState::Free,
        Err(TryLockError::WouldBlock) => LockState::Held(holder(path)),
        Err(TryLockError::Error(error)) => LockState::Unknown(error.to_string()),
    }
}

/// Removes the file of a lock that is not held.
pub(crate) fn remove_free(path: &Path) {
    if path.exists() {
        drop(Lock::take(path.to_path_buf()));
    }
}

/// Retry interval and time limit for a held lock: another process may only be querying it.
const RETRY_INTERVAL: Duration = Duration::from_millis(2);
const RETRY_TIMEOUT: Duration = Duration::from_millis(50);

impl Lock {
    pub(crate) fn take(path: PathBuf) -> Result<Lock, NotLocked> {
        Lock::take_for(path, false)
    }

    /// `passes`: recorded in the file, for other processes.
    pub(crate) fn take_for(path: PathBuf, passes: bool) -> Result<Lock, NotLocked> {
        let failed = NotLocked::Failed;
        let started = Instant::now();
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
                Err(TryLockError::WouldBlock) if started.elapsed() < RETRY_TIMEOUT => {
                    std::thread::sleep(RETRY_INTERVAL);
                    continue;
                }
                Err(TryLockError::WouldBlock) => return Err(NotLocked::Held(holder(&path))),
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
            let ours = file.metadata().map_err(failed)?;
            let same = fs::metadata(&path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()));
            if !same {
                continue; // the previous holder removed it between opening and locking
            }
            let holder = Holder {
                process: ProcessId::own(),
                passes,
            };
            let text = serde_json::to_string(&holder).map_err(|e| failed(e.into()))?;
            file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).map_err(failed)?;
            return Ok(Lock { path, _file: file });
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before closing the file releases the lock.
        let _ = fs::remove_file(&self.path);
    }
}

fn holder(path: &Path) -> Option<Holder> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let lock = Lock::take(path("one")).unwrap();
        let Err(NotLocked::Held(Some(holder))) = Lock::take(path("one")) else {
            panic!("the lock is held and names its holder");
        };
        assert_eq!(holder.process, ProcessId::own());
        let other = Lock::take(path("other")).unwrap();
        drop(lock);
        assert!(!path("one").exists());
        drop(Lock::take(path("one")).unwrap());
        drop(other);
        assert!(matches!(Lock::take(path("none/one")), Err(NotLocked::Failed(_))));
    }

    #[test]
    fn querying_names_the_holder_and_does_not_disturb_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert_eq!(ask(&path), LockState::Free);
        let lock = Lock::take(path.clone()).unwrap();
        assert!(matches!(ask(&path), LockState::Held(Some(holder)) if holder.process == ProcessId::own()));
        remove_free(&path);
        assert!(path.exists(), "the lock is held");
        drop(lock);
        // Like after the kill of its holder.
        fs::write(&path, "{}").unwrap();
        assert_eq!(ask(&path), LockState::Free);
        // Continuous queries do not make acquiring fail.
        std::thread::scope(|scope| {
            let asker = scope.spawn(|| (0..20_000).filter(|_| ask(&path) != LockState::Free).count());
            while !asker.is_finished() {
                drop(Lock::take(path.clone()).unwrap());
            }
        });
        remove_free(&path);
        assert!(!path.exists());
        assert!(matches!(ask(&dir.path().join("none/lock")), LockState::Free));
    }

    #[test]
    fn only_one_of_many_threads_holds_it_at_a_time() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let (holding, taken) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while taken.load(Ordering::SeqCst) < 200 {
                        if let Ok(lock) = Lock::take(dir.path().join("lock")) {
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
