//! The JSON and CSV forms of maps and tasks: times in ISO 8601 (UTC), durations in seconds. This is version 1 of a stable
//! format: keys are added, never changed.
use super::values::Inexact;
use crate::model::definition::MapDefinition;
use crate::model::output::Output;
use crate::model::resources::WHOLE_GPU;
use crate::model::task::{Ask, AttemptRow, Cause, MapRow, TaskError, TaskRow, TaskState};
use crate::model::{EngineId, MapId, TaskId, UnixTime};
use serde::Serialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;

#[derive(Serialize)]
pub(crate) struct MapView<'a> {
    pub map: MapId,
    pub kind: &'a str,
    pub name: &'a str,
    pub label: Option<&'a str>,
    /// `open` (inputs are still being sent), `queued`, `running`, `ok`, `failed`.
    pub state: &'static str,
    pub submitted: String,
    pub completed: Option<String>,
    pub duration: Option<f64>,
    pub tasks: u64,
    pub done: u64,
    pub ok: u64,
    pub failed: u64,
    pub pending: u64,
    pub running: u64,
    pub assigned: u64,
    pub error: u64,
    pub aborted: u64,
    pub timeout: u64,
    pub lost: u64,
}

/// The state of a map in one word.
pub(crate) fn map_state(row: &MapRow) -> &'static str {
    if row.completed.is_some() {
        if row.counts.failed() > 0 { "failed" } else { "ok" }
    } else if row.counts.running + row.counts.assigned > 0 {
        "running"
    } else if row.closed {
        "queued"
    } else {
        "open"
    }
}

impl<'a> MapView<'a> {
    pub(crate) fn new(row: &'a MapRow) -> MapView<'a> {
        let counts = &row.counts;
        MapView {
            map: row.map,
            kind: &row.kind,
            name: &row.name,
            label: row.label.as_deref(),
            state: map_state(row),
            submitted: row.submitted.to_iso(),
            completed: row.completed.map(UnixTime::to_iso),
            duration: row.completed.map(|end| micros(end.since(row.submitted))),
            tasks: counts.total,
            done: counts.done(),
            ok: counts.ok,
            failed: counts.failed(),
            pending: counts.pending(),
            running: counts.running,
            assigned: counts.assigned,
            error: counts.error,
            aborted: counts.aborted,
            timeout: counts.timeout,
            lost: counts.lost,
        }
    }
}

/// An output: text if it is UTF-8, else null and base64. A long one is truncated, with its full size.
#[derive(Serialize)]
pub(crate) struct OutputView<'a> {
    pub stdout: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout_size: Option<u64>,
    pub stderr: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr_size: Option<u64>,
}

impl<'a> OutputView<'a> {
    fn new(stdout: &'a Output, stderr: &'a Output) -> OutputView<'a> {
        let text = |output: &'a Output| match std::str::from_utf8(&output.bytes) {
            Ok(text) => Some(text.into()),
            // Truncated within a character, or not text.
            Err(error) if !output.is_whole() && error.error_len().is_none() => Some(Cow::Owned(
                String::from_utf8_lossy(&output.bytes[..error.valid_up_to()]).into_owned(),
            )),
            Err(_) => None,
        };
        let (out, err) = (text(stdout), text(stderr));
        OutputView {
            stdout_base64: out.is_none().then(|| stdout.base64()),
            stderr_base64: err.is_none().then(|| stderr.base64()),
            stdout: out,
            stderr: err,
            stdout_size: (!stdout.is_whole()).then_some(stdout.size),
            stderr_size: (!stderr.is_whole()).then_some(stderr.size),
        }
    }
}

