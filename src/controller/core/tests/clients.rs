//! ipyparallel clients in seeded simulations: they send requests once, wait, disconnect and reconnect, or leave.
use super::super::effect::ClientChannel;
use super::super::event::Event;
use super::harness::Harness;
use super::lifecycle::{NAMES, Rng};
use crate::model::task::TaskState;
use crate::wire::Session;
use crate::wire::message::to_json;
use bytes::Bytes;
use serde_json::json;
use std::collections::HashSet;

const CHANNELS: [ClientChannel; 3] = [ClientChannel::Mux, ClientChannel::Task, ClientChannel::Control];

pub(super) struct TestClient {
    name: &'static str,
    /// Without a key, it cannot be identified after a reconnection.
    key: Option<String>,
    session: Session,
    connections: u32,
    asked: Vec<String>,
    direct: HashSet<String>,
    /// Requests whose reply was received.
    got: HashSet<String>,
    left: bool,
}

impl TestClient {
    pub(super) fn three() -> [TestClient; 3] {
        ["x", "y", "stranger"].map(|name| TestClient {
            name,
            key: (name != "stranger").then(|| format!("the key of {name}")),
            session: Session::new(b"", name, name),
            connections: 0,
            asked: Vec::new(),
            direct: HashSet::new(),
            got: HashSet::new(),
            left: false,
        })
    }

    /// The identity of its current or last connection.
    fn identity(&self) -> Bytes {
        Bytes::from(format!("{} {}", self.name, self.connections))
    }

    fn is_connected(&self, w: &Harness) -> bool {
        let connected = w.connected.as_ref().unwrap();
        CHANNELS.iter().all(|channel| connected.contains(&(*channel, self.identity())))
    }

    /// Connects, even if the controller dies meanwhile.
    pub(super) fn come(&mut self, w: &mut Harness) {
        while !self.left && !self.is_connected(w) {
            self.connections += 1;
            for channel in CHANNELS {
                let identity = self.identity();
                w.connected.as_mut().unwrap().insert((channel, identity.clone()));
                let key = self.key.clone();
                w.event(Event::ClientConnected { channel, identity, key });
            }
        }
    }

    /// Breaks its connections; the controller may learn of it late. Rarely it does not reconnect.
    pub(super) fn leave(&mut self, w: &mut Harness, rng: &mut Rng) {
        self.left |= rng.roll(20) == 0;
        for channel in CHANNELS {
            let identity = self.identity();
            let known = w.connected.as_mut().unwrap().remove(&(channel, identity.clone()));
            if known && rng.roll(2) == 0 {
                w.event(Event::ClientDisconnected { channel, identity });
            }
        }
    }

    pub(super) fn step<'a>(&mut self, w: &mut Harness, rng: &mut Rng, others: impl Iterator<Item = &'a TestClient>) {
        self.come(w);
        if self.left {
            return;
        }
        let target = NAMES[rng.roll(4) as usize];
        let mut known: Vec<&String> = others.flat_map(|other| &other.asked).chain(&self.asked).collect();
        known.sort();
        let one = |rng: &mut Rng| match known.len() {
            0 => json!([]),
            n => json!([known[rng.roll(n as u64) as usize]]),
        };
        let (channel, kind, metadata, content) = match rng.roll(12) {
            0 => (ClientChannel::Control, "abort_request", json!({}), json!({"msg_ids": one(rng)})),
            1..=3 => (ClientChannel::Mux, "apply_request", json!({}), json!({})),
            choice => {
                let mut metadata = json!({"retries": rng.roll(3)});
                match choice {
                    4 => metadata["targets"] = json!([target]),
                    5 => metadata["after"] = one(rng),
                    6 => metadata["follow"] = one(rng),
                    7 => metadata["timeout"] = json!(1 + rng.roll(10)),
                    _ => {}
                }
                (ClientChannel::Task, "apply_request", metadata, json!({}))
            }
        };
        let mut message = self.session.message("2026-11-20T00:00:00Z", kind, None, &content);
        message.metadata_json = to_json(&metadata);
        message.identities = vec![self.identity()];
        if channel != ClientChannel::Task {
            message.identities.push(Bytes::from_static(target.as_bytes()));
        }
        message.buffers = vec![Bytes::from_static(b"f")];
        if channel == ClientChannel::Mux {
            self.direct.insert(message.header.msg_id.clone());
        }
        if kind == "apply_request" {
            self.asked.push(message.header.msg_id.clone());
        }
        w.event(Event::ClientMessage { channel, message });
    }

    /// Receives its replies.
    pub(super) fn read(&mut self, w: &Harness) {
        let mine = format!("{} ", self.name);
        for (_, route, message) in &w.to_clients {
            let Some(parent) = message.parent().filter(|_| route[0].starts_with(mine.as_bytes())) else {
                continue;
            };
            // An ipyparallel client does not survive a second reply.
            assert!(self.got.insert(parent.msg_id.clone()), "{} has its reply twice", parent.msg_id);
        }
    }

    /// An identifiable client that has not left has received the reply to every recorded request.
    pub(super) fn assert_answered(&self, w: &Harness) {
        if self.key.is_none() || self.left {
            return;
        }
        for id in &self.asked {
            if let Some(task) = w.ledger.requests.get(id) {
                // A direct request whose engine left is ended by the departure notification.
                let ended_with_engine = self.direct.contains(id) && w.ledger.tasks[task].0 == TaskState::Lost;
                assert!(
                    self.got.contains(id) || ended_with_engine,
                    "{id} ({task}) has no reply; its client is {}\n{}",
                    self.name,
                    w.ledger.story_of(*task)
                );
            }
        }
    }
}
