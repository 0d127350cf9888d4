//! The order in which maps get engines: priority, then submission; limits of one map; time; resources.
use super::harness::*;
use crate::model::MapId;
use crate::model::definition::{MapDefinition, MapOptions, Work};
use crate::model::node::{Gpu, GpuVendor, NodeFacts};
use crate::model::resources::TaskResources;
use crate::model::task::TaskState;
use crate::wire::content::client;
use std::time::Duration;

fn with_priority(priority: i32) -> MapOptions {
    MapOptions {
        priority,
        ..MapOptions::default()
    }
}

/// Tasks that take a second: an engine holds one of them.
fn finish_long(w: &mut Harness, name: &str) -> Option<MapId> {
    w.pass(Duration::from_secs(1));
    let mut outcome = w.ok();
    outcome.started.0 -= 1.0;
    w.finish_one(name, outcome).map(|task| task.map)
}

#[test]
fn maps_with_a_higher_priority_come_first() {
    let mut w = Harness::new();
    let [low, first, second, high] = [-1, 0, 0, 7].map(|priority| w.submit(3, with_priority(priority)));
    w.register("a");
    let order: Vec<MapId> = std::iter::from_fn(|| finish_long(&mut w, "a")).collect();
    assert_eq!((&order[..3], &order[9..]), (&[high; 3][..], &[low; 3][..]));
    assert!(order[3..9].iter().all(|map| [first, second].contains(map)));
    w.assert_all_done();
}

#[test]
fn a_changed_priority_counts_from_then_on_and_after_a_restart() {
    let mut w = Harness::new();
    let (one, two) = (w.submit(4, with_priority(0)), w.submit(4, with_priority(0)));
    w.ask(client::PRIORITY, &client::PriorityRequest { map: two, priority: 5 }, vec![]);
    assert_eq!(w.reply()["status"], "ok");
    w.restart();
    w.register("a");
    let order: Vec<MapId> = std::iter::from_fn(|| finish_long(&mut w, "a")).collect();
    assert_eq!(order, [two, two, two, two, one, one, one, one]);
    for map in [two, MapId(99)] {
        w.ask(client::PRIORITY, &client::PriorityRequest { map, priority: 1 }, vec![]);
        assert_eq!(w.reply()["status"], "error", "{map}");
    }
}

#[test]
fn a_map_with_a_maximum_leaves_engines_to_others() {
    let mut w = Harness::new();
    ["a", "b", "c"].iter().for_each(|name| w.register(name));
    let options = MapOptions {
        max_running: Some(2),
        ..MapOptions::default()
    };
    let (limited, other) = (w.submit(30, options), w.submit(30, MapOptions::default()));
    let held = |w: &Harness, map: MapId| w.engines.values().flat_map(|e| &e.queue).filter(|held| held.map == map).count();
    for _ in 0..200 {
        assert!(held(&w, limited) <= 2);
        assert!(w.state(other, 29).is_done() || held(&w, other) >= 1, "the other map has engines");
        for name in ["a", "b", "c"] {
            let outcome = w.ok();
            w.finish_one(name, outcome);
        }
    }
    w.assert_all_done();
}

#[test]
fn a_task_is_not_sent_to_an_engine_whose_job_ends_before_its_expected_time() {
    let mut w = Harness::new();
    w.ends = Some(600.0);
    w.register("a");
    let expecting = |time_s: Option<f64>, timeout_s: Option<f64>| MapOptions {
        time_s,
        timeout_s,
        ..MapOptions::default()
    };
    let [long, by_timeout] = [expecting(Some(1200.0), None), expecting(None, Some(1200.0))].map(|options| w.submit(1, options));
    let short = w.submit(1, expecting(Some(60.0), Some(1200.0)));
    assert_eq!(w.engines["a"].queue.iter().map(|held| held.map).collect::<Vec<_>>(), [short]);
    assert_eq!((w.state(long, 0), w.state(by_timeout, 0)), (TaskState::Ready, TaskState::Ready));
}

#[test]
fn a_large_task_gets_its_node_although_small_tasks_keep_coming() {
    let mut w = Harness::new();
    w.node = NodeFacts {
        cpus: 2,
        ..NodeFacts::default()
    };
    // Both on one node.
    ["a", "b"].iter().for_each(|name| w.register(name));
    w.submit(2, MapOptions::default());
    let large = w.submit(
        1,
        MapOptions {
            resources: TaskResources {
                cpus: 2,
                ..TaskResources::default()
            },
            ..MapOptions::default()
        },
    );
    w.submit(1000, MapOptions::default());
    for round in 0..10 {
        if w.state(large, 0).is_done() {
            return;
        }
        let name = ["a", "b"][round % 2];
        finish_long(&mut w, name);
    }
    panic!("the large task has not run: {:?}", w.state(large, 0));
}

fn cpus(cpus: u32) -> MapOptions {
    MapOptions {
        resources: TaskResources {
            cpus,
            ..TaskResources::default()
        },
        ..MapOptions::default()
    }
}