#[derive(Serialize)]
pub(crate) struct TaskView<'a> {
    pub task: TaskId,
    pub map: MapId,
    pub index: u32,
    pub state: TaskState,
    pub input: Option<&'a RawValue>,
    pub value: Option<&'a RawValue>,
    #[serde(flatten)]
    pub inexact: Option<Inexact<'a>>,
    /// The displayed result of an ipyparallel client's execution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repr: Option<&'a str>,
    #[serde(flatten)]
    pub output: OutputView<'a>,
    pub exit_code: Option<i32>,
    pub error: Option<&'a TaskError>,
    pub engine: Option<EngineId>,
    pub host: Option<&'a str>,
    pub attempts: u32,
    /// The number of the current run; every retry and resubmission adds one.
    pub run: u32,
    pub submitted: String,
    pub started: Option<String>,
    pub completed: Option<String>,
    pub duration: Option<f64>,
    pub label: Option<&'a str>,
    /// In bytes, as far as measured.
    pub peak_memory: Option<u64>,
    /// Why it failed.
    pub cause: Option<&'a Cause>,
    /// Only for tasks of ipyparallel's clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msg_id: Option<&'a str>,
    /// Only for single tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definition: Option<&'a MapDefinition>,
    /// Why it waits, or where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explanation: Option<&'a str>,
    /// What its current or last attempt asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub earlier: Option<Vec<AttemptView<'a>>>,
}

/// What an attempt asked for.
#[derive(Serialize)]
pub(crate) struct RequestView {
    cpus: u32,
    mem_bytes: Option<u64>,
    gpus: f64,
    named: BTreeMap<String, u64>,
    limit_s: Option<f64>,
}

impl RequestView {
    pub(crate) fn new(definition: &MapDefinition, ask: Option<&Ask>) -> RequestView {
        let (options, ask) = (&definition.options, ask.copied().unwrap_or_default());
        RequestView {
            cpus: options.resources.cpus,
            mem_bytes: ask.mem_bytes.or(options.mem_bytes),
            gpus: f64::from(options.resources.gpus.thousandths) / f64::from(WHOLE_GPU),
            named: options.resources.named.clone(),
            limit_s: ask.limit_s().or(options.timeout_s),
        }
    }
}

/// An earlier attempt.
#[derive(Serialize)]
pub(crate) struct AttemptView<'a> {
    pub run: u32,
    pub engine: Option<EngineId>,
    pub host: Option<&'a str>,
    pub state: TaskState,
    pub error: Option<&'a TaskError>,
    #[serde(flatten)]
    pub output: OutputView<'a>,
    pub exit_code: Option<i32>,
    pub started: String,
    pub completed: String,
    pub duration: f64,
    pub peak_memory: Option<u64>,
    pub cause: Option<&'a Cause>,
    pub request: Option<RequestView>,
}

