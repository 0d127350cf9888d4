//! The writer: applies changes in transactions.
use super::batch::{Batch, WriterState, tidy};
use super::large::Large;
use super::outputs::Outputs;
use super::transaction::{in_transaction, lock};
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
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) struct Writer {
    connection: Arc<Mutex<Connection>>,
    path: PathBuf,
    /// Device and inode of the file at its opening.
    identity: Option<(u64, u64)>,
    /// No other connection can be opened: readers share this one.
    exclusive: bool,
    known: WriterState,
    large: Large,
    outputs: Outputs,
    durability: Durability,
}

impl Writer {
    /// Opens the file, creates it (0600) where there is none, brings an older schema up to date. On a network file
    /// system no other process can open the file until this writer is closed.
    pub(crate) fn open(path: &Path, durability: Durability) -> Result<Writer, DbError> {
        Writer::open_as(path, durability, file::is_network(path))
    }

    pub(super) fn open_as(path: &Path, durability: Durability, exclusive: bool) -> Result<Writer, DbError> {
        let connection = file::open_for_writing(path, durability, exclusive)?;
        let (large, outputs) = (Large::beside(path), Outputs::beside(path));
        let swept = || large.sweep(&connection).and_then(|()| outputs.sweep(&connection));
        let known = WriterState::load(&connection).and_then(|known| swept().map(|()| known));
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
    /// A change of a map, task or request that does not exist is logged and skipped.
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
            tracing::warn!(%error, "unused files of large buffers remain until the next start");
        }
        if applied.is_err() {
            // It may contain engines that were rolled back.
            self.known.clear();
        }
        let dropped = applied.map_err(|error| DbError::sqlite("record tasks in", &self.path, &error))?;
        for (task, run, stream) in dropped {
            self.outputs.remove(task, run, stream);
        }
        Ok(())
    }

    /// Whether the file has been deleted or replaced: writes go to an unlinked file, which ends with this process.
    pub(crate) fn is_lost(&self) -> bool {
        match (self.identity, identity(&self.path)) {
            (Some(opened), Ok(found)) => opened != found,
            (Some(_), Err(error)) => error.kind() == std::io::ErrorKind::NotFound,
            (None, _) => false,
        }
    }

    /// Writes all records into another file, atomically.
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
        // Closing would remove the log of the file that is at the path now.
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

    /// Whether [`Writer::tidy`] has work left.
    pub(crate) fn is_untidy(&self) -> bool {
        self.known.untidy
    }

    /// One step, of some milliseconds, of the cleanup after a purge: deletes rows and shrinks the file. (A file created by
    /// pcluster 0.1.0 does not shrink until [`Writer::compact`].)
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

    /// The complete cleanup after a purge, for the file of a stopped cluster.
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

    /// For tests: the disk is full beyond this number of pages.
    #[cfg(test)]
    pub(super) fn limit_pages(&self, max: Option<u32>) {
        let max = max.unwrap_or(u32::MAX - 1);
        let connection = lock(&self.connection);
        connection.pragma_update_and_check(None, "max_page_count", max, |_| Ok(())).unwrap();
    }

    /// For tests: limits the size of rows.
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

/// `stored`: for each change the name of its buffers' file, if they are not in the row. Returns the outputs to delete.
fn apply(
    connection: &Connection,
    known: &mut WriterState,
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
