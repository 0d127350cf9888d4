//! ipyparallel's clients and engines.
use super::super::effect::{ClientChannel, Effect};
use super::super::event::Event;
use super::harness::*;
use crate::model::EngineUuid;
use crate::wire::Message;
use crate::wire::content::engine::Channel;
use crate::wire::message::to_json;
use bytes::Bytes;
use serde_json::{Value, json};
use std::time::Duration;

pub(super) fn stock(w: &mut Harness, name: &str) {
    let message = w.session.message("", "registration_request", None, &json!({"uuid": name}));
    w.event(Event::RegistrantMessage {
        identity: Bytes::copy_from_slice(name.as_bytes()),
        message,
    });
    w.event(Event::PongReceived { engine: name.into() });
}

pub(super) fn request(w: &mut Harness, channel: ClientChannel, target: Option<&str>, metadata: Value) -> String {
    let mut message = w.session.message("2026-11-20T00:00:00Z", "apply_request", None, &json!({}));
    message.metadata_json = to_json(&metadata);
    message.identities = vec![Bytes::from_static(b"client")];
    message.identities.extend(target.map(|t| Bytes::copy_from_slice(t.as_bytes())));
    let id = message.header.msg_id.clone();
    w.event(Event::ClientMessage { channel, message });
    id
}

/// Requests sent to engines since the last call: engine, id.
pub(super) fn sent(w: &mut Harness) -> Vec<(String, Message)> {
    let effects = std::mem::take(&mut w.other);
    effects
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::ToEngine {
                engine,
                channel: Channel::Mux | Channel::Task | Channel::Broadcast,
                message,
                ..
            } => Some((engine.to_string(), message)),
            _ => None,
        })
        .collect()
}

pub(super) fn reply(w: &mut Harness, engine: &str, channel: Channel, request: &Message, content: Value, metadata: Value) {
    let mut message = w.session.message("", "apply_reply", Some(&request.header_json), &content);
    message.metadata_json = to_json(&metadata);
    let engine = EngineUuid::from(engine);
    w.event(Event::EngineMessage {
        engine,
        native: false,
        channel,
        client: Bytes::from_static(b"client"),
        message,
    });
}

pub(super) fn ok() -> Value {
    json!({"status": "ok"})
}

#[test]
fn an_ipengine_is_registered_by_its_first_pong() {
    let mut w = Harness::new();
    let message = w.session.message("", "registration_request", None, &json!({"uuid": "e"}));
    w.event(Event::RegistrantMessage {
        identity: "e".into(),
        message,
    });
    assert!(!w.other.iter().any(|e| matches!(e, Effect::Notify { .. })));
    w.event(Event::PongReceived { engine: "e".into() });
    assert!(
        w.other
            .iter()
            .any(|e| matches!(e, Effect::Notify { message } if message.msg_type() == "registration_notification"))
    );
    w.ask("connection_request", &json!({}), vec![]);
    assert_eq!(w.reply()["engines"], json!({"0": "e"}));
}

#[test]
fn direct_requests_reach_their_target_and_return_its_reply() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    let id = request(&mut w, ClientChannel::Mux, Some("e"), json!({}));
    let (engine, message) = sent(&mut w).remove(0);
    assert_eq!((engine.as_str(), &message.header.msg_id), ("e", &id));
    reply(&mut w, "e", Channel::Mux, &message, ok(), json!({}));
    let (channel, route, _) = w.to_clients.last().unwrap();
    assert_eq!(
        (*channel, route.as_slice()),
        (ClientChannel::Mux, [Bytes::from("client"), Bytes::from("e")].as_slice())
    );
    request(&mut w, ClientChannel::Mux, Some("unknown"), json!({}));
    assert_eq!(w.reply()["ename"], "EngineError");
}

