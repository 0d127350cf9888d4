//! The broadcast scheduler: sends one request to many engines and returns their replies one by one or joined.
use super::Core;
use super::effect::ClientChannel;
use crate::model::{EngineUuid, TaskId};
use crate::wire::Message;
use crate::wire::content::engine::Channel;
use crate::wire::content::error::ErrorContent;
use crate::wire::message::to_json;
use bytes::Bytes;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// A broadcast whose replies are joined into one.
#[derive(Debug)]
pub(super) struct Coalescing {
    targets: Vec<Value>,
    order: Vec<String>,
    buffers: HashMap<String, Vec<Bytes>>,
    error: Option<Message>,
    /// Buffers of the replies so far.
    tasks: Vec<TaskId>,
}

/// A recorded part of a broadcast with a joined reply.
pub(super) struct Part {
    pub task: TaskId,
    pub msg_id: String,
    /// The metadata of the request.
    pub metadata: Bytes,
    /// Its reply, if it has arrived.
    pub reply: Option<Message>,
}

/// The id of the broadcast that a request is part of.
pub(super) fn original_of(metadata: &Bytes) -> Option<String> {
    let metadata: Value = serde_json::from_slice(metadata).ok()?;
    metadata.get("original_msg_id").and_then(Value::as_str).map(str::to_string)
}

pub(super) fn is_joined(metadata: &Bytes) -> bool {
    let metadata: Value = serde_json::from_slice(metadata).unwrap_or_default();
    metadata.get("is_coalescing").and_then(Value::as_bool).unwrap_or(false)
}

impl Core {
    pub(super) fn broadcast_request(&mut self, mut message: Message) {
        let client = message.sender();
        message.identities.clear();
        let mut metadata: Value = message.metadata().unwrap_or_default();
        let original = message.header.msg_id.clone();
        let targets: Vec<Value> = metadata.get("targets").and_then(Value::as_array).cloned().unwrap_or_default();
        let uuid_of = |t: &Value| t.as_str().or_else(|| t.get(0).and_then(Value::as_str)).map(str::to_string);
        let targets: Vec<Value> = targets.into_iter().filter(|t| uuid_of(t).is_some()).collect();
        let uuids: Vec<String> = targets.iter().filter_map(uuid_of).collect();
        let coalescing = metadata.get("is_coalescing").and_then(Value::as_bool).unwrap_or(false);
        if let Some(object) = metadata.as_object_mut() {
            object.insert("original_msg_id".into(), original.clone().into());
            object.remove("targets");
        }
        if coalescing {
            let order = uuids.iter().map(|u| format!("{original}_{u}")).collect();
            self.requests.broadcasts.insert(
                original.clone(),
                Coalescing {
                    targets: targets.clone(),
                    order,
                    buffers: HashMap::new(),
                    error: None,
                    tasks: Vec::new(),
                },
            );
        }
        for (uuid, target) in uuids.into_iter().zip(targets) {
            let mut part = message.clone();
            // Allows joining the parts after a restart.
            if let (true, Some(object)) = (coalescing, metadata.as_object_mut()) {
                object.insert("broadcast_target".into(), target);
            }
            part.metadata_json = to_json(&metadata);
            let mut header: Value = serde_json::from_slice(&part.header_json).unwrap_or_default();
            let msg_id = format!("{original}_{uuid}");
            if let Some(object) = header.as_object_mut() {
                object.insert("msg_id".into(), msg_id.clone().into());
            }
            part.header_json = to_json(&header);
            part.header.msg_id = msg_id.clone();
            let engine = EngineUuid::from(uuid.as_str());
            if self.engines.get(&engine).is_some() {
                self.open_request(Channel::Broadcast, client.clone(), part, Some(engine), Some(original.clone()));
            } else if coalescing {
                let content = ErrorContent::new("EngineError", format!("engine {uuid} is not registered"));
                let reply = self
                    .out
                    .message(&super::requests::reply_type(&part), Some(&part.header_json), &content);
                let key = self.requests.reconnects.key_of(ClientChannel::Broadcast, &client);
                self.broadcast_reply(&original, msg_id, (client.clone(), key), None, reply, "error");
            } else {
                let content = ErrorContent::new("EngineError", format!("engine {uuid} is not registered"));
                self.refuse(ClientChannel::Broadcast, client.clone(), &part, &content);
            }
        }
    }

    pub(super) fn broadcast_reply(
        &mut self,
        original: &str,
        msg_id: String,
        client: (Bytes, Option<String>),
        task: Option<TaskId>,
        message: Message,
        status: &str,
    ) {
        let channel = ClientChannel::Broadcast;
        let Some(joined) = self.requests.broadcasts.get_mut(original) else {
            return self.deliver(channel, client, task.into_iter().collect(), None, message);
        };
        joined.tasks.extend(task);
        joined.buffers.insert(msg_id, message.buffers.clone());
        if status != "ok" && joined.error.is_none() {
            joined.error = Some(message.clone());
        }
        if joined.buffers.len() < joined.order.len() {
            return;
        }
        let Some(mut joined) = self.requests.broadcasts.remove(original) else {
            return;
        };
        let mut reply = joined.error.take().unwrap_or(message);
        let mut metadata: Value = reply.metadata().unwrap_or_default();
        if let Some(object) = metadata.as_object_mut() {
            object.insert("broadcast_targets".into(), joined.targets.into());
            object.insert("is_coalescing".into(), true.into());
            object.insert("is_broadcast".into(), true.into());
            object.insert("original_msg_id".into(), original.into());
        }
        reply.metadata_json = to_json(&metadata);
        reply.buffers = joined
            .order
            .iter()
            .flat_map(|id| joined.buffers.remove(id).unwrap_or_default())
            .collect();
        self.deliver(channel, client, joined.tasks, None, reply);
    }

    /// Restores broadcasts whose joined replies were undelivered when the controller ended; all parts of each, in order.
    pub(super) fn restore_broadcasts(&mut self, key: Option<&String>, parts: Vec<Part>) {
        let mut by_original: BTreeMap<String, Vec<Part>> = BTreeMap::new();
        for part in parts.into_iter().filter(|part| is_joined(&part.metadata)) {
            if let Some(original) = original_of(&part.metadata) {
                by_original.entry(original).or_default().push(part);
            }
        }
        for (original, mut parts) in by_original {
            parts.sort_by_key(|part| part.task);
            let target = |part: &Part| {
                let metadata: Value = serde_json::from_slice(&part.metadata).unwrap_or_default();
                metadata.get("broadcast_target").cloned().unwrap_or_default()
            };
            let joined = Coalescing {
                targets: parts.iter().map(target).collect(),
                order: parts.iter().map(|part| part.msg_id.clone()).collect(),
                buffers: HashMap::new(),
                error: None,
                tasks: Vec::new(),
            };
            self.requests.broadcasts.insert(original.clone(), joined);
            for part in parts {
                let Some(reply) = part.reply else { continue };
                let content: Value = reply.content().unwrap_or_default();
                let status = content.get("status").and_then(Value::as_str).unwrap_or("error").to_string();
                let client = (Bytes::new(), key.cloned());
                self.broadcast_reply(&original, part.msg_id, client, Some(part.task), reply, &status);
            }
        }
    }
}
