//! Elastic clusters: engines come with the work, and go.
use super::support::{Cluster, Home, kill_both, signal, wait_until};
use nix::sys::signal::Signal::SIGKILL;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;

const SLEEPY: &str = "import time\n\n\ndef sleepy(x):\n    time.sleep(0.5)\n    return x\n";
/// Decisions follow each other soon, and little work justifies an engine.
const FAST: [&str; 6] = [
    "--set",
    "elastic.interval=1s",
    "--set",
    "elastic.work_per_engine=1s",
    "--idle",
    "2s",
];

fn start(more: &[&str]) -> Cluster {
    let home = Home::new();
    home.file("sleepy.py", SLEEPY);
    home.run(&[&["start"], &FAST[..], more].concat()).ok();
    Cluster::running_in(home)
}

fn decisions(cluster: &Cluster) -> Vec<(String, String)> {
    let log = cluster.json(&["elastic", "log"]);
    let text = |value: &Value| value.as_str().unwrap().to_string();
    let row = |row: &Value| (text(&row["action"]["action"]), text(&row["reason"]));
    log["decisions"].as_array().unwrap().iter().map(row).collect()
}

#[test]
fn engines_come_with_a_map_and_go_when_they_are_idle() {
    let cluster = start(&["--min", "0", "--max", "2"]);
    assert_eq!(cluster.engine_pids().len(), 0);
    assert!(cluster.ok(&["status"]).contains("0 of 0–2"), "{}", cluster.ok(&["status"]));
    let expected: String = (0..12).map(|n| format!("{n}\n")).collect();
    assert_eq!(cluster.ok(&["map", "sleepy.py:sleepy", "--range", "0..12"]), expected);
    assert_eq!(cluster.engine_pids().len(), 2);
    wait_until("the engines to go", || cluster.engine_pids().is_empty().then_some(()));
    let decisions = decisions(&cluster);
    let actions: Vec<&str> = decisions.iter().map(|(action, _)| action.as_str()).collect();
    assert_eq!(actions.first(), Some(&"submit"), "{decisions:?}");
    assert_eq!(actions.last(), Some(&"retire"), "{decisions:?}");
    assert!(decisions.iter().all(|(_, reason)| !reason.is_empty()), "{decisions:?}");
    cluster.ok(&["stop"]);
}

fn state(cluster: &Cluster) -> Value {
    serde_json::from_slice(&std::fs::read(cluster.profile().join("pid/pcluster.json")).unwrap()).unwrap()
}

fn child_of(parent: u32) -> u32 {
    wait_until(&format!("a child of {parent}"), || {
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        children.split_ascii_whitespace().next()?.parse().ok()
    })
}

fn submitted(cluster: &Cluster) -> usize {
    decisions(cluster).iter().filter(|(action, _)| action == "submit").count()
}

#[test]
fn killed_monitors_and_controllers_lose_and_double_no_engine() {
    let cluster = start(&["--max", "2"]);
    cluster.ok(&["map", "sleepy.py:sleepy", "--range", "0..40", "--detach"]);
    wait_until("the engines to come", || (cluster.engine_pids().len() == 2).then_some(()));
    let engines = cluster.engine_pids();
    let monitor = u32::try_from(state(&cluster)["walltime_monitor"]["process"]["pid"].as_u64().unwrap()).unwrap();
    let controller = cluster.controller_pid();
    signal(child_of(monitor), SIGKILL);
    signal(controller, SIGKILL);
    wait_until("another controller", || {
        let file = std::fs::read(cluster.profile().join("security/ipcontroller-client.json")).ok()?;
        let file: Value = serde_json::from_slice(&file).ok()?;
        (file["pcluster"]["pid"] != controller).then_some(())
    });
    cluster.ok(&["wait", "1"]);
    assert_eq!(submitted(&cluster), 1, "{:?}", decisions(&cluster));
    assert_eq!(cluster.engine_pids(), engines);
    wait_until("the engines to go", || cluster.engine_pids().is_empty().then_some(()));
    wait_until("the record to be empty", || {
        state(&cluster)["engines"].as_array().unwrap().is_empty().then_some(())
    });
    let attempts = cluster.json(&["results", "1"]);
    assert!(
        attempts["tasks"].as_array().unwrap().iter().all(|task| task["state"] == "ok"),
        "{attempts:#}"
    );
    cluster.ok(&["stop"]);
}

