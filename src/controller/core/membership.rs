//! Engines register, fall silent, reconnect and leave.
use super::{Core, Effect, Timer, untrusted};
use crate::model::change::Change;
use crate::model::engine::EngineFacts;
use crate::model::{EngineId, EngineUuid, PROTOCOL_VERSION, TaskId, VERSION};
use crate::wire::Message;
use crate::wire::content::engine::{self, Channel, Held};
use crate::wire::content::error::ErrorContent;
use crate::wire::content::hub;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::time::Duration;

/// How long a disconnected engine may take to reconnect before its tasks are reassigned. A live process reconnects within
/// two seconds; silence on an open connection is subject to the lease instead.
const RECONNECT_GRACE: Duration = Duration::from_secs(5);
/// How long results may take to arrive for tasks that a reconnected engine did not list.
const CONFIRM_GRACE: Duration = Duration::from_secs(5);
/// How long to wait for late replies of an engine that left, as ipyparallel does.
pub(super) const ORPHAN_GRACE: Duration = Duration::from_secs(2);

/// A connecting client has subscribed to notifications after this time. Later departures are not announced to it again: a client
/// that waits for engines would count the repeated notification as another departure.
const CONNECTING: Duration = Duration::from_millis(500);
/// A reply is read before a notification that is sent this much later on another connection.
/// A longer lead would delay clients that wait for replacement engines.
const REPLY_LEAD: Duration = Duration::from_millis(300);

/// Departed engines, for notifications to ipyparallel's clients.
#[derive(Debug, Default)]
pub(super) struct Departures {
    /// Not published yet.
    pub(super) pending: HashMap<EngineUuid, Departure>,
    /// Recently published, with the time since the controller's start.
    recent: Vec<(Duration, EngineUuid, EngineId)>,
}

#[derive(Debug)]
pub(super) struct Departure {
    id: EngineId,
    due: Duration,
}

fn parse<T: DeserializeOwned>(message: &Message) -> Option<T> {
    match message.content() {
        Ok(content) => Some(content),
        Err(error) => {
            tracing::warn!(kind = message.msg_type(), %error, "malformed message from an engine");
            None
        }
    }
}

impl Core {
    pub(super) fn engine_message(&mut self, engine: EngineUuid, native: bool, channel: Channel, client: Bytes, message: Message) {
        if native && let Some(why) = self.refused.get(&engine).cloned() {
            if message.msg_type() == engine::REGISTER {
                self.send_refusal(&engine, &why);
            }
            return;
        }
        if channel == Channel::Native && message.msg_type() == engine::REGISTER {
            return self.register_native(&engine, &message);
        }
        if self.engines.get(&engine).is_none() {
            match channel {
                _ if native => self.send_to_engine(&engine, engine::UNKNOWN_ENGINE, &serde_json::json!({})),
                Channel::Native | Channel::Iopub => {}
                // An `ipengine` has several connections: its last messages may arrive after the notice that it left.
                _ => self.reply_of_engine(&engine, channel, client, message),
            }
            return;
        }
        self.note_activity(&engine);
        if native && self.engines.get(&engine).is_some_and(|e| e.uncertain) && message.msg_type() == engine::HEARTBEAT {
            self.send_to_engine(&engine, engine::UNKNOWN_ENGINE, &serde_json::json!({}));
        }
        match channel {
            Channel::Native => self.native_message(&engine, &message),
            Channel::Iopub => self.iopub(&engine, client, message),
            _ => self.reply_of_engine(&engine, channel, client, message),
        }
    }

    fn native_message(&mut self, engine: &EngineUuid, message: &Message) {
        match message.msg_type() {
            engine::RESULTS => match self.checked_results(message) {
                Ok(results) => self.results(engine, results),
                Err(why) => self.refuse_engine(engine, &why),
            },
            engine::PROGRESS => {
                if let Some(progress) = parse(message) {
                    self.progress(engine, progress, &message.buffers);
                }
            }
            engine::VALUES_REQUEST => {
                if let Some(request) = parse(message) {
                    self.values_requested(engine, request);
                }
            }
            engine::RETURNED => {
                if let Some(returned) = parse(message) {
                    self.tasks_returned(engine, &returned);
                }
            }
            engine::HEARTBEAT => self.heartbeat(engine),
            engine::AVAILABILITY => {
                if let Some(engine::Availability { reason }) = parse(message) {
                    self.availability(engine, reason.as_deref().map(untrusted::reason));
                }
            }
            engine::LEAVING => {
                let reason = untrusted::reason(&parse::<engine::Leaving>(message).map(|l| l.reason).unwrap_or_default());
                let id = self.engines.get(engine).map(|e| e.id.0);
                tracing::info!(engine = id, %reason, "engine is leaving");
                self.engines.change(engine, |e| e.leaving = true);
            }
            engine::UNREGISTER => {
                let reason = untrusted::reason(&parse::<engine::Unregister>(message).map(|u| u.reason).unwrap_or_default());
                self.engine_gone(engine, &reason);
            }
            other => tracing::warn!(kind = other, %engine, "unknown message type from an engine"),
        }
    }

