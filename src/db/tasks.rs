//! A [`TaskQuery`] as SQL. Only enums become SQL text; every value is a parameter.
use super::error::QueryError;
use super::rows::{ATTEMPTS_SINCE, task_columns};
use crate::model::query::{Column, Comparison, Condition, ConditionValue, TaskQuery};
use crate::model::task::{Counts, TaskState};
use rusqlite::types::Value;

/// SQL with its parameters, in the order of their question marks.
#[derive(Debug, Default)]
pub(super) struct Sql {
    pub text: String,
    pub values: Vec<Value>,
}

const LABEL: &str = "COALESCE(r.label, m.label)";

/// FROM and WHERE. Maps come first in the join, so that a map's tasks are one range of rows, in order.
fn matching(query: &TaskQuery) -> Result<Sql, QueryError> {
    let mut values = Vec::new();
    let mut wheres: Vec<String> = Vec::new();
    let unfinished = !query.states.is_empty() && query.states.iter().all(|s| !s.is_done());
    let failed = !query.states.is_empty() && query.states.iter().all(|s| s.is_failed());
    let index = match (unfinished, failed) {
        (true, _) => "INDEXED BY task_unfinished",
        (_, true) => "INDEXED BY task_failed",
        _ => "",
    };
    let from = if query.tasks.is_empty() {
        format!("map m CROSS JOIN task t {index} ON t.id BETWEEN m.id << 32 AND (m.id << 32) | 4294967295")
    } else {
        values.push(json_list(query.tasks.iter().map(|task| task.row_id())));
        "(SELECT DISTINCT value AS id FROM json_each(?)) j CROSS JOIN task t ON t.id = j.id CROSS JOIN map m ON m.id = t.id >> 32".into()
    };
    if !query.maps.is_empty() {
        wheres.push("m.id IN (SELECT value FROM json_each(?))".into());
        values.push(json_list(query.maps.iter().map(|map| map.0.into())));
    }
    if unfinished {
        wheres.push("t.completed IS NULL AND m.total > m.ok + m.error + m.aborted + m.timeout + m.lost".into());
    }
    if failed {
        wheres.push("t.completed IS NOT NULL AND t.state <> 'ok' AND m.error + m.aborted + m.timeout + m.lost > 0".into());
    }
    if !query.states.is_empty() {
        let states: Vec<_> = query.states.iter().map(|s| format!("'{}'", s.as_str())).collect();
        wheres.push(format!("t.state IN ({})", states.join(", ")));
    }
    if !query.engines.is_empty() {
        wheres.push("t.engine IN (SELECT value FROM json_each(?))".into());
        values.push(json_list(query.engines.iter().map(|engine| engine.0.into())));
    }
    if let Some(label) = &query.label {
        wheres.push(format!("{LABEL} = ?"));
        values.push(label.clone().into());
    }
    if let Some(since) = query.since {
        wheres.push("t.submitted >= ?".into());
        values.push(since.0.into());
    }
    for condition in &query.conditions {
        wheres.push(holds(condition, &mut values)?);
    }
    let mut text = format!("FROM {from} LEFT JOIN request r ON r.task = t.id");
    if !wheres.is_empty() {
        text = format!("{text} WHERE {}", wheres.join(" AND "));
    }
    Ok(Sql { text, values })
}

/// The text for a file with this schema version, which may lack a column: it is NULL there.
fn for_version(version: i32, text: String) -> String {
    match version < ATTEMPTS_SINCE {
        true => text.replace("t.peak_memory", "NULL").replace("t.cause", "NULL"),
        false => text,
    }
}

fn json_list(numbers: impl Iterator<Item = i64>) -> Value {
    serde_json::Value::from_iter(numbers).to_string().into()
}

/// The rows of a file with this schema version.
pub(super) fn rows(query: &TaskQuery, version: i32) -> Result<Sql, QueryError> {
    let Sql { text, mut values } = matching(query)?;
    let columns = task_columns(version, query.brief, "t.input", "r.msg_id", LABEL);
    let order = match query.sort {
        // NULLs come last in both directions.
        Some((column, descending)) => {
            let expression = expression(column);
            let direction = if descending { "DESC" } else { "ASC" };
            format!("({expression}) IS NULL, {expression} {direction}, m.id, t.id")
        }
        None if query.tasks.is_empty() => "m.id, t.id".into(),
        None => "t.id".into(),
    };
    let mut text = format!("SELECT {columns} {text} ORDER BY {order}");
    if query.limit.is_some() || query.offset > 0 {
        text.push_str(" LIMIT ? OFFSET ?");
        let signed = |n: u64| Value::from(i64::try_from(n).unwrap_or(i64::MAX));
        values.push(query.limit.map_or(Value::from(-1i64), signed));
        values.push(signed(query.offset));
    }
    let text = for_version(version, text);
    Ok(Sql { text, values })
}

/// The number of matching tasks without limit and offset.
pub(super) fn count(query: &TaskQuery, version: i32) -> Result<Sql, QueryError> {
    let Sql { text, values } = matching(query)?;
    Ok(Sql {
        text: for_version(version, format!("SELECT count(*) {text}")),
        values,
    })
}

