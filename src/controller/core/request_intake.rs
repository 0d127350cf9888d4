//! Requests of ipyparallel's schedulers arrive, are recorded, and tracked until their reply.
use super::Core;
use super::effect::{ClientChannel, Effect};
use super::event::{FoundRequest, UnfinishedRequest};
use super::outbox::Timer;
use super::requests::{Client, OpenRequest, client_channel, original_of};
use crate::model::buffer_file::BufferFile;
use crate::model::change::{Change, Request};
use crate::model::definition::{MapDefinition, MapOptions, Work};
use crate::model::{EngineUuid, TaskId};
use crate::wire::Message;
use crate::wire::content::client::reply_type;
use crate::wire::content::engine::Channel;
use crate::wire::content::error::ErrorContent;
use crate::wire::message::{EMPTY, to_json};
use bytes::Bytes;
use serde_json::Value;

fn is_task(message: &Message) -> bool {
    matches!(message.msg_type(), "apply_request" | "execute_request")
}

/// The client, and the engine that it names.
fn take_route(message: &mut Message) -> (Bytes, Option<EngineUuid>) {
    let route = std::mem::take(&mut message.identities);
    let target = route.get(1).map(|t| EngineUuid::from(String::from_utf8_lossy(t).as_ref()));
    (route.into_iter().next().unwrap_or_default(), target)
}

impl Core {
    pub(super) fn task_request(&mut self, mut message: Message) {
        let (client, _) = take_route(&mut message);
        let msg_id = message.header.msg_id.clone();
        self.open_request(Channel::Task, client, message, None, None);
        self.admit(&msg_id);
    }

    pub(super) fn mux_request(&mut self, mut message: Message) {
        let (client, target) = take_route(&mut message);
        let Some(target) = target else {
            return tracing::warn!("direct request without an engine");
        };
        if self.departures.is_pending(&target) {
            // The client is about to be notified of the departure, and ends this request with the others.
            return tracing::info!(%target, "direct request to an engine that just left");
        }
        let Some(native) = self.engines.get(&target).map(|e| e.is_native()) else {
            let content = ErrorContent::new("EngineError", format!("engine {target} is not registered"));
            return self.refuse(ClientChannel::Mux, client, &message, &content);
        };
        if is_task(&message) {
            self.open_request(Channel::Mux, client, message, Some(target), None);
        } else {
            self.out.push(Effect::ToEngine {
                engine: target,
                native,
                channel: Channel::Mux,
                client,
                message,
            });
        }
    }

    pub(super) fn control_request(&mut self, mut message: Message) {
        let (client, target) = take_route(&mut message);
        match target.and_then(|uuid| self.engines.get(&uuid).map(|e| (uuid, e.is_native()))) {
            Some((engine, native)) => self.out.push(Effect::ToEngine {
                engine,
                native,
                channel: Channel::Control,
                client,
                message,
            }),
            None => tracing::warn!(kind = message.msg_type(), "control request for an unregistered engine"),
        }
    }

    /// Sends one request to many engines, as a part for each. Their replies return one by one or joined.
    pub(super) fn broadcast_request(&mut self, mut message: Message) {
        let (client, _) = take_route(&mut message);
        let mut metadata: Value = message.metadata().unwrap_or_default();
        let original = message.header.msg_id.clone();
        let targets: Vec<Value> = metadata.get("targets").and_then(Value::as_array).cloned().unwrap_or_default();
        let uuid_of = |t: &Value| t.as_str().or_else(|| t.get(0).and_then(Value::as_str)).map(str::to_string);
        let targets: Vec<Value> = targets.into_iter().filter(|t| uuid_of(t).is_some()).collect();
        let uuids: Vec<String> = targets.iter().filter_map(uuid_of).collect();
        let joined = metadata.get("is_coalescing").and_then(Value::as_bool).unwrap_or(false);
        if let Some(object) = metadata.as_object_mut() {
            object.insert("original_msg_id".into(), original.clone().into());
            object.remove("targets");
        }
        if joined {
            let order = uuids.iter().map(|u| format!("{original}_{u}")).collect();
            self.broadcasts.start(original.clone(), targets.clone(), order);
        }
        for (uuid, target) in uuids.into_iter().zip(targets) {
            let mut part = message.clone();
            // Allows joining the parts after a restart.
            if let (true, Some(object)) = (joined, metadata.as_object_mut()) {
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
                continue;
            }
            let content = ErrorContent::new("EngineError", format!("engine {uuid} is not registered"));
            if joined {
                let reply = self.out.message(&reply_type(part.msg_type()), Some(&part.header_json), &content);
                let client = self.reconnects.client(ClientChannel::Broadcast, client.clone());
                self.broadcast_reply(&original, msg_id, client, None, reply, "error");
            } else {
                self.refuse(ClientChannel::Broadcast, client.clone(), &part, &content);
            }
        }
    }

    fn refuse(&mut self, channel: ClientChannel, client: Bytes, request: &Message, content: &ErrorContent) {
        let message = self
            .out
            .message(&reply_type(request.msg_type()), Some(&request.header_json), content);
        let route = vec![client];
        self.out.push(Effect::ToClient { channel, route, message });
    }

