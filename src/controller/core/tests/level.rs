//! A running task has its successor on its engine; what waits there is asked back for an engine that is idle.
use super::harness::*;
use crate::model::definition::MapOptions;
use crate::model::task::Outcome;
use crate::model::{MapId, UnixTime};
use crate::wire::content::engine;

/// Ended well after this many seconds.
fn took(w: &Harness, seconds: f64) -> Outcome {
    let ended = UnixTime(w.ok().ended.0);
    Outcome {
        started: UnixTime(ended.0 - seconds),
        ..w.ok()
    }
}

fn queued(w: &Harness, engine: &str) -> Vec<u32> {
    w.engines[engine].queue.iter().map(|held| held.index).collect()
}

/// Two engines that know how long a task of this map takes; nothing of it is left.
fn practised(seconds: f64) -> (Harness, MapId) {
    let mut w = Harness::new();
    for name in ["a", "b"] {
        w.register(name);
    }
    let map = w.open_map(MapOptions::default());
    w.inputs(map, 0, 2, false);
    for name in ["a", "b"] {
        let outcome = took(&w, seconds);
        w.finish_one(name, outcome);
    }
    (w, map)
}

fn give_back(w: &mut Harness, name: &str) {
    let at_most = std::mem::take(&mut w.engines.get_mut(name).unwrap().gave_back) as usize;
    let queue = &mut w.engines.get_mut(name).unwrap().queue;
    let tasks = queue.split_off(queue.len() - at_most);
    let returned = engine::Returned {
        tasks,
        ..Default::default()
    };
    w.engine_sends(name, engine::RETURNED, &returned);
}

#[test]
fn a_running_task_has_its_successor_on_its_engine() {
    for (seconds, held) in [(0.1, 2), (0.9, 2), (2.0, 1)] {
        let (mut w, map) = practised(seconds);
        w.inputs(map, 2, 8, true);
        assert_eq!([queued(&w, "a").len(), queued(&w, "b").len()], [held; 2], "{seconds} s");
        // The next one is sent as soon as the running one ends.
        let outcome = took(&w, seconds);
        w.finish_one("a", outcome);
        assert_eq!(queued(&w, "a").len(), held, "{seconds} s");
    }
}

#[test]
fn what_waits_is_asked_back_at_once_for_an_idle_engine() {
    let (mut w, map) = practised(0.1);
    w.inputs(map, 2, 4, true);
    assert_eq!([queued(&w, "a").len(), queued(&w, "b").len()], [2, 2]);
    for _ in 0..2 {
        let outcome = took(&w, 0.1);
        w.finish_one("a", outcome);
    }
    assert_eq!([queued(&w, "a").len(), queued(&w, "b").len()], [0, 2]);
    assert_eq!(w.engines["b"].gave_back, 1, "not after a while");
    give_back(&mut w, "b");
    assert_eq!([queued(&w, "a").len(), queued(&w, "b").len()], [1, 1]);
    assert_eq!(w.engines["b"].gave_back, 0);
    for name in ["a", "b"] {
        let outcome = took(&w, 0.1);
        w.finish_one(name, outcome);
    }
    w.assert_all_done();
}

#[test]
fn what_is_done_soon_or_can_run_nowhere_else_is_not_asked_back() {
    // The queue of `b` takes less than a message to it and back.
    let (mut w, map) = practised(0.001);
    w.inputs(map, 2, 4, true);
    while w.finish_one("a", took(&w, 0.001)).is_some() {}
    assert_eq!((queued(&w, "b").len(), w.engines["b"].gave_back), (2, 0));
    // The other engine runs commands only.
    let (mut w, map) = practised(0.1);
    w.inputs(map, 2, 4, true);
    let reason = Some("no Python".to_string());
    w.engine_sends("a", engine::AVAILABILITY, &engine::Availability { reason });
    while w.finish_one("a", took(&w, 0.1)).is_some() {}
    assert_eq!((queued(&w, "b").len(), w.engines["b"].gave_back), (2, 0));
}

#[test]
fn tasks_that_no_idle_engine_could_take_are_not_asked_back_for_others() {
    // What an engine holds has no order that the controller knows.
    for _ in 0..10 {
        let mut w = Harness::new();
        w.register("a");
        let any = w.open_map(MapOptions::default());
        let long = w.open_map(MapOptions {
            time_s: Some(3600.0),
            ..MapOptions::default()
        });
        for first in 0..2 {
            for map in [any, long] {
                w.inputs(map, first, 1, first == 1);
                if first == 0 {
                    let outcome = took(&w, 0.02);
                    w.finish_one("a", outcome);
                }
            }
        }
        let held: Vec<MapId> = w.engines["a"].queue.iter().map(|held| held.map).collect();
        assert_eq!(held, [any, long]);
        // The job of this one ends too early for the second.
        w.ends = Some(720.0);
        w.register("c");
        assert_eq!((w.engines["a"].gave_back, queued(&w, "c").len()), (0, 0));
    }
}
