//! Reconnecting ipyparallel clients. Their sockets have no identity of their own: after a broken connection or a restart of the
//! controller, they reconnect under another routing id. With CURVE, their key identifies them, and they receive the replies
//! that arrived meanwhile.
use super::Core;
use super::effect::{ClientChannel, Effect, UndeliveredReply};
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
pub(super) struct Reconnects {
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
    pub(super) fn key_of(&self, channel: ClientChannel, identity: &Bytes) -> Option<String> {
        self.connected.get(&(channel, identity.clone())).cloned().flatten()
    }

    /// The routing id under which the client with this key is connected.
    fn identity_of(&self, channel: ClientChannel, key: &str) -> Option<Bytes> {
        let mut connected = self.connected.iter();
        let found = connected.find(|((its, _), known)| *its == channel && known.as_deref() == Some(key));
        found.map(|((_, identity), _)| identity.clone())
    }

    /// Queues a reply. Returns the tasks of replies that expired or exceed the limit.
    fn enqueue(&mut self, channel: ClientChannel, queued: QueuedReply) -> Vec<TaskId> {
        let now = queued.at;
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
        if self.bytes + queued.size() > MAX_QUEUED_BYTES {
            tracing::info!("a reply's client is disconnected, and the queue for such replies is full; the reply stays in the records");
            expired.extend(queued.reply.tasks);
            return expired;
        }
        self.bytes += queued.size();
        self.queued.entry((channel, queued.reply.key.clone())).or_default().push(queued);
        expired
    }
}

impl Core {
    pub(super) fn client_connected(&mut self, channel: ClientChannel, identity: Bytes, key: Option<String>) {
        self.requests.reconnects.connected.insert((channel, identity.clone()), key.clone());
        tracing::debug!(?channel, identity = %identity.escape_ascii(), key, "client connected");
        let Some(key) = key else { return };
        // Its first message may have arrived before this event.
        let mut newly_known = std::collections::BTreeSet::new();
        for open in self.requests.open_on(channel) {
            if open.client == identity {
                if open.key.is_none() {
                    newly_known.insert(open.task.map);
                }
                open.key = Some(key.clone());
            } else if open.key.as_ref() == Some(&key) {
                open.client = identity.clone();
            }
        }
        for map in newly_known {
            self.out.record(Change::ClientKnown {
                map,
                curve_key: key.clone(),
            });
        }
        for queued in self.requests.reconnects.queued.remove(&(channel, key.clone())).unwrap_or_default() {
            self.requests.reconnects.bytes -= queued.size().min(self.requests.reconnects.bytes);
            self.send_or_queue(channel, identity.clone(), queued.reply);
        }
    }

    pub(super) fn client_disconnected(&mut self, channel: ClientChannel, identity: &Bytes) {
        tracing::debug!(?channel, identity = %identity.escape_ascii(), "client disconnected");
        self.requests.reconnects.connected.remove(&(channel, identity.clone()));
        for open in self.requests.open_on(channel) {
            if open.client == *identity && open.key.is_some() {
                open.client = Bytes::new();
            }
        }
    }

    /// Sends a reply to its client, or queues it until the client reconnects. `tasks` are the answered tasks.
    pub(super) fn deliver(
        &mut self,
        channel: ClientChannel,
        (client, key): (Bytes, Option<String>),
        tasks: Vec<TaskId>,
        engine: Option<Bytes>,
        message: Message,
    ) {
        if let Some(key) = key {
            let reply = UndeliveredReply {
                key,
                tasks,
                engine,
                message,
            };
            return self.send_or_queue(channel, client, reply);
        }
        if client.is_empty() {
            return tracing::info!("a reply's client is disconnected; the reply stays in the records");
        }
        let route = std::iter::once(client).chain(engine).collect();
        self.out.push(Effect::ToClient { channel, route, message });
    }

    fn send_or_queue(&mut self, channel: ClientChannel, client: Bytes, reply: UndeliveredReply) {
        tracing::debug!(?channel, client = %client.escape_ascii(), tasks = ?reply.tasks, "sending a reply to its client");
        match client.is_empty() {
            false => self.out.push(Effect::Reply { channel, client, reply }),
            true => self.queue_for_client(channel, reply),
        }
    }

    /// Queues a reply for a disconnected client. Also used by `restore` for replies of the previous controller.
    pub(super) fn queue_for_client(&mut self, channel: ClientChannel, reply: UndeliveredReply) {
        let at = self.out.now().since_start;
        let tasks = self.requests.reconnects.enqueue(channel, QueuedReply { at, reply });
        if !tasks.is_empty() {
            self.out.record(Change::RepliesDelivered { tasks });
        }
    }

    /// Handles a reply whose client disconnected before this was known. It may have reconnected under another routing id.
    pub(super) fn reply_undelivered(&mut self, channel: ClientChannel, client: &Bytes, reply: UndeliveredReply) {
        self.client_disconnected(channel, client);
        let now = self.requests.reconnects.identity_of(channel, &reply.key).unwrap_or_default();
        self.send_or_queue(channel, now, reply);
    }
}
