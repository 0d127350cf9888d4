//! Queries of the records, as data: the command line creates them, and the database module answers
//! them, whether a controller runs (the client asks the controller) or not (it opens the file).
use super::memory::Memory;
use super::task::TaskState;
use super::{EngineId, MapId, TaskId, UnixTime};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Selects maps. Every given condition must hold; an empty list restricts nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub(crate) struct MapQuery {
    pub maps: Vec<MapId>,
    /// Submitted at or after this time.
    pub since: Option<UnixTime>,
    pub label: Option<String>,
    /// The newest N.
    pub limit: Option<u64>,
}

/// Selects tasks. Every given condition must hold; empty lists restrict nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct TaskQuery {
    pub maps: Vec<MapId>,
    pub tasks: Vec<TaskId>,
    pub states: Vec<TaskState>,
    pub engines: Vec<EngineId>,
    pub label: Option<String>,
    /// Submitted at or after this time.
    pub since: Option<UnixTime>,
    pub conditions: Vec<Condition>,
    /// The column and whether the order is descending; by task id if none.
    pub sort: Option<(Column, bool)>,
    pub limit: Option<u64>,
    pub offset: u64,
    /// Omit value, stdout, stderr, traceback (for listings).
    pub brief: bool,
}

/// Selects recorded engines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineQuery {
    /// Those that have had this task.
    OfTask(TaskId),
    Id(EngineId),
    /// Those of this batch job, or of one element of it, as [`super::job::is_job`] reads it.
    OfJob(String),
}

/// `duration>=600`: a column, a comparison, a value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Condition {
    pub column: Column,
    pub comparison: Comparison,
    pub value: ConditionValue,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ConditionValue {
    Number(f64),
    Text(String),
}

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $(#[serde(rename = $text)] $variant),* }
        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant),*];
            pub fn as_str(self) -> &'static str { match self { $($name::$variant => $text),* } }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.as_str()) }
        }
    };
}

named! {
    /// The columns for comparisons and sorting. Times are seconds since 1970, durations seconds.
    Column {
        Map = "map", Index = "index", State = "state", Engine = "engine", Host = "host", Attempts = "attempts",
        ExitCode = "exit_code", Duration = "duration", Submitted = "submitted", Started = "started",
        Completed = "completed", Input = "input", Value = "value", Error = "error", Stdout = "stdout",
        Stderr = "stderr", Label = "label", PeakMemory = "peak_memory", Cause = "cause",
    }
}
named! {
    Comparison { Less = "<", LessEqual = "<=", Equal = "=", NotEqual = "!=", GreaterEqual = ">=", Greater = ">", Contains = "~" }
}

impl Column {
    /// Compared as a number.
    pub fn is_number(self) -> bool {
        use Column::*;
        matches!(
            self,
            Map | Index | Engine | Attempts | ExitCode | Duration | Submitted | Started | Completed | PeakMemory
        )
    }
}

impl FromStr for Column {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Column::ALL.iter().copied().find(|c| c.as_str() == s).ok_or_else(|| {
            let names: Vec<_> = Column::ALL.iter().map(|c| c.as_str()).collect();
            format!("unknown column {s:?} (columns: {})", names.join(" "))
        })
    }
}

/// `duration>=600 and state=error`: conditions joined by `and` or commas. Numbers may have a unit
/// (`90s 10m 2h 1d`).
pub fn parse_conditions(text: &str) -> Result<Vec<Condition>, String> {
    split_conjunction(text)
        .into_iter()
        .map(|part| parse_condition(part.trim()))
        .collect()
}

/// Splits at ` and ` and `,` outside quotes.
fn split_conjunction(text: &str) -> Vec<&str> {
    let bytes = text.as_bytes();
    let (mut parts, mut start, mut quote, mut i) = (Vec::new(), 0, None, 0);
    while i < bytes.len() {
        match (quote, bytes[i]) {
            (Some(q), b) if b == q => quote = None,
            (Some(_), _) => {}
            (None, b @ (b'\'' | b'"')) => quote = Some(b),
            (None, b',') => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            (None, b' ') if bytes[i..].len() >= 5 && bytes[i..i + 5].eq_ignore_ascii_case(b" and ") => {
                parts.push(&text[start..i]);
                start = i + 5;
                i += 4;
            }
            _ => {}
        }
        i += 1;
    }
    parts.push(&text[start..]);
    parts
}