impl<'a> AttemptView<'a> {
    pub(crate) fn new(attempt: &'a AttemptRow, definition: Option<&MapDefinition>) -> AttemptView<'a> {
        let outcome = &attempt.outcome;
        AttemptView {
            run: attempt.run,
            engine: attempt.engine,
            host: attempt.host.as_deref(),
            state: outcome.status,
            error: outcome.error.as_ref(),
            output: OutputView::new(&outcome.stdout, &outcome.stderr),
            exit_code: outcome.exit_code,
            started: outcome.started.to_iso(),
            completed: outcome.ended.to_iso(),
            duration: micros(outcome.ended.since(outcome.started)),
            peak_memory: outcome.peak_memory,
            cause: outcome.cause.as_ref(),
            request: definition.map(|definition| RequestView::new(definition, attempt.ask.as_ref())),
        }
    }
}

impl<'a> TaskView<'a> {
    pub(crate) fn new(row: &'a TaskRow) -> TaskView<'a> {
        TaskView {
            task: row.task,
            map: row.task.map,
            index: row.task.index,
            state: row.state,
            input: row.input.as_deref(),
            value: row.value.as_deref(),
            inexact: row.pickled.as_ref().map(Inexact::of),
            repr: row.repr.as_deref(),
            output: OutputView::new(&row.stdout, &row.stderr),
            exit_code: row.exit_code,
            error: row.error.as_ref(),
            engine: row.engine,
            host: row.host.as_deref(),
            attempts: row.attempts,
            run: row.run,
            submitted: row.submitted.to_iso(),
            started: row.started.map(UnixTime::to_iso),
            completed: row.completed.map(UnixTime::to_iso),
            duration: row.duration.map(micros),
            label: row.label.as_deref(),
            peak_memory: row.peak_memory,
            cause: row.cause.as_ref(),
            msg_id: row.msg_id.as_deref(),
            definition: None,
            explanation: None,
            request: None,
            earlier: None,
        }
    }
}

pub(crate) const TASK_CSV_HEADER: [&str; 21] = [
    "task",
    "map",
    "index",
    "state",
    "input",
    "value",
    "repr",
    "stdout",
    "stderr",
    "exit_code",
    "error",
    "engine",
    "host",
    "attempts",
    "submitted",
    "started",
    "completed",
    "duration",
    "label",
    "peak_memory",
    "cause",
];

pub(crate) fn task_csv(row: &TaskRow) -> [Vec<u8>; 21] {
    let outputs = [row.stdout.bytes.to_vec(), row.stderr.bytes.to_vec()];
    let mut fields = task_csv_texts(row).map(String::into_bytes);
    [fields[7], fields[8]] = outputs;
    fields
}

fn task_csv_texts(row: &TaskRow) -> [String; 21] {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let raw = |t: &Option<Box<RawValue>>| t.as_ref().map(|r| r.get().to_string()).unwrap_or_default();
    let time = |t: Option<UnixTime>| t.map(UnixTime::to_iso).unwrap_or_default();
    [
        row.task.to_string(),
        row.task.map.to_string(),
        row.task.index.to_string(),
        row.state.to_string(),
        raw(&row.input),
        raw(&row.value),
        text(&row.repr),
        String::new(),
        String::new(),
        row.exit_code.map(|c| c.to_string()).unwrap_or_default(),
        row.error.as_ref().map(error_line).unwrap_or_default(),
        row.engine.map(|e| e.to_string()).unwrap_or_default(),
        text(&row.host),
        row.attempts.to_string(),
        row.submitted.to_iso(),
        time(row.started),
        time(row.completed),
        row.duration.map(|d| micros(d).to_string()).unwrap_or_default(),
        text(&row.label),
        row.peak_memory.map(|bytes| bytes.to_string()).unwrap_or_default(),
        row.cause.as_ref().map(|cause| cause.as_str().to_string()).unwrap_or_default(),
    ]
}

pub(crate) const MAP_CSV_HEADER: [&str; 12] = [
    "map",
    "kind",
    "name",
    "label",
    "state",
    "tasks",
    "ok",
    "failed",
    "pending",
    "submitted",
    "completed",
    "duration",
];

pub(crate) fn map_csv(row: &MapRow) -> [String; 12] {
    let view = MapView::new(row);
    [
        view.map.to_string(),
        view.kind.to_string(),
        view.name.to_string(),
        view.label.unwrap_or_default().to_string(),
        view.state.to_string(),
        view.tasks.to_string(),
        view.ok.to_string(),
        view.failed.to_string(),
        view.pending.to_string(),
        view.submitted,
        view.completed.unwrap_or_default(),
        view.duration.map(|d| d.to_string()).unwrap_or_default(),
    ]
}

/// Seconds, rounded to microseconds, the precision of the measurement.
fn micros(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

/// `ValueError: bad input`
pub(crate) fn error_line(error: &TaskError) -> String {
    match (error.ename.is_empty(), error.evalue.is_empty()) {
        (false, false) => format!("{}: {}", error.ename, error.evalue),
        _ => format!("{}{}", error.ename, error.evalue),
    }
}

/// A row of CSV, quoted where it must be.
pub(crate) fn csv_line<S: AsRef<[u8]>>(out: &mut dyn std::io::Write, fields: impl IntoIterator<Item = S>) -> std::io::Result<()> {
    let mut writer = csv::WriterBuilder::new().from_writer(Vec::new());
    writer.write_record(fields).map_err(std::io::Error::other)?;
    out.write_all(&writer.into_inner().map_err(|e| std::io::Error::other(e.to_string()))?)
}
