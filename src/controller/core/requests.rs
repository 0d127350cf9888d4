//! Tasks of ipyparallel clients: `apply_request` and `execute_request` through the direct (`mux`), balanced (`task`) and
//! broadcast schedulers. Frames are forwarded unchanged; only header and metadata are read.
use super::Core;
use super::dependency::Dependency;
use super::effect::{ClientChannel, Effect};
use super::engines::{Engines, ORPHAN_GRACE};
use super::outbox::Timer;
use super::prefetch::function_of;
use crate::model::buffer_file::BufferFile;
use crate::model::change::{Change, Reply, Request};
use crate::model::definition::{MapDefinition, MapOptions, Work};
use crate::model::task::TaskState;
use crate::model::{EngineUuid, MapId, TaskId, UnixTime};
use crate::wire::Message;
use crate::wire::content::engine::Channel;
use crate::wire::content::error::ErrorContent;
use crate::wire::message::to_json;
use bytes::Bytes;
use serde_json::Value;
use std::collections::{HashMap, HashSet, VecDeque};

/// Outcomes kept for dependencies of later requests.
const REMEMBERED: usize = 200_000;

#[derive(Debug, Default)]
pub(super) struct Requests {
    pub(super) open: HashMap<String, Open>,
    /// Balanced requests that may run on any engine, in order.
    pub(super) ready: VecDeque<String>,
    /// Balanced requests bound to certain engines or waiting for others: rechecked after changes.
    pub(super) bound: VecDeque<String>,
    pub(super) recheck: bool,
    /// Finished balanced tasks: success, and the engine.
    pub(super) outcomes: HashMap<String, (bool, Option<EngineUuid>)>,
    pub(super) outcome_order: VecDeque<String>,
    /// Each client session is one submission.
    pub(super) sessions: HashMap<String, (MapId, u32)>,
    pub(super) broadcasts: HashMap<String, super::broadcast::Coalescing>,
    /// Requests of `ipengine`s that left; a late reply may still arrive.
    pub(super) orphaned: HashMap<EngineUuid, Vec<String>>,
    pub(super) reconnects: super::reconnect::Reconnects,
}

#[derive(Debug)]
pub(super) struct Open {
    pub(super) task: TaskId,
    pub(super) run: u32,
    pub(super) queue: Channel,
    /// The routing id of its client; empty while the client is unknown or disconnected.
    pub(super) client: Bytes,
    /// Its CURVE key.
    pub(super) key: Option<String>,
    pub(super) message: Message,
    /// Its assigned engine.
    pub(super) engine: Option<EngineUuid>,
    pub(super) after: Dependency,
    pub(super) follow: Dependency,
    pub(super) targets: HashSet<EngineUuid>,
    pub(super) blacklist: HashSet<EngineUuid>,
    pub(super) retries: u64,
    /// The id of the broadcast that it is part of.
    pub(super) broadcast: Option<String>,
    /// A hash of the function that a balanced request calls, if known.
    pub(super) function: Option<u64>,
    pub(super) has_timeout: bool,
    /// The sequence number of its dispatch to a pcluster engine; 0 if it is on an `ipengine`.
    pub(super) sent: u64,
}

impl Open {
    fn new(
        task: TaskId,
        queue: Channel,
        (client, key): (Bytes, Option<String>),
        message: Message,
        metadata: &Value,
        broadcast: Option<String>,
    ) -> Open {
        let targets = match (queue, metadata.get("targets")) {
            (Channel::Task, Some(Value::Array(list))) => list.iter().filter_map(Value::as_str).map(EngineUuid::from).collect(),
            _ => HashSet::new(),
        };
        Open {
            task,
            run: 1,
            queue,
            client,
            key,
            engine: None,
            after: Dependency::from_json(metadata.get("after").unwrap_or(&Value::Null)),
            follow: Dependency::from_json(metadata.get("follow").unwrap_or(&Value::Null)),
            targets,
            blacklist: HashSet::new(),
            retries: metadata.get("retries").and_then(Value::as_u64).unwrap_or(0),
            broadcast,
            function: function_of(&message).filter(|_| queue == Channel::Task),
            has_timeout: false,
            sent: 0,
            message,
        }
    }

