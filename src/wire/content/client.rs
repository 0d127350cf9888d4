//! pcluster's own client and the controller, over the client file's `registration` port (DEALER to ROUTER).
//!
//! Every request is answered by one reply with the request as parent: `X_request` by `X_reply`, or any by
//! [`super::error::ErrorContent`] (`status: error`) of the reply's type. A request may be repeated after a reconnection:
//! each is idempotent, but for a signal, which may then arrive twice.
use crate::model::definition::MapDefinition;
use crate::model::engine::EngineStatus;
use crate::model::job::{Departure, JobRow};
use crate::model::output::Stream;
use crate::model::pickled;
use crate::model::query::TaskQuery;
use crate::model::targets::Targets;
use crate::model::task::{AttemptRow, Counts, MapRow, TaskRow};
use crate::model::{EngineId, MapId, TaskId, UnixTime};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// First message of a client.
pub const HELLO: &str = "hello_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    pub version: String,
}
/// Sent also to clients of another protocol version, with `status: error` for those.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HelloReply {
    pub status: String,
    pub protocol: u32,
    pub version: String,
    pub cluster_id: String,
    pub pid: u32,
    pub host: String,
    pub started: UnixTime,
    /// Small messages may be sent as one frame from now on, and then are answered so.
    #[serde(default)]
    pub packs: bool,
    /// The controller receives no longer message; 0: not known.
    #[serde(default)]
    pub max_message_bytes: u64,
}

/// A new map. `key` is chosen by the client; the same key again answers with the same map.
pub const MAP: &str = "map_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MapRequest {
    pub key: String,
    #[serde(flatten)]
    pub definition: MapDefinition,
    /// The last buffer holds the bundle that the definition names. Without it the controller must have that
    /// already, or answers with the error [`UNKNOWN_BUNDLE`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub with_bundle: bool,
    /// Buffer 0 holds all inputs, as in [`InputsRequest`]; none will follow. A repetition must say so ([`Again`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
    /// Answer as a [`WatchRequest`] from the first result on would be, that is perhaps not before there is a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<FirstWatch>,
}
/// The `ename` of the answer to a request for a map whose bundle the controller does not have: it is to come along.
pub const UNKNOWN_BUNDLE: &str = "UnknownBundle";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FirstWatch {
    pub limit: u32,
    pub wait_ms: u64,
}
#[derive(Debug, Serialize, Deserialize)]
pub struct MapReply {
    pub status: String,
    pub map: MapId,
    /// For maps with targets: the engines, in order; one input each is expected.
    #[serde(default)]
    pub engines: Vec<EngineId>,
    /// Where `watch` was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<WatchReply>,
}

/// Metadata of a request that is sent again, since no reply has come: what it asks for may have been done.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Again {
    pub again: bool,
}

/// Inputs `first…` of a map; buffer 0 holds them, one JSON text a line. Those already known are passed over.
pub const INPUTS: &str = "inputs_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InputsRequest {
    pub map: MapId,
    pub first: u32,
    /// No more will come.
    pub last: bool,
    /// No more will come although there are more, for this reason: the map ends as failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abandoned: Option<String>,
}
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InputsReply {
    pub status: String,
    /// How many the controller has recorded: those after them are to be offered (again).
    pub total: u32,
}

/// How a map is doing, with results `from…` in input order as far as they are finished without a gap. Answered at once
/// when there is a result at `from`, or the map is complete; otherwise after `wait_ms` at the latest, or when the result at `from` ends.
pub const WATCH: &str = "watch_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WatchRequest {
    pub map: MapId,
    /// The first result wanted.
    pub from: u32,
    /// At most so many results; 0 for only the counts.
    pub limit: u32,
    pub wait_ms: u64,
    /// For only the counts: answer only when this many tasks are done (or on completion, or after `wait_ms`).
    #[serde(default)]
    pub done: Option<u64>,
}
#[derive(Debug, Serialize, Deserialize)]
pub struct WatchReply {
    pub status: String,
    pub counts: Counts,
    /// All inputs have come and every task is done.
    pub complete: bool,
    /// Engines that can take the map's tasks.
    pub engines: u32,
    pub results: Vec<TaskRow>,
}

/// A reply with tasks: the pickles of those values that JSON does not hold travel as buffers behind it, in order.
pub trait HasRows {
    fn rows(&mut self) -> &mut [TaskRow];
    /// Puts the buffers in their places; false where they are not as many as they should be.
    fn fill(&mut self, buffers: Vec<Bytes>) -> bool {
        let mut buffers = buffers.into_iter();
        pickled::fill(self.rows().iter_mut().map(|row| &mut row.pickled), &mut buffers) && buffers.next().is_none()
    }
}
impl HasRows for WatchReply {
    fn rows(&mut self) -> &mut [TaskRow] {
        &mut self.results
    }
}
impl HasRows for MapReply {
    fn rows(&mut self) -> &mut [TaskRow] {
        self.update.as_mut().map_or(&mut [], |update| update.rows())
    }
}
impl HasRows for TasksReply {
    fn rows(&mut self) -> &mut [TaskRow] {
        &mut self.tasks
    }
}
/// What travels behind a [`HasRows`].
pub fn row_buffers(rows: &[TaskRow]) -> Vec<Bytes> {
    pickled::buffers(rows.iter().map(|row| &row.pickled))
}

