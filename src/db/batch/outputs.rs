//! Records output of tasks: rows of `output` while the task runs, then a column of the task; a file if it is long.
use super::Batch;
use crate::db::outputs::{self, InFile, Stored};
use crate::model::TaskId;
use crate::model::output::{HEAD, INLINE, Output, Stream};
use crate::model::task::Outcome;
use bytes::Bytes;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{ToSql, params};

/// The output of an attempt recorded before its end, and its value, if long.
pub(super) type Before = [Option<Stored>; 3];

/// The content of a column.
pub(super) enum Column {
    Null,
    Text(Bytes),
    Blob(Vec<u8>),
}

impl ToSql for Column {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Column::Null => ValueRef::Null,
            Column::Text(text) => ValueRef::Text(text),
            Column::Blob(blob) => ValueRef::Blob(blob),
        }))
    }
}

/// The column for a short output.
fn short(bytes: Bytes) -> Column {
    match std::str::from_utf8(&bytes) {
        // An empty output, the most frequent one, is NULL.
        Ok("") => Column::Null,
        Ok(_) => Column::Text(bytes),
        Err(_) => Column::Blob(outputs::encode_bytes(&bytes)),
    }
}

impl Batch<'_> {
    pub(super) fn output_added(&mut self, task: TaskId, stream: Stream, bytes: &Bytes) -> rusqlite::Result<()> {
        match self.prior(task, "OutputAdded")? {
            Some(prior) if !prior.state.is_done() => self.add_output(task, prior.run, stream, bytes),
            _ => Ok(()),
        }
    }

    pub(super) fn add_output(&mut self, task: TaskId, run: u32, stream: Stream, bytes: &Bytes) -> rusqlite::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.known.output = true;
        let before = self.rows(task, Some(stream))?[stream as usize].take();
        if stream != Stream::Value && before.as_ref().map_or(0, Stored::size) + bytes.len() as u64 <= INLINE as u64 {
            let column = short(bytes.clone());
            let add = "INSERT INTO output (task, stream, text) VALUES (?1, ?2, ?3)";
            self.connection
                .prepare_cached(add)?
                .execute(params![task.row_id(), stream.as_str(), column])?;
            return Ok(());
        }
        let was_inline = matches!(&before, Some(Stored::Inline(_)));
        let in_file = self.append(task, run, stream, before, bytes)?.encode();
        let row = params![task.row_id(), stream.as_str(), in_file];
        if was_inline {
            let drop = "DELETE FROM output WHERE task = ?1 AND stream = ?2";
            self.connection
                .prepare_cached(drop)?
                .execute(params![task.row_id(), stream.as_str()])?;
        }
        let update = "UPDATE output SET text = ?3 WHERE task = ?1 AND stream = ?2";
        if was_inline || self.connection.prepare_cached(update)?.execute(row)? == 0 {
            let add = "INSERT INTO output (task, stream, text) VALUES (?1, ?2, ?3)";
            self.connection.prepare_cached(add)?.execute(row)?;
        }
        Ok(())
    }

    /// Appends a long output to its file.
    fn append(&mut self, task: TaskId, run: u32, stream: Stream, before: Option<Stored>, more: &[u8]) -> rusqlite::Result<InFile> {
        let mut file = match before {
            Some(Stored::InFile(file)) => file,
            Some(Stored::Inline(bytes)) => {
                self.write(task, run, stream, 0, &bytes)?;
                InFile {
                    run,
                    size: bytes.len() as u64,
                    head: bytes.slice(..bytes.len().min(HEAD)),
                }
            }
            None => InFile {
                run,
                size: 0,
                head: Bytes::new(),
            },
        };
        if file.head.len() < HEAD {
            let room = HEAD - file.head.len();
            file.head = [&file.head[..], &more[..more.len().min(room)]].concat().into();
        }
        self.write(task, file.run, stream, file.size, more)?;
        file.size += more.len() as u64;
        Ok(file)
    }

    fn write(&self, task: TaskId, run: u32, stream: Stream, at: u64, bytes: &[u8]) -> rusqlite::Result<()> {
        self.outputs.write(task, run, stream, at, bytes, self.durability)
    }

    /// A task's rows in `output`, of one stream or both.
    fn rows(&mut self, task: TaskId, only: Option<Stream>) -> rusqlite::Result<Before> {
        let mut load = self
            .connection
            .prepare_cached("SELECT stream, text FROM output WHERE task = ?1 AND (?2 IS NULL OR stream = ?2) ORDER BY id")?;
        let mut rows = load.query(params![task.row_id(), only.map(Stream::as_str)])?;
        let mut found = Before::default();
        while let Some(row) = rows.next()? {
            let place = outputs::stream_of(row.get_ref(0)?.as_str()?) as usize;
            let more = outputs::stored(row.get_ref(1)?);
            found[place] = Some(match (found[place].take(), more) {
                (Some(Stored::Inline(before)), Stored::Inline(more)) => Stored::Inline([before, more].concat().into()),
                (_, more) => more,
            });
        }
        Ok(found)
    }

    /// Takes the output recorded before the attempt ended.
    pub(super) fn take_output(&mut self, task: TaskId) -> rusqlite::Result<Before> {
        if !self.known.output {
            return Ok(Before::default());
        }
        let taken = self.rows(task, None)?;
        if taken.iter().any(Option::is_some) {
            self.connection
                .prepare_cached("DELETE FROM output WHERE task = ?1")?
                .execute([task.row_id()])?;
        }
        Ok(taken)
    }

    /// Discards a superseded value with this commit.
    pub(super) fn drop_value(&mut self, task: TaskId, value: Option<Stored>) {
        if let Some(Stored::InFile(file)) = value {
            self.dropped.push((task, file.run, Stream::Value));
        }
    }

    /// A long value as stored in `value` and `pickled`; None if the outcome has none.
    pub(super) fn long_value(&mut self, task: TaskId, value: Option<Stored>, outcome: &Outcome) -> Option<[Option<Vec<u8>>; 2]> {
        match (value, outcome.value_size) {
            (Some(Stored::InFile(file)), Some(size)) if file.size == size => {
                let blob = Some(file.encode());
                Some(if outcome.pickled.is_some() { [None, blob] } else { [blob, None] })
            }
            (value, _) => {
                self.drop_value(task, value);
                None
            }
        }
    }

    /// The column for the recorded output followed by the rest.
    pub(super) fn column(
        &mut self,
        task: TaskId,
        run: u32,
        stream: Stream,
        before: Option<Stored>,
        rest: &Output,
    ) -> rusqlite::Result<Column> {
        let size = before.as_ref().map_or(0, Stored::size) + rest.bytes.len() as u64;
        match before {
            None if size <= INLINE as u64 => Ok(short(rest.bytes.clone())),
            Some(Stored::Inline(before)) if size <= INLINE as u64 => Ok(short([before, rest.bytes.clone()].concat().into())),
            before => Ok(Column::Blob(self.append(task, run, stream, before, &rest.bytes)?.encode())),
        }
    }
}
