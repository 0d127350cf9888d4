//! Engines that send correctly signed but malformed messages. Nothing panics; every task ends once, and only by a report of its engine.
use super::super::effect::Effect;
use super::super::event::Event;
use super::harness::*;
use super::lifecycle::Rng;
use crate::model::definition::MapOptions;
use crate::model::task::TaskState;
use crate::model::{EngineUuid, TaskId};
use crate::wire::content::engine::{self, Channel};
use crate::wire::message::to_json;
use bytes::Bytes;
use serde_json::{Value, json};
use std::time::Duration;

fn send_as(w: &mut Harness, engine: &str, channel: Channel, msg_type: &str, content: Bytes) {
    let mut message = w.session.message("", msg_type, None, &());
    message.content_json = content;
    w.event(Event::EngineMessage {
        engine: EngineUuid::from(engine),
        native: true,
        channel,
        client: Bytes::from_static(b"client"),
        message,
    });
}

fn native(w: &mut Harness, engine: &str, msg_type: &str, content: &Value) {
    send_as(w, engine, Channel::Native, msg_type, to_json(content));
}

fn facts(name: &str) -> Value {
    json!({"protocol": crate::model::PROTOCOL_VERSION, "uuid": name, "host": "node", "pid": 2, "version": "0", "capabilities": ["call", "joined"]})
}

/// The last reply to this engine's registration.
fn registered(w: &mut Harness, name: &str) -> Option<Value> {
    // The harness delivers messages only to its fake engines, and this engine is not one of them.
    w.received
        .iter()
        .rev()
        .find(|(engine, m)| engine == name && m.msg_type() == engine::REGISTERED)
        .map(|(_, m)| m.content().unwrap())
}

#[test]
fn a_result_without_a_final_state_is_rejected_and_counted_against_the_engine() {
    for wrong in [
        json!({"status": "running", "started": 1, "ended": 2}),
        json!({"status": "ready", "started": 1, "ended": 2}),
        json!({"status": "done", "started": 1, "ended": 2}),
        json!({"status": "ok"}),
        json!(7),
    ] {
        let mut w = Harness::new();
        native(&mut w, "m", engine::REGISTER, &facts("m"));
        assert_eq!(registered(&mut w, "m").unwrap()["status"], "ok");
        let options = MapOptions {
            max_crashes: 0,
            ..MapOptions::default()
        };
        let map = w.submit(1, options);
        assert_eq!(w.state(map, 0), TaskState::Assigned);
        let progress = json!({"map": map, "index": 0, "run": 1, "started": -5.0});
        native(&mut w, "m", engine::PROGRESS, &progress);
        native(
            &mut w,
            "m",
            engine::RESULTS,
            &json!({"sequence": 1, "results": [{"map": map, "index": 0, "run": 1, "outcome": wrong}]}),
        );
        assert_eq!(
            w.state(map, 0),
            TaskState::Ready,
            "it may run elsewhere though it may not crash once"
        );
        let reply = registered(&mut w, "m").unwrap();
        assert_eq!(reply["status"], "error", "{reply}");
        // Its next registration under this name is rejected.
        native(&mut w, "m", engine::REGISTER, &facts("m"));
        assert_eq!(w.state(map, 0), TaskState::Ready);
        w.register("a");
        let outcome = w.ok();
        assert_eq!(w.finish_one("a", outcome), Some(TaskId::new(map, 0)));
        w.assert_all_done();
    }
}

#[test]
fn a_malformed_registration_is_answered() {
    let mut w = Harness::new();
    for (field, value) in [
        ("pid", json!(-1)),
        ("pid", json!(1e20)),
        ("host", json!(["x"])),
        ("protocol", json!(7)),
        ("uuid", json!("other")),
    ] {
        let mut wrong = facts("m");
        wrong[field] = value;
        native(&mut w, "m", engine::REGISTER, &wrong);
        let reply = registered(&mut w, "m").unwrap();
        assert_eq!((reply["status"].as_str(), w.received.len()), (Some("error"), 1), "{reply}");
        w.received.clear();
    }
    let name = "m\u{1b}[2J";
    native(&mut w, name, engine::REGISTER, &facts(name));
    assert_eq!(registered(&mut w, name).unwrap()["status"], "error");
    assert_eq!(w.core.engines.count(), 0);
}

