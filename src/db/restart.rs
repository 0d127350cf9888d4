//! What a controller needs to carry on from the file of one that ended, however it ended.
use crate::model::change::Request;
use crate::model::definition::MapDefinition;
use crate::model::engine::EngineFacts;
use crate::model::task::{Counts, TaskState};
use crate::model::{EngineId, MapId, TaskId, UnixTime};
use bytes::Bytes;

/// The small part; tasks are taken map by map with [`super::Reader::unfinished_tasks`].
#[derive(Debug)]
pub struct RestartState {
    /// Never given to a map before.
    pub next_map: MapId,
    /// Never given to an engine before.
    pub next_engine: EngineId,
    /// Maps that are not completed, those of ipyparallel clients (`Work::Client`) among them, oldest first.
    pub maps: Vec<OpenMap>,
    /// Engines that are registered and not gone.
    pub engines: Vec<RegisteredEngine>,
}

#[derive(Debug)]
pub struct OpenMap {
    pub map: MapId,
    pub definition: MapDefinition,
    /// As `Change::MapAdded` said it.
    pub client: String,
    pub submitted: UnixTime,
    /// All inputs have arrived.
    pub closed: bool,
    pub counts: Counts,
}

#[derive(Debug)]
pub struct RegisteredEngine {
    pub id: EngineId,
    pub facts: EngineFacts,
    pub registered: UnixTime,
}

#[derive(Debug)]
pub struct UnfinishedTask {
    pub index: u32,
    /// One of the states that are not done.
    pub state: TaskState,
    pub run: u32,
    /// Where it was assigned.
    pub engine: Option<EngineId>,
    pub started: Option<UnixTime>,
    /// How often it was begun.
    pub attempts: u32,
    /// Since it was (re)submitted: how many attempts ended in a crash, and how many failed otherwise.
    pub crashes: u32,
    pub failures: u32,
    /// JSON text; empty for requests of ipyparallel clients.
    pub input: Bytes,
}

#[derive(Debug)]
pub struct UnfinishedRequest {
    pub task: TaskId,
    pub state: TaskState,
    pub run: u32,
    /// The engine it was assigned to; `request.engine` is the one it was addressed to, if it was.
    pub engine: Option<EngineId>,
    pub request: Request,
}
