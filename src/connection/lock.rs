//! What only one process at a time may do: start, change or stop a cluster, or be its controller.
//!
//! The lock is the kernel's (flock), which ends with its process; the file says whose it is, for the other's error. It
//! is removed by its owner, so a lock counts only if the path still leads to the locked file.
use super::process;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

/// As it has written it into the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub host: String,
    pub pid: u32,
    /// It gives the lock back by itself, and soon.
    #[serde(default)]
    pub passes: bool,
}

#[derive(Debug)]
pub enum NotLocked {
    /// By this one, if it has said so already.
    Held(Option<Holder>),
    Failed(io::Error),
}

impl Lock {
    pub fn take(path: PathBuf) -> Result<Lock, NotLocked> {
        Lock::take_for(path, false)
    }

    /// `passes`: what is said to who finds it held.
    pub fn take_for(path: PathBuf, passes: bool) -> Result<Lock, NotLocked> {
        let failed = NotLocked::Failed;
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
                Err(TryLockError::WouldBlock) => return Err(NotLocked::Held(holder(&path))),
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
        // Before the kernel's lock ends with the file.
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
    fn one_wins_and_the_other_is_told_who() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let lock = Lock::take(path("one")).unwrap();
        let Err(NotLocked::Held(Some(holder))) = Lock::take(path("one")) else {
            panic!("it is held, and said whose it is");
        };
        assert_eq!((holder.pid, holder.host), (std::process::id(), process::host()));
        let other = Lock::take(path("other")).unwrap();
        drop(lock);
        assert!(!path("one").exists());
        drop(Lock::take(path("one")).unwrap());
        drop(other);
        assert!(matches!(Lock::take(path("none/one")), Err(NotLocked::Failed(_))));
    }

    #[test]
    fn of_many_at_once_one_at_a_time_has_it() {
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
