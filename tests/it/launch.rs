//! Failing starts: their messages, and that they are rolled back.
use super::support::{Cluster, Home, PCLUSTER, Running, kill_both, signal, wait_for_exit, wait_until};
use nix::sys::signal::Signal::SIGINT;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;

/// A program in place of an engine.
fn pretender(home: &Home, script: &str) -> String {
    let path = home.file("pretender", &format!("#!/bin/sh\n{script}\n"));
    let file = std::fs::File::open(&path).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("engine.ipengine={}", path.display())
}

fn state(home: &Home) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(home.profile().join("pid/pcluster.json")).ok()?).ok()
}

fn pids(launched: &Value) -> Vec<u32> {
    let processes = launched["processes"].as_array().unwrap();
    processes.iter().map(|process| process["pid"].as_u64().unwrap() as u32).collect()
}

/// No file that would make a cluster of it.
fn nothing_is_left(home: &Home) {
    for dir in ["pid", "security"] {
        let left: Vec<_> = std::fs::read_dir(home.profile().join(dir)).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn engines_that_exit_at_once_fail_the_start_with_their_log() {
    let home = Home::new();
    let engine = pretender(&home, "echo 'no licence for this host' >&2; exit 3");
    let ended = home.run(&["start", "-n", "2", "--engine", "ipengine", "--set", &engine]);
    ended.fails(
        5,
        &[
            "engines exited before they registered (exit code 3)",
            "| no licence for this host",
            "engine-",
        ],
    );
    nothing_is_left(&home);
    home.run(&["stop"]).fails(3, &["no cluster is running", "hint: "]);
}

#[test]
fn waiting_for_engines_times_out() {
    let home = Home::new();
    let engine = pretender(&home, "echo $$; exec sleep 1000");
    let ended = home.run(&["start", "-n", "1", "--engine", "ipengine", "--set", &engine, "--timeout", "1s"]);
    ended.fails(5, &["0 of 1 engines registered within 1 s", "hint: "]);
    let log = std::fs::read_to_string(home.profile().join("log/engine-0.log")).unwrap();
    wait_for_exit(log.trim().parse().unwrap());
    nothing_is_left(&home);
}

#[test]
fn an_interrupted_start_stops_what_it_started() {
    let home = Home::new();
    let engine = pretender(&home, "exec sleep 1000");
    let start = home.spawn(&["start", "-n", "2", "--engine", "ipengine", "--set", &engine]);
    let state = wait_until("engines on record", || {
        state(&home).filter(|s| s["engines"].as_array().is_some_and(|e| !e.is_empty()))
    });
    signal(start.pid(), SIGINT);
    start.end().fails(130, &["interrupted"]);
    for pid in pids(&state["controller"]).into_iter().chain(pids(&state["engines"][0])) {
        wait_for_exit(pid);
    }
    nothing_is_left(&home);
}

#[test]
fn after_a_crash_running_engines_are_kept_and_missing_ones_started() {
    let home = Cluster::start(2);
    let processes = home.engine_pids();
    // Engine ids may differ from the order of starting.
    let supervisor = |engine: u32| parent_of(engine);
    let (lost, kept) = (supervisor(processes[0]), supervisor(processes[1]));
    assert!(home.supervisors().contains(&lost) && home.supervisors().contains(&kept));
    home.kill_controller_and_supervisor();
    // With its supervisor, or there would be another one.
    kill_both(lost, processes[0]);
    home.ok(&["start", "-n", "2"]);
    let engines = home.supervisors()[1..].to_vec();
    assert_eq!(engines.len(), 2);
    assert_eq!(engines[0], kept, "the one that ran is kept");
    assert!(home.engine_pids().contains(&processes[1]));
    home.ok(&["stop"]);
    engines.into_iter().for_each(wait_for_exit);
    nothing_is_left(&home);
}

fn parent_of(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    line.trim().parse().unwrap()
}

/// The controller's process, once it serves.
fn serving(home: &Home) -> u32 {
    let file = home.profile().join("security/ipcontroller-client.json");
    wait_until("a controller that serves", || {
        let keys: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).ok()?).ok()?;
        u32::try_from(keys["pcluster"]["pid"].as_u64()?).ok()
    })
}

/// A controller and an engine in the foreground, each from this command line; they do their work and end in order.
fn serves_with(controller: impl Fn(&Home) -> Running, engine: impl Fn(&Home) -> Running) {
    let home = Home::new();
    let controller = controller(&home);
    assert_eq!(serving(&home), controller.pid());
    let engine = engine(&home);
    let cluster = Cluster::running_in(home);
    wait_until("the engine", || (cluster.engine_pids() == [engine.pid()]).then_some(()));
    assert_eq!(cluster.ok(&["map", "math:sqrt", "--range", "4..5"]), "2.0\n");
    // Something that both log.
    cluster.run(&["map", "os:_exit", "--range", "0..1", "--max-crashes", "0"]);
    for pid in [controller.pid(), engine.pid()] {
        assert!(
            std::fs::metadata(format!("/proc/{pid}/fd/2")).is_ok(),
            "descriptor 2 is never a file of its own"
        );
    }
    let database = cluster.profile().join("pcluster.db");
    cluster.ok(&["stop"]);
    controller.end().ok();
    engine.end().ok();
    let head = std::fs::read(database).unwrap();
    assert!(head.starts_with(b"SQLite format 3\0"));
}

#[test]
fn an_empty_argument_is_none() {
    // As `ipcluster start … ""` starts them.
    serves_with(|home| home.spawn(&["controller", ""]), |home| home.spawn(&["engine", ""]));
    serves_with(
        |home| home.spawn(&["controller", "", "--quiet", ""]),
        |home| home.spawn(&["engine", "--quiet", ""]),
    );
}

/// `pcluster … 2>&-`
fn without_stderr(home: &Home, arguments: &[&str]) -> Running {
    let mut shell = home.program("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" 2>&-", PCLUSTER]).args(arguments);
    Running::spawn(&mut shell, "")
}

#[test]
fn a_closed_stderr_stops_nothing() {
    serves_with(
        |home| without_stderr(home, &["controller"]),
        |home| without_stderr(home, &["engine"]),
    );
    let home = Home::new();
    without_stderr(&home, &["start", "-n", "2"]).end().ok();
    let cluster = Cluster::running_in(home);
    assert_eq!(cluster.engine_pids().len(), 2);
    assert_eq!(
        without_stderr(&cluster, &["map", "math:sqrt", "--range", "0..2"]).end().ok(),
        "0.0\n1.0\n"
    );
    // An error has nowhere to go but its code.
    assert_eq!(
        without_stderr(&cluster, &["map", "os:_exit", "--range", "0..1", "--max-crashes", "0"])
            .end()
            .code,
        Some(1)
    );
    without_stderr(&cluster, &["stop"]).end().ok();
    without_stderr(&cluster, &["status"]).end().fails(3, &[]);
}
