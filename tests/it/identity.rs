//! A cluster is recognised and not changed, whatever the clock does and from any namespace. As root, which may
//! make such namespaces.
use super::support::{Cluster, Ended, Home, PCLUSTER, skip};
use std::fs;
use std::path::Path;
use std::process::Command;

/// `unshare` with these arguments, where this process may; the test then returns.
fn may_unshare(arguments: &[&str]) -> bool {
    let tried = Command::new("unshare").args(arguments).arg("true").output();
    if tried.is_ok_and(|tried| tried.status.success()) {
        return true;
    }
    skip("it cannot make namespaces (unshare, as root)");
    false
}

const OTHER_PIDS: [&str; 5] = ["--mount", "--pid", "--fork", "--propagation", "private"];

/// A command in another PID namespace, as in a container that shares files and network.
fn in_container(home: &Home, command: &str) -> Ended {
    let script = format!("mount -t proc proc /proc && exec '{PCLUSTER}' {command}");
    let mut unshare = home.program("unshare");
    unshare.args(OTHER_PIDS).args(["sh", "-c", &script]);
    super::support::Running::spawn(&mut unshare, "").end()
}

fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn a_running_cluster_is_found_and_not_changed_from_another_pid_namespace() {
    if !may_unshare(&OTHER_PIDS) {
        return;
    }
    let cluster = Cluster::start(1);
    let (security, pid) = (cluster.profile().join("security"), cluster.profile().join("pid"));
    let before = (files(&security), files(&pid));
    let listed = in_container(&cluster, "list").ok();
    assert!(listed.contains("running"), "{listed}");
    let cleaned = in_container(&cluster, "clean --force");
    assert!(cleaned.stderr.contains("nothing to clean"), "{}", cleaned.stderr);
    in_container(&cluster, "start -n 1").fails(4, &["is already running"]);
    assert_eq!((files(&security), files(&pid)), before);
    assert_eq!(cluster.ok(&["map", "math:sqrt", "--range", "4..5"]), "2.0\n");

    // It can be stopped from there: the controller is asked.
    let engine = cluster.engine_pids()[0];
    in_container(&cluster, "stop").ok();
    super::support::wait_for_exit(engine);
    assert!(!security.join("ipcontroller-client.json").exists());
}

#[test]
fn an_invisible_silent_cluster_is_neither_cleaned_nor_restarted() {
    if !may_unshare(&OTHER_PIDS) {
        return;
    }
    let cluster = Cluster::start(1);
    // Only outside the namespace is it visible that the controller is dead and its engine is not.
    cluster.kill_controller_and_supervisor();
    let state = fs::read(cluster.profile().join("pid/pcluster.json")).unwrap();
    in_container(&cluster, "start -n 1").fails(4, &["PID namespace", "clean --profile default --force"]);
    in_container(&cluster, "stop").fails(4, &["PID namespace"]);
    let cleaned = in_container(&cluster, "clean");
    assert!(cleaned.stderr.contains("skipped"), "{}", cleaned.stderr);
    assert_eq!(fs::read(cluster.profile().join("pid/pcluster.json")).unwrap(), state);
    cluster.ok(&["stop"]);
}

#[test]
fn a_clock_step_changes_nothing() {
    let arguments = ["--mount", "--propagation", "private"];
    if !may_unshare(&arguments) {
        return;
    }
    let cluster = Cluster::start(1);
    // The kernel shows a step as another time of the boot.
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let stepped: Vec<String> = stat
        .lines()
        .map(|line| match line.strip_prefix("btime ") {
            Some(time) => format!("btime {}", time.trim().parse::<u64>().unwrap() + 3600),
            None => line.to_string(),
        })
        .collect();
    cluster.file("stat", &stepped.join("\n"));
    let later = |command: &str| {
        let script = format!("mount --bind stat /proc/stat && exec '{PCLUSTER}' {command}");
        let mut unshare = cluster.program("unshare");
        unshare.args(arguments).args(["sh", "-c", &script]);
        super::support::Running::spawn(&mut unshare, "").end()
    };
    assert!(later("list").ok().contains("running"));
    assert_eq!(later("map math:sqrt --range 4..5").ok(), "2.0\n");
    later("start -n 1").fails(4, &["is already running"]);
    later("engines add 1").ok();
    assert_eq!(cluster.engine_pids().len(), 2);
    later("stop").ok();
    assert!(!cluster.profile().join("security/ipcontroller-client.json").exists());
}
