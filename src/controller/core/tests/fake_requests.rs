//! How a fake pcluster engine handles requests of ipyparallel clients.
use super::super::event::Event;
use super::harness::Harness;
use crate::model::UnixTime;
use crate::wire::Message;
use crate::wire::content::engine::{self, Channel};
use crate::wire::message::to_json;
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::HashSet;

struct FakeRequest {
    channel: Channel,
    client: Bytes,
    message: Message,
}

#[derive(Default)]
pub(super) struct Serving {
    queue: Vec<FakeRequest>,
    /// All received messages: an identical message is a replay, and rejected.
    seen: HashSet<(String, Bytes)>,
    /// Replies that the controller has not acknowledged as recorded.
    replies: Vec<FakeRequest>,
    /// Returned requests that are not acknowledged, and the number of returns.
    pub returned: Vec<engine::Returned>,
    returns: u64,
}

fn id_of(asked: &FakeRequest) -> String {
    match asked.message.msg_type() {
        "apply_reply" => asked.message.parent().unwrap().msg_id,
        _ => asked.message.header.msg_id.clone(),
    }
}

fn message_event(name: &str, reply: &FakeRequest) -> Event {
    Event::EngineMessage {
        engine: name.into(),
        native: true,
        channel: reply.channel,
        client: reply.client.clone(),
        message: reply.message.clone(),
    }
}

impl Serving {
    pub(super) fn held(&self) -> Vec<String> {
        self.queue.iter().chain(&self.replies).map(id_of).collect()
    }

    /// Whether it holds a request that the scheduler placed here.
    pub(super) fn has_balanced(&self) -> bool {
        self.queue.iter().any(|request| request.channel == Channel::Task)
    }

    pub(super) fn forget(&mut self, msg_ids: &[String]) {
        self.replies.retain(|reply| !msg_ids.contains(&id_of(reply)));
    }

    pub(super) fn replies_of(&self, name: &str) -> Vec<Event> {
        self.replies.iter().map(|reply| message_event(name, reply)).collect()
    }
}

impl Harness {
    pub(super) fn engine_is_asked(&mut self, name: &str, channel: Channel, client: Bytes, message: Message) {
        let Some(engine) = self.engines.get_mut(name).filter(|e| !e.cut) else {
            return;
        };
        if message.msg_type() == "abort_request" {
            let ids: Vec<String> = serde_json::from_value(message.content::<Value>().unwrap()["msg_ids"].clone()).unwrap();
            // The first of them is running.
            let queue = &mut engine.fake_requests.queue;
            let behind = queue.split_off(queue.len().min(1));
            let (ended, stays) = behind.into_iter().partition(|asked| ids.contains(&id_of(asked)));
            queue.extend::<Vec<FakeRequest>>(stays);
            let ended: Vec<FakeRequest> = ended;
            for asked in ended {
                let event = self.answer(name, asked, json!({"status": "aborted"}), json!({"status": "aborted"}));
                self.next.push_back(event);
            }
            return;
        }
        let signed = (message.header.msg_id.clone(), message.metadata_json.clone());
        if engine.fake_requests.seen.insert(signed) {
            engine.fake_requests.queue.push(FakeRequest { channel, client, message });
        }
    }

    fn answer(&mut self, name: &str, asked: FakeRequest, content: Value, mut metadata: Value) -> Event {
        let FakeRequest { channel, client, message } = asked;
        let ended = UnixTime(1e9 + self.now.as_secs_f64());
        metadata["started"] = UnixTime(ended.0 - 0.001).to_iso().into();
        let mut reply = self
            .session
            .message(&ended.to_iso(), "apply_reply", Some(&message.header_json), &content);
        reply.metadata_json = to_json(&metadata);
        let reply = FakeRequest {
            channel,
            client,
            message: reply,
        };
        let event = message_event(name, &reply);
        if let Some(engine) = self.engines.get_mut(name) {
            engine.fake_requests.replies.push(reply);
        }
        event
    }

    /// The engine answers the first of its requests, if it has one.
    pub(super) fn answer_one(&mut self, name: &str, luck: u64) -> bool {
        let Some(engine) = self.engines.get_mut(name).filter(|e| !e.fake_requests.queue.is_empty()) else {
            return false;
        };
        let asked = engine.fake_requests.queue.remove(0);
        let (content, metadata) = match luck {
            0 | 1 => (
                json!({"status": "error", "ename": "ValueError", "evalue": ""}),
                json!({"status": "error"}),
            ),
            2 => (
                json!({"status": "error", "ename": "UnmetDependency", "evalue": ""}),
                json!({"status": "error", "dependencies_met": false}),
            ),
            _ => (json!({"status": "ok"}), json!({"status": "ok"})),
        };
        let cut = engine.cut;
        let event = self.answer(name, asked, content, metadata);
        if !cut {
            self.event(event);
        }
        true
    }

    /// Returns unstarted balanced requests. A report sent while the engine is disconnected is lost, and repeated when it registers.
    pub(super) fn give_requests_back(&mut self, name: &str, most: usize) {
        let fake_requests = &mut self.engines.get_mut(name).unwrap().fake_requests;
        let mut back = engine::Returned::default();
        for at in (1..fake_requests.queue.len()).rev() {
            if back.requests.len() < most && fake_requests.queue[at].channel == Channel::Task {
                let asked = fake_requests.queue.remove(at);
                let metadata: Value = asked.message.metadata().unwrap();
                back.runs.push(metadata["pcluster_run"].as_u64().unwrap_or(1) as u32);
                back.requests.push(id_of(&asked));
            }
        }
        if !back.is_empty() {
            fake_requests.returns += 1;
            back.sequence = fake_requests.returns;
            fake_requests.returned.push(back.clone());
        }
        self.engine_sends(name, engine::RETURNED, &back);
    }
}
