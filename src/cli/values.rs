//! The output formats of results: JSON lines, CSV or one pickle, in input order, to stdout or a file.
//!
//! - A function's value is one JSON line; if JSON cannot represent it exactly, the line is a rendering. A failed task
//!   is `{"__error__": {"task": "1.3", "state": "error", "ename": "…", "evalue": "…"}}`, so that line *n* belongs to input *n*.
//! - A command's result is its output, unchanged: stdout to stdout, stderr to stderr.
//!
//! Parts: [`sink`] (the destination); this file has the formats.
pub(crate) mod sink;

use crate::cli::CommandError;
use crate::model::TaskId;
use crate::model::output::Output;
use crate::model::pickled::Pickled;
use crate::model::task::{TaskError, TaskRow, TaskState};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Serialize, Serializer};
use serde_json::json;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// One JSON value per line (for a command: an object with stdout, stderr, exit_code)
    Jsonl,
    /// Columns task, state, input, value, error (for a command: … exit_code, stdout, stderr)
    Csv,
    /// One Python pickle: the list of exact values, with an exception for each failed task; with --reduce, the one value
    Pickle,
}

/// What is written for each task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Values as JSON lines.
    Values,
    /// A command's output, unchanged.
    Output,
    /// A command's output as JSON lines.
    OutputJson,
    Csv {
        command: bool,
    },
    Pickle {
        command: bool,
    },
    /// The full record of each task, as JSON lines.
    Rows,
}

impl Style {
    pub(crate) fn of(format: Option<Format>, command: bool, json: bool) -> Style {
        match format {
            None if json => Style::Rows,
            None if command => Style::Output,
            Some(Format::Jsonl) if command => Style::OutputJson,
            None | Some(Format::Jsonl) => Style::Values,
            Some(Format::Csv) => Style::Csv { command },
            Some(Format::Pickle) => Style::Pickle { command },
        }
    }

    /// Writes what precedes the first result.
    pub(crate) fn begin(self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Style::Csv { command: false } => csv_record(out, &["task", "state", "input", "value", "error"]),
            Style::Csv { command: true } => csv_record(out, &["task", "state", "input", "exit_code", "stdout", "stderr"]),
            // Protocol 3; an empty list; json.loads as memo 0.
            Style::Pickle { .. } => out.write_all(b"\x80\x03]cjson\nloads\nq\x000"),
            _ => Ok(()),
        }
    }

    /// Writes one result. `errors` receives the stderr of a command.
    pub(crate) fn write(self, row: &TaskRow, out: &mut dyn Write, errors: &mut dyn Write) -> io::Result<()> {
        match self {
            Style::Values => writeln!(out, "{}", value_line(row)),
            Style::Rows => {
                serde_json::to_writer(&mut *out, &whole(row))?;
                out.write_all(b"\n")
            }
            Style::Output => {
                out.write_all(&row.stdout.bytes)?;
                errors.write_all(&row.stderr.bytes)
            }
            Style::OutputJson => writeln!(out, "{}", output_json(row)),
            Style::Csv { command } => {
                let (task, input) = (row.task.to_string(), row.input.as_deref().map(input_text).unwrap_or_default());
                match command {
                    true => {
                        let code = row.exit_code.map(|c| c.to_string()).unwrap_or_default();
                        csv_record(
                            out,
                            &[
                                task.as_bytes(),
                                row.state.as_str().as_bytes(),
                                input.as_bytes(),
                                code.as_bytes(),
                                &row.stdout.bytes,
                                &row.stderr.bytes,
                            ],
                        )
                    }
                    false => {
                        let value = if row.state.is_failed() {
                            String::new()
                        } else {
                            cell(&value_line(row))
                        };
                        let error = row.error.as_ref().map(error_text).unwrap_or_default();
                        csv_record(out, &[&task, row.state.as_str(), &input, &value, &error])
                    }
                }
            }
            Style::Pickle { command } => pickle_item(row, command, out),
        }
    }

    /// Writes what follows the last result.
    pub(crate) fn end(self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Style::Pickle { .. } => out.write_all(b"."),
            _ => Ok(()),
        }
    }
}

/// A result as one line of JSON.
pub(crate) fn value_line(row: &TaskRow) -> Cow<'_, str> {
    if row.state.is_failed() {
        let (ename, evalue) = row
            .error
            .as_ref()
            .map(|e| (e.ename.as_str(), e.evalue.as_str()))
            .unwrap_or_default();
        let error = json!({"task": row.task, "state": row.state, "ename": ename, "evalue": evalue});
        return json!({ "__error__": error }).to_string().into();
    }
    row.value.as_deref().map_or("null".into(), one_line)
}

