//! What the core collects while it handles an event: effects to carry out now, and timers for later.
use super::effect::{ClientChannel, Effect, Query, QueryKind};
use super::event::EventTime;
use crate::model::change::Change;
use crate::model::{EngineUuid, MapId, TaskId};
use crate::wire::content::client::reply_type;
use crate::wire::content::engine::Channel;
use crate::wire::{Message, Session};
use bytes::Bytes;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// An action scheduled for a later time. Its subject may no longer exist by then.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Sends pings and checks for silent engines and stuck queues.
    Heartbeat,
    Lease(EngineUuid),
    /// An `ipengine` that has not answered its first ping.
    Registration(EngineUuid),
    /// Tasks that were assigned to an engine and that it did not list when it reconnected.
    Unconfirmed(EngineUuid, Vec<(TaskId, u32)>),
    Watches(MapId),
    /// Checks whether the client that sends the map's inputs is still alive.
    Inputs(MapId),
    /// Acknowledges this engine's recorded replies.
    RepliesRecorded(EngineUuid),
    /// The request timed out waiting for an engine in this run.
    RequestTimeout(String, u32),
    /// Ends the requests that an `ipengine` held when it left; late replies could arrive until now.
    Orphaned(EngineUuid),
    /// Announces the engine's departure to ipyparallel's clients.
    Departed(EngineUuid),
    /// Checks for expired records.
    Retention,
    /// Announces engines that registered since then again, for a client that had not subscribed yet.
    Announce(Duration),
}

/// A request on the registration socket, to be answered.
#[derive(Clone, Debug)]
pub(super) struct RequestContext {
    pub client: Bytes,
    pub parent: Bytes,
    pub request: String,
}

impl RequestContext {
    pub(super) fn of(message: &Message) -> RequestContext {
        RequestContext {
            client: message.sender(),
            parent: message.header_json.clone(),
            request: message.header.msg_type.clone(),
        }
    }
}

pub(super) struct Outbox {
    now: EventTime,
    session: Session,
    effects: Vec<Effect>,
    timers: BinaryHeap<Reverse<(Duration, Timer)>>,
}

impl Outbox {
    /// `session` is the prefix of message ids.
    pub(super) fn new(session: String, now: EventTime) -> Outbox {
        Outbox {
            now,
            session: Session::new(b"", session, "pcluster"),
            effects: Vec::new(),
            timers: BinaryHeap::new(),
        }
    }

    /// The time of the current event.
    pub(super) fn now(&self) -> EventTime {
        self.now
    }
    pub(super) fn set_now(&mut self, now: EventTime) {
        self.now = now;
    }
    /// Exchanges the collected effects for the caller's.
    pub(super) fn swap_effects(&mut self, effects: &mut Vec<Effect>) {
        std::mem::swap(&mut self.effects, effects);
    }

    pub(super) fn set_timer(&mut self, after: Duration, timer: Timer) {
        self.timers.push(Reverse((self.now.since_start + after, timer)));
    }
    pub(super) fn next_wake(&self) -> Option<Duration> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }
    pub(super) fn take_due_timer(&mut self) -> Option<Timer> {
        self.next_wake().filter(|at| *at <= self.now.since_start)?;
        self.timers.pop().map(|Reverse((_, timer))| timer)
    }

    pub(super) fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }
    pub(super) fn record(&mut self, change: Change) {
        self.effects.push(Effect::Record(change));
    }

    pub(super) fn next_id(&mut self) -> String {
        self.session.next_id()
    }
    pub(super) fn message<T: Serialize + ?Sized>(&mut self, msg_type: &str, parent: Option<&Bytes>, content: &T) -> Message {
        let date = self.now.unix.to_iso();
        self.session.message(&date, msg_type, parent, content)
    }

    /// Answers a request on the registration socket.
    pub(super) fn answer<T: Serialize + ?Sized>(&mut self, context: &RequestContext, content: &T) {
        self.answer_as(context, &reply_type(&context.request), content);
    }
    pub(super) fn answer_as<T: Serialize + ?Sized>(&mut self, context: &RequestContext, msg_type: &str, content: &T) {
        let message = self.message(msg_type, Some(&context.parent), content);
        self.effects.push(Effect::ToClient {
            channel: ClientChannel::Registration,
            route: vec![context.client.clone()],
            message,
        });
    }
    /// Answers a request from the records.
    pub(super) fn query(&mut self, context: &RequestContext, kind: QueryKind) {
        self.effects.push(Effect::Query(Query {
            client: context.client.clone(),
            request: context.request.clone(),
            parent: context.parent.clone(),
            kind,
        }));
    }
    /// Queries the records for the core itself.
    pub(super) fn own_query(&mut self, kind: QueryKind) {
        self.effects.push(Effect::Query(Query {
            client: Bytes::new(),
            request: String::new(),
            parent: Bytes::new(),
            kind,
        }));
    }

    pub(super) fn send_to_engine<T: Serialize + ?Sized>(&mut self, engine: &EngineUuid, msg_type: &str, content: &T) {
        self.send_to_engine_with(engine, msg_type, content, Vec::new());
    }
    pub(super) fn send_to_engine_with<T: Serialize + ?Sized>(
        &mut self,
        engine: &EngineUuid,
        msg_type: &str,
        content: &T,
        buffers: Vec<Bytes>,
    ) {
        let message = Message {
            buffers,
            ..self.message(msg_type, None, content)
        };
        self.effects.push(Effect::ToEngine {
            engine: engine.clone(),
            native: true,
            channel: Channel::Native,
            client: Bytes::new(),
            message,
        });
    }
}
