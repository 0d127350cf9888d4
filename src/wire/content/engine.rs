//! Controller and pcluster's own engine, over the engine file's `pcluster` port.
//!
//! The engine is a DEALER whose routing id is its uuid; the controller a ROUTER. In front of the delimiter stands one
//! frame that names the channel ([`Channel`]), then, on the protocol's channels, the client's identity, as it must
//! come back with the reply. On [`Channel::Native`] the messages below travel; `msg_type` is the constant beside each.
use crate::model::definition::MapDefinition;
use crate::model::engine::EngineFacts;
use crate::model::output::Stream;
use crate::model::pickled;
use crate::model::task::Outcome;
use crate::model::{EngineId, MapId, TaskId};
use crate::wire::Message;
use crate::wire::message::to_json;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::sync::Arc;

/// The first frame on the engine's one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// The messages of this file.
    Native,
    /// `apply_request` and `execute_request` of ipyparallel clients and their replies, by the scheduler they came through.
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

/// In the metadata of a request, for engines with the capability `files`: the name of the file that has its buffers, in the directory
/// that the engine's connection file names. The message itself has none then.
pub const BUFFERS: &str = "pcluster_buffers";

/// The request as such an engine gets it.
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

/// The first message of an engine, and again after each reconnection or `unknown_engine`.
pub const REGISTER: &str = "engine_registration_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Register {
    pub protocol: u32,
    #[serde(flatten)]
    pub facts: EngineFacts,
    /// The id that it had, or would like.
    #[serde(default)]
    pub id: Option<EngineId>,
    /// Tasks that it still holds unfinished (after a reconnection): they are not to be run elsewhere.
    /// Finished ones follow as [`Results`].
    #[serde(default)]
    pub holds: Vec<Held>,
    /// Ids of requests of ipyparallel clients that it holds: unfinished, or with a reply not yet called recorded.
    #[serde(default)]
    pub requests: Vec<String>,
    /// What it has given back without hearing that this is on disk: it may have been lost on the way.
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

/// Every `heartbeat_interval_ms`. Answered with the same type.
pub const HEARTBEAT: &str = "heartbeat";
#[derive(Clone, Debug, Serialize, Deserialize, Default)]
pub struct Heartbeat {}

/// Attempts that have ended. Kept by the engine until [`Recorded`] covers `sequence`.
pub const RESULTS: &str = "results";
#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    /// Counts this engine's `results` messages, from 1.
    pub sequence: u64,
    pub results: Vec<TaskResult>,
}
impl Results {
    /// What travels behind the JSON: the pickles of those values that JSON does not hold, in order.
    pub fn buffers(&self) -> Vec<Bytes> {
        pickled::buffers(self.results.iter().map(|result| &result.outcome.pickled))
    }
    /// A message's content with its buffers; None where they are not as many as they should be.
    pub fn with_buffers(mut self, buffers: &[Bytes]) -> Option<Results> {
        let mut buffers = buffers.iter().cloned();
        let filled = pickled::fill(self.results.iter_mut().map(|result| &mut result.outcome.pickled), &mut buffers);
        (filled && buffers.next().is_none()).then_some(self)
    }
}
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskResult {
    pub map: MapId,
    pub index: u32,
    pub run: u32,
    /// Not flattened: a value kept as its text cannot be read through `flatten`.
    pub outcome: Outcome,
}

/// A task that has been running for some time (not said of short ones), or has written much; with parts of what it has written, and
/// when it has ended of its value, if that is long.
/// Parts are kept by the engine until [`OutputRecorded`] covers them.
pub const PROGRESS: &str = "progress";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Progress {
    #[serde(flatten)]
    pub task: Held,
    pub started: f64,
    /// Buffer *i* has the bytes of part *i*.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub stream: Stream,
    /// So many bytes of the stream come before it.
    pub start: u64,
}

/// Values of other tasks, which the function of `--reduce` is to fold in a task that the engine has. Answered with [`Values`].
pub const VALUES_REQUEST: &str = "values_request";
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValuesRequest {
    pub task: Held,
    /// In this order; the answer has some of the first.
    pub of: Vec<TaskId>,
    /// So many bytes of the first have come.
    pub start: u64,
}

/// Tasks given back unbegun: the answer to [`GiveBack`], and before an engine leaves.
pub const RETURNED: &str = "returned";
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Returned {
    /// 1, 2, … for what is to be answered with [`ReturnRecorded`]; 0: nothing.
    #[serde(default)]
    pub sequence: u64,
    pub tasks: Vec<Held>,
    /// Balanced requests of ipyparallel's clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<String>,
    /// Of each request, which run of it was given back; where this is missing, the one that the engine was sent last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<u32>,
}

