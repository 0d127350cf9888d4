//! Replies to requests of ipyparallel clients: recorded, and delivered, or the request runs again.
use super::Core;
use super::effect::{ClientChannel, Effect};
use super::outbox::Timer;
use super::requests::{Client, OpenRequest, client_channel};
use crate::model::change::{Change, Reply};
use crate::model::task::TaskState;
use crate::model::{EngineUuid, TaskId, UnixTime};
use crate::wire::Message;
use crate::wire::content::client::reply_type;
use crate::wire::content::engine::Channel;
use crate::wire::content::error::ErrorContent;
use crate::wire::message::to_json;
use bytes::Bytes;
use serde_json::{Value, json};

pub(super) fn date_of(message: &Message, otherwise: UnixTime) -> UnixTime {
    UnixTime::from_iso(&message.header.date).unwrap_or(otherwise)
}

impl Core {
    pub(super) fn reply_of_engine(&mut self, engine: &EngineUuid, channel: Channel, client: Bytes, message: Message) {
        let msg_id = message.parent().map(|p| p.msg_id).unwrap_or_default();
        let uuid = Bytes::copy_from_slice(engine.0.as_bytes());
        let known = self.requests.get(&msg_id).is_some_and(|open| open.is_at(engine));
        let is_reply = matches!(message.msg_type(), "apply_reply" | "execute_reply");
        let native = self.engines.get(engine).is_some_and(|e| e.is_native());
        if is_reply && native {
            let bytes = message.buffers.iter().map(Bytes::len).sum();
            self.engines.acknowledge_reply(engine, msg_id.clone(), bytes, &mut self.out);
        }
        if is_reply && !known && channel != Channel::Control {
            // A duplicate reply, or one to a request that has already ended.
            return;
        }
        if !known || channel == Channel::Control {
            return self.out.push(Effect::ToClient {
                channel: client_channel(channel),
                route: vec![client, uuid],
                message,
            });
        }
        let metadata: Value = message.metadata().unwrap_or_default();
        let content: Value = message.content().unwrap_or_default();
        let status = content.get("status").and_then(Value::as_str).unwrap_or("error").to_string();
        if channel == Channel::Task && self.retry_elsewhere(&msg_id, engine, &metadata, &status) {
            return;
        }
        let Some(open) = self.requests.remove(&msg_id) else { return };
        self.forget_at_engine(&msg_id, engine);
        // The client itself ends a direct request, but not a part of a broadcast, when its engine departs.
        let is_ended_by_client = !self.note_reply(engine) && open.queue() == Channel::Mux;
        let undelivered = open.undelivered().filter(|_| !is_ended_by_client);
        let (started, ended) = self.record_reply(&msg_id, &message, (&metadata, &content), Some(engine), undelivered);
        if native {
            if let (Some(function), Some(started)) = (open.function(), started) {
                self.requests.learn(function, ended.since(started));
            }
            if let Some(started) = started.filter(|_| open.is_balanced()) {
                self.queue.charge(open.task().map, 1, ended.since(started));
            }
            self.publish_idle(engine, &message);
        }
        self.requests.settle(&msg_id, status == "ok", Some(engine.clone()));
        if !is_ended_by_client {
            self.route_reply(msg_id, &open, Some(uuid), message, &status);
        }
    }

    fn forget_at_engine(&mut self, msg_id: &str, engine: &EngineUuid) {
        self.engines.change(engine, |e| e.finish_request(msg_id));
        self.requests.recheck();
    }

    /// Publishes on iopub that a request's output is complete, which pcluster engines leave to the controller: the reply arrived
    /// after the output.
    fn publish_idle(&mut self, uuid: &EngineUuid, reply: &Message) {
        let Some(id) = self.engines.get(uuid).map(|e| e.id()) else { return };
        let content = json!({"execution_state": "idle"});
        let mut message = self.out.message("status", Some(&reply.parent_json), &content);
        message.metadata_json = to_json(&json!({ "engine": uuid }));
        let topic = Bytes::from(format!("engine.{id}.status"));
        self.out.push(Effect::Iopub { topic, message });
    }

    /// Sends a reply to its client, by itself or as a part of a broadcast.
    fn route_reply(&mut self, msg_id: String, open: &OpenRequest, engine: Option<Bytes>, reply: Message, status: &str) {
        let client = open.client().clone();
        match open.broadcast() {
            Some(original) => self.broadcast_reply(original, msg_id, client, Some(open.task()), reply, status),
            None => {
                let tasks = vec![open.task()];
                self.reconnects.deliver(open.channel(), client, tasks, engine, reply, &mut self.out);
            }
        }
    }

    /// Adds the reply of a part of a broadcast.
    pub(super) fn broadcast_reply(
        &mut self,
        original: &str,
        msg_id: String,
        client: Client,
        task: Option<TaskId>,
        message: Message,
        status: &str,
    ) {
        if let Some((tasks, reply)) = self.broadcasts.add(original, msg_id, task, message, status) {
            let channel = ClientChannel::Broadcast;
            self.reconnects.deliver(channel, client, tasks, None, reply, &mut self.out);
        }
    }

