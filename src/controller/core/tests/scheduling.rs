//! Scheduling of pcluster's own tasks; each test covers one decision.
use super::harness::*;
use crate::model::definition::{MapOptions, Work};
use crate::model::targets::Targets;
use crate::model::task::TaskState;
use crate::model::{MapId, TaskId};
use crate::wire::content::client;
use crate::wire::content::engine;
use std::time::Duration;

#[test]
fn a_map_is_dispatched_in_order_to_its_engines() {
    let mut w = Harness::new();
    w.register("a");
    w.register("b");
    let map = w.submit(10, MapOptions::default());
    assert_eq!(
        w.engines["a"].queue.len() + w.engines["b"].queue.len(),
        4,
        "two each until durations are known"
    );
    for _ in 0..10 {
        for name in ["a", "b"] {
            let outcome = w.ok();
            w.finish_one(name, outcome);
        }
    }
    w.assert_all_done();
    assert_eq!(w.ledger.completed, [map]);
    assert_eq!(w.engines["a"].defined, [map], "the definition travels once");
}

#[test]
fn long_tasks_are_not_queued_behind_each_other() {
    let mut w = Harness::new();
    w.register("a");
    w.submit(10, MapOptions::default());
    w.pass(Duration::from_secs(5));
    let mut outcome = w.ok();
    outcome.started.0 -= 5.0;
    w.finish_one("a", outcome);
    assert_eq!(w.engines["a"].queue.len(), 1);
}

#[test]
fn short_tasks_are_sent_in_batches() {
    let mut w = Harness::new();
    w.register("a");
    w.submit(5000, MapOptions::default());
    for _ in 0..3 {
        let outcome = w.ok();
        w.finish_one("a", outcome);
    }
    let most = w.engines["a"].queue.len();
    assert!((500..=1000).contains(&most), "{most}");
}

#[test]
fn duplicate_inputs_are_accepted_and_gaps_rejected() {
    let mut w = Harness::new();
    let map = w.open_map(MapOptions::default());
    w.inputs(map, 0, 3, false);
    w.inputs(map, 0, 5, false);
    assert_eq!(w.reply()["total"], 5);
    w.inputs(map, 7, 1, false);
    assert_eq!(w.reply()["total"], 5, "what is here, for the client to go on from");
    w.inputs(map, 5, 0, true);
    w.register("a");
    for _ in 0..5 {
        let outcome = w.ok();
        w.finish_one("a", outcome);
    }
    w.assert_all_done();
    assert_eq!(w.ledger.tasks.len(), 5);
}

#[test]
fn errors_and_crashes_have_separate_retry_limits() {
    let mut w = Harness::new();
    w.register("a");
    let map = w.submit(
        1,
        MapOptions {
            retries: 1,
            max_crashes: 2,
            ..MapOptions::default()
        },
    );
    let crash = w.crashed();
    let error = w.failed(TaskState::Error);
    for outcome in [crash.clone(), error.clone(), crash.clone()] {
        w.finish_one("a", outcome);
        assert_eq!(w.state(map, 0), TaskState::Assigned);
    }
    w.finish_one("a", crash);
    assert_eq!(w.state(map, 0), TaskState::Lost);
    let map = w.submit(
        1,
        MapOptions {
            retries: 1,
            ..MapOptions::default()
        },
    );
    w.finish_one("a", error.clone());
    w.finish_one("a", error);
    assert_eq!(w.state(map, 0), TaskState::Error);
}

