//! The writer: applies changes in transactions.
use super::batch::{Batch, Known, tidy};
use super::large::Large;
use super::outputs::Outputs;
use super::{DbError, Durability, Reader, file};
use crate::model::TaskId;
use crate::model::buffer_file::BufferFile;
use crate::model::change::Change;
use crate::model::output::Stream;
use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, TransactionBehavior};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) struct Writer {
    connection: Arc<Mutex<Connection>>,
    path: PathBuf,
    /// Device and inode of the file at its opening.
    identity: Option<(u64, u64)>,
    /// No other connection can be opened: readers share this one.
    exclusive: bool,
    known: Known,
    large: Large,
    outputs: Outputs,
    durability: Durability,
}

/// What a panic elsewhere leaves behind is a connection between two statements, which is good to use.
pub(super) fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Writer {
    /// Opens the file, creates it (0600) where there is none, brings an older schema up to date. On a network file
    /// system no other process can open the file until this writer is gone.
    pub(crate) fn open(path: &Path, durability: Durability) -> Result<Writer, DbError> {
        Writer::open_as(path, durability, file::is_network(path))
    }

    pub(super) fn open_as(path: &Path, durability: Durability, exclusive: bool) -> Result<Writer, DbError> {
        let connection = file::open_for_writing(path, durability, exclusive)?;
        let (large, outputs) = (Large::beside(path), Outputs::beside(path));
        let swept = || large.sweep(&connection).and_then(|()| outputs.sweep(&connection));
        let known = Known::load(&connection).and_then(|known| swept().map(|()| known));
        let known = known.map_err(|error| DbError::sqlite("read", path, &error))?;
        Ok(Writer {
            connection: Arc::new(Mutex::new(connection)),
            path: path.to_path_buf(),
            identity: identity(path).ok(),
            exclusive,
            known,
            large,
            outputs,
            durability,
        })
    }

    /// Applies the changes in one transaction: all of them, or after an error none (the same call may then be repeated).
    /// What a change says of a map, task or request that is not there is logged and passed over.
    pub(crate) fn apply(&mut self, changes: &[Change]) -> Result<(), DbError> {
        if changes.is_empty() {
            return Ok(());
        }
        let stored = changes.iter().map(|change| {
            let (buffers, kept) = buffers_of(change);
            self.large.keep(buffers, kept, self.durability)
        });
        let stored: Vec<Option<String>> = stored.collect::<Result<_, _>>()?;
        let connection = lock(&self.connection);
        let applied = apply(&connection, &mut self.known, (&self.outputs, self.durability), changes, stored);
        if applied.is_ok()
            && changes.iter().any(|change| matches!(change, Change::Purged { .. }))
            && let Err(error) = self.large.sweep(&connection).and_then(|()| self.outputs.sweep(&connection))
        {
            tracing::warn!(%error, "files of large buffers are left over until the next start");
        }
        if applied.is_err() {
            // It may know of engines that were rolled back.
            self.known.forget();
        }
        let dropped = applied.map_err(|error| DbError::sqlite("record tasks in", &self.path, &error))?;
        for (task, run, stream) in dropped {
            self.outputs.remove(task, run, stream);
        }
        Ok(())
    }

    /// Whether the file has been deleted or replaced: what is written goes into a file without a name, and ends with this process.
    pub(crate) fn is_lost(&self) -> bool {
        match (self.identity, identity(&self.path)) {
            (Some(opened), Ok(found)) => opened != found,
            (Some(_), Err(error)) => error.kind() == std::io::ErrorKind::NotFound,
            (None, _) => false,
        }
    }

    /// Writes all that is on record into another file, which is there whole or not at all.
    pub(crate) fn rescue(&self, to: &Path) -> Result<(), DbError> {
        let new = file::with_suffix(to, ".new");
        let io = |error: std::io::Error| DbError::io("save the records in", to, &error);
        let _ = std::fs::remove_file(&new);
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .map_err(io)?;
        let connection = lock(&self.connection);
        let saved = connection.execute("VACUUM INTO ?1", [new.to_string_lossy()]);
        saved.map_err(|error| DbError::sqlite("save the records in", to, &error))?;
        // Closing would remove the log of whatever is at the path now.
        let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        std::fs::rename(&new, to).map_err(io)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Grows with every row that is written.
    pub(crate) fn total_changes(&self) -> i64 {
        lock(&self.connection)
            .query_row("SELECT total_changes()", [], |row| row.get(0))
            .unwrap_or_default()
    }

    /// Whether [`Writer::tidy`] has something to do.
    pub(crate) fn is_untidy(&self) -> bool {
        self.known.untidy
    }

    /// One step, of some milliseconds, of what follows a purge: rows are deleted, and the file gets smaller. (A file that was
    /// made by pcluster 0.1.0 keeps its pages, for later tasks, until [`Writer::compact`].)
    pub(crate) fn tidy(&mut self) -> Result<(), DbError> {
        let mut connection = lock(&self.connection);
        let done = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .and_then(|transaction| {
                let more = tidy(&transaction)?;
                transaction.commit().map(|()| more)
            });
        self.known.untidy = done.map_err(|error| DbError::sqlite("tidy up", &self.path, &error))?;
        if !self.known.untidy {
            let swept = self.outputs.sweep(&connection);
            swept.map_err(|error| DbError::sqlite("tidy up", &self.path, &error))?;
        }
        Ok(())
    }

    /// All that follows a purge, for the file of a stopped cluster.
    pub(crate) fn compact(&mut self) -> Result<(), DbError> {
        while self.is_untidy() {
            self.tidy()?;
        }
        let connection = lock(&self.connection);
        let free: i64 = connection.pragma_query_value(None, "freelist_count", |row| row.get(0)).unwrap_or(0);
        if free == 0 {
            return Ok(());
        }
        let failed = |error: rusqlite::Error| DbError::sqlite("tidy up", &self.path, &error);
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(failed)?;
        connection.execute_batch("VACUUM").map_err(failed)
    }

    /// For tests: the disk is full beyond so many pages.
    #[cfg(test)]
    pub(super) fn limit_pages(&self, most: Option<u32>) {
        let most = most.unwrap_or(u32::MAX - 1);
        let connection = lock(&self.connection);
        connection
            .pragma_update_and_check(None, "max_page_count", most, |_| Ok(()))
            .unwrap();
    }

    /// For tests: rows can have so many bytes.
    #[cfg(test)]
    #[expect(unsafe_code, reason = "rusqlite has no call for it without another feature")]
    pub(super) fn limit_rows(&mut self, bytes: i32) {
        use rusqlite::ffi;
        let connection = lock(&self.connection);
        // SAFETY: the handle is open as long as `connection` is borrowed, and no other thread has it.
        unsafe { ffi::sqlite3_limit(connection.handle(), ffi::SQLITE_LIMIT_LENGTH, bytes) };
        self.known.largest_outcome = bytes as usize * 9 / 10;
    }

    /// A reader beside this writer, for another thread. On a network file system it shares the writer's connection.
    pub(crate) fn reader(&self) -> Result<Reader, DbError> {
        if self.exclusive {
            Ok(Reader::over(self.connection.clone(), &self.path))
        } else {
            Reader::open(&self.path)
        }
    }

    /// A reader over this writer's connection, for questions between two commits.
    pub(crate) fn own_reader(&self) -> Reader {
        Reader::over(self.connection.clone(), &self.path)
    }

    /// Whether all readers share this writer's connection.
    pub(crate) fn is_exclusive(&self) -> bool {
        self.exclusive
    }

    /// Writes the log back into the file and closes it. Dropping does the same but cannot tell of failure.
    pub(crate) fn close(self) -> Result<(), DbError> {
        let failed = |error: rusqlite::Error| DbError::sqlite("close the database", &self.path, &error);
        match Arc::try_unwrap(self.connection) {
            Ok(connection) => {
                let connection = connection.into_inner().unwrap_or_else(PoisonError::into_inner);
                connection.close().map_err(|(_, error)| failed(error))
            }
            // The last of the readers that share it closes it.
            Err(_) => Ok(()),
        }
    }
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

fn buffers_of(change: &Change) -> (&[Bytes], Option<&BufferFile>) {
    match change {
        Change::RequestAdded { request, .. } => (&request.buffers, Some(&request.buffer_file)),
        Change::RequestFinished { reply, .. } => (&reply.buffers, None),
        Change::MapAdded { definition, .. } | Change::CodeReplaced { definition, .. } => {
            let bundle = definition.bundle().and_then(|named| named.content.as_ref());
            (bundle.map_or(&[], |bundle| std::slice::from_ref(&bundle.content)), None)
        }
        _ => (&[], None),
    }
}

/// `stored`: under which name each change's buffers are kept, where they are not in the row. Files that can go now.
fn apply(
    connection: &Connection,
    known: &mut Known,
    outputs: (&Outputs, Durability),
    changes: &[Change],
    stored: Vec<Option<String>>,
) -> rusqlite::Result<Vec<(TaskId, u32, Stream)>> {
    in_transaction(connection, "BEGIN IMMEDIATE", |connection| {
        let mut batch = Batch::new(connection, known, outputs)?;
        for (change, stored) in changes.iter().zip(stored) {
            batch.apply(change, stored)?;
        }
        batch.finish()
    })
}

/// As [`Connection::transaction`], with statements that are not parsed each time.
pub(super) fn in_transaction<T>(
    connection: &Connection,
    begin: &str,
    work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    connection.prepare_cached(begin)?.execute([])?;
    // Ends it however this ends, by a panic too.
    struct Open<'a>(&'a Connection);
    impl Drop for Open<'_> {
        fn drop(&mut self) {
            if !self.0.is_autocommit() {
                let _ = self.0.execute_batch("ROLLBACK");
            }
        }
    }
    let _open = Open(connection);
    let result = work(connection)?;
    connection.prepare_cached("COMMIT")?.execute([])?;
    Ok(result)
}
