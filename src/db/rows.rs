//! Converts rows of the database to those of the model.
use super::outputs::{self, Outputs};
use crate::model::definition::MapDefinition;
use crate::model::output::Stream;
use crate::model::pickled::Pickled;
use crate::model::task::{Ask, AttemptRow, Cause, Counts, MapRow, Outcome, TaskError, TaskRow, TaskState};
use crate::model::{EngineId, MapId, TaskId, UnixTime};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rusqlite::Row;
use rusqlite::types::ValueRef;
use serde_json::value::{RawValue, to_raw_value};

/// The first schema version that records the type of a pickled value.
const TYPES_SINCE: i32 = 8;
/// ... and the first that records what attempts ask for and use, and why they fail.
pub(super) const ATTEMPTS_SINCE: i32 = 14;

/// The columns for [`task_row`], of `task t` in a file with this schema version. `input`, `msg_id` and `label` are expressions.
pub(super) fn task_columns(version: i32, brief: bool, input: &str, msg_id: &str, label: &str) -> String {
    let long = if brief {
        "NULL, NULL, NULL, NULL, NULL, NULL".to_string()
    } else {
        let (stdout, stderr) = (outputs::so_far(Stream::Stdout), outputs::so_far(Stream::Stderr));
        let python_type = if version < TYPES_SINCE { "NULL" } else { "t.type" };
        format!("t.value, t.pickled, {stdout}, {stderr}, t.traceback, {python_type}")
    };
    format!(
        "t.id, t.state, t.engine, t.host, t.attempts, t.submitted, t.started, t.completed, t.exit_code, {input}, t.ename, t.evalue, \
         t.repr, {long}, {msg_id}, {label}, t.run, {}",
        if version < ATTEMPTS_SINCE {
            "NULL, NULL, NULL"
        } else {
            "t.peak_memory, t.cause, t.ask"
        }
    )
}

pub(super) fn state_of(state: &str) -> rusqlite::Result<TaskState> {
    state
        .parse()
        .map_err(|error: String| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.into()))
}

pub(super) fn task_row(row: &Row, outputs: &Outputs) -> rusqlite::Result<TaskRow> {
    let (started, completed): (Option<f64>, Option<f64>) = (row.get(6)?, row.get(7)?);
    let (value, pickled, value_size) = value(row, (13, 14, 18, 12))?;
    let ename: Option<String> = row.get(10)?;
    let error = match ename {
        None => None,
        Some(ename) => Some(TaskError {
            ename,
            evalue: row.get::<_, Option<String>>(11)?.unwrap_or_default(),
            traceback: row.get::<_, Option<String>>(17)?.unwrap_or_default(),
        }),
    };
    Ok(TaskRow {
        task: TaskId::from_row_id(row.get(0)?),
        state: state_of(row.get_ref(1)?.as_str()?)?,
        input: match outputs.long_input(row.get(0)?, row.get_ref(9)?)? {
            Some(text) => String::from_utf8(text.into())
                .ok()
                .and_then(|text| RawValue::from_string(text).ok()),
            None => json(row, 9)?,
        },
        value,
        pickled,
        value_size,
        repr: row.get(12)?,
        stdout: outputs::output(row, 15)?,
        stderr: outputs::output(row, 16)?,
        exit_code: row.get(8)?,
        error,
        engine: row.get::<_, Option<u32>>(2)?.map(EngineId),
        host: row.get(3)?,
        attempts: row.get(4)?,
        run: row.get(21)?,
        submitted: UnixTime(row.get(5)?),
        started: started.map(UnixTime),
        completed: completed.map(UnixTime),
        duration: started.zip(completed).map(|(from, to)| UnixTime(to).since(UnixTime(from))),
        msg_id: row.get(19)?,
        label: row.get(20)?,
        peak_memory: peak_memory(row, 22)?,
        cause: row.get::<_, Option<String>>(23)?.map(Cause::from),
        ask: ask(row, 24)?,
    })
}

fn peak_memory(row: &Row, column: usize) -> rusqlite::Result<Option<u64>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(|bytes| bytes.max(0) as u64))
}

/// NULL, and what a newer version has written, is the map's own request.
pub(super) fn ask(row: &Row, column: usize) -> rusqlite::Result<Option<Ask>> {
    Ok(row
        .get_ref(column)?
        .as_str_or_null()?
        .and_then(|text| serde_json::from_str(text).ok()))
}

/// JSON text; text that is not JSON becomes a JSON string.
fn json(row: &Row, column: usize) -> rusqlite::Result<Option<Box<RawValue>>> {
    let Some(text) = row.get_ref(column)?.as_str_or_null()? else {
        return Ok(None);
    };
    let raw = RawValue::from_string(text.to_owned()).or_else(|_| serde_json::value::to_raw_value(text));
    Ok(raw.ok())
}

/// JSON, a pickle, the size of a value in a file.
type Value = (Option<Box<RawValue>>, Option<Pickled>, Option<u64>);