    /// The task, if its client can be identified after a restart.
    fn undelivered(&self) -> Option<TaskId> {
        self.key.is_some().then_some(self.task)
    }
    /// True if it is not bound to certain engines and has no dependencies.
    pub(super) fn is_unconstrained(&self) -> bool {
        self.after.is_empty() && self.follow.is_empty() && self.targets.is_empty() && self.blacklist.is_empty()
    }

    /// As it is sent. An engine that has had it before takes the very same message for a replay.
    /// `supports_files`: for an engine that can have large buffers from where they are kept.
    fn of_run(&self, supports_files: bool) -> Message {
        let mut message = self.message.clone();
        if !supports_files {
            message.buffer_file = BufferFile::default();
        }
        if self.run > 1 {
            message.metadata_json = with_run(&message.metadata_json, self.run);
        }
        message
    }

    /// Returns how long it may wait for an engine.
    fn timeout(&mut self, metadata: &Value) -> Option<std::time::Duration> {
        let seconds = metadata
            .get("timeout")
            .and_then(Value::as_f64)
            .filter(|t| *t > 0.0 && t.is_finite())?;
        let longest = std::time::Duration::from_secs(1 << 31);
        let timeout = std::time::Duration::try_from_secs_f64(seconds).unwrap_or(longest).min(longest);
        self.has_timeout = self.queue == Channel::Task;
        self.has_timeout.then_some(timeout)
    }
}

impl Requests {
    /// The number of unassigned tasks.
    pub(super) fn queued(&self) -> usize {
        self.ready.len() + self.bound.len()
    }
    pub(super) fn is_open(&self, msg_id: &str) -> bool {
        self.open.contains_key(msg_id)
    }
    pub(super) fn is_open_map(&self, map: MapId) -> bool {
        self.sessions.values().any(|(m, _)| *m == map)
    }
    /// Unassigned balanced tasks.
    pub(super) fn unassigned(&self) -> impl Iterator<Item = &String> {
        self.ready.iter().chain(self.bound.iter())
    }
    /// Splits an engine's requests into direct and balanced ones.
    pub(super) fn of_engine<'a>(&'a self, ids: impl Iterator<Item = &'a String>) -> (Vec<&'a String>, Vec<&'a String>) {
        ids.partition(|id| self.open.get(*id).is_some_and(|o| o.queue != Channel::Task))
    }
    /// Unfinished requests of this channel.
    pub(super) fn open_on(&mut self, channel: ClientChannel) -> impl Iterator<Item = &mut Open> {
        self.open.values_mut().filter(move |open| client_channel(open.queue) == channel)
    }
    pub(super) fn restore_outcome(&mut self, msg_id: &str, ok: bool, engine: Option<EngineUuid>) {
        self.remember(msg_id, ok, engine);
    }
    pub(super) fn restore_session(&mut self, session: String, map: MapId, next: u32) {
        self.sessions.insert(session, (map, next));
    }

    pub(super) fn outcome(&self, id: &str) -> Option<bool> {
        self.outcomes.get(id).map(|(ok, _)| *ok)
    }

    fn remember(&mut self, msg_id: &str, ok: bool, engine: Option<EngineUuid>) {
        if self.outcomes.insert(msg_id.to_string(), (ok, engine)).is_none() {
            self.outcome_order.push_back(msg_id.to_string());
        }
        if self.outcome_order.len() > REMEMBERED
            && let Some(old) = self.outcome_order.pop_front()
        {
            self.outcomes.remove(&old);
        }
    }

    pub(super) fn check(&self, engines: &Engines) {
        for (id, open) in &self.open {
            let Some(uuid) = &open.engine else { continue };
            // Orphaned requests wait even if their engine has reconnected.
            let orphaned = self.orphaned.get(uuid).is_some_and(|ids| ids.contains(id));
            if let Some(engine) = engines.get(uuid).filter(|_| !orphaned) {
                assert!(engine.holds_request(id), "{id} is assigned to its engine");
            }
        }
        for id in self.unassigned() {
            assert!(
                self.open.get(id).is_some_and(|o| o.engine.is_none()),
                "{id} is queued and unassigned"
            );
        }
    }
}