    /// Reruns a request after an unmet functional dependency, or after a failure with retries left. Returns true if it reruns.
    fn retry_elsewhere(&mut self, msg_id: &str, engine: &EngineUuid, metadata: &Value, status: &str) -> bool {
        let met = metadata.get("dependencies_met").and_then(Value::as_bool).unwrap_or(true);
        let Some(open) = self.requests.get_mut(msg_id) else {
            return false;
        };
        if met && (status == "ok" || status == "aborted" || !open.use_retry()) {
            return false;
        }
        open.exclude(engine.clone());
        self.forget_at_engine(msg_id, engine);
        self.requests.withdraw(msg_id, &mut self.out);
        let Some(open) = self.requests.get(msg_id) else { return true };
        let nowhere_else = self.requests.has_failed_everywhere(open, &self.engines);
        if nowhere_else && !met {
            self.fail_request(msg_id, "ImpossibleDependency", "no engine meets its functional dependency");
            return true;
        }
        if let Some(timeout) = open.timeout() {
            // It waits this long for another engine.
            let timer = Timer::RequestTimeout(msg_id.to_string(), open.run());
            self.out.set_timer(timeout, timer);
        } else if nowhere_else && let Some(open) = self.requests.get_mut(msg_id) {
            open.clear_excluded();
        }
        self.admit(msg_id);
        true
    }

    /// Fails a request with an error of the controller.
    pub(super) fn fail_request(&mut self, msg_id: &str, ename: &str, why: &str) {
        let Some(open) = self.requests.remove_queued(msg_id) else { return };
        if let Some(engine) = open.engine() {
            self.forget_at_engine(msg_id, engine);
        }
        let mut reply = self.error_reply(&open, ename, why);
        if let Some(engine) = open.engine() {
            reply.metadata_json = to_json(&json!({"status": "error", "engine": engine.to_string()}));
        }
        self.record_own_reply(msg_id, &reply, open.engine(), open.undelivered());
        self.requests.settle(msg_id, false, open.engine().cloned());
        self.route_reply(msg_id.to_string(), &open, None, reply, "error");
    }

    /// Fails a direct request whose engine left. The client itself ends it when it is notified of the departure, unless it is part
    /// of a broadcast.
    pub(super) fn fail_direct(&mut self, msg_id: &str, engine: &EngineUuid, why: &str) {
        let Some(open) = self.requests.remove(msg_id) else { return };
        let reply = self.error_reply(&open, "EngineError", why);
        let is_part = open.broadcast().is_some();
        self.record_own_reply(msg_id, &reply, None, open.undelivered().filter(|_| is_part));
        self.requests.settle(msg_id, false, Some(engine.clone()));
        if is_part {
            self.route_reply(msg_id.to_string(), &open, None, reply, "error");
        }
    }

    fn error_reply(&mut self, open: &OpenRequest, ename: &str, why: &str) -> Message {
        let request = open.message();
        let content = ErrorContent::new(ename, why);
        self.out
            .message(&reply_type(request.msg_type()), Some(&request.header_json), &content)
    }

    /// Records a reply made by the controller.
    fn record_own_reply(&mut self, msg_id: &str, reply: &Message, engine: Option<&EngineUuid>, undelivered: Option<TaskId>) {
        let (metadata, content) = (reply.metadata().unwrap_or_default(), reply.content().unwrap_or_default());
        self.record_reply(msg_id, reply, (&metadata, &content), engine, undelivered);
    }

    /// Records a reply. `undelivered`: the task, if the reply must be delivered even after a restart. Returns its start, if the reply
    /// has it, and its end.
    fn record_reply(
        &mut self,
        msg_id: &str,
        reply: &Message,
        (metadata, content): (&Value, &Value),
        engine: Option<&EngineUuid>,
        undelivered: Option<TaskId>,
    ) -> (Option<UnixTime>, UnixTime) {
        let status = match content.get("status").and_then(Value::as_str) {
            Some("ok") => TaskState::Ok,
            Some("aborted") => TaskState::Aborted,
            _ => match content.get("ename").and_then(Value::as_str) {
                Some("TaskTimeout") => TaskState::Timeout,
                Some("EngineError") => TaskState::Lost,
                Some("ImpossibleDependency" | "InvalidDependency") => TaskState::Aborted,
                _ => TaskState::Error,
            },
        };
        let engine = engine.and_then(|uuid| Some((self.engines.get(uuid)?.id(), uuid.clone())));
        let started = metadata.get("started").and_then(Value::as_str).and_then(UnixTime::from_iso);
        let received = self.out.now().unix;
        let completed = date_of(reply, received);
        self.finished_tasks += 1;
        self.out.record(Change::RequestFinished {
            msg_id: msg_id.to_string(),
            reply: Box::new(Reply {
                status,
                engine,
                header: reply.header_json.clone(),
                metadata: reply.metadata_json.clone(),
                content: reply.content_json.clone(),
                buffers: reply.buffers.clone(),
                started,
                completed,
                received,
            }),
        });
        if let Some(task) = undelivered {
            self.out.record(Change::ReplyUndelivered { task });
        }
        (started, completed)
    }
}