#[test]
fn balanced_requests_respect_the_high_water_mark_and_targets() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    stock(&mut w, "f");
    for _ in 0..2 {
        request(&mut w, ClientChannel::Task, None, json!({}));
    }
    let bound = request(&mut w, ClientChannel::Task, None, json!({"targets": ["f"]}));
    let first = sent(&mut w);
    assert_eq!(first.len(), 2, "one each");
    for (engine, message) in &first {
        reply(&mut w, engine, Channel::Task, message, ok(), json!({"status": "ok"}));
    }
    let next = sent(&mut w);
    assert_eq!(next.len(), 1);
    assert_eq!((next[0].0.as_str(), &next[0].1.header.msg_id), ("f", &bound));
}

#[test]
fn dependencies_hold_tasks_back_and_fail_them() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    let first = request(&mut w, ClientChannel::Task, None, json!({}));
    let second = request(
        &mut w,
        ClientChannel::Task,
        None,
        json!({"after": {"dependencies": [first], "all": true, "success": true, "failure": false}}),
    );
    let third = request(&mut w, ClientChannel::Task, None, json!({"after": [second]}));
    let message = sent(&mut w).remove(0).1;
    reply(&mut w, "e", Channel::Task, &message, ok(), json!({"status": "ok"}));
    let message = sent(&mut w).remove(0).1;
    assert_eq!(message.header.msg_id, second);
    reply(
        &mut w,
        "e",
        Channel::Task,
        &message,
        json!({"status": "error", "ename": "X", "evalue": ""}),
        json!({"status": "error"}),
    );
    assert_eq!(w.reply()["ename"], "ImpossibleDependency");
    assert_eq!(w.to_clients.last().unwrap().2.parent().unwrap().msg_id, third);
    request(&mut w, ClientChannel::Task, None, json!({"after": ["unknown"]}));
    assert_eq!(w.reply()["ename"], "InvalidDependency");
}

#[test]
fn unmet_functional_dependencies_go_to_another_engine() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    stock(&mut w, "f");
    request(&mut w, ClientChannel::Task, None, json!({}));
    let unmet = json!({"dependencies_met": false, "status": "error"});
    let (engine, message) = sent(&mut w).remove(0);
    reply(
        &mut w,
        &engine,
        Channel::Task,
        &message,
        json!({"status": "error", "ename": "UnmetDependency", "evalue": ""}),
        unmet.clone(),
    );
    let (other, message) = sent(&mut w).remove(0);
    assert_ne!(engine, other);
    reply(
        &mut w,
        &other,
        Channel::Task,
        &message,
        json!({"status": "error", "ename": "UnmetDependency", "evalue": ""}),
        unmet,
    );
    assert_eq!(w.reply()["ename"], "ImpossibleDependency");
}

#[test]
fn a_request_whose_engine_dies_ends_with_engine_error() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    request(&mut w, ClientChannel::Task, None, json!({}));
    w.event(Event::EngineDisconnected { engine: "e".into() });
    w.pass(Duration::from_secs(8));
    assert_eq!(w.reply()["ename"], "EngineError");
}

#[test]
fn a_request_whose_engine_died_before_the_controller_is_retried() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    stock(&mut w, "g");
    let with_retries = request(&mut w, ClientChannel::Task, None, json!({"retries": 1}));
    let without = request(&mut w, ClientChannel::Task, None, json!({}));
    assert_eq!(sent(&mut w).len(), 2);
    w.event(Event::EngineDisconnected { engine: "e".into() });
    w.event(Event::EngineDisconnected { engine: "g".into() });
    // The engine is considered lost; its requests wait for replies that may still arrive.
    w.pass(Duration::from_millis(5100));
    w.restart();
    let state = |w: &Harness, id: &String| w.ledger.tasks[&w.ledger.requests[id]].0;
    assert_eq!(state(&w, &with_retries), crate::model::task::TaskState::Ready);
    assert_eq!(state(&w, &without), crate::model::task::TaskState::Lost);
    stock(&mut w, "f");
    assert_eq!(sent(&mut w).len(), 1);
}

