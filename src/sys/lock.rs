//! What only one process at a time may do: start, change or stop a cluster, or be its controller.
//!
//! The lock is the kernel's (flock(2)), which ends with its process and is seen from every PID namespace, and, where a network file system
//! passes it on, from every host; the file says whose it is, for the other's error. It is removed by its owner, so a lock counts only if
//! the path still leads to the locked file.
use super::process::ProcessId;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

/// As it has written it into the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    #[serde(flatten)]
    pub process: ProcessId,
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

/// How a lock is, as another process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Free,
    /// By this one, if it says so.
    Held(Option<Holder>),
    /// The file system has no locks, or the file cannot be opened.
    Unknown(String),
}

/// Whether a lock is held. It is shared for the moment of asking, which [`Lock::take`] waits for.
pub fn ask(path: &Path) -> Asked {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Asked::Free,
        Err(error) => return Asked::Unknown(error.to_string()),
    };
    match file.try_lock_shared() {
        Ok(()) => Asked::Free,
        Err(TryLockError::WouldBlock) => Asked::Held(holder(path)),
        Err(TryLockError::Error(error)) => Asked::Unknown(error.to_string()),
    }
}

/// Removes the file of a lock that nobody holds.
pub fn remove_free(path: &Path) {
    if path.exists() {
        drop(Lock::take(path.to_path_buf()));
    }
}

/// How often a lock that is held is looked at again, and how long: somebody may only be asking.
const LOOK_EVERY: Duration = Duration::from_millis(2);
const ASKING_TAKES: Duration = Duration::from_millis(50);

impl Lock {
    pub fn take(path: PathBuf) -> Result<Lock, NotLocked> {
        Lock::take_for(path, false)
    }

    /// `passes`: what is said to who finds it held.
    pub fn take_for(path: PathBuf, passes: bool) -> Result<Lock, NotLocked> {
        let failed = NotLocked::Failed;
        let begun = Instant::now();
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
                Err(TryLockError::WouldBlock) if begun.elapsed() < ASKING_TAKES => {
                    std::thread::sleep(LOOK_EVERY);
                    continue;
                }
                Err(TryLockError::WouldBlock) => return Err(NotLocked::Held(holder(&path))),
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
            let ours = file.metadata().map_err(failed)?;
            let same = fs::metadata(&path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()));
            if !same {
                continue; // its last owner removed it between our opening and our locking
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
        assert_eq!(holder.process, ProcessId::own());
        let other = Lock::take(path("other")).unwrap();
        drop(lock);
        assert!(!path("one").exists());
        drop(Lock::take(path("one")).unwrap());
        drop(other);
        assert!(matches!(Lock::take(path("none/one")), Err(NotLocked::Failed(_))));
    }

    #[test]
    fn asking_says_who_has_it_and_takes_it_from_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert_eq!(ask(&path), Asked::Free);
        let lock = Lock::take(path.clone()).unwrap();
        assert!(matches!(ask(&path), Asked::Held(Some(holder)) if holder.process == ProcessId::own()));
        remove_free(&path);
        assert!(path.exists(), "it is held");
        drop(lock);
        // As a process leaves it that is killed.
        fs::write(&path, "{}").unwrap();
        assert_eq!(ask(&path), Asked::Free);
        // Somebody asks again and again: nobody is refused for that.
        std::thread::scope(|scope| {
            let asker = scope.spawn(|| (0..20_000).filter(|_| ask(&path) != Asked::Free).count());
            while !asker.is_finished() {
                drop(Lock::take(path.clone()).unwrap());
            }
        });
        remove_free(&path);
        assert!(!path.exists());
        assert!(matches!(ask(&dir.path().join("none/lock")), Asked::Free));
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
