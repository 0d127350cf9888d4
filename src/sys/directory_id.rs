//! A directory, so named that another process can tell whether what it finds there is the same one: on this host, and not of that name in
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
    /// None for what is not there.
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

    /// Its path, if it is the same here, and this user's.
    pub fn here(&self) -> Option<&Path> {
        let owner = fs::metadata(&self.path).ok()?.uid();
        let same = DirectoryId::of(&self.path)? == *self && owner == nix::unistd::geteuid().as_raw();
        same.then_some(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_known_again_and_no_other_is_taken_for_it() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("records");
        assert_eq!(DirectoryId::of(&path), None);
        fs::create_dir(&path).unwrap();
        let place = DirectoryId::of(&path).unwrap();
        let place: DirectoryId = serde_json::from_value(serde_json::to_value(&place).unwrap()).unwrap();
        assert_eq!(place.here(), Some(fs::canonicalize(&path).unwrap().as_path()));
        // Another host, and another directory of that name.
        let elsewhere = DirectoryId {
            boot_id: "4711".into(),
            ..place.clone()
        };
        assert_eq!(elsewhere.here(), None);
        fs::rename(&path, parent.path().join("moved")).unwrap();
        assert_eq!(place.here(), None);
        fs::create_dir(&path).unwrap();
        assert_eq!(place.here(), None);
    }
}