#[test]
fn a_coalescing_broadcast_replies_once_in_target_order() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    stock(&mut w, "f");
    let metadata = json!({"targets": [["e", 0], ["f", 1]], "is_coalescing": true, "is_broadcast": true});
    let original = request(&mut w, ClientChannel::Broadcast, None, metadata);
    let parts = sent(&mut w);
    assert_eq!(parts.len(), 2);
    let before = w.to_clients.len();
    for (engine, message) in parts.iter().rev() {
        let mut reply = w.session.message("", "apply_reply", Some(&message.header_json), &ok());
        reply.metadata_json = to_json(&json!({"original_msg_id": original, "is_coalescing": true, "is_broadcast": true}));
        reply.buffers = vec![Bytes::from(engine.clone())];
        w.event(Event::EngineMessage {
            engine: engine.as_str().into(),
            native: false,
            channel: Channel::Broadcast,
            client: Bytes::from_static(b"client"),
            message: reply,
        });
    }
    assert_eq!(w.to_clients.len(), before + 1);
    let joined = &w.to_clients.last().unwrap().2;
    assert_eq!(joined.buffers, ["e", "f"]);
    let metadata: Value = joined.metadata().unwrap();
    assert_eq!(metadata["broadcast_targets"], json!([["e", 0], ["f", 1]]));
    assert_eq!(metadata["original_msg_id"], original);
}

#[test]
fn queue_status_counts_queued_and_running_requests() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    for _ in 0..3 {
        request(&mut w, ClientChannel::Task, None, json!({}));
    }
    w.ask("queue_request", &json!({"targets": null}), vec![]);
    assert_eq!(w.reply()["0"], json!({"queue": 0, "completed": 0, "tasks": 1}));
    assert_eq!(w.reply()["unassigned"], 2);
    w.ask("queue_request", &json!({"targets": [5]}), vec![]);
    assert_eq!(w.reply()["ename"], "IndexError");
    w.ask("nonsense_request", &json!({}), vec![]);
    assert_eq!(w.to_clients.last().unwrap().2.msg_type(), "hub_error");
}

#[test]
fn a_client_that_reconnects_under_another_id_gets_its_reply() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    let came = |id: &'static str| Event::ClientConnected {
        channel: ClientChannel::Task,
        identity: Bytes::from_static(id.as_bytes()),
        key: Some("its key".into()),
    };
    w.event(came("client"));
    let id = request(&mut w, ClientChannel::Task, None, json!({}));
    let message = sent(&mut w).remove(0).1;
    w.event(Event::ClientDisconnected {
        channel: ClientChannel::Task,
        identity: "client".into(),
    });
    let before = w.to_clients.len();
    reply(&mut w, "e", Channel::Task, &message, ok(), json!({"status": "ok"}));
    assert_eq!(w.to_clients.len(), before, "no client to send it to");
    w.event(Event::ClientConnected {
        channel: ClientChannel::Task,
        identity: "stranger".into(),
        key: Some("another".into()),
    });
    assert_eq!(w.to_clients.len(), before, "and no other client gets it");
    w.event(came("the same"));
    let (_, route, message) = w.to_clients.last().unwrap();
    assert_eq!((route[0].as_ref(), message.parent().unwrap().msg_id), (&b"the same"[..], id));
}

#[test]
fn a_reconnected_engine_gets_the_requests_that_never_reached_it() {
    let mut w = Harness::new();
    w.register("n");
    let id = request(&mut w, ClientChannel::Mux, Some("n"), json!({}));
    assert_eq!(sent(&mut w).len(), 1);
    // It registers again and does not name the request: its message was lost with a connection.
    w.register("n");
    let again = sent(&mut w);
    assert_eq!(again.iter().map(|(_, m)| &m.header.msg_id).collect::<Vec<_>>(), [&id]);
    let message = &again[0].1;
    for _ in 0..2 {
        let mut reply = w.session.message("", "apply_reply", Some(&message.header_json), &ok());
        reply.metadata_json = to_json(&json!({"status": "ok"}));
        let event = Event::EngineMessage {
            engine: "n".into(),
            native: true,
            channel: Channel::Mux,
            client: "client".into(),
            message: reply,
        };
        w.event(event);
    }
    let replies = w.to_clients.iter().filter(|(channel, ..)| *channel == ClientChannel::Mux).count();
    assert_eq!(replies, 1, "a reply that is sent twice reaches the client once");
}