    /// Updates whether the engine can run Python.
    fn availability(&mut self, engine: &EngineUuid, reason: Option<String>) {
        let id = self.engines.get(engine).map(|e| e.id.0);
        let changed = self.engines.change(engine, |e| {
            let changed = e.unavailable != reason;
            e.unavailable = reason.clone();
            changed
        });
        match (changed, reason) {
            (Some(true), Some(reason)) => tracing::warn!(engine = id, %reason, "engine cannot run Python; it gets commands only"),
            (Some(true), None) => {
                tracing::info!(engine = id, "engine can run Python");
                self.requests.recheck = true;
            }
            _ => {}
        }
    }

    fn tasks_returned(&mut self, engine: &EngineUuid, returned: &engine::Returned) {
        self.requests_returned(engine, returned);
        self.returned(engine, &returned.tasks);
        self.send_return_recorded(engine, returned);
    }

    fn send_return_recorded(&mut self, engine: &EngineUuid, engine::Returned { sequence, .. }: &engine::Returned) {
        if *sequence > 0 {
            self.send_to_engine(engine, engine::RETURN_RECORDED, &engine::ReturnRecorded { sequence: *sequence });
        }
    }

    /// Answers heartbeats often enough that the engine does not time out on its controller.
    fn heartbeat(&mut self, engine: &EngineUuid) {
        let (now, enough) = (self.now.since_start, Self::period(self.config.engine_reconnect_timeout_ms) / 8);
        let due = self.engines.change(engine, |e| {
            let due = e.last_pong.is_none_or(|at| now.saturating_sub(at) >= enough);
            if due {
                e.last_pong = Some(now);
            }
            due
        });
        if due == Some(true) {
            self.send_to_engine(engine, engine::HEARTBEAT, &engine::Heartbeat {});
        }
    }

    fn register_native(&mut self, uuid: &EngineUuid, message: &Message) {
        let mut register: engine::Register = match message.content() {
            Ok(register) if untrusted::is_name(&uuid.0) => register,
            Ok(_) => return self.send_refusal(uuid, "invalid uuid: it must have 1 to 255 printable characters"),
            Err(error) => {
                let why = untrusted::reason(&format!("malformed registration: {error}"));
                tracing::warn!(uuid = untrusted::reason(&uuid.0), why, "engine refused");
                return self.send_refusal(uuid, &why);
            }
        };
        register.facts = untrusted::facts(register.facts);
        let mut reply = engine::Registered {
            status: "ok".into(),
            evalue: String::new(),
            id: None,
            heartbeat_interval_ms: self.config.heartbeat_interval_ms,
            engine_reconnect_timeout_ms: self.config.engine_reconnect_timeout_ms,
            drop: vec![],
            max_message_bytes: self.max_message_bytes(),
        };
        if register.protocol != PROTOCOL_VERSION {
            let why = format!(
                "the controller is pcluster {VERSION} (protocol {PROTOCOL_VERSION}), the engine {} (protocol {}): start both with the same binary",
                register.facts.version, register.protocol
            );
            return self.send_refusal(uuid, &why);
        }
        if register.facts.uuid != *uuid {
            return self.send_refusal(uuid, "its uuid does not match its routing id");
        }
        let known = self.engines.get(uuid).map(|e| e.id);
        let id = match known {
            Some(id) => {
                // The first report may have been lost.
                register.returned.iter().for_each(|returned| self.tasks_returned(uuid, returned));
                self.reconcile(uuid, &register.holds, &mut reply.drop);
                self.send_again(uuid, &register.requests);
                id
            }
            None => {
                // It is new, or its lease expired: its tasks have been reassigned.
                reply.drop = register.holds;
                // This cancels an unfinished `ipengine` registration under the same uuid.
                self.incoming.remove(uuid);
                let promised = |id: &crate::model::EngineId| self.incoming.values().any(|i| i == id);
                let id = register.id.filter(|id| !promised(id));
                let id = self.engines.choose_id(id);
                self.add_engine(id, register.facts);
                // These tasks have been reassigned, too.
                register
                    .returned
                    .iter()
                    .for_each(|returned| self.send_return_recorded(uuid, returned));
                id
            }
        };
        reply.id = Some(id);
        self.availability(uuid, register.unavailable.as_deref().map(untrusted::reason));
        self.send_to_engine(uuid, engine::REGISTERED, &reply);
    }

