//! What has happened. Time is given beside each event, see [`super::Now`].
use super::effect::ClientChannel;
use crate::model::change::Request;
use crate::model::definition::MapDefinition;
use crate::model::engine::EngineFacts;
use crate::model::output::Written;
use crate::model::task::{Counts, TaskState};
use crate::model::{EngineId, EngineUuid, MapId, TaskId, UnixTime};
use crate::wire::Message;
use crate::wire::content::client::Selection;
use crate::wire::content::engine::Channel;
use bytes::Bytes;
use std::collections::HashSet;

#[derive(Debug)]
pub enum Event {
    /// A client's message; its identities are `[client, (target)]`.
    ClientSaid {
        channel: ClientChannel,
        message: Message,
    },
    /// An engine's message. `client` is the frame in front of the delimiter: the client's identity, or iopub's topic.
    EngineSaid {
        engine: EngineUuid,
        native: bool,
        channel: Channel,
        client: Bytes,
        message: Message,
    },
    /// An `ipengine` on the engines' registration socket.
    RegistrantSaid {
        identity: Bytes,
        message: Message,
    },
    /// An `ipengine` answered a ping.
    Ponged {
        engine: EngineUuid,
    },
    /// An engine's connection ended.
    ConnectionEnded {
        engine: EngineUuid,
    },
    /// A client's connection on a channel began (with its CURVE key, if it has one) or ended.
    ClientCame {
        channel: ClientChannel,
        identity: Bytes,
        key: Option<String>,
    },
    ClientLeft {
        channel: ClientChannel,
        identity: Bytes,
    },
    /// [`super::Core::next_wake`] has come.
    TimePassed,
    /// The records' answer to [`super::effect::Ask::Resubmit`].
    ResubmitFound {
        client: Bytes,
        parent: Bytes,
        request: String,
        selection: Selection,
        definition: Option<Box<MapDefinition>>,
        maps: Vec<FoundMap>,
    },
    /// The records' answer to [`super::effect::Ask::Values`].
    ValuesFound {
        engine: EngineUuid,
        values: crate::wire::content::engine::Values,
        buffers: Vec<Bytes>,
    },
    /// The records' answer to [`super::effect::Ask::MapOf`].
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
    /// Where Dask's scheduler is, or why there is none.
    DaskAnswered {
        client: Bytes,
        parent: Bytes,
        place: Result<serde_json::Value, crate::wire::content::error::ErrorContent>,
    },
    /// The records' answer to [`super::effect::Ask::Expired`].
    ExpiredFound(super::Expired),
    /// These replies have been handed to the clients' connections.
    RepliesGiven {
        tasks: Vec<TaskId>,
    },
    /// This one has not: its client is not connected any more.
    ReplyUnsent {
        channel: ClientChannel,
        /// As which it was connected.
        client: Bytes,
        reply: super::returning::OwedReply,
    },
    /// So many peers have been cut off since the start because they did not read.
    PeersCutOff {
        total: u64,
    },
    /// The controller was told to end (SIGTERM).
    StopAsked {
        engines: bool,
    },
}

/// A map as the records have it.
#[derive(Debug)]
pub struct FoundMap {
    pub map: MapId,
    pub definition: MapDefinition,
    /// The key of its `map_request`.
    pub key: String,
    pub closed: bool,
    /// Closed without all of its inputs.
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
    /// Its engine, when it is assigned or running.
    pub engine: Option<EngineId>,
    /// What has been used of the budgets for errors and crashes.
    pub errors: u32,
    pub crashes: u32,
    /// Cancelled while with its engine.
    pub cancelled: bool,
    /// Bytes of its current run's output that are on record: stdout, stderr.
    pub written: Written,
    pub input: Bytes,
}

/// A request of an ipyparallel client as the records have it.
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
    /// Finished ones whose replies it was not given, in order.
    pub owed: Vec<FoundReply>,
}

#[derive(Debug)]
pub struct FoundReply {
    pub task: TaskId,
    pub msg_id: String,
    /// `mux`, `task` or `broadcast`.
    pub queue: String,
    /// The request's.
    pub metadata: Bytes,
    pub engine: Option<String>,
    pub reply: Message,
}

#[derive(Debug)]
pub struct UnfinishedRequest {
    pub task: TaskId,
    pub run: u32,
    /// Where it is; none when it waits for an engine.
    pub engine: Option<EngineId>,
    pub request: Request,
}

/// What a controller that starts finds in the records.
#[derive(Debug, Default)]
pub struct Restored {
    pub next_map: u32,
    pub next_engine: u32,
    /// Unfinished maps with their unfinished tasks, in order.
    pub maps: Vec<FoundMap>,
    /// Finished maps: whether any task failed.
    pub finished: Vec<(MapId, bool)>,
    /// Submissions of ipyparallel clients.
    pub clients: Vec<FoundClient>,
    /// Finished requests that unfinished ones depend on: well or not, and where they ran.
    pub outcomes: Vec<(String, bool, Option<EngineUuid>)>,
    /// Engines that may come back.
    pub engines: Vec<(EngineId, EngineFacts, UnixTime)>,
    /// How far the records' age had come.
    pub retention_clock: Option<UnixTime>,
    /// Replies that the controller before had written to their connections, whether or not the records know.
    pub delivered: HashSet<TaskId>,
    /// Engines that ended with the controller before.
    pub departed: Vec<(EngineId, EngineUuid)>,
}
