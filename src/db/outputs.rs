//! Output of tasks in the columns `stdout` and `stderr` and in files beside the database; likewise values, in `value` or `pickled`, and
//! inputs, in `input`.
//!
//! A short output that is UTF-8 is a TEXT. Anything else is a BLOB whose first byte is its type: bytes; or the size of a long
//! output, the run that its file belongs to, and its beginning. A file's name is `<task.id>-<run>-<stream>`, of an input
//! `<task.id>-input`; bytes beyond the recorded size belong to a failed commit, and are overwritten.
use super::error::FileError;
use super::{Durability, file};
use crate::model::TaskId;
use crate::model::output::{HEAD, INLINE, Output, Stream, Written};
use bytes::{Buf, BufMut, Bytes};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const BYTES: u8 = 0;
const IN_FILE: u8 = 1;
/// For an unfinished task: its rows of `output`, joined by [`so_far`].
const JOINED: u8 = 2;
/// The end of the name of an input's file.
const INPUT: &str = "-input";

/// The location of a long output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InFile {
    pub run: u32,
    pub size: u64,
    pub head: Bytes,
}

/// A column's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    Inline(Bytes),
    InFile(InFile),
}

impl Stored {
    pub(super) fn size(&self) -> u64 {
        match self {
            Stored::Inline(bytes) => bytes.len() as u64,
            Stored::InFile(file) => file.size,
        }
    }

    pub(super) fn output(self) -> Output {
        match self {
            Stored::Inline(bytes) => Output::whole(bytes),
            Stored::InFile(file) => Output {
                start: 0,
                bytes: file.head,
                size: file.size,
            },
        }
    }

    fn decode(mut blob: Bytes) -> Option<Stored> {
        match blob.try_get_u8().ok()? {
            BYTES => Some(Stored::Inline(blob)),
            IN_FILE => Some(Stored::InFile(InFile {
                size: blob.try_get_u64_le().ok()?,
                run: blob.try_get_u32_le().ok()?,
                head: blob,
            })),
            JOINED => joined(&blob),
            _ => None,
        }
    }
}

/// For bytes that are not UTF-8 text.
pub(super) fn encode_bytes(bytes: &[u8]) -> Vec<u8> {
    [&[BYTES], bytes].concat()
}

impl InFile {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut blob = vec![IN_FILE];
        blob.put_u64_le(self.size);
        blob.put_u32_le(self.run);
        blob.put_slice(&self.head[..self.head.len().min(HEAD)]);
        blob
    }
}

/// SQL for the output of `task t` on this stream so far.
pub(super) fn so_far(stream: Stream) -> String {
    let (name, column) = (stream.as_str(), finished(stream));
    format!(
        "CASE WHEN t.completed IS NULL THEN (SELECT CAST(char({JOINED}) || group_concat(substr(typeof(text), 1, 1) || hex(text), ',') AS BLOB) \
         FROM (SELECT text FROM output WHERE task = t.id AND stream = '{name}' ORDER BY id)) ELSE {column} END"
    )
}

/// SQL for the output of `t`, a finished task or an attempt.
pub(super) fn finished(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "t.stdout",
        Stream::Stderr => "t.stderr",
        Stream::Value => "COALESCE(t.pickled, t.value)",
    }
}

/// The location of a long value; from the columns `value` and `pickled`.
pub(super) fn long_value(column: ValueRef) -> Option<InFile> {
    match column {
        // A pickle begins with another byte, and JSON is a text.
        ValueRef::Blob(blob) if blob.first() == Some(&IN_FILE) => match stored(column) {
            Stored::InFile(file) => Some(file),
            Stored::Inline(_) => None,
        },
        _ => None,
    }
}

