//! A message whose signature was checked, with its parts as they came.
use crate::model::kept::Kept;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The header's fields that pcluster looks at. Fields that it does not know stay in [`Message::header_json`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Header {
    pub msg_id: String,
    pub msg_type: String,
    pub session: String,
    pub username: String,
    /// ISO 8601.
    pub date: String,
    pub version: String,
}

#[derive(Clone, Debug, Default)]
pub struct Message {
    /// Routing identities in front of the delimiter; on a ROUTER the first is the sender's.
    pub identities: Vec<Bytes>,
    pub header: Header,
    pub header_json: Bytes,
    pub parent_json: Bytes,
    pub metadata_json: Bytes,
    pub content_json: Bytes,
    pub buffers: Vec<Bytes>,
    /// Does not travel: where the buffers are kept here.
    pub kept: Kept,
}

/// The protocol's word for "nothing" in a JSON part.
pub const EMPTY: Bytes = Bytes::from_static(b"{}");

impl Message {
    /// Reads the content as `T`.
    pub fn content<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.content_json)
    }
    pub fn metadata<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.metadata_json)
    }
    /// The header of the message that this one answers; None where there is none.
    pub fn parent(&self) -> Option<Header> {
        let header: Header = serde_json::from_slice(&self.parent_json).ok()?;
        (!header.msg_id.is_empty()).then_some(header)
    }
    pub fn msg_type(&self) -> &str {
        &self.header.msg_type
    }
    /// The sender on a ROUTER socket.
    pub fn sender(&self) -> Bytes {
        self.identities.first().cloned().unwrap_or_default()
    }
}

/// JSON text of `value`. Our own plain data always has some.
pub fn to_json<T: Serialize + ?Sized>(value: &T) -> Bytes {
    serde_json::to_vec(value).map(Bytes::from).unwrap_or(EMPTY)
}
