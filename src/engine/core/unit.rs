//! Units of work of an engine: tasks of pcluster, and requests of ipyparallel clients.
use crate::model::buffer_file::is_name;
use crate::model::definition::{MapDefinition, Work};
use crate::model::output::INLINE;
use crate::model::pickled::Pickled;
use crate::model::task::{Ask, Cause, Outcome, TaskError, TaskState};
use crate::model::{MapId, UnixTime};
use crate::wire::Message;
use crate::wire::content::engine::{BUFFERS, Channel, Held};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::sync::Arc;

#[derive(Clone, Debug)]
pub enum Unit {
    /// A task; its input is JSON text.
    Task {
        held: Held,
        input: Bytes,
        /// In place of what its map asks for.
        ask: Ask,
    },
    Request(Arc<Request>),
}

impl Unit {
    pub fn held(&self) -> Option<Held> {
        match self {
            Unit::Task { held, .. } => Some(*held),
            Unit::Request(_) => None,
        }
    }
    pub fn ask(&self) -> Ask {
        match self {
            Unit::Task { ask, .. } => *ask,
            Unit::Request(_) => Ask::default(),
        }
    }
    /// Returns whether another engine could run it.
    pub fn is_returnable(&self) -> bool {
        match self {
            Unit::Task { .. } => true,
            Unit::Request(request) => request.is_returnable(),
        }
    }
    pub fn size(&self) -> usize {
        match self {
            Unit::Task { input, .. } => input.len(),
            Unit::Request(request) => request.message.buffers.iter().map(Bytes::len).sum(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Apply,
    Execute,
}

impl Method {
    pub fn of(msg_type: &str) -> Option<Method> {
        match msg_type {
            "apply_request" => Some(Method::Apply),
            "execute_request" => Some(Method::Execute),
            _ => None,
        }
    }
    pub fn name(self) -> &'static str {
        match self {
            Method::Apply => "apply",
            Method::Execute => "execute",
        }
    }
}

/// An `apply_request` or `execute_request`, with its parts as received.
#[derive(Debug)]
pub struct Request {
    pub channel: Channel,
    /// The client's identity, which the reply must carry.
    pub client: Vec<Bytes>,
    pub method: Method,
    /// An execution whose failure aborts the executions queued behind it.
    pub stops_others: bool,
    /// Number of times that it was sent to an engine.
    pub run: u32,
    pub message: Message,
    /// Name of the file that holds its buffers if the message does not.
    pub file: Option<String>,
}

impl Request {
    pub fn new(channel: Channel, client: Vec<Bytes>, method: Method, message: Message) -> Request {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Flags {
            silent: bool,
            stop_on_error: Option<bool>,
        }
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Run {
            pcluster_run: Option<u32>,
        }
        let flags: Flags = message.content().unwrap_or_default();
        let file = file_of(&message);
        // Only needed for load-balanced requests, and reading takes time.
        let run: Run = match channel {
            Channel::Task => message.metadata().unwrap_or_default(),
            _ => Run::default(),
        };
        Request {
            run: run.pcluster_run.unwrap_or(1),
            channel,
            client,
            method,
            stops_others: method == Method::Execute && !flags.silent && flags.stop_on_error.unwrap_or(true),
            message,
            file,
        }
    }
    /// Returns whether it came through the load-balanced scheduler.
    pub fn is_returnable(&self) -> bool {
        self.channel == Channel::Task
    }
    pub fn msg_id(&self) -> &str {
        &self.message.header.msg_id
    }
}

fn file_of(message: &Message) -> Option<String> {
    if !message.buffers.is_empty() {
        return None;
    }
    let metadata: Map<String, Value> = message.metadata().ok()?;
    let name = metadata.get(BUFFERS)?.as_str()?;
    is_name(name).then(|| name.to_string())
}

/// The worker's report on a unit that has ended.
#[derive(Clone, Debug)]
pub enum WorkerResult {
    /// JSON text.
    Value(Bytes),
    /// JSON `{type}`, a rendering as JSON text, the pickle.
    Pickled { meta: Bytes, rendering: Bytes, pickle: Bytes },
    /// JSON `{ename, evalue, traceback}`.
    Error(Bytes),
    /// Reply to a request: JSON `{status, ename}`, content, buffers.
    Reply { meta: Bytes, content: Bytes, buffers: Vec<Bytes> },
}

/// The end of a command.
#[derive(Clone, Debug)]
pub struct CommandEnd {
    pub started: UnixTime,
    pub ended: UnixTime,
    pub how: CommandExit,
    pub peak: PeakMemory,
    /// The kernel has killed a process for lack of memory.
    pub oom_killed: bool,
}

impl CommandExit {
    /// It, or the last command of a shell, may have been killed by SIGKILL.
    pub(crate) fn may_be_sigkill(&self) -> bool {
        matches!(self, CommandExit::Signal(9, _) | CommandExit::Code(137))
    }
}

/// The error of a unit that the kernel has killed for lack of memory. `how`: how it ended.
pub(crate) fn out_of_memory(how: &str) -> (&'static str, String) {
    ("OutOfMemory", format!("the memory of its control group was used up: {how}"))
}

/// The peak memory of a command, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PeakMemory {
    #[default]
    Unknown,
    /// Of its largest process.
    Measured(u64),
    /// It is not more.
    AtMost(u64),
}

impl PeakMemory {
    /// With what was measured while it ran, 0 for nothing.
    pub(crate) fn with(self, measured: u64) -> Option<u64> {
        match self {
            PeakMemory::Measured(bytes) => Some(bytes.max(measured)),
            _ if measured > 0 => Some(measured),
            PeakMemory::AtMost(bytes) => Some(bytes),
            PeakMemory::Unknown => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum CommandExit {
    Code(i32),
    /// Number and name.
    Signal(i32, String),
    /// ename and evalue.
    NotStarted(String, String),
}

/// Identifies a worker of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WorkerKey {
    /// The long-lived worker: ipyparallel's namespace, `exec`, `push`, `pull`, `apply`.
    Interactive,
    /// The worker of a map of a Python function.
    Map(MapId),
}

/// The worker that runs the tasks of this map; None if they are commands.
pub(crate) fn worker_of(map: MapId, definition: &MapDefinition) -> Option<WorkerKey> {
    match definition.work {
        Work::Command { .. } => None,
        Work::Call { .. } if !definition.options.interactive => Some(WorkerKey::Map(map)),
        _ => Some(WorkerKey::Interactive),
    }
}

fn succeeded(started: UnixTime, ended: UnixTime) -> Outcome {
    Outcome {
        error: None,
        ..Outcome::failure(TaskState::Ok, "", "", started, ended)
    }
}

/// The exact value if it is long enough to be sent in parts before the outcome.
pub(crate) fn long_value(result: &WorkerResult) -> Option<Bytes> {
    match result {
        WorkerResult::Value(exact) | WorkerResult::Pickled { pickle: exact, .. } if exact.len() > INLINE => Some(exact.clone()),
        _ => None,
    }
}

/// Converts a worker's result into an outcome.
pub(crate) fn worker_outcome(result: WorkerResult, started: UnixTime, ended: UnixTime) -> Outcome {
    let bad = |what: &str| {
        let evalue = format!("the worker sent {what} that cannot be decoded");
        Outcome::failure(TaskState::Error, "WorkerError", evalue, started, ended)
    };
    match result {
        // Not validated here: that could block the engine for seconds.
        WorkerResult::Value(body) if body.len() > INLINE => Outcome {
            value_size: Some(body.len() as u64),
            ..succeeded(started, ended)
        },
        // On the wire, a missing value and null are the same.
        WorkerResult::Value(body) if body == "null" => succeeded(started, ended),
        WorkerResult::Value(body) => match raw_json(body) {
            Some(value) => Outcome {
                value: Some(value),
                ..succeeded(started, ended)
            },
            None => bad("a value"),
        },
        WorkerResult::Pickled { meta, rendering, pickle } => match (serde_json::from_slice(&meta), raw_json(rendering)) {
            (Ok(pickled), Some(value)) if pickle.len() > INLINE => Outcome {
                value: Some(value),
                pickled: Some(pickled),
                value_size: Some(pickle.len() as u64),
                ..succeeded(started, ended)
            },
            (Ok(pickled), Some(value)) => Outcome {
                value: Some(value),
                pickled: Some(Pickled { bytes: pickle, ..pickled }),
                ..succeeded(started, ended)
            },
            _ => bad("a pickled value"),
        },
        WorkerResult::Error(body) => match serde_json::from_slice::<TaskError>(&body) {
            Ok(error) => Outcome {
                error: Some(bounded(error)),
                ..Outcome::failure(TaskState::Error, "", "", started, ended)
            },
            Err(_) => bad("an error"),
        },
        WorkerResult::Reply { .. } => bad("a reply to a task"),
    }
}

/// Number of bytes kept at each end of a long error text.
const ERROR_TEXT_END: usize = 128 << 10;

/// Truncates long error texts in the middle, with a note.
fn bounded(error: TaskError) -> TaskError {
    let cut = |text: String| {
        if text.len() <= 3 * ERROR_TEXT_END {
            return text;
        }
        let head = text.floor_char_boundary(ERROR_TEXT_END);
        let tail = text.floor_char_boundary(text.len() - ERROR_TEXT_END);
        format!("{}\n[... {} bytes cut ...]\n{}", &text[..head], tail - head, &text[tail..])
    };
    TaskError {
        ename: cut(error.ename),
        evalue: cut(error.evalue),
        traceback: cut(error.traceback),
    }
}

/// Avoids a copy if the bytes are not shared.
fn raw_json(body: Bytes) -> Option<Box<RawValue>> {
    let text = String::from_utf8(Vec::from(body)).ok()?;
    RawValue::from_string(text).ok()
}

/// The outcome of a command.
pub(crate) fn command_outcome(end: CommandEnd) -> Outcome {
    let CommandEnd {
        started,
        ended,
        how,
        oom_killed,
        ..
    } = end;
    let mut outcome = exit_outcome(how, started, ended);
    if oom_killed {
        let how = outcome.error.take().map_or_else(String::new, |error| error.evalue);
        let (ename, evalue) = out_of_memory(&how);
        outcome = Outcome {
            exit_code: outcome.exit_code,
            crashed: true,
            cause: Some(Cause::MemoryCgroup),
            ..Outcome::failure(TaskState::Lost, ename, evalue, started, ended)
        };
    }
    outcome
}

fn exit_outcome(how: CommandExit, started: UnixTime, ended: UnixTime) -> Outcome {
    match how {
        CommandExit::Code(0) => Outcome {
            exit_code: Some(0),
            ..succeeded(started, ended)
        },
        CommandExit::Code(code) => Outcome {
            exit_code: Some(code),
            ..Outcome::failure(
                TaskState::Error,
                "ExitCode",
                format!("the command ended with exit code {code}"),
                started,
                ended,
            )
        },
        CommandExit::Signal(number, name) => Outcome {
            exit_code: Some(128 + number),
            ..Outcome::failure(
                TaskState::Error,
                "Signal",
                format!("the command was killed by signal {number} ({name})"),
                started,
                ended,
            )
        },
        CommandExit::NotStarted(ename, evalue) => Outcome::failure(TaskState::Error, &ename, evalue, started, ended),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_file_is_a_name_and_never_a_path() {
        let file = |name: &str, buffers: Vec<Bytes>| {
            let metadata = serde_json::json!({ BUFFERS: name }).to_string();
            let message = Message {
                metadata_json: metadata.into(),
                buffers,
                ..Message::default()
            };
            Request::new(Channel::Mux, Vec::new(), Method::Apply, message).file
        };
        let name = "0123456789abcdef".repeat(4);
        assert_eq!(file(&name, Vec::new()), Some(name.clone()));
        assert_eq!(file(&name, vec![Bytes::from_static(b"here")]), None);
        for other in [
            "",
            "/etc/passwd",
            "../secrets",
            &name[1..],
            &"../".repeat(21),
            &format!("{}/", &name[1..]),
        ] {
            assert_eq!(file(other, Vec::new()), None, "{other}");
        }
    }
}