#[test]
fn a_client_is_identified_even_if_its_first_message_precedes_its_connection_event() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    let id = request(&mut w, ClientChannel::Task, None, json!({}));
    let message = sent(&mut w).remove(0).1;
    let came = |id: &'static str| Event::ClientConnected {
        channel: ClientChannel::Task,
        identity: Bytes::from_static(id.as_bytes()),
        key: Some("its key".into()),
    };
    w.event(came("client"));
    assert_eq!(w.ledger.client_keys, ["its key"], "for a controller that starts after this one");
    w.event(Event::ClientDisconnected {
        channel: ClientChannel::Task,
        identity: "client".into(),
    });
    reply(&mut w, "e", Channel::Task, &message, ok(), json!({"status": "ok"}));
    w.event(came("again"));
    assert_eq!(w.to_clients.last().unwrap().2.parent().unwrap().msg_id, id);
    assert_eq!(w.ledger.client_keys.len(), 1, "and recorded once");
}

/// An ipyparallel client that is identified by its key; its requests so far used `identity`.
fn keyed(w: &mut Harness, channel: ClientChannel, identity: &'static str) {
    w.event(Event::ClientConnected {
        channel,
        identity: Bytes::from_static(identity.as_bytes()),
        key: Some("key".into()),
    });
}

/// Messages sent to clients under this identity since the last call.
fn got(w: &mut Harness, identity: &'static str) -> Vec<Message> {
    let all = std::mem::take(&mut w.to_clients);
    all.into_iter()
        .filter(|(_, route, _)| route[0] == identity)
        .map(|(_, _, message)| message)
        .collect()
}

#[test]
fn a_reply_that_was_written_just_before_a_kill_is_not_sent_again() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    keyed(&mut w, ClientChannel::Mux, "client");
    let id = request(&mut w, ClientChannel::Mux, Some("e"), json!({}));
    let message = sent(&mut w).remove(0).1;
    w.dies = Some(Dies::BeforeSend);
    reply(&mut w, "e", Channel::Mux, &message, ok(), json!({}));
    // Not yet in the records, but noted just before it was written.
    let task = w.ledger.requests[&id];
    w.ledger.delivered.insert(task);
    w.restart();
    assert_eq!(w.ledger.undelivered.len(), 0);
    keyed(&mut w, ClientChannel::Mux, "again");
    assert_eq!(got(&mut w, "again").len(), 0);
}

#[test]
fn an_unsent_recorded_reply_is_sent_once_after_a_restart() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    keyed(&mut w, ClientChannel::Mux, "client");
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(request(&mut w, ClientChannel::Mux, Some("e"), json!({})));
    }
    let messages: Vec<Message> = sent(&mut w).into_iter().map(|(_, message)| message).collect();
    reply(&mut w, "e", Channel::Mux, &messages[0], ok(), json!({}));
    assert_eq!(
        (got(&mut w, "client").len(), w.ledger.undelivered.len()),
        (1, 0),
        "delivered and recorded"
    );
    w.dies = Some(Dies::BeforeSend);
    reply(&mut w, "e", Channel::Mux, &messages[1], ok(), json!({}));
    assert_eq!((got(&mut w, "client").len(), w.ledger.undelivered.len()), (0, 1));
    keyed(&mut w, ClientChannel::Task, "elsewhere");
    assert_eq!(got(&mut w, "elsewhere").len(), 0, "on another channel");
    keyed(&mut w, ClientChannel::Mux, "again");
    let replies = got(&mut w, "again");
    assert_eq!(replies.len(), 1);
    assert_eq!(replies[0].parent().unwrap().msg_id, ids[1]);
    let of_engine = w.session.id.clone();
    assert!(
        !replies[0].header.msg_id.starts_with(&of_engine),
        "another message than the one that may have been seen"
    );
    assert_eq!(w.ledger.undelivered.len(), 0);
    w.restart();
    keyed(&mut w, ClientChannel::Mux, "once more");
    assert_eq!(got(&mut w, "once more").len(), 0);
}

