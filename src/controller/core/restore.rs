//! Restores the recorded state after a restart: assigned tasks stay with their engine until it reconnects or its lease
//! expires.
use super::Core;
use super::effect::{ClientChannel, Effect, UndeliveredReply};
use super::event::{FoundClient, FoundMap, FoundReply, Restored, UnfinishedRequest};
use super::maps::Map;
use super::outbox::Timer;
use super::requests::{Client, Part, is_joined};
use crate::model::change::Change;
use crate::model::task::{Outcome, TaskState};
use crate::model::{EngineId, EngineUuid, MapId, TaskId};
use crate::wire::Message;
use crate::wire::message::to_json;
use bytes::Bytes;
use std::collections::{HashMap, HashSet};

impl Core {
    /// Restores the state. Call it once, before the first event.
    pub fn restore(&mut self, now: super::event::EventTime, restored: Restored, effects: &mut Vec<Effect>) {
        self.out.set_now(now);
        self.out.swap_effects(effects);
        self.apply_restored(restored);
        self.out.swap_effects(effects);
    }

    fn apply_restored(&mut self, restored: Restored) {
        self.engines.restore_next_id(restored.next_engine);
        if let Some(clock) = restored.retention_clock {
            self.retention.restore_clock(clock, self.out.now());
        }
        let lease = Self::period(self.config.lease_ms);
        let mut uuids: HashMap<EngineId, EngineUuid> = HashMap::new();
        for (id, facts, registered) in restored.engines {
            let uuid = facts.uuid.clone();
            uuids.insert(id, uuid.clone());
            self.engines.add(id, facts, registered, self.out.now().since_start);
            let until = self.out.now().since_start + lease;
            self.engines.change(&uuid, |e| {
                e.expect_until(until);
                e.lose_connection();
            });
            self.out.set_timer(lease, Timer::Lease(uuid));
        }
        for (id, uuid) in restored.departed {
            let reason = "the previous controller ended".to_string();
            self.out.record(Change::EngineGone {
                id,
                uuid,
                at: self.out.now().unix,
                reason,
            });
        }
        self.maps.restore(restored.next_map, restored.finished);
        self.restore_clients(restored.outcomes, restored.clients, &restored.delivered);
        for found in restored.maps {
            let id = found.map;
            let is_closed = found.closed;
            let map = self.restored_map(found, &uuids);
            self.maps.insert(id, map);
            if !is_closed {
                self.expect_inputs(id);
            }
            self.abort_if_hopeless(id);
            if self.maps.get(id).is_some_and(|m| m.is_complete()) {
                self.after_changes(id);
            }
        }
    }

    fn restored_map(&mut self, found: FoundMap, engines: &HashMap<EngineId, EngineUuid>) -> Map {
        let found_map = found.map;
        let options = &found.definition.options;
        let targets = options.targets.as_ref().map(|targets| self.restored_targets(targets));
        let waits = |other: &MapId| self.maps.is_open(*other) || self.maps.has_failed(*other) == Some(true);
        let waiting_for = options.after.filter(waits);
        let definition = self.bundles.share_in(found.definition);
        let map = Map::new(definition, found.key, targets).wait_for(waiting_for);
        let mut map = map.restored(found.closed, found.abandoned, found.counts);
        for found in found.tasks {
            let task = TaskId::new(found_map, found.index);
            if found.cancelled && found.engine.is_none() {
                let (run, at) = (found.run, self.out.now().unix);
                let outcome = Outcome::failure(TaskState::Aborted, "TaskCancelled", "cancelled", at, at);
                map.count(outcome.status);
                self.out.record(Change::TaskFinished {
                    task,
                    run,
                    engine: None,
                    outcome: Box::new(outcome),
                });
                continue;
            }
            let is_assigned = matches!(found.state, TaskState::Assigned | TaskState::Running);
            let engine = found.engine.filter(|_| is_assigned).and_then(|id| engines.get(&id));
            if let Some(engine) = engine {
                self.engines.change(engine, |e| e.assign(task, found.run));
                if map.request().is_some() {
                    self.engines.await_share(engine);
                }
            }
            if let Some(run) = map.restore_task(found, engine) {
                let attempt = None;
                self.out.record(Change::TaskReturned { task, run, attempt });
            }
        }
        map
    }

