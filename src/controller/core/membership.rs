//! Engines come, fall silent, return, and go.
use super::{Core, Due, Effect, untrusted};
use crate::model::change::Change;
use crate::model::engine::EngineFacts;
use crate::model::{EngineId, EngineUuid, PROTOCOL_VERSION, TaskId, VERSION};
use crate::wire::Message;
use crate::wire::content::engine::{self as say, Channel, Held};
use crate::wire::content::error::ErrorContent;
use crate::wire::content::hub;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::time::Duration;

/// An engine whose connection ended may come back for so long before its tasks are given away. A process that lives
/// reconnects within two seconds; silence without an end of the connection is judged by the lease instead.
const RECONNECT_GRACE: Duration = Duration::from_secs(5);
/// Results of tasks that an engine held when it returned must arrive within this.
const CONFIRM_GRACE: Duration = Duration::from_secs(5);
/// ipyparallel waits so long for late replies of an engine that left.
pub(super) const STRANDED_GRACE: Duration = Duration::from_secs(2);

/// A client that asks to connect has subscribed to news after this. Departures of later are not announced to it again: one that
/// waits for engines would take the repeated news for the end of one of them.
const CONNECTING: Duration = Duration::from_millis(500);
/// A reply is read before news that is sent so much later on another connection.
/// Longer would hold up clients that wait for other engines in the place of these.
const REPLY_LEAD: Duration = Duration::from_millis(300);

/// Engines that have gone, as ipyparallel's clients hear of it.
#[derive(Debug, Default)]
pub(super) struct Departures {
    /// Not published yet.
    pub(super) pending: HashMap<EngineUuid, Departure>,
    /// Published lately: since the controller's start.
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
            tracing::warn!(kind = message.msg_type(), %error, "an engine's message is not understood");
            None
        }
    }
}

impl Core {
    pub(super) fn engine_said(&mut self, engine: EngineUuid, native: bool, channel: Channel, client: Bytes, message: Message) {
        if native && let Some(why) = self.refused.get(&engine).cloned() {
            if message.msg_type() == say::REGISTER {
                self.say_refused(&engine, &why);
            }
            return;
        }
        if channel == Channel::Native && message.msg_type() == say::REGISTER {
            return self.register_native(&engine, &message);
        }
        if self.engines.get(&engine).is_none() {
            match channel {
                _ if native => self.tell_engine(&engine, say::UNKNOWN_ENGINE, &serde_json::json!({})),
                Channel::Native | Channel::Iopub => {}
                // An `ipengine` has several connections: what it said last may come behind the word that it has left.
                _ => self.reply_of_engine(&engine, channel, client, message),
            }
            return;
        }
        self.heard_of(&engine);
        if native && self.engines.get(&engine).is_some_and(|e| e.unsure) && message.msg_type() == say::HEARTBEAT {
            self.tell_engine(&engine, say::UNKNOWN_ENGINE, &serde_json::json!({}));
        }
        match channel {
            Channel::Native => self.native_said(&engine, &message),
            Channel::Iopub => self.iopub(&engine, client, message),
            _ => self.reply_of_engine(&engine, channel, client, message),
        }
    }

    fn native_said(&mut self, engine: &EngineUuid, message: &Message) {
        match message.msg_type() {
            say::RESULTS => match self.checked_results(message) {
                Ok(results) => self.results(engine, results),
                Err(why) => self.refuse_engine(engine, &why),
            },
            say::PROGRESS => {
                if let Some(progress) = parse(message) {
                    self.progress(engine, progress, &message.buffers);
                }
            }
            say::VALUES_REQUEST => {
                if let Some(request) = parse(message) {
                    self.values_requested(engine, request);
                }
            }
            say::RETURNED => {
                if let Some(returned) = parse(message) {
                    self.given_back(engine, &returned);
                }
            }
            say::HEARTBEAT => self.heartbeat(engine),
            say::AVAILABILITY => {
                if let Some(say::Availability { reason }) = parse(message) {
                    self.availability(engine, reason.as_deref().map(untrusted::reason));
                }
            }
            say::LEAVING => {
                let reason = untrusted::reason(&parse::<say::Leaving>(message).map(|l| l.reason).unwrap_or_default());
                let id = self.engines.get(engine).map(|e| e.id.0);
                tracing::info!(engine = id, %reason, "an engine is about to leave");
                self.engines.change(engine, |e| e.leaving = true);
            }
            say::UNREGISTER => {
                let reason = untrusted::reason(&parse::<say::Unregister>(message).map(|u| u.reason).unwrap_or_default());
                self.engine_gone(engine, &reason);
            }
            other => tracing::warn!(kind = other, %engine, "an engine said something unknown"),
        }
    }

