//! Unfinished broadcasts whose replies are joined into one.
use crate::model::TaskId;
use crate::wire::Message;
use crate::wire::message::to_json;
use bytes::Bytes;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// By the message id of the request.
#[derive(Debug, Default)]
pub(crate) struct Broadcasts(HashMap<String, Joined>);

#[derive(Debug)]
struct Joined {
    targets: Vec<Value>,
    /// The message ids of the parts.
    order: Vec<String>,
    buffers: HashMap<String, Vec<Bytes>>,
    error: Option<Message>,
    /// The answered parts so far.
    tasks: Vec<TaskId>,
}

/// A recorded part of a broadcast with a joined reply.
pub(crate) struct Part {
    pub task: TaskId,
    pub msg_id: String,
    /// The metadata of the request.
    pub metadata: Bytes,
    /// Its reply, if it has arrived.
    pub reply: Option<Message>,
}

/// A reply to deliver, and the tasks that it answers.
pub(crate) type JoinedReply = (Vec<TaskId>, Message);

/// The id of the broadcast that a request is part of.
pub(crate) fn original_of(metadata: &Bytes) -> Option<String> {
    let metadata: Value = serde_json::from_slice(metadata).ok()?;
    metadata.get("original_msg_id").and_then(Value::as_str).map(str::to_string)
}

pub(crate) fn is_joined(metadata: &Bytes) -> bool {
    let metadata: Value = serde_json::from_slice(metadata).unwrap_or_default();
    metadata.get("is_coalescing").and_then(Value::as_bool).unwrap_or(false)
}

impl Broadcasts {
    pub(crate) fn start(&mut self, original: String, targets: Vec<Value>, order: Vec<String>) {
        let joined = Joined {
            targets,
            order,
            buffers: HashMap::new(),
            error: None,
            tasks: Vec::new(),
        };
        self.0.insert(original, joined);
    }

    /// True if this request is a part of an unfinished broadcast.
    pub(crate) fn has_part(&self, msg_id: &str) -> bool {
        self.0.keys().any(|original| msg_id.starts_with(original.as_str()))
    }

    /// Adds the reply of a part. Returns the reply to deliver: this one unless replies are joined, else the joined one, if this
    /// is the last part.
    pub(crate) fn add(
        &mut self,
        original: &str,
        msg_id: String,
        task: Option<TaskId>,
        message: Message,
        status: &str,
    ) -> Option<JoinedReply> {
        let Some(joined) = self.0.get_mut(original) else {
            return Some((task.into_iter().collect(), message));
        };
        joined.tasks.extend(task);
        joined.buffers.insert(msg_id, message.buffers.clone());
        if status != "ok" && joined.error.is_none() {
            joined.error = Some(message.clone());
        }
        if joined.buffers.len() < joined.order.len() {
            return None;
        }
        let mut joined = self.0.remove(original)?;
        let mut reply = joined.error.take().unwrap_or(message);
        let mut metadata: Value = reply.metadata().unwrap_or_default();
        if let Some(object) = metadata.as_object_mut() {
            object.insert("broadcast_targets".into(), joined.targets.into());
            object.insert("is_coalescing".into(), true.into());
            object.insert("is_broadcast".into(), true.into());
            object.insert("original_msg_id".into(), original.into());
        }
        reply.metadata_json = to_json(&metadata);
        let parts = joined.order.iter();
        reply.buffers = parts.flat_map(|id| joined.buffers.remove(id).unwrap_or_default()).collect();
        Some((joined.tasks, reply))
    }

    /// Restores broadcasts whose joined replies were undelivered when the controller ended; all parts of each, in order. Returns
    /// the replies to deliver.
    pub(crate) fn restore(&mut self, parts: Vec<Part>) -> Vec<JoinedReply> {
        let mut by_original: BTreeMap<String, Vec<Part>> = BTreeMap::new();
        for part in parts.into_iter().filter(|part| is_joined(&part.metadata)) {
            if let Some(original) = original_of(&part.metadata) {
                by_original.entry(original).or_default().push(part);
            }
        }
        let mut replies = Vec::new();
        for (original, mut parts) in by_original {
            parts.sort_by_key(|part| part.task);
            let target = |part: &Part| {
                let metadata: Value = serde_json::from_slice(&part.metadata).unwrap_or_default();
                metadata.get("broadcast_target").cloned().unwrap_or_default()
            };
            let order = parts.iter().map(|part| part.msg_id.clone()).collect();
            self.start(original.clone(), parts.iter().map(target).collect(), order);
            for part in parts {
                let Some(reply) = part.reply else { continue };
                let content: Value = reply.content().unwrap_or_default();
                let status = content.get("status").and_then(Value::as_str).unwrap_or("error").to_string();
                replies.extend(self.add(&original, part.msg_id, Some(part.task), reply, &status));
            }
        }
        replies
    }
}
