//! What happens to an engine ([`Event`]), and what it does about it ([`Effect`]).
use super::unit::{CommandEnd, Request, Unit, WorkerKey, WorkerResult};
use crate::model::definition::MapDefinition;
use crate::model::{MapId, UnixTime};
use crate::wire::content::engine::{Held, OutputRecorded, Progress, Results, Returned, Values, ValuesRequest};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Instant;

/// The time, given by the driver: one clock for distances, one for dates.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub instant: Instant,
    pub unix: UnixTime,
}

#[derive(Debug)]
pub enum Event {
    // ---- from the controller
    /// It took the engine (back); these of its tasks it must forget.
    Registered {
        drop: Vec<Held>,
    },
    /// It receives no longer message.
    LimitKnown {
        max_message: usize,
    },
    /// It does not know the engine.
    Unknown,
    Defined {
        map: MapId,
        definition: Arc<MapDefinition>,
    },
    Forgotten {
        map: MapId,
    },
    TasksCame {
        map: MapId,
        tasks: Vec<(u32, u32, Bytes)>,
    },
    Recorded {
        sequence: u64,
    },
    /// So much of what a task has written is on the controller's disk.
    OutputRecorded(OutputRecorded),
    /// Values that a task is to fold.
    ValuesCame(Values, Vec<Bytes>),
    /// The answer to [`Effect::KeepValues`], when all are in a file, or when that failed.
    ValuesKept {
        held: Held,
        place: Result<String, String>,
    },
    /// What was given back with this number is on the controller's disk.
    ReturnRecorded {
        sequence: u64,
    },
    GiveBackAsked {
        at_most: u32,
    },
    CancelAsked {
        tasks: Vec<Held>,
    },
    /// Leave now, or (`drain`) when what runs has ended.
    ShutdownAsked {
        drain: bool,
        reason: String,
        grace_period_ms: Option<u64>,
    },
    RequestCame(Arc<Request>),
    /// Of ipyparallel clients: these requests, or all, if not begun.
    AbortAsked {
        msg_ids: Option<Vec<String>>,
    },

    // ---- the code of maps
    /// It cannot be stored on this host, or is no longer there: this bundle; None: any.
    CodeFailed {
        hash: Option<String>,
        reason: String,
    },
    CodeWritten {
        hash: String,
    },
    /// The answer to [`Effect::TryToStoreCode`], unless that failed.
    CodeUsable,

    // ---- from workers; events of a worker that has been ended are not reported
    /// The spare has started.
    WorkerReady,
    /// The spare could not be started.
    WorkerFailed {
        reason: String,
    },
    /// The unit with this ticket has begun (told for requests only).
    UnitBegun {
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
        result: WorkerResult,
    },
    /// A request has published something, behind this output.
    Published {
        worker: WorkerKey,
        output: [Bytes; 2],
        published: Published,
    },
    /// Written while no unit ran.
    OutputUnclaimed {
        output: [Bytes; 2],
    },
    /// None: the spare. `unread` tokens were left; `how` it ended, in words; whether a signal `killed` it.
    WorkerExited {
        worker: Option<WorkerKey>,
        unread: usize,
        how: String,
        killed: bool,
        stderr_tail: String,
        output: [Bytes; 2],
    },
    /// The answer to [`Effect::TakeTokens`].
    TokensTaken {
        count: usize,
    },
    /// Output of the unit that runs; more may be there, for which [`super::Core::has_room`] is to be asked.
    Wrote {
        output: [Bytes; 2],
    },
    /// The answer to [`Effect::ReadOutput`]: after the end of every unit that ended before.
    OutputRead {
        output: [Bytes; 2],
    },

    /// The answer to [`Effect::MeasureMemory`]: bytes in memory of what runs and all that it started.
    MemoryMeasured {
        bytes: u64,
    },

    // ---- from the command that runs
    CommandWrote {
        output: [Bytes; 2],
    },
    CommandEnded(CommandEnd),

    /// Time has passed.
    Tick,
}

/// A message for iopub.
#[derive(Clone, Debug)]
pub struct Published {
    pub parent: Parent,
    pub kind: String,
    pub topic: String,
    /// Besides the engine's own.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// JSON text.
    pub content: Bytes,
    pub buffers: Vec<Bytes>,
}

/// What a message is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parent {
    /// The request that runs.
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
    /// With the bytes of its parts.
    SendProgress(Progress, Vec<Bytes>),
    SendReturned(Returned),
    SendValuesRequest(ValuesRequest),
    /// Whether Python functions can run here: `reason` is why not.
    ReportAvailability {
        reason: Option<String>,
    },
    /// It runs for a while already, or has something to say: iopub `status: busy`.
    RequestBegun(Arc<Request>),
    Stream {
        request: Arc<Request>,
        stderr: bool,
        text: String,
    },
    Publish {
        /// The header of the request that it is of.
        parent: Option<Bytes>,
        published: Published,
    },
    /// The reply, then iopub `status: idle`.
    Reply {
        request: Arc<Request>,
        started: UnixTime,
        reply: RequestReply,
    },
    /// Unregister; then end the process, or come back as another engine.
    Leave {
        reason: String,
        as_another: bool,
    },

    /// Add values to the file of a task.
    KeepValues {
        held: Held,
        is_first: bool,
        bytes: Vec<Bytes>,
        is_last: bool,
    },
    /// Remove that file, if it is there.
    ForgetValues {
        held: Held,
    },
    /// Whether the code of maps can be stored now.
    TryToStoreCode,

    // ---- to the log
    Warn(String),

    // ---- to workers
    /// Start a spare: a worker that has run no user code.
    StartWorker {
        /// It is ready when it has made IPython's shell: it will be the interactive one.
        has_shell: bool,
    },
    /// The spare is this worker from now on.
    AssignSpare {
        worker: WorkerKey,
    },
    /// End a worker that has nothing to do, and all that it has started.
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
    /// Tasks of one map; their tickets count up from `first`.
    GiveTasks {
        worker: WorkerKey,
        map: MapId,
        first: u32,
        inputs: Vec<Bytes>,
    },
    GiveRequest {
        ticket: u32,
        request: Arc<Request>,
    },
    /// Make the worker skip every unit that it has not begun, and say how many at once, before anything else.
    TakeTokens {
        worker: WorkerKey,
    },
    /// Look for what was written since the last look.
    ReadOutput {
        worker: WorkerKey,
    },
    /// Of this worker; None: of the command. It need not be exact below the limit.
    MeasureMemory {
        worker: Option<WorkerKey>,
        limit: u64,
    },
    /// None: the spare, which is not ready.
    SignalWorker {
        worker: Option<WorkerKey>,
        signal: Stage,
    },

    // ---- to commands
    StartCommand {
        unit: Unit,
        definition: Arc<MapDefinition>,
    },
    SignalCommand {
        signal: Stage,
    },
}

/// How hard something is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Interrupt,
    Terminate,
    Kill,
}

#[derive(Clone, Debug)]
pub enum RequestReply {
    /// What the worker made.
    Made {
        status: String,
        ename: String,
        content: Bytes,
        buffers: Vec<Bytes>,
    },
    /// The engine's own words.
    Failed {
        ename: String,
        evalue: String,
    },
    Aborted,
}
