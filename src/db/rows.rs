//! Rows of the database as the model's rows.
use super::batch::state_of;
use crate::model::definition::MapDefinition;
use crate::model::task::{AttemptRow, Counts, MapRow, Outcome, TaskError, TaskRow};
use crate::model::{EngineId, MapId, TaskId, UnixTime};
use rusqlite::Row;
use serde_json::value::RawValue;

/// What [`task_row`] reads, of `task t`. `msg_id` and `label` are expressions for the last two columns.
pub fn task_columns(brief: bool, msg_id: &str, label: &str) -> String {
    let long = if brief {
        "NULL, NULL, NULL, NULL, NULL".to_string()
    } else {
        let output = |stream| {
            format!(
                "CASE WHEN t.completed IS NULL THEN (SELECT group_concat(text, '') FROM \
                 (SELECT text FROM output WHERE task = t.id AND stream = '{stream}' ORDER BY id)) ELSE t.{stream} END"
            )
        };
        format!("t.value, t.pickled, {}, {}, t.traceback", output("stdout"), output("stderr"))
    };
    format!(
        "t.id, t.state, t.engine, t.host, t.attempts, t.submitted, t.started, t.completed, t.exit_code, t.input, t.ename, t.evalue, \
         t.repr, {long}, {msg_id}, {label}, t.run"
    )
}

pub fn task_row(row: &Row) -> rusqlite::Result<TaskRow> {
    let (started, completed): (Option<f64>, Option<f64>) = (row.get(6)?, row.get(7)?);
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
        input: json(row, 9)?,
        value: json(row, 13)?,
        pickled: row.get(14)?,
        repr: row.get(12)?,
        stdout: row.get::<_, Option<String>>(15)?.unwrap_or_default(),
        stderr: row.get::<_, Option<String>>(16)?.unwrap_or_default(),
        exit_code: row.get(8)?,
        error,
        engine: row.get::<_, Option<u32>>(2)?.map(EngineId),
        host: row.get(3)?,
        attempts: row.get(4)?,
        run: row.get(20)?,
        submitted: UnixTime(row.get(5)?),
        started: started.map(UnixTime),
        completed: completed.map(UnixTime),
        duration: started.zip(completed).map(|(from, to)| UnixTime(to).since(UnixTime(from))),
        msg_id: row.get(18)?,
        label: row.get(19)?,
    })
}

/// JSON text; what someone else wrote there that is not JSON is given as a JSON string.
fn json(row: &Row, column: usize) -> rusqlite::Result<Option<Box<RawValue>>> {
    let Some(text) = row.get_ref(column)?.as_str_or_null()? else {
        return Ok(None);
    };
    let raw = RawValue::from_string(text.to_owned()).or_else(|_| serde_json::value::to_raw_value(text));
    Ok(raw.ok())
}

/// Bytes that the row takes in a message, about.
pub fn size(row: &TaskRow) -> usize {
    let raw = |value: &Option<Box<RawValue>>| value.as_ref().map_or(0, |v| v.get().len());
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let error = row.error.as_ref().map_or(0, |e| e.ename.len() + e.evalue.len() + e.traceback.len());
    200 + raw(&row.input) + raw(&row.value) + text(&row.pickled) + text(&row.repr) + row.stdout.len() + row.stderr.len() + error
}

pub const MAP_COLUMNS: &str =
    "id, kind, name, label, submitted, completed, closed, total, ok, error, aborted, timeout, lost, running, assigned";

pub fn map_row(row: &Row) -> rusqlite::Result<MapRow> {
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

pub fn definition(row: &Row, column: usize) -> rusqlite::Result<MapDefinition> {
    let text = row.get_ref(column)?.as_str()?;
    let definition: MapDefinition = serde_json::from_str(text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error.into()))?;
    Ok(definition.with_bundle())
}

/// `total, ok, error, aborted, timeout, lost, running, assigned` from that column on.
pub fn counts(row: &Row, at: usize) -> rusqlite::Result<Counts> {
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

pub const ATTEMPT_COLUMNS: &str = "run, engine, state, crashed, started, completed, exit_code, value, pickled, repr, stdout, stderr, \
                                   ename, evalue, traceback, host";

pub fn attempt_row(row: &Row) -> rusqlite::Result<AttemptRow> {
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
    let outcome = Outcome {
        status: state_of(row.get_ref(2)?.as_str()?)?,
        value: json(row, 7)?,
        pickled: text(8)?,
        repr: text(9)?,
        stdout: text(10)?.unwrap_or_default(),
        stderr: text(11)?.unwrap_or_default(),
        exit_code: row.get(6)?,
        error,
        crashed: row.get(3)?,
        whole_output: false,
        started: row.get::<_, Option<f64>>(4)?.map_or(ended, UnixTime),
        ended,
    };
    Ok(AttemptRow {
        run: row.get(0)?,
        engine: row.get::<_, Option<u32>>(1)?.map(EngineId),
        host: row.get(15)?,
        outcome,
    })
}