/// Parses the result of [`so_far`]: `t` and `b` for texts and blobs, each with its bytes as hexadecimal digits.
fn joined(rows: &[u8]) -> Option<Stored> {
    let mut bytes = Vec::new();
    for row in rows.split(|byte| *byte == b',') {
        let (kind, digits) = row.split_first()?;
        let content = hex::decode(digits).ok()?;
        match (kind, Stored::decode(content.clone().into())) {
            (b'b', Some(Stored::Inline(more))) => bytes.extend_from_slice(&more),
            (b'b', Some(in_file)) => return Some(in_file),
            (b'b', None) => return None,
            _ => bytes.extend_from_slice(&content),
        }
    }
    Some(Stored::Inline(bytes.into()))
}

/// A column of `task`, `attempt` or `output`, or of [`so_far`]. Unknown formats are treated as bytes.
pub(super) fn stored(value: ValueRef) -> Stored {
    match value {
        ValueRef::Text(text) => Stored::Inline(Bytes::copy_from_slice(text)),
        ValueRef::Blob(blob) => {
            let blob = Bytes::copy_from_slice(blob);
            Stored::decode(blob.clone()).unwrap_or(Stored::Inline(blob))
        }
        _ => Stored::Inline(Bytes::new()),
    }
}

pub(super) fn output(row: &Row, column: usize) -> rusqlite::Result<Output> {
    Ok(stored(row.get_ref(column)?).output())
}

pub(super) fn stream_of(name: &str) -> Stream {
    Stream::ALL
        .into_iter()
        .find(|stream| stream.as_str() == name)
        .unwrap_or(Stream::Stdout)
}

/// Recorded bytes of an unfinished task's run.
pub(super) fn written(connection: &Connection, task: i64) -> rusqlite::Result<Written> {
    let mut select = connection.prepare_cached("SELECT stream, text FROM output WHERE task = ?1")?;
    let mut rows = select.query([task])?;
    let mut written = Written::default();
    while let Some(row) = rows.next()? {
        written[stream_of(row.get_ref(0)?.as_str()?) as usize] += stored(row.get_ref(1)?).size();
    }
    Ok(written)
}

/// The files beside one database.
#[derive(Clone, Debug)]
pub(super) struct Outputs {
    directory: PathBuf,
}

impl Outputs {
    pub(super) fn beside(database: &Path) -> Outputs {
        Outputs {
            directory: file::with_suffix(database, "-outputs"),
        }
    }

    fn path(&self, task: TaskId, run: u32, stream: Stream) -> PathBuf {
        self.directory.join(format!("{}-{run}-{}", task.row_id(), stream.as_str()))
    }

    fn input_path(&self, task: i64) -> PathBuf {
        self.directory.join(format!("{task}{INPUT}"))
    }

    /// Stores an input that is too long for a row in a file; returns the content of its column.
    pub(super) fn keep_input(&self, task: i64, input: &[u8], durability: Durability) -> rusqlite::Result<Option<Vec<u8>>> {
        // A file has the input exactly; a row has text.
        if input.len() <= INLINE || std::str::from_utf8(input).is_err() {
            return Ok(None);
        }
        self.write_file(&self.input_path(task), 0, input, durability)?;
        let (run, size) = (0, input.len() as u64);
        let head = Bytes::copy_from_slice(&input[..HEAD]);
        Ok(Some(InFile { run, size, head }.encode()))
    }

    /// An input that is in a file, according to its column.
    pub(super) fn long_input(&self, task: i64, column: ValueRef) -> rusqlite::Result<Option<Bytes>> {
        let file = long_value(column);
        file.map(|file| read_file(&self.input_path(task), 0, file.size as usize))
            .transpose()
    }

    /// An error that names the file, unlike SQLite's own.
    fn failed(path: &Path, error: io::Error) -> rusqlite::Error {
        let path = path.to_path_buf();
        rusqlite::Error::ToSqlConversionFailure(Box::new(FileError { path, error }))
    }

    /// Writes at `at`, the end of the recorded bytes, and truncates the file after that.
    pub(super) fn write(
        &self,
        task: TaskId,
        run: u32,
        stream: Stream,
        at: u64,
        bytes: &[u8],
        durability: Durability,
    ) -> rusqlite::Result<()> {
        self.write_file(&self.path(task, run, stream), at, bytes, durability)
    }

