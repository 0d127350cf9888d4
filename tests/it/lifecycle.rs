//! The lifecycle of clusters: start, inspect, lose processes, stop.
use super::support::{Cluster, Home, signal, wait_for_exit, wait_until};
use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGKILL, SIGTERM};
use std::os::unix::fs::PermissionsExt;

const SLEEPY: &str = "import time\n\n\ndef sleepy(x):\n    time.sleep(0.2)\n    return x\n";

#[test]
fn start_inspect_and_stop() {
    let cluster = Cluster::start(2);
    let status = cluster.json(&["status"]);
    assert_eq!(status["engines"].as_array().unwrap().len(), 2, "{status:#}");
    assert_eq!(cluster.json(&["list"])["clusters"][0]["profile"], "default");
    let pids: Vec<u32> = cluster.engine_pids().into_iter().chain([cluster.controller_pid()]).collect();

    let security = cluster.profile().join("security");
    assert_eq!(security.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    for file in ["ipcontroller-client.json", "ipcontroller-engine.json"] {
        assert_eq!(
            security.join(file).metadata().unwrap().permissions().mode() & 0o777,
            0o600,
            "{file}"
        );
    }

    // A second start does not change the first.
    cluster.start_again(2, &[]).fails(4, &["running", "hint: "]);
    assert_eq!(cluster.controller_pid(), *pids.last().unwrap());

    assert_eq!(cluster.ok(&["map", "math:sqrt", "--range", "4..5"]), "2.0\n");
    let before = cluster.json(&["results", "1"]);
    cluster.ok(&["stop"]);
    for pid in pids {
        wait_for_exit(pid);
    }
    assert!(!security.join("ipcontroller-client.json").exists());
    // The records remain unchanged.
    assert_eq!(cluster.json(&["results", "1"]), before);
    cluster.run(&["stop"]).fails(3, &["running", "pcluster start"]);

    // And the numbers go on.
    cluster.start_again(1, &[]).ok();
    assert_eq!(cluster.ok(&["map", "math:sqrt", "--range", "9..10"]), "3.0\n");
    assert_eq!(cluster.json(&["results"])["maps"].as_array().unwrap().len(), 2);
    // A task of the time before the stop is resubmitted.
    cluster.ok(&["resubmit", "1.0"]);
    cluster.ok(&["wait", "1"]);
    let tasks = cluster.ok(&["results", "1", "--jsonl"]);
    assert!(tasks.contains(r#""state":"ok""#) && tasks.contains(r#""run":2"#), "{tasks}");
    cluster.ok(&["stop"]);
}

#[test]
fn an_engine_that_is_killed_loses_no_task() {
    let cluster = Cluster::start(2);
    cluster.file("sleepy.py", SLEEPY);
    let running = cluster.spawn(&["map", "sleepy.py:sleepy", "--range", "0..12"]);
    wait_until("a task to be done", || {
        // Until it is submitted there is no map 1.
        let ended = cluster.run(&["results", "1", "--state", "ok", "--jsonl"]);
        (ended.code == Some(0) && !ended.stdout.is_empty()).then_some(())
    });
    let before = cluster.engine_pids();
    signal(before[0], SIGKILL);
    let expected: String = (0..12).map(|n| format!("{n}\n")).collect();
    assert_eq!(running.end().ok(), expected);
    wait_until("another engine in its place", || {
        let now = cluster.engine_pids();
        (now.len() == 2 && now.contains(&before[1]) && !now.contains(&before[0])).then_some(())
    });
    cluster.ok(&["stop"]);
}

#[test]
fn a_killed_controller_is_stale_and_can_be_restarted() {
    let cluster = Cluster::start(1);
    assert_eq!(cluster.ok(&["map", "math:sqrt", "--range", "4..5"]), "2.0\n");
    let engine = cluster.engine_pids()[0];
    cluster.kill_controller_and_supervisor();
    cluster.run(&["status"]).fails(3, &["hint: ", "pcluster start"]);
    // The records can be read meanwhile.
    assert_eq!(cluster.json(&["results"])["maps"].as_array().unwrap().len(), 1);
    cluster.start_again(1, &[]).ok();
    assert_eq!(cluster.ok(&["map", "math:sqrt", "--range", "9..10"]), "3.0\n");
    cluster.ok(&["stop"]);
    wait_for_exit(engine);
}

/// Neither the engines nor `pcluster map` notice that the controller was killed and restarted.
#[test]
fn a_map_survives_its_controller() {
    let cluster = Cluster::start(2);
    cluster.file("sleepy.py", SLEEPY);
    let running = cluster.spawn(&["map", "sleepy.py:sleepy", "--range", "0..20"]);
    wait_until("a task to be done", || {
        let ended = cluster.run(&["results", "1", "--state", "ok", "--jsonl"]);
        (ended.code == Some(0) && !ended.stdout.is_empty()).then_some(())
    });
    let engines = cluster.engine_pids();
    cluster.kill_controller_and_supervisor();
    cluster.start_again(2, &[]).ok();
    let expected: String = (0..20).map(|n| format!("{n}\n")).collect();
    assert_eq!(running.end().ok(), expected);
    assert_eq!(cluster.engine_pids(), engines);
    // Each task was run once.
    let tasks = cluster.json(&["results", "1"]);
    assert!(
        tasks["tasks"].as_array().unwrap().iter().all(|task| task["attempts"] == 1),
        "{tasks:#}"
    );
    cluster.ok(&["stop"]);
}

#[test]
fn a_port_in_use_is_named() {
    let home = Home::new();
    // Sixteen ports, one of them in use.
    let (_taken, first) = (21_000..30_000)
        .step_by(20)
        .find_map(|first| Some((std::net::TcpListener::bind(("127.0.0.1", first + 3)).ok()?, first)))
        .unwrap();
    let ports = format!("controller.ports={first}-{}", first + 15);
    let ended = home.run(&["start", "-n", "1", "--set", &ports]);
    ended.fails(5, &[&format!("127.0.0.1:{}", first + 3), "in use", "hint: "]);
    home.run(&["status"]).fails(3, &["pcluster start"]);
}

#[test]
fn a_terminated_controller_ends_in_order() {
    let cluster = Cluster::start(1);
    let (engine, controller) = (cluster.engine_pids()[0], cluster.controller_pid());
    signal(controller, SIGTERM);
    wait_for_exit(controller);
    assert!(!cluster.profile().join("security/ipcontroller-client.json").exists());
    let ended = cluster.run(&["stop"]);
    assert!(ended.code.is_some(), "{}", ended.transcript());
    let _ = engine;
}

#[test]
fn clusters_of_one_profile_have_ids() {
    let home = Home::new();
    for id in ["a", "b"] {
        home.ok(&["start", "-n", "1", "--cluster-id", id]);
    }
    assert!(home.profile().join("security/ipcontroller-a-client.json").exists());
    assert_eq!(home.ok(&["map", "--cluster-id", "b", "math:sqrt", "--range", "4..5"]), "2.0\n");
    let maps = |id: &str| -> usize {
        let text = home.ok(&["results", "--cluster-id", id, "--json"]);
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        document["maps"].as_array().unwrap().len()
    };
    assert_eq!((maps("a"), maps("b")), (0, 1));
    home.ok(&["stop", "--all"]);
    assert!(!home.profile().join("security/ipcontroller-a-client.json").exists());
}

#[test]
fn a_cluster_for_one_map() {
    let home = Home::new();
    let ended = home.run(&["map", "-v", "-n", "2", "math:sqrt", "--range", "0..3"]);
    let stderr = ended.stderr.clone();
    assert_eq!(ended.ok(), "0.0\n1.0\n1.4142135623730951\n");
    home.run(&["status"]).fails(3, &["no cluster is running"]);
    assert_eq!(home.ok(&["list", "--running", "--json"]).matches("\"profile\"").count(), 0);
    // Its records are those of the profile, which `results` reads.
    assert!(home.ok(&["results", "1"]).contains("ok"), "{stderr}");
}

const WAITING_PYTHON: &str = r#"#!/bin/sh
case "$*" in *"pcluster worker"*) exec sleep 600 ;; esac
exec python3 "$@"
"#;

/// An interrupted command restores the previous state: exactly the running engines are counted.
#[test]
#[expect(clippy::disallowed_methods, reason = "a program must be executable; it holds no secret")]
fn an_interrupted_scale_leaves_the_cluster_as_it_was() {
    let cluster = Cluster::start(2);
    let before = cluster.engine_pids();
    let state = cluster.profile().join("pid/pcluster.json");
    // New engines do not get beyond their start: their Python never answers.
    let python = cluster.file("python-that-waits", WAITING_PYTHON);
    std::fs::set_permissions(&python, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for kind in [SIGINT, SIGTERM, SIGHUP] {
        let logs = cluster.profile().join("log");
        let count = || std::fs::read_dir(&logs).unwrap().count();
        let logs_before = count();
        let scaling = cluster.spawn(&["scale", "10", "--python", python.to_str().unwrap()]);
        // Some of the engines are starting.
        wait_until("a new engine's log", || (count() > logs_before + 2).then_some(()));
        signal(scaling.pid(), kind);
        let ended = scaling.end();
        ended.fails(130, &["interrupted"]);
        assert_eq!(cluster.engine_pids(), before, "after {kind}");
        let list = cluster.json(&["list"]);
        assert_eq!(list["clusters"][0]["engines_started"], 2, "{list:#}");
        let noted: serde_json::Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
        assert_eq!((&noted["n"], noted["engines"].as_array().unwrap().len()), (&2.into(), 1));
    }
    assert_eq!(cluster.ok(&["map", "math:sqrt", "--range", "4..5"]), "2.0\n");
    cluster.ok(&["stop"]);
}

#[test]
fn a_damaged_file_of_a_dead_controller_is_rewritten() {
    let cluster = Cluster::start(1);
    assert_eq!(cluster.ok(&["map", "math:sqrt", "--range", "4..5"]), "2.0\n");
    let engine = cluster.engine_pids()[0];
    cluster.kill_controller_and_supervisor();
    let file = cluster.profile().join("security/ipcontroller-client.json");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[5] = 0;
    std::fs::write(&file, bytes).unwrap();
    let running = cluster.run(&["status"]);
    running.fails(
        3,
        &[
            "is not JSON",
            "no controller is running; engines still running: 1",
            "pcluster start",
        ],
    );
    assert_eq!(cluster.json(&["results"])["maps"].as_array().unwrap().len(), 1);
    let started = cluster.start_again(1, &[]);
    assert!(started.stderr.contains("writing a new one"), "{}", started.transcript());
    started.ok();
    assert_eq!(cluster.engine_pids(), [engine], "it is kept");
    assert_eq!(cluster.ok(&["map", "math:sqrt", "--range", "9..10"]), "3.0\n");
    cluster.ok(&["stop"]);
}

#[test]
fn a_damaged_or_missing_file_of_a_running_controller_is_named_with_what_runs() {
    let cluster = Cluster::start(1);
    let controller = cluster.controller_pid().to_string();
    let file = cluster.profile().join("security/ipcontroller-client.json");
    let aside = file.with_extension("aside");
    std::fs::rename(&file, &aside).unwrap();
    std::fs::write(&file, "{").unwrap();
    let runs = format!("a controller is running (process {controller} on");
    cluster
        .run(&["status"])
        .fails(4, &["is not JSON", &runs, "with 1 engine", "pcluster stop"]);
    std::fs::remove_file(&file).unwrap();
    cluster.run(&["status"]).fails(4, &["connection file is missing", &runs]);
    std::fs::rename(&aside, &file).unwrap();
    let state = cluster.profile().join("pid/pcluster.json");
    let kept = std::fs::read(&state).unwrap();
    std::fs::write(&state, "{").unwrap();
    let status = cluster.run(&["status"]);
    assert_eq!(status.code, Some(0), "{}", status.transcript());
    assert!(status.stderr.contains("cannot read the cluster's state"), "{}", status.transcript());
    std::fs::write(&state, kept).unwrap();
    cluster.ok(&["stop"]);
}
