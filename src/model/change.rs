//! The changes that the controller's core records. The database writer applies them in order, many
//! per commit; external parties are notified only after that commit.
use super::buffer_file::BufferFile;
use super::definition::MapDefinition;
use super::engine::EngineFacts;
use super::job::JobRow;
use super::output::Stream;
use super::task::{Ask, Outcome, TaskState};
use super::{EngineId, EngineUuid, MapId, TaskId, UnixTime};
use bytes::Bytes;

#[derive(Clone, Debug)]
pub enum Change {
    MapAdded {
        map: MapId,
        definition: Box<MapDefinition>,
        /// The session of the submitting client.
        client: String,
        submitted: UnixTime,
    },
    /// Tasks of the map that are resubmitted from now on use this definition.
    CodeReplaced {
        map: MapId,
        definition: Box<MapDefinition>,
    },
    /// Consecutive tasks of one map, starting at `first`. Each input is JSON text.
    TasksAdded {
        map: MapId,
        first: u32,
        inputs: Vec<Bytes>,
        /// `Waiting` or `Ready`.
        state: TaskState,
        submitted: UnixTime,
    },
    /// All inputs have arrived; there are `total`.
    MapClosed {
        map: MapId,
        total: u32,
    },
    MapPriority {
        map: MapId,
        priority: i32,
    },
    /// Every `Waiting` task of the map is now `Ready`.
    MapReleased {
        map: MapId,
    },
    /// The tasks `first..first+count` were sent to an engine.
    TasksAssigned {
        map: MapId,
        first: u32,
        count: u32,
        run: u32,
        engine: EngineId,
    },
    TaskBegun {
        task: TaskId,
        run: u32,
        engine: EngineId,
        started: UnixTime,
    },
    /// New output of a task's current run, following the parts added before; `TaskFinished` and
    /// `TaskReturned` contain the rest.
    OutputAdded {
        task: TaskId,
        stream: Stream,
        bytes: Bytes,
    },
    /// The attempt ended and so did the task. `counted` map counters change by one.
    TaskFinished {
        task: TaskId,
        run: u32,
        engine: Option<EngineId>,
        outcome: Box<Outcome>,
    },
    /// The attempt ended (or never began); the task returns to `Ready` with a new run number.
    /// `attempt` is stored in the table of attempts if there was one.
    TaskReturned {
        task: TaskId,
        run: u32,
        attempt: Option<Attempt>,
    },
    /// The next attempt of a task asks for something else than its map; and which retries are used.
    TaskAsks {
        task: TaskId,
        ask: Ask,
        used: UsedRetries,
    },
    /// A task on an engine was cancelled: it is not attempted again, however this attempt ends.
    TaskCancelling {
        task: TaskId,
    },
    /// A finished task runs again: its outcome moves to the table of attempts, and it becomes
    /// `Ready` with this run number.
    TaskResubmitted {
        task: TaskId,
        run: u32,
    },
    /// The map's last task finished (or, after a resubmission, `None`: it is open again).
    MapCompleted {
        map: MapId,
        at: Option<UnixTime>,
    },
    EngineRegistered {
        id: EngineId,
        facts: Box<EngineFacts>,
        at: UnixTime,
    },
    EngineGone {
        id: EngineId,
        uuid: EngineUuid,
        at: UnixTime,
        reason: String,
    },
    /// The time of the clock by which records expire (`controller.retention_days`).
    RetentionClock {
        at: UnixTime,
    },
    /// Observed states of batch jobs.
    JobsSeen {
        jobs: Vec<JobRow>,
    },
    /// The CURVE key of an ipyparallel client became known after its submission was added.
    ClientKnown {
        map: MapId,
        curve_key: String,
    },
    /// A request of an ipyparallel client: a task whose map's work is `Client`.
    RequestAdded {
        task: TaskId,
        request: Box<Request>,
    },
    RequestFinished {
        msg_id: String,
        reply: Box<Reply>,
    },
    /// It runs again under another id.
    RequestResubmitted {
        msg_id: String,
        new_id: String,
    },
    /// The reply of this request is due to its client, which can be recognized when it reconnects.
    ReplyUndelivered {
        task: TaskId,
    },
    /// ... and has been delivered.
    RepliesDelivered {
        tasks: Vec<TaskId>,
    },
    /// The output that a request printed or displayed (iopub).
    RequestOutput {
        msg_id: String,
        output: RequestOutput,
    },
    /// Deletes finished tasks: for the hub's `purge_request` or `pcluster purge`.
    Purged {
        what: Purge,
    },
}

/// Retries of a task since it was (re)submitted, by what they are charged to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsedRetries {
    pub errors: u32,
    pub crashes: u32,
    /// With more memory, and with more time.
    pub memory: u32,
    pub time: u32,
}

/// An attempt whose result was superseded.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub engine: EngineId,
    pub outcome: Box<Outcome>,
}

/// One request of an ipyparallel client, with its original frames.
#[derive(Clone, Debug)]
pub struct Request {
    pub msg_id: String,
    /// `mux`, `task` or `broadcast`.
    pub queue: &'static str,
    pub client: String,
    pub header: Bytes,
    pub metadata: Bytes,
    pub content: Bytes,
    pub buffers: Vec<Bytes>,
    pub buffer_file: BufferFile,
    pub engine: Option<EngineUuid>,
    pub submitted: UnixTime,
    pub label: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: TaskState,
    pub engine: Option<(EngineId, EngineUuid)>,
    pub header: Bytes,
    pub metadata: Bytes,
    pub content: Bytes,
    pub buffers: Vec<Bytes>,
    pub started: Option<UnixTime>,
    /// When the engine created it, and when it arrived.
    pub completed: UnixTime,
    pub received: UnixTime,
}

#[derive(Clone, Debug)]
pub enum RequestOutput {
    Stream {
        stderr: bool,
        text: String,
    },
    /// `execute_input`, `execute_result` or `error`, with its content as JSON text (for
    /// `execute_input`, the code).
    Json {
        kind: &'static str,
        content: Bytes,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purge {
    /// All finished requests of ipyparallel clients.
    AllRequests,
    Requests(Vec<String>),
    RequestsOfEngine(EngineUuid),
    /// A finished map with its tasks.
    Map(MapId),
    /// An ipyparallel client's submission without recorded requests.
    EmptySession(MapId),
}
