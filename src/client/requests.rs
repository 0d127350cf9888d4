//! Requests to the controller, one method each. Types are in [`crate::wire::content::client`].
use super::{Client, ClientError};
use crate::model::definition::MapDefinition;
use crate::model::output::Stream;
use crate::model::query::TaskQuery;
use crate::model::targets::Targets;
use crate::model::task::{MapRow, TaskRow};
use crate::model::{EngineId, MapId, TaskId};
use crate::wire::content::client::{
    CANCEL, DETAILS, DetailsReply, DetailsRequest, Done, EXPLAIN, ExplainReply, ExplainRequest, JOBS, JobsReply, JobsRequest, MAPS,
    MapsReply, MapsRequest, OUTPUT, OutputReply, OutputRequest, PRIORITY, PURGE, PriorityRequest, PurgeRequest, RESUBMIT, ResubmitRequest,
    SIGNAL_ENGINES, STATUS, STOP, STOP_ENGINES, Selection, SelectionReply, SelectionRequest, SignalEnginesReply, SignalEnginesRequest,
    StatusReply, StopEnginesRequest, StopRequest, TASKS, TasksReply, TasksRequest,
};
use bytes::Bytes;
use serde::Serialize;
use std::time::Duration;

#[derive(Serialize)]
struct Nothing {}

impl Client {
    /// The state of the cluster: its engines and queue.
    pub async fn status(&self) -> Result<StatusReply, ClientError> {
        self.request(STATUS, &Nothing {}, Vec::new()).await
    }

    /// Maps, newest last.
    pub async fn maps(&self, query: &MapsRequest) -> Result<Vec<MapRow>, ClientError> {
        let reply: MapsReply = self.request(MAPS, query, Vec::new()).await?;
        Ok(reply.maps)
    }

    /// Tasks, and how many match without limit and offset.
    pub async fn tasks(&self, query: TaskQuery) -> Result<(Vec<TaskRow>, u64), ClientError> {
        let reply: TasksReply = self
            .request_for_rows(TASKS, &TasksRequest { query }, Vec::new(), Duration::ZERO)
            .await?;
        Ok((reply.tasks, reply.matching))
    }

    /// The details of a task: its map's definition, and earlier attempts.
    pub async fn details(&self, task: TaskId) -> Result<DetailsReply, ClientError> {
        self.request(DETAILS, &DetailsRequest { task, files: false }, Vec::new()).await
    }

    /// What a map runs, and a hash of each file of its code.
    pub async fn code(&self, map: MapId) -> Result<DetailsReply, ClientError> {
        let task = TaskId::new(map, 0);
        self.request(DETAILS, &DetailsRequest { task, files: true }, Vec::new()).await
    }

    /// A part of a task's output (of an earlier run, if given): its total size, and the bytes from `start`.
    pub async fn output(&self, task: TaskId, run: Option<u32>, stream: Stream, start: u64) -> Result<(u64, Bytes), ClientError> {
        let request = OutputRequest {
            task,
            stream,
            run,
            start,
            limit: 1 << 20,
        };
        let (reply, buffers): (OutputReply, _) = self.request_with_buffers(OUTPUT, &request).await?;
        Ok((reply.size, buffers.into_iter().next().unwrap_or_default()))
    }

    /// Why a task, map or engine is in its state. Controllers of earlier versions refuse it.
    pub async fn explain(&self, request: &ExplainRequest) -> Result<ExplainReply, ClientError> {
        self.request(EXPLAIN, request, Vec::new()).await
    }

    /// Cancels waiting and running tasks.
    pub async fn cancel(&self, selection: Selection) -> Result<SelectionReply, ClientError> {
        self.request(CANCEL, &SelectionRequest { selection }, Vec::new()).await
    }

    /// Changes the priority of an unfinished map.
    pub async fn set_priority(&self, map: MapId, priority: i32) -> Result<Done, ClientError> {
        self.request(PRIORITY, &PriorityRequest { map, priority }, Vec::new()).await
    }

    /// Runs finished tasks again.
    pub async fn resubmit(&self, selection: Selection) -> Result<SelectionReply, ClientError> {
        let definition = None;
        self.request(RESUBMIT, &ResubmitRequest { selection, definition }, Vec::new()).await
    }

    /// The same for one map with a new definition and its bundle.
    pub async fn resubmit_with(&self, selection: Selection, definition: MapDefinition) -> Result<SelectionReply, ClientError> {
        let bundle = definition.bundle().and_then(|named| named.content.clone());
        let buffers = bundle.iter().map(|bundle| bundle.content.clone()).collect();
        let definition = Some(definition);
        self.request(RESUBMIT, &ResubmitRequest { selection, definition }, buffers).await
    }

    /// Stops the controller; with `engines`, stops them first.
    pub async fn stop(&self, engines: bool) -> Result<(), ClientError> {
        self.request::<_, Done>(STOP, &StopRequest { engines }, Vec::new()).await.map(drop)
    }

    /// Stops engines; with `drain`, their running tasks finish first.
    pub async fn stop_engines(&self, engines: Vec<EngineId>, drain: bool) -> Result<(), ClientError> {
        self.request::<_, Done>(STOP_ENGINES, &StopEnginesRequest { engines, drain }, Vec::new())
            .await
            .map(drop)
    }

    /// Reports the state of batch jobs, and returns what is on record.
    pub async fn jobs(&self, request: &JobsRequest) -> Result<JobsReply, ClientError> {
        self.request(JOBS, request, Vec::new()).await
    }

    /// Sends a signal to the running tasks of these engines; returns the engines signalled.
    pub async fn signal_engines(&self, targets: Targets, signal: i32) -> Result<Vec<EngineId>, ClientError> {
        let request = SignalEnginesRequest { targets, signal };
        let reply: SignalEnginesReply = self.request(SIGNAL_ENGINES, &request, Vec::new()).await?;
        Ok(reply.engines)
    }

    /// Deletes finished maps.
    pub async fn purge(&self, maps: Vec<MapId>) -> Result<(), ClientError> {
        self.request::<_, Done>(PURGE, &PurgeRequest { maps }, Vec::new()).await.map(drop)
    }
}
