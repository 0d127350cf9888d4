//! Records why a supervised process is not running, for other commands. Its supervisor writes the reason in place, into a file whose
//! block is allocated beforehand, because the cause may be a full disk.
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const BLOCK: usize = 4096;
const MAX_REASON: usize = 1000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StartProblem {
    pub reason: String,
    /// Number of consecutive failed starts.
    pub attempts: u32,
    /// Time of the first of them, in seconds since 1970.
    pub since: f64,
}

impl StartProblem {
    pub(crate) fn describe(&self) -> String {
        let starts = match self.attempts {
            1 => "1 failed start".to_string(),
            n => format!("{n} failed starts in a row"),
        };
        format!("{} ({starts}; its supervisor tries again, at least every 10 s)", self.reason)
    }
}

/// None if the process is running normally.
pub(crate) fn read(path: &Path) -> Option<StartProblem> {
    let mut text = String::new();
    let file = File::open(path).ok()?;
    file.take(BLOCK as u64).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// Clears the record when the process is running again.
pub(crate) fn clear(path: &Path) {
    let cleared = OpenOptions::new().write(true).open(path).and_then(|file| write(&file, ""));
    if let Err(error) = cleared
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(path = %path.display(), "not cleared: {error}");
    }
}

fn write(file: &File, text: &str) -> io::Result<()> {
    let mut block = text.as_bytes().to_vec();
    block.resize(BLOCK.max(text.len()), b' ');
    file.write_all_at(&block, 0)
}

/// The supervisor's side. The file is removed when dropped.
#[derive(Debug)]
pub(crate) struct ProblemFile(PathBuf);

impl ProblemFile {
    pub(crate) fn prepare(path: &Path) -> ProblemFile {
        let file = ProblemFile(path.into());
        if let Err(error) = file.set("") {
            tracing::debug!(path = %path.display(), "not prepared: {error}");
        }
        file
    }

    pub(crate) fn note(&self, problem: &StartProblem) {
        let cut = |reason: &str| reason.chars().filter(|c| !c.is_control()).take(MAX_REASON / 4).collect();
        let problem = StartProblem {
            reason: cut(&problem.reason),
            ..problem.clone()
        };
        let text = serde_json::to_string(&problem).map_err(io::Error::from);
        if let Err(error) = text.and_then(|text| self.set(&text)) {
            tracing::debug!(path = %self.0.display(), "not written: {error}");
        }
    }

    fn set(&self, text: &str) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&self.0)?;
        write(&file, text)
    }
}

impl Drop for ProblemFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Returns whether the operation may succeed later without a change of settings or code.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind::{
        AddrInUse, AddrNotAvailable, HostUnreachable, NetworkDown, NetworkUnreachable, OutOfMemory, QuotaExceeded, ResourceBusy,
        StaleNetworkFileHandle, StorageFull, TimedOut, WouldBlock,
    };
    use nix::libc::{EIO, EMFILE, ENFILE};
    matches!(
        error.kind(),
        AddrInUse
            | AddrNotAvailable
            | HostUnreachable
            | NetworkDown
            | NetworkUnreachable
            | OutOfMemory
            | QuotaExceeded
            | ResourceBusy
            | StaleNetworkFileHandle
            | StorageFull
            | TimedOut
            | WouldBlock
    ) || matches!(error.raw_os_error(), Some(EMFILE | ENFILE | EIO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::libc::{EACCES, EADDRINUSE, EAGAIN, EDQUOT, EMFILE, ENOENT, ENOSPC, EPERM};

    #[test]
    fn the_file_is_written_in_place_and_removed_with_its_supervisor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("problem");
        let file = ProblemFile::prepare(&path);
        assert_eq!((read(&path), path.metadata().unwrap().len()), (None, BLOCK as u64));
        let problem = |reason: &str| StartProblem {
            reason: reason.into(),
            attempts: 3,
            since: 5.5,
        };
        file.note(&problem(&format!("full\u{1b}[31m \"{}", "é".repeat(5000))));
        let noted = read(&path).unwrap();
        assert!(noted.reason.starts_with("full[31m \"é") && noted.reason.len() < MAX_REASON);
        file.note(&problem("full"));
        assert_eq!((read(&path), path.metadata().unwrap().len()), (Some(problem("full")), BLOCK as u64));
        clear(&path);
        assert_eq!(read(&path), None);
        drop(file);
        assert!(!path.exists());
        clear(&path);
        assert!(!path.exists());
    }

    #[test]
    fn a_full_disk_is_transient_and_a_missing_permission_is_not() {
        for (code, transient) in [
            (ENOSPC, true),
            (EDQUOT, true),
            (EMFILE, true),
            (EADDRINUSE, true),
            (EAGAIN, true),
            (EACCES, false),
            (EPERM, false),
            (ENOENT, false),
        ] {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(is_transient(&error), transient, "{error}");
        }
    }
}