#[test]
fn tasks_of_a_lost_engine_move_and_its_late_results_are_ignored() {
    let mut w = Harness::new();
    w.register("a");
    let map = w.submit(2, MapOptions::default());
    let held = w.engines["a"].queue.clone();
    w.event(super::super::Event::EngineDisconnected { engine: "a".into() });
    w.register("b");
    assert_eq!(w.engines["b"].queue.len(), 0, "it may come back");
    for _ in 0..3 {
        w.pass(Duration::from_secs(2));
        w.engine_sends("b", engine::HEARTBEAT, &engine::Heartbeat {});
    }
    assert_eq!(w.engines["b"].queue.len(), 2);
    assert!(w.engines["b"].queue.iter().all(|t| t.run == 2));
    // If the first one returns nevertheless, it is a new engine and has to drop its tasks.
    w.register("a");
    let results = engine::Results {
        sequence: 1,
        results: held
            .iter()
            .map(|h| engine::TaskResult {
                map: h.map,
                index: h.index,
                run: h.run,
                outcome: w.ok(),
            })
            .collect(),
    };
    w.engine_sends("a", engine::RESULTS, &results);
    assert_eq!(w.state(map, 0), TaskState::Assigned, "a result of an old run is passed over");
    for _ in 0..2 {
        let outcome = w.ok();
        w.finish_one("b", outcome);
    }
    w.assert_all_done();
}

#[test]
fn an_engine_that_returns_in_time_keeps_its_tasks() {
    let mut w = Harness::new();
    w.register("a");
    w.register("b");
    let map = w.submit(2, MapOptions::default());
    w.event(super::super::Event::EngineDisconnected { engine: "a".into() });
    w.pass(Duration::from_secs(2));
    w.register("a");
    w.engine_sends("b", engine::HEARTBEAT, &engine::Heartbeat {});
    w.pass(Duration::from_secs(2));
    for name in ["a", "b"] {
        let outcome = w.ok();
        while w.finish_one(name, outcome.clone()).is_some() {}
    }
    assert_eq!(w.ledger.tasks[&TaskId::new(map, 0)].1, 1, "its first run counts");
    w.assert_all_done();
}

#[test]
fn a_task_unknown_to_its_engine_runs_again() {
    let mut w = Harness::new();
    w.register("a");
    let map = w.submit(1, MapOptions::default());
    w.engines.get_mut("a").unwrap().queue.clear();
    w.register("a");
    assert_eq!(w.state(map, 0), TaskState::Assigned, "its result may be on the way");
    for _ in 0..7 {
        w.engine_sends("a", engine::HEARTBEAT, &engine::Heartbeat {});
        w.pass(Duration::from_secs(1));
    }
    assert_eq!(w.engines["a"].queue.len(), 1);
    assert_eq!(w.engines["a"].queue[0].run, 2);
}

#[test]
fn a_silent_engine_keeps_its_tasks_for_its_lease() {
    let mut w = Harness::new();
    w.register("a");
    let map = w.submit(1, MapOptions::default());
    w.pass(Duration::from_secs(9));
    assert_eq!(w.state(map, 0), TaskState::Assigned);
    w.pass(Duration::from_secs(3));
    assert_eq!(w.state(map, 0), TaskState::Ready);
}

#[test]
fn unstarted_tasks_are_recalled_from_a_stuck_engine() {
    let mut w = Harness::new();
    w.register("a");
    let map = w.submit(2, MapOptions::default());
    assert_eq!(w.engines["a"].queue.len(), 2);
    w.register("b");
    for _ in 0..5 {
        w.pass(Duration::from_millis(100));
    }
    assert_eq!(w.engines["a"].gave_back, 1);
    let last = w.engines.get_mut("a").unwrap().queue.pop().unwrap();
    w.engine_sends(
        "a",
        engine::RETURNED,
        &engine::Returned {
            tasks: vec![last],
            ..Default::default()
        },
    );
    assert_eq!(
        w.engines["b"].queue,
        [engine::Held {
            map,
            index: last.index,
            run: 2
        }]
    );
}

