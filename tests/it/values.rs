//! Values of any size are exact despite interruptions, and a purge removes all their files.
use super::support::{Cluster, Home, Running, signal, wait_until};
use nix::sys::signal::Signal::SIGKILL;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

const WORK: &str = r#"
import os

def note(x):
    fd = os.open("ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"%d\n" % x)
    os.close(fd)

def text(n):
    note(n)
    return "x%d" % n * (n << 20)

def both(n):
    note(n)
    print("p" * 700_000)
    return {"n": n, "text": text(n)}

def pair(n):
    return (n, bytes(range(256)) * (n << 13))

def join(a, b):
    return (a[0] + b[0], a[1] + b[1])
"#;

const CHECK: &str = "
import pickle, sys
for path in sys.argv[1:]:
    found = pickle.load(open(path, 'rb'))
    assert found == [(n, bytes(range(256)) * (n << 13)) for n in range(4)], path
print('exact')
";

/// Two engines, and a controller that receives messages of up to 2 MiB.
fn narrow() -> Cluster {
    let home = Home::new();
    home.file("work.py", WORK);
    home.file("check.py", CHECK);
    Cluster::start_in(home, 2, &["--set", "controller.max_message_mb=2"])
}

fn files(cluster: &Cluster) -> Vec<PathBuf> {
    let found = fs::read_dir(cluster.profile().join("pcluster.db-outputs"));
    found.into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

fn text(n: usize) -> String {
    format!("x{n}").repeat(n << 20)
}

#[test]
fn values_beyond_the_message_limit_arrive_exactly_and_leave_nothing() {
    let cluster = narrow();
    let printed = cluster.ok(&["map", "work.py:text", "--range", "0..4"]);
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 4);
    for (n, line) in lines.iter().enumerate() {
        assert!(
            **line == serde_json::to_string(&text(n)).unwrap(),
            "value {n} of {} bytes",
            line.len()
        );
    }
    let ledger = fs::read_to_string(cluster.path().join("ledger")).unwrap();
    assert_eq!(ledger.lines().filter(|line| *line == "3").count(), 1, "{ledger}");
    // Shown in bounds, kept whole.
    let shown = cluster.ok(&["results", "1.3"]);
    assert!(shown.contains("JSON of 6.3 MB") && shown.len() < 10_000, "{shown}");
    assert!(cluster.json(&["results", "1.3"])["tasks"][0]["value"] == text(3));

    cluster.ok(&["map", "work.py:pair", "--range", "0..4", "--format", "pickle", "-o", "map.pickle"]);
    cluster.ok(&["results", "2", "--pickle", "-o", "results.pickle"]);
    let python = std::env::var("PCLUSTER_PYTHON").unwrap_or_else(|_| "python3".into());
    let mut check = cluster.program(&python);
    let check = Running::spawn(check.args(["check.py", "map.pickle", "results.pickle"]), "");
    assert_eq!(check.end().ok(), "exact\n");

    assert!(!files(&cluster).is_empty());
    cluster.ok(&["purge", "--yes", "1", "2"]);
    wait_until("no file of a purged value", || files(&cluster).is_empty().then_some(()));
    cluster.ok(&["stop"]);
}

#[test]
fn a_value_is_exact_when_the_controller_is_killed_while_it_travels() {
    let cluster = narrow();
    let map = cluster.spawn(&["map", "work.py:both", "--range", "20..22"]);
    for _ in 0..2 {
        let ends = |end: &str| files(&cluster).iter().any(|path| path.to_string_lossy().ends_with(end));
        wait_until("a part of a value", || ends("-value").then_some(()));
        let controller = cluster.controller_pid();
        signal(controller, SIGKILL);
        wait_until("another controller", || (cluster.controller_pid() != controller).then_some(()));
    }
    let printed = map.end().ok();
    let lines: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    for (n, line) in (20..22).zip(&lines) {
        assert!(line["n"] == n && line["text"] == text(n), "value {n}");
    }
    let ledger = fs::read_to_string(cluster.path().join("ledger")).unwrap();
    assert_eq!(
        ledger.lines().filter(|line| *line == "20").count(),
        2,
        "run once, and noted twice: {ledger}"
    );
    // A cancelled map leaves no more than one that never was.
    let cancelled = cluster.ok(&["map", "--detach", "work.py:text", "--range", "30..40"]);
    cluster.ok(&["cancel", cancelled.trim()]);
    cluster.run(&["wait", cancelled.trim()]);
    cluster.ok(&["purge", "--yes", "1", cancelled.trim()]);
    wait_until("no file of a purged value", || files(&cluster).is_empty().then_some(()));
    cluster.ok(&["stop"]);
}

/// How many rows of the database have this text in an input, and the pickled values' bytes that are in rows.
fn in_database(cluster: &Cluster, sql: &str) -> String {
    let script = "import sqlite3, sys; print(sqlite3.connect('file:%s?mode=ro' % sys.argv[1], uri=True).execute(sys.argv[2]).fetchall())";
    let python = std::env::var("PCLUSTER_PYTHON").unwrap_or_else(|_| "python3".into());
    let mut python = cluster.program(&python);
    let database = cluster.profile().join("pcluster.db");
    Running::spawn(python.args(["-c", script]).arg(database).arg(sql), "").end().ok()
}

#[test]
fn a_reduction_of_large_values_is_exact_and_its_inputs_only_name_them() {
    let cluster = narrow();
    let reduce = ["--format", "pickle", "-o", "reduced.pickle", "--reduce", "work.py:join"];
    // More than fit into one group of values, so that reduced values are reduced again.
    cluster.ok(&[&["map", "work.py:pair", "--range", "0..4"][..], &reduce].concat());
    let check = "import pickle\na = pickle.load(open('reduced.pickle', 'rb'))\n\
                 assert a == (6, bytes(range(256)) * (6 << 13)), a[0]\nprint('exact')";
    let python = std::env::var("PCLUSTER_PYTHON").unwrap_or_else(|_| "python3".into());
    let mut python = cluster.program(&python);
    assert_eq!(Running::spawn(python.args(["-c", check]), "").end().ok(), "exact\n");
    let reductions = cluster.json(&["results"]);
    let map = reductions["maps"].as_array().unwrap().last().unwrap()["map"].to_string();
    let tasks = cluster.json(&["results", &map]);
    let tasks = tasks["tasks"].as_array().unwrap();
    assert!(tasks.len() > 1, "{}", tasks.len());
    assert!(
        tasks[0]["input"].to_string().starts_with("{\"values\":[\"1.0\",\"1.1\""),
        "{}",
        tasks[0]["input"]
    );
    assert_eq!(in_database(&cluster, "SELECT max(length(input)) < 200 FROM task"), "[(1,)]\n");

    // What is run again reads them again; when they are gone, that is its error.
    let task = format!("{map}.0");
    let value = cluster.json(&["results", &task])["tasks"][0]["pickled"].clone();
    cluster.ok(&["resubmit", &task]);
    cluster.ok(&["wait", &map]);
    assert!(cluster.json(&["results", &task])["tasks"][0]["pickled"] == value);
    cluster.ok(&["purge", "--yes", "1"]);
    cluster.ok(&["resubmit", &task]);
    cluster.run(&["wait", &map]);
    let error = cluster.json(&["results", &task])["tasks"][0]["error"].clone();
    assert_eq!(error["ename"], "ValueUnavailable", "{error}");
    assert!(
        error["evalue"]
            .as_str()
            .unwrap()
            .contains("the value of task 1.0 is not on record any more"),
        "{error}"
    );
    cluster.ok(&["stop"]);
}

#[test]
fn a_reduction_goes_on_when_the_controller_is_killed_in_the_middle() {
    let cluster = narrow();
    let source = "import os, time\ndef f(n): return (n,) * 200_000\n\
                  def add(a, b):\n    while not os.path.exists('go'): time.sleep(0.01)\n    return (a[0] + b[0],) * len(a)\n";
    cluster.file("slow.py", source);
    let map = cluster.spawn(&["map", "slow.py:f", "--range", "0..40", "--reduce", "slow.py:add"]);
    for _ in 0..2 {
        wait_until("tasks of the reduction", || {
            let running = cluster.run(&["results", "--running", "--json"]);
            running.stdout.contains("\"3.").then_some(())
        });
        let controller = cluster.controller_pid();
        signal(controller, SIGKILL);
        wait_until("another controller", || (cluster.controller_pid() != controller).then_some(()));
    }
    cluster.file("go", "");
    let reduced = map.end().ok();
    assert!(reduced.starts_with("[780,780,"), "{}", &reduced[..reduced.len().min(200)]);
    cluster.ok(&["stop"]);
}
