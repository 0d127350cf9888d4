//! Exact return values of tasks, for `--reduce`.
use super::outputs::{self, Stored};
use super::{DbError, Reader};
use crate::model::TaskId;
use crate::model::output::Stream;
use crate::model::task::TaskState;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rusqlite::OptionalExtension;
use rusqlite::types::ValueRef;

/// A value, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundValue {
    /// Total size.
    pub size: u64,
    /// True for a pickle, false for JSON.
    pub pickled: bool,
    pub bytes: Bytes,
}

impl Reader {
    /// The values of the first of these tasks (of the first one from `start` on), up to `limit` bytes in total; and why the next one
    /// is unavailable, if so.
    pub(crate) fn values(&self, of: &[TaskId], start: u64, limit: usize) -> Result<(Vec<FoundValue>, Option<String>), DbError> {
        self.read("read values from", |connection| {
            let mut select = connection.prepare_cached("SELECT state, value, pickled FROM task WHERE id = ?1")?;
            let (mut found, mut room) = (Vec::new(), limit);
            for (i, task) in of.iter().enumerate() {
                let row = select.query_row([task.row_id()], |row| {
                    let pickled = row.get_ref(2)?;
                    let stored = match (pickled, row.get_ref(1)?) {
                        (ValueRef::Null, ValueRef::Null) => Stored::Inline(Bytes::from_static(b"null")),
                        (ValueRef::Null, value) => outputs::stored(value),
                        // In a file older than version 8.
                        (ValueRef::Text(text), _) => Stored::Inline(STANDARD.decode(text).unwrap_or_default().into()),
                        (pickled, _) => outputs::stored(pickled),
                    };
                    Ok((row.get::<_, String>(0)?, pickled != ValueRef::Null, stored))
                });
                let why = match row.optional()? {
                    Some((state, pickled, stored)) if state == TaskState::Ok.as_str() => {
                        let start = if i == 0 { start } else { 0 };
                        let bytes = self.outputs.read(*task, Stream::Value, &stored, start, room)?;
                        let (size, end) = (stored.size(), start + bytes.len() as u64);
                        room -= bytes.len();
                        found.push(FoundValue { size, pickled, bytes });
                        if room == 0 || end < size {
                            break;
                        }
                        continue;
                    }
                    Some((state, ..)) => format!("task {task} has no value: it is {state}"),
                    None => format!("the value of task {task} is not on record any more: it was purged"),
                };
                return Ok((found, Some(why)));
            }
            Ok((found, None))
        })
    }
}