#[test]
fn what_waits_behind_a_long_task_makes_room_for_a_map_with_a_higher_priority() {
    let mut w = Harness::new();
    w.register("a");
    let long = w.submit(2, MapOptions::default());
    assert_eq!(w.engines["a"].queue.len(), 2, "their duration is unknown");
    let pass = |w: &mut Harness| (0..5).for_each(|_| w.pass(Duration::from_millis(100)));
    pass(&mut w);
    assert_eq!(w.engines["a"].gave_back, 0, "nothing else waits");
    let urgent = MapOptions {
        priority: 5,
        ..MapOptions::default()
    };
    let urgent = w.submit(1, urgent);
    pass(&mut w);
    assert_eq!(w.engines["a"].gave_back, 1);
    let tasks = vec![w.engines.get_mut("a").unwrap().queue.pop().unwrap()];
    let returned = engine::Returned {
        tasks,
        ..Default::default()
    };
    w.engine_sends("a", engine::RETURNED, &returned);
    let running = w.engines["a"].queue.clone();
    assert_eq!(running.iter().map(|task| task.map).collect::<Vec<_>>(), [long]);
    let outcome = w.ok();
    w.finish_one("a", outcome);
    assert_eq!(w.engines["a"].queue[0].map, urgent);
}

#[test]
fn cancelled_tasks_end_in_every_state() {
    let mut w = Harness::new();
    w.register("a");
    let map = w.submit(
        5,
        MapOptions {
            retries: 5,
            ..MapOptions::default()
        },
    );
    w.select(
        client::CANCEL,
        client::Selection {
            tasks: vec![TaskId::new(map, 4)],
            ..Default::default()
        },
    );
    assert_eq!(w.state(map, 4), TaskState::Aborted);
    w.select(
        client::CANCEL,
        client::Selection {
            maps: vec![map],
            ..Default::default()
        },
    );
    assert_eq!(w.reply()["changed"], 4);
    assert_eq!(w.state(map, 3), TaskState::Aborted);
    let error = w.failed(TaskState::Error);
    w.finish_one("a", error.clone());
    w.finish_one("a", error);
    w.assert_all_done();
    assert_eq!(w.ledger.completed, [map]);
}

#[test]
fn targeted_tasks_run_only_on_their_engines() {
    let mut w = Harness::new();
    for name in ["a", "b", "c"] {
        w.register(name);
    }
    let map = w.submit(
        2,
        MapOptions {
            targets: Some("0,2".parse().unwrap()),
            ..MapOptions::default()
        },
    );
    assert_eq!(
        (w.engines["a"].queue.len(), w.engines["b"].queue.len(), w.engines["c"].queue.len()),
        (1, 0, 1)
    );
    w.event(super::super::Event::EngineDisconnected { engine: "c".into() });
    w.pass(Duration::from_secs(6));
    assert_eq!(w.state(map, 1), TaskState::Lost);
    w.ask(
        client::MAP,
        &client::MapRequest {
            key: "x".into(),
            definition: crate::model::definition::MapDefinition {
                work: crate::model::definition::Work::Push,
                options: MapOptions {
                    targets: Some(Targets::Some(vec![engine(7)])),
                    ..MapOptions::default()
                },
            },
            with_bundle: false,
            whole: false,
            watch: None,
        },
        vec![],
    );
    assert_eq!(w.reply()["ename"], "NoSuchEngine");
}

#[test]
fn a_map_runs_after_its_dependency_unless_that_failed() {
    let mut w = Harness::new();
    w.register("a");
    let first = w.submit(1, MapOptions::default());
    let second = w.submit(
        1,
        MapOptions {
            after: Some(first),
            ..MapOptions::default()
        },
    );
    assert_eq!(w.state(second, 0), TaskState::Waiting);
    let outcome = w.ok();
    w.finish_one("a", outcome);
    assert_eq!(w.state(second, 0), TaskState::Assigned);
    let third = w.submit(
        2,
        MapOptions {
            after: Some(second),
            ..MapOptions::default()
        },
    );
    let error = w.failed(TaskState::Error);
    w.finish_one("a", error);
    assert_eq!(w.state(third, 0), TaskState::Aborted);
    assert!(w.ledger.completed.contains(&third));
    w.ask(
        client::WATCH,
        &client::WatchRequest {
            map: MapId(99),
            from: 0,
            limit: 1,
            wait_ms: 0,
            done: None,
            without_inputs: false,
        },
        vec![],
    );
    assert_eq!(w.reply()["ename"], "NoSuchMap");
}

