//! The one that reads: beside a running controller, or the file of a stopped one.
use super::restart::{RestartState, UnfinishedRequest, UnfinishedTask};
use super::{DbError, RequestRecord};
use crate::model::change::Attempt;
use crate::model::definition::MapDefinition;
use crate::model::query::{MapQuery, TaskQuery};
use crate::model::task::{MapRow, TaskRow};
use crate::model::{MapId, TaskId};
use std::path::Path;

pub struct Reader {}

impl Reader {
    /// Opens the file for reading. In a directory that cannot be written too.
    pub fn open(path: &Path) -> Result<Reader, DbError> {
        todo!()
    }
    /// Newest last.
    pub fn maps(&self, query: &MapQuery) -> Result<Vec<MapRow>, DbError> {
        todo!()
    }
    /// The tasks, and how many match without `limit` and `offset`.
    pub fn tasks(&self, query: &TaskQuery) -> Result<(Vec<TaskRow>, u64), DbError> {
        todo!()
    }
    /// Finished tasks in input order from `from` on, up to the first that is not finished, at most `limit` of them and
    /// about 16 MiB (but one at least, if there is one).
    pub fn finished_from(&self, map: MapId, from: u32, limit: u32) -> Result<Vec<TaskRow>, DbError> {
        todo!()
    }
    /// Attempts that did not stand, oldest first, with their run numbers.
    pub fn attempts(&self, task: TaskId) -> Result<Vec<(u32, Attempt)>, DbError> {
        todo!()
    }
    pub fn map_definition(&self, map: MapId) -> Result<Option<MapDefinition>, DbError> {
        todo!()
    }
    /// The newest map that this client (session) submitted.
    pub fn map_of_client(&self, client: &str) -> Result<Option<MapId>, DbError> {
        todo!()
    }
    /// ipyparallel clients' requests with these ids, in any order; unknown ids are left out.
    pub fn requests(&self, msg_ids: &[String]) -> Result<Vec<RequestRecord>, DbError> {
        todo!()
    }
    /// All requests' ids by time of submission.
    pub fn request_history(&self) -> Result<Vec<String>, DbError> {
        todo!()
    }
    /// Ids of requests that are not finished.
    pub fn pending_requests(&self) -> Result<Vec<String>, DbError> {
        todo!()
    }
    /// ipyparallel's `db_request`: a MongoDB-like query over requests. With `keys`, the other fields are left empty.
    pub fn find_records(&self, query: &serde_json::Value, keys: Option<&[String]>) -> Result<Vec<RequestRecord>, DbError> {
        todo!()
    }
    /// What SQLite's quick check finds wrong; empty if nothing.
    pub fn check(&self) -> Result<Vec<String>, DbError> {
        todo!()
    }
    pub fn restart_state(&self) -> Result<RestartState, DbError> {
        todo!()
    }
    /// Calls `take` with each unfinished task of a map in input order, without holding more than one.
    pub fn unfinished_tasks(&self, map: MapId, take: &mut dyn FnMut(UnfinishedTask)) -> Result<(), DbError> {
        todo!()
    }
    /// Calls `take` with each unfinished request of a client's map in order of arrival.
    pub fn unfinished_requests(&self, map: MapId, take: &mut dyn FnMut(UnfinishedRequest)) -> Result<(), DbError> {
        todo!()
    }
}
