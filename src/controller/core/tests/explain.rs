//! Explanations. That they agree with dispatch is an invariant of the core, checked after every event of every test and of every
//! simulated life.
use super::super::effect::{ClientChannel, Effect, Query, QueryKind};
use super::super::event::Event;
use super::harness::*;
use super::requests::{request, sent, stock};
use crate::model::definition::MapOptions;
use crate::model::explanation::ReasonKind;
use crate::model::resources::TaskResources;
use crate::model::{MapId, TaskId};
use crate::wire::content::client::{self, ExplainReply, ExplainRequest};
use crate::wire::content::engine::{self, Held};
use serde_json::json;
use std::time::Duration;

fn explain(w: &mut Harness, request: &ExplainRequest) -> ExplainReply {
    w.other.clear();
    w.ask(client::EXPLAIN, request, vec![]);
    let found = w.other.drain(..).find_map(|effect| match effect {
        Effect::Query(Query {
            kind: QueryKind::Explain { reply, .. },
            ..
        }) => Some(*reply),
        _ => None,
    });
    found.unwrap()
}

/// Why this task waits.
fn why(w: &mut Harness, map: MapId, index: u32) -> String {
    let reply = explain(w, &ExplainRequest::Task(TaskId::new(map, index)));
    reply.waiting.map(|waiting| waiting.to_string()).unwrap_or_default()
}

/// The engine `a` reports the start of a task.
fn begins(w: &mut Harness, task: Held, started: f64) {
    let parts = Vec::new();
    w.engine_sends("a", engine::PROGRESS, &engine::Progress { task, started, parts });
}

fn mem(gib: u64) -> MapOptions {
    MapOptions {
        mem_bytes: Some(gib << 30),
        wait_for_resources: true,
        ..MapOptions::default()
    }
}

#[test]
fn engines_are_counted_by_the_reason_why_they_do_not_take_a_task() {
    let mut w = Harness::new();
    w.node.mem_bytes = 16 << 30;
    ["a", "b"].iter().for_each(|name| w.register(name));
    let large = w.submit(1, mem(32));
    assert_eq!(
        why(&mut w, large, 0),
        "0 of 2 engines can take it now: 2 have at most 16G of memory and it asks for 32G"
    );
    // On another node, which has more; its job ends early.
    (w.node.mem_bytes, w.ends) = (64 << 30, Some(720.0));
    ["c", "d"].iter().for_each(|name| w.register(name));
    let mut long = mem(32);
    long.time_s = Some(1800.0);
    let long = w.submit(1, long);
    let expected = "0 of 4 engines can take it now: 2 have at most 16G of memory and it asks for 32G, 2 end in at most 12 min and it \
                    needs 30 min";
    assert_eq!(why(&mut w, long, 0), expected);
    w.register_as("e", Some("no interpreter"));
    assert!(
        why(&mut w, long, 0).ends_with("1 cannot run Python (no interpreter)"),
        "{}",
        why(&mut w, long, 0)
    );
    w.event(Event::EngineDisconnected { engine: "e".into() });
    assert!(why(&mut w, long, 0).ends_with(", 1 silent"), "{}", why(&mut w, long, 0));
}

#[test]
fn the_next_free_engine_is_estimated_from_the_tasks_so_far() {
    let mut w = Harness::new();
    ["a", "b"].iter().for_each(|name| w.register(name));
    let map = w.submit(20, MapOptions::default());
    assert_eq!(why(&mut w, map, 19), "0 of 2 engines can take it now: 2 busy");
    for name in ["a", "b"] {
        w.pass(Duration::from_secs(1));
        let mut outcome = w.ok();
        outcome.started.0 -= 100.0;
        w.finish_one(name, outcome);
    }
    let running = w.engines["a"].queue[0];
    let started = w.now.as_secs_f64() + 1e9 - 40.0;
    begins(&mut w, running, started);
    assert_eq!(
        why(&mut w, map, 19),
        "0 of 2 engines can take it now: 2 busy (next free in about 60 s)"
    );
    let reply = explain(&mut w, &ExplainRequest::Map(map));
    let open = reply.map.unwrap();
    assert_eq!((open.ready, open.with_engines), (16, 2));
    assert!((39.9..40.1).contains(&open.longest_s.unwrap()), "{open:?}");
    let urgent = MapOptions {
        priority: 5,
        ..MapOptions::default()
    };
    let urgent = w.submit(1, urgent);
    let expected = "0 of 2 engines can take it now: 2 busy (next free in about 60 s)";
    assert_eq!(why(&mut w, urgent, 0), expected, "it is not queued behind tasks of others");
}

#[test]
fn a_task_with_a_target_waits_for_that_engine_only() {
    let mut w = Harness::new();
    w.node.mem_bytes = 16 << 30;
    ["a", "b", "c"].iter().for_each(|name| w.register(name));
    let targets = |targets: &str| MapOptions {
        targets: Some(targets.parse().unwrap()),
        ..mem(1)
    };
    w.submit(1, targets("1"));
    let map = w.submit(2, targets("0,1"));
    assert_eq!(why(&mut w, map, 0), "", "it runs");
    assert_eq!(
        why(&mut w, map, 1),
        "0 of 3 engines can take it now: 1 busy with map 1, 2 are not among its targets"
    );
}