#[test]
fn another_version_is_rejected_with_both_numbers() {
    let mut w = Harness::new();
    w.ask(
        client::HELLO,
        &client::Hello {
            protocol: 99,
            version: "9.9.9".into(),
        },
        vec![],
    );
    let reply = w.reply();
    assert_eq!(reply["ename"], "VersionMismatch");
    let text = reply["evalue"].as_str().unwrap();
    assert!(text.contains("9.9.9") && text.contains(crate::model::VERSION), "{text}");
}

#[test]
fn a_task_that_kills_its_engines_has_limited_attempts() {
    let mut w = Harness::new();
    let map = w.submit(
        3,
        MapOptions {
            max_crashes: 2,
            ..MapOptions::default()
        },
    );
    for generation in 0..3 {
        let name = format!("engine {generation}");
        w.register(&name);
        // Its first task kills it before it reports the start.
        assert_eq!(w.engines[&name].queue[0].index, 0);
        w.engines.remove(&name);
        w.event(super::super::Event::EngineDisconnected {
            engine: name.as_str().into(),
        });
        w.pass(Duration::from_secs(6));
    }
    assert_eq!(w.state(map, 0), TaskState::Lost);
    w.register("well");
    for _ in 0..2 {
        let outcome = w.ok();
        w.finish_one("well", outcome);
    }
    assert_eq!(
        (w.state(map, 1), w.state(map, 2)),
        (TaskState::Ok, TaskState::Ok),
        "the others are not to blame"
    );
}

#[test]
fn a_map_abandoned_while_sending_inputs_is_closed_as_failed() {
    let mut w = Harness::new();
    w.register("a");
    let map = w.open_map(MapOptions::default());
    w.inputs(map, 0, 3, false);
    let outcome = w.ok();
    while w.finish_one("a", outcome.clone()).is_some() {}
    let follower = w.submit(
        1,
        MapOptions {
            after: Some(map),
            ..MapOptions::default()
        },
    );
    // A client without inputs sends keep-alive messages.
    for _ in 0..10 {
        w.pass(Duration::from_secs(30));
        w.inputs(map, 3, 0, false);
        w.engine_sends("a", engine::HEARTBEAT, &serde_json::json!({}));
    }
    assert!(w.ledger.completed.is_empty());
    w.restart();
    w.pass(Duration::from_secs(49));
    assert!(w.ledger.completed.is_empty(), "its time counts from the start of this controller");
    w.pass(Duration::from_secs(2));
    assert_eq!(w.ledger.completed, [map, follower]);
    assert_eq!((w.state(map, 2), w.state(map, 3)), (TaskState::Ok, TaskState::Aborted));
    assert_eq!(w.state(follower, 0), TaskState::Aborted);
    // The client was only suspended, and continues.
    w.inputs(map, 3, 1, true);
    assert_eq!(w.reply()["ename"], "NoSuchMap");
    w.assert_all_done();
}

#[test]
fn inputs_for_an_abandoned_map_are_rejected_also_after_a_restart() {
    let mut w = Harness::new();
    w.register("a");
    let map = w.open_map(MapOptions::default());
    w.inputs(map, 0, 3, false);
    w.register("b");
    for _ in 0..8 {
        w.pass(Duration::from_secs(8));
        for name in ["a", "b"] {
            w.engine_sends(name, engine::HEARTBEAT, &serde_json::json!({}));
        }
    }
    for restarted in [false, true] {
        if restarted {
            w.restart();
        }
        // With one more input, the number of inputs would match the count.
        w.inputs(map, 3, 1, true);
        assert_eq!(w.reply()["ename"], "MapClosed", "restarted: {restarted}");
    }
    for name in ["a", "b"] {
        w.register(name);
        let outcome = w.ok();
        while w.finish_one(name, outcome.clone()).is_some() {}
    }
    assert_eq!((w.ledger.completed.len(), w.state(map, 0)), (1, TaskState::Ok));
    w.assert_all_done();
}

