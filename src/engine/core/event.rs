//! Inputs of the core ([`Event`]) and the actions that it requests ([`Effect`]).
use super::unit::{CommandEnd, Request, Unit, WorkerKey, WorkerResult};
use crate::model::definition::MapDefinition;
use crate::model::resources::Allocation;
use crate::model::task::Ask;
use crate::model::{MapId, UnixTime};
use crate::wire::content::engine::{Held, OutputRecorded, Progress, Results, Returned, Values, ValuesRequest};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Instant;

/// The time, supplied by the driver: a monotonic clock for durations, the wall clock for timestamps.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub instant: Instant,
    pub unix: UnixTime,
}

#[derive(Debug)]
pub enum Event {
    // ---- from the controller
    /// The controller accepted the engine, for the first time or again; the engine must drop these of its tasks.
    Registered {
        drop: Vec<Held>,
    },
    /// The controller rejects longer messages.
    MessageLimit {
        max_message: usize,
    },
    /// The controller does not know the engine.
    EngineUnknown,
    Defined {
        map: MapId,
        definition: Arc<MapDefinition>,
    },
    /// What the next tasks of this map may use, and the environment variables that say so.
    Allocated {
        map: MapId,
        allocation: Allocation,
        env: Vec<(&'static str, String)>,
    },
    MapForgotten {
        map: MapId,
    },
    TasksReceived {
        map: MapId,
        tasks: Vec<(u32, u32, Bytes, Ask)>,
    },
    Recorded {
        sequence: u64,
    },
    /// The controller has recorded a task's output up to these positions.
    OutputRecorded(OutputRecorded),
    /// Values for a task to fold.
    ValuesReceived(Values, Vec<Bytes>),
    /// The answer to [`Effect::StoreValues`], once all values are in a file or storing failed.
    ValuesStored {
        held: Held,
        file: Result<String, String>,
    },
    /// The controller has recorded the units returned with this sequence number.
    ReturnRecorded {
        sequence: u64,
    },
    ReturnRequested {
        max_count: u32,
    },
    CancelRequested {
        tasks: Vec<Held>,
    },
    /// Leave now, or (`drain`) when the running unit has ended.
    ShutdownRequested {
        drain: bool,
        reason: String,
        grace_period_ms: Option<u64>,
    },
    RequestReceived(Arc<Request>),
    /// Abort these requests of ipyparallel clients, or all, unless started.
    AbortRequested {
        msg_ids: Option<Vec<String>>,
    },

    // ---- the code of maps
    /// This bundle (None: any bundle) cannot be stored on this host, or has disappeared from it.
    CodeFailed {
        hash: Option<String>,
        reason: String,
    },
    CodeWritten {
        hash: String,
    },
    /// The answer to [`Effect::RetryCodeStorage`] on success.
    CodeUsable,

    // ---- from workers; events of a terminated worker are not reported
    /// The spare worker is ready.
    WorkerReady,
    /// The spare worker failed to start.
    WorkerFailed {
        reason: String,
    },
    /// The unit with this ticket has started (reported for requests only).
    UnitStarted {
        worker: WorkerKey,
        ticket: u32,
        output: [Bytes; 2],
    },
    UnitEnded {
        worker: WorkerKey,
        ticket: u32,
        started: UnixTime,
        ended: UnixTime,
        output: [Bytes; 2],
        /// Of the worker's own process.
        peak_memory: Option<u64>,
        result: WorkerResult,
    },
    /// A request has published a message, after this output.
    Published {
        worker: WorkerKey,
        output: [Bytes; 2],
        published: Published,
    },
    /// Output written while no unit was running.
    OutputUnclaimed {
        output: [Bytes; 2],
    },
    /// `worker` is None for the spare. `unread`: number of unread tokens; `how`: a description of its end; `killed`: by a signal;
    /// `oom_killed`: by the kernel, for lack of memory.
    WorkerExited {
        worker: Option<WorkerKey>,
        unread: usize,
        how: String,
        killed: bool,
        oom_killed: bool,
        stderr_tail: String,
        output: [Bytes; 2],
    },
    /// The answer to [`Effect::TakeBackTokens`].
    TokensTakenBack {
        count: usize,
    },
    /// Output of the running unit. Check [`super::Core::can_read_output`] before reading more.
    OutputArrived {
        output: [Bytes; 2],
    },
    /// The answer to [`Effect::ReadOutput`], delivered after the ends of all units that ended before.
    OutputRead {
        output: [Bytes; 2],
    },

    /// The answer to [`Effect::MeasureMemory`]: resident bytes of the running unit and all its descendants.
    MemoryMeasured {
        bytes: u64,
    },

    // ---- from the running command
    CommandOutput {
        output: [Bytes; 2],
    },
    CommandEnded(CommandEnd),

    /// A deadline may have passed.
    Tick,
}

/// A message for iopub.
#[derive(Clone, Debug)]
pub struct Published {
    pub parent: Parent,
    pub kind: String,
    pub topic: String,
    /// Added to the engine's own metadata.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// JSON text.
    pub content: Bytes,
    pub buffers: Vec<Bytes>,
}

/// The parent of a published message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parent {
    /// The running request.
    Running,
    /// A request that has ended: its header, as JSON text.
    Ended(Bytes),
    None,
}

