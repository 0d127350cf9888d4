//! Large buffers, as files in a directory next to the database: SQLite rewrites a row for every change to it, twice (into the
//! log, then into the file), and copies it in between.
//!
//! A file is named after what is in it (SHA-256), so that an array that is pushed to eight engines is there once. It is whole
//! before the commit that names it; files that no row names are swept away when the database is opened and after a purge.
use super::{DbError, Durability, buffers, file};
use crate::model::buffer_file::{BufferFile, MIN_FILE_BYTES, is_name};
use bytes::Bytes;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const WRITE: &str = "write large buffers into";

/// The directory for the buffer files of a database.
fn directory(database: &Path) -> PathBuf {
    file::with_suffix(database, "-buffers")
}

/// The same, made where it is not there yet.
pub(crate) fn made_directory(database: &Path) -> io::Result<PathBuf> {
    let directory = directory(database);
    make(&directory).map(|()| directory)
}

fn make(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

#[derive(Clone, Debug)]
pub(super) struct Large {
    directory: PathBuf,
}

impl Large {
    pub(super) fn beside(database: &Path) -> Large {
        Large {
            directory: directory(database),
        }
    }

    /// Stores a message's buffers in a file, sets `kept`, and returns the file's name; None if they fit into a row.
    pub(super) fn keep(&self, list: &[Bytes], kept: Option<&BufferFile>, durability: Durability) -> Result<Option<String>, DbError> {
        if list.iter().map(Bytes::len).sum::<usize>() < MIN_FILE_BYTES {
            return Ok(None);
        }
        let name = self
            .write(list, durability)
            .map_err(|error| DbError::io(WRITE, &self.directory, &error))?;
        if let Some(kept) = kept {
            kept.set(&name);
        }
        Ok(Some(name))
    }

    fn write(&self, list: &[Bytes], durability: Durability) -> io::Result<String> {
        let pieces = buffers::laid_out(list);
        let mut hash = Sha256::new();
        pieces.iter().for_each(|piece| hash.update(piece));
        let name = hex::encode(hash.finalize());
        let path = self.directory.join(&name);
        let size = pieces.iter().map(Bytes::len).sum::<usize>();
        if fs::metadata(&path).is_ok_and(|found| found.len() == size as u64) {
            return Ok(name);
        }
        make(&self.directory)?;
        let unfinished = self.directory.join(format!("{name}.part"));
        match self.fill(&unfinished, &pieces, durability) {
            Ok(()) => fs::rename(&unfinished, &path)?,
            Err(error) => {
                let _ = fs::remove_file(&unfinished);
                return Err(error);
            }
        }
        if durability == Durability::Full {
            File::open(&self.directory)?.sync_all()?;
        }
        Ok(name)
    }

    fn fill(&self, path: &Path, pieces: &[Bytes], durability: Durability) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        pieces.iter().try_for_each(|piece| file.write_all(piece))?;
        match durability {
            Durability::Full => file.sync_all(),
            Durability::Normal => Ok(()),
        }
    }

    /// The buffers in a column, in the row or in the file that the row names. None at all where the file is not there any more.
    pub(super) fn list(&self, row: &Row, column: usize) -> rusqlite::Result<Vec<Bytes>> {
        let found = match row.get_ref(column)? {
            ValueRef::Null => return Ok(Vec::new()),
            ValueRef::Text(name) => self.read(&String::from_utf8_lossy(name)),
            other => other.as_bytes().map(Bytes::copy_from_slice).ok(),
        };
        Ok(found.and_then(buffers::decode).unwrap_or_default())
    }

    /// In which file the buffers in a column are.
    pub(super) fn kept(row: &Row, column: usize) -> rusqlite::Result<BufferFile> {
        Ok(BufferFile::from_name(match row.get_ref(column)? {
            ValueRef::Text(name) => Some(String::from_utf8_lossy(name).into_owned()),
            _ => None,
        }))
    }

    fn read(&self, name: &str) -> Option<Bytes> {
        if !is_name(name) {
            return None;
        }
        let path = self.directory.join(name);
        match fs::read(&path) {
            Ok(content) => Some(content.into()),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "buffers of a message cannot be read");
                None
            }
        }
    }

    /// Removes the files that no row refers to.
    pub(super) fn sweep(&self, connection: &Connection) -> rusqlite::Result<()> {
        let Ok(found) = fs::read_dir(&self.directory) else {
            return Ok(());
        };
        let sql = "SELECT buffers FROM request WHERE typeof(buffers) = 'text' \
                   UNION SELECT result_buffers FROM request WHERE typeof(result_buffers) = 'text' \
                   UNION SELECT content FROM bundle WHERE typeof(content) = 'text'";
        let used: HashSet<String> = connection
            .prepare(sql)?
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        for entry in found.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let ours = is_name(name.strip_suffix(".part").unwrap_or(&name));
            if ours && !used.contains(&name) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }
}
