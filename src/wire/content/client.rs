//! pcluster's own client and the controller, over the client file's `registration` port (DEALER to
//! ROUTER).
//!
//! Every request gets one reply with the request as parent: `X_request` is answered by `X_reply`,
//! or by [`super::error::ErrorContent`] (`status: error`) with the reply's type. A request may be
//! repeated after a reconnection: each is idempotent, except a signal, which may then arrive twice.
use crate::model::definition::MapDefinition;
use crate::model::engine::{EngineRow, EngineStatus};
use crate::model::explanation::{EngineWork, OpenMap, Placed, WaitReasons};
use crate::model::job::{Departure, JobRow};
use crate::model::output::Stream;
use crate::model::pickled;
use crate::model::query::TaskQuery;
use crate::model::resources::Request;
use crate::model::targets::Targets;
use crate::model::task::{AttemptRow, Counts, MapRow, TaskRow};
use crate::model::{EngineId, MapId, TaskId, UnixTime};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The first message of a client.
pub const HELLO: &str = "hello_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    pub version: String,
}
/// Also sent to clients of another protocol version, with `status: error`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HelloReply {
    pub status: String,
    pub protocol: u32,
    pub version: String,
    pub cluster_id: String,
    pub pid: u32,
    pub host: String,
    pub started: UnixTime,
    /// Small messages may be sent as one frame from now on, and are then answered in the same form.
    #[serde(default)]
    pub packs: bool,
    /// Maximum message size that the controller accepts; 0: unknown.
    #[serde(default)]
    pub max_message_bytes: u64,
}

/// Submits a map. The client chooses `key`; a repeated key returns the same map.
pub const MAP: &str = "map_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MapRequest {
    pub key: String,
    #[serde(flatten)]
    pub definition: MapDefinition,
    /// The last buffer contains the bundle that the definition names. Without it the controller
    /// must already have the bundle, or answers with the error [`super::error::Refusal::UnknownBundle`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub with_bundle: bool,
    /// Buffer 0 contains all inputs, as in [`InputsRequest`]; no more follow. A repetition must
    /// declare this ([`Again`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
    /// Answer like a [`WatchRequest`] from the first result on; the reply may be delayed until
    /// there is a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<FirstWatch>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FirstWatch {
    pub limit: u32,
    pub wait_ms: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_inputs: bool,
}
#[derive(Debug, Serialize, Deserialize)]
pub struct MapReply {
    pub status: String,
    pub map: MapId,
    /// For maps with targets: the engines, in order; one input is expected for each.
    #[serde(default)]
    pub engines: Vec<EngineId>,
    /// Set if `watch` was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<WatchReply>,
}

/// Metadata of a request that is repeated because no reply arrived: it may already have been
/// executed.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Again {
    pub again: bool,
}

/// Inputs `first…` of a map; buffer 0 contains them, one JSON text per line. Known inputs are
/// skipped.
pub const INPUTS: &str = "inputs_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InputsRequest {
    pub map: MapId,
    pub first: u32,
    /// No more inputs follow.
    pub last: bool,
    /// No more will come although there are more, for this reason: the map ends as failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abandoned: Option<String>,
}
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InputsReply {
    pub status: String,
    /// The number of inputs that the controller has recorded: the client must send the following
    /// ones (again).
    pub total: u32,
}

/// A map's progress, with results `from…` in input order up to the first unfinished one. Answered
/// immediately if there is a result at `from` or the map is complete; otherwise when the result at
/// `from` arrives, or after `wait_ms`.
pub const WATCH: &str = "watch_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WatchRequest {
    pub map: MapId,
    /// The index of the first requested result.
    pub from: u32,
    /// Maximum number of results; 0 for only the counts.
    pub limit: u32,
    pub wait_ms: u64,
    /// For only the counts: answer when this many tasks are done (or on completion, or after
    /// `wait_ms`).
    #[serde(default)]
    pub done: Option<u64>,
    /// Leave out the inputs of tasks that did not fail.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_inputs: bool,
}
#[derive(Debug, Serialize, Deserialize)]
pub struct WatchReply {
    pub status: String,
    pub counts: Counts,
    /// All inputs have arrived and every task is done.
    pub complete: bool,
    /// Engines that can run the map's tasks.
    pub engines: u32,
    pub results: Vec<TaskRow>,
}

/// A reply with tasks. The pickles of values that JSON cannot represent follow as buffers, in
/// order.
pub trait HasRows {
    fn rows(&mut self) -> &mut [TaskRow];
    /// Inserts the buffers into the rows; false if their number does not match.
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
/// The buffers of a [`HasRows`].
pub fn row_buffers(rows: &[TaskRow]) -> Vec<Bytes> {
    pickled::buffers(rows.iter().map(|row| &row.pickled))
}

/// Queries maps, newest last.
pub const MAPS: &str = "maps_request";
#[derive(Clone, Debug, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct MapsRequest {
    pub maps: Vec<MapId>,
    pub since: Option<UnixTime>,
    pub label: Option<String>,
    /// The newest N.
    pub limit: Option<u64>,
}
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MapsReply {
    pub status: String,
    pub maps: Vec<MapRow>,
}