/// Whether the maps' counters answer [`count`]: the query selects only by maps and states.
pub(super) fn is_counted(query: &TaskQuery) -> bool {
    let TaskQuery {
        tasks,
        states,
        engines,
        label,
        since,
        conditions,
        ..
    } = query;
    let split = states.contains(&TaskState::Waiting) != states.contains(&TaskState::Ready);
    tasks.is_empty() && engines.is_empty() && label.is_none() && since.is_none() && conditions.is_empty() && !split
}

/// The tasks in these states, of a query that [`is_counted`].
pub(super) fn counted(states: &[TaskState], counts: &Counts) -> u64 {
    if states.is_empty() {
        return counts.total;
    }
    let in_state = |state: &TaskState| match state {
        TaskState::Waiting => 0,
        // Together with the waiting ones, as `is_counted` sees to.
        TaskState::Ready => counts.pending().saturating_sub(counts.assigned + counts.running),
        TaskState::Assigned => counts.assigned,
        TaskState::Running => counts.running,
        TaskState::Ok => counts.ok,
        TaskState::Error => counts.error,
        TaskState::Aborted => counts.aborted,
        TaskState::Timeout => counts.timeout,
        TaskState::Lost => counts.lost,
    };
    TaskState::ALL.iter().filter(|state| states.contains(state)).map(in_state).sum()
}

fn expression(column: Column) -> &'static str {
    match column {
        Column::Map => "m.id",
        Column::Index => "(t.id & 4294967295)",
        Column::State => "t.state",
        Column::Engine => "t.engine",
        Column::Host => "t.host",
        Column::Attempts => "t.attempts",
        Column::ExitCode => "t.exit_code",
        Column::Duration => "max(t.completed - t.started, 0.0)",
        Column::Submitted => "t.submitted",
        Column::Started => "t.started",
        Column::Completed => "t.completed",
        Column::Input => "t.input",
        Column::Value => "COALESCE(t.value, t.repr)",
        Column::Error => "(t.ename || ': ' || COALESCE(t.evalue, ''))",
        Column::Stdout => "t.stdout",
        Column::Stderr => "t.stderr",
        Column::Label => LABEL,
        Column::PeakMemory => "t.peak_memory",
        Column::Cause => "t.cause",
    }
}

/// How JSON texts of numbers begin, as a GLOB pattern.
const NUMBER: &str = "[-0-9]*";

/// A comparison with NULL (the exit code of a call, the duration of a waiting task) is never true.
fn holds(condition: &Condition, values: &mut Vec<Value>) -> Result<String, QueryError> {
    let Condition { column, comparison, value } = condition;
    let expression = expression(*column);
    let text = match value {
        ConditionValue::Text(text) => text.clone(),
        ConditionValue::Number(number) => number.to_string(),
    };
    let number = match value {
        ConditionValue::Number(number) => Some(*number),
        ConditionValue::Text(text) => text.trim().parse().ok(),
    }
    .filter(|number: &f64| number.is_finite());
    let sign = match comparison {
        Comparison::Less => "<",
        Comparison::LessEqual => "<=",
        Comparison::Equal => "=",
        Comparison::NotEqual => "<>",
        Comparison::GreaterEqual => ">=",
        Comparison::Greater => ">",
        Comparison::Contains => {
            values.push(text.into());
            return Ok(format!("instr(CAST({expression} AS TEXT), ?) > 0"));
        }
    };
    if column.is_number() {
        let number = number.ok_or_else(|| QueryError::NoNumber(*column, text))?;
        values.push(number.into());
        return Ok(format!("{expression} {sign} ?"));
    }
    if !matches!(comparison, Comparison::Equal | Comparison::NotEqual) {
        let (Column::Input | Column::Value, Some(number)) = (column, number) else {
            values.push(text.into());
            return Ok(format!("{expression} {sign} ?"));
        };
        values.push(number.into());
        return Ok(format!("({expression} GLOB '{NUMBER}' AND CAST({expression} AS REAL) {sign} ?)"));
    }
    let quoted = serde_json::Value::from(text.as_str()).to_string();
    let (list, join) = if *comparison == Comparison::Equal {
        ("IN", "OR")
    } else {
        ("NOT IN", "AND")
    };
    match column {
        // `value=abc` means the JSON text "abc" too, `input=abc` that as the one argument; numbers are compared as such.
        Column::Value | Column::Input => {
            let equal = format!("{expression} {list} (?, ?, ?)");
            let spellings = [text, format!("[{quoted}]"), quoted].map(Value::from);
            let Some(number) = number else {
                values.extend(spellings);
                return Ok(equal);
            };
            values.push(number.into());
            values.extend(spellings);
            Ok(format!(
                "CASE WHEN {expression} GLOB '{NUMBER}' THEN CAST({expression} AS REAL) {sign} ? ELSE {equal} END"
            ))
        }
        // The error's name is sufficient.
        Column::Error => {
            values.extend([text.clone(), text].map(Value::from));
            Ok(format!("({expression} {sign} ? {join} t.ename {sign} ?)"))
        }
        _ => {
            values.push(text.into());
            Ok(format!("{expression} {sign} ?"))
        }
    }
}
