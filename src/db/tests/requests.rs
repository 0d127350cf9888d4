//! Requests of ipyparallel clients.
use super::*;
use crate::model::change::Reply;

pub fn reply() -> Reply {
    Reply {
        status: TaskState::Ok,
        engine: Some((EngineId(0), "uuid-0".into())),
        header: "{\"msg_id\":\"r\"}".into(),
        metadata: "{\"engine_id\":0}".into(),
        content: "{\"status\":\"ok\"}".into(),
        buffers: vec![Bytes::from_static(b"\x80\x04"), Bytes::new()],
        started: Some(UnixTime(2000.0)),
        completed: UnixTime(2001.0),
    }
}