/// The full record of a task for `--json`, with its exact value.
pub(crate) fn whole(row: &TaskRow) -> impl Serialize {
    Whole(row)
}

struct Whole<'a>(&'a TaskRow);

impl Serialize for Whole<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Exact<'a> {
            #[serde(flatten)]
            row: Cow<'a, TaskRow>,
            #[serde(flatten)]
            inexact: Option<Inexact<'a>>,
        }
        let row = self.0;
        let has_text = row.stdout.is_plain_text() && row.stderr.is_plain_text();
        let bare = || TaskRow {
            pickled: None,
            stdout: Output::default(),
            stderr: Output::default(),
            ..row.clone()
        };
        let text = || TaskRow {
            pickled: None,
            ..row.clone()
        };
        let exact = Exact {
            row: match (has_text, row.pickled.is_some()) {
                (true, false) => Cow::Borrowed(row),
                (true, true) => Cow::Owned(text()),
                (false, _) => Cow::Owned(bare()),
            },
            inexact: row.pickled.as_ref().map(Inexact::of),
        };
        if has_text {
            return exact.serialize(serializer);
        }
        // As raw text, so that numbers are unchanged.
        let failed = serde::ser::Error::custom::<serde_json::Error>;
        let json = serde_json::to_string(&exact).map_err(failed)?;
        let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&json).map_err(failed)?;
        let mut outputs = serde_json::Map::new();
        put_output(&mut outputs, "stdout", &row.stdout);
        put_output(&mut outputs, "stderr", &row.stderr);
        for (name, output) in &outputs {
            fields.insert(name.clone(), serde_json::value::to_raw_value(output).map_err(failed)?);
        }
        fields.serialize(serializer)
    }
}

/// Accompanies a value that is only a rendering.
#[derive(Debug, Serialize)]
pub(crate) struct Inexact<'a> {
    /// Always false; present only if so.
    exact: bool,
    /// `collections.Counter`.
    #[serde(rename = "type")]
    python_type: &'a str,
    /// The pickle, base64.
    pickled: String,
}

impl Inexact<'_> {
    pub(crate) fn of(pickled: &Pickled) -> Inexact<'_> {
        Inexact {
            exact: false,
            python_type: &pickled.python_type,
            pickled: STANDARD.encode(&pickled.bytes),
        }
    }
}

/// A long value that is being fetched into its row.
pub(crate) struct LongValue {
    task: TaskId,
    size: u64,
    bytes: Vec<u8>,
}

impl LongValue {
    pub(crate) fn new(task: TaskId, size: u64) -> Result<LongValue, CommandError> {
        let mut bytes = Vec::new();
        let room = usize::try_from(size).ok().filter(|size| bytes.try_reserve_exact(*size).is_ok());
        room.ok_or_else(|| {
            CommandError::environment(format!("out of memory for the value of task {task} ({size} bytes)"))
                .hint("have the function write large data to a file and return its name")
        })?;
        Ok(LongValue { task, size, bytes })
    }

    /// Where the next piece begins; None when all has come.
    pub(crate) fn missing(&self) -> Option<u64> {
        Some(self.bytes.len() as u64).filter(|have| *have < self.size)
    }

    pub(crate) fn add(&mut self, piece: Bytes) -> Result<(), CommandError> {
        if piece.is_empty() {
            let (have, size) = (self.bytes.len(), self.size);
            return Err(CommandError::failed(format!(
                "the value of task {} ends at {have} of {size} bytes",
                self.task
            )));
        }
        match self.bytes.is_empty() && piece.len() as u64 == self.size {
            true => self.bytes = piece.into(),
            false => self.bytes.extend_from_slice(&piece),
        }
        Ok(())
    }

    pub(crate) fn put_into(self, row: &mut TaskRow) -> Result<(), CommandError> {
        let put = row.set_value(self.bytes);
        put.map_err(|error| CommandError::failed(format!("the value of task {} is no JSON: {error}", self.task)))
    }
}

/// JSON without line breaks, which can only occur between tokens.
pub(crate) fn one_line(value: &RawValue) -> Cow<'_, str> {
    let bytes = value.get().as_bytes();
    // `contains` of bytes looks at many at a time, that of characters does not.
    match bytes.contains(&b'\n') || bytes.contains(&b'\r') {
        true => value.get().replace(['\n', '\r'], " ").into(),
        false => value.get().into(),
    }
}