    /// Records a request and tracks it until its reply.
    fn open_request(&mut self, queue: Channel, client: Bytes, mut message: Message, engine: Option<EngineUuid>, broadcast: Option<String>) {
        message.buffer_file = BufferFile::unwritten(&message.buffers);
        let metadata: Value = message.metadata().unwrap_or_default();
        let client = self.reconnects.client(client_channel(queue), client);
        let task = self.next_task_of_client(&message, &client);
        let queue_name = match queue {
            Channel::Mux => "mux",
            Channel::Broadcast => "broadcast",
            _ => "task",
        };
        self.out.record(Change::RequestAdded {
            task,
            request: Box::new(Request {
                msg_id: message.header.msg_id.clone(),
                queue: queue_name,
                client: message.header.session.clone(),
                header: message.header_json.clone(),
                metadata: message.metadata_json.clone(),
                content: message.content_json.clone(),
                buffers: message.buffers.clone(),
                buffer_file: message.buffer_file.clone(),
                engine: engine.clone(),
                submitted: super::replies::date_of(&message, self.out.now().unix),
                label: metadata.get("label").and_then(Value::as_str).map(str::to_string),
            }),
        });
        let msg_id = message.header.msg_id.clone();
        self.track(OpenRequest::new(task, queue, client, message, &metadata, broadcast));
        if let Some(engine) = engine {
            self.send_request(&msg_id, &engine);
        }
    }

    /// Each client session is one submission.
    fn next_task_of_client(&mut self, message: &Message, client: &Client) -> TaskId {
        let session = &message.header.session;
        if let Some(task) = self.requests.next_task(session) {
            return task;
        }
        let map = self.maps.new_id();
        let options = MapOptions {
            name: Some(format!("ipyparallel client {}", message.header.username)),
            ..MapOptions::default()
        };
        let work = Work::Client {
            curve_key: client.key.clone(),
        };
        self.out.record(Change::MapAdded {
            map,
            definition: Box::new(MapDefinition { work, options }),
            client: session.clone(),
            submitted: self.out.now().unix,
        });
        self.requests.add_session(session.clone(), map, 1);
        TaskId::new(map, 0)
    }

    fn track(&mut self, open: OpenRequest) {
        if let Some(timeout) = open.timeout() {
            let msg_id = open.message().header.msg_id.clone();
            self.out.set_timer(timeout, Timer::RequestTimeout(msg_id, open.run()));
        }
        self.requests.insert(open);
    }

    /// Restores an unfinished request: assigned if its engine may reconnect, queued, or failed if its engine is gone.
    pub(super) fn restore_request(&mut self, key: Option<String>, found: UnfinishedRequest) {
        let request = found.request;
        let queue = match request.queue {
            "mux" => Channel::Mux,
            "broadcast" => Channel::Broadcast,
            _ => Channel::Task,
        };
        let message = Message {
            identities: Vec::new(),
            header: serde_json::from_slice(&request.header).unwrap_or_default(),
            header_json: request.header,
            parent_json: EMPTY,
            metadata_json: request.metadata,
            content_json: request.content,
            buffers: request.buffers,
            buffer_file: request.buffer_file,
        };
        let msg_id = request.msg_id;
        let broadcast = original_of(&message.metadata_json).filter(|_| queue == Channel::Broadcast);
        let metadata: Value = message.metadata().unwrap_or_default();
        let identity = Bytes::new();
        let engine = found.engine.and_then(|id| self.engines.uuid_of(id).cloned());
        let open = OpenRequest::new(found.task, queue, Client { identity, key }, message, &metadata, broadcast);
        self.track(open.restored(found.run, engine.clone()));
        match engine {
            Some(engine) => {
                let session = found.task.map;
                self.engines.change(&engine, |e| e.assign_request(&msg_id, session, false));
            }
            None if queue == Channel::Task && found.engine.is_none() => self.admit(&msg_id),
            None => self.request_lost(&msg_id, "its engine ended with the previous controller"),
        }
    }

    /// Reruns a finished request under a new id (ipyparallel's `resubmit_request`).
    pub(super) fn resubmit_request(&mut self, client: Bytes, found: FoundRequest) -> String {
        let msg_id = self.out.next_id();
        let mut header: Value = serde_json::from_slice(&found.header).unwrap_or_default();
        if let Some(object) = header.as_object_mut() {
            object.insert("msg_id".into(), msg_id.clone().into());
            object.insert("date".into(), self.out.now().unix.to_iso().into());
        }
        let header_json = to_json(&header);
        let message = Message {
            identities: vec![client],
            header: serde_json::from_slice(&header_json).unwrap_or_default(),
            header_json,
            parent_json: EMPTY,
            metadata_json: found.metadata,
            content_json: found.content,
            buffers: found.buffers,
            buffer_file: BufferFile::default(),
        };
        self.task_request(message);
        msg_id
    }
}