/// Maps, newest last.
pub const MAPS: &str = "maps_request";
#[derive(Clone, Debug, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct MapsRequest {
    pub maps: Vec<MapId>,
    pub since: Option<UnixTime>,
    pub label: Option<String>,
    /// The newest so many.
    pub limit: Option<u64>,
}
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MapsReply {
    pub status: String,
    pub maps: Vec<MapRow>,
}

/// Tasks.
pub const TASKS: &str = "tasks_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TasksRequest {
    pub query: TaskQuery,
}
#[derive(Debug, Serialize, Deserialize)]
pub struct TasksReply {
    pub status: String,
    pub tasks: Vec<TaskRow>,
    /// How many match without `limit` and `offset`.
    pub matching: u64,
}

/// All that is known of one task besides its row: what it was to do, and the attempts that did not stand, oldest first.
pub const DETAILS: &str = "details_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DetailsRequest {
    pub task: TaskId,
    /// With the files of the map's code.
    #[serde(default)]
    pub files: bool,
}
#[derive(Debug, Serialize, Deserialize)]
pub struct DetailsReply {
    pub status: String,
    #[serde(default)]
    pub definition: Option<MapDefinition>,
    #[serde(default)]
    pub earlier: Vec<AttemptRow>,
    /// Path in the bundle to a hash of the file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
}
/// A part of what a task has written.
pub const OUTPUT: &str = "output_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OutputRequest {
    pub task: TaskId,
    pub stream: Stream,
    /// Of an attempt that did not stand; else of the current run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<u32>,
    pub start: u64,
    pub limit: u32,
}
/// Buffer 0 has the bytes, up to `limit` of them (or 1 MiB).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OutputReply {
    pub status: String,
    /// Of all that is on record.
    pub size: u64,
}

/// Which tasks a command means.
#[derive(Clone, Debug, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Selection {
    pub maps: Vec<MapId>,
    pub tasks: Vec<TaskId>,
    /// Of the maps: only the tasks that ended other than `ok`.
    pub failed_only: bool,
}

/// Stop tasks, waiting and running. Tasks that are done stay as they are.
pub const CANCEL: &str = "cancel_request";
/// Run finished tasks again, in place: same task, next attempt. With a definition its code is what they run, and what the map's tasks run
/// from then on; buffer 0 is its bundle. Then the selection is of one map, which is finished.
pub const RESUBMIT: &str = "rerun_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResubmitRequest {
    pub selection: Selection,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<MapDefinition>,
}
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SelectionRequest {
    pub selection: Selection,
}
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SelectionReply {
    pub status: String,
    /// How many tasks it was done to, and how many were left as they were.
    pub changed: u64,
    pub unchanged: u64,
    pub maps: Vec<MapId>,
}

pub const STATUS: &str = "status_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusReply {
    pub status: String,
    pub version: String,
    pub pid: u32,
    pub host: String,
    pub cluster_id: String,
    pub started: UnixTime,
    pub engines: Vec<EngineStatus>,
    /// Maps that are not finished.
    pub open_maps: u64,
    /// Tasks not begun, over all open maps.
    pub queued: u64,
    pub running: u64,
    pub finished: u64,
    /// Clients and engines that have lost their connection because they did not read.
    #[serde(default)]
    pub cut_off: u64,
    /// Why tasks wait, where that is not plain: a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What the batch system says of the cluster's jobs, to be recorded; answered with what is on record.
pub const JOBS: &str = "jobs_request";
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobsRequest {
    /// As they were seen; one that was seen so before changes nothing.
    pub jobs: Vec<JobRow>,
    /// Answer with the jobs on record.
    pub list: bool,
    /// Answer with the engines of jobs that have gone since.
    pub gone_since: Option<UnixTime>,
}
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobsReply {
    pub status: String,
    #[serde(default)]
    pub jobs: Vec<JobRow>,
    #[serde(default)]
    pub gone: Vec<Departure>,
}

/// Ends the controller; with `engines`, these first. Answered before it goes.
pub const STOP: &str = "stop_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StopRequest {
    pub engines: bool,
}

/// Engines to stop (`pcluster engines --stop`): running tasks are finished first where `drain`.
pub const STOP_ENGINES: &str = "stop_engines_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StopEnginesRequest {
    pub engines: Vec<EngineId>,
    pub drain: bool,
}

/// A signal for what these engines run at this moment (`pcluster signal`): the Python worker, and a command. Numbers are the
/// controller's host's.
pub const SIGNAL_ENGINES: &str = "signal_engines_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SignalEnginesRequest {
    pub targets: Targets,
    pub signal: i32,
}
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SignalEnginesReply {
    pub status: String,
    /// Who has been told.
    pub engines: Vec<EngineId>,
}

/// Forget a finished map.
pub const PURGE: &str = "purge_map_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PurgeRequest {
    pub maps: Vec<MapId>,
}

/// A reply without more to say.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Done {
    pub status: String,
}

pub fn ok() -> String {
    "ok".into()
}

/// `X_request` is answered by `X_reply`.
pub fn reply_type(request: &str) -> String {
    match request.strip_suffix("_request") {
        Some(stem) => format!("{stem}_reply"),
        None => format!("{request}_reply"),
    }
}
