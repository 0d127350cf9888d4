//! Features of the hub that ipyparallel's clients and launchers use besides plain requests.
use super::super::effect::{ClientChannel, Effect};
use super::super::event::Event;
use super::harness::*;
use super::requests::{ok, reply, request, sent, stock};
use crate::model::change::Change;
use crate::wire::content::engine::Channel;
use bytes::Bytes;
use serde_json::{Value, json};
use std::time::Duration;

fn failed() -> Value {
    json!({"status": "error", "ename": "ValueError", "evalue": ""})
}

/// Fails the only assigned request; returns its engine.
fn fail_it(w: &mut Harness) -> String {
    let mut with = sent(w);
    assert_eq!(with.len(), 1);
    let (engine, message) = with.remove(0);
    reply(w, &engine, Channel::Task, &message, failed(), json!({"status": "error"}));
    engine
}

#[test]
fn a_failed_task_tries_each_engine_and_then_one_again_as_a_new_message() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    stock(&mut w, "f");
    request(&mut w, ClientChannel::Task, None, json!({"retries": 2}));
    let first = fail_it(&mut w);
    let second = fail_it(&mut w);
    assert_ne!(first, second);
    let (_, message) = sent(&mut w).remove(0);
    // An engine would reject an identical message as a replay.
    assert_eq!(message.metadata::<Value>().unwrap()["pcluster_run"], 3);
    reply(&mut w, &first, Channel::Task, &message, failed(), json!({"status": "error"}));
    reply(&mut w, &second, Channel::Task, &message, failed(), json!({"status": "error"}));
    assert_eq!(w.reply()["ename"], "ValueError", "no retries are left");
}

#[test]
fn a_task_with_a_timeout_waits_that_long_for_another_engine() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    request(&mut w, ClientChannel::Task, None, json!({"retries": 5, "timeout": 2.0}));
    w.pass(Duration::from_millis(1500));
    fail_it(&mut w);
    assert!(sent(&mut w).is_empty(), "it has failed everywhere");
    // The time counts from its return.
    w.pass(Duration::from_millis(1000));
    stock(&mut w, "f");
    assert_eq!(fail_it(&mut w), "f");
    w.pass(Duration::from_millis(2100));
    assert_eq!(w.reply()["ename"], "TaskTimeout");
}

fn notified(w: &mut Harness, kind: &str) -> Vec<Value> {
    let effects = std::mem::take(&mut w.other);
    let notified = effects.into_iter().filter_map(|effect| match effect {
        Effect::Notify { message } if message.msg_type() == kind => message.content::<Value>().ok(),
        _ => None,
    });
    notified.map(|content| content["uuid"].clone()).collect()
}

fn announced(w: &mut Harness) -> Vec<Value> {
    notified(w, "registration_notification")
}

fn departed(w: &mut Harness) -> Vec<Value> {
    notified(w, "unregistration_notification")
}

fn connect(w: &mut Harness) {
    let mut message = w.session.message("", "connection_request", None, &json!({}));
    message.identities = vec![Bytes::from_static(b"client")];
    w.event(Event::ClientMessage {
        channel: ClientChannel::Registration,
        message,
    });
}

fn unregister(w: &mut Harness, id: u32) {
    let message = w.session.message("", "unregistration_request", None, &json!({"id": id}));
    let identity = Bytes::from_static(b"e");
    w.event(Event::RegistrantMessage { identity, message });
}

#[test]
fn clients_are_notified_of_a_departure_after_the_last_reply() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    stock(&mut w, "f");
    for _ in 0..2 {
        request(&mut w, ClientChannel::Mux, Some("e"), json!({}));
    }
    let messages = sent(&mut w);
    unregister(&mut w, 0);
    // Its departure arrived over another connection than its replies.
    w.pass(Duration::from_millis(1900));
    assert!(departed(&mut w).is_empty());
    reply(&mut w, "e", Channel::Mux, &messages[0].1, ok(), json!({}));
    assert_eq!(w.to_clients.len(), 1);
    // The client ends a request that it sends meanwhile when it is notified of the departure.
    request(&mut w, ClientChannel::Mux, Some("e"), json!({}));
    w.pass(Duration::from_millis(250));
    assert!(departed(&mut w).is_empty(), "the reply gets a lead");
    w.pass(Duration::from_millis(100));
    assert_eq!((departed(&mut w), w.to_clients.len()), (vec![json!("e")], 1));
    // An engine without open requests is removed immediately.
    unregister(&mut w, 1);
    assert_eq!(departed(&mut w), ["f"]);
}

#[test]
fn a_direct_reply_after_the_departure_notification_is_only_recorded() {
    let mut w = Harness::new();
    w.register("n");
    let id = request(&mut w, ClientChannel::Mux, Some("n"), json!({}));
    let message = sent(&mut w).remove(0).1;
    w.engine_sends("n", crate::wire::content::engine::UNREGISTER, &json!({"reason": "it ends"}));
    assert_eq!(departed(&mut w), ["n"], "on its one connection, nothing comes behind that");
    reply(&mut w, "n", Channel::Mux, &message, ok(), json!({}));
    assert_eq!(w.to_clients.iter().filter(|(_, _, m)| m.msg_type() == "apply_reply").count(), 0);
    let task = w.ledger.requests[&id];
    assert_eq!(w.ledger.tasks[&task].0, crate::model::task::TaskState::Ok);
}