#[test]
fn a_reply_to_a_disconnected_client_is_kept_until_it_reconnects() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    keyed(&mut w, ClientChannel::Mux, "client");
    request(&mut w, ClientChannel::Mux, Some("e"), json!({}));
    let message = sent(&mut w).remove(0).1;
    let unsent = super::super::effect::UndeliveredReply {
        key: "key".into(),
        tasks: vec![],
        engine: None,
        message,
    };
    let event = |reply| Event::ReplyUndelivered {
        channel: ClientChannel::Mux,
        client: "client".into(),
        reply,
    };
    w.event(event(unsent.clone()));
    assert_eq!(got(&mut w, "client").len(), 0);
    keyed(&mut w, ClientChannel::Mux, "again");
    assert_eq!(got(&mut w, "again").len(), 1);
    // A late event of the old connection.
    w.event(event(unsent));
    assert_eq!(got(&mut w, "again").len(), 1);
}

#[test]
fn a_coalesced_broadcast_is_reassembled_after_a_restart() {
    for dies in [Dies::BeforeCommit, Dies::BeforeSend] {
        let mut w = Harness::new();
        for name in ["e", "f", "g"] {
            stock(&mut w, name);
        }
        keyed(&mut w, ClientChannel::Broadcast, "client");
        let targets = json!([["e", 0], ["f", 1], ["g", 2]]);
        let metadata = json!({"is_broadcast": true, "is_coalescing": true, "targets": targets});
        let id = request(&mut w, ClientChannel::Broadcast, None, metadata);
        let parts = sent(&mut w);
        let answer = |w: &mut Harness, at: usize| {
            let (engine, part) = &parts[at];
            let mut message = w.session.message("", "apply_reply", Some(&part.header_json), &ok());
            message.metadata_json = to_json(&json!({"is_coalescing": true}));
            message.buffers = vec![Bytes::copy_from_slice(engine.as_bytes())];
            let engine = EngineUuid::from(engine.as_str());
            w.event(Event::EngineMessage {
                engine,
                native: false,
                channel: Channel::Broadcast,
                client: Bytes::from_static(b"client"),
                message,
            });
        };
        answer(&mut w, 2);
        // It dies with the second reply, and with the last.
        w.dies = Some(dies);
        answer(&mut w, 0);
        if dies == Dies::BeforeCommit {
            answer(&mut w, 0);
        }
        w.dies = Some(dies);
        answer(&mut w, 1);
        keyed(&mut w, ClientChannel::Broadcast, "again");
        if dies == Dies::BeforeCommit {
            assert_eq!(got(&mut w, "again").len(), 0, "a part is missing");
            answer(&mut w, 1);
        }
        let replies = got(&mut w, "again");
        assert_eq!(replies.len(), 1, "{dies:?}");
        assert_eq!(replies[0].buffers, ["e", "f", "g"]);
        let metadata: Value = replies[0].metadata().unwrap();
        assert_eq!(
            (&metadata["broadcast_targets"], &metadata["original_msg_id"]),
            (&targets, &json!(id))
        );
        assert_eq!(w.ledger.undelivered.len(), 0);
    }
}

fn failed() -> Value {
    json!({"status": "error", "ename": "X", "evalue": ""})
}

