//! An engine's directory for the code of maps, inside of a directory shared by all users. The engine holds a lock in it while it is
//! running, so that other engines and `pcluster clean` can identify and remove directories left by killed engines.
//!
//! Source: flock(2). On a local file system the lock is visible in every PID namespace of the host. Network file systems may not
//! propagate it, so on them only directories of this host's current boot are removed.
use crate::sys::network_fs;
use crate::sys::private_dir::PrivateDir;
use crate::sys::process::ProcessId;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const PREFIX: &str = "pcluster-code-";
const LOCK: &str = "lock";

fn parents() -> [PathBuf; 3] {
    [std::env::temp_dir(), "/dev/shm".into(), "/var/tmp".into()]
}

/// Removed when dropped.
#[derive(Debug)]
pub(crate) struct CodeDirectory {
    path: PathBuf,
    _lock: File,
}

impl CodeDirectory {
    /// Creates a directory in the first usable location for temporary files.
    pub(crate) fn create() -> io::Result<CodeDirectory> {
        let mut failures = Vec::new();
        for parent in parents() {
            match CodeDirectory::create_in(&parent) {
                Ok(directory) => return Ok(directory),
                Err(error) => failures.push(format!("{}: {error}", parent.display())),
            }
        }
        Err(io::Error::other(format!(
            "cannot create a directory for it ({})",
            failures.join(", ")
        )))
    }

    pub(crate) fn create_in(parent: &Path) -> io::Result<CodeDirectory> {
        let path = parent.join(format!("{PREFIX}{}", uuid::Uuid::new_v4().simple()));
        // Fails if a link or directory of this name exists.
        DirBuilder::new().mode(0o700).create(&path)?;
        let lock = lock(&path);
        if lock.is_err() {
            remove(&path);
        }
        Ok(CodeDirectory { _lock: lock?, path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for CodeDirectory {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Creates and locks the file before renaming it: a lock file that is not locked belongs to an engine that has ended.
fn lock(directory: &Path) -> io::Result<File> {
    let new = directory.join(".lock");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&new)?;
    file.try_lock()?;
    file.write_all(&serde_json::to_vec(&ProcessId::own())?)?;
    fs::rename(&new, directory.join(LOCK))?;
    Ok(file)
}

pub(crate) fn remove(directory: &Path) {
    if let Err(error) = fs::remove_dir_all(directory)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(path = %directory.display(), "not removed: {error}");
    }
}

/// Removes directories left by killed engines of this user; returns their number.
pub(crate) fn sweep() -> usize {
    let mut parents = parents().to_vec();
    parents.dedup();
    parents
        .iter()
        .map(|parent| sweep_in(parent, network_fs::may_be_shared(parent)))
        .sum()
}

/// `is_shared`: other hosts may have directories in `parent`, whose locks are not visible on this host.
fn sweep_in(parent: &Path, is_shared: bool) -> usize {
    let names = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let is_ours = |name: &str| {
        name.strip_prefix(PREFIX)
            .is_some_and(|rest| rest.len() == 32 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    let mut removed = 0;
    for name in names.filter(|name| name.to_str().is_some_and(is_ours)) {
        let path = parent.join(name);
        if let Some(_lock) = lock_if_stale(&path, is_shared) {
            remove(&path);
            removed += usize::from(!path.exists());
        }
    }
    removed
}

/// Returns the acquired lock if the engine is known to have ended. It excludes other sweeping processes.
fn lock_if_stale(path: &Path, is_shared: bool) -> Option<File> {
    let directory = PrivateDir::open(path).ok()?;
    let lock = directory.open_to_lock(LOCK).ok()?;
    lock.try_lock().ok()?;
    if is_shared {
        let owner: ProcessId = serde_json::from_str(&directory.read(LOCK).ok()?).ok()?;
        let own = ProcessId::own();
        if owner.boot_id.is_empty() || owner.boot_id != own.boot_id {
            return None;
        }
    }
    Some(lock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// A directory like that of a killed engine: with an unlocked lock file.
    fn leftover(parent: &Path) -> PathBuf {
        let created = CodeDirectory::create_in(parent).unwrap();
        let (path, text) = (created.path().to_path_buf(), fs::read(created.path().join(LOCK)).unwrap());
        drop(created);
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        fs::write(path.join(LOCK), text).unwrap();
        fs::write(path.join("helper.py"), "x = 1\n").unwrap();
        path
    }

    fn mark_as_another_boot(path: &Path) {
        let other = ProcessId {
            boot_id: "another".into(),
            ..ProcessId::own()
        };
        fs::write(path.join(LOCK), serde_json::to_vec(&other).unwrap()).unwrap();
    }

    #[test]
    fn only_directories_of_killed_engines_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let live = CodeDirectory::create_in(parent.path()).unwrap();
        let dead = [leftover(parent.path()), leftover(parent.path())];
        mark_as_another_boot(&dead[1]);
        assert_eq!(sweep_in(parent.path(), false), 2);
        assert!(dead.iter().all(|path| !path.exists()) && live.path().join(LOCK).exists());
        assert_eq!(sweep_in(parent.path(), false), 0);
        let path = live.path().to_path_buf();
        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn on_a_shared_file_system_only_directories_of_this_boot_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let (here, elsewhere, unknown) = (leftover(parent.path()), leftover(parent.path()), leftover(parent.path()));
        mark_as_another_boot(&elsewhere);
        fs::write(unknown.join(LOCK), "").unwrap();
        assert_eq!(sweep_in(parent.path(), true), 1);
        assert!(!here.exists() && elsewhere.exists() && unknown.exists());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "no secret: tests that a directory open to others is kept")]
    fn directories_that_are_not_safely_ours_are_kept() {
        let parent = tempfile::tempdir().unwrap();
        let named = |letter: &str| parent.path().join(format!("{PREFIX}{}", letter.repeat(32)));
        // Others may write to it.
        let open = leftover(parent.path());
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        // A link to a removable directory.
        let elsewhere = tempfile::tempdir().unwrap();
        let target = leftover(elsewhere.path());
        symlink(&target, named("a")).unwrap();
        // Its lock does not exist yet, or is a link.
        let early = named("b");
        DirBuilder::new().mode(0o700).create(&early).unwrap();
        let linked = leftover(parent.path());
        fs::remove_file(linked.join(LOCK)).unwrap();
        symlink(target.join(LOCK), linked.join(LOCK)).unwrap();
        // Another name.
        let other = parent.path().join(format!("{PREFIX}notes"));
        fs::rename(leftover(parent.path()), &other).unwrap();
        assert_eq!(sweep_in(parent.path(), false), 0);
        for path in [open, target, named("a"), early, linked, other] {
            assert!(path.exists(), "{}", path.display());
        }
    }
}
