//! Work on engines that are named: apply, exec, run, push, pull, scatter, gather.
use super::support::{Cluster, shared, wait_until};
use serde_json::{Value, json};

#[test]
fn apply_calls_a_function_on_each_engine() {
    let cluster = shared();
    assert_eq!(cluster.ok(&["apply", "math:hypot", "3", "4"]), "[0] 5.0\n[1] 5.0\n");
    assert_eq!(cluster.ok(&["apply", "math:hypot", "3", "4", "--targets", "1"]), "[1] 5.0\n");
    cluster.file(
        "who.py",
        "def greet(name, mark='.'):\n    print('greeting')\n    return name + mark\n",
    );
    let text = cluster.ok(&[
        "apply",
        "who.py:greet",
        "--kwargs",
        "{\"name\": \"you\", \"mark\": \"!\"}",
        "--targets",
        "0",
    ]);
    assert!(text.contains("[0] greeting") && text.contains("you!"), "{text}");
}

#[test]
fn a_command_on_each_engine() {
    let text = shared().ok(&["apply", "--", "sh", "-c", "echo one; echo two"]);
    assert_eq!(text, "[0] one\n[0] two\n[1] one\n[1] two\n");
}

#[test]
fn code_shares_a_namespace_with_push_and_pull() {
    let cluster = shared();
    cluster.ok(&["push", "pushed=[1, 2]", "word=plain"]);
    assert_eq!(cluster.ok(&["pull", "pushed"]), "[0] [1,2]\n[1] [1,2]\n");
    let text = cluster.ok(&["exec", "total = sum(pushed); print(word, total)"]);
    assert_eq!(text, "[0] plain 3\n[1] plain 3\n");
    assert_eq!(cluster.ok(&["exec", "total * 2", "--targets", "1"]), "[1] 6\n");
    let text = cluster.ok(&["pull", "total", "word", "--targets", "0"]);
    let value: Value = serde_json::from_str(text.strip_prefix("[0] ").unwrap()).unwrap();
    assert_eq!(value, json!({"total": 3, "word": "plain"}));
}

#[test]
fn a_script_runs_on_each_engine() {
    let cluster = shared();
    cluster.file(
        "script.py",
        "import os\nscript_ran = 1\nif __name__ == '__main__':\n    print('main on', os.getpid() > 0)\n",
    );
    let text = cluster.ok(&["run", "script.py"]);
    assert_eq!(text, "[0] main on True\n[1] main on True\n");
    assert_eq!(cluster.ok(&["pull", "script_ran", "--targets", "0"]), "[0] 1\n");
}

#[test]
fn lists_are_scattered_and_gathered() {
    let cluster = shared();
    cluster.ok(&["scatter", "part", "[0, 1, 2, 3, 4]"]);
    cluster.ok(&["exec", "squares = [n * n for n in part]"]);
    let gathered: Value = serde_json::from_str(&cluster.ok(&["gather", "squares"])).unwrap();
    assert_eq!(gathered, json!([0, 1, 4, 9, 16]));
}

#[test]
fn an_error_is_shown_with_its_engine() {
    let cluster: &Cluster = shared();
    cluster.ok(&["push", "divisor=0", "--targets", "0"]);
    cluster.ok(&["push", "divisor=2", "--targets", "1"]);
    let ended = cluster.run(&["exec", "6 / divisor"]);
    assert_eq!(ended.code, Some(1), "{}", ended.transcript());
    assert!(ended.stdout.contains("[1] 3.0"), "{}", ended.transcript());
    let output = format!("{}{}", ended.stdout, ended.stderr);
    assert!(output.contains("ZeroDivisionError"), "{}", ended.transcript());
    cluster.run(&["exec", "no_such_name_at_all"]).fails(1, &[]);
    cluster.run(&["pull", "no_such_name_at_all"]).fails(1, &[]);
}

#[test]
fn invalid_engines_and_values_are_rejected() {
    let cluster = shared();
    cluster.run(&["exec", "1", "--targets", "9"]).fails(3, &["9"]);
    cluster.run(&["exec", "1", "--targets", "1-"]).fails(2, &["1-"]);
    cluster.run(&["push", "not a name=1"]).fails(2, &["not a name"]);
    cluster.run(&["scatter", "part", "{}"]).fails(2, &["list"]);
    cluster.run(&["run", "missing.py"]).fails(2, &["missing.py"]);
    let ended = cluster.run(&["exec", "x = = 1"]);
    assert!(
        matches!(ended.code, Some(1 | 2)) && format!("{}{}", ended.stdout, ended.stderr).contains("SyntaxError"),
        "{}",
        ended.transcript()
    );
}

#[test]
fn a_namespace_survives_failing_code() {
    let cluster = shared();
    cluster.ok(&["push", "kept=7"]);
    cluster.run(&["exec", "raise SystemExit(3)"]);
    cluster.run(&["exec", "import sys; sys.exit()"]);
    assert_eq!(cluster.ok(&["pull", "kept"]), "[0] 7\n[1] 7\n");
}

#[test]
fn a_signal_reaches_only_running_tasks() {
    let cluster = Cluster::start(2);
    cluster.ok(&["push", "kept=7"]);
    let begun = cluster.path().join("begun");
    let script = format!("import time\nasleep = 1\nopen({begun:?}, 'w').close()\ntime.sleep(600)\n");
    cluster.file("asleep.py", &script);
    let running = cluster.spawn(&["run", "asleep.py", "--targets", "1"]);
    wait_until("the script runs", || begun.exists().then_some(()));
    // Engine 0 is idle: an interrupt finds nothing there.
    assert_eq!(cluster.run(&["signal", "INT"]).stderr, "SIGINT to 2 engines\n");
    let ended = running.end().fails(1, &["KeyboardInterrupt"]);
    assert!(ended.stderr.contains("[1]"), "{}", ended.transcript());
    // Both have kept their namespaces.
    assert_eq!(cluster.ok(&["pull", "kept"]), "[0] 7\n[1] 7\n");
    cluster
        .run(&["signal", "USR1", "--targets", "0,9"])
        .fails(3, &["no engine 9", "pcluster engines"]);
    cluster.run(&["signal", "HUMBUG"]).fails(2, &["HUMBUG", "kill -l"]);
}
