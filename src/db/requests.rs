//! Requests of ipyparallel clients as the hub knows them.
use crate::model::{TaskId, UnixTime};
use bytes::Bytes;

/// One request with its reply: the fields of ipyparallel's task record. Texts of JSON stay texts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestRecord {
    pub msg_id: String,
    pub task: Option<TaskId>,
    pub header: Option<Bytes>,
    pub metadata: Option<Bytes>,
    pub content: Option<Bytes>,
    pub buffers: Vec<Bytes>,
    pub submitted: Option<UnixTime>,
    pub client_uuid: Option<String>,
    pub engine_uuid: Option<String>,
    pub started: Option<UnixTime>,
    pub completed: Option<UnixTime>,
    /// When the reply reached the controller.
    pub received: Option<UnixTime>,
    pub result_header: Option<Bytes>,
    pub result_metadata: Option<Bytes>,
    pub result_content: Option<Bytes>,
    pub result_buffers: Vec<Bytes>,
    pub queue: Option<String>,
    pub execute_input: Option<String>,
    pub execute_result: Option<Bytes>,
    pub error: Option<Bytes>,
    pub stdout: String,
    pub stderr: String,
    pub label: Option<String>,
}

impl RequestRecord {
    /// The record (or of it, `msg_id` and `keys`) as JSON without buffers, as `result_request` and `db_request` are
    /// answered. Dates are ISO 8601, missing values null.
    pub fn to_json(&self, keys: Option<&[String]>) -> serde_json::Map<String, serde_json::Value> {
        todo!()
    }
}
