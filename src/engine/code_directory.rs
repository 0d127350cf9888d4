//! The directory for the code of maps that one engine has on its host, below one that all users share. Its engine holds a lock in it as long
//! as it lives, so another engine, or `pcluster clean`, can tell which directories were left by engines that were killed.
//!
//! Source: flock(2). On a file system of one host it is seen from every PID namespace of that host. Network file systems may not pass it
//! on, so there only directories of this host's current boot are removed.
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

/// Removed when it is dropped.
#[derive(Debug)]
pub struct CodeDirectory {
    path: PathBuf,
    _lock: File,
}

impl CodeDirectory {
    /// A new one in the first place for temporary files that takes one.
    pub fn make() -> Result<CodeDirectory, String> {
        let mut failures = Vec::new();
        for parent in parents() {
            match CodeDirectory::make_in(&parent) {
                Ok(directory) => return Ok(directory),
                Err(error) => failures.push(format!("{}: {error}", parent.display())),
            }
        }
        Err(format!("no directory can be made for it ({})", failures.join(", ")))
    }

    pub fn make_in(parent: &Path) -> io::Result<CodeDirectory> {
        let path = parent.join(format!("{PREFIX}{}", uuid::Uuid::new_v4().simple()));
        // Of a link or directory that is there already this makes an error.
        DirBuilder::new().mode(0o700).create(&path)?;
        let lock = lock(&path);
        if lock.is_err() {
            remove(&path);
        }
        Ok(CodeDirectory { _lock: lock?, path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for CodeDirectory {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// It gets its name when it is held: one of that name that nobody holds is of an engine that has ended.
fn lock(directory: &Path) -> io::Result<File> {
    let new = directory.join(".lock");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&new)?;
    file.try_lock()?;
    file.write_all(&serde_json::to_vec(&ProcessId::own())?)?;
    fs::rename(&new, directory.join(LOCK))?;
    Ok(file)
}

pub fn remove(directory: &Path) {
    if let Err(error) = fs::remove_dir_all(directory)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(path = %directory.display(), "not removed: {error}");
    }
}

/// Removes what engines of this user left that were killed; how many directories.
pub fn sweep() -> usize {
    let mut parents = parents().to_vec();
    parents.dedup();
    parents
        .iter()
        .map(|parent| sweep_in(parent, network_fs::may_be_shared(parent)))
        .sum()
}

/// `is_shared`: other hosts may have directories in it, whose locks are not seen here.
fn sweep_in(parent: &Path, is_shared: bool) -> usize {
    let names = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let is_ours = |name: &str| {
        name.strip_prefix(PREFIX)
            .is_some_and(|rest| rest.len() == 32 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    let mut removed = 0;
    for name in names.filter(|name| name.to_str().is_some_and(is_ours)) {
        let path = parent.join(name);
        if let Some(_lock) = left_by_the_dead(&path, is_shared) {
            remove(&path);
            removed += usize::from(!path.exists());
        }
    }
    removed
}

/// Its lock, which no other process that sweeps gets, if the engine is known to be gone.
fn left_by_the_dead(path: &Path, is_shared: bool) -> Option<File> {
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

    /// As an engine leaves it that is killed: the lock's file is there, and nobody holds it.
    fn left(parent: &Path) -> PathBuf {
        let made = CodeDirectory::make_in(parent).unwrap();
        let (path, text) = (made.path().to_path_buf(), fs::read(made.path().join(LOCK)).unwrap());
        drop(made);
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        fs::write(path.join(LOCK), text).unwrap();
        fs::write(path.join("helper.py"), "x = 1\n").unwrap();
        path
    }

    fn said_by_another_boot(path: &Path) {
        let other = ProcessId {
            boot_id: "another".into(),
            ..ProcessId::own()
        };
        fs::write(path.join(LOCK), serde_json::to_vec(&other).unwrap()).unwrap();
    }

    #[test]
    fn what_killed_engines_left_is_removed_and_what_live_ones_use_stays() {
        let parent = tempfile::tempdir().unwrap();
        let live = CodeDirectory::make_in(parent.path()).unwrap();
        let dead = [left(parent.path()), left(parent.path())];
        said_by_another_boot(&dead[1]);
        assert_eq!(sweep_in(parent.path(), false), 2);
        assert!(dead.iter().all(|path| !path.exists()) && live.path().join(LOCK).exists());
        assert_eq!(sweep_in(parent.path(), false), 0);
        let path = live.path().to_path_buf();
        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn where_other_hosts_may_write_only_what_is_of_this_boot_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let (here, elsewhere, unknown) = (left(parent.path()), left(parent.path()), left(parent.path()));
        said_by_another_boot(&elsewhere);
        fs::write(unknown.join(LOCK), "").unwrap();
        assert_eq!(sweep_in(parent.path(), true), 1);
        assert!(!here.exists() && elsewhere.exists() && unknown.exists());
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "no secret: what is opened to others here is to be left alone"
    )]
    fn what_is_not_safely_ours_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let named = |letter: &str| parent.path().join(format!("{PREFIX}{}", letter.repeat(32)));
        // Others may write to it.
        let open = left(parent.path());
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        // A link to one that would be removed.
        let elsewhere = tempfile::tempdir().unwrap();
        let target = left(elsewhere.path());
        symlink(&target, named("a")).unwrap();
        // Its lock is not there yet, or is a link.
        let early = named("b");
        DirBuilder::new().mode(0o700).create(&early).unwrap();
        let linked = left(parent.path());
        fs::remove_file(linked.join(LOCK)).unwrap();
        symlink(target.join(LOCK), linked.join(LOCK)).unwrap();
        // Another name.
        let other = parent.path().join(format!("{PREFIX}notes"));
        fs::rename(left(parent.path()), &other).unwrap();
        assert_eq!(sweep_in(parent.path(), false), 0);
        for path in [open, target, named("a"), early, linked, other] {
            assert!(path.exists(), "{}", path.display());
        }
    }
}