/// A value, out of the columns `value`, `pickled`, `type` and `repr`. Up to version 7 a pickle is base64, with a `repr` alone beside it.
fn value(row: &Row, (value, pickled, python_type, repr): (usize, usize, usize, usize)) -> rusqlite::Result<Value> {
    if let Some(file) = outputs::long_value(row.get_ref(value)?) {
        return Ok((None, None, Some(file.size)));
    }
    let value = json(row, value)?;
    if let Some(file) = outputs::long_value(row.get_ref(pickled)?) {
        let python_type = row.get::<_, Option<String>>(python_type)?.unwrap_or_else(|| "object".into());
        let bytes = Bytes::new();
        return Ok((value, Some(Pickled { python_type, bytes }), Some(file.size)));
    }
    let bytes = match row.get_ref(pickled)? {
        ValueRef::Blob(bytes) => Bytes::copy_from_slice(bytes),
        ValueRef::Text(text) => match STANDARD.decode(text) {
            Ok(bytes) => bytes.into(),
            Err(_) => return Ok((value, None, None)),
        },
        _ => return Ok((value, None, None)),
    };
    let shown = match value {
        Some(value) => Some(value),
        None => row.get_ref(repr)?.as_str_or_null()?.and_then(|repr| to_raw_value(repr).ok()),
    };
    let python_type = row.get::<_, Option<String>>(python_type)?.unwrap_or_else(|| "object".into());
    Ok((shown, Some(Pickled { python_type, bytes }), None))
}

/// The approximate size of the row in a message.
pub(super) fn size(row: &TaskRow) -> usize {
    let raw = |value: &Option<Box<RawValue>>| value.as_ref().map_or(0, |v| v.get().len());
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let error = row.error.as_ref().map_or(0, |e| e.ename.len() + e.evalue.len() + e.traceback.len());
    200 + raw(&row.input)
        + raw(&row.value)
        + row.pickled.as_ref().map_or(0, |p| p.bytes.len())
        + text(&row.repr)
        + row.stdout.bytes.len()
        + row.stderr.bytes.len()
        + error
}

pub(super) const MAP_COLUMNS: &str =
    "id, kind, name, label, submitted, completed, closed, total, ok, error, aborted, timeout, lost, running, assigned";

pub(super) fn map_row(row: &Row) -> rusqlite::Result<MapRow> {
    Ok(MapRow {
        map: MapId(row.get(0)?),
        kind: row.get(1)?,
        name: row.get(2)?,
        label: row.get(3)?,
        submitted: UnixTime(row.get(4)?),
        completed: row.get::<_, Option<f64>>(5)?.map(UnixTime),
        closed: row.get(6)?,
        counts: counts(row, 7)?,
    })
}

pub(super) fn definition(row: &Row, column: usize) -> rusqlite::Result<MapDefinition> {
    let text = row.get_ref(column)?.as_str()?;
    let definition: MapDefinition = serde_json::from_str(text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error.into()))?;
    Ok(definition.with_bundle())
}

/// `total, ok, error, aborted, timeout, lost, running, assigned`, beginning at `column`.
pub(super) fn counts(row: &Row, at: usize) -> rusqlite::Result<Counts> {
    let count = |column: usize| row.get::<_, i64>(column).map(|n| n.max(0) as u64);
    Ok(Counts {
        total: count(at)?,
        ok: count(at + 1)?,
        error: count(at + 2)?,
        aborted: count(at + 3)?,
        timeout: count(at + 4)?,
        lost: count(at + 5)?,
        running: count(at + 6)?,
        assigned: count(at + 7)?,
    })
}

/// The columns for [`attempt_row`].
pub(super) fn attempt_columns(version: i32) -> String {
    let python_type = if version < TYPES_SINCE { "NULL" } else { "type" };
    format!(
        "run, engine, state, crashed, started, completed, exit_code, value, pickled, repr, stdout, stderr, ename, evalue, traceback, \
         host, {python_type}, {}",
        if version < ATTEMPTS_SINCE {
            "NULL, NULL, NULL"
        } else {
            "peak_memory, cause, ask"
        }
    )
}

pub(super) fn attempt_row(row: &Row) -> rusqlite::Result<AttemptRow> {
    let text = |column: usize| row.get::<_, Option<String>>(column);
    let ended = UnixTime(row.get::<_, Option<f64>>(5)?.unwrap_or_default());
    let error = match text(12)? {
        None => None,
        Some(ename) => Some(TaskError {
            ename,
            evalue: text(13)?.unwrap_or_default(),
            traceback: text(14)?.unwrap_or_default(),
        }),
    };
    let (value, pickled, value_size) = value(row, (7, 8, 16, 9))?;
    let outcome = Outcome {
        status: state_of(row.get_ref(2)?.as_str()?)?,
        value,
        pickled,
        value_size,
        stdout: outputs::output(row, 10)?,
        stderr: outputs::output(row, 11)?,
        exit_code: row.get(6)?,
        error,
        crashed: row.get(3)?,
        cause: row.get::<_, Option<String>>(18)?.map(Cause::from),
        peak_memory: peak_memory(row, 17)?,
        started: row.get::<_, Option<f64>>(4)?.map_or(ended, UnixTime),
        ended,
    };
    Ok(AttemptRow {
        run: row.get(0)?,
        engine: row.get::<_, Option<u32>>(1)?.map(EngineId),
        host: row.get(15)?,
        ask: ask(row, 19)?,
        outcome,
    })
}