#[test]
fn a_map_can_wait_whatever_engines_there_are() {
    let mut w = Harness::new();
    let first = w.submit(3, MapOptions::default());
    assert_eq!(why(&mut w, first, 0), "there are no engines");
    w.register("a");
    let after = w.submit(
        1,
        MapOptions {
            after: Some(first),
            ..MapOptions::default()
        },
    );
    assert_eq!(why(&mut w, after, 0), "it starts after map 1, of which 0 of 3 tasks are done");
    let limited = w.submit(
        3,
        MapOptions {
            max_running: Some(1),
            priority: 1,
            ..MapOptions::default()
        },
    );
    let outcome = w.ok();
    w.finish_one("a", outcome);
    assert_eq!(
        why(&mut w, limited, 2),
        "1 task of its map is with engines, and --max-running allows no more"
    );
}

#[test]
fn a_task_with_an_engine_is_found_in_its_queue() {
    let mut w = Harness::new();
    w.register("a");
    let map = w.submit(2, MapOptions::default());
    let placed = |w: &mut Harness, index| explain(w, &ExplainRequest::Task(TaskId::new(map, index))).placed.unwrap();
    assert_eq!((placed(&mut w, 0).ahead, placed(&mut w, 1).ahead), (0, 1));
    let held = Held { map, index: 0, run: 1 };
    begins(&mut w, held, 1e9);
    assert!(placed(&mut w, 0).began.is_some() && placed(&mut w, 1).began.is_none());
    w.select(
        client::CANCEL,
        client::Selection {
            tasks: vec![TaskId::new(map, 0)],
            ..Default::default()
        },
    );
    assert!(placed(&mut w, 0).cancelled);
    w.event(Event::EngineDisconnected { engine: "a".into() });
    assert_eq!(placed(&mut w, 1).unsure.as_deref(), Some("the engine does not answer"));
    let ended = explain(&mut w, &ExplainRequest::Task(TaskId::new(map, 9)));
    assert!(ended.placed.is_none() && ended.waiting.is_none(), "{ended:?}");
}

#[test]
fn an_engine_has_its_tasks_in_order_and_reasons_to_take_nothing_more() {
    let mut w = Harness::new();
    w.node.cpus = 4;
    w.ends = Some(600.0);
    w.register("a");
    let (small, long) = (
        w.submit(2, MapOptions::default()),
        w.submit(
            1,
            MapOptions {
                time_s: Some(1200.0),
                ..MapOptions::default()
            },
        ),
    );
    let wide = w.submit(
        1,
        MapOptions {
            wait_for_resources: true,
            resources: TaskResources {
                cpus: 8,
                ..TaskResources::default()
            },
            ..MapOptions::default()
        },
    );
    let reply = explain(&mut w, &ExplainRequest::Engine(engine(0)));
    let work = reply.work.unwrap();
    assert_eq!(work.tasks, [TaskId::new(small, 0), TaskId::new(small, 1)]);
    assert_eq!(work.node_free, "3 of 4 cpus");
    let refused: Vec<_> = work
        .refuses
        .iter()
        .map(|refused| (refused.maps[0], &refused.kind, refused.text.as_str()))
        .collect();
    assert_eq!(
        refused,
        [
            (long, &ReasonKind::EndsTooSoon, "ends in 10 min and it needs 20 min"),
            (wide, &ReasonKind::TooSmall, "has 4 cpus and it asks for 8"),
        ]
    );
    assert!(explain(&mut w, &ExplainRequest::Engine(engine(7))).work.is_none());
}

#[test]
fn requests_of_ipyparallel_clients_wait_for_targets_for_others_and_for_a_place() {
    let mut w = Harness::new();
    ["e", "f"].iter().for_each(|name| stock(&mut w, name));
    let ask = |w: &mut Harness, metadata| {
        let id = request(w, ClientChannel::Task, None, metadata);
        (id.clone(), w.ledger.requests[&id])
    };
    let (first, _) = ask(&mut w, json!({"targets": ["f"]}));
    assert_eq!(sent(&mut w).len(), 1);
    let (_, bound) = ask(&mut w, json!({"targets": ["f"]}));
    assert_eq!(
        why(&mut w, bound.map, bound.index),
        "0 of 2 engines can take it now: 1 busy, 1 is not among its targets"
    );
    let (_, after) = ask(&mut w, json!({"after": [first], "timeout": 90}));
    assert_eq!(
        why(&mut w, after.map, after.index),
        "1 of 1 requests that it comes after are unfinished; it fails after 90 s without an engine"
    );
    let reply = explain(&mut w, &ExplainRequest::Task(TaskId::new(bound.map, 0)));
    assert_eq!(reply.placed.unwrap().engine, engine(1));
}
