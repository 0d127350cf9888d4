//! A directory that only this user can access, even inside of a world-writable one: its content is trustworthy, and no operation in
//! it follows a link to another location.
//!
//! Source: open(2) (`O_NOFOLLOW`), openat(2), fstat(2), path_resolution(7).
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Maximum size of a file in it.
const MAX_FILE: u64 = 1 << 20;

/// Kept open, so that all operations use the directory that was checked.
#[derive(Debug)]
pub(crate) struct PrivateDir {
    path: PathBuf,
    dir: OwnedFd,
}

impl PrivateDir {
    /// Creates it with mode 0700 if it does not exist.
    pub(crate) fn make(path: &Path) -> io::Result<PrivateDir> {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => PrivateDir::open(path),
        }
    }

    /// Opens it; fails for a link, a directory of another user, or one that others may read or write.
    pub(crate) fn open(path: &Path) -> io::Result<PrivateDir> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = open(path, flags, Mode::empty())?;
        let found = fstat(&dir)?;
        if found.st_uid != geteuid().as_raw() || found.st_mode & 0o077 != 0 {
            return Err(io::Error::other("a directory of this name exists and is accessible to other users"));
        }
        Ok(PrivateDir { path: path.into(), dir })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a file in it; fails for a link and for anything but a regular file of this user.
    pub(crate) fn read(&self, name: &str) -> io::Result<String> {
        let mut text = String::new();
        self.open_own(name, OFlag::O_RDONLY)?.take(MAX_FILE).read_to_string(&mut text)?;
        Ok(text)
    }

    /// Opens such a file for reading and writing, as locking on NFS requires.
    pub(crate) fn open_to_lock(&self, name: &str) -> io::Result<File> {
        self.open_own(name, OFlag::O_RDWR)
    }

    fn open_own(&self, name: &str, access: OFlag) -> io::Result<File> {
        // O_NONBLOCK: do not wait for a writer of a named pipe.
        let flags = access | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file = File::from(openat(&self.dir, name, flags, Mode::empty())?);
        let found = file.metadata()?;
        if !found.is_file() || found.uid() != geteuid().as_raw() || found.nlink() != 1 {
            return Err(io::Error::other("not a regular file that only you own"));
        }
        Ok(file)
    }

    /// Writes a new file with mode 0600, and renames it into place.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = format!(".{name}.{}", uuid::Uuid::new_v4().simple());
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&self.dir, temporary.as_str(), flags, Mode::from_bits_truncate(0o600))?);
        let written = file
            .set_permissions(fs::Permissions::from_mode(0o600))
            .and_then(|()| file.write_all(bytes))
            .and_then(|()| Ok(renameat(&self.dir, temporary.as_str(), &self.dir, name)?));
        if written.is_err() {
            let _ = unlinkat(&self.dir, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "no secret: tests that directories open to others are rejected"
    )]
    fn directories_that_others_can_access_are_rejected() {
        let parent = tempfile::tempdir().unwrap();
        let path = |name: &str| parent.path().join(name);
        let dir = PrivateDir::make(&path("own")).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(PrivateDir::make(&path("own")).is_ok());
        symlink(path("own"), path("link")).unwrap();
        assert!(PrivateDir::make(&path("link")).is_err());
        for mode in [0o755, 0o710, 0o702] {
            fs::set_permissions(path("own"), fs::Permissions::from_mode(mode)).unwrap();
            assert!(PrivateDir::open(&path("own")).is_err(), "{mode:o}");
        }
        fs::write(path("file"), "").unwrap();
        assert!(PrivateDir::make(&path("file")).is_err());
        assert!(PrivateDir::make(Path::new("/tmp")).is_err());
        assert!(PrivateDir::open(&path("none")).is_err());
    }

    #[test]
    fn links_are_not_followed() {
        let parent = tempfile::tempdir().unwrap();
        let precious = parent.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        let dir = PrivateDir::make(&parent.path().join("own")).unwrap();
        let name = dir.path().join("note");
        for link in [true, false] {
            match link {
                true => symlink(&precious, &name).unwrap(),
                false => fs::hard_link(&precious, &name).unwrap(),
            }
            assert!(dir.read("note").is_err());
            dir.write("note", b"ours").unwrap();
            assert_eq!(dir.read("note").unwrap(), "ours");
            assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
            fs::remove_file(&name).unwrap();
        }
        nix::unistd::mkfifo(&name, Mode::from_bits_truncate(0o600)).unwrap();
        assert!(dir.read("note").is_err(), "a named pipe must not block");
        let remaining: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(remaining.len(), 1, "{remaining:?}");
    }

    #[test]
    fn operations_use_the_opened_directory() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("own");
        let dir = PrivateDir::make(&path).unwrap();
        fs::rename(&path, parent.path().join("moved")).unwrap();
        fs::create_dir(&path).unwrap();
        dir.write("note", b"ours").unwrap();
        assert!(!path.join("note").exists() && parent.path().join("moved/note").exists());
    }
}