/// A random, mostly malformed message of an engine.
fn malformed_message(w: &Harness, rng: &mut Rng, name: &str) -> (&'static str, Bytes) {
    let held = |rng: &mut Rng| json!({"map": rng.roll(5), "index": rng.roll(25), "run": rng.roll(4)});
    let number = |rng: &mut Rng| match rng.roll(6) {
        0 => json!(-1e300),
        1 => json!(1e300),
        2 => json!(-1),
        3 => json!(u64::MAX),
        _ => json!(1e9 + w.now.as_secs_f64()),
    };
    let text = |rng: &mut Rng| match rng.roll(3) {
        0 => json!("\u{1b}[2J\n\u{0}".repeat(rng.roll(2000) as usize)),
        1 => json!(null),
        _ => json!("x"),
    };
    let kinds = [
        engine::RESULTS,
        engine::RESULTS,
        engine::PROGRESS,
        engine::RETURNED,
        engine::HEARTBEAT,
        engine::LEAVING,
        engine::REGISTER,
        "unheard of",
    ];
    let kind = match rng.roll(40) {
        0 => engine::UNREGISTER,
        n => kinds[n as usize % kinds.len()],
    };
    let content = match kind {
        engine::RESULTS => {
            let states = [
                "ok", "error", "lost", "timeout", "aborted", "ok", "error", "ok", "running", "waiting", "no state",
            ];
            let results: Vec<Value> = (0..rng.roll(4))
                .map(|_| {
                    let mut result = held(rng);
                    let choices = if rng.roll(3) == 0 { 11 } else { 8 };
                    let state = states[rng.roll(choices) as usize];
                    result["outcome"] = json!({"status": state, "started": number(rng), "ended": number(rng), "crashed": rng.roll(2) == 0});
                    if rng.roll(2) == 0 {
                        result["outcome"]["value"] = json!([1, {"a": null}]);
                    }
                    result
                })
                .collect();
            json!({"sequence": number(rng), "results": results})
        }
        engine::PROGRESS => {
            let mut progress = held(rng);
            progress["started"] = number(rng);
            progress["stdout"] = text(rng);
            progress
        }
        engine::RETURNED => {
            let tasks: Vec<Value> = (0..rng.roll(4)).map(|_| held(rng)).collect();
            json!({"sequence": rng.roll(3), "tasks": tasks, "requests": ["no such", ""], "runs": [7]})
        }
        engine::REGISTER => {
            let mut facts = facts(name);
            facts["holds"] = (0..rng.roll(4)).map(|_| held(rng)).collect();
            facts["id"] = number(rng);
            facts["ends"] = number(rng);
            facts["host"] = text(rng);
            facts
        }
        _ => json!({"reason": text(rng)}),
    };
    let mut bytes = content.to_string().into_bytes();
    if rng.roll(20) == 0 && !bytes.is_empty() {
        let at = rng.roll(bytes.len() as u64) as usize;
        bytes[at] = rng.roll(256) as u8;
    }
    (kind, bytes.into())
}

fn live(seed: u64) {
    let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut w = Harness::new();
    w.check_every = 4;
    w.register("a");
    let mut names = 0;
    for _ in 0..150 {
        match rng.roll(12) {
            0 if w.ledger.completed.len() < 4 => {
                let options = MapOptions {
                    retries: rng.roll(2) as u32,
                    ..MapOptions::default()
                };
                w.submit(rng.roll(25) as u32, options);
            }
            1 => {
                names += 1;
                let name = format!("m{names}");
                native(&mut w, &name, engine::REGISTER, &facts(&name));
            }
            2 | 3 => {
                let outcome = w.ok();
                w.finish_one("a", outcome);
            }
            4 => w.pass(Duration::from_millis(rng.roll(3000))),
            5 => w.engine_sends("a", engine::HEARTBEAT, &json!({})),
            _ => {
                let name = format!("m{}", rng.roll(names + 1));
                let (kind, content) = malformed_message(&w, &mut rng, &name);
                let channel = if rng.roll(8) == 0 { Channel::Mux } else { Channel::Native };
                send_as(&mut w, &name, channel, kind, content);
            }
        }
        w.to_clients.clear();
        w.other.clear();
        w.received.clear();
    }
    // They send nothing more; the well-behaved engine runs the remaining tasks.
    for _ in 0..200 {
        w.register("a");
        let outcome = w.ok();
        while w.finish_one("a", outcome.clone()).is_some() {}
        w.pass(Duration::from_secs(1));
    }
    w.assert_all_done();
    assert!(w.engines["a"].queue.is_empty());
    let refused = w.other.iter().any(|effect| matches!(effect, Effect::Stop { .. }));
    assert!(!refused, "no message of an engine stops the controller");
}

#[test]
fn arbitrary_messages_of_an_engine_lose_no_task() {
    for seed in 0..150 {
        if let Err(panic) = std::panic::catch_unwind(|| live(seed)) {
            eprintln!("this was seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
