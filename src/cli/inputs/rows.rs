//! Inputs from text: plain lines and JSON lines. Skips empty lines, a byte order mark, and `\r` at the end of a line.
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::fmt;
use std::io::BufRead;

/// The form of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Arguments of a Python function.
    Call,
    /// Arguments of a command.
    Command,
}

/// One input as read.
#[derive(Clone, Debug)]
pub enum Row {
    Line(String),
    Integer(i64),
    Json(Box<RawValue>),
    Columns(Vec<String>),
    Named(Vec<(String, String)>),
}

impl Row {
    /// Bytes of its texts. As JSON a byte takes up to six.
    pub fn bytes(&self) -> usize {
        match self {
            Row::Line(text) => text.len(),
            Row::Integer(_) => 20,
            Row::Json(text) => text.get().len(),
            Row::Columns(texts) => texts.iter().map(String::len).sum(),
            Row::Named(texts) => texts.iter().map(|(name, text)| name.len() + text.len()).sum(),
        }
    }
}

/// An error with its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputError {
    pub source: String,
    /// Counted from 1.
    pub line: Option<u64>,
    /// In characters, counted from 1.
    pub column: Option<u64>,
    pub why: String,
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        if let Some(column) = self.column {
            write!(f, ", column {column}")?;
        }
        write!(f, ": {}", self.why)
    }
}

impl Row {
    /// The length of [`Row::to_json`].
    pub fn json_bytes(&self, shape: Shape) -> usize {
        match (self, shape) {
            (Row::Json(json), Shape::Call) => json.get().len() + if is_arguments(json) { 0 } else { 2 },
            _ => self.to_json(shape).len(),
        }
    }

    /// The input as the controller takes it: JSON text without line breaks.
    pub fn to_json(&self, shape: Shape) -> String {
        let text = |value: &Value| value.to_string();
        match (self, shape) {
            (Row::Line(line), _) => text(&Value::from(vec![line.as_str()])),
            (Row::Integer(n), Shape::Call) => format!("[{n}]"),
            (Row::Integer(n), Shape::Command) => format!("[\"{n}\"]"),
            (Row::Columns(columns), _) => text(&Value::from(columns.clone())),
            (Row::Named(pairs), Shape::Call) => {
                let object: Map<String, Value> = pairs.iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect();
                text(&Value::Object(object))
            }
            (Row::Named(pairs), Shape::Command) => text(&pairs.iter().map(|(_, v)| Value::from(v.as_str())).collect()),
            (Row::Json(json), Shape::Call) => match is_arguments(json) {
                true => json.get().to_string(),
                false => format!("[{}]", json.get()),
            },
            (Row::Json(json), Shape::Command) => words_of(json.get()),
        }
    }
}

/// Positional or keyword arguments, not one value.
fn is_arguments(json: &RawValue) -> bool {
    json.get().starts_with(['[', '{'])
}

/// A JSON value as arguments of a command: the elements of a list, or one value; strings unchanged, others as JSON.
fn words_of(json: &str) -> String {
    let word = |raw: &RawValue| Value::from(serde_json::from_str::<String>(raw.get()).unwrap_or_else(|_| raw.get().to_string()));
    let words: Vec<Value> = match serde_json::from_str::<Vec<Box<RawValue>>>(json) {
        Ok(list) => list.iter().map(|raw| word(raw)).collect(),
        Err(_) => vec![Value::from(
            serde_json::from_str::<String>(json).unwrap_or_else(|_| json.to_string()),
        )],
    };
    Value::from(words).to_string()
}

/// Not valid in text or in an argument of a command.
pub(super) const NUL: &str = "contains a NUL character; it may be UTF-16 or binary";

/// The non-empty lines, with their numbers.
pub fn lines(source: String, mut reader: impl BufRead) -> impl Iterator<Item = Result<(u64, String), InputError>> {
    let mut number = 0;
    let mut failed = false;
    // Lines are often of similar length.
    let mut last_bytes = 0;
    std::iter::from_fn(move || {
        loop {
            if failed {
                return None;
            }
            let mut bytes = Vec::with_capacity(last_bytes);
            let mut bad = |line: Option<u64>, column: Option<u64>, why: String| {
                failed = true;
                let source = source.clone();
                Some(Err(InputError { source, line, column, why }))
            };
            match reader.read_until(b'\n', &mut bytes) {
                Ok(0) => return None,
                Ok(count) => (number, last_bytes) = (number + 1, count),
                Err(error) => return bad(None, None, format!("read error: {error}")),
            }
            if number == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
                bytes.drain(..3);
            }
            let is_last = bytes.last() != Some(&b'\n');
            while matches!(bytes.last(), Some(b'\n' | b'\r')) {
                bytes.pop();
            }
            if bytes.is_empty() {
                continue;
            }
            if number == 1 && is_last && bytes.contains(&b'\r') {
                let why = "lines end with carriage returns only; convert the file first: tr '\\r' '\\n' < OLD > NEW";
                return bad(None, None, why.into());
            }
            return match String::from_utf8(bytes) {
                // `contains` of bytes looks at many at a time.
                Ok(line) if !line.as_bytes().contains(&0) => Some(Ok((number, line))),
                Ok(line) => {
                    let column = line.chars().position(|c| c == '\0').map(|at| at as u64 + 1);
                    bad(Some(number), column, NUL.into())
                }
                Err(error) => {
                    let good = error.utf8_error().valid_up_to();
                    let column = String::from_utf8_lossy(&error.as_bytes()[..good]).chars().count() as u64 + 1;
                    bad(Some(number), Some(column), "not UTF-8 text".into())
                }
            };
        }
    })
}

pub fn json_lines(source: String, reader: impl BufRead, shape: Shape) -> impl Iterator<Item = Result<Row, InputError>> {
    lines(source.clone(), reader).filter_map(move |line| {
        let (number, text) = match line {
            Ok(line) => line,
            Err(error) => return Some(Err(error)),
        };
        if text.trim().is_empty() {
            return None;
        }
        if shape == Shape::Command && text.contains("\\u0000") && words_of(&text).replace(r"\\", "").contains(r"\u0000") {
            let (source, line) = (source.clone(), Some(number));
            let why = "an argument of a command cannot contain a NUL character".into();
            return Some(Err(InputError {
                source,
                line,
                column: None,
                why,
            }));
        }
        Some(serde_json::from_str::<Box<RawValue>>(&text).map(Row::Json).map_err(|error| {
            let message = error.to_string();
            let why = match error.is_eof() {
                true => "incomplete JSON value",
                false => message.rsplit_once(" at line ").map(|(why, _)| why).unwrap_or(&message),
            };
            // serde_json counts bytes.
            let before = text.as_bytes().get(..error.column().saturating_sub(1)).unwrap_or(text.as_bytes());
            InputError {
                source: source.clone(),
                line: Some(number),
                column: Some(String::from_utf8_lossy(before).chars().count() as u64 + 1),
                why: format!("not JSON: {why}"),
            }
        }))
    })
}
