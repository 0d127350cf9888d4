//! Notifications of ipyparallel's clients about engines that register and leave.
//!
//! Such a client ends its direct requests to an engine when it is notified of the departure, and crashes if it then reads a
//! reply to one of them. Replies use another connection than notifications, so they get a lead.
use super::super::effect::Effect;
use super::super::outbox::{Outbox, Timer};
use crate::model::{EngineId, EngineUuid};
use crate::wire::content::hub;
use std::collections::HashMap;
use std::time::Duration;

/// How long to wait for late replies of an engine that left, as ipyparallel does.
pub(crate) const ORPHAN_GRACE: Duration = Duration::from_secs(2);
/// A connecting client has subscribed to notifications after this time. Later departures are not announced to it again: a client
/// that waits for engines would count the repeated notification as another departure.
const CONNECTING: Duration = Duration::from_millis(500);
/// A reply is read before a notification that is sent this much later on another connection.
/// A longer lead would delay clients that wait for replacement engines.
const REPLY_LEAD: Duration = Duration::from_millis(300);
/// When to repeat announcements: a client requests the engines when it connects, and learns of later ones on another connection,
/// which may be established this much later. A duplicate announcement is harmless.
pub(crate) const ANNOUNCE_AGAIN: [Duration; 4] = [
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(15),
];
/// The last repetition.
const MAX_CONNECTING: Duration = Duration::from_secs(16);

#[derive(Debug, Default)]
pub(crate) struct Departures {
    /// Not published yet.
    pending: HashMap<EngineUuid, Departure>,
    /// Recently published, with the time since the controller's start.
    recent: Vec<(Duration, EngineUuid, EngineId)>,
}

#[derive(Debug)]
struct Departure {
    id: EngineId,
    due: Duration,
}

impl Departures {
    pub(crate) fn is_pending(&self, uuid: &EngineUuid) -> bool {
        self.pending.contains_key(uuid)
    }

    /// Publishes a departure, now or once the engine's last replies have their lead; `awaited`: replies may still arrive.
    pub(crate) fn add(&mut self, uuid: &EngineUuid, id: EngineId, last_reply: Option<Duration>, awaited: bool, out: &mut Outbox) {
        let now = out.now().since_start;
        let settled = last_reply.map_or(now, |at| at + REPLY_LEAD);
        let due = if awaited { settled.max(now + ORPHAN_GRACE) } else { settled };
        if due <= now {
            return self.publish(uuid.clone(), id, out);
        }
        self.pending.insert(uuid.clone(), Departure { id, due });
        out.set_timer(due - now, Timer::Departed(uuid.clone()));
    }

    /// Publishes a departure once its lead has passed.
    pub(crate) fn publish_due(&mut self, uuid: EngineUuid, out: &mut Outbox) {
        let now = out.now().since_start;
        match self.pending.get(&uuid) {
            Some(departure) if departure.due > now => out.set_timer(departure.due - now, Timer::Departed(uuid)),
            Some(_) => self.publish_pending(&uuid, out),
            None => {}
        }
    }

    pub(crate) fn publish_pending(&mut self, uuid: &EngineUuid, out: &mut Outbox) {
        if let Some(departure) = self.pending.remove(uuid) {
            self.publish(uuid.clone(), departure.id, out);
        }
    }

    fn publish(&mut self, uuid: EngineUuid, id: EngineId, out: &mut Outbox) {
        let now = out.now().since_start;
        self.recent.retain(|(at, _, _)| now.saturating_sub(*at) <= MAX_CONNECTING);
        push_notification(hub::UNREGISTRATION_NOTIFICATION, &uuid, id, out);
        self.recent.push((now, uuid, id));
    }

    /// Notes a reply of a departed engine. Returns false if clients were already notified of the departure and have ended its
    /// direct requests.
    pub(crate) fn note_reply(&mut self, uuid: &EngineUuid, now: Duration) -> bool {
        let pending = self.pending.get_mut(uuid);
        let is_pending = pending.is_some();
        if let Some(departure) = pending {
            departure.due = departure.due.max(now + REPLY_LEAD);
        }
        is_pending
    }

    /// Repeats the departures that a client, connecting since then, may have missed; `is_taken`: another engine has the id.
    pub(crate) fn repeat(&self, since: Duration, is_taken: impl Fn(EngineId) -> bool, out: &mut Outbox) {
        for (at, uuid, id) in &self.recent {
            if (since..=since + CONNECTING).contains(at) && !is_taken(*id) {
                push_notification(hub::UNREGISTRATION_NOTIFICATION, uuid, *id, out);
            }
        }
    }
}

/// Notifies clients of a registered engine.
pub(crate) fn announce(uuid: &EngineUuid, id: EngineId, out: &mut Outbox) {
    push_notification(hub::REGISTRATION_NOTIFICATION, uuid, id, out);
}

fn push_notification(kind: &str, uuid: &EngineUuid, id: EngineId, out: &mut Outbox) {
    let content = hub::EngineNotification {
        id: id.0,
        uuid: uuid.to_string(),
    };
    let message = out.message(kind, None, &content);
    out.push(Effect::Notify { message });
}
