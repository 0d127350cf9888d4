//! Effects: what the core asks the driver to do. They are carried out in order; an effect that sends something is carried
//! out only after every preceding [`Effect::Record`] is committed.
use crate::model::change::Change;
use crate::model::definition::MapDefinition;
use crate::model::query::{EngineQuery, TaskQuery};
use crate::model::{EngineId, EngineUuid, MapId, TaskId, UnixTime};
use crate::wire::Message;
use crate::wire::content::client::ExplainReply;
use crate::wire::content::engine::Channel;
use bytes::Bytes;
use std::time::Duration;

/// A socket that clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientChannel {
    Registration,
    Mux,
    Task,
    Broadcast,
    Control,
}

#[derive(Clone, Debug)]
pub enum Effect {
    Record(Change),
    /// `route` precedes the delimiter; its first frame is the client.
    ToClient {
        channel: ClientChannel,
        route: Vec<Bytes>,
        message: Message,
    },
    /// `client` is the frame that a reply must return (empty on the native channel).
    ToEngine {
        engine: EngineUuid,
        native: bool,
        channel: Channel,
        client: Bytes,
        message: Message,
    },
    /// Replies to an `ipengine` on the engines' registration socket.
    ToRegistrant {
        identity: Bytes,
        message: Message,
    },
    /// Replies to a client that can be identified after a reconnect; confirmed by [`super::Event::RepliesDelivered`] or rejected by [`super::Event::ReplyUndelivered`].
    Reply {
        channel: ClientChannel,
        client: Bytes,
        reply: UndeliveredReply,
    },
    /// Publishes to every subscribed client.
    Notify {
        message: Message,
    },
    Iopub {
        topic: Bytes,
        message: Message,
    },
    /// Sends a heartbeat to `ipengine`s.
    Ping {
        payload: Bytes,
    },
    /// Answers a query from the records after the preceding changes are committed.
    Query(Query),
    /// Starts Dask's scheduler unless it is running; answered with [`super::event::Event::DaskStarted`].
    StartDask {
        client: Bytes,
        parent: Bytes,
        arguments: serde_json::Value,
    },
    StopDask,
    /// Stops the controller after this time.
    Stop {
        after: Duration,
    },
}

/// A reply in transit to a client that can be identified after a reconnect.
#[derive(Clone, Debug)]
pub struct UndeliveredReply {
    pub key: String,
    /// The answered tasks: one request, or the parts of a broadcast.
    pub tasks: Vec<TaskId>,
    /// The frame before the reply: the engine, if an engine made it.
    pub engine: Option<Bytes>,
    pub message: Message,
}

/// A query that only the records can answer. `client` and `parent` address the answer.
#[derive(Clone, Debug)]
pub struct Query {
    pub client: Bytes,
    /// The request's message type, and its header as JSON.
    pub request: String,
    pub parent: Bytes,
    pub kind: QueryKind,
}

#[derive(Clone, Debug)]
pub enum QueryKind {
    /// The results for a watch, with the core's state of the map.
    Watch {
        map: MapId,
        from: u32,
        limit: u32,
        without_inputs: bool,
        complete: bool,
        engines: u32,
        /// An upper bound of the number of results; `u64::MAX` if they may be large.
        most: u64,
        /// Answers a `map_request`, with these engines.
        begun: Option<Vec<EngineId>>,
    },
    /// Finds the map of a repeated `map_request`, and the bundle missing from the request. Answered with
    /// [`super::event::Event::MapFound`].
    MapOf {
        key: String,
        request: Box<Message>,
        bundle: Option<String>,
    },
    Maps {
        maps: Vec<MapId>,
        since: Option<UnixTime>,
        label: Option<String>,
        limit: Option<u64>,
    },
    Tasks {
        query: Box<TaskQuery>,
    },
    /// Batch jobs, and their engines that left since.
    Jobs {
        list: bool,
        gone_since: Option<UnixTime>,
    },
    /// Recorded engines for an explanation, which the core has begun.
    Explain {
        engines: Option<EngineQuery>,
        reply: Box<ExplainReply>,
    },
    /// A task's definition and its superseded attempts; on request, a hash of each file of its code.
    Details {
        task: TaskId,
        files: bool,
    },
    /// A part of a task's output.
    Output(crate::wire::content::client::OutputRequest),
    /// Values for a task of `--reduce`. Answered with [`super::event::Event::ValuesFound`].
    Values {
        engine: EngineUuid,
        request: crate::wire::content::engine::ValuesRequest,
    },
    /// Finished tasks to resubmit. Answered with [`super::event::Event::ResubmitFound`].
    Resubmit {
        selection: crate::wire::content::client::Selection,
        /// Their new definition, if it changes.
        definition: Option<Box<MapDefinition>>,
    },
    /// ipyparallel's `result_request`; `pending` lists the requests that are unfinished according to the core.
    Results {
        msg_ids: Vec<String>,
        pending: Vec<String>,
        status_only: bool,
    },
    History,
    Records {
        query: Bytes,
    },
    /// ipyparallel's `resubmit_request`; answered with [`super::event::Event::RequestsFound`].
    ResubmitRequests {
        msg_ids: Vec<String>,
    },
    /// The oldest records that ended before this time; answered with [`super::event::Event::ExpiredFound`].
    Expired {
        before: UnixTime,
    },
}
