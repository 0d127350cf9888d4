//! The controller and pcluster's own engine, over the engine file's `pcluster` port.
//!
//! The engine is a DEALER whose routing id is its uuid; the controller is a ROUTER. Before the
//! delimiter, one frame names the channel ([`Channel`]); on ipyparallel's channels the client's
//! identity follows, which must be returned with the reply. [`Channel::Native`] carries the
//! messages below; `msg_type` is the constant next to each.
use crate::model::definition::MapDefinition;
use crate::model::engine::EngineFacts;
use crate::model::output::Stream;
use crate::model::pickled;
use crate::model::resources::Allocation;
use crate::model::task::Outcome;
use crate::model::{EngineId, MapId, TaskId};
use crate::wire::Message;
use crate::wire::message::to_json;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::sync::Arc;

/// The first frame on the engine's only connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// The messages of this file.
    Native,
    /// `apply_request` and `execute_request` of ipyparallel clients and their replies, by the
    /// scheduler that they came through.
    Mux,
    Task,
    Broadcast,
    Control,
    /// Engine to controller only: `[iopub][topic]<IDS|MSG>…`.
    Iopub,
}

impl Channel {
    pub fn frame(self) -> &'static [u8] {
        match self {
            Channel::Native => b"native",
            Channel::Mux => b"mux",
            Channel::Task => b"task",
            Channel::Broadcast => b"broadcast",
            Channel::Control => b"control",
            Channel::Iopub => b"iopub",
        }
    }
    pub fn from_frame(frame: &[u8]) -> Option<Channel> {
        [
            Channel::Native,
            Channel::Mux,
            Channel::Task,
            Channel::Broadcast,
            Channel::Control,
            Channel::Iopub,
        ]
        .into_iter()
        .find(|c| c.frame() == frame)
    }
}

/// In the metadata of a request, for engines with the capability `files`: the name of the file that
/// contains its buffers, in the directory that the engine's connection file names. The message
/// itself then has no buffers.
pub const BUFFERS: &str = "pcluster_buffers";

/// Converts the request for such an engine.
pub fn without_buffers(message: &Message, name: &str) -> Message {
    let mut metadata: serde_json::Map<String, serde_json::Value> = message.metadata().unwrap_or_default();
    metadata.insert(BUFFERS.into(), name.into());
    Message {
        metadata_json: to_json(&metadata),
        buffers: Vec::new(),
        ..message.clone()
    }
}

// ---- engine to controller

/// The first message of an engine, repeated after each reconnection or `unknown_engine`.
pub const REGISTER: &str = "engine_registration_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Register {
    pub protocol: u32,
    #[serde(flatten)]
    pub facts: EngineFacts,
    /// Its previous or preferred id.
    #[serde(default)]
    pub id: Option<EngineId>,
    /// Unfinished tasks that it still holds (after a reconnection): they must not run elsewhere.
    /// Finished ones follow as [`Results`].
    #[serde(default)]
    pub holds: Vec<Held>,
    /// Ids of requests of ipyparallel clients that it holds: unfinished, or with a reply that is
    /// not acknowledged as recorded.
    #[serde(default)]
    pub requests: Vec<String>,
    /// What it was given for the maps of the tasks that it holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allocations: Vec<(MapId, Allocation)>,
    /// Tasks that it gave back without an acknowledgement: the message may have been lost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub returned: Vec<Returned>,
    /// Why it cannot run Python now, as in [`Availability`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<String>,
}
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq, Hash)]
pub struct Held {
    pub map: MapId,
    pub index: u32,
    pub run: u32,
}

/// Sent every `heartbeat_interval_ms`. Answered with the same type.
pub const HEARTBEAT: &str = "heartbeat";
#[derive(Clone, Debug, Serialize, Deserialize, Default)]
pub struct Heartbeat {}

/// Attempts that have ended. The engine keeps them until [`Recorded`] covers `sequence`.
pub const RESULTS: &str = "results";
#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    /// The number of this engine's `results` message, starting at 1.
    pub sequence: u64,
    pub results: Vec<TaskResult>,
}
impl Results {
    /// Many short tasks have the same peak memory: on the wire, an outcome without one has that of the result before, and 0
    /// is unknown.
    pub fn new(sequence: u64, mut results: Vec<TaskResult>) -> Results {
        let mut last = None;
        for result in &mut results {
            let peak = result.outcome.peak_memory;
            result.outcome.peak_memory = (peak != last).then_some(peak.unwrap_or_default());
            last = peak;
        }
        Results { sequence, results }
    }
    /// The buffers after the JSON: the pickles of values that JSON cannot represent, in order.
    pub fn buffers(&self) -> Vec<Bytes> {
        pickled::buffers(self.results.iter().map(|result| &result.outcome.pickled))
    }
    /// A message's content with its buffers; None if their number does not match.
    pub fn with_buffers(mut self, buffers: &[Bytes]) -> Option<Results> {
        let mut buffers = buffers.iter().cloned();
        let filled = pickled::fill(self.results.iter_mut().map(|result| &mut result.outcome.pickled), &mut buffers);
        let mut last = None;
        for result in &mut self.results {
            if let Some(peak) = result.outcome.peak_memory {
                last = Some(peak).filter(|peak| *peak > 0);
            }
            result.outcome.peak_memory = last;
        }
        (filled && buffers.next().is_none()).then_some(self)
    }
}
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskResult {
    pub map: MapId,
    pub index: u32,
    pub run: u32,
    /// Not flattened: `flatten` cannot read a value that is kept as its text.
    pub outcome: Outcome,
}

