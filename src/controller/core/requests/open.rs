//! An unfinished request of an ipyparallel client. Frames are forwarded unchanged; only header and metadata are read.
use super::super::dependency::Dependency;
use super::super::effect::{ClientChannel, Effect};
use super::super::prefetch::function_of;
use crate::model::buffer_file::BufferFile;
use crate::model::{EngineUuid, TaskId};
use crate::wire::Message;
use crate::wire::content::engine::Channel;
use crate::wire::message::to_json;
use bytes::Bytes;
use serde_json::Value;
use std::collections::HashSet;
use std::time::Duration;

/// A client that waits for a reply.
#[derive(Clone, Debug, Default)]
pub(crate) struct Client {
    /// Its routing id; empty while the client is unknown or disconnected.
    pub identity: Bytes,
    /// Its CURVE key.
    pub key: Option<String>,
}

#[derive(Debug)]
pub(crate) struct OpenRequest {
    task: TaskId,
    run: u32,
    queue: Channel,
    client: Client,
    message: Message,
    /// Its assigned engine.
    engine: Option<EngineUuid>,
    after: Dependency,
    follow: Dependency,
    targets: HashSet<EngineUuid>,
    blacklist: HashSet<EngineUuid>,
    retries: u64,
    /// How long it may wait for an engine.
    timeout: Option<Duration>,
    /// The id of the broadcast that it is part of.
    broadcast: Option<String>,
    /// A hash of the function that a balanced request calls, if known.
    function: Option<u64>,
    /// The sequence number of its dispatch to a pcluster engine; 0 if it is on an `ipengine`.
    sent: u64,
}

impl OpenRequest {
    pub(crate) fn new(
        task: TaskId,
        queue: Channel,
        client: Client,
        message: Message,
        metadata: &Value,
        broadcast: Option<String>,
    ) -> OpenRequest {
        let is_balanced = queue == Channel::Task;
        let targets = match metadata.get("targets") {
            Some(Value::Array(list)) if is_balanced => list.iter().filter_map(Value::as_str).map(EngineUuid::from).collect(),
            _ => HashSet::new(),
        };
        OpenRequest {
            task,
            run: 1,
            queue,
            client,
            engine: None,
            after: Dependency::from_json(metadata.get("after").unwrap_or(&Value::Null)),
            follow: Dependency::from_json(metadata.get("follow").unwrap_or(&Value::Null)),
            targets,
            blacklist: HashSet::new(),
            retries: metadata.get("retries").and_then(Value::as_u64).unwrap_or(0),
            timeout: timeout_of(metadata).filter(|_| is_balanced),
            broadcast,
            function: function_of(&message).filter(|_| is_balanced),
            sent: 0,
            message,
        }
    }

    /// As recorded: in this run, with its engine if that may still run it.
    pub(crate) fn restored(self, run: u32, engine: Option<EngineUuid>) -> OpenRequest {
        OpenRequest { run, engine, ..self }
    }

    pub(crate) fn task(&self) -> TaskId {
        self.task
    }
    pub(crate) fn run(&self) -> u32 {
        self.run
    }
    pub(crate) fn queue(&self) -> Channel {
        self.queue
    }
    pub(crate) fn is_balanced(&self) -> bool {
        self.queue == Channel::Task
    }
    pub(crate) fn channel(&self) -> ClientChannel {
        client_channel(self.queue)
    }
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }
    pub(super) fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }
    pub(crate) fn message(&self) -> &Message {
        &self.message
    }
    pub(crate) fn engine(&self) -> Option<&EngineUuid> {
        self.engine.as_ref()
    }
    pub(crate) fn is_at(&self, engine: &EngineUuid) -> bool {
        self.engine.as_ref() == Some(engine)
    }
    pub(crate) fn broadcast(&self) -> Option<&String> {
        self.broadcast.as_ref()
    }
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }
    pub(crate) fn function(&self) -> Option<u64> {
        self.function
    }
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }
    /// The task, if its client can be identified after a restart.
    pub(crate) fn undelivered(&self) -> Option<TaskId> {
        self.client.key.is_some().then_some(self.task)
    }

    // ---- where it may run

    /// True if it is not bound to certain engines and has no dependencies.
    pub(crate) fn is_unconstrained(&self) -> bool {
        self.after.is_empty() && self.follow.is_empty() && self.targets.is_empty() && self.blacklist.is_empty()
    }
    /// The requests that must end before it.
    pub(crate) fn after(&self) -> &Dependency {
        &self.after
    }
    /// The requests whose engine must run it.
    pub(crate) fn follow(&self) -> &Dependency {
        &self.follow
    }
    pub(crate) fn has_targets(&self) -> bool {
        !self.targets.is_empty()
    }
    /// Its target engines that are not excluded.
    pub(crate) fn targets_left(&self) -> impl Iterator<Item = &EngineUuid> {
        self.targets.iter().filter(|target| !self.blacklist.contains(*target))
    }
    pub(crate) fn is_target(&self, engine: &EngineUuid) -> bool {
        self.targets.is_empty() || self.targets.contains(engine)
    }
    pub(crate) fn is_excluded(&self, engine: &EngineUuid) -> bool {
        self.blacklist.contains(engine)
    }
    pub(crate) fn exclude(&mut self, engine: EngineUuid) {
        self.blacklist.insert(engine);
    }
    pub(crate) fn clear_excluded(&mut self) {
        self.blacklist.clear();
    }
    /// Uses a retry of a balanced request, if one is left.
    pub(crate) fn use_retry(&mut self) -> bool {
        let left = self.is_balanced() && self.retries > 0;
        self.retries -= u64::from(left);
        left
    }

    // ---- its run

    pub(super) fn assign(&mut self, engine: EngineUuid, sent: u64) {
        self.engine = Some(engine);
        self.sent = sent;
    }
    /// Takes it from its engine; returns the next run.
    pub(super) fn withdraw(&mut self) -> u32 {
        self.engine = None;
        self.run += 1;
        self.run
    }

    /// As it is sent. An engine that has had it before takes the very same message for a replay.
    /// `supports_files`: for an engine that can read large buffers from their files.
    pub(crate) fn to_engine(&self, engine: &EngineUuid, native: bool, supports_files: bool) -> Effect {
        let mut message = self.message.clone();
        if !supports_files {
            message.buffer_file = BufferFile::default();
        }
        if self.run > 1 {
            message.metadata_json = with_run(&message.metadata_json, self.run);
        }
        Effect::ToEngine {
            engine: engine.clone(),
            native,
            channel: self.queue,
            client: self.client.identity.clone(),
            message,
        }
    }
}

/// How long it may wait for an engine.
fn timeout_of(metadata: &Value) -> Option<Duration> {
    let seconds = metadata.get("timeout").and_then(Value::as_f64);
    let seconds = seconds.filter(|t| *t > 0.0 && t.is_finite())?;
    let longest = Duration::from_secs(1 << 31);
    Some(Duration::try_from_secs_f64(seconds).unwrap_or(longest).min(longest))
}

/// Adds the run number to the metadata.
fn with_run(metadata: &Bytes, run: u32) -> Bytes {
    let mut metadata: serde_json::Map<String, Value> = serde_json::from_slice(metadata).unwrap_or_default();
    metadata.insert("pcluster_run".into(), run.into());
    to_json(&metadata)
}

pub(crate) fn client_channel(channel: Channel) -> ClientChannel {
    match channel {
        Channel::Mux => ClientChannel::Mux,
        Channel::Broadcast => ClientChannel::Broadcast,
        Channel::Control => ClientChannel::Control,
        _ => ClientChannel::Task,
    }
}