#[test]
fn a_map_that_still_receives_inputs_cannot_be_purged() {
    let mut w = Harness::new();
    w.register("a");
    let map = w.open_map(MapOptions::default());
    w.inputs(map, 0, 2, false);
    let outcome = w.ok();
    while w.finish_one("a", outcome.clone()).is_some() {}
    // All received tasks are done, but the map is not finished.
    for restarted in [false, true] {
        if restarted {
            w.restart();
            w.register("b");
        }
        w.ask(client::PURGE, &client::PurgeRequest { maps: vec![map] }, vec![]);
        assert_eq!(w.reply()["ename"], "MapOpen", "restarted: {restarted}");
    }
    assert_eq!(w.ledger.purged, []);
    w.inputs(map, 2, 2, true);
    while w.finish_one("b", outcome.clone()).is_some() {}
    assert_eq!((w.ledger.completed.clone(), w.state(map, 3)), (vec![map], TaskState::Ok));
    w.assert_all_done();
    w.ask(client::PURGE, &client::PurgeRequest { maps: vec![map] }, vec![]);
    assert_eq!(w.reply()["status"], "ok");
}

#[test]
fn a_cancelled_map_rejects_further_inputs() {
    let mut w = Harness::new();
    w.register("a");
    let map = w.open_map(MapOptions::default());
    w.inputs(map, 0, 3, false);
    w.select(
        client::CANCEL,
        client::Selection {
            maps: vec![map],
            ..Default::default()
        },
    );
    assert_eq!(w.reply()["changed"], 3);
    w.inputs(map, 3, 2, false);
    assert_eq!(w.reply()["status"], "error", "{}", w.reply());
    let outcome = w.ok();
    while w.finish_one("a", outcome.clone()).is_some() {}
    assert_eq!(w.ledger.completed, [map]);
    assert!(!w.ledger.tasks.contains_key(&TaskId::new(map, 3)), "{:?}", w.ledger.tasks);
    w.assert_all_done();
    // No lease remains that would end it again.
    w.pass(Duration::from_secs(300));
    assert_eq!(w.ledger.completed, [map]);
}

#[test]
fn tasks_are_resubmitted_while_their_map_receives_inputs() {
    let mut w = Harness::new();
    w.register("a");
    let map = w.open_map(MapOptions::default());
    w.inputs(map, 0, 2, false);
    let failed = w.failed(TaskState::Error);
    while w.finish_one("a", failed.clone()).is_some() {}
    assert_eq!((w.state(map, 0), w.state(map, 1)), (TaskState::Error, TaskState::Error));
    // Requested twice before they have run.
    for changed in [2, 0] {
        w.resubmit(map, &[0, 1], TaskState::Error);
        assert_eq!(w.reply()["changed"], changed, "{}", w.reply());
    }
    w.inputs(map, 2, 1, true);
    let outcome = w.ok();
    while w.finish_one("a", outcome.clone()).is_some() {}
    assert_eq!(w.ledger.completed, [map]);
    for index in 0..3 {
        assert_eq!(w.state(map, index), TaskState::Ok, "{index}");
    }
}

fn available(w: &mut Harness, name: &str, reason: Option<&str>) {
    let reason = reason.map(String::from);
    w.engine_sends(name, engine::AVAILABILITY, &engine::Availability { reason });
}

/// The engine returns its unstarted tasks, like an engine whose Python has failed.
fn give_all_back(w: &mut Harness, name: &str) {
    let tasks = std::mem::take(&mut w.engines.get_mut(name).unwrap().queue);
    let returned = engine::Returned {
        tasks,
        ..engine::Returned::default()
    };
    w.engine_sends(name, engine::RETURNED, &returned);
}

#[test]
fn an_engine_without_a_working_python_gets_no_python_tasks_and_costs_no_retries() {
    let mut w = Harness::new();
    w.register("a");
    w.register("b");
    let map = w.submit(4, MapOptions::default());
    assert_eq!(w.engines["a"].queue.len() + w.engines["b"].queue.len(), 4);
    available(&mut w, "a", Some("no interpreter"));
    give_all_back(&mut w, "a");
    for _ in 0..4 {
        let outcome = w.ok();
        w.finish_one("b", outcome);
        assert_eq!(w.engines["a"].queue, [], "it was given something again");
    }
    w.assert_all_done();
    assert_eq!(w.ledger.completed, [map]);
}