fn held(w: &Harness, map: MapId) -> usize {
    w.engines.values().flat_map(|e| &e.queue).filter(|held| held.map == map).count()
}

#[test]
fn a_node_with_more_engines_than_processors_is_full_when_its_processors_are() {
    let mut w = Harness::new();
    w.node.cpus = 2;
    ["c", "d", "e", "f"].iter().for_each(|name| w.register(name));
    let small = w.submit(4, MapOptions::default());
    assert_eq!(w.engines.values().filter(|e| !e.queue.is_empty()).count(), 4, "as many as engines");
    let wide = w.submit(3, cpus(2));
    let after = w.submit(4, MapOptions::default());
    while held(&w, small) > 0 {
        assert_eq!(held(&w, wide), 0);
        for name in ["c", "d", "e", "f"] {
            finish_long(&mut w, name);
        }
    }
    assert_eq!((held(&w, wide), held(&w, after)), (1, 0), "two processors are in use");
}

#[test]
fn a_map_that_waits_for_a_gpu_leaves_processors_to_others() {
    let mut w = Harness::new();
    w.node = NodeFacts {
        cpus: 4,
        gpus: vec![Gpu {
            vendor: GpuVendor::Nvidia,
            name: "0".into(),
            model: String::new(),
            numa: None,
        }],
        ..NodeFacts::default()
    };
    ["c", "d", "e", "f"].iter().for_each(|name| w.register(name));
    let mut options = cpus(1);
    options.resources.gpus = "1".parse().unwrap();
    let gpu = w.submit(10, options.clone());
    let (plain, wide) = (w.submit(2, MapOptions::default()), w.submit(1, cpus(2)));
    assert_eq!(held(&w, gpu), 1);
    assert_eq!(
        held(&w, plain),
        2,
        "two processors do not matter to the task that waits for the GPU"
    );
    assert_eq!(held(&w, wide), 0, "but its own does");
    options.resources.cpus = 5;
    w.ask(client::STATUS, &serde_json::json!({}), vec![]);
    let notes = w.reply()["notes"].to_string();
    assert!(
        notes.contains(&format!("map {gpu} waits")) && notes.contains(&format!("map {wide} waits")),
        "{notes}"
    );
}

#[test]
fn a_map_that_no_engine_has_time_for_reserves_nothing() {
    let mut w = Harness::new();
    (w.node.cpus, w.ends) = (2, Some(600.0));
    ["c", "d"].iter().for_each(|name| w.register(name));
    let mut options = cpus(2);
    options.time_s = Some(1200.0);
    let (long, other) = (w.submit(1, options), w.submit(4, MapOptions::default()));
    assert_eq!((held(&w, long), held(&w, other)), (0, 4), "two engines hold two each");
}

#[test]
fn the_last_report_about_a_node_counts() {
    let mut w = Harness::new();
    w.node.cpus = 1;
    w.register("c");
    w.node.cpus = 4;
    w.register("d");
    let map = w.submit(1, cpus(4));
    assert_eq!(held(&w, map), 1);
    w.ask(client::STATUS, &serde_json::json!({}), vec![]);
    assert_eq!(w.reply()["engines"][0]["node"]["cpus"], 4);
}

#[test]
fn a_task_for_one_engine_comes_first_but_waits_for_what_is_in_use() {
    let mut w = Harness::new();
    w.node = NodeFacts {
        cpus: 4,
        gpus: vec![Gpu {
            vendor: GpuVendor::Nvidia,
            name: "0".into(),
            model: String::new(),
            numa: None,
        }],
        ..NodeFacts::default()
    };
    ["c", "d"].iter().for_each(|name| w.register(name));
    let mut options = cpus(1);
    options.resources.gpus = "1".parse().unwrap();
    let balanced = w.submit(10, options.clone());
    options.targets = Some("all".parse().unwrap());
    let direct = w.submit(2, options.clone());
    assert_eq!((held(&w, balanced), held(&w, direct)), (1, 0), "the GPU is in use");
    w.ask(client::STATUS, &serde_json::json!({}), vec![]);
    let notes = w.reply()["notes"].to_string();
    assert!(notes.contains(&format!("map {direct} waits")), "{notes}");
    w.submit(4, MapOptions::default());
    let mut order = Vec::new();
    for _ in 0..20 {
        for name in ["c", "d"] {
            order.extend(finish_long(&mut w, name));
        }
        if w.state(direct, 0).is_done() && w.state(direct, 1).is_done() {
            break;
        }
    }
    let before = order.iter().filter(|map| **map == balanced).count();
    assert!(before <= 2 && w.state(direct, 1).is_done(), "{order:?}");
    // More than the node of any of its engines has, at submission.
    options.resources.cpus = 5;
    let definition = MapDefinition { work: Work::Push, options };
    assert!(
        w.core
            .check_resources(&definition)
            .unwrap_err()
            .evalue
            .contains("too little for 5 cpus")
    );
}