fn is_task(message: &Message) -> bool {
    matches!(message.msg_type(), "apply_request" | "execute_request")
}

fn date_of(message: &Message, otherwise: UnixTime) -> UnixTime {
    UnixTime::from_iso(&message.header.date).unwrap_or(otherwise)
}

impl Core {
    /// Records a request and tracks it until its reply.
    pub(super) fn open_request(
        &mut self,
        queue: Channel,
        client: Bytes,
        mut message: Message,
        engine: Option<EngineUuid>,
        broadcast: Option<String>,
    ) {
        message.buffer_file = BufferFile::unwritten(&message.buffers);
        let metadata: Value = message.metadata().unwrap_or_default();
        let session = message.header.session.clone();
        let key = self.requests.reconnects.key_of(client_channel(queue), &client);
        let known = self.requests.sessions.get(&session).copied();
        let (map, index) = match known {
            Some(place) => place,
            None => {
                let map = self.maps.new_id();
                let options = MapOptions {
                    name: Some(format!("ipyparallel client {}", message.header.username)),
                    ..MapOptions::default()
                };
                let definition = Box::new(MapDefinition {
                    work: Work::Client { curve_key: key.clone() },
                    options,
                });
                let submitted = self.out.now().unix;
                self.out.record(Change::MapAdded {
                    map,
                    definition,
                    client: session.clone(),
                    submitted,
                });
                (map, 0)
            }
        };
        self.requests.sessions.insert(session.clone(), (map, index + 1));
        let queue_name = match queue {
            Channel::Mux => "mux",
            Channel::Broadcast => "broadcast",
            _ => "task",
        };
        self.out.record(Change::RequestAdded {
            task: TaskId::new(map, index),
            request: Box::new(Request {
                msg_id: message.header.msg_id.clone(),
                queue: queue_name,
                client: session,
                header: message.header_json.clone(),
                metadata: message.metadata_json.clone(),
                content: message.content_json.clone(),
                buffers: message.buffers.clone(),
                buffer_file: message.buffer_file.clone(),
                engine: engine.clone(),
                submitted: date_of(&message, self.out.now().unix),
                label: metadata.get("label").and_then(Value::as_str).map(str::to_string),
            }),
        });
        let mut open = Open::new(TaskId::new(map, index), queue, (client, key), message, &metadata, broadcast);
        let msg_id = open.message.header.msg_id.clone();
        if let Some(timeout) = open.timeout(&metadata) {
            self.out.set_timer(timeout, Timer::RequestTimeout(msg_id.clone(), open.run));
        }
        self.requests.open.insert(msg_id.clone(), open);
        if let Some(engine) = engine {
            self.send_request(&msg_id, &engine);
        }
    }