#[derive(Debug)]
pub enum Effect {
    // ---- to the controller
    Register {
        holds: Vec<Held>,
    },
    SendResults(Arc<Results>),
    /// With the content of its parts.
    SendProgress(Progress, Vec<Bytes>),
    SendReturned(Returned),
    SendValuesRequest(ValuesRequest),
    /// Report whether this engine can run Python functions: `reason` says why not.
    ReportAvailability {
        reason: Option<String>,
    },
    /// Publish iopub `status: busy`: the request has run for a while or produced output.
    RequestStarted(Arc<Request>),
    Stream {
        request: Arc<Request>,
        stderr: bool,
        text: String,
    },
    Publish {
        /// The header of the request that published it.
        parent: Option<Bytes>,
        published: Published,
    },
    /// Send the reply, then iopub `status: idle`.
    Reply {
        request: Arc<Request>,
        started: UnixTime,
        reply: RequestReply,
    },
    /// Unregister; then end the process, or register as a new engine.
    Leave {
        reason: String,
        as_new_engine: bool,
    },

    /// Append values to the file of a task.
    StoreValues {
        held: Held,
        is_first: bool,
        bytes: Vec<Bytes>,
        is_last: bool,
    },
    /// Remove that file, if it exists.
    DeleteValues {
        held: Held,
    },
    /// Check whether the code of maps can be stored now.
    RetryCodeStorage,

    // ---- to the log
    Warn(String),

    // ---- to workers
    /// Start a spare: a worker that has run no user code.
    StartWorker {
        /// It becomes the interactive worker: ready once it has created IPython's shell.
        has_shell: bool,
    },
    /// The spare becomes this worker.
    AssignSpare {
        worker: WorkerKey,
    },
    /// End an idle worker and all processes that it started.
    EndWorker {
        worker: WorkerKey,
    },
    Define {
        worker: WorkerKey,
        map: MapId,
        definition: Arc<MapDefinition>,
    },
    Forget {
        worker: WorkerKey,
        map: MapId,
    },
    /// Send tasks of one map; their tickets count up from `first`.
    DispatchTasks {
        worker: WorkerKey,
        map: MapId,
        first: u32,
        inputs: Vec<Bytes>,
    },
    DispatchRequest {
        ticket: u32,
        request: Arc<Request>,
    },
    /// Make the worker skip every unit that it has not started; report their number immediately, before any other event.
    TakeBackTokens {
        worker: WorkerKey,
    },
    /// Read the output written since the last read.
    ReadOutput {
        worker: WorkerKey,
    },
    /// Measure this worker (None: the command). The answer need not be exact below the limit.
    MeasureMemory {
        worker: Option<WorkerKey>,
        limit: u64,
    },
    /// None: the spare, which is not ready yet.
    SignalWorker {
        worker: Option<WorkerKey>,
        signal: StopStep,
    },

    // ---- to commands
    StartCommand {
        unit: Unit,
        definition: Arc<MapDefinition>,
    },
    SignalCommand {
        signal: StopStep,
    },
}

/// The steps of stopping a process, in order of severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopStep {
    Interrupt,
    Terminate,
    Kill,
}

#[derive(Clone, Debug)]
pub enum RequestReply {
    /// Created by the worker.
    Completed {
        status: String,
        ename: String,
        content: Bytes,
        buffers: Vec<Bytes>,
    },
    /// Created by the engine.
    Failed {
        ename: String,
        evalue: String,
    },
    Aborted,
}