/// A task that has been running for some time (not reported for short ones) or has written much
/// output; includes parts of that output and, when the task has ended, of its value if it is long.
/// The engine keeps parts until [`OutputRecorded`] covers them.
pub const PROGRESS: &str = "progress";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Progress {
    #[serde(flatten)]
    pub task: Held,
    pub started: f64,
    /// Buffer *i* contains the bytes of part *i*.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub stream: Stream,
    /// The offset in the stream.
    pub start: u64,
}

/// Requests values of other tasks, which the function of `--reduce` folds in a task that the engine
/// has. Answered with [`Values`].
pub const VALUES_REQUEST: &str = "values_request";
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValuesRequest {
    pub task: Held,
    /// In this order; the answer contains some of the first.
    pub of: Vec<TaskId>,
    /// The number of bytes of the first value that have arrived.
    pub start: u64,
}

/// Tasks given back before they started: the answer to [`GiveBack`], or sent before an engine
/// leaves.
pub const RETURNED: &str = "returned";
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Returned {
    /// 1, 2, … if an answer [`ReturnRecorded`] is required; 0 otherwise.
    #[serde(default)]
    pub sequence: u64,
    pub tasks: Vec<Held>,
    /// Balanced requests of ipyparallel's clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<String>,
    /// For each request, the run that was given back; if missing, the run that was last sent to the
    /// engine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<u32>,
}

impl Returned {
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.requests.is_empty()
    }
    /// Each request, with its run if known.
    pub fn requests(&self) -> impl Iterator<Item = (&str, Option<u32>)> {
        let runs = self.runs.iter().copied().map(Some).chain(std::iter::repeat(None));
        self.requests.iter().map(String::as_str).zip(runs)
    }
}

/// Whether the engine can run Python functions: sent when that changes. While it cannot, it
/// receives only commands; its tasks are given back before, without counting against any limit.
pub const AVAILABILITY: &str = "availability";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Availability {
    /// The reason; none if it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The engine is about to leave (its job's time limit is near, or it received a signal). It accepts
/// no more tasks, has given back those that it has not started, and finishes the running one if
/// possible.
pub const LEAVING: &str = "leaving";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Leaving {
    #[serde(default)]
    pub reason: String,
}

/// The engine leaves; it has sent everything.
pub const UNREGISTER: &str = "engine_unregistration_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unregister {
    pub reason: String,
}

// ---- controller to engine

pub const REGISTERED: &str = "engine_registration_reply";
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Registered {
    /// `ok`, or `error` with the reason in `evalue`.
    pub status: String,
    #[serde(default)]
    pub evalue: String,
    #[serde(default)]
    pub id: Option<EngineId>,
    #[serde(default)]
    pub heartbeat_interval_ms: u64,
    /// An engine that receives nothing from its controller for this long exits.
    #[serde(default)]
    pub engine_reconnect_timeout_ms: u64,
    /// Those of its `holds` that it must drop (finished or reassigned meanwhile).
    #[serde(default)]
    pub drop: Vec<Held>,
    /// Maximum message size that the controller accepts; 0: unknown.
    #[serde(default)]
    pub max_message_bytes: u64,
}

/// The definition of a map: sent once per engine and map, before the map's first task.
pub const DEFINITION: &str = "definition";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Definition {
    pub map: MapId,
    #[serde(flatten)]
    pub definition: MapDefinition,
}

/// The files of a map's code, in buffer 0 ([`crate::model::bundle`]): sent once per engine, before
/// the first definition that names them.
pub const BUNDLE: &str = "bundle";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BundleContent {
    pub hash: String,
    /// These are no longer needed, and will be sent again if they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forget: Vec<String>,
}

/// The map is finished: its definition may be dropped.
pub const FORGET: &str = "forget";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Forget {
    pub map: MapId,
}

/// Replaces several [`Recorded`] and [`Forget`] for engines with the capability `joined`; sent with
/// a short delay, since it is not urgent.
pub const SETTLED: &str = "settled";
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Settled {
    /// `results` with these sequence numbers are on disk.
    pub recorded: Vec<u64>,
    /// These maps are finished.
    pub forget: Vec<MapId>,
}