#[test]
fn a_request_for_a_busy_engine_runs_after_its_map() {
    let mut w = Harness::new();
    w.register("n");
    w.submit(1, crate::model::definition::MapOptions::default());
    let bound = request(&mut w, ClientChannel::Task, None, json!({"targets": ["n"]}));
    assert!(sent(&mut w).is_empty());
    let outcome = w.ok();
    w.finish_one("n", outcome);
    assert_eq!(sent(&mut w)[0].1.header.msg_id, bound);
}

#[test]
fn a_request_for_a_disconnected_engine_runs_after_reconnection() {
    let mut w = Harness::new();
    w.register("n");
    w.event(Event::EngineDisconnected { engine: "n".into() });
    let bound = request(&mut w, ClientChannel::Task, None, json!({"targets": ["n"]}));
    assert!(sent(&mut w).is_empty());
    w.register("n");
    assert_eq!(sent(&mut w)[0].1.header.msg_id, bound);
}

#[test]
fn dependents_of_a_direct_request_fail_when_its_engine_leaves() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    stock(&mut w, "f");
    let direct = request(&mut w, ClientChannel::Mux, Some("e"), json!({}));
    let after = request(&mut w, ClientChannel::Task, None, json!({"after": [direct]}));
    w.event(Event::EngineDisconnected { engine: "e".into() });
    w.pass(Duration::from_secs(8));
    assert_eq!(w.reply()["ename"], "ImpossibleDependency");
    assert_eq!(w.to_clients.last().unwrap().2.parent().unwrap().msg_id, after);
}

#[test]
fn a_dependent_request_is_retried_with_its_dependency_and_ends_with_it() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    let first = request(&mut w, ClientChannel::Task, None, json!({}));
    let message = sent(&mut w).remove(0).1;
    reply(&mut w, "e", Channel::Task, &message, ok(), json!({"status": "ok"}));
    stock(&mut w, "f");
    let follower = json!({"follow": [first], "retries": 1});
    request(&mut w, ClientChannel::Task, None, follower.clone());
    let (engine, message) = sent(&mut w).remove(0);
    reply(&mut w, &engine, Channel::Task, &message, failed(), json!({"status": "error"}));
    assert_eq!(sent(&mut w).iter().map(|(e, _)| e.as_str()).collect::<Vec<_>>(), ["e"]);
    request(&mut w, ClientChannel::Task, None, follower);
    w.event(Event::EngineDisconnected { engine: "e".into() });
    w.pass(Duration::from_secs(8));
    let replies = w.to_clients.iter().rev().take(2).map(|(_, _, m)| m.content::<Value>().unwrap());
    let names: Vec<String> = replies.map(|content| content["ename"].as_str().unwrap().to_string()).collect();
    assert_eq!(
        names,
        ["EngineError", "ImpossibleDependency"],
        "the one that ran there, and the one that was to"
    );
    w.assert_all_done();
}

#[test]
fn requests_returned_to_a_dead_controller_are_sent_as_a_new_run() {
    let mut w = Harness::new();
    w.register("n");
    let id = request(&mut w, ClientChannel::Task, None, json!({}));
    let before = sent(&mut w).remove(0).1;
    w.restart();
    w.register("n");
    let again = sent(&mut w).remove(0).1;
    assert_eq!(again.header.msg_id, id);
    assert_ne!(
        again.metadata_json, before.metadata_json,
        "the very same would be refused as a replay"
    );
}

#[test]
fn requests_waiting_for_an_engine_with_python_are_reported() {
    let mut w = Harness::new();
    let notes = |w: &mut Harness| {
        w.ask(crate::wire::content::client::STATUS, &json!({}), Vec::new());
        w.reply()["notes"].as_array().map_or(0, Vec::len)
    };
    request(&mut w, ClientChannel::Task, None, json!({}));
    assert_eq!(notes(&mut w), 0, "engines may still come");
    w.register_as("a", Some("no interpreter"));
    assert_eq!(sent(&mut w).len(), 0);
    assert_eq!(notes(&mut w), 1);
    w.register("b");
    assert_eq!(sent(&mut w).len(), 1);
    assert_eq!(notes(&mut w), 0);
}
