//! Engines register, fall silent, reconnect and leave.
use super::effect::Effect;
use super::engines::{LaneId, announce};
use super::outbox::Timer;
use super::{Core, untrusted};
use crate::model::change::Change;
use crate::model::engine::EngineFacts;
use crate::model::resources::Allocation;
use crate::model::{EngineId, EngineUuid, MapId, TaskId};
use crate::wire::Message;
use crate::wire::content::engine::{self, Held};
use crate::wire::content::error::ErrorContent;
use crate::wire::content::hub;
use bytes::Bytes;
use std::collections::HashSet;
use std::time::Duration;

/// How long a disconnected engine may take to reconnect before its tasks are reassigned. A live process reconnects within
/// two seconds; silence on an open connection is subject to the lease instead.
const RECONNECT_GRACE: Duration = Duration::from_secs(5);
/// How long results may take to arrive for tasks that a reconnected engine did not list.
const CONFIRM_GRACE: Duration = Duration::from_secs(5);

impl Core {
    pub(super) fn engine_leaving(&mut self, engine: &EngineUuid, reason: &str) {
        let id = self.engines.change(engine, |e| {
            e.leave();
            e.id().0
        });
        tracing::info!(engine = id, %reason, "engine is leaving");
    }

    /// Updates whether the engine can run Python.
    pub(super) fn availability(&mut self, engine: &EngineUuid, reason: Option<String>) {
        let id = self.engines.get(engine).map(|e| e.id().0);
        let changed = self.engines.change(engine, |e| e.set_unavailable(reason.clone()));
        match (changed, reason) {
            (Some(true), Some(reason)) => tracing::warn!(engine = id, %reason, "engine cannot run Python; it gets commands only"),
            (Some(true), None) => {
                tracing::info!(engine = id, "engine can run Python");
                self.requests.recheck();
            }
            _ => {}
        }
    }

    pub(super) fn engine_returned(&mut self, engine: &EngineUuid, returned: &engine::Returned) {
        self.work_returned(engine, returned);
        self.send_return_recorded(engine, returned);
    }

    fn send_return_recorded(&mut self, engine: &EngineUuid, engine::Returned { sequence, .. }: &engine::Returned) {
        if *sequence > 0 {
            let content = engine::ReturnRecorded { sequence: *sequence };
            self.out.send_to_engine(engine, engine::RETURN_RECORDED, &content);
        }
    }

    /// Answers heartbeats often enough that the engine does not time out on its controller.
    pub(super) fn heartbeat(&mut self, engine: &EngineUuid) {
        let (now, enough) = (
            self.out.now().since_start,
            Self::period(self.config.engine_reconnect_timeout_ms) / 8,
        );
        if self.engines.change(engine, |e| e.answer_heartbeat(now, enough)) == Some(true) {
            self.out.send_to_engine(engine, engine::HEARTBEAT, &engine::Heartbeat {});
        }
    }

    pub(super) fn register_native(&mut self, uuid: &EngineUuid, register: engine::Register) {
        let mut drop = Vec::new();
        let id = match self.engines.get(uuid).map(|e| e.id()) {
            Some(id) => {
                // The first report may have been lost.
                register.returned.iter().for_each(|returned| self.engine_returned(uuid, returned));
                self.reconcile(uuid, &register.holds, &mut drop);
                self.restore_share(uuid, &register.allocations);
                self.send_again(uuid, &register.requests);
                id
            }
            None => {
                // It is new, or its lease expired: its tasks have been reassigned.
                drop = register.holds;
                // This cancels an unfinished `ipengine` registration under the same uuid.
                self.engines.end_registration(uuid);
                let id = self.engines.choose_id(register.id);
                self.add_engine(id, register.facts);
                // These tasks have been reassigned, too.
                let returned = register.returned.iter();
                returned.for_each(|returned| self.send_return_recorded(uuid, returned));
                id
            }
        };
        self.availability(uuid, register.unavailable.as_deref().map(untrusted::reason));
        let reply = engine::Registered {
            status: "ok".into(),
            evalue: String::new(),
            id: Some(id),
            heartbeat_interval_ms: self.config.heartbeat_interval_ms,
            engine_reconnect_timeout_ms: self.config.engine_reconnect_timeout_ms,
            drop,
            max_message_bytes: self.max_message_bytes(),
        };
        self.out.send_to_engine(uuid, engine::REGISTERED, &reply);
    }

    /// Refuses an engine that violated the protocol. Its tasks are not charged with a crash.
    pub(super) fn refuse_engine(&mut self, uuid: &EngineUuid, why: &str) {
        let Some(engine) = self.engines.get(uuid) else { return };
        let (id, tasks) = (engine.id(), engine.tasks().collect::<Vec<_>>());
        tracing::error!(engine = %id, %uuid, host = engine.facts().host, why, "engine refused: it violated the protocol");
        self.engines.refuse(uuid, why);
        self.engines.change(uuid, |e| e.leave());
        for (task, _) in &tasks {
            if let Some(in_flight) = self.maps.in_flight_mut(*task) {
                in_flight.exonerate();
            }
        }
        self.tasks_lost(uuid, id, tasks, why);
        self.engine_gone(uuid, why);
        self.send_refusal(uuid, why);
    }