/// Tasks to run, in this order.
pub const TASKS: &str = "tasks";
#[derive(Debug, Serialize, Deserialize)]
pub struct Tasks {
    pub map: MapId,
    /// Replaces [`Definition`] for engines with the capability `joined`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<Arc<MapDefinition>>,
    /// What these tasks may use of the node, if they asked for more than one processor. It may change once the engine holds
    /// none of the map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocation: Option<Allocation>,
    pub tasks: Vec<TaskToRun>,
}
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskToRun {
    pub index: u32,
    pub run: u32,
    pub input: Box<RawValue>,
    /// In place of the map's options `mem_bytes` and `timeout_s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_ms: Option<u64>,
    /// The input is the next buffer of the message instead; for engines with the capability `input_buffers`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_buffer: bool,
}

/// An input of at least this many bytes is sent as a buffer, which is neither copied nor signed.
const BUFFER_BYTES: usize = 32 << 10;

impl TaskToRun {
    /// `input` was validated as JSON when it arrived. With `buffers`, a long one is added to them.
    pub fn new(index: u32, run: u32, input: Bytes, buffers: Option<&mut Vec<Bytes>>) -> TaskToRun {
        let (input, in_buffer) = match buffers.filter(|_| input.len() >= BUFFER_BYTES) {
            Some(buffers) => {
                buffers.push(input);
                (None, true)
            }
            None => (serde_json::from_slice(&input).ok(), false),
        };
        TaskToRun {
            index,
            run,
            input: input.unwrap_or_else(|| RawValue::NULL.to_owned()),
            mem_bytes: None,
            limit_ms: None,
            in_buffer,
        }
    }
}

/// `results` up to this sequence number are on disk.
pub const RECORDED: &str = "recorded";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recorded {
    pub sequence: u64,
}

/// The number of bytes of this run's output that are on disk; answers each [`Progress`] with parts.
/// A part that begins after that offset (an earlier one was lost with a connection) is ignored and
/// must be sent again.
pub const OUTPUT_RECORDED: &str = "output_recorded";
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputRecorded {
    #[serde(flatten)]
    pub task: Held,
    pub stdout: u64,
    pub stderr: u64,
    /// For a long value.
    pub value: u64,
}

/// The answer to [`ValuesRequest`]. Buffer *i* contains the bytes of value *i*, the first from
/// `start` on; only the last may be incomplete.
pub const VALUES: &str = "values_reply";
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Values {
    pub task: Held,
    /// The first requested value.
    pub first: TaskId,
    pub start: u64,
    #[serde(default)]
    pub values: Vec<ValuePart>,
    /// Why the remaining values are not available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValuePart {
    /// The size of the whole value.
    pub size: u64,
    /// A pickle, else JSON.
    pub pickled: bool,
}

/// Replies to these requests of ipyparallel clients are on disk. An engine keeps a reply until
/// then, and resends it when it registers again.
pub const REPLIES_RECORDED: &str = "replies_recorded";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RepliesRecorded {
    pub msg_ids: Vec<String>,
}

/// The [`Returned`] with this number is on disk. Until then, an engine resends it when it registers
/// again.
pub const RETURN_RECORDED: &str = "return_recorded";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReturnRecorded {
    pub sequence: u64,
}

/// Asks the engine to give back up to this many tasks that have not started, the last ones first.
/// Answered with [`Returned`], which may be empty.
pub const GIVE_BACK: &str = "give_back";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GiveBack {
    pub at_most: u32,
}

/// Stops these tasks, started or not; each ends as `aborted` (also as a [`TaskResult`]).
pub const CANCEL: &str = "cancel";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cancel {
    pub tasks: Vec<Held>,
}

/// The controller does not know the sender or its tasks: register (again).
pub const UNKNOWN_ENGINE: &str = "unknown_engine";

/// Stops the running task, unregisters, exits.
pub const SHUTDOWN: &str = "shutdown";
#[derive(Clone, Debug, Serialize, Deserialize, Default)]
pub struct Shutdown {
    /// Finish the running task first, give back the others.
    #[serde(default)]
    pub drain: bool,
}

/// A signal for the worker's process.
pub const SIGNAL: &str = "signal";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Signal {
    pub signal: i32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::UnixTime;
    use crate::model::task::TaskState;

    #[test]
    fn equal_peaks_are_sent_once() {
        let peaks = [None, Some(5), Some(5), Some(7), None, None, Some(7), Some(7)];
        let result = |(index, peak): (usize, &Option<u64>)| TaskResult {
            map: MapId(1),
            index: index as u32,
            run: 1,
            outcome: Outcome {
                peak_memory: *peak,
                ..Outcome::failure(TaskState::Ok, "", "", UnixTime(1.0), UnixTime(2.0))
            },
        };
        let sent = Results::new(1, peaks.iter().enumerate().map(result).collect());
        let json = serde_json::to_string(&sent).unwrap();
        assert_eq!(json.matches("peak_memory").count(), 4, "{json}");
        let received: Results = serde_json::from_str(&json).unwrap();
        let received = received.with_buffers(&[]).unwrap();
        assert_eq!(received.results.iter().map(|r| r.outcome.peak_memory).collect::<Vec<_>>(), peaks);
    }
}
