//! `pcluster results`, `resubmit`, `cancel`, `wait`, `purge`: the records of tasks, and operations on them.
use super::map::{number_of, tasks_of};
use super::support::{Cluster, shared, wait_until};
use serde_json::{Value, json};

const FUNCTIONS: &str = r#"
import os
import time


def sleeps(seconds):
    time.sleep(float(seconds))
    return float(seconds)


def odd_ones_fail(x):
    print("looking at", x)
    if x % 2 and not os.path.exists("repaired"):
        raise ValueError("%s is odd" % x)
    return x


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.02)
    return "through"
"#;

fn cluster() -> &'static Cluster {
    let cluster = shared();
    if !cluster.path().join("later.py").exists() {
        cluster.file("later.py", FUNCTIONS);
    }
    cluster
}

fn rows(cluster: &Cluster, arguments: &[&str]) -> Vec<Value> {
    let text = cluster.ok(&[&["results"], arguments, &["--jsonl"]].concat());
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn filters_select_tasks() {
    let cluster = cluster();
    cluster
        .run_reading("0.01\n0.3\n0.02\n", &["map", "--name", "filtered", "later.py:sleeps", "-"])
        .ok();
    let map = number_of(cluster, "filtered").to_string();
    let indexes = |arguments: &[&str]| -> Vec<u64> {
        rows(cluster, &[&[map.as_str()], arguments].concat())
            .iter()
            .map(|row| row["index"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(indexes(&[]), [0, 1, 2]);
    assert_eq!(indexes(&["--where", "duration>=0.25"]), [1]);
    assert_eq!(
        indexes(&["--where", "duration<0.25s"]).len() + indexes(&["--where", "value~0.3"]).len(),
        3
    );
    assert_eq!(indexes(&["--sort", "-duration", "--limit", "1"]), [1]);
    assert_eq!(indexes(&["--offset", "1", "--limit", "1"]), [1]);
    assert_eq!(indexes(&["--state", "error,timeout"]), [0; 0]);
    assert_eq!(indexes(&["--since", "1h", "--state", "ok"]), [0, 1, 2]);
    assert_eq!(indexes(&["--engine", "7"]), [0; 0]);
    assert_eq!(indexes(&["--engine", "0,1"]), [0, 1, 2]);
    let task = rows(cluster, &[&format!("{map}.1")]).remove(0);
    assert_eq!(task["input"], json!(["0.3"]));
    assert_eq!(
        (&task["value"], &task["attempts"], &task["state"]),
        (&json!(0.3), &json!(1), &json!("ok"))
    );
    assert!(
        task["host"].is_string() && task["engine"].is_u64() && task["duration"].as_f64().unwrap() >= 0.3,
        "{task:#}"
    );
}

#[test]
fn csv_and_json_agree() {
    let cluster = cluster();
    cluster.ok(&["map", "--name", "two forms", "math:sqrt", "--range", "0..3"]);
    let map = number_of(cluster, "two forms").to_string();
    let document = cluster.json(&["results", &map]);
    assert!(document["version"].is_u64(), "{document:#}");
    assert_eq!(document["tasks"].as_array().unwrap(), &rows(cluster, &[&map]));
    let text = cluster.ok(&["results", &map, "--csv"]);
    let mut csv = csv::Reader::from_reader(text.as_bytes());
    let column = csv.headers().unwrap().iter().position(|header| header == "state").unwrap();
    let states: Vec<String> = csv.records().map(|record| record.unwrap()[column].to_string()).collect();
    assert_eq!(states, ["ok", "ok", "ok"]);
}

#[test]
fn failed_tasks_are_listed_and_resubmitted() {
    let cluster = cluster();
    cluster
        .run(&["map", "--name", "repair", "later.py:odd_ones_fail", "--range", "0..4"])
        .fails(1, &["2 of 4"]);
    let map = number_of(cluster, "repair").to_string();
    let failed: Vec<Value> = rows(cluster, &[&map, "--failed"]).iter().map(|row| row["task"].clone()).collect();
    assert_eq!(failed, [json!(format!("{map}.1")), json!(format!("{map}.3"))]);
    let shown = cluster.ok(&["results", &format!("{map}.1")]);
    for word in ["ValueError", "1 is odd", "looking at 1", "Traceback", "later.py"] {
        assert!(shown.contains(word), "{word} is not shown:\n{shown}");
    }

    cluster.file("repaired", "");
    cluster.ok(&["resubmit", &map, "--failed"]);
    cluster.ok(&["wait", &map]);
    let tasks = tasks_of(cluster, "repair");
    assert!(tasks.iter().all(|task| task["state"] == "ok"), "{tasks:#?}");
    let attempts: Vec<_> = tasks.iter().map(|task| task["attempts"].as_u64().unwrap()).collect();
    assert_eq!(attempts, [1, 2, 1, 2]);
    // The earlier attempt is kept.
    let shown = cluster.ok(&["results", &format!("{map}.1")]);
    assert!(shown.contains("earlier attempt 1"), "{shown}");

    // One task, that was well.
    cluster.ok(&["resubmit", &format!("{map}.0")]);
    cluster.ok(&["wait", &map]);
    assert_eq!(tasks_of(cluster, "repair")[0]["attempts"], 2);
    assert_eq!(tasks_of(cluster, "repair")[0]["run"], 2);
}

#[test]
fn waiting_and_running_tasks_are_cancelled() {
    let cluster = cluster();
    cluster.ok(&["map", "--name", "cancelled", "later.py:sleeps", "--range", "100..110", "--detach"]);
    let map = number_of(cluster, "cancelled").to_string();
    wait_until("a task to run", || (!rows(cluster, &[&map, "--running"]).is_empty()).then_some(()));
    assert!(!rows(cluster, &[&map, "--pending"]).is_empty());
    cluster.ok(&["cancel", &format!("{map}.9")]);
    wait_until("task 9 to be aborted", || {
        (tasks_of(cluster, "cancelled")[9]["state"] == "aborted").then_some(())
    });
    assert_ne!(tasks_of(cluster, "cancelled")[8]["state"], "aborted");
    cluster.ok(&["cancel", &map]);
    cluster.run(&["wait", &map]).fails(1, &[]);
    assert!(tasks_of(cluster, "cancelled").iter().all(|task| task["state"] == "aborted"));
    // The engines are free again.
    assert_eq!(cluster.ok(&["map", "math:sqrt", "--range", "4..5"]), "2.0\n");
}

#[test]
fn wait_times_out() {
    let cluster = cluster();
    let gate = cluster.path().join("gate");
    cluster
        .run_reading(
            gate.to_str().unwrap(),
            &["map", "--name", "gated", "later.py:wait_for", "-", "--detach"],
        )
        .ok();
    let map = number_of(cluster, "gated").to_string();
    cluster.run(&["wait", &map, "--timeout", "0.2s"]).fails(1, &[]);
    std::fs::write(&gate, "").unwrap();
    cluster.ok(&["wait", &map]);
    assert_eq!(tasks_of(cluster, "gated")[0]["value"], "through");
}

#[test]
fn a_purged_map_is_deleted() {
    let cluster = cluster();
    cluster.ok(&["map", "--name", "purged", "math:sqrt", "--range", "0..3"]);
    let map = number_of(cluster, "purged").to_string();
    // Without a terminal, confirmation must be an option.
    cluster.run(&["purge", &map]).fails(2, &["--yes"]);
    cluster.ok(&["purge", &map, "--yes"]);
    cluster.run(&["results", &map]).fails(3, &[&map]);
}

#[test]
fn the_file_is_readable_with_sqlite() {
    let cluster = cluster();
    cluster.ok(&["map", "--name", "by hand", "math:sqrt", "--range", "9..10"]);
    let map = number_of(cluster, "by hand").to_string();
    let sql = format!(
        "import sqlite3, sys; print(sqlite3.connect('file:' + sys.argv[1] + '?mode=ro', uri=True).execute('select state, value from tasks where map = {map}').fetchall())"
    );
    let file = cluster.profile().join("pcluster.db");
    let output = cluster.program("python3").args(["-c", &sql]).arg(file).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("3.0") && text.contains("ok"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