    /// Compares the tasks that a reconnected engine holds with those assigned to it.
    fn reconcile(&mut self, uuid: &EngineUuid, holds: &[Held], drop: &mut Vec<Held>) {
        self.note_activity(uuid);
        // It may be a new process under the same uuid: definitions are sent again.
        self.engines.change(uuid, |e| {
            e.definitions.clear();
            e.bundles.clear();
            e.recall_pending = false;
            e.uncertain = false;
        });
        let Some(engine) = self.engines.get(uuid) else { return };
        let held: std::collections::HashSet<(TaskId, u32)> = holds.iter().map(|h| (TaskId::new(h.map, h.index), h.run)).collect();
        drop.extend(
            holds
                .iter()
                .filter(|h| engine.tasks.get(&TaskId::new(h.map, h.index)) != Some(&h.run)),
        );
        // The cancellation of these may not have reached it.
        let is_cancelled = |held: &&Held| {
            let task = self.maps.get(&held.map).and_then(|m| m.in_flight.get(&held.index));
            task.is_some_and(|t| t.cancelled && t.run == held.run && t.engine == *uuid)
        };
        let cancelled: Vec<Held> = holds.iter().filter(is_cancelled).copied().collect();
        let missing: Vec<(TaskId, u32)> = engine
            .tasks
            .iter()
            .map(|(t, r)| (*t, *r))
            .filter(|pair| !held.contains(pair))
            .collect();
        if !missing.is_empty() {
            self.set_timer(CONFIRM_GRACE, Timer::Unconfirmed(uuid.clone(), missing));
        }
        if !cancelled.is_empty() {
            self.send_to_engine(uuid, engine::CANCEL, &engine::Cancel { tasks: cancelled });
        }
    }

    /// Reassigns tasks that never reached the engine, or whose results never arrived.
    pub(super) fn unconfirmed(&mut self, uuid: EngineUuid, tasks: Vec<(TaskId, u32)>) {
        let Some(engine) = self.engines.get(&uuid) else { return };
        let id = engine.id;
        let still: Vec<_> = tasks
            .into_iter()
            .filter(|(task, run)| engine.tasks.get(task) == Some(run))
            .collect();
        self.tasks_lost(&uuid, id, still, "it reconnected without this task");
    }

    fn add_engine(&mut self, id: EngineId, facts: EngineFacts) {
        let uuid = facts.uuid.clone();
        self.publish_pending_departure(&uuid);
        self.engines.add(id, facts.clone(), self.now.unix, self.now.since_start);
        self.record(Change::EngineRegistered {
            id,
            facts: Box::new(facts),
            at: self.now.unix,
        });
        self.announce(id, &uuid);
        // A request may have waited for it.
        self.requests.recheck = true;
        let maps: Vec<_> = self.maps.keys().copied().collect();
        for map in maps {
            self.note_runnable(map);
        }
    }

    fn announce(&mut self, id: EngineId, uuid: &EngineUuid) {
        let content = hub::EngineNotification {
            id: id.0,
            uuid: uuid.to_string(),
        };
        let message = self.message(hub::REGISTRATION_NOTIFICATION, None, &content);
        self.effects.push(Effect::Notify { message });
    }

    /// Announces engines that registered since that time after the start.
    pub(super) fn announce_again(&mut self, since: Duration) {
        let ago = self.now.since_start.saturating_sub(since).as_secs_f64();
        let then = self.now.unix.0 - ago;
        let new = self.engines.iter().filter(|(_, e)| e.registered.0 >= then);
        let new: Vec<_> = new.map(|(uuid, e)| (e.id, uuid.clone())).collect();
        for (id, uuid) in new {
            self.announce(id, &uuid);
        }
        // Not if another engine has the same id by now.
        let gone = self
            .departures
            .recent
            .iter()
            .filter(|(at, _, id)| (since..=since + CONNECTING).contains(at) && self.engines.by_id(*id).is_none());
        let gone: Vec<_> = gone.map(|(_, uuid, id)| (uuid.clone(), *id)).collect();
        for (uuid, id) in gone {
            self.notify_departure(&uuid, id);
        }
    }

