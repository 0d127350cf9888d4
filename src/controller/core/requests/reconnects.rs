//! Reconnecting ipyparallel clients. Their sockets have no identity of their own: after a broken connection or a restart of the
//! controller, they reconnect under another routing id. With CURVE, their key identifies them, and they receive the replies
//! that arrived meanwhile.
use super::super::effect::{ClientChannel, Effect, UndeliveredReply};
use super::super::outbox::Outbox;
use super::open::Client;
use crate::model::TaskId;
use crate::model::change::Change;
use crate::wire::Message;
use bytes::Bytes;
use std::collections::HashMap;
use std::time::Duration;

/// Limits of the replies queued for disconnected clients: total bytes,
const MAX_QUEUED_BYTES: usize = 64 << 20;
/// and time.
const QUEUED_FOR: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(crate) struct Reconnects {
    connected: HashMap<(ClientChannel, Bytes), Option<String>>,
    queued: HashMap<(ClientChannel, String), Vec<QueuedReply>>,
    bytes: usize,
}

#[derive(Debug)]
struct QueuedReply {
    at: Duration,
    reply: UndeliveredReply,
}

impl QueuedReply {
    fn size(&self) -> usize {
        let message = &self.reply.message;
        let buffers: usize = message.buffers.iter().map(Bytes::len).sum();
        buffers + message.content_json.len() + message.metadata_json.len() + 1000
    }
}

impl Reconnects {
    /// The client with this routing id, and its key if that is known.
    pub(crate) fn client(&self, channel: ClientChannel, identity: Bytes) -> Client {
        let key = self.connected.get(&(channel, identity.clone())).cloned().flatten();
        Client { identity, key }
    }

    /// The routing id under which the client with this key is connected.
    fn identity_of(&self, channel: ClientChannel, key: &str) -> Option<Bytes> {
        let mut connected = self.connected.iter();
        let found = connected.find(|((its, _), known)| *its == channel && known.as_deref() == Some(key));
        found.map(|((_, identity), _)| identity.clone())
    }

    /// Notes a connected client, and sends it the replies that are queued for it.
    pub(crate) fn connected(&mut self, channel: ClientChannel, identity: Bytes, key: Option<String>, out: &mut Outbox) {
        self.connected.insert((channel, identity.clone()), key.clone());
        let queued = key.and_then(|key| self.queued.remove(&(channel, key)));
        for queued in queued.unwrap_or_default() {
            self.bytes -= queued.size().min(self.bytes);
            self.send_or_queue(channel, identity.clone(), queued.reply, out);
        }
    }

    pub(crate) fn disconnected(&mut self, channel: ClientChannel, identity: &Bytes) {
        self.connected.remove(&(channel, identity.clone()));
    }

    /// Handles a reply whose client had disconnected. It may have reconnected under another routing id.
    pub(crate) fn undelivered(&mut self, channel: ClientChannel, reply: UndeliveredReply, out: &mut Outbox) {
        let now = self.identity_of(channel, &reply.key).unwrap_or_default();
        self.send_or_queue(channel, now, reply, out);
    }

    /// Sends a reply to its client, or queues it until the client reconnects. `tasks` are the answered tasks.
    pub(crate) fn deliver(
        &mut self,
        channel: ClientChannel,
        client: Client,
        tasks: Vec<TaskId>,
        engine: Option<Bytes>,
        message: Message,
        out: &mut Outbox,
    ) {
        if let Some(key) = client.key {
            let reply = UndeliveredReply {
                key,
                tasks,
                engine,
                message,
            };
            return self.send_or_queue(channel, client.identity, reply, out);
        }
        if client.identity.is_empty() {
            return tracing::info!("a reply's client is disconnected; the reply stays in the records");
        }
        let route = std::iter::once(client.identity).chain(engine).collect();
        out.push(Effect::ToClient { channel, route, message });
    }

    fn send_or_queue(&mut self, channel: ClientChannel, client: Bytes, reply: UndeliveredReply, out: &mut Outbox) {
        tracing::debug!(?channel, client = %client.escape_ascii(), tasks = ?reply.tasks, "sending a reply to its client");
        match client.is_empty() {
            false => out.push(Effect::Reply { channel, client, reply }),
            true => self.queue(channel, reply, out),
        }
    }

    /// Queues a reply for a disconnected client. Replies that expire or exceed the limit stay in the records.
    pub(crate) fn queue(&mut self, channel: ClientChannel, reply: UndeliveredReply, out: &mut Outbox) {
        let now = out.now().since_start;
        let mut dropped = self.take_expired(now);
        let queued = QueuedReply { at: now, reply };
        if self.bytes + queued.size() > MAX_QUEUED_BYTES {
            tracing::info!("a reply's client is disconnected, and the queue for such replies is full; the reply stays in the records");
            dropped.extend(queued.reply.tasks);
        } else {
            self.bytes += queued.size();
            self.queued.entry((channel, queued.reply.key.clone())).or_default().push(queued);
        }
        if !dropped.is_empty() {
            out.record(Change::RepliesDelivered { tasks: dropped });
        }
    }

    /// The tasks of replies that expired.
    fn take_expired(&mut self, now: Duration) -> Vec<TaskId> {
        let (mut freed_bytes, mut expired) = (0, Vec::new());
        self.queued.retain(|_, list| {
            list.retain(|old| {
                let stays = old.at + QUEUED_FOR > now;
                if !stays {
                    freed_bytes += old.size();
                    expired.extend_from_slice(&old.reply.tasks);
                }
                stays
            });
            !list.is_empty()
        });
        self.bytes -= freed_bytes.min(self.bytes);
        expired
    }
}