    /// Restores clients, after the engines. Requests may depend on those of other clients, so all outcomes come first.
    fn restore_clients(
        &mut self,
        outcomes: Vec<(String, bool, Option<EngineUuid>)>,
        clients: Vec<FoundClient>,
        delivered: &HashSet<TaskId>,
    ) {
        for (msg_id, ok, engine) in outcomes {
            self.requests.settle(&msg_id, ok, engine);
        }
        for mut client in clients {
            let (has, undelivered) = client.undelivered.into_iter().partition(|reply| delivered.contains(&reply.task));
            client.undelivered = undelivered;
            let tasks: Vec<TaskId> = Vec::from_iter(has.iter().map(|reply: &FoundReply| reply.task));
            if !tasks.is_empty() {
                self.out.record(Change::RepliesDelivered { tasks });
            }
            self.requests.add_session(client.session, client.map, client.next_index);
            self.restore_undelivered(client.key.as_ref(), client.undelivered, &client.requests);
            for request in client.requests {
                self.restore_request(client.key.clone(), request);
            }
        }
    }

    /// Restores undelivered replies, and broadcasts with undelivered joined replies.
    fn restore_undelivered(&mut self, key: Option<&String>, undelivered: Vec<FoundReply>, unfinished: &[UnfinishedRequest]) {
        let mut parts: Vec<Part> = Vec::new();
        for mut found in undelivered {
            self.renew(&mut found.reply);
            let channel = match found.queue.as_str() {
                "mux" => ClientChannel::Mux,
                "broadcast" => ClientChannel::Broadcast,
                _ => ClientChannel::Task,
            };
            if channel == ClientChannel::Broadcast && is_joined(&found.metadata) {
                parts.push(Part {
                    task: found.task,
                    msg_id: found.msg_id,
                    metadata: found.metadata,
                    reply: Some(found.reply),
                });
            } else if let Some(key) = key {
                // Same frames as on the first delivery: a reply to a broadcast's part has no engine frame.
                let engine = found.engine.filter(|_| channel != ClientChannel::Broadcast).map(Bytes::from);
                let reply = UndeliveredReply {
                    key: key.clone(),
                    tasks: vec![found.task],
                    engine,
                    message: found.reply,
                };
                self.reconnects.queue(channel, reply, &mut self.out);
            }
        }
        parts.extend(unfinished.iter().filter(|open| open.request.queue == "broadcast").map(|open| Part {
            task: open.task,
            msg_id: open.request.msg_id.clone(),
            metadata: open.request.metadata.clone(),
            reply: None,
        }));
        for (tasks, reply) in self.broadcasts.restore(parts) {
            let client = Client {
                key: key.cloned(),
                ..Client::default()
            };
            self.reconnects
                .deliver(ClientChannel::Broadcast, client, tasks, None, reply, &mut self.out);
        }
    }

    /// Gives a resent reply a new id: clients reject a replayed signature. The date stays: it is the completion time of the
    /// request.
    fn renew(&mut self, reply: &mut Message) {
        let mut header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&reply.header_json).unwrap_or_default();
        header.insert("msg_id".into(), self.out.next_id().into());
        reply.header_json = to_json(&header);
        reply.header = serde_json::from_slice(&reply.header_json).unwrap_or_default();
    }

    fn restored_targets(&self, targets: &crate::model::targets::Targets) -> Vec<EngineUuid> {
        use crate::model::targets::Targets;
        match targets {
            Targets::All => self
                .engines
                .iter()
                .filter(|(_, e)| e.is_native())
                .map(|(uuid, _)| uuid.clone())
                .collect(),
            Targets::Some(ids) => {
                let unknown = || EngineUuid::from("gone");
                ids.iter()
                    .map(|id| self.engines.uuid_of(*id).cloned().unwrap_or_else(unknown))
                    .collect()
            }
        }
    }
}
