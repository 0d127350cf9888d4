//! Opens and seals messages with the key of a connection file.
use super::message::{EMPTY, Header, Message, to_json};
use super::signature::Key;
use super::{DELIMITER, Frames};
use crate::model::buffer_file::BufferFile;
use bytes::Bytes;
use serde::Serialize;
use std::collections::{HashSet, VecDeque};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    #[error("no <IDS|MSG> frame in a message of {0} frames")]
    NoDelimiter(usize),
    #[error("{0} frames after <IDS|MSG>, expected at least 5")]
    TooShort(usize),
    #[error("invalid signature: the key differs, or the message was modified")]
    BadSignature,
    #[error("replayed message: its signature was seen before")]
    Replayed,
    #[error("the header is not JSON: {0}")]
    BadHeader(String),
}

/// How many signatures are remembered to detect replays.
const MAX_REMEMBERED_SIGNATURES: usize = 65_536;

/// One side of signed conversations: its key, its name, and the signatures it has seen.
#[derive(Debug)]
pub struct Session {
    key: Key,
    /// The `session` field of every header created here.
    pub id: String,
    username: String,
    counter: u64,
    seen: HashSet<[u8; 16]>,
    order: VecDeque<[u8; 16]>,
}

impl Session {
    /// `id` must be unique: it is the prefix of the message ids created here.
    pub fn new(key: &[u8], id: impl Into<String>, username: impl Into<String>) -> Session {
        Session {
            key: Key::new(key),
            id: id.into(),
            username: username.into(),
            counter: 0,
            seen: HashSet::new(),
            order: VecDeque::new(),
        }
    }

    /// Splits, verifies and parses a received message.
    pub fn open(&mut self, frames: Frames) -> Result<Message, WireError> {
        let count = frames.len();
        let delimiter = frames
            .iter()
            .position(|frame| frame.as_ref() == DELIMITER)
            .ok_or(WireError::NoDelimiter(count))?;
        if count - delimiter - 1 < 5 {
            return Err(WireError::TooShort(count - delimiter - 1));
        }
        let mut frames = frames.into_iter();
        let identities: Vec<Bytes> = frames.by_ref().take(delimiter).collect();
        let mut part = || frames.next().unwrap_or_default();
        let _delimiter = part();
        let signature = part();
        let (header_json, parent_json, metadata_json, content_json) = (part(), part(), part(), part());
        let parts = [&header_json[..], &parent_json[..], &metadata_json[..], &content_json[..]];
        if !self.key.verify(parts, &signature) {
            return Err(WireError::BadSignature);
        }
        if self.key.is_signing() && !self.remember(&signature) {
            return Err(WireError::Replayed);
        }
        let header: Header = serde_json::from_slice(&header_json).map_err(|e| WireError::BadHeader(e.to_string()))?;
        Ok(Message {
            identities,
            header,
            header_json,
            parent_json,
            metadata_json,
            content_json,
            buffers: frames.collect(),
            buffer_file: BufferFile::default(),
        })
    }

    /// Returns false if the signature was seen before. Half of it is sufficient as a key.
    fn remember(&mut self, signature: &[u8]) -> bool {
        let mut short = [0u8; 16];
        if hex::decode_to_slice(signature.get(..32).unwrap_or_default(), &mut short).is_err() {
            return false;
        }
        if !self.seen.insert(short) {
            return false;
        }
        self.order.push_back(short);
        if self.order.len() > MAX_REMEMBERED_SIGNATURES
            && let Some(old) = self.order.pop_front()
        {
            self.seen.remove(&old);
        }
        true
    }

    /// A new message id of this session.
    pub fn next_id(&mut self) -> String {
        self.counter += 1;
        format!("{}_{}", self.id, self.counter)
    }

    /// Builds a message; `date` is ISO 8601 (the caller provides the time). `parent` is the header
    /// that it answers, as JSON.
    pub fn message<T: Serialize + ?Sized>(&mut self, date: &str, msg_type: &str, parent: Option<&Bytes>, content: &T) -> Message {
        let header = Header {
            msg_id: self.next_id(),
            msg_type: msg_type.to_string(),
            session: self.id.clone(),
            username: self.username.clone(),
            date: date.to_string(),
            version: "5.4".to_string(),
        };
        Message {
            identities: Vec::new(),
            header_json: to_json(&header),
            header,
            parent_json: parent.cloned().unwrap_or(EMPTY),
            metadata_json: EMPTY,
            content_json: to_json(content),
            buffers: Vec::new(),
            buffer_file: BufferFile::default(),
        }
    }

    /// Signs with this session's key; the parts stay unchanged. `prefix` is placed before the
    /// delimiter.
    pub fn seal(&self, prefix: &[Bytes], message: &Message) -> Frames {
        let mut frames = Vec::with_capacity(prefix.len() + 6 + message.buffers.len());
        frames.extend_from_slice(prefix);
        let parts = [
            &message.header_json[..],
            &message.parent_json[..],
            &message.metadata_json[..],
            &message.content_json[..],
        ];
        frames.push(Bytes::from_static(DELIMITER));
        frames.push(Bytes::from(self.key.sign(parts)));
        frames.extend([
            message.header_json.clone(),
            message.parent_json.clone(),
            message.metadata_json.clone(),
            message.content_json.clone(),
        ]);
        frames.extend_from_slice(&message.buffers);
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn session(key: &[u8]) -> Session {
        Session::new(key, "abc", "me")
    }

    #[test]
    fn sealed_messages_open() {
        let mut a = session(b"key");
        let mut b = Session::new(b"key", "other", "me");
        let mut message = a.message("2026-11-20T00:00:00Z", "apply_request", None, &serde_json::json!({"x": 1}));
        message.buffers = vec![Bytes::from_static(b"\0\x01"), Bytes::new()];
        let frames = a.seal(&[Bytes::from_static(b"id")], &message);
        let opened = b.open(frames.clone()).unwrap();
        assert_eq!(opened.sender(), "id");
        assert_eq!(opened.header, message.header);
        assert_eq!(opened.content_json, r#"{"x":1}"#);
        assert_eq!(opened.buffers, message.buffers);
        assert_eq!(b.open(frames).unwrap_err(), WireError::Replayed);
    }

    #[test]
    fn modified_messages_are_rejected() {
        let mut a = session(b"key");
        let message = a.message("", "x", None, &());
        for i in 2..6 {
            let mut frames = a.seal(&[], &message);
            frames[i] = Bytes::from_static(b"{\"a\":0}");
            assert_eq!(session(b"key").open(frames).unwrap_err(), WireError::BadSignature);
        }
        assert_eq!(session(b"other").open(a.seal(&[], &message)).unwrap_err(), WireError::BadSignature);
        assert!(session(b"").open(a.seal(&[], &message)).is_ok());
    }

    #[test]
    fn the_number_of_remembered_signatures_is_limited() {
        let mut a = session(b"k");
        let mut b = session(b"k");
        for _ in 0..MAX_REMEMBERED_SIGNATURES + 100 {
            let message = a.message("", "x", None, &());
            b.open(a.seal(&[], &message)).unwrap();
        }
        assert_eq!(b.seen.len(), MAX_REMEMBERED_SIGNATURES);
    }

    proptest! {
        #[test]
        fn opening_never_panics(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..10), at in 0usize..8) {
            let mut frames: Vec<Bytes> = frames.into_iter().map(Bytes::from).collect();
            let _ = session(b"k").open(frames.clone());
            frames.insert(at.min(frames.len()), Bytes::from_static(DELIMITER));
            let _ = session(b"k").open(frames.clone());
            let _ = session(b"").open(frames);
        }
    }
}
