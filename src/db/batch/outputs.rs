//! What tasks write: rows of `output` while it is short and the task runs, then a column of the task; a file when it is long.
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

/// What a column is to have.
pub(super) enum Column {
    Nothing,
    Text(Bytes),
    Blob(Vec<u8>),
}

impl ToSql for Column {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Column::Nothing => ValueRef::Null,
            Column::Text(text) => ValueRef::Text(text),
            Column::Blob(blob) => ValueRef::Blob(blob),
        }))
    }
}

/// Of a short output.
fn short(bytes: Bytes) -> Column {
    match std::str::from_utf8(&bytes) {
        // An empty output is NULL: most tasks print nothing.
        Ok("") => Column::Nothing,
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
                .execute(params![task.row_id(), stream.word(), column])?;
            return Ok(());
        }
        let was_here = matches!(&before, Some(Stored::Here(_)));
        let in_file = self.append(task, run, stream, before, bytes)?.encode();
        let row = params![task.row_id(), stream.word(), in_file];
        if was_here {
            let drop = "DELETE FROM output WHERE task = ?1 AND stream = ?2";
            self.connection
                .prepare_cached(drop)?
                .execute(params![task.row_id(), stream.word()])?;
        }
        let update = "UPDATE output SET text = ?3 WHERE task = ?1 AND stream = ?2";
        if was_here || self.connection.prepare_cached(update)?.execute(row)? == 0 {
            let add = "INSERT INTO output (task, stream, text) VALUES (?1, ?2, ?3)";
            self.connection.prepare_cached(add)?.execute(row)?;
        }
        Ok(())
    }

    /// Brings a long output into its file, or more of it.
    fn append(&mut self, task: TaskId, run: u32, stream: Stream, before: Option<Stored>, more: &[u8]) -> rusqlite::Result<InFile> {
        let mut file = match before {
            Some(Stored::InFile(file)) => file,
            Some(Stored::Here(bytes)) => {
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

    /// The rows of a task in `output`, of both streams or one.
    fn rows(&mut self, task: TaskId, only: Option<Stream>) -> rusqlite::Result<Before> {
        let mut load = self
            .connection
            .prepare_cached("SELECT stream, text FROM output WHERE task = ?1 AND (?2 IS NULL OR stream = ?2) ORDER BY id")?;
        let mut rows = load.query(params![task.row_id(), only.map(Stream::word)])?;
        let mut found = Before::default();
        while let Some(row) = rows.next()? {
            let place = outputs::stream_of(row.get_ref(0)?.as_str()?) as usize;
            let more = outputs::stored(row.get_ref(1)?);
            found[place] = Some(match (found[place].take(), more) {
                (Some(Stored::Here(before)), Stored::Here(more)) => Stored::Here([before, more].concat().into()),
                (_, more) => more,
            });
        }
        Ok(found)
    }

    /// Takes what the attempt wrote before it ended.
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

    /// Of a value that did not stand nothing is left when this is committed.
    pub(super) fn drop_value(&mut self, task: TaskId, value: Option<Stored>) {
        if let Some(Stored::InFile(file)) = value {
            self.dropped.push((task, file.run, Stream::Value));
        }
    }

    /// As the columns `value` and `pickled` have a long value; None where the outcome has none.
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

    /// What was written before, and the rest, as a column has it.
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
            Some(Stored::Here(before)) if size <= INLINE as u64 => Ok(short([before, rest.bytes.clone()].concat().into())),
            before => Ok(Column::Blob(self.append(task, run, stream, before, &rest.bytes)?.encode())),
        }
    }
}
