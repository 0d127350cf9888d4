//! `pcluster explain`: why work waits, what became of it, what engines do.
use super::support::{Cluster, Home, signal, wait_until};
use nix::sys::signal::Signal::SIGKILL;
use std::fs;

const WORK: &str = r#"
import os, sys, time

def hold(x):
    open("started-%d" % x, "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    return x

def bad(x):
    print("reading", x, file=sys.stderr)
    print("line 12 is empty", file=sys.stderr)
    raise ValueError("no digits")
"#;

/// Two engines on a node with 2 processors and 8G.
fn cluster() -> Cluster {
    let home = Home::new();
    home.file("work.py", WORK);
    Cluster::start_in(home, 2, &["--resource", "cpus=2", "--resource", "mem=8G"])
}

fn map<'a>(function: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["map", function, "--detach"], more].concat()
}

fn started(cluster: &Cluster, task: u32) {
    let file = cluster.path().join(format!("started-{task}"));
    wait_until("the task runs", || file.exists().then_some(()));
}

#[test]
fn tasks_that_wait_and_tasks_that_run_are_explained() {
    let cluster = cluster();
    cluster.ok(&map("work.py:hold", &["--range", "0..8"]));
    [0, 2].iter().for_each(|task| started(&cluster, *task));
    cluster.ok(&map("work.py:hold", &["--range", "20..21", "--mem", "16G", "--wait-for-resources"]));
    cluster.ok(&map("work.py:hold", &["--range", "30..31", "--after", "1"]));

    let large = cluster.ok(&["explain", "2.0"]);
    assert_eq!(
        large,
        "task 2.0: waiting: 0 of 2 engines can take it now: 2 have at most 8G of memory and it asks for 16G\n"
    );
    let of_map = cluster.ok(&["explain", "2"]);
    assert!(
        of_map.starts_with("map 2: 0 of 1 task done; waiting: 0 of 2 engines can take it now: 2 have"),
        "{of_map}"
    );
    let after = cluster.ok(&["explain", "3.0"]);
    assert_eq!(after, "task 3.0: waiting: it starts after map 1, of which 0 of 8 tasks are done\n");
    let busy = cluster.ok(&["explain", "1.7"]);
    assert_eq!(busy, "task 1.7: waiting: 0 of 2 engines can take it now: 2 busy\n");
    let running = wait_until("the start is reported", || {
        let text = cluster.ok(&["explain", "1.0"]);
        text.contains(": running on engine ").then_some(text)
    });
    assert!(running.contains(" for "), "{running}");
    let whole = cluster.ok(&["explain", "1"]);
    assert!(whole.contains("; 4 tasks are with engines, the longest for "), "{whole}");

    // The same line elsewhere.
    let results = cluster.ok(&["results", "2.0"]);
    assert!(
        results.contains("\n  why        waiting: 0 of 2 engines can take it now: 2 have"),
        "{results}"
    );
    assert!(
        cluster.json(&["results", "2.0"])["tasks"][0]["explanation"]
            .as_str()
            .unwrap()
            .starts_with("waiting: ")
    );
    let status = cluster.run(&["status"]).stderr;
    assert!(
        status.contains("map 2 waits: 0 of 2 engines can take it now: 2 have at most 8G"),
        "{status}"
    );

    let json = cluster.json(&["explain", "2.0"]);
    assert_eq!(
        (json["version"].as_u64(), json["state"].as_str(), json["task"].as_str()),
        (Some(1), Some("ready"), Some("2.0"))
    );
    let reason = &json["waiting"]["reasons"][0];
    assert_eq!((reason["kind"].as_str(), reason["engines"].as_u64()), (Some("too_small"), Some(2)));
    assert_eq!(cluster.json(&["explain", "1"])["open"]["with_engines"], 4);
    assert_eq!(cluster.json(&["explain", "1.0"])["placed"]["engine"], 0);

    let engine = cluster.ok(&["explain", "--engine", "0"]);
    assert!(
        engine.contains(": busy; it runs 1.0 for ") && engine.contains(", then 1.1\n"),
        "{engine}"
    );
    assert!(engine.contains("\n  free on its node: 0 of 2 cpus, 8G of 8G\n"), "{engine}");
    assert!(
        engine.contains("\n  it takes no task of map 2: has 8G of memory and it asks for 16G\n"),
        "{engine}"
    );
    assert_eq!(cluster.json(&["explain", "--engine", "0"])["work"]["tasks"][1], "1.1");

    // A pipe gets no explanation, and stderr gets it once nothing has ended for a while.
    let mut waits = cluster.spawn(&["wait", "2"]);
    let mut maps = cluster.spawn(&["map", "work.py:hold", "--range", "40..41", "--mem", "16G", "--wait-for-resources"]);
    for command in [&waits, &maps] {
        command.wait_for_stderr("waiting: 0 of 2 engines can take it now: 2 have at most 8G of memory and it asks for 16G");
    }
    assert!(!waits.has_ended() && !maps.has_ended());
    cluster.ok(&["cancel", "2", "4"]);
    assert_eq!(waits.end().code, Some(1));
    let maps = maps.end();
    assert!(!maps.stdout.contains("waiting"), "{}", maps.transcript());
    let cancelled = cluster.ok(&["explain", "2.0"]);
    assert!(
        cancelled.starts_with("task 2.0: aborted (it never started): TaskCancelled: "),
        "{cancelled}"
    );
    fs::write(cluster.path().join("go"), "").unwrap();
    cluster.ok(&["wait", "1", "3"]);
    assert!(
        cluster
            .ok(&["explain", "1"])
            .starts_with("map 1: 8 of 8 tasks done; it has finished\n")
    );
    cluster.ok(&["purge", "2", "--yes"]);
    cluster.run(&["explain", "2.0"]).fails(3, &["no map 2", "purged"]);
}

