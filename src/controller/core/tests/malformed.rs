//! Engines that send what no engine of ours sends: well signed, and wrong. Nothing panics, every task ends once, and only by the word of the
//! engine that has it.
use super::super::effect::Effect;
use super::super::event::Event;
use super::life::Dice;
use super::world::*;
use crate::model::definition::MapOptions;
use crate::model::task::TaskState;
use crate::model::{EngineUuid, TaskId};
use crate::wire::content::engine::{self as tell, Channel};
use crate::wire::message::to_json;
use bytes::Bytes;
use serde_json::{Value, json};
use std::time::Duration;

fn says(w: &mut World, engine: &str, channel: Channel, msg_type: &str, content: Bytes) {
    let mut message = w.session.message("", msg_type, None, &());
    message.content_json = content;
    w.event(Event::EngineSaid {
        engine: EngineUuid::from(engine),
        native: true,
        channel,
        client: Bytes::from_static(b"client"),
        message,
    });
}

fn native(w: &mut World, engine: &str, msg_type: &str, content: &Value) {
    says(w, engine, Channel::Native, msg_type, to_json(content));
}

fn facts(name: &str) -> Value {
    json!({"protocol": crate::model::PROTOCOL_VERSION, "uuid": name, "host": "node", "pid": 2, "version": "0", "capabilities": ["call", "joined"]})
}

/// What the last message to this engine said in reply to its registration.
fn registered(w: &mut World, name: &str) -> Option<Value> {
    // The world passes on what is for engines that it plays; this one it does not.
    w.heard
        .iter()
        .rev()
        .find(|(engine, m)| engine == name && m.msg_type() == tell::REGISTERED)
        .map(|(_, m)| m.content().unwrap())
}

#[test]
fn a_result_that_is_no_end_is_refused_and_charged_to_the_engine() {
    for wrong in [
        json!({"status": "running", "started": 1, "ended": 2}),
        json!({"status": "ready", "started": 1, "ended": 2}),
        json!({"status": "done", "started": 1, "ended": 2}),
        json!({"status": "ok"}),
        json!(7),
    ] {
        let mut w = World::new();
        native(&mut w, "m", tell::REGISTER, &facts("m"));
        assert_eq!(registered(&mut w, "m").unwrap()["status"], "ok");
        let options = MapOptions {
            max_crashes: 0,
            ..MapOptions::default()
        };
        let map = w.submit(1, options);
        assert_eq!(w.state(map, 0), TaskState::Assigned);
        let progress = json!({"map": map, "index": 0, "run": 1, "started": -5.0});
        native(&mut w, "m", tell::PROGRESS, &progress);
        native(
            &mut w,
            "m",
            tell::RESULTS,
            &json!({"sequence": 1, "results": [{"map": map, "index": 0, "run": 1, "outcome": wrong}]}),
        );
        assert_eq!(
            w.state(map, 0),
            TaskState::Ready,
            "it may run elsewhere though it may not crash once"
        );
        let reply = registered(&mut w, "m").unwrap();
        assert_eq!(reply["status"], "error", "{reply}");
        // It is not taken back under this name.
        native(&mut w, "m", tell::REGISTER, &facts("m"));
        assert_eq!(w.state(map, 0), TaskState::Ready);
        w.register("a");
        let outcome = w.ok();
        assert_eq!(w.finish_one("a", outcome), Some(TaskId::new(map, 0)));
        w.assert_all_done();
    }
}

#[test]
fn a_registration_that_cannot_be_read_is_answered() {
    let mut w = World::new();
    for (field, value) in [
        ("pid", json!(-1)),
        ("pid", json!(1e20)),
        ("host", json!(["x"])),
        ("protocol", json!(7)),
        ("uuid", json!("other")),
    ] {
        let mut wrong = facts("m");
        wrong[field] = value;
        native(&mut w, "m", tell::REGISTER, &wrong);
        let reply = registered(&mut w, "m").unwrap();
        assert_eq!((reply["status"].as_str(), w.heard.len()), (Some("error"), 1), "{reply}");
        w.heard.clear();
    }
    let name = "m\u{1b}[2J";
    native(&mut w, name, tell::REGISTER, &facts(name));
    assert_eq!(registered(&mut w, name).unwrap()["status"], "error");
    assert_eq!(w.core.engines.count(), 0);
}

