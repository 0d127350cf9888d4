//! The broadcast scheduler: one request to many engines, its replies one by one or joined into one.
use super::{ClientChannel, Core};
use crate::model::EngineUuid;
use crate::wire::Message;
use crate::wire::content::engine::Channel;
use crate::wire::content::error::ErrorContent;
use crate::wire::message::to_json;
use bytes::Bytes;
use serde_json::Value;
use std::collections::HashMap;

/// A broadcast whose replies are joined into one.
#[derive(Debug)]
pub(super) struct Coalescing {
    targets: Vec<Value>,
    order: Vec<String>,
    buffers: HashMap<String, Vec<Bytes>>,
    error: Option<Message>,
}

impl Core {
    pub(super) fn broadcast_request(&mut self, mut message: Message) {
        let client = message.sender();
        message.identities.clear();
        let mut metadata: Value = message.metadata().unwrap_or_default();
        let original = message.header.msg_id.clone();
        let targets: Vec<Value> = metadata.get("targets").and_then(Value::as_array).cloned().unwrap_or_default();
        let uuid_of = |t: &Value| t.as_str().or_else(|| t.get(0).and_then(Value::as_str)).map(str::to_string);
        let uuids: Vec<String> = targets.iter().filter_map(uuid_of).collect();
        let coalescing = metadata.get("is_coalescing").and_then(Value::as_bool).unwrap_or(false);
        if let Some(object) = metadata.as_object_mut() {
            object.insert("original_msg_id".into(), original.clone().into());
            object.remove("targets");
        }
        message.metadata_json = to_json(&metadata);
        if coalescing {
            let order = uuids.iter().map(|u| format!("{original}_{u}")).collect();
            self.requests.broadcasts.insert(
                original.clone(),
                Coalescing {
                    targets,
                    order,
                    buffers: HashMap::new(),
                    error: None,
                },
            );
        }
        for uuid in uuids {
            let mut part = message.clone();
            let mut header: Value = serde_json::from_slice(&part.header_json).unwrap_or_default();
            let msg_id = format!("{original}_{uuid}");
            if let Some(object) = header.as_object_mut() {
                object.insert("msg_id".into(), msg_id.clone().into());
            }
            part.header_json = to_json(&header);
            part.header.msg_id = msg_id;
            let engine = EngineUuid::from(uuid.as_str());
            if self.engines.get(&engine).is_some() {
                self.open_request(Channel::Broadcast, client.clone(), part, Some(engine), Some(original.clone()));
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
        message: Message,
        status: &str,
    ) {
        let (client, key) = client;
        let channel = ClientChannel::Broadcast;
        let Some(joined) = self.requests.broadcasts.get_mut(original) else {
            return self.deliver(channel, client, key, None, message);
        };
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
        self.deliver(channel, client, key, None, reply);
    }
}