#[test]
fn failed_tasks_have_their_attempts_also_when_the_cluster_is_stopped() {
    let cluster = cluster();
    cluster
        .run(&["map", "work.py:bad", "--range", "0..1", "--retries", "1"])
        .fails(1, &[]);
    cluster.ok(&map("work.py:hold", &["--range", "0..1", "--mem", "16G", "--wait-for-resources"]));
    let check = || {
        let text = cluster.ok(&["explain", "1.0"]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "task 1.0: error (2 attempts): ValueError: no digits", "{text}");
        for (run, lines) in [(1, &lines[1..5]), (2, &lines[5..9])] {
            let begin = format!("  attempt {run}: error after ");
            assert!(lines[0].starts_with(&begin) && lines[0].contains(" on engine "), "{text}");
            assert_eq!(
                &lines[1..],
                ["    ValueError: no digits", "    stderr: reading 0", "            line 12 is empty"],
                "{text}"
            );
        }
        let json = cluster.json(&["explain", "1.0"]);
        let attempt = &json["attempts"][0];
        assert_eq!((attempt["run"].as_u64(), attempt["cause"].as_str()), (Some(1), Some("error")));
        assert_eq!(attempt["last_output"]["text"], "reading 0\nline 12 is empty");
        let map = cluster.ok(&["explain", "1"]);
        assert!(
            map.contains("\n  1 task failed: ValueError: no digits\n    see pcluster explain 1.0\n"),
            "{map}"
        );
    };
    check();
    let engine = cluster.json(&["explain", "--engine", "1"]);
    assert_eq!((engine["state"].as_str(), engine["gone"].is_null()), (Some("idle"), true));
    cluster.ok(&["engines", "stop", "1"]);
    let gone = wait_until("the engine leaves", || {
        let text = cluster.ok(&["explain", "--engine", "1"]);
        text.contains("): left ").then_some(text)
    });
    assert!(gone.contains(" after "), "{gone}");

    cluster.ok(&["stop"]);
    check();
    assert!(cluster.ok(&["explain", "--engine", "1"]).contains("): left "));
    assert_eq!(
        cluster.ok(&["explain", "2.0"]),
        "task 2.0: ready when the cluster stopped; pcluster start continues it\n"
    );
    let map = cluster.ok(&["explain", "2"]);
    assert_eq!(
        map,
        "map 2: 0 of 1 task done; the cluster is stopped; pcluster start continues it\n"
    );
    for (arguments, words) in [
        (&["explain", "1.99"][..], &["no task 1.99", "map 1 has one task, 1.0"][..]),
        (&["explain", "7"], &["no map 7"]),
        (&["explain", "--engine", "99"], &["no engine 99"]),
        (&["explain", "--job", "4711"], &["has no job 4711"]),
    ] {
        cluster.run(arguments).fails(3, words);
    }
}

#[test]
fn an_attempt_that_was_lost_keeps_its_start() {
    let cluster = cluster();
    cluster.ok(&map("work.py:hold", &["--range", "0..1", "--max-crashes", "0"]));
    started(&cluster, 0);
    let task = || cluster.json(&["results", "1.0"])["tasks"][0].clone();
    let running = wait_until("its start is on record", || Some(task()).filter(|task| task["started"].is_string()));
    let engines = cluster.json(&["engines"]);
    let pid = engines["engines"]
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["id"] == running["engine"])
        .unwrap()["pid"]
        .clone();
    signal(pid.as_u64().unwrap() as u32, SIGKILL);
    let lost = wait_until("the task is lost", || Some(task()).filter(|task| task["state"] == "lost"));
    assert_eq!(lost["started"], running["started"]);
    assert!(
        lost["duration"].as_f64().unwrap() > 1.0,
        "the controller waits for the engine: {lost:#}"
    );
}

#[test]
fn a_subject_is_one_task_map_engine_or_job() {
    let home = Home::new();
    for (arguments, words) in [
        (&["explain"][..], "--engine"),
        (&["explain", "x"], "neither a map (12) nor a task (12.3)"),
        (&["explain", "1.x"], "neither a map (12) nor a task (12.3)"),
        (&["explain", "1-3"], "neither a map (12) nor a task (12.3)"),
        (&["explain", "--engine", "x"], "\"x\" is not the number of an engine"),
        (&["explain", "--engine", "-1"], "--engine"),
        (&["explain", "1", "--engine", "0"], "cannot be used with"),
        (&["explain", "--job", "4711", "--engine", "0"], "cannot be used with"),
        (&["explain", "1", "2"], "unexpected argument"),
    ] {
        home.run(arguments).fails(2, &[words]);
    }
    home.run(&["explain", "1.3"])
        .fails(3, &["no cluster is running", "no records exist"]);
    home.run(&["explain", "1", "--profile", "a/b"])
        .fails(2, &["not a valid profile name"]);
}
