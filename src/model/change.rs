//! What the controller's core wants recorded. The database writer applies changes in order, many in one commit;
//! what the outside is told about them is sent only after that commit.
use super::definition::MapDefinition;
use super::engine::EngineFacts;
use super::job::JobRow;
use super::kept::Kept;
use super::output::Stream;
use super::task::{Outcome, TaskState};
use super::{EngineId, EngineUuid, MapId, TaskId, UnixTime};
use bytes::Bytes;

#[derive(Clone, Debug)]
pub enum Change {
    MapAdded {
        map: MapId,
        definition: Box<MapDefinition>,
        /// The session of the client that submitted it.
        client: String,
        submitted: UnixTime,
    },
    /// Tasks of the map that are resubmitted from now on run this, with other code.
    CodeReplaced {
        map: MapId,
        definition: Box<MapDefinition>,
    },
    /// Consecutive tasks of one map, from `first` on. Each input is JSON text.
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
    /// Every task of the map that is `Waiting` is now `Ready`.
    MapReleased {
        map: MapId,
    },
    /// The tasks `first..first+count` were handed to an engine.
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
    /// What the current run of a task has written, behind what was added before; `TaskFinished` and `TaskReturned` bring the rest.
    OutputAdded {
        task: TaskId,
        stream: Stream,
        bytes: Bytes,
    },
    /// The attempt ended and the task with it. `counted` map counters change by one.
    TaskFinished {
        task: TaskId,
        run: u32,
        engine: Option<EngineId>,
        outcome: Box<Outcome>,
    },
    /// The attempt ended (or never began), the task goes back to `Ready` under a new run number.
    /// `attempt` is kept in the table of attempts where there was one.
    TaskReturned {
        task: TaskId,
        run: u32,
        attempt: Option<Attempt>,
    },
    /// A task that is with an engine was cancelled: whatever ends this attempt, there is no other.
    TaskCancelling {
        task: TaskId,
    },
    /// A finished task is to run again: its outcome moves to the table of attempts, it becomes `Ready` with this run number.
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
    /// How far the time has come by which records age (`controller.retention_days`).
    RetentionClock {
        at: UnixTime,
    },
    /// Batch jobs as somebody has seen them.
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
    /// The reply of this request is to be given to its client, which can be known again.
    ReplyOwed {
        task: TaskId,
    },
    /// ... and has been given.
    RepliesGiven {
        tasks: Vec<TaskId>,
    },
    /// What a request printed or displayed (iopub).
    RequestOutput {
        msg_id: String,
        output: RequestOutput,
    },
    /// Forget finished tasks: of the hub's `purge_request`, or `pcluster purge`.
    Purged {
        what: Purge,
    },
}

/// An attempt that did not stand.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub engine: EngineId,
    pub outcome: Box<Outcome>,
}

/// One request of an ipyparallel client, its frames as they came.
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
    pub kept: Kept,
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
    /// When its engine made it, and when it came.
    pub completed: UnixTime,
    pub received: UnixTime,
}

#[derive(Clone, Debug)]
pub enum RequestOutput {
    Stream {
        stderr: bool,
        text: String,
    },
    /// `execute_input`, `execute_result` or `error`, with its content as JSON text (for `execute_input`, the code).
    Json {
        kind: &'static str,
        content: Bytes,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purge {
    /// Every finished request of ipyparallel clients.
    AllRequests,
    Requests(Vec<String>),
    RequestsOfEngine(EngineUuid),
    /// A finished map with its tasks.
    Map(MapId),
    /// An ipyparallel client's submission, if none of its requests is on record.
    EmptySession(MapId),
}