    /// Whether its Python works now.
    fn availability(&mut self, engine: &EngineUuid, reason: Option<String>) {
        let id = self.engines.get(engine).map(|e| e.id.0);
        let changed = self.engines.change(engine, |e| {
            let changed = e.unavailable != reason;
            e.unavailable = reason.clone();
            changed
        });
        match (changed, reason) {
            (Some(true), Some(reason)) => tracing::warn!(engine = id, %reason, "an engine cannot run Python: it gets commands only"),
            (Some(true), None) => {
                tracing::info!(engine = id, "an engine can run Python");
                self.requests.recheck = true;
            }
            _ => {}
        }
    }

    fn given_back(&mut self, engine: &EngineUuid, returned: &say::Returned) {
        self.requests_returned(engine, returned);
        self.returned(engine, &returned.tasks);
        self.say_return_recorded(engine, returned);
    }

    fn say_return_recorded(&mut self, engine: &EngineUuid, say::Returned { sequence, .. }: &say::Returned) {
        if *sequence > 0 {
            self.tell_engine(engine, say::RETURN_RECORDED, &say::ReturnRecorded { sequence: *sequence });
        }
    }

    /// Answered as often as the engine needs it, not to give its controller up.
    fn heartbeat(&mut self, engine: &EngineUuid) {
        let (now, enough) = (self.now.since_start, Self::period(self.config.engine_reconnect_timeout_ms) / 8);
        let due = self.engines.change(engine, |e| {
            let due = e.answered.is_none_or(|at| now.saturating_sub(at) >= enough);
            if due {
                e.answered = Some(now);
            }
            due
        });
        if due == Some(true) {
            self.tell_engine(engine, say::HEARTBEAT, &say::Heartbeat {});
        }
    }

    fn register_native(&mut self, uuid: &EngineUuid, message: &Message) {
        let mut register: say::Register = match message.content() {
            Ok(register) if untrusted::is_name(&uuid.0) => register,
            Ok(_) => return self.say_refused(uuid, "its name is not one: up to 255 printable characters"),
            Err(error) => {
                let why = untrusted::reason(&format!("its registration cannot be read: {error}"));
                tracing::warn!(uuid = untrusted::reason(&uuid.0), why, "an engine is refused");
                return self.say_refused(uuid, &why);
            }
        };
        register.facts = untrusted::facts(register.facts);
        let mut reply = say::Registered {
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
            return self.say_refused(uuid, &why);
        }
        if register.facts.uuid != *uuid {
            return self.say_refused(uuid, "its uuid is not its routing id");
        }
        let known = self.engines.get(uuid).map(|e| e.id);
        let id = match known {
            Some(id) => {
                // It may not have arrived when it was said.
                register.returned.iter().for_each(|returned| self.given_back(uuid, returned));
                self.reconcile(uuid, &register.holds, &mut reply.drop);
                self.send_again(uuid, &register.requests);
                id
            }
            None => {
                // It was given up, or is new: what it still runs has been given away.
                reply.drop = register.holds;
                // A registration as an `ipengine` that it has begun under this name is void.
                self.incoming.remove(uuid);
                let promised = |id: &crate::model::EngineId| self.incoming.values().any(|i| i == id);
                let id = register.id.filter(|id| !promised(id));
                let id = self.engines.choose_id(id);
                self.add_engine(id, register.facts);
                // All that it had was given away, that too.
                register
                    .returned
                    .iter()
                    .for_each(|returned| self.say_return_recorded(uuid, returned));
                id
            }
        };
        reply.id = Some(id);
        self.availability(uuid, register.unavailable.as_deref().map(untrusted::reason));
        self.tell_engine(uuid, say::REGISTERED, &reply);
    }