    pub(super) fn send_refusal(&mut self, uuid: &EngineUuid, why: &str) {
        let content = engine::Registered {
            status: "error".into(),
            evalue: why.into(),
            ..Default::default()
        };
        self.out.send_to_engine(uuid, engine::REGISTERED, &content);
    }

    fn restore_share(&mut self, uuid: &EngineUuid, allocations: &[(MapId, Allocation)]) {
        let held = allocations.iter().find_map(|(id, allocation)| {
            let map = self.maps.get(*id)?;
            let mut tasks = self.engines.get(uuid)?.tasks().filter(|(task, _)| task.map == *id);
            let lane = tasks.next().map_or(0, |(task, _)| map.lane_of(task.index));
            Some((LaneId { map: *id, lane }, map.needs_in(lane).0?, allocation))
        });
        let held = held.as_ref().map(|(lane, request, allocation)| (*lane, request, *allocation));
        self.engines.restore_share(uuid, held);
    }

    /// Compares the tasks that a reconnected engine holds with those assigned to it.
    fn reconcile(&mut self, uuid: &EngineUuid, holds: &[Held], drop: &mut Vec<Held>) {
        self.note_activity(uuid);
        self.engines.change(uuid, |e| e.register_again());
        let Some(engine) = self.engines.get(uuid) else { return };
        let held: HashSet<(TaskId, u32)> = holds.iter().map(|h| (TaskId::new(h.map, h.index), h.run)).collect();
        drop.extend(holds.iter().filter(|h| !engine.holds(TaskId::new(h.map, h.index), h.run)));
        // The cancellation of these may not have reached it.
        let is_cancelled = |held: &&Held| {
            let task = self.maps.in_flight_at(TaskId::new(held.map, held.index), held.run, uuid);
            task.is_some_and(|t| t.is_cancelled())
        };
        let cancelled: Vec<Held> = holds.iter().filter(is_cancelled).copied().collect();
        let missing: Vec<(TaskId, u32)> = engine.tasks().filter(|pair| !held.contains(pair)).collect();
        if !missing.is_empty() {
            self.out.set_timer(CONFIRM_GRACE, Timer::Unconfirmed(uuid.clone(), missing));
        }
        if !cancelled.is_empty() {
            self.out.send_to_engine(uuid, engine::CANCEL, &engine::Cancel { tasks: cancelled });
        }
    }

    /// Reassigns tasks that never reached the engine, or whose results never arrived.
    pub(super) fn unconfirmed(&mut self, uuid: EngineUuid, tasks: Vec<(TaskId, u32)>) {
        let Some(engine) = self.engines.get(&uuid) else { return };
        let id = engine.id();
        let still: Vec<_> = tasks.into_iter().filter(|(task, run)| engine.holds(*task, *run)).collect();
        self.tasks_lost(&uuid, id, still, "it reconnected without this task");
    }

    fn add_engine(&mut self, id: EngineId, facts: EngineFacts) {
        let uuid = facts.uuid.clone();
        self.departures.publish_pending(&uuid, &mut self.out);
        self.engines.add(id, facts.clone(), self.out.now().unix, self.out.now().since_start);
        self.out.record(Change::EngineRegistered {
            id,
            facts: Box::new(facts),
            at: self.out.now().unix,
        });
        announce(&uuid, id, &mut self.out);
        // A request may have waited for it.
        self.requests.recheck();
    }

    /// Announces engines that registered since that time after the start.
    pub(super) fn announce_again(&mut self, since: Duration) {
        let ago = self.out.now().since_start.saturating_sub(since).as_secs_f64();
        let then = self.out.now().unix.0 - ago;
        for (uuid, engine) in self.engines.iter().filter(|(_, e)| e.registered().0 >= then) {
            announce(uuid, engine.id(), &mut self.out);
        }
        self.departures.repeat(since, |id| self.engines.by_id(id).is_some(), &mut self.out);
    }

    /// Notes a reply of this engine to a client. Returns false if clients were already notified of the departure and have
    /// ended its direct requests.
    pub(super) fn note_reply(&mut self, uuid: &EngineUuid) -> bool {
        let now = self.out.now().since_start;
        self.engines.change(uuid, |e| e.note_reply(now)).is_some() || self.departures.note_reply(uuid, now)
    }

    pub(super) fn note_activity(&mut self, uuid: &EngineUuid) {
        let now = self.out.now().since_start;
        self.engines.change(uuid, |e| e.saw(now));
    }

    pub(super) fn engine_disconnected(&mut self, uuid: &EngineUuid) {
        self.engines.change(uuid, |e| e.lose_connection());
        self.mark_away(uuid, RECONNECT_GRACE);
    }

