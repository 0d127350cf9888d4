//! ipyparallel's clients that reconnect. Their sockets have no name of their own: after a break, or after a restart of the
//! controller, they come back under another routing id. With CURVE they are known again by their key, and get the replies
//! that came meanwhile.
use super::{ClientChannel, Core, Effect};
use crate::model::change::Change;
use crate::wire::Message;
use bytes::Bytes;
use std::collections::HashMap;
use std::time::Duration;

/// Replies are kept for clients that are away up to so many bytes in all,
const KEPT_BYTES: usize = 64 << 20;
/// and for so long.
const KEPT_FOR: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(super) struct Returning {
    connected: HashMap<(ClientChannel, Bytes), Option<String>>,
    kept: HashMap<(ClientChannel, String), Vec<Kept>>,
    bytes: usize,
}

#[derive(Debug)]
struct Kept {
    at: Duration,
    engine: Option<Bytes>,
    message: Message,
}

impl Kept {
    fn size(&self) -> usize {
        let buffers: usize = self.message.buffers.iter().map(Bytes::len).sum();
        buffers + self.message.content_json.len() + self.message.metadata_json.len() + 1000
    }
}

impl Returning {
    pub(super) fn key_of(&self, channel: ClientChannel, identity: &Bytes) -> Option<String> {
        self.connected.get(&(channel, identity.clone())).cloned().flatten()
    }

    fn keep(&mut self, channel: ClientChannel, key: String, kept: Kept) -> bool {
        let now = kept.at;
        let mut freed = 0;
        self.kept.retain(|_, list| {
            list.retain(|old| {
                let stays = old.at + KEPT_FOR > now;
                freed += if stays { 0 } else { old.size() };
                stays
            });
            !list.is_empty()
        });
        self.bytes -= freed.min(self.bytes);
        if self.bytes + kept.size() > KEPT_BYTES {
            return false;
        }
        self.bytes += kept.size();
        self.kept.entry((channel, key)).or_default().push(kept);
        true
    }
}

impl Core {
    pub(super) fn client_came(&mut self, channel: ClientChannel, identity: Bytes, key: Option<String>) {
        self.requests.returning.connected.insert((channel, identity.clone()), key.clone());
        let Some(key) = key else { return };
        // Its first message may have been quicker than the news of its connection.
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
            self.record(Change::ClientKnown {
                map,
                curve_key: key.clone(),
            });
        }
        for kept in self.requests.returning.kept.remove(&(channel, key.clone())).unwrap_or_default() {
            self.requests.returning.bytes -= kept.size().min(self.requests.returning.bytes);
            self.deliver(channel, identity.clone(), Some(key.clone()), kept.engine, kept.message);
        }
    }

    pub(super) fn client_left(&mut self, channel: ClientChannel, identity: &Bytes) {
        self.requests.returning.connected.remove(&(channel, identity.clone()));
        for open in self.requests.open_on(channel) {
            if open.client == *identity && open.key.is_some() {
                open.client = Bytes::new();
            }
        }
    }

    /// Sends a reply to its client, or keeps it until that is back.
    pub(super) fn deliver(&mut self, channel: ClientChannel, client: Bytes, key: Option<String>, engine: Option<Bytes>, message: Message) {
        if !client.is_empty() {
            let route = std::iter::once(client).chain(engine).collect();
            return self.effects.push(Effect::ToClient { channel, route, message });
        }
        let at = self.now.since_start;
        let kept = key.is_some_and(|key| self.requests.returning.keep(channel, key, Kept { at, engine, message }));
        if !kept {
            tracing::info!("a reply's client is not connected; the reply is in the records");
        }
    }
}