fn parse_condition(text: &str) -> Result<Condition, String> {
    let how = "write a column, a comparison and a value, for example duration>=600 or state=error";
    let at = text
        .find(['<', '>', '=', '!', '~'])
        .ok_or_else(|| format!("{text:?} has no comparison; {how}"))?;
    let column: Column = text[..at].trim().parse()?;
    let rest = &text[at..];
    let (comparison, width) = match rest.as_bytes() {
        [b'<', b'=', ..] => (Comparison::LessEqual, 2),
        [b'>', b'=', ..] => (Comparison::GreaterEqual, 2),
        [b'!', b'=', ..] => (Comparison::NotEqual, 2),
        [b'=', b'=', ..] => (Comparison::Equal, 2),
        [b'<', ..] => (Comparison::Less, 1),
        [b'>', ..] => (Comparison::Greater, 1),
        [b'=', ..] => (Comparison::Equal, 1),
        [b'~', ..] => (Comparison::Contains, 1),
        _ => return Err(format!("{text:?} has no known comparison; {how}")),
    };
    let value = rest[width..].trim();
    let unquoted = value
        .strip_prefix('\'')
        .and_then(|v| v.strip_suffix('\''))
        .or_else(|| value.strip_prefix('"').and_then(|v| v.strip_suffix('"')));
    if value.is_empty() {
        return Err(format!("{text:?} has no value to compare with; {how}"));
    }
    let value = unquoted.unwrap_or(value);
    let value = if column.is_number() && comparison != Comparison::Contains {
        let amount = || Some(value.parse::<Memory>().ok()?.bytes as f64).filter(|_| column == Column::PeakMemory);
        let number = parse_number(value)
            .or_else(amount)
            .ok_or_else(|| format!("{value:?} is not a number, but the column {column} is numeric"))?;
        ConditionValue::Number(number)
    } else {
        ConditionValue::Text(value.to_string())
    };
    Ok(Condition { column, comparison, value })
}

/// A number, with an optional unit of time, or an ISO date.
fn parse_number(text: &str) -> Option<f64> {
    let finite = |s: &str| s.parse::<f64>().ok().filter(|n| n.is_finite());
    finite(text)
        .or_else(|| parse_duration(text))
        .or_else(|| UnixTime::from_iso(text).map(|t| t.0))
}

/// `90`, `90s`, `10m`, `1.5h`, `2d` in seconds.
pub fn parse_duration(text: &str) -> Option<f64> {
    let text = text.trim();
    let (number, unit) = match text.char_indices().last()? {
        (at, 's') => (&text[..at], 1.0),
        (at, 'm') => (&text[..at], 60.0),
        (at, 'h') => (&text[..at], 3600.0),
        (at, 'd') => (&text[..at], 86400.0),
        _ => (text, 1.0),
    };
    let number: f64 = number.trim().parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number * unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn conditions_parse() {
        let all = parse_conditions("duration>=10m and state!='error', host ~ \"node, and 3\"").unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!(
            all[0],
            Condition {
                column: Column::Duration,
                comparison: Comparison::GreaterEqual,
                value: ConditionValue::Number(600.0)
            }
        );
        assert_eq!(all[1].value, ConditionValue::Text("error".into()));
        assert_eq!(all[2].value, ConditionValue::Text("node, and 3".into()));
    }

    #[test]
    fn errors_explain_invalid_conditions() {
        for (text, expected) in [
            ("duration", "no comparison"),
            ("size>3", "unknown column"),
            ("duration>=long", "not a number"),
            ("duration>=", "has no value to compare with"),
            ("", "no comparison"),
        ] {
            let error = parse_conditions(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(s in ".*") {
            let _ = parse_conditions(&s);
            let _ = parse_duration(&s);
        }
    }
}