/// An input for display: a single string argument without list and quotes, else JSON.
pub(crate) fn input_text(input: &RawValue) -> String {
    match serde_json::from_str::<Vec<Box<RawValue>>>(input.get()).as_deref() {
        Ok([only]) => cell(only.get()),
        _ => one_line(input).into_owned(),
    }
}

/// `ValueError: message`, on one line.
pub(crate) fn error_text(error: &TaskError) -> String {
    let evalue = error
        .evalue
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    match (error.ename.is_empty(), evalue.is_empty()) {
        (false, false) => format!("{}: {evalue}", error.ename),
        (_, true) => error.ename.clone(),
        (true, false) => evalue,
    }
}

/// The content of a JSON string, empty for null, JSON otherwise.
fn cell(json: &str) -> String {
    match json {
        "null" => String::new(),
        _ => serde_json::from_str::<String>(json).unwrap_or_else(|_| json.to_string()),
    }
}

fn output_json(row: &TaskRow) -> String {
    let mut object = serde_json::Map::new();
    put_output(&mut object, "stdout", &row.stdout);
    put_output(&mut object, "stderr", &row.stderr);
    object.insert("exit_code".into(), row.exit_code.into());
    if let (true, Some(error)) = (row.exit_code.is_none(), &row.error) {
        object.insert("error".into(), error_text(error).into());
    }
    serde_json::Value::from(object).to_string()
}

/// Adds an output under its name if it is UTF-8; else null, with the bytes in `<name>_base64`.
fn put_output(object: &mut serde_json::Map<String, serde_json::Value>, name: &str, output: &Output) {
    match std::str::from_utf8(&output.bytes) {
        Ok(text) => drop(object.insert(name.into(), text.into())),
        Err(_) => {
            object.insert(name.into(), serde_json::Value::Null);
            object.insert(format!("{name}_base64"), output.base64().into());
        }
    }
}

fn csv_record<F: AsRef<[u8]>>(out: &mut dyn Write, fields: &[F]) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(fields).map_err(io::Error::other)?;
    out.write_all(&writer.into_inner().map_err(|e| io::Error::other(e.to_string()))?)
}

/// One value as a separate pickle: the original of the worker, if any.
pub(crate) fn lone_pickle(row: &TaskRow, out: &mut dyn Write) -> io::Result<()> {
    match &row.pickled {
        Some(pickled) => out.write_all(&pickled.bytes),
        None => {
            out.write_all(b"\x80\x03cjson\nloads\n")?;
            pickled_text(&value_line(row), out)?;
            out.write_all(b"\x85R.")
        }
    }
}

fn pickled_text(text: &str, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(b"X")?;
    out.write_all(&length(text.len())?)?;
    out.write_all(text.as_bytes())
}

/// Appends one value to the list. JSON is decoded by Python's `json.loads`, a pickle by `pickle.loads`.
fn pickle_item(row: &TaskRow, command: bool, out: &mut dyn Write) -> io::Result<()> {
    let has_value = row.state == TaskState::Ok && row.msg_id.is_none();
    // `\x85R`: a tuple of the one argument, call. `a`: append.
    if command || (has_value && row.pickled.is_none()) {
        out.write_all(b"h\x00")?;
        pickled_text(&if command { output_json(row).into() } else { value_line(row) }, out)?;
    } else if let Some(Pickled { bytes, .. }) = row.pickled.as_ref().filter(|_| has_value) {
        out.write_all(b"cpickle\nloads\nB")?;
        out.write_all(&length(bytes.len())?)?;
        out.write_all(bytes)?;
    } else {
        out.write_all(b"cbuiltins\nRuntimeError\n")?;
        let why = match (&row.error, &row.msg_id) {
            (Some(error), _) => format!("{}: {}", row.state, error_text(error)),
            (None, Some(msg_id)) => format!("{}: its value is in the reply to {msg_id}", row.state),
            (None, None) => row.state.to_string(),
        };
        pickled_text(&format!("task {} {why}", row.task), out)?;
    }
    out.write_all(b"\x85Ra")
}

fn length(length: usize) -> io::Result<[u8; 4]> {
    let length = u32::try_from(length).map_err(|_| io::Error::other("a value of more than 4 GiB cannot be pickled"))?;
    Ok(length.to_le_bytes())
}

#[cfg(test)]
pub(crate) mod tests;