/// Queries tasks.
pub const TASKS: &str = "tasks_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TasksRequest {
    pub query: TaskQuery,
}
#[derive(Debug, Serialize, Deserialize)]
pub struct TasksReply {
    pub status: String,
    pub tasks: Vec<TaskRow>,
    /// The number of matches without `limit` and `offset`.
    pub matching: u64,
}

/// Everything known about one task besides its row: its definition, and its superseded attempts,
/// oldest first.
pub const DETAILS: &str = "details_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DetailsRequest {
    pub task: TaskId,
    /// Include the files of the map's code.
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
/// Fetches a part of a task's output.
pub const OUTPUT: &str = "output_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OutputRequest {
    pub task: TaskId,
    pub stream: Stream,
    /// A superseded attempt; else the current run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<u32>,
    pub start: u64,
    pub limit: u32,
    /// The client is on this host (or a clone of it): it can read the file, if there is one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub as_file: bool,
}
/// Buffer 0 contains the bytes, up to `limit` of them (or 1 MiB); none if `file` is set.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OutputReply {
    pub status: String,
    /// The size of everything recorded.
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<RecordedFile>,
}
/// A file of the controller. Another host's file of the same name has another identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedFile {
    pub path: String,
    pub device: u64,
    pub inode: u64,
    pub modified_ns: i64,
}

/// The tasks that a command selects.
#[derive(Clone, Debug, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Selection {
    pub maps: Vec<MapId>,
    pub tasks: Vec<TaskId>,
    /// Of the maps: only the tasks that are done but not `ok`.
    pub failed_only: bool,
}

/// Stops tasks, waiting and running. Finished tasks stay unchanged.
pub const CANCEL: &str = "cancel_request";
/// Changes the priority of an unfinished map.
pub const PRIORITY: &str = "priority_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PriorityRequest {
    pub map: MapId,
    pub priority: i32,
}
/// Runs finished tasks again, in place: same task, next attempt. A definition replaces the code,
/// for these tasks and for later resubmissions of the map; buffer 0 is its bundle. Then the
/// selection must be one finished map.
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
    /// The number of tasks that were changed, and of those left unchanged.
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
    /// Unfinished maps.
    pub open_maps: u64,
    /// Tasks not started, over all open maps.
    pub queued: u64,
    pub running: u64,
    pub finished: u64,
    /// Clients and engines that were disconnected because they did not read.
    #[serde(default)]
    pub disconnected_peers: u64,
    /// Why tasks are waiting, if that is not obvious: one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Asks what waits for an engine.
pub const WORK: &str = "work_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkReply {
    pub status: String,
    /// Units that any engine with the resources may run, by map and by what they ask for.
    #[serde(default)]
    pub work: Vec<WaitingWork>,
}
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaitingWork {
    /// None for the requests of ipyparallel's clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<MapId>,
    #[serde(default)]
    pub request: Request,
    pub units: u64,
    /// Units of the same map that have ended, and their mean duration.
    #[serde(default)]
    pub ended: u64,
    #[serde(default)]
    pub mean_s: f64,
    /// The time limit of each unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_s: Option<f64>,
}

/// The batch system's report about the cluster's jobs, to be recorded; answered with the recorded
/// jobs.
pub const JOBS: &str = "jobs_request";
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobsRequest {
    /// The observed states; a repeated observation changes nothing.
    pub jobs: Vec<JobRow>,
    /// Answer with the recorded jobs.
    pub list: bool,
    /// Answer with the engines of jobs that have left since this time.
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

/// Asks why something is in its state.
pub const EXPLAIN: &str = "explain_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExplainRequest {
    Task(TaskId),
    Map(MapId),
    Engine(EngineId),
    /// The engines of a batch job.
    Job(String),
}
/// What the controller knows beyond the rows of tasks and maps.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExplainReply {
    pub status: String,
    /// A task or map without an engine for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<WaitReasons>,
    /// A task with an engine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placed: Option<Placed>,
    /// An unfinished map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<OpenMap>,
    /// Registered engines: the one asked for, or those of the job.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub present: Vec<EngineStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work: Option<EngineWork>,
    /// Recorded engines: those that have had the task, the one asked for, or those of the job.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<EngineRow>,
}

/// Stops the controller; with `engines`, stops these first. Answered before it exits.
pub const STOP: &str = "stop_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StopRequest {
    pub engines: bool,
}

/// Stops engines (`pcluster engines --stop`): with `drain`, running tasks are finished first.
pub const STOP_ENGINES: &str = "stop_engines_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StopEnginesRequest {
    pub engines: Vec<EngineId>,
    pub drain: bool,
}

/// Sends a signal to what these engines run at this moment (`pcluster signal`): the Python worker,
/// or a command. Signal numbers are those of the controller's host.
pub const SIGNAL_ENGINES: &str = "signal_engines_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SignalEnginesRequest {
    pub targets: Targets,
    pub signal: i32,
}
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SignalEnginesReply {
    pub status: String,
    /// The engines that were notified.
    pub engines: Vec<EngineId>,
}

/// Deletes a finished map.
pub const PURGE: &str = "purge_map_request";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PurgeRequest {
    pub maps: Vec<MapId>,
}

/// A reply without further content.
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