#[test]
fn a_paused_cluster_starts_nothing_until_it_is_resumed() {
    let cluster = start(&["--max", "2"]);
    cluster.ok(&["elastic", "pause"]);
    cluster.ok(&["map", "sleepy.py:sleepy", "--range", "0..4", "--detach"]);
    let why = wait_until("a decision about the map", || {
        let text = cluster.ok(&["elastic"]);
        (text.contains("4 ready") && text.contains("paused")).then_some(text)
    });
    assert!(why.contains("why not more: paused"), "{why}");
    let explained = cluster.ok(&["explain", "elastic"]);
    assert!(
        explained.starts_with("why not more: paused") && explained.contains("why not fewer: "),
        "{explained}"
    );
    let line = cluster.json(&["list"])["clusters"][0]["elastic"][0].to_string();
    assert!(line.contains("0 of 0–2 · 4 ready") && line.contains("paused"), "{line}");
    assert_eq!(submitted(&cluster), 0);
    cluster.ok(&["elastic", "set", "--max", "1"]);
    cluster.ok(&["elastic", "resume"]);
    cluster.ok(&["wait", "1"]);
    assert_eq!(cluster.engine_pids().len(), 1);
    cluster.run(&["scale", "2"]).fails(4, &["decided by its work", "elastic set"]);
    cluster
        .run(&["elastic", "set", "--min", "3"])
        .fails(2, &["min (3) is greater than max (1)"]);
    cluster.ok(&["elastic", "off"]);
    cluster.run(&["elastic"]).fails(3, &["fixed number"]);
    cluster.ok(&["scale", "2"]);
    assert_eq!(cluster.engine_pids().len(), 2);
    cluster.ok(&["stop"]);
}

#[test]
fn engines_that_end_at_once_delay_the_next_until_resumed() {
    let home = Home::new();
    home.file("sleepy.py", SLEEPY);
    let broken = home.file("broken.sh", "#!/bin/sh\necho no licence for engines here\nexit 7\n");
    let file = std::fs::File::open(&broken).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o755)).unwrap();
    let command = format!("engine.ipengine={}", broken.display());
    let more = ["start", "--max", "1", "--engine", "ipengine", "--set", &command];
    home.run(&[&more[..], &FAST[..]].concat()).ok();
    let cluster = Cluster::running_in(home);
    cluster.ok(&["map", "sleepy.py:sleepy", "--range", "0..4", "--detach"]);
    let why = wait_until("a delay", || {
        let text = cluster.ok(&["elastic"]);
        text.contains("why not more: the next submission is in").then_some(text)
    });
    assert!(why.contains("no licence for engines here"), "{why}");
    let before = submitted(&cluster);
    cluster.ok(&["elastic", "resume"]);
    wait_until("another start", || (submitted(&cluster) > before).then_some(()));
    cluster.ok(&["stop"]);
}

#[test]
fn a_maximum_is_required_and_excludes_a_fixed_number() {
    let home = Home::new();
    home.run(&["elastic"]).fails(3, &["no cluster is running", "start it"]);
    home.run(&["start", "--min", "1"]).fails(2, &["need --max"]);
    home.run(&["start", "-n", "2", "--max", "4"]).fails(2, &["cannot be used with"]);
    home.run(&["start", "--min", "5", "--max", "4"])
        .fails(2, &["min (5) is greater than max (4)"]);
    home.run(&["start", "--max", "4", "--budget", "5ch"]).fails(2, &["has no walltime"]);
    home.run(&["start", "--max", "4", "--set", "elastic.idle=soon"])
        .fails(2, &["is not a time"]);
}

/// Both the monitor and its supervisor may be killed, one after the other.
#[test]
fn the_monitor_survives_its_supervisor() {
    let cluster = start(&["--min", "1", "--max", "1"]);
    wait_until("an engine", || (cluster.engine_pids().len() == 1).then_some(()));
    let supervisor = u32::try_from(state(&cluster)["walltime_monitor"]["process"]["pid"].as_u64().unwrap()).unwrap();
    let monitor = child_of(supervisor);
    signal(supervisor, SIGKILL);
    let next = super::support::successor_of(supervisor, &[supervisor]);
    signal(monitor, SIGKILL);
    let engine = cluster.engine_pids()[0];
    let of_engine = wait_until("the engine's supervisor", || {
        let pid = state(&cluster)["engines"][0]["processes"][0]["pid"].as_u64()?;
        u32::try_from(pid).ok()
    });
    kill_both(of_engine, engine);
    wait_until("another engine", || {
        cluster.engine_pids().iter().any(|pid| *pid != engine).then_some(())
    });
    let monitor = child_of(next);
    kill_both(next, monitor);
    assert!(cluster.run(&["elastic"]).stderr.contains("was killed; start it"));
    cluster.ok(&["elastic", "set", "--max", "2", "--min", "2"]);
    wait_until("two engines", || (cluster.engine_pids().len() == 2).then_some(()));
    cluster.ok(&["stop"]);
}