/// A message of an engine, more or less.
fn rubbish(w: &World, dice: &mut Dice, name: &str) -> (&'static str, Bytes) {
    let held = |dice: &mut Dice| json!({"map": dice.roll(5), "index": dice.roll(25), "run": dice.roll(4)});
    let number = |dice: &mut Dice| match dice.roll(6) {
        0 => json!(-1e300),
        1 => json!(1e300),
        2 => json!(-1),
        3 => json!(u64::MAX),
        _ => json!(1e9 + w.now.as_secs_f64()),
    };
    let text = |dice: &mut Dice| match dice.roll(3) {
        0 => json!("\u{1b}[2J\n\u{0}".repeat(dice.roll(2000) as usize)),
        1 => json!(null),
        _ => json!("x"),
    };
    let kinds = [
        tell::RESULTS,
        tell::RESULTS,
        tell::PROGRESS,
        tell::RETURNED,
        tell::HEARTBEAT,
        tell::LEAVING,
        tell::REGISTER,
        "unheard of",
    ];
    let kind = match dice.roll(40) {
        0 => tell::UNREGISTER,
        n => kinds[n as usize % kinds.len()],
    };
    let content = match kind {
        tell::RESULTS => {
            let states = [
                "ok", "error", "lost", "timeout", "aborted", "ok", "error", "ok", "running", "waiting", "no state",
            ];
            let results: Vec<Value> = (0..dice.roll(4))
                .map(|_| {
                    let mut result = held(dice);
                    let choices = if dice.roll(3) == 0 { 11 } else { 8 };
                    let state = states[dice.roll(choices) as usize];
                    result["outcome"] =
                        json!({"status": state, "started": number(dice), "ended": number(dice), "crashed": dice.roll(2) == 0});
                    if dice.roll(2) == 0 {
                        result["outcome"]["value"] = json!([1, {"a": null}]);
                    }
                    result
                })
                .collect();
            json!({"sequence": number(dice), "results": results})
        }
        tell::PROGRESS => {
            let mut progress = held(dice);
            progress["started"] = number(dice);
            progress["stdout"] = text(dice);
            progress
        }
        tell::RETURNED => {
            let tasks: Vec<Value> = (0..dice.roll(4)).map(|_| held(dice)).collect();
            json!({"sequence": dice.roll(3), "tasks": tasks, "requests": ["no such", ""], "runs": [7]})
        }
        tell::REGISTER => {
            let mut facts = facts(name);
            facts["holds"] = (0..dice.roll(4)).map(|_| held(dice)).collect();
            facts["id"] = number(dice);
            facts["ends"] = number(dice);
            facts["host"] = text(dice);
            facts
        }
        _ => json!({"reason": text(dice)}),
    };
    let mut bytes = content.to_string().into_bytes();
    if dice.roll(20) == 0 && !bytes.is_empty() {
        let at = dice.roll(bytes.len() as u64) as usize;
        bytes[at] = dice.roll(256) as u8;
    }
    (kind, bytes.into())
}

fn live(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut w = World::new();
    w.check_every = 4;
    w.register("a");
    let mut names = 0;
    for _ in 0..150 {
        match dice.roll(12) {
            0 if w.ledger.completed.len() < 4 => {
                let options = MapOptions {
                    retries: dice.roll(2) as u32,
                    ..MapOptions::default()
                };
                w.submit(dice.roll(25) as u32, options);
            }
            1 => {
                names += 1;
                let name = format!("m{names}");
                native(&mut w, &name, tell::REGISTER, &facts(&name));
            }
            2 | 3 => {
                let outcome = w.ok();
                w.finish_one("a", outcome);
            }
            4 => w.pass(Duration::from_millis(dice.roll(3000))),
            5 => w.engine_says("a", tell::HEARTBEAT, &json!({})),
            _ => {
                let name = format!("m{}", dice.roll(names + 1));
                let (kind, content) = rubbish(&w, &mut dice, &name);
                let channel = if dice.roll(8) == 0 { Channel::Mux } else { Channel::Native };
                says(&mut w, &name, channel, kind, content);
            }
        }
        w.to_clients.clear();
        w.other.clear();
        w.heard.clear();
    }
    // They fall silent; the sound engine does what is left.
    for _ in 0..200 {
        w.register("a");
        let outcome = w.ok();
        while w.finish_one("a", outcome.clone()).is_some() {}
        w.pass(Duration::from_secs(1));
    }
    w.assert_all_done();
    assert!(w.engines["a"].queue.is_empty());
    let refused = w.other.iter().any(|effect| matches!(effect, Effect::Stop { .. }));
    assert!(!refused, "nothing an engine says ends the controller");
}

#[test]
fn whatever_an_engine_sends_no_task_is_lost() {
    for seed in 0..150 {
        if let Err(panic) = std::panic::catch_unwind(|| live(seed)) {
            eprintln!("this was seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