impl Returned {
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.requests.is_empty()
    }
    /// Each request, with its run where that is known.
    pub fn requests(&self) -> impl Iterator<Item = (&str, Option<u32>)> {
        let runs = self.runs.iter().copied().map(Some).chain(std::iter::repeat(None));
        self.requests.iter().map(String::as_str).zip(runs)
    }
}

/// Whether the engine can run Python functions: sent when that changes. While it cannot, it gets only commands; tasks that it had are
/// given back before, uncharged.
pub const AVAILABILITY: &str = "availability";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Availability {
    /// Why not; none: it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The engine is about to leave (its job's time is nearly over, it got a signal): it takes no more tasks, has given back those that it
/// has not begun, and finishes the one that runs, if that can be.
pub const LEAVING: &str = "leaving";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Leaving {
    #[serde(default)]
    pub reason: String,
}

/// The engine leaves; it has said all it had to say.
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
    /// An engine that hears nothing from its controller for so long exits.
    #[serde(default)]
    pub engine_reconnect_timeout_ms: u64,
    /// Which of its `holds` it must drop (finished or given away meanwhile).
    #[serde(default)]
    pub drop: Vec<Held>,
    /// The controller receives no longer message; 0: not known.
    #[serde(default)]
    pub max_message_bytes: u64,
}

/// What a map runs: once per engine and map, before its first task there.
pub const DEFINITION: &str = "definition";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Definition {
    pub map: MapId,
    #[serde(flatten)]
    pub definition: MapDefinition,
}

/// The files of a map's code, in buffer 0 ([`crate::model::bundle`]): once per engine, before the first definition that names them.
pub const BUNDLE: &str = "bundle";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BundleCame {
    pub hash: String,
    /// These are not needed any more, and will be sent again if they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forget: Vec<String>,
}

/// The map is finished: its definition may be forgotten.
pub const FORGET: &str = "forget";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Forget {
    pub map: MapId,
}

/// In the place of several [`Recorded`] and [`Forget`], for engines with the capability `joined`: after a moment, since no
/// engine is in a hurry for it.
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
    /// For engines with the capability `joined`, in the place of [`Definition`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<Arc<MapDefinition>>,
    pub tasks: Vec<TaskToRun>,
}
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskToRun {
    pub index: u32,
    pub run: u32,
    pub input: Box<RawValue>,
}

/// `results` up to this sequence are on disk.
pub const RECORDED: &str = "recorded";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recorded {
    pub sequence: u64,
}

/// So many bytes of what this run of a task has written are on disk. The answer to each [`Progress`] with parts. A part that begins
/// behind what is on disk (an earlier one was lost with a connection) is passed over, and is to be sent again.
pub const OUTPUT_RECORDED: &str = "output_recorded";
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputRecorded {
    #[serde(flatten)]
    pub task: Held,
    pub stdout: u64,
    pub stderr: u64,
    /// Of a long value.
    pub value: u64,
}

/// The answer to [`ValuesRequest`]. Buffer *i* has the bytes of value *i*, the first from `start` on; only the last may be cut short.
pub const VALUES: &str = "values_reply";
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Values {
    pub task: Held,
    /// The first that was asked for.
    pub first: TaskId,
    pub start: u64,
    #[serde(default)]
    pub values: Vec<ValuePart>,
    /// Why no more of them can be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValuePart {
    /// Of the whole value.
    pub size: u64,
    /// A pickle, else JSON.
    pub pickled: bool,
}

/// Replies to these requests of ipyparallel clients are on disk. An engine keeps a reply until then, and sends it again
/// when it registers again.
pub const REPLIES_RECORDED: &str = "replies_recorded";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RepliesRecorded {
    pub msg_ids: Vec<String>,
}

/// What was given back with [`Returned`] of this number is on disk. An engine says it again until then, when it registers again.
pub const RETURN_RECORDED: &str = "return_recorded";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReturnRecorded {
    pub sequence: u64,
}

/// Give back up to so many unbegun tasks, the last ones first. Answered with [`Returned`], which may be empty.
pub const GIVE_BACK: &str = "give_back";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GiveBack {
    pub at_most: u32,
}

/// Stop these, begun or not; each ends as `aborted` (also as a [`TaskResult`]).
pub const CANCEL: &str = "cancel";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cancel {
    pub tasks: Vec<Held>,
}

/// The controller does not know the sender, or not what it holds: register (again).
pub const UNKNOWN_ENGINE: &str = "unknown_engine";

/// Stop what is running, unregister, exit.
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