    /// The engine is back with what it holds; ours are compared.
    fn reconcile(&mut self, uuid: &EngineUuid, holds: &[Held], drop: &mut Vec<Held>) {
        self.heard_of(uuid);
        // It may be a new process of the same name: definitions are sent again.
        self.engines.change(uuid, |e| {
            e.definitions.clear();
            e.bundles.clear();
            e.asked_back = false;
            e.unsure = false;
        });
        let Some(engine) = self.engines.get(uuid) else { return };
        let held: std::collections::HashSet<(TaskId, u32)> = holds.iter().map(|h| (TaskId::new(h.map, h.index), h.run)).collect();
        drop.extend(
            holds
                .iter()
                .filter(|h| engine.tasks.get(&TaskId::new(h.map, h.index)) != Some(&h.run)),
        );
        // It may not have heard that these were cancelled.
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
            self.remind(CONFIRM_GRACE, Due::Unconfirmed(uuid.clone(), missing));
        }
        if !cancelled.is_empty() {
            self.tell_engine(uuid, say::CANCEL, &say::Cancel { tasks: cancelled });
        }
    }

    /// Tasks that never reached the engine, or whose results never came: given to another.
    pub(super) fn unconfirmed(&mut self, uuid: EngineUuid, tasks: Vec<(TaskId, u32)>) {
        let Some(engine) = self.engines.get(&uuid) else { return };
        let id = engine.id;
        let still: Vec<_> = tasks
            .into_iter()
            .filter(|(task, run)| engine.tasks.get(task) == Some(run))
            .collect();
        self.tasks_lost(&uuid, id, still, "it came back without this task");
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

    /// Engines that have registered since that time after the start.
    pub(super) fn announce_again(&mut self, since: Duration) {
        let ago = self.now.since_start.saturating_sub(since).as_secs_f64();
        let then = self.now.unix.0 - ago;
        let new = self.engines.iter().filter(|(_, e)| e.registered.0 >= then);
        let new: Vec<_> = new.map(|(uuid, e)| (e.id, uuid.clone())).collect();
        for (id, uuid) in new {
            self.announce(id, &uuid);
        }
        // Not under a number that another has by now.
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

    // ---- news for ipyparallel's clients

    /// Such a client ends its direct requests to an engine when it hears that the engine has gone, and does not survive
    /// a reply to one of them that it reads afterwards. Replies come on another connection than this news, so they get a lead.
    fn announce_departure(&mut self, uuid: &EngineUuid, id: EngineId, last_reply: Option<Duration>, awaited: bool) {
        let now = self.now.since_start;
        let settled = last_reply.map_or(now, |at| at + REPLY_LEAD);
        let due = if awaited { settled.max(now + STRANDED_GRACE) } else { settled };
        if due <= now {
            return self.publish_departure(uuid.clone(), id);
        }
        self.departures.pending.insert(uuid.clone(), Departure { id, due });
        self.remind(due - now, Due::Departed(uuid.clone()));
    }

    /// The departure's lead may be over.
    pub(super) fn departed(&mut self, uuid: EngineUuid) {
        let now = self.now.since_start;
        match self.departures.pending.get(&uuid) {
            Some(departure) if departure.due > now => {
                let after = departure.due - now;
                self.remind(after, Due::Departed(uuid));
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
            .retain(|(at, _, _)| now.saturating_sub(*at) <= super::hub::LONGEST_CONNECTING);
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

    /// A reply of this engine's is on its way to a client. False: clients know that the engine has gone, and have given its
    /// direct requests up.
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

    pub(super) fn heard_of(&mut self, uuid: &EngineUuid) {
        let now = self.now.since_start;
        self.engines.change(uuid, |e| {
            e.heard = now;
            e.away_until = None;
        });
    }

    pub(super) fn connection_ended(&mut self, uuid: EngineUuid) {
        // What was on its way in either direction may be lost.
        self.engines.change(&uuid, |e| e.unsure = true);
        self.send_away(&uuid, RECONNECT_GRACE);
    }

    fn send_away(&mut self, uuid: &EngineUuid, grace: Duration) {
        let until = self.now.since_start + grace;
        let away = self.engines.change(uuid, |e| match e.away_until {
            Some(earlier) if earlier <= until => false,
            _ => {
                e.away_until = Some(until);
                true
            }
        });
        if away == Some(true) {
            self.remind(grace, Due::Lease(uuid.clone()));
        }
    }

    pub(super) fn lease_over(&mut self, uuid: EngineUuid) {
        let due = self
            .engines
            .get(&uuid)
            .and_then(|e| e.away_until)
            .is_some_and(|until| until <= self.now.since_start);
        if due {
            self.engine_gone(&uuid, "its connection ended, or it was silent for longer than its lease");
        }
    }

    /// Pings `ipengine`s, and sends those away that have been silent for too long.
    pub(super) fn beat_hearts(&mut self) {
        if self.engines.iter().any(|(_, e)| !e.native) || !self.incoming.is_empty() {
            let payload = Bytes::from(format!("{:.6}", self.now.since_start.as_secs_f64()));
            self.effects.push(Effect::Ping { payload });
        }
        let patience = Self::period(self.config.heartbeat_interval_ms) * 3;
        let lease = Self::period(self.config.lease_ms).saturating_sub(patience);
        let silent: Vec<EngineUuid> = self
            .engines
            .iter()
            .filter(|(_, e)| e.is_here() && self.now.since_start.saturating_sub(e.heard) > patience)
            .map(|(uuid, _)| uuid.clone())
            .collect();
        for uuid in silent {
            self.send_away(&uuid, lease);
        }
    }

    pub(super) fn engine_gone(&mut self, uuid: &EngineUuid, reason: &str) {
        let Some(engine) = self.engines.get(uuid) else { return };
        let (id, tasks) = (engine.id, engine.tasks.iter().map(|(t, r)| (*t, *r)).collect::<Vec<_>>());
        let (host, pid) = (&engine.facts.host, engine.facts.pid);
        tracing::info!(engine = %id, %uuid, host, pid, reason, tasks = tasks.len(), "engine gone");
        // No new tasks for it while its old ones are given away.
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
        // An `ipengine` has several connections: its last replies may come behind the news that it has left.
        let awaited = departed.is_some_and(|e| !e.native) && self.requests.stranded.contains_key(uuid);
        self.announce_departure(uuid, id, last, awaited);
        self.recheck_impossible();
    }

    // ---- ipengine

    pub(super) fn registrant_said(&mut self, identity: Bytes, message: Message) {
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
            let content = ErrorContent::new("ValueError", "'an engine's uuid has up to 255 printable characters'");
            let message = self.message("registration_reply", Some(&message.header_json), &content);
            return self.effects.push(Effect::ToRegistrant { identity, message });
        }
        let uuid = EngineUuid::from(registration.uuid.as_str());
        let reply = if self.engines.get(&uuid).is_some() || self.incoming.contains_key(&uuid) {
            let content = ErrorContent::new("KeyError", format!("\"uuid '{uuid}' in use\""));
            self.message("registration_reply", Some(&message.header_json), &content)
        } else {
            let wish = registration.id.map(EngineId);
            let taken = wish.is_some_and(|id| self.incoming.values().any(|i| *i == id));
            let id = self.engines.choose_id(wish.filter(|_| !taken));
            self.incoming.insert(uuid.clone(), id);
            let patience = Self::period(self.config.registration_timeout_ms);
            self.remind(patience, Due::Registration(uuid));
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
            tracing::warn!(%uuid, "an ipengine asked to register and never beat");
        }
    }

    /// The first beat completes a registration.
    pub(super) fn ponged(&mut self, uuid: EngineUuid) {
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
            };
            self.add_engine(id, facts);
        } else {
            self.heard_of(&uuid);
        }
    }
}