#[test]
fn departures_while_a_client_connects_are_announced_again() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    connect(&mut w);
    w.pass(Duration::from_millis(100));
    unregister(&mut w, 0);
    assert_eq!(departed(&mut w), ["e"]);
    w.pass(Duration::from_secs(2));
    assert_eq!(departed(&mut w), ["e", "e"]);
    // It was notified of later departures: a repetition would disturb a client that waits for engines.
    stock(&mut w, "f");
    unregister(&mut w, 1);
    assert_eq!(departed(&mut w), ["f"]);
    w.pass(Duration::from_secs(4));
    assert!(!departed(&mut w).contains(&json!("f")));
    w.pass(Duration::from_secs(20));
    departed(&mut w);
    connect(&mut w);
    w.pass(Duration::from_secs(20));
    assert!(departed(&mut w).is_empty(), "that was before");
}

#[test]
fn only_a_clients_own_request_is_announced_as_a_shutdown() {
    let shutdowns = |w: &mut Harness| notified(w, "shutdown_notification").len();
    let mut w = Harness::new();
    w.event(Event::StopRequested { engines: true });
    assert_eq!(shutdowns(&mut w), 0);
    w.ask(crate::wire::content::client::STOP, &json!({"engines": true}), Vec::new());
    assert_eq!(shutdowns(&mut w), 0);
    w.ask("shutdown_request", &json!({}), Vec::new());
    assert_eq!(shutdowns(&mut w), 1);
}

#[test]
fn registrations_while_a_client_connects_are_announced_again() {
    let mut w = Harness::new();
    stock(&mut w, "old");
    w.pass(Duration::from_secs(1));
    announced(&mut w);
    connect(&mut w);
    w.pass(Duration::from_millis(100));
    stock(&mut w, "new");
    assert_eq!(announced(&mut w), ["new"]);
    w.pass(Duration::from_secs(2));
    assert_eq!(announced(&mut w), ["new", "new"]);
    w.pass(Duration::from_secs(3));
    assert_eq!(announced(&mut w), ["new"]);
}

#[test]
fn messages_sent_by_an_ipengine_before_shutdown_are_forwarded() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    let direct = request(&mut w, ClientChannel::Mux, Some("e"), json!({}));
    let (_, message) = sent(&mut w).remove(0);
    let shut_down = w.session.message("", "shutdown_reply", None, &json!({"status": "ok"}));
    w.event(Event::EngineMessage {
        engine: "e".into(),
        native: false,
        channel: Channel::Iopub,
        client: Bytes::from_static(b"engine.0.shutdown"),
        message: shut_down.clone(),
    });
    // It has several connections; these messages were sent first.
    reply(&mut w, "e", Channel::Mux, &message, ok(), json!({"status": "ok"}));
    assert_eq!(w.to_clients.last().unwrap().2.parent().unwrap().msg_id, direct);
    assert_eq!(w.reply()["status"], "ok");
    w.event(Event::EngineMessage {
        engine: "e".into(),
        native: false,
        channel: Channel::Control,
        client: Bytes::from_static(b"client"),
        message: shut_down,
    });
    assert_eq!(w.to_clients.last().unwrap().2.msg_type(), "shutdown_reply");
}

#[test]
fn dask_is_started_and_its_address_reported() {
    let mut w = Harness::new();
    let mut message = w
        .session
        .message("", "become_dask_request", None, &json!({"scheduler_args": {"port": 0}}));
    message.identities = vec![Bytes::from_static(b"client")];
    w.event(Event::ClientMessage {
        channel: ClientChannel::Registration,
        message,
    });
    let Some(Effect::StartDask { client, parent, arguments }) = w.other.pop() else {
        panic!("no scheduler is started");
    };
    assert_eq!(arguments, json!({"port": 0}));
    w.event(Event::DaskStarted {
        client,
        parent,
        address: Ok(json!({"status": "ok", "port": 7})),
    });
    assert_eq!(w.reply()["port"], 7);
    assert_eq!(w.to_clients.last().unwrap().2.msg_type(), "become_dask_reply");
}

#[test]
fn a_resubmitted_request_is_recorded_with_its_new_id() {
    let mut w = Harness::new();
    stock(&mut w, "e");
    let old = request(&mut w, ClientChannel::Task, None, json!({}));
    let (_, message) = sent(&mut w).remove(0);
    reply(&mut w, "e", Channel::Task, &message, ok(), json!({"status": "ok"}));
    let found = Event::RequestsFound {
        client: Bytes::from_static(b"client"),
        parent: message.header_json.clone(),
        request: "resubmit_request".into(),
        found: vec![super::super::event::FoundRequest {
            msg_id: old.clone(),
            header: message.header_json.clone(),
            metadata: message.metadata_json.clone(),
            content: message.content_json.clone(),
            buffers: vec![],
        }],
        missing: vec![],
    };
    let now = super::super::EventTime {
        since_start: w.now,
        unix: crate::model::UnixTime(5000.0),
    };
    let mut effects = Vec::new();
    w.core.handle(now, found, &mut effects);
    let new = effects.iter().find_map(|effect| match effect {
        Effect::Record(Change::RequestResubmitted { msg_id, new_id }) if *msg_id == old => Some(new_id.clone()),
        _ => None,
    });
    let reported = effects.iter().find_map(|effect| match effect {
        Effect::ToClient { message, .. } => Some(message.content::<Value>().unwrap()["resubmitted"].clone()),
        _ => None,
    });
    assert_eq!(reported, Some(json!({ old: new.unwrap() })));
}
