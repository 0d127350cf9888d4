//! The one that writes: changes in, commits out.
use super::batch::{Batch, Known};
use super::{DbError, Durability, Reader, file};
use crate::model::change::Change;
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub struct Writer {
    connection: Arc<Mutex<Connection>>,
    path: PathBuf,
    /// No other connection can be opened: readers share this one.
    exclusive: bool,
    known: Known,
}

/// What a panic elsewhere leaves behind is a connection between two statements, which is good to use.
pub(super) fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Writer {
    /// Opens the file, creates it (0600) where there is none, brings an older schema up to date. On a network file
    /// system no other process can open the file until this writer is gone.
    pub fn open(path: &Path, durability: Durability) -> Result<Writer, DbError> {
        Writer::open_as(path, durability, file::is_network(path))
    }

    pub(super) fn open_as(path: &Path, durability: Durability, exclusive: bool) -> Result<Writer, DbError> {
        let connection = file::open_for_writing(path, durability, exclusive)?;
        let known = Known::load(&connection).map_err(|error| DbError::sqlite("read", path, &error))?;
        Ok(Writer {
            connection: Arc::new(Mutex::new(connection)),
            path: path.to_path_buf(),
            exclusive,
            known,
        })
    }

    /// Applies the changes in one transaction: all of them, or after an error none (the same call may then be repeated).
    /// What a change says of a map, task or request that is not there is logged and passed over.
    pub fn apply(&mut self, changes: &[Change]) -> Result<(), DbError> {
        if changes.is_empty() {
            return Ok(());
        }
        let connection = lock(&self.connection);
        let applied = apply(&connection, &mut self.known, changes);
        if applied.is_err() {
            // It may know of engines that were rolled back.
            self.known.forget();
        }
        applied.map_err(|error| DbError::sqlite("record tasks in", &self.path, &error))
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
    pub fn reader(&self) -> Result<Reader, DbError> {
        if self.exclusive {
            Ok(Reader::over(self.connection.clone(), &self.path))
        } else {
            Reader::open(&self.path)
        }
    }

    /// A reader over this writer's connection, for questions between two commits.
    pub fn own_reader(&self) -> Reader {
        Reader::over(self.connection.clone(), &self.path)
    }

    /// Whether all readers share this writer's connection.
    pub fn is_exclusive(&self) -> bool {
        self.exclusive
    }

    /// Writes the log back into the file and closes it. Dropping does the same but cannot tell of failure.
    pub fn close(self) -> Result<(), DbError> {
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

fn apply(connection: &Connection, known: &mut Known, changes: &[Change]) -> rusqlite::Result<()> {
    in_transaction(connection, "BEGIN IMMEDIATE", |connection| {
        let mut batch = Batch::new(connection, known)?;
        for change in changes {
            batch.apply(change)?;
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
