//! A message with a verified signature, with its original parts.
use crate::model::buffer_file::BufferFile;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The header fields that pcluster uses. Unknown fields stay in [`Message::header_json`].
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
    /// Routing identities before the delimiter; on a ROUTER the first is the sender's.
    pub identities: Vec<Bytes>,
    pub header: Header,
    pub header_json: Bytes,
    pub parent_json: Bytes,
    pub metadata_json: Bytes,
    pub content_json: Bytes,
    pub buffers: Vec<Bytes>,
    /// Not sent: where this process stores the buffers.
    pub buffer_file: BufferFile,
}

/// The protocol's representation of an empty JSON part.
pub const EMPTY: Bytes = Bytes::from_static(b"{}");

impl Message {
    /// Parses the content as `T`.
    pub fn content<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.content_json)
    }
    pub fn metadata<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.metadata_json)
    }
    /// The header of the request that this message answers; None if there is none.
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

/// `value` as JSON text. Serializing our own plain data does not fail.
pub fn to_json<T: Serialize + ?Sized>(value: &T) -> Bytes {
    serde_json::to_vec(value).map(Bytes::from).unwrap_or(EMPTY)
}
