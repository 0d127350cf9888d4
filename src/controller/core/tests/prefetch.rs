//! Balanced requests that pcluster's own engines prefetch.
use super::super::effect::{ClientChannel, Effect};
use super::super::event::Event;
use super::harness::*;
use super::requests::sent;
use crate::model::task::TaskState;
use crate::model::{MapId, UnixTime};
use crate::wire::Message;
use crate::wire::content::engine::{self, Channel};
use crate::wire::message::to_json;
use bytes::Bytes;
use serde_json::{Value, json};
use std::time::Duration;

const CLIENT: Bytes = Bytes::from_static(b"client");

fn apply(w: &mut Harness, function: &'static [u8], metadata: Value) -> String {
    let mut message = w.session.message("2026-11-20T00:00:00Z", "apply_request", None, &json!({}));
    message.metadata_json = to_json(&metadata);
    message.identities = vec![CLIENT];
    message.buffers = vec![Bytes::from_static(function)];
    let id = message.header.msg_id.clone();
    let channel = ClientChannel::Task;
    w.event(Event::ClientMessage { channel, message });
    id
}

/// The engine answers after this many seconds of work.
fn answer(w: &mut Harness, engine: &str, request: &Message, seconds: f64) {
    let ended = UnixTime(1e9 + w.now.as_secs_f64());
    let content = json!({"status": "ok"});
    let mut message = w
        .session
        .message(&ended.to_iso(), "apply_reply", Some(&request.header_json), &content);
    message.metadata_json = to_json(&json!({"started": UnixTime(ended.0 - seconds).to_iso(), "status": "ok"}));
    w.event(Event::EngineMessage {
        engine: engine.into(),
        native: true,
        channel: Channel::Task,
        client: CLIENT,
        message,
    });
}

/// `f` is known to take a millisecond.
fn practised(engines: &[&str]) -> Harness {
    let mut w = Harness::new();
    w.register(engines[0]);
    apply(&mut w, b"f", json!({}));
    let (engine, message) = sent(&mut w).remove(0);
    answer(&mut w, &engine, &message, 0.001);
    engines[1..].iter().for_each(|name| w.register(name));
    sent(&mut w);
    w
}

fn held(sent: &[(String, Message)], engine: &str) -> Vec<String> {
    let of_engine = sent.iter().filter(|(name, _)| name == engine);
    of_engine.map(|(_, message)| message.header.msg_id.clone()).collect()
}

#[test]
fn short_requests_are_prefetched_and_distributed() {
    let mut w = practised(&["a", "b"]);
    let ids: Vec<String> = (0..40).map(|_| apply(&mut w, b"f", json!({}))).collect();
    let first = sent(&mut w);
    assert_eq!((held(&first, "a").len(), held(&first, "b").len()), (20, 20));
    // In order of arrival.
    let order: Vec<&String> = first.iter().map(|(_, m)| &m.header.msg_id).collect();
    assert_eq!(order, ids.iter().collect::<Vec<_>>());
    // The limit is 50 ms of work: 50 requests.
    for _ in 0..200 {
        apply(&mut w, b"f", json!({}));
    }
    let more = sent(&mut w).len();
    assert!((10..=60).contains(&more), "{more}");
}

#[test]
fn requests_of_unknown_duration_are_not_prefetched() {
    let mut w = practised(&["a"]);
    // Another function, one with a timeout, and requests queued behind either.
    apply(&mut w, b"g", json!({}));
    assert_eq!(sent(&mut w).len(), 1);
    apply(&mut w, b"f", json!({}));
    assert!(sent(&mut w).is_empty(), "behind one that may take long");
    let mut w = practised(&["a"]);
    apply(&mut w, b"f", json!({}));
    apply(&mut w, b"f", json!({"timeout": 5.0}));
    apply(&mut w, b"f", json!({}));
    assert_eq!(sent(&mut w).len(), 1);
    // It has become slow.
    let mut w = practised(&["a"]);
    for _ in 0..3 {
        apply(&mut w, b"f", json!({}));
    }
    let three = sent(&mut w);
    assert_eq!(three.len(), 3);
    for (engine, message) in &three {
        answer(&mut w, engine, message, 1.0);
    }
    for _ in 0..3 {
        apply(&mut w, b"f", json!({}));
    }
    assert_eq!(sent(&mut w).len(), 1);
}