    fn mark_away(&mut self, uuid: &EngineUuid, grace: Duration) {
        let until = self.out.now().since_start + grace;
        if self.engines.change(uuid, |e| e.expect_until(until)) == Some(true) {
            self.out.set_timer(grace, Timer::Lease(uuid.clone()));
        }
    }

    pub(super) fn lease_expired(&mut self, uuid: EngineUuid) {
        let now = self.out.now().since_start;
        if self.engines.get(&uuid).is_some_and(|e| e.is_lease_expired(now)) {
            self.engine_gone(&uuid, "its connection closed, or it was silent for longer than its lease");
        }
    }

    /// Pings `ipengine`s, and marks engines that have been silent for too long as away.
    pub(super) fn send_heartbeats(&mut self) {
        if self.engines.needs_ping() {
            let payload = Bytes::from(format!("{:.6}", self.out.now().since_start.as_secs_f64()));
            self.out.push(Effect::Ping { payload });
        }
        let max_silence = Self::period(self.config.heartbeat_interval_ms) * 3;
        let lease = Self::period(self.config.lease_ms).saturating_sub(max_silence);
        let now = self.out.now().since_start;
        let silent = self.engines.iter().filter(|(_, e)| e.is_silent(max_silence, now));
        let silent: Vec<EngineUuid> = silent.map(|(uuid, _)| uuid.clone()).collect();
        for uuid in silent {
            self.mark_away(&uuid, lease);
        }
    }

    pub(super) fn engine_gone(&mut self, uuid: &EngineUuid, reason: &str) {
        let Some(engine) = self.engines.get(uuid) else { return };
        let (id, host, pid) = (engine.id(), &engine.facts().host, engine.facts().pid);
        tracing::info!(engine = %id, %uuid, host, pid, reason, tasks = engine.tasks().count(), "engine gone");
        // No new tasks for it while its old ones are reassigned.
        self.engines.change(uuid, |e| e.leave());
        self.work_lost(uuid, id, reason);
        let departed = self.engines.remove(uuid);
        self.out.record(Change::EngineGone {
            id,
            uuid: uuid.clone(),
            at: self.out.now().unix,
            reason: reason.to_string(),
        });
        let last = departed.as_ref().and_then(|e| e.last_reply());
        // An `ipengine` has several connections: its last replies may arrive after the notice that it left.
        let awaited = departed.is_some_and(|e| !e.is_native()) && self.requests.has_orphans(uuid);
        self.departures.add(uuid, id, last, awaited, &mut self.out);
        // Requests that wait for certain engines may have become impossible.
        self.requests.recheck();
    }

    // ---- ipengine

    pub(super) fn register_stock(&mut self, identity: Bytes, message: &Message, registration: &hub::Registration) {
        if !untrusted::is_name(&registration.uuid) {
            let content = ErrorContent::new("ValueError", "'an engine's uuid must have 1 to 255 printable characters'");
            let message = self.out.message("registration_reply", Some(&message.header_json), &content);
            return self.out.push(Effect::ToRegistrant { identity, message });
        }
        let uuid = EngineUuid::from(registration.uuid.as_str());
        let reply = if self.engines.get(&uuid).is_some() || self.engines.is_incoming(&uuid) {
            let content = ErrorContent::new("KeyError", format!("\"uuid '{uuid}' in use\""));
            self.out.message("registration_reply", Some(&message.header_json), &content)
        } else {
            let id = self.engines.promise_id(uuid.clone(), registration.id.map(EngineId));
            let timeout = Self::period(self.config.registration_timeout_ms);
            self.out.set_timer(timeout, Timer::Registration(uuid));
            let content = serde_json::json!({
                "id": id.0,
                "status": "ok",
                "hb_period": self.config.heartbeat_interval_ms,
                "connection_info": self.facts.engine_file,
            });
            self.out.message("registration_reply", Some(&message.header_json), &content)
        };
        self.out.push(Effect::ToRegistrant { identity, message: reply });
        let payload = Bytes::from_static(b"0");
        self.out.push(Effect::Ping { payload });
    }

    pub(super) fn registration_stalled(&mut self, uuid: EngineUuid) {
        if self.engines.end_registration(&uuid).is_some() {
            tracing::warn!(%uuid, "an ipengine requested registration but answered no ping");
        }
    }

    /// The first pong completes a registration.
    pub(super) fn pong_received(&mut self, uuid: EngineUuid) {
        if let Some(id) = self.engines.end_registration(&uuid) {
            let facts = EngineFacts {
                uuid,
                host: String::new(),
                pid: 0,
                version: String::new(),
                python: String::new(),
                capabilities: vec!["apply".into()],
                job: String::new(),
                ends: None,
                node: Default::default(),
            };
            self.add_engine(id, facts);
        } else {
            self.note_activity(&uuid);
        }
    }
}