    // ---- notifications for ipyparallel's clients

    /// An ipyparallel client ends its direct requests to an engine when it is notified of the departure, and crashes if it then
    /// reads a reply to one of them. Replies use another connection than notifications, so they get a lead.
    fn announce_departure(&mut self, uuid: &EngineUuid, id: EngineId, last_reply: Option<Duration>, awaited: bool) {
        let now = self.now.since_start;
        let settled = last_reply.map_or(now, |at| at + REPLY_LEAD);
        let due = if awaited { settled.max(now + ORPHAN_GRACE) } else { settled };
        if due <= now {
            return self.publish_departure(uuid.clone(), id);
        }
        self.departures.pending.insert(uuid.clone(), Departure { id, due });
        self.set_timer(due - now, Timer::Departed(uuid.clone()));
    }

    /// Publishes a departure once its lead has passed.
    pub(super) fn departed(&mut self, uuid: EngineUuid) {
        let now = self.now.since_start;
        match self.departures.pending.get(&uuid) {
            Some(departure) if departure.due > now => {
                let after = departure.due - now;
                self.set_timer(after, Timer::Departed(uuid));
            }
            Some(_) => self.publish_pending_departure(&uuid),
            None => {}
        }
    }

    fn publish_pending_departure(&mut self, uuid: &EngineUuid) {
        if let Some(departure) = self.departures.pending.remove(uuid) {
            self.publish_departure(uuid.clone(), departure.id);
        }
    }

    fn publish_departure(&mut self, uuid: EngineUuid, id: EngineId) {
        let now = self.now.since_start;
        self.departures
            .recent
            .retain(|(at, _, _)| now.saturating_sub(*at) <= super::hub::MAX_CONNECTING);
        self.notify_departure(&uuid, id);
        self.departures.recent.push((now, uuid, id));
    }

    fn notify_departure(&mut self, uuid: &EngineUuid, id: EngineId) {
        let content = hub::EngineNotification {
            id: id.0,
            uuid: uuid.to_string(),
        };
        let message = self.message(hub::UNREGISTRATION_NOTIFICATION, None, &content);
        self.effects.push(Effect::Notify { message });
    }

    /// Notes a reply of this engine to a client. Returns false if clients were already notified of the departure and have
    /// ended its direct requests.
    pub(super) fn note_reply(&mut self, uuid: &EngineUuid) -> bool {
        let now = self.now.since_start;
        if self.engines.change(uuid, |e| e.last_reply = Some(now)).is_some() {
            return true;
        }
        let pending = self.departures.pending.get_mut(uuid);
        let is_pending = pending.is_some();
        if let Some(departure) = pending {
            departure.due = departure.due.max(now + REPLY_LEAD);
        }
        is_pending
    }

    pub(super) fn note_activity(&mut self, uuid: &EngineUuid) {
        let now = self.now.since_start;
        self.engines.change(uuid, |e| {
            e.last_seen = now;
            e.away_until = None;
        });
    }

    pub(super) fn engine_disconnected(&mut self, uuid: EngineUuid) {
        // Messages in transit in either direction may be lost.
        self.engines.change(&uuid, |e| e.uncertain = true);
        self.mark_away(&uuid, RECONNECT_GRACE);
    }

    fn mark_away(&mut self, uuid: &EngineUuid, grace: Duration) {
        let until = self.now.since_start + grace;
        let away = self.engines.change(uuid, |e| match e.away_until {
            Some(earlier) if earlier <= until => false,
            _ => {
                e.away_until = Some(until);
                true
            }
        });
        if away == Some(true) {
            self.set_timer(grace, Timer::Lease(uuid.clone()));
        }
    }

    pub(super) fn lease_expired(&mut self, uuid: EngineUuid) {
        let due = self
            .engines
            .get(&uuid)
            .and_then(|e| e.away_until)
            .is_some_and(|until| until <= self.now.since_start);
        if due {
            self.engine_gone(&uuid, "its connection closed, or it was silent for longer than its lease");
        }
    }