    /// Restores an unfinished request: assigned if its engine may reconnect, queued, or failed if its engine is gone.
    pub(super) fn restore_request(&mut self, key: Option<String>, found: super::event::UnfinishedRequest) {
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
            parent_json: crate::wire::message::EMPTY,
            metadata_json: request.metadata,
            content_json: request.content,
            buffers: request.buffers,
            buffer_file: request.buffer_file,
        };
        let msg_id = request.msg_id;
        let broadcast = super::broadcast::original_of(&message.metadata_json).filter(|_| queue == Channel::Broadcast);
        let metadata: Value = message.metadata().unwrap_or_default();
        let mut open = Open::new(found.task, queue, (Bytes::new(), key), message, &metadata, broadcast);
        open.run = found.run;
        if let Some(timeout) = open.timeout(&metadata) {
            self.out.set_timer(timeout, Timer::RequestTimeout(msg_id.clone(), open.run));
        }
        let engine = found.engine.and_then(|id| self.engines.uuid_of(id).cloned());
        open.engine = engine.clone();
        self.requests.open.insert(msg_id.clone(), open);
        match engine {
            Some(engine) => {
                self.engines.change(&engine, |e| e.assign_request(&msg_id, false));
            }
            None if queue == Channel::Task && found.engine.is_none() => self.admit(&msg_id),
            None if self.has_retry(&msg_id) => self.rerun_request(&msg_id),
            None => self.fail_request(&msg_id, "EngineError", "its engine ended with the previous controller"),
        }
    }

    /// Uses a retry of a request whose engine is gone, if one is left.
    fn has_retry(&mut self, msg_id: &str) -> bool {
        let open = self.requests.open.get_mut(msg_id);
        let retries = open.filter(|open| open.queue == Channel::Task).map(|open| &mut open.retries);
        retries.filter(|retries| **retries > 0).map(|retries| *retries -= 1).is_some()
    }

    fn rerun_request(&mut self, msg_id: &str) {
        self.withdraw_request(msg_id);
        self.admit(msg_id);
    }

    pub(super) fn send_request(&mut self, msg_id: &str, uuid: &EngineUuid) {
        let supports_files = self.engines.get(uuid).is_some_and(|e| e.facts().supports_files());
        let Some(open) = self.requests.open.get_mut(msg_id) else { return };
        open.engine = Some(uuid.clone());
        let balanced = open.queue == Channel::Task;
        let function = open.function;
        let (task, run) = (open.task, open.run);
        let (channel, client, message) = (open.queue, open.client.clone(), open.of_run(supports_files));
        if let (true, Some(engine)) = (balanced, self.engines.get(uuid).map(|e| e.id())) {
            self.out.record(Change::TasksAssigned {
                map: task.map,
                first: task.index,
                count: 1,
                run,
                engine,
            });
        }
        let quick = function.is_some_and(|function| self.is_quick(function));
        self.flush_now |= !quick;
        let native = self.engines.change(uuid, |e| {
            e.assign_request(msg_id, quick);
            e.is_native()
        });
        let native = native.unwrap_or(false);
        self.sent_tasks += 1;
        let sent = if native { self.sent_tasks } else { 0 };
        if let Some(open) = self.requests.open.get_mut(msg_id) {
            open.sent = sent;
        }
        self.out.push(Effect::ToEngine {
            engine: uuid.clone(),
            native,
            channel,
            client,
            message,
        });
    }

    // ---- messages of clients

    pub(super) fn mux_request(&mut self, mut message: Message) {
        let client = message.sender();
        let Some(target) = message
            .identities
            .get(1)
            .map(|t| EngineUuid::from(String::from_utf8_lossy(t).as_ref()))
        else {
            tracing::warn!("direct request without an engine");
            return;
        };
        message.identities.clear();
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
        let client = message.sender();
        let target = message
            .identities
            .get(1)
            .map(|t| EngineUuid::from(String::from_utf8_lossy(t).as_ref()));
        message.identities.clear();
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

    /// Fails a request with an error of the controller.
    pub(super) fn fail_request(&mut self, msg_id: &str, ename: &str, why: &str) {
        let Some(open) = self.requests.open.remove(msg_id) else { return };
        self.requests.ready.retain(|id| id != msg_id);
        self.requests.bound.retain(|id| id != msg_id);
        if let Some(engine) = &open.engine {
            self.forget_at_engine(msg_id, engine);
        }
        let content = ErrorContent::new(ename, why);
        let mut reply = self
            .out
            .message(&reply_type(&open.message), Some(&open.message.header_json), &content);
        if let Some(engine) = &open.engine {
            reply.metadata_json = to_json(&serde_json::json!({"status": "error", "engine": engine.to_string()}));
        }
        self.record_own_reply(msg_id, &reply, open.engine.as_ref(), open.undelivered());
        self.settle(msg_id, false, open.engine.clone());
        self.route_reply(msg_id.to_string(), open, None, reply, "error");
    }

    pub(super) fn refuse(&mut self, channel: ClientChannel, client: Bytes, request: &Message, content: &ErrorContent) {
        let reply = self.out.message(&reply_type(request), Some(&request.header_json), content);
        self.out.push(Effect::ToClient {
            channel,
            route: vec![client],
            message: reply,
        });
    }

    /// Records an outcome; dependent requests are rechecked.
    pub(super) fn settle(&mut self, msg_id: &str, ok: bool, engine: Option<EngineUuid>) {
        self.requests.remember(msg_id, ok, engine);
        self.requests.recheck = !self.requests.bound.is_empty();
    }

    fn forget_at_engine(&mut self, msg_id: &str, engine: &EngineUuid) {
        self.engines.change(engine, |e| e.finish_request(msg_id));
        self.requests.recheck = !self.requests.bound.is_empty();
    }

    /// Resends requests to a reconnected engine that holds only `has`: the missing ones never reached it, or it returned them
    /// to the previous controller.
    pub(super) fn send_again(&mut self, uuid: &EngineUuid, has: &[String]) {
        let Some(engine) = self.engines.get(uuid) else { return };
        let mut missing: Vec<&Open> = engine
            .requests()
            .filter(|id| !has.contains(id))
            .filter_map(|id| self.requests.open.get(id))
            .collect();
        missing.sort_by_key(|open| open.task);
        let (native, supports_files) = (engine.is_native(), engine.facts().supports_files());
        let mut of_before = Vec::new();
        for open in missing {
            if open.queue == Channel::Task && open.sent == 0 {
                of_before.push(open.message.header.msg_id.clone());
                continue;
            }
            self.out.push(Effect::ToEngine {
                engine: uuid.clone(),
                native,
                channel: open.queue,
                client: open.client.clone(),
                message: open.of_run(supports_files),
            });
        }
        for msg_id in of_before {
            self.engines.change(uuid, |e| e.drop_request(&msg_id));
            self.withdraw_request(&msg_id);
            self.send_request(&msg_id, uuid);
        }
    }

    // ---- messages of engines

    pub(super) fn reply_of_engine(&mut self, engine: &EngineUuid, channel: Channel, client: Bytes, message: Message) {
        let msg_id = message.parent().map(|p| p.msg_id).unwrap_or_default();
        let uuid = Bytes::copy_from_slice(engine.0.as_bytes());
        let known = self.requests.open.get(&msg_id).is_some_and(|o| o.engine.as_ref() == Some(engine));
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
            let route = vec![client, uuid];
            self.out.push(Effect::ToClient {
                channel: client_channel(channel),
                route,
                message,
            });
            return;
        }
        let metadata: Value = message.metadata().unwrap_or_default();
        let content: Value = message.content().unwrap_or_default();
        let status = content.get("status").and_then(Value::as_str).unwrap_or("error").to_string();
        if channel == Channel::Task && self.retry_elsewhere(&msg_id, engine, &metadata, &status) {
            return;
        }
        let Some(open) = self.requests.open.remove(&msg_id) else { return };
        self.forget_at_engine(&msg_id, engine);
        // The client itself ends a direct request, but not a part of a broadcast, when its engine departs.
        let is_ended_by_client = !self.note_reply(engine) && open.queue == Channel::Mux;
        let undelivered = open.undelivered().filter(|_| !is_ended_by_client);
        let (started, ended) = self.record_reply(&msg_id, &message, (&metadata, &content), Some(engine), undelivered);
        if native {
            self.learn_request(&open, started, ended);
            self.publish_idle(engine, &message);
        }
        self.settle(&msg_id, status == "ok", Some(engine.clone()));
        if !is_ended_by_client {
            self.route_reply(msg_id, open, Some(uuid), message, &status);
        }
    }

    /// Sends a reply to its client, by itself or as a part of a broadcast.
    fn route_reply(&mut self, msg_id: String, open: Open, engine: Option<Bytes>, reply: Message, status: &str) {
        let client = (open.client, open.key);
        match &open.broadcast {
            Some(original) => self.broadcast_reply(original, msg_id, client, Some(open.task), reply, status),
            None => self.deliver(client_channel(open.queue), client, vec![open.task], engine, reply),
        }
    }

    /// Reruns a request after an unmet functional dependency, or after a failure with retries left. Returns true if it reruns.
    fn retry_elsewhere(&mut self, msg_id: &str, engine: &EngineUuid, metadata: &Value, status: &str) -> bool {
        let met = metadata.get("dependencies_met").and_then(Value::as_bool).unwrap_or(true);
        let Some(open) = self.requests.open.get_mut(msg_id) else {
            return false;
        };
        if met && (status == "ok" || status == "aborted" || open.retries == 0) {
            return false;
        }
        if met {
            open.retries -= 1;
        }
        open.blacklist.insert(engine.clone());
        self.forget_at_engine(msg_id, engine);
        self.withdraw_request(msg_id);
        let Some(open) = self.requests.open.get(msg_id) else {
            return true;
        };
        let ran_at = |id: &String| self.requests.outcomes.get(id).and_then(|(_, engine)| engine.clone());
        let follows: HashSet<EngineUuid> = open.follow.ids.iter().filter_map(ran_at).collect();
        let may = |uuid: &EngineUuid| {
            (open.targets.is_empty() || open.targets.contains(uuid)) && (open.follow.ids.is_empty() || follows.contains(uuid))
        };
        let nowhere_else = self.engines.iter().all(|(uuid, _)| !may(uuid) || open.blacklist.contains(uuid));
        let request_metadata: Value = open.message.metadata().unwrap_or_default();
        let Some(open) = self.requests.open.get_mut(msg_id) else {
            return true;
        };
        match open.timeout(&request_metadata) {
            _ if nowhere_else && !met => {
                self.fail_request(msg_id, "ImpossibleDependency", "no engine meets its functional dependency");
                return true;
            }
            // It waits this long for another engine.
            Some(timeout) => {
                let run = open.run;
                self.out.set_timer(timeout, Timer::RequestTimeout(msg_id.to_string(), run));
            }
            None if nowhere_else => open.blacklist.clear(),
            None => {}
        }
        self.admit(msg_id);
        true
    }

    /// Removes the assignment to an engine.
    pub(super) fn withdraw_request(&mut self, msg_id: &str) {
        let Some(open) = self.requests.open.get_mut(msg_id) else { return };
        open.engine = None;
        open.run += 1;
        let (task, run) = (open.task, open.run);
        self.out.record(Change::TaskReturned { task, run, attempt: None });
    }

    /// Records a reply. `undelivered`: the task, if the reply must be delivered even after a restart. Returns its start, if the reply has it, and its end.
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
        let completed = date_of(reply, self.out.now().unix);
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
                received: self.out.now().unix,
            }),
        });
        if let Some(task) = undelivered {
            self.out.record(Change::ReplyUndelivered { task });
        }
        (started, completed)
    }

    /// Records a reply made by the controller.
    pub(super) fn record_own_reply(&mut self, msg_id: &str, reply: &Message, engine: Option<&EngineUuid>, undelivered: Option<TaskId>) {
        let (metadata, content) = (reply.metadata().unwrap_or_default(), reply.content().unwrap_or_default());
        self.record_reply(msg_id, reply, (&metadata, &content), engine, undelivered);
    }

    /// Orphans the requests of a departed engine. The client itself ends direct requests when it is notified of the departure.
    pub(super) fn requests_of_gone(&mut self, uuid: &EngineUuid) {
        let Some(engine) = self.engines.get(uuid) else { return };
        let ids: Vec<String> = engine.requests().cloned().collect();
        if ids.is_empty() {
            return;
        }
        // Like ipyparallel's client, wait for replies in transit.
        // The engine may leave, reconnect and leave again in that time.
        self.requests.orphaned.entry(uuid.clone()).or_default().extend(ids.iter().cloned());
        self.out.set_timer(ORPHAN_GRACE, Timer::Orphaned(uuid.clone()));
        for id in ids {
            self.engines.change(uuid, |e| e.drop_request(&id));
        }
    }

    pub(super) fn orphaned(&mut self, uuid: EngineUuid) {
        let sent = |id: &String| {
            self.requests
                .open
                .get(id)
                .filter(|o| o.engine.as_ref() == Some(&uuid))
                .map(|o| o.sent)
        };
        let left = self.requests.orphaned.get(&uuid).into_iter().flatten();
        let mut left: Vec<(u64, String)> = left.filter_map(|id| Some((sent(id)?, id.clone()))).collect();
        left.sort();
        left.dedup();
        self.requests.orphaned.remove(&uuid);
        for (place, (sent, msg_id)) in left.into_iter().enumerate() {
            let Some(open) = self.requests.open.get(&msg_id) else { continue };
            if open.queue == Channel::Task && sent > 0 && place > 0 {
                // It was queued behind the request that may have crashed the engine.
                self.rerun_request(&msg_id);
                continue;
            }
            if self.has_retry(&msg_id) {
                self.rerun_request(&msg_id);
                continue;
            }
            let Some(open) = self.requests.open.get(&msg_id) else { continue };
            let why = format!("Engine {uuid} died while running task {msg_id}");
            if open.queue == Channel::Task {
                self.fail_request(&msg_id, "EngineError", &why);
            } else if let Some(open) = self.requests.open.remove(&msg_id) {
                let content = ErrorContent::new("EngineError", why);
                let reply = self
                    .out
                    .message(&reply_type(&open.message), Some(&open.message.header_json), &content);
                let is_part = open.broadcast.is_some();
                self.record_own_reply(&msg_id, &reply, None, open.undelivered().filter(|_| is_part));
                self.settle(&msg_id, false, Some(uuid.clone()));
                if is_part {
                    self.route_reply(msg_id, open, None, reply, "error");
                }
            }
        }
    }

    /// Reruns a finished request under a new id (ipyparallel's `resubmit_request`).
    pub(super) fn resubmit_request(&mut self, client: Bytes, found: super::event::FoundRequest) -> String {
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
            parent_json: crate::wire::message::EMPTY,
            metadata_json: found.metadata,
            content_json: found.content,
            buffers: found.buffers,
            buffer_file: BufferFile::default(),
        };
        self.task_request(message);
        msg_id
    }
}

/// Adds the run number to the metadata.
fn with_run(metadata: &Bytes, run: u32) -> Bytes {
    let mut metadata: serde_json::Map<String, Value> = serde_json::from_slice(metadata).unwrap_or_default();
    metadata.insert("pcluster_run".into(), run.into());
    to_json(&metadata)
}

pub(super) fn reply_type(request: &Message) -> String {
    crate::wire::content::client::reply_type(request.msg_type())
}

pub(super) fn client_channel(channel: Channel) -> ClientChannel {
    match channel {
        Channel::Mux => ClientChannel::Mux,
        Channel::Broadcast => ClientChannel::Broadcast,
        Channel::Control => ClientChannel::Control,
        _ => ClientChannel::Task,
    }
}
