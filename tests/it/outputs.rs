//! What tasks write and return: every byte of it, or an error that says why not.
use super::support::{Cluster, Home};
use serde_json::Value;

const WORK: &str = r#"
import os, sys

def note(x):
    fd = os.open("ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"%d\n" % x)
    os.close(fd)

def large(n):
    note(n)
    return "x" * (5 << 20) if n == 3 else n

def wordy(n):
    raise ValueError("x" * 5_000_000)

def echo(text):
    return len(text)
"#;

/// Two engines, and a controller that receives messages of up to 2 MiB.
fn narrow() -> Cluster {
    let home = Home::new();
    home.file("work.py", WORK);
    Cluster::start_in(home, 2, &["--set", "controller.most_message_mb=2"])
}

#[test]
fn what_exceeds_the_message_limit_is_an_error_and_not_tried_for_ever() {
    let cluster = narrow();
    let ended = cluster.run(&["map", "work.py:large", "--range", "0..8", "--retries", "0"]);
    let ended = ended.fails(
        1,
        &[
            "task 1.3 failed",
            "ResultTooLarge",
            "controller.most_message_mb",
            "1 of 8 tasks failed",
        ],
    );
    let lines: Vec<&str> = ended.stdout.lines().filter(|line| line.len() == 1).collect();
    assert_eq!(lines, ["0", "1", "2", "4", "5", "6", "7"]);
    let ledger = std::fs::read_to_string(cluster.path().join("ledger")).unwrap();
    assert_eq!(ledger.lines().filter(|line| *line == "3").count(), 1, "{ledger}");
    assert!(cluster.ok(&["logs", "engine"]).contains("task 1.3: the result has"));

    // An error's texts are for reading.
    cluster
        .run(&["map", "work.py:wordy", "--range", "0..1"])
        .fails(1, &["ValueError: xxx"]);
    let task = cluster.json(&["results", "2.0"]);
    let evalue = task["tasks"][0]["error"]["evalue"].as_str().unwrap();
    assert!((1000..1 << 20).contains(&evalue.len()), "{}", evalue.len());
    cluster.ok(&["stop"]);
}

#[test]
fn an_input_that_exceeds_the_message_limit_is_refused_with_the_limit() {
    let cluster = narrow();
    let long = "x".repeat(3 << 20);
    cluster.file("long.txt", &format!("short\n{long}\n"));
    let ended = cluster.run(&["map", "work.py:echo", "long.txt"]);
    ended.fails(2, &["3145", "messages of up to 2097152 bytes", "is cancelled"]);
    let lines = std::iter::repeat_n("y", 20_000).collect::<Vec<_>>().join("\n");
    cluster.file("many.txt", &format!("{lines}\n{long}\n"));
    cluster
        .run(&["map", "work.py:echo", "many.txt"])
        .fails(2, &["an input has 3145", "is cancelled"]);
    let open = cluster.json(&["results", "--pending"]);
    assert_eq!(open["tasks"], Value::Array(Vec::new()));
    cluster.ok(&["stop"]);
}
