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
    MapsReply, MapsRequest, OUTPUT, OutputReply, OutputRequest, PRIORITY, PURGE, PriorityRequest, PurgeRequest, RESUBMIT, RecordedFile,
    ResubmitRequest, SIGNAL_ENGINES, STATUS, STOP, STOP_ENGINES, Selection, SelectionReply, SelectionRequest, SignalEnginesReply,
    SignalEnginesRequest, StatusReply, StopEnginesRequest, StopRequest, TASKS, TasksReply, TasksRequest, WORK, WaitingWork, WorkReply,
};
use bytes::Bytes;
use serde::Serialize;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

#[derive(Serialize)]
struct Nothing {}

impl Client {
    /// The state of the cluster: its engines and queue.
    pub async fn status(&self) -> Result<StatusReply, ClientError> {
        self.request(STATUS, &Nothing {}, Vec::new()).await
    }

    /// What waits for an engine. Controllers of earlier versions refuse it.
    pub async fn waiting_work(&self) -> Result<Vec<WaitingWork>, ClientError> {
        let reply: WorkReply = self.request(WORK, &Nothing {}, Vec::new()).await?;
        Ok(reply.work)
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
            as_file: false,
        };
        let (reply, buffers): (OutputReply, _) = self.request_with_buffers(OUTPUT, &request).await?;
        Ok((reply.size, buffers.into_iter().next().unwrap_or_default()))
    }

    /// Why a task, map or engine is in its state. Controllers of earlier versions refuse it.
    pub async fn explain(&self, request: &ExplainRequest) -> Result<ExplainReply, ClientError> {
        self.request(EXPLAIN, request, Vec::new()).await
    }

    /// The whole output, if its file is on this host; else its first part.
    pub async fn output_by_file(&self, task: TaskId, run: u32, stream: Stream) -> Result<Bytes, ClientError> {
        let request = OutputRequest {
            task,
            stream,
            run: Some(run),
            start: 0,
            limit: 1 << 20,
            as_file: true,
        };
        let (reply, buffers): (OutputReply, _) = self.request_with_buffers(OUTPUT, &request).await?;
        let Some(file) = reply.file else {
            return Ok(buffers.into_iter().next().unwrap_or_default());
        };
        let read = tokio::task::spawn_blocking(move || read_recorded(&file, reply.size));
        match read.await.ok().flatten() {
            Some(bytes) => Ok(bytes),
            None => Ok(self.output(task, Some(run), stream, 0).await?.1),
        }
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
/// The first `size` bytes of a file, if it is the one that the controller means.
fn read_recorded(file: &RecordedFile, size: u64) -> Option<Bytes> {
    let mut open = File::open(&file.path).ok()?;
    let facts = open.metadata().ok()?;
    let modified_ns = facts.mtime().wrapping_mul(1_000_000_000).wrapping_add(facts.mtime_nsec());
    if (facts.dev(), facts.ino(), modified_ns) != (file.device, file.inode, file.modified_ns) || facts.len() < size {
        return None;
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(size).ok()?).ok()?;
    open.by_ref().take(size).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 == size).then(|| bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_that_the_controller_means_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("1-1-value");
        std::fs::write(&path, "0123456789").unwrap();
        let facts = std::fs::metadata(&path).unwrap();
        let file = RecordedFile {
            path: path.to_str().unwrap().into(),
            device: facts.dev(),
            inode: facts.ino(),
            modified_ns: facts.mtime() * 1_000_000_000 + facts.mtime_nsec(),
        };
        assert_eq!(read_recorded(&file, 10).unwrap(), "0123456789");
        assert_eq!(read_recorded(&file, 4).unwrap(), "0123", "more may have been written since");
        assert_eq!(read_recorded(&file, 11), None);
        let (device, inode, modified_ns) = (file.device ^ 1, file.inode ^ 1, file.modified_ns - 1);
        for other in [
            RecordedFile { device, ..file.clone() },
            RecordedFile { inode, ..file.clone() },
            RecordedFile {
                modified_ns,
                ..file.clone()
            },
        ] {
            assert_eq!(read_recorded(&other, 10), None);
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read_recorded(&file, 10), None);
    }
}
