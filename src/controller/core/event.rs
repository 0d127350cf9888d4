//! Events: what has happened. The time is passed with each event, see [`EventTime`].
use super::effect::{ClientChannel, UndeliveredReply};
use crate::model::change::{Request, UsedRetries};
use crate::model::definition::MapDefinition;
use crate::model::engine::EngineFacts;
use crate::model::output::Written;
use crate::model::task::{Ask, Counts, TaskState};
use crate::model::{EngineId, EngineUuid, MapId, TaskId, UnixTime};
use crate::wire::Message;
use crate::wire::content::client::Selection;
use crate::wire::content::engine::Channel;
use bytes::Bytes;
use std::collections::HashSet;
use std::time::Duration;

/// The time of an event: since the controller's start for intervals, since 1970 for records.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EventTime {
    pub since_start: Duration,
    pub unix: UnixTime,
}

/// Facts about the controller's own process.
#[derive(Clone, Debug)]
pub struct Facts {
    pub cluster_id: String,
    pub pid: u32,
    pub host: String,
    pub started: UnixTime,
    /// Unique to this run of the controller; the prefix of its message ids.
    pub session: String,
    /// The engine connection file as JSON; an `ipengine` receives it with its id.
    pub engine_file: serde_json::Value,
    /// For schemes that choose at random.
    pub seed: u64,
}

#[derive(Debug)]
pub enum Event {
    /// A client sent a message; its identities are `[client, (target)]`.
    ClientMessage {
        channel: ClientChannel,
        message: Message,
    },
    /// An engine sent a message. `client` is the frame before the delimiter: the client's identity, or iopub's topic.
    EngineMessage {
        engine: EngineUuid,
        native: bool,
        channel: Channel,
        client: Bytes,
        message: Message,
    },
    /// An `ipengine` sent a message on the engines' registration socket.
    RegistrantMessage {
        identity: Bytes,
        message: Message,
    },
    /// An `ipengine` answered a ping.
    PongReceived {
        engine: EngineUuid,
    },
    /// An engine's connection ended.
    EngineDisconnected {
        engine: EngineUuid,
    },
    /// A client's connection on a channel began (with its CURVE key, if it has one) or ended.
    ClientConnected {
        channel: ClientChannel,
        identity: Bytes,
        key: Option<String>,
    },
    ClientDisconnected {
        channel: ClientChannel,
        identity: Bytes,
    },
    /// [`super::Core::next_wake`] has come.
    TimePassed,
    /// The records' answer to [`super::effect::QueryKind::Resubmit`].
    ResubmitFound {
        client: Bytes,
        parent: Bytes,
        request: String,
        selection: Selection,
        definition: Option<Box<MapDefinition>>,
        maps: Vec<FoundMap>,
    },
    /// The records' answer to [`super::effect::QueryKind::Values`].
    ValuesFound {
        engine: EngineUuid,
        values: crate::wire::content::engine::Values,
        buffers: Vec<Bytes>,
    },
    /// The records' answer to [`super::effect::QueryKind::MapOf`].
    MapFound {
        request: Box<Message>,
        map: Option<MapId>,
        bundle: Option<Bytes>,
    },
    RequestsFound {
        client: Bytes,
        parent: Bytes,
        request: String,
        found: Vec<FoundRequest>,
        missing: Vec<String>,
    },
    /// The address of Dask's scheduler, or why it could not start.
    DaskStarted {
        client: Bytes,
        parent: Bytes,
        address: Result<serde_json::Value, crate::wire::content::error::ErrorContent>,
    },
    /// The records' answer to [`super::effect::QueryKind::Expired`].
    ExpiredFound(Expired),
    /// These replies have been written to the clients' connections.
    RepliesDelivered {
        tasks: Vec<TaskId>,
    },
    /// This reply was not written: its client is no longer connected.
    ReplyUndelivered {
        channel: ClientChannel,
        /// The routing id it was connected under.
        client: Bytes,
        reply: UndeliveredReply,
    },
    /// The number of peers disconnected since the start because they exceeded the send queue limit.
    PeersDisconnected {
        total: u64,
    },
    /// The controller received SIGTERM or SIGINT.
    StopRequested {
        engines: bool,
    },
}

/// Expired records: the oldest ones, not necessarily all.
#[derive(Debug, Default)]
pub struct Expired {
    pub maps: Vec<MapId>,
    /// Requests of ipyparallel clients, by message id.
    pub requests: Vec<String>,
    /// Submissions of such clients without any request.
    pub empty: Vec<MapId>,
}

/// A map as recorded.
#[derive(Debug)]
pub struct FoundMap {
    pub map: MapId,
    pub definition: MapDefinition,
    /// The key of its `map_request`.
    pub key: String,
    pub closed: bool,
    /// Closed before all its inputs arrived.
    pub abandoned: bool,
    pub counts: Counts,
    pub tasks: Vec<FoundTask>,
}

#[derive(Debug)]
pub struct FoundTask {
    pub index: u32,
    pub run: u32,
    pub attempts: u32,
    pub state: TaskState,
    /// Its engine, if it is assigned or running.
    pub engine: Option<EngineId>,
    pub used: UsedRetries,
    /// What it asks for in place of its map's request.
    pub ask: Ask,
    /// Cancelled while assigned to its engine.
    pub cancelled: bool,
    /// Recorded bytes of its current run's output: stdout, stderr, value.
    pub written: Written,
    pub input: Bytes,
}

/// A request of an ipyparallel client as recorded.
#[derive(Debug)]
pub struct FoundRequest {
    pub msg_id: String,
    pub header: Bytes,
    pub metadata: Bytes,
    pub content: Bytes,
    pub buffers: Vec<Bytes>,
}

/// The submission of an ipyparallel client, with its unfinished requests in order.
#[derive(Debug)]
pub struct FoundClient {
    pub session: String,
    pub key: Option<String>,
    pub map: MapId,
    pub next_index: u32,
    pub requests: Vec<UnfinishedRequest>,
    /// Finished requests whose replies were not delivered, in order.
    pub undelivered: Vec<FoundReply>,
}

#[derive(Debug)]
pub struct FoundReply {
    pub task: TaskId,
    pub msg_id: String,
    /// `mux`, `task` or `broadcast`.
    pub queue: String,
    /// The metadata of the request.
    pub metadata: Bytes,
    pub engine: Option<String>,
    pub reply: Message,
}

#[derive(Debug)]
pub struct UnfinishedRequest {
    pub task: TaskId,
    pub run: u32,
    /// Its assigned engine; none while it waits for one.
    pub engine: Option<EngineId>,
    pub request: Request,
}

/// The recorded state that a starting controller restores.
#[derive(Debug, Default)]
pub struct Restored {
    pub next_map: u32,
    pub next_engine: u32,
    /// Unfinished maps with their unfinished tasks, in order.
    pub maps: Vec<FoundMap>,
    /// Finished maps: true if a task failed.
    pub finished: Vec<(MapId, bool)>,
    /// Submissions of ipyparallel clients.
    pub clients: Vec<FoundClient>,
    /// Finished requests that unfinished ones depend on: success, and the engine they ran on.
    pub outcomes: Vec<(String, bool, Option<EngineUuid>)>,
    /// Engines that may reconnect.
    pub engines: Vec<(EngineId, EngineFacts, UnixTime)>,
    /// The last recorded value of the retention clock.
    pub retention_clock: Option<UnixTime>,
    /// Replies that the previous controller wrote to their connections, recorded or not.
    pub delivered: HashSet<TaskId>,
    /// Engines that ended with the previous controller.
    pub departed: Vec<(EngineId, EngineUuid)>,
}