#[test]
fn an_engine_with_recovered_python_gets_tasks_again() {
    let mut w = Harness::new();
    w.register_as("a", Some("no interpreter"));
    let map = w.submit(2, MapOptions::default());
    assert_eq!(w.engines["a"].queue, []);
    w.ask(client::STATUS, &serde_json::json!({}), Vec::new());
    let engine = w.reply()["engines"][0].clone();
    assert_eq!(
        (&engine["state"], &engine["reason"]),
        (&"unavailable".into(), &"no interpreter".into())
    );
    available(&mut w, "a", None);
    assert_eq!(w.engines["a"].queue.len(), 2);
    // An engine that registers again reports its availability again.
    give_all_back(&mut w, "a");
    w.register_as("a", Some("it died"));
    for _ in 0..2 {
        let outcome = w.ok();
        w.finish_one("a", outcome);
    }
    w.register("a");
    while w.finish_one("a", w.ok()).is_some() {}
    w.assert_all_done();
    assert_eq!(w.ledger.completed, [map]);
}

#[test]
fn commands_run_on_engines_without_python() {
    let mut w = Harness::new();
    w.register_as("a", Some("no interpreter"));
    w.register("b");
    let work = Work::Command { argv: vec!["true".into()] };
    let map = w.open_map_of(work, MapOptions::default());
    w.inputs(map, 0, 6, true);
    assert!(!w.engines["a"].queue.is_empty() && !w.engines["b"].queue.is_empty());
    for _ in 0..6 {
        for name in ["a", "b"] {
            let outcome = w.ok();
            w.finish_one(name, outcome);
        }
    }
    w.assert_all_done();
    assert_eq!(w.ledger.completed, [map]);
}

#[test]
fn code_is_sent_once_per_registration() {
    for name in ["a", "b"] {
        let mut w = Harness::new();
        w.register(name);
        let run = |w: &mut Harness, text: &str| {
            let from = crate::model::definition::CallSource::File {
                name: "jobs.py".into(),
                text: text.into(),
            };
            let work = Work::Call {
                from,
                function: "f".into(),
            };
            let map = w.open_map_of(work, MapOptions::default());
            w.inputs(map, 0, 1, true);
            let outcome = w.ok();
            w.finish_one(name, outcome);
            w.engines[name].bundles.len()
        };
        let sent: Vec<usize> = ["x = 1", "x = 1", "x = 2", "x = 1"].iter().map(|text| run(&mut w, text)).collect();
        assert_eq!(sent, [1, 1, 2, 2], "{name}");
        w.register(name);
        assert_eq!(run(&mut w, "x = 1"), 3, "{name}");
        w.assert_all_done();
    }
}

#[test]
fn an_engine_gets_no_task_that_exceeds_its_remaining_time() {
    let mut w = Harness::new();
    // An engine whose job ends in 100 s.
    let ends = 1e9 + 100.0;
    let facts = serde_json::json!({"protocol": crate::model::PROTOCOL_VERSION, "uuid": "job", "host": "node", "pid": 2, "version": "0",
        "capabilities": ["call", "joined"], "ends": ends});
    w.engine_sends("job", engine::REGISTER, &facts);
    let limited = |seconds: f64| MapOptions {
        timeout_s: Some(seconds),
        ..MapOptions::default()
    };
    let (long, short) = (w.submit(1, limited(200.0)), w.submit(1, limited(50.0)));
    assert_eq!((w.state(long, 0), w.state(short, 0)), (TaskState::Ready, TaskState::Assigned));
    w.ask(client::STATUS, &serde_json::json!({}), Vec::new());
    let notes = w.reply()["notes"].clone();
    assert!(notes[0].as_str().is_some_and(|note| note.starts_with("map 1 waits")), "{notes}");
    assert_eq!(notes.as_array().map(Vec::len), Some(1));
    // One without a known end takes it.
    w.register("a");
    assert_eq!(w.state(long, 0), TaskState::Assigned);
    assert_eq!(w.engines["a"].queue.len(), 1);
}
