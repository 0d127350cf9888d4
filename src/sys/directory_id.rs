//! Identifies a directory, so that another process can check that its path refers to the same directory, on the same host and not in
//! another container.
//!
//! Source: random(4), `/proc/sys/kernel/random/boot_id`; stat(2), `st_dev` and `st_ino`.
use super::process::boot_id;
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryId {
    path: PathBuf,
    boot_id: String,
    device: u64,
    inode: u64,
}

impl DirectoryId {
    /// None if the directory does not exist.
    pub fn of(path: &Path) -> Option<DirectoryId> {
        let path = fs::canonicalize(path).ok()?;
        let found = fs::metadata(&path).ok()?;
        Some(DirectoryId {
            boot_id: boot_id()?,
            device: found.dev(),
            inode: found.ino(),
            path,
        })
    }

    /// Its path, if this process sees the same directory there, owned by this user.
    pub fn local_path(&self) -> Option<&Path> {
        let owner = fs::metadata(&self.path).ok()?.uid();
        let same = DirectoryId::of(&self.path)? == *self && owner == nix::unistd::geteuid().as_raw();
        same.then_some(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_matches_only_the_same_directory() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("records");
        assert_eq!(DirectoryId::of(&path), None);
        fs::create_dir(&path).unwrap();
        let id = DirectoryId::of(&path).unwrap();
        let id: DirectoryId = serde_json::from_value(serde_json::to_value(&id).unwrap()).unwrap();
        assert_eq!(id.local_path(), Some(fs::canonicalize(&path).unwrap().as_path()));
        // Another host, and another directory at the same path.
        let of_other_host = DirectoryId {
            boot_id: "4711".into(),
            ..id.clone()
        };
        assert_eq!(of_other_host.local_path(), None);
        fs::rename(&path, parent.path().join("moved")).unwrap();
        assert_eq!(id.local_path(), None);
        fs::create_dir(&path).unwrap();
        assert_eq!(id.local_path(), None);
    }
}