#[test]
fn requests_behind_a_long_one_are_recalled_for_an_idle_engine() {
    let mut w = practised(&["a"]);
    for _ in 0..3 {
        apply(&mut w, b"f", json!({}));
    }
    let at_a = held(&sent(&mut w), "a");
    assert_eq!(at_a.len(), 3);
    w.register("b");
    w.pass(Duration::from_millis(500));
    assert_eq!(w.engines["a"].gave_back, 2);
    let requests = vec![at_a[2].clone(), at_a[1].clone()];
    w.engine_sends(
        "a",
        engine::RETURNED,
        &engine::Returned {
            requests,
            ..Default::default()
        },
    );
    assert_eq!(held(&sent(&mut w), "b"), at_a[1..]);
    assert_eq!(w.state(MapId(1), 3), TaskState::Assigned);
}

#[test]
fn requests_returned_during_a_disconnect_run_elsewhere_after_reconnection() {
    let mut w = practised(&["a"]);
    for _ in 0..3 {
        apply(&mut w, b"f", json!({}));
    }
    let at_a = held(&sent(&mut w), "a");
    w.register("b");
    // The report was lost; on registration the engine lists the requests it still holds.
    let back = engine::Returned {
        sequence: 1,
        requests: vec![at_a[2].clone()],
        runs: vec![1],
        ..Default::default()
    };
    let returned = |w: &mut Harness| w.engines.get_mut("a").unwrap().fake_requests.returned.clone();
    w.engines.get_mut("a").unwrap().fake_requests.returned.push(back.clone());
    w.event(Event::EngineDisconnected { engine: "a".into() });
    w.register("a");
    let now = sent(&mut w);
    assert_eq!(held(&now, "b"), at_a[2..], "to the one that is idle");
    assert_eq!(held(&now, "a"), at_a[..2], "it had reported that it holds none");
    assert!(returned(&mut w).is_empty(), "that is on disk now");
    // Reported again because the answer was lost: the request stays on the engine that has it by now.
    w.engines.get_mut("a").unwrap().fake_requests.returned.push(back.clone());
    w.event(Event::EngineDisconnected { engine: "a".into() });
    w.register("a");
    assert!(held(&sent(&mut w), "b").is_empty());
    assert!(returned(&mut w).is_empty());
}

#[test]
fn a_returned_request_with_a_target_stays_on_its_engine() {
    let mut w = practised(&["a", "b"]);
    let bound = apply(&mut w, b"f", json!({"targets": ["a"]}));
    assert_eq!(held(&sent(&mut w), "a"), std::slice::from_ref(&bound));
    let requests = vec![bound.clone()];
    w.engine_sends(
        "a",
        engine::RETURNED,
        &engine::Returned {
            requests,
            ..Default::default()
        },
    );
    assert_eq!(held(&sent(&mut w), "a"), [bound], "to the same one again");
}

#[test]
fn only_the_first_request_of_a_dead_engine_counts_as_started() {
    let mut w = practised(&["a"]);
    for _ in 0..3 {
        apply(&mut w, b"f", json!({}));
    }
    let at_a = held(&sent(&mut w), "a");
    w.event(Event::EngineDisconnected { engine: "a".into() });
    w.pass(Duration::from_secs(10));
    let replies: Vec<Value> = w.to_clients.iter().map(|(_, _, m)| m.content().unwrap()).collect();
    assert_eq!(replies.last().unwrap()["ename"], "EngineError");
    assert_eq!(w.state(MapId(1), 1), TaskState::Lost);
    w.register("b");
    let again = sent(&mut w);
    assert_eq!(held(&again, "b"), at_a[1..]);
    for (engine, message) in &again {
        answer(&mut w, engine, message, 0.001);
    }
    w.assert_all_done();
}

#[test]
fn recorded_replies_are_acknowledged_in_batches_and_clients_notified_of_complete_output() {
    let mut w = practised(&["a"]);
    let reported = |w: &mut Harness| std::mem::take(&mut w.engines.get_mut("a").unwrap().recorded_replies);
    w.pass(Duration::from_millis(30));
    assert_eq!(reported(&mut w).len(), 1);
    let ids: Vec<String> = (0..3).map(|_| apply(&mut w, b"f", json!({}))).collect();
    for (engine, message) in sent(&mut w) {
        answer(&mut w, &engine, &message, 0.001);
    }
    let idle: Vec<String> = std::mem::take(&mut w.other)
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Iopub { topic, message } if topic == "engine.0.status" => {
                assert_eq!(message.content::<Value>().unwrap(), json!({"execution_state": "idle"}));
                assert_eq!(message.metadata::<Value>().unwrap(), json!({"engine": "a"}));
                Some(message.parent().unwrap().msg_id)
            }
            _ => None,
        })
        .collect();
    assert_eq!(idle, ids);
    assert!(reported(&mut w).is_empty());
    w.pass(Duration::from_millis(30));
    assert_eq!(reported(&mut w), ids);
}
