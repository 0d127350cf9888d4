//! Attempts that ask for more than the one before.
use super::harness::*;
use crate::model::MapId;
use crate::model::definition::MapOptions;
use crate::model::node::NodeFacts;
use crate::model::task::TaskState;
use crate::wire::content::{client, engine};
use serde_json::json;
use std::time::Duration;

const G: u64 = 1 << 30;

fn harness() -> Harness {
    let mut w = Harness::new();
    w.node = NodeFacts {
        cpus: 4,
        mem_bytes: 8 * G,
        ..NodeFacts::default()
    };
    w
}

fn growing(mem_bytes: u64) -> MapOptions {
    MapOptions {
        mem_bytes: Some(mem_bytes),
        retry_mem: "x1.5".parse().ok(),
        max_crashes: 0,
        ..MapOptions::default()
    }
}

fn asked(w: &Harness, map: MapId, index: u32) -> Option<u64> {
    let asked = w.ledger.asks.get(&crate::model::TaskId::new(map, index))?;
    Some(asked.0.mem_bytes? >> 20)
}

#[test]
fn an_attempt_with_more_memory_reserves_it() {
    let mut w = harness();
    w.register("a");
    w.register("b");
    let map = w.submit(2, growing(3 * G));
    let too_little = w.out_of_memory();
    let first = w.engines["a"].queue[0].index;
    w.finish_one("a", too_little.clone());
    assert_eq!((w.state(map, first), asked(&w, map, first)), (TaskState::Assigned, Some(4608)));
    let (name, other) = match w.engines["a"].queue.is_empty() {
        true => ("b", "a"),
        false => ("a", "b"),
    };
    assert!(w.engines[name].queue.iter().any(|held| held.index == first));
    while w.engines[name].queue[0].index != first {
        let ok = w.ok();
        w.finish_one(name, ok);
    }
    w.finish_one(name, too_little.clone());
    assert_eq!(asked(&w, map, first), Some(6912));
    // 3 of the node's 8 GiB are in use, unless the other task has ended.
    if !w.engines[other].queue.is_empty() {
        assert_eq!(w.state(map, first), TaskState::Ready);
        let ok = w.ok();
        w.finish_one(other, ok);
    }
    assert_eq!(w.state(map, first), TaskState::Assigned);
    let holder = if w.engines["a"].queue.is_empty() { "b" } else { "a" };
    // Then all that the node has, and no more.
    w.finish_one(holder, too_little.clone());
    assert_eq!((w.state(map, first), asked(&w, map, first)), (TaskState::Assigned, Some(8 << 10)));
    let holder = if w.engines["a"].queue.is_empty() { "b" } else { "a" };
    w.finish_one(holder, too_little);
    assert_eq!(w.state(map, first), TaskState::Lost);
    assert_eq!(w.state(map, 1 - first), TaskState::Ok, "its neighbour");
}

#[test]
fn a_task_whose_job_ran_out_of_memory_gets_more() {
    let mut w = harness();
    w.job = "4711.2".into();
    w.register("a");
    let map = w.submit(1, growing(3 * G));
    let held = w.engines["a"].queue[0];
    let progress = json!({"map": held.map, "index": held.index, "run": held.run, "started": 1e9});
    w.engine_sends("a", engine::PROGRESS, &progress);
    let row = |element: u32, out_of_memory: bool| {
        json!({"launcher": "slurm", "job": "4711", "name": "pcluster-x", "element": element, "engines": 1, "submitted": 1000.0,
            "state": "out of memory", "over": true, "out_of_memory": out_of_memory, "since": 1060.0})
    };
    w.ask(client::JOBS, &json!({"jobs": [row(2, true), row(3, true)]}), Vec::new());
    w.event(super::super::Event::EngineDisconnected { engine: "a".into() });
    w.pass(Duration::from_secs(20));
    assert_eq!((w.state(map, 0), asked(&w, map, 0)), (TaskState::Ready, Some(4608)));
    // Another job's engine is only lost, which --max-crashes does not allow here.
    w.job = "4711.4".into();
    w.register("b");
    let held = w.engines["b"].queue[0];
    let progress = json!({"map": held.map, "index": held.index, "run": held.run, "started": 1e9});
    w.engine_sends("b", engine::PROGRESS, &progress);
    w.event(super::super::Event::EngineDisconnected { engine: "b".into() });
    w.pass(Duration::from_secs(20));
    assert_eq!(w.state(map, 0), TaskState::Lost);
}

#[test]
fn retries_with_more_of_nothing_are_refused() {
    let mut w = harness();
    w.register("a");
    for (options, why) in [
        (
            MapOptions {
                mem_bytes: None,
                ..growing(G)
            },
            "--retry-mem x1.5 needs --mem",
        ),
        (
            MapOptions {
                max_mem_bytes: Some(G),
                ..growing(G)
            },
            "--max-mem 1G must be more than --mem 1G",
        ),
        (
            MapOptions {
                retry_time: "x2".parse().ok(),
                ..MapOptions::default()
            },
            "--retry-time x2 needs --timeout",
        ),
    ] {
        let request = json!({"key": why, "work": {"kind": "command", "argv": ["true"]}, "options": options});
        let reply = w.try_ask(client::MAP, &request, Vec::new()).unwrap();
        assert!(reply["evalue"].as_str().unwrap().starts_with(why), "{reply}");
    }
}
