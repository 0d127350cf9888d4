//! `--pin`: tasks are bound to processors of their node, each to its own.
use super::support::{Cluster, Ended, Home, PCLUSTER, Running, skip};
use serde_json::Value;
use std::collections::BTreeSet;

const WORK: &str = r#"
import os, subprocess, threading, time

def bound(x):
    start = time.time()
    seen = []
    thread = threading.Thread(target=lambda: seen.append(sorted(os.sched_getaffinity(0))))
    thread.start(); thread.join()
    child = subprocess.run(["grep", "Cpus_allowed_list", "/proc/self/status"], capture_output=True, text=True).stdout
    time.sleep(0.2)
    return [start, time.time(), sorted(os.sched_getaffinity(0)), seen[0], child.split()[-1]]
"#;

fn cores_of_this_process() -> BTreeSet<u64> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    (0..nix::sched::CpuSet::count())
        .filter(|core| set.is_set(*core).unwrap())
        .map(|core| core as u64)
        .collect()
}

fn cores(value: &Value) -> BTreeSet<u64> {
    value.as_array().unwrap().iter().map(|core| core.as_u64().unwrap()).collect()
}

fn home() -> Home {
    let home = Home::new();
    home.file("work.py", WORK);
    home
}

fn values(printed: &str) -> Vec<Value> {
    printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// `pcluster start` that is bound to this processor, and so are its engines.
fn start_on(home: &Home, core: u64, options: &[&str]) -> Ended {
    let core = core.to_string();
    let start = ["-c", core.as_str(), PCLUSTER, "start"];
    Running::spawn(home.program("taskset").args(start).args(options), "").end()
}

#[test]
fn pinned_tasks_have_processors_of_their_own() {
    let own = cores_of_this_process();
    if own.len() < 2 {
        return skip("it has one processor");
    }
    let cluster = Cluster::start_in(home(), 2, &[]);
    let pinned = values(&cluster.ok(&["map", "work.py:bound", "--range", "0..6", "--pin"]));
    for value in &pinned {
        let core = cores(&value[2]);
        assert!(core.len() == 1 && core.is_subset(&own), "{value}");
        assert_eq!(value[2], value[3], "threads inherit it");
        assert_eq!(value[4], value[2][0].to_string(), "child processes inherit it");
        let overlaps = |other: &&Value| other[0].as_f64() < value[1].as_f64() && value[0].as_f64() < other[1].as_f64();
        let sharing = pinned.iter().filter(overlaps).filter(|other| other[2] == value[2]);
        assert_eq!(sharing.count(), 1, "two tasks share a processor: {pinned:?}");
    }
    let both = values(&cluster.ok(&["map", "work.py:bound", "--range", "0..2", "--pin", "--cpus", "2"]));
    assert!(both.iter().all(|value| cores(&value[2]).len() == 2), "{both:?}");
    let list = ["--", "sh", "-c", "grep Cpus_allowed_list /proc/self/status # {}"];
    let command = cluster.ok(&[&["map", "--range", "0..1", "--pin"][..], &list].concat());
    let first = own.first().unwrap().to_string();
    assert_eq!(command.split_whitespace().last(), Some(first.as_str()), "{command}");
    let free = values(&cluster.ok(&["map", "work.py:bound", "--range", "0..2"]));
    assert!(free.iter().all(|value| cores(&value[2]) == own), "others keep all: {free:?}");
    let too_many = (own.len() + 1).to_string();
    let setting = format!("engine.resources.cpus={}", own.len() + 4);
    cluster.ok(&["stop"]);
    cluster.start_again(1, &["--set", &setting]).ok();
    let refused = cluster.run(&["map", "work.py:bound", "--range", "0..1", "--pin", "--cpus", &too_many]);
    refused.fails(4, &["no node has", "cpus to pin", &format!(", {} of them to pin", own.len())]);
}

#[test]
fn an_engine_never_leaves_its_own_processors() {
    let own = cores_of_this_process();
    let (Some(last), true) = (own.last(), own.len() >= 2) else {
        return skip("it has one processor");
    };
    let home = home();
    start_on(&home, *last, &["-n", "1"]).ok();
    let cluster = Cluster::running_in(home);
    let pinned = values(&cluster.ok(&["map", "work.py:bound", "--range", "0..2", "--pin"]));
    assert!(pinned.iter().all(|value| cores(&value[2]) == BTreeSet::from([*last])), "{pinned:?}");
}