    fn write_file(&self, path: &Path, at: u64, bytes: &[u8], durability: Durability) -> rusqlite::Result<()> {
        let write = || -> io::Result<()> {
            let open = || OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
            let file = match open() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
                    open()?
                }
                opened => opened?,
            };
            file.write_all_at(bytes, at)?;
            if file.metadata()?.len() > at + bytes.len() as u64 {
                file.set_len(at + bytes.len() as u64)?;
            }
            if durability == Durability::Full {
                file.sync_all()?;
                if at == 0 {
                    File::open(&self.directory)?.sync_all()?;
                }
            }
            Ok(())
        };
        write().map_err(|error| Outputs::failed(path, error))
    }

    /// Up to `limit` bytes from `start` on.
    pub(super) fn read(&self, task: TaskId, stream: Stream, stored: &Stored, start: u64, limit: usize) -> rusqlite::Result<Bytes> {
        let left = stored.size().saturating_sub(start);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(limit);
        match stored {
            Stored::Inline(bytes) => {
                let start = bytes.len() - left as usize;
                Ok(bytes.slice(start..start + length))
            }
            Stored::InFile(in_file) => read_file(&self.path(task, in_file.run, stream), start, length),
        }
    }

    /// Its file, if it is in one.
    pub(super) fn file(&self, task: TaskId, stream: Stream, stored: &Stored) -> Option<PathBuf> {
        match stored {
            Stored::Inline(_) => None,
            Stored::InFile(in_file) => Some(self.path(task, in_file.run, stream)),
        }
    }

    pub(super) fn remove(&self, task: TaskId, run: u32, stream: Stream) {
        let _ = fs::remove_file(self.path(task, run, stream));
    }

    /// Removes the files of tasks and runs that are not recorded any more, and of superseded values.
    pub(super) fn sweep(&self, connection: &Connection) -> rusqlite::Result<()> {
        let Ok(found) = fs::read_dir(&self.directory) else {
            return Ok(());
        };
        let sql = "SELECT 1 FROM task WHERE id = ?1 AND (run = ?2 OR EXISTS (SELECT 1 FROM attempt WHERE task = ?1 AND run = ?2))";
        let mut known = connection.prepare_cached(sql)?;
        let sql = "SELECT 1 FROM task WHERE id = ?1 AND run = ?2 AND (completed IS NULL OR typeof(value) = 'blob' OR substr(pickled, 1, 1) = x'01') \
                   UNION ALL SELECT 1 FROM attempt WHERE task = ?1 AND run = ?2 AND (typeof(value) = 'blob' OR substr(pickled, 1, 1) = x'01')";
        let mut known_value = connection.prepare_cached(sql)?;
        let sql = "SELECT 1 FROM task WHERE id = ?1 AND typeof(input) = 'blob'";
        let mut known_input = connection.prepare_cached(sql)?;
        for entry in found.flatten() {
            if let Some(task) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.strip_suffix(INPUT)?.parse::<i64>().ok())
            {
                if known_input.query_row([task], |_| Ok(())).optional()?.is_none() {
                    let _ = fs::remove_file(entry.path());
                }
                continue;
            }
            let Some((task, run, stream)) = entry.file_name().to_str().and_then(parse_name) else {
                continue;
            };
            let known = if stream == Stream::Value { &mut known_value } else { &mut known };
            let is_known = known.query_row((task, run), |_| Ok(())).optional()?.is_some();
            if !is_known {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }
}

fn read_file(path: &Path, start: u64, length: usize) -> rusqlite::Result<Bytes> {
    let mut bytes = vec![0; length];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut bytes, start));
    read.map_err(|error| Outputs::failed(path, error))?;
    Ok(bytes.into())
}

fn parse_name(name: &str) -> Option<(i64, u32, Stream)> {
    let mut parts = name.split('-');
    let (task, run, stream) = (parts.next()?, parts.next()?, parts.next()?);
    let stream = Stream::ALL.into_iter().find(|known| known.as_str() == stream)?;
    parts.next().is_none().then_some((task.parse().ok()?, run.parse().ok()?, stream))
}
