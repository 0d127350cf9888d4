//! Tracks which replies were written to the connections of ipyparallel's clients.
//!
//! Such a client crashes on a duplicate reply, so the next controller must know which ones were written before a kill.
//! Each reply is noted in a file just before it is written to its connection; the page cache survives the process.
//! The database follows with one of its next commits (`RepliesDelivered`).
use crate::model::{MapId, TaskId};
use crate::transport::{Receipt, with_receipt};
use bytes::Bytes;
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A task's map and index, little endian. A map's number is never 0.
const ENTRY: usize = 8;
/// Beyond this number the oldest entry is overwritten: two commits are never this many replies apart.
const ENTRIES: u64 = 1 << 16;

pub(super) struct Delivered {
    path: PathBuf,
    shared: Arc<DeliveryFile>,
}

struct DeliveryFile {
    /// None if the file could not be created; replies may then be delivered twice after a kill.
    file: Option<File>,
    next: AtomicU64,
    /// Written, and not yet taken.
    tasks: Mutex<Vec<TaskId>>,
    /// The number of replies passed to a socket and not written.
    pending: AtomicUsize,
}

impl Delivered {
    /// Returns the replies that a killed controller noted; they stay in the file until the database has them.
    pub(super) fn open(database: &Path, killed: bool) -> (Delivered, HashSet<TaskId>) {
        let path = beside(database, "-delivered");
        let before = match killed {
            true => std::fs::read(&path).map(|bytes| read(&bytes)).unwrap_or_default(),
            false => HashSet::new(),
        };
        let file = create(&path, &before).map_err(|error| {
            tracing::warn!(path = %path.display(), %error, "cannot track delivered replies; after a kill they may be sent twice");
        });
        let shared = DeliveryFile {
            file: file.ok(),
            next: AtomicU64::new(before.len() as u64),
            tasks: Mutex::default(),
            pending: AtomicUsize::new(0),
        };
        let shared = Arc::new(shared);
        (Delivered { path, shared }, before)
    }

    /// Wraps the header of a reply so that its write is noted. Confirm the [`PendingReceipt`] once the socket has accepted it.
    pub(super) fn watch(&self, header: Bytes, tasks: Vec<TaskId>) -> (Bytes, PendingReceipt) {
        let shared = self.shared.clone();
        let (header, receipt) = with_receipt(header, move || shared.note(tasks));
        let shared = self.shared.clone();
        (header, PendingReceipt { receipt, shared })
    }

    /// The replies that were written since the last call.
    pub(super) fn take(&self) -> Vec<TaskId> {
        std::mem::take(&mut *self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// True if replies are pending, or were written since the last [`Delivered::take`].
    pub(super) fn is_open(&self) -> bool {
        self.shared.pending.load(Ordering::Acquire) > 0 || !self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Removes the file after a clean shutdown: the database is complete.
    pub(super) fn close(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

pub(super) struct PendingReceipt {
    receipt: Receipt,
    shared: Arc<DeliveryFile>,
}

impl PendingReceipt {
    pub(super) fn sent(self) {
        self.shared.pending.fetch_add(1, Ordering::AcqRel);
        self.receipt.sent();
    }
}

impl DeliveryFile {
    fn note(&self, tasks: Vec<TaskId>) {
        if let Some(file) = &self.file {
            for task in &tasks {
                let place = self.next.fetch_add(1, Ordering::Relaxed) % ENTRIES;
                // At worst, a reply that cannot be noted is delivered twice.
                let _ = file.write_all_at(&entry(task), place * ENTRY as u64);
            }
        }
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).extend(tasks);
        self.pending.fetch_sub(1, Ordering::AcqRel);
    }
}

fn create(path: &Path, before: &HashSet<TaskId>) -> std::io::Result<File> {
    let new = beside(path, ".new");
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&new)?;
    let known: Vec<u8> = before.iter().flat_map(entry).collect();
    file.write_all_at(&known, 0)?;
    // Reserve the space: a disk that fills up later does not prevent notes.
    nix::fcntl::posix_fallocate(&file, 0, ENTRIES as i64 * ENTRY as i64).map_err(std::io::Error::from)?;
    std::fs::rename(&new, path)?;
    Ok(file)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    name.into()
}

fn entry(task: &TaskId) -> [u8; ENTRY] {
    (u64::from(task.map.0) | u64::from(task.index) << 32).to_le_bytes()
}

fn read(bytes: &[u8]) -> HashSet<TaskId> {
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_le_bytes);
    bytes
        .chunks_exact(ENTRY)
        .map(|entry| TaskId::new(MapId(number(&entry[..4])), number(&entry[4..])))
        .filter(|task| task.map.0 > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_replies_survive_a_kill_and_pending_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("pcluster.db");
        let (delivered, before) = Delivered::open(&database, true);
        assert!(before.is_empty());
        let task = |index| TaskId::new(MapId(7), index);
        let header = || Bytes::from_static(b"{}");
        let (written, pending) = delivered.watch(header(), vec![task(1), task(2)]);
        pending.sent();
        assert!(delivered.is_open());
        drop(written);
        let (waiting, pending) = delivered.watch(header(), vec![task(3)]);
        pending.sent();
        // The socket did not accept this one.
        drop(delivered.watch(header(), vec![task(4)]));
        assert_eq!(delivered.take(), [task(1), task(2)]);
        assert!(delivered.is_open(), "one is pending");
        // Killed: nothing is closed.
        for _ in 0..2 {
            let (_, before) = Delivered::open(&database, true);
            assert_eq!(before, HashSet::from([task(1), task(2)]), "after a second kill, too");
        }
        let (again, _) = Delivered::open(&database, true);
        drop(waiting);
        assert!(
            Delivered::open(&database, false).1.is_empty(),
            "nothing is left after a clean shutdown"
        );
        again.close();
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
    }
}