    /// Pings `ipengine`s, and marks engines that have been silent for too long as away.
    pub(super) fn send_heartbeats(&mut self) {
        if self.engines.iter().any(|(_, e)| !e.native) || !self.incoming.is_empty() {
            let payload = Bytes::from(format!("{:.6}", self.now.since_start.as_secs_f64()));
            self.effects.push(Effect::Ping { payload });
        }
        let max_silence = Self::period(self.config.heartbeat_interval_ms) * 3;
        let lease = Self::period(self.config.lease_ms).saturating_sub(max_silence);
        let silent: Vec<EngineUuid> = self
            .engines
            .iter()
            .filter(|(_, e)| e.is_connected() && self.now.since_start.saturating_sub(e.last_seen) > max_silence)
            .map(|(uuid, _)| uuid.clone())
            .collect();
        for uuid in silent {
            self.mark_away(&uuid, lease);
        }
    }

    pub(super) fn engine_gone(&mut self, uuid: &EngineUuid, reason: &str) {
        let Some(engine) = self.engines.get(uuid) else { return };
        let (id, tasks) = (engine.id, engine.tasks.iter().map(|(t, r)| (*t, *r)).collect::<Vec<_>>());
        let (host, pid) = (&engine.facts.host, engine.facts.pid);
        tracing::info!(engine = %id, %uuid, host, pid, reason, tasks = tasks.len(), "engine gone");
        // No new tasks for it while its old ones are reassigned.
        self.engines.change(uuid, |e| e.leaving = true);
        self.tasks_of_gone(uuid, id, tasks, reason);
        self.requests_of_gone(uuid);
        let departed = self.engines.remove(uuid);
        self.record(Change::EngineGone {
            id,
            uuid: uuid.clone(),
            at: self.now.unix,
            reason: reason.to_string(),
        });
        let last = departed.as_ref().and_then(|e| e.last_reply);
        // An `ipengine` has several connections: its last replies may arrive after the notice that it left.
        let awaited = departed.is_some_and(|e| !e.native) && self.requests.orphaned.contains_key(uuid);
        self.announce_departure(uuid, id, last, awaited);
        self.recheck_impossible();
    }

    // ---- ipengine

    pub(super) fn registrant_message(&mut self, identity: Bytes, message: Message) {
        match message.msg_type() {
            hub::REGISTRATION => self.register_stock(identity, &message),
            hub::UNREGISTRATION => {
                if let Some(hub::Unregistration { id }) = parse(&message)
                    && let Some(uuid) = self.engines.uuid_of(EngineId(id)).cloned()
                {
                    self.engine_gone(&uuid, "it unregistered");
                }
            }
            other => {
                let content = ErrorContent::new("KeyError", format!("'Bad Message Type: {other}'"));
                let message = self.message("hub_error", Some(&message.header_json), &content);
                self.effects.push(Effect::ToRegistrant { identity, message });
            }
        }
    }

    fn register_stock(&mut self, identity: Bytes, message: &Message) {
        let Some(registration) = parse::<hub::Registration>(message) else {
            return;
        };
        if !untrusted::is_name(&registration.uuid) {
            let content = ErrorContent::new("ValueError", "'an engine's uuid must have 1 to 255 printable characters'");
            let message = self.message("registration_reply", Some(&message.header_json), &content);
            return self.effects.push(Effect::ToRegistrant { identity, message });
        }
        let uuid = EngineUuid::from(registration.uuid.as_str());
        let reply = if self.engines.get(&uuid).is_some() || self.incoming.contains_key(&uuid) {
            let content = ErrorContent::new("KeyError", format!("\"uuid '{uuid}' in use\""));
            self.message("registration_reply", Some(&message.header_json), &content)
        } else {
            let requested = registration.id.map(EngineId);
            let taken = requested.is_some_and(|id| self.incoming.values().any(|i| *i == id));
            let id = self.engines.choose_id(requested.filter(|_| !taken));
            self.incoming.insert(uuid.clone(), id);
            let timeout = Self::period(self.config.registration_timeout_ms);
            self.set_timer(timeout, Timer::Registration(uuid));
            let content = serde_json::json!({
                "id": id.0,
                "status": "ok",
                "hb_period": self.config.heartbeat_interval_ms,
                "connection_info": self.facts.engine_file,
            });
            self.message("registration_reply", Some(&message.header_json), &content)
        };
        self.effects.push(Effect::ToRegistrant { identity, message: reply });
        let payload = Bytes::from_static(b"0");
        self.effects.push(Effect::Ping { payload });
    }

    pub(super) fn registration_stalled(&mut self, uuid: EngineUuid) {
        if self.incoming.remove(&uuid).is_some() {
            tracing::warn!(%uuid, "an ipengine requested registration but answered no ping");
        }
    }

    /// The first pong completes a registration.
    pub(super) fn pong_received(&mut self, uuid: EngineUuid) {
        if let Some(id) = self.incoming.remove(&uuid) {
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
