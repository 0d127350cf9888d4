//! What the core asks of the world. Effects are carried out in order; those that tell someone something, only after
//! every [`Effect::Record`] before them is committed.
use crate::model::change::Change;
use crate::model::definition::MapDefinition;
use crate::model::query::TaskQuery;
use crate::model::{EngineId, EngineUuid, MapId, TaskId, UnixTime};
use crate::wire::Message;
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
    /// `route` stands in front of the delimiter; its first frame is the client.
    ToClient {
        channel: ClientChannel,
        route: Vec<Bytes>,
        message: Message,
    },
    /// `client` is the frame that must come back with a reply (empty on the native channel).
    ToEngine {
        engine: EngineUuid,
        native: bool,
        channel: Channel,
        client: Bytes,
        message: Message,
    },
    /// On the registration socket of engines: the reply to an `ipengine`.
    ToRegistrant {
        identity: Bytes,
        message: Message,
    },
    /// A reply to a client that can be known again, told of by [`super::Event::RepliesGiven`] or [`super::Event::ReplyUnsent`].
    Reply {
        channel: ClientChannel,
        client: Bytes,
        reply: super::returning::OwedReply,
    },
    /// To every client that listens.
    Notify {
        message: Message,
    },
    Iopub {
        topic: Bytes,
        message: Message,
    },
    /// Heartbeat for `ipengine`s.
    Ping {
        payload: Bytes,
    },
    /// To be answered from the records, after the commit of what came before.
    Query(Query),
    /// Start Dask's scheduler, if it does not run; answered with [`super::event::Event::DaskAnswered`].
    StartDask {
        client: Bytes,
        parent: Bytes,
        arguments: serde_json::Value,
    },
    StopDask,
    /// The controller is to end, after that time.
    Stop {
        after: Duration,
    },
}

/// A question that only the records can answer. `client` and `parent` say whom to answer, and what.
#[derive(Clone, Debug)]
pub struct Query {
    pub client: Bytes,
    /// The request's message type, and its header as JSON.
    pub request: String,
    pub parent: Bytes,
    pub ask: Ask,
}

#[derive(Clone, Debug)]
pub enum Ask {
    /// A watch's results; what the core knows of the map comes along.
    Watch {
        map: MapId,
        from: u32,
        limit: u32,
        complete: bool,
        engines: u32,
        /// More results than this there cannot be; `u64::MAX` where they may be large.
        most: u64,
        /// It is the answer to a `map_request`, with these engines.
        begun: Option<Vec<EngineId>>,
    },
    /// The map of a `map_request` that is sent again, and the bundle that it does not bring. Comes back as
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
    /// Batch jobs, and engines of them that have gone since.
    Jobs {
        list: bool,
        gone_since: Option<UnixTime>,
    },
    /// A task's definition and the attempts that did not stand; and, if that is wished, a hash of each file of its code.
    Details {
        task: TaskId,
        files: bool,
    },
    /// A part of what a task has written.
    Output(crate::wire::content::client::OutputRequest),
    /// Values for a task of `--reduce`. Comes back as [`super::event::Event::ValuesFound`].
    Values {
        engine: EngineUuid,
        request: crate::wire::content::engine::ValuesRequest,
    },
    /// Finished tasks to run again. The answer comes back as [`super::event::Event::ResubmitFound`].
    Resubmit {
        selection: crate::wire::content::client::Selection,
        /// What they are to run, if not what they ran.
        definition: Option<Box<MapDefinition>>,
    },
    /// ipyparallel's `result_request`; `pending` are those that the core knows to be unfinished.
    Results {
        msg_ids: Vec<String>,
        pending: Vec<String>,
        status_only: bool,
    },
    History,
    Records {
        query: Bytes,
    },
    /// ipyparallel's `resubmit_request`; comes back as [`super::event::Event::RequestsFound`].
    ResubmitRequests {
        msg_ids: Vec<String>,
    },
    /// What ended before, the oldest of it; comes back as [`super::event::Event::ExpiredFound`].
    Expired {
        before: UnixTime,
    },
}
