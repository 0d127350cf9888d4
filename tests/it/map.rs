//! `pcluster map`: every kind of function, input and output, on a real cluster.
use super::support::{Cluster, Ended, shared};
use serde_json::{Value, json};

const FUNCTIONS: &str = r#"
import os
import sys
import time


def double(x):
    return 2 * int(x)


def describe(*args, **kwargs):
    return [list(args), kwargs]


def slow_first(x):
    time.sleep(0.3 if x == 0 else 0)
    return x


def add(a, b):
    return a + b


def picky(x):
    if int(x) % 3 == 0:
        raise ValueError("no multiples of three: %s" % x)
    return int(x)


def speak(x):
    print("out", x)
    print("err", x, file=sys.stderr)
    return x


def a_set(x):
    return {x}


def nothing(x):
    return None


def where(x):
    return [os.getcwd(), os.environ.get("FLAVOUR")]


def forever(x):
    while True:
        time.sleep(0.05)


def fails_at_first(path):
    with open(path, "a") as f:
        f.write("x")
    if os.path.getsize(path) < 3:
        raise RuntimeError("not yet")
    return os.path.getsize(path)


def dies(x):
    os._exit(3)
"#;

/// A cluster whose working directory has `work.py`.
fn cluster() -> &'static Cluster {
    let cluster = shared();
    if !cluster.path().join("work.py").exists() {
        cluster.file("work.py", FUNCTIONS);
    }
    cluster
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line:?}: {e}")))
        .collect()
}

/// The number of the map that was submitted under this name.
pub fn number_of(cluster: &Cluster, name: &str) -> u64 {
    let maps = cluster.json(&["results"]);
    let maps = maps["maps"].as_array().unwrap();
    let map = maps
        .iter()
        .find(|map| map["name"] == name)
        .unwrap_or_else(|| panic!("there is no map {name} in {maps:#?}"));
    map["map"].as_u64().unwrap()
}

/// The tasks of a map, in order.
pub fn tasks_of(cluster: &Cluster, name: &str) -> Vec<Value> {
    lines(&cluster.ok(&["results", &number_of(cluster, name).to_string(), "--jsonl"]))
}

#[test]
fn a_line_is_one_argument() {
    let cluster = cluster();
    cluster.file("lines.txt", "1\n2\n\n30\n");
    assert_eq!(cluster.ok(&["map", "work.py:double", "lines.txt"]), "2\n4\n60\n");
}

#[test]
fn stdin_is_read_for_a_dash() {
    let ended = cluster().run_reading("7\n8\n", &["map", "work.py:double", "-"]);
    assert_eq!(ended.ok(), "14\n16\n");
}

#[test]
fn json_lines_are_arguments() {
    let cluster = cluster();
    cluster.file("args.jsonl", "[1, \"two\"]\n{\"a\": null}\n\"three\"\n4.5\n");
    let values = lines(&cluster.ok(&["map", "work.py:describe", "args.jsonl", "--jsonl"]));
    assert_eq!(
        values,
        [
            json!([[1, "two"], {}]),
            json!([[], {"a": null}]),
            json!([["three"], {}]),
            json!([[4.5], {}])
        ]
    );
}

#[test]
fn csv_columns_are_arguments() {
    let cluster = cluster();
    cluster.file("args.csv", "a,b\n1,\"x, y\"\n2,z\n");
    let values = lines(&cluster.ok(&["map", "work.py:describe", "args.csv", "--csv", "--header"]));
    assert_eq!(values, [json!([[], {"a": "1", "b": "x, y"}]), json!([[], {"a": "2", "b": "z"}])]);
    let values = lines(&cluster.ok(&["map", "work.py:describe", "args.csv", "--csv"]));
    assert_eq!(values[0], json!([["a", "b"], {}]));
}

#[test]
fn ranges_are_numbers_and_results_come_in_input_order() {
    let values = lines(&cluster().ok(&["map", "work.py:slow_first", "--range", "0..30"]));
    assert_eq!(values, (0..30).map(Value::from).collect::<Vec<_>>());
}

#[test]
fn globs_are_paths_in_order() {
    let cluster = cluster();
    for name in ["globbed/b.dat", "globbed/a.dat", "globbed/c.txt"] {
        cluster.file(name, "");
    }
    let values = lines(&cluster.ok(&["map", "os.path:basename", "--glob", "globbed/*.dat"]));
    assert_eq!(values, ["a.dat", "b.dat"]);
}

#[test]
fn a_module_is_imported_on_the_engines() {
    let values = lines(&cluster().ok(&["map", "math:sqrt", "--range", "0..=9..3"]));
    assert_eq!(values[3], json!(3.0));
}

#[test]
fn a_command_runs_for_each_input() {
    let cluster = cluster();
    cluster.file("words.txt", "one\ntwo words\n$HOME\n");
    assert_eq!(
        cluster.ok(&["map", "words.txt", "--", "echo", "<{}>"]),
        "<one>\n<two words>\n<$HOME>\n"
    );
    // Without braces the input comes last.
    assert_eq!(cluster.ok(&["map", "--range", "1..3", "--", "echo", "n"]), "n 1\nn 2\n");
}

#[test]
fn columns_of_csv_stand_for_numbered_braces() {
    let cluster = cluster();
    cluster.file("columns.csv", "a,b\nc,d\n");
    assert_eq!(cluster.ok(&["map", "columns.csv", "--csv", "--", "echo", "{2}-{1}"]), "b-a\nd-c\n");
}

#[test]
fn a_failing_command_keeps_its_exit_code_and_output() {
    let cluster = cluster();
    let ended = cluster.run(&[
        "map",
        "--name",
        "exits",
        "--range",
        "0..3",
        "--",
        "sh",
        "-c",
        "echo said {}; echo cried {} >&2; exit {}",
    ]);
    assert_eq!(
        ended.fails(1, &["2 of 3", "pcluster results", "pcluster resubmit"]).stdout,
        "said 0\nsaid 1\nsaid 2\n"
    );
    let tasks = tasks_of(cluster, "exits");
    let codes: Vec<_> = tasks.iter().map(|task| task["exit_code"].as_i64().unwrap()).collect();
    assert_eq!(codes, [0, 1, 2]);
    assert_eq!(tasks[2]["state"], "error");
    assert_eq!(tasks[2]["stderr"], "cried 2\n");
}

#[test]
fn one_failing_input_does_not_stop_the_others() {
    let cluster = cluster();
    let ended = cluster.run(&["map", "--name", "picky", "work.py:picky", "--range", "0..6"]);
    let ended = ended.fails(1, &["2 of 6", "--failed", "pcluster resubmit"]);
    let values = lines(&ended.stdout);
    assert_eq!(values.len(), 6);
    assert!(
        values[0]["__error__"].to_string().contains("no multiples of three: 0"),
        "{}",
        values[0]
    );
    assert_eq!(values[1], 1);
    let failed = &tasks_of(cluster, "picky")[3];
    assert_eq!(failed["error"]["ename"], "ValueError");
    let traceback = failed["error"]["traceback"].as_str().unwrap();
    assert!(traceback.contains("work.py") && traceback.contains("in picky"), "{traceback}");
}

#[test]
fn reduce_folds_the_values() {
    assert_eq!(
        cluster().ok(&["map", "work.py:double", "--range", "1..11", "--reduce", "work.py:add"]),
        "110\n"
    );
    assert_eq!(
        cluster().ok(&["map", "work.py:double", "--range", "1..11", "--reduce", "operator:add"]),
        "110\n"
    );
}

#[test]
fn reduce_with_a_failed_task_says_what_to_do() {
    let arguments = ["map", "work.py:picky", "--range", "1..6", "--reduce", "work.py:add"];
    let ended = cluster().run(&arguments).fails(1, &["1 of 5", "resubmit"]);
    assert_eq!(ended.stdout, "");
    let ended = cluster().run(&[&arguments[..], &["--skip-failed"]].concat());
    assert_eq!(ended.stdout, "12\n", "{}", ended.story());
}

#[test]
fn what_json_cannot_hold_is_kept_and_said_so() {
    let cluster = cluster();
    let values = lines(&cluster.ok(&["map", "--name", "sets", "work.py:a_set", "--range", "5..6"]));
    assert_eq!(values[0]["repr"], "{5}");
    assert!(values[0]["__pickled__"].is_string(), "{}", values[0]);
    assert_eq!(tasks_of(cluster, "sets")[0]["repr"], "{5}");
}

#[test]
fn what_tasks_print_is_kept() {
    let cluster = cluster();
    assert_eq!(
        cluster.ok(&["map", "--name", "speak", "work.py:speak", "--range", "0..2"]),
        "0\n1\n"
    );
    let tasks = tasks_of(cluster, "speak");
    assert_eq!((&tasks[1]["stdout"], &tasks[1]["stderr"]), (&json!("out 1\n"), &json!("err 1\n")));
}

#[test]
fn output_goes_to_a_file_or_nowhere() {
    let cluster = cluster();
    assert_eq!(
        cluster.ok(&["map", "work.py:double", "--range", "0..3", "--output", "out.jsonl"]),
        ""
    );
    assert_eq!(std::fs::read_to_string(cluster.path().join("out.jsonl")).unwrap(), "0\n2\n4\n");
    assert_eq!(
        cluster.ok(&["map", "--name", "quiet", "work.py:double", "--range", "0..3", "--no-output"]),
        ""
    );
    assert_eq!(tasks_of(cluster, "quiet")[2]["value"], 4);
}

#[test]
fn values_as_csv() {
    let text = cluster().ok(&["map", "work.py:describe", "--range", "0..2", "--format", "csv"]);
    assert!(text.lines().count() >= 2, "{text}");
}

#[test]
fn an_input_of_null_and_a_value_of_null_are_values() {
    assert_eq!(
        cluster().run_reading("null\n", &["map", "work.py:nothing", "-", "--jsonl"]).ok(),
        "null\n"
    );
}

#[test]
fn cwd_and_environment_reach_the_task() {
    let values = lines(&cluster().ok(&["map", "work.py:where", "--range", "0..1", "--cwd", "/usr", "--env", "FLAVOUR=mint"]));
    assert_eq!(values, [json!(["/usr", "mint"])]);
    // ... and leave the worker as it was.
    assert_eq!(
        lines(&cluster().ok(&["map", "work.py:where", "--range", "0..1"]))[0][1],
        Value::Null
    );
}

#[test]
fn a_timeout_ends_a_task() {
    let cluster = cluster();
    cluster
        .run(&["map", "--name", "late", "work.py:forever", "--range", "0..1", "--timeout", "0.3s"])
        .fails(1, &["1 of 1"]);
    assert_eq!(tasks_of(cluster, "late")[0]["state"], "timeout");
    // A command that does not listen to the first signals, either.
    let command = ["map", "--name", "stubborn", "--range", "0..1", "--timeout", "0.3s", "--"];
    let shell = ["sh", "-c", "trap '' INT; while :; do sleep 0.05; done"];
    cluster.run(&[&command[..], &shell[..]].concat()).fails(1, &["1 of 1"]);
    assert_eq!(tasks_of(cluster, "stubborn")[0]["state"], "timeout");
}

#[test]
fn retries_give_a_task_more_chances() {
    let cluster = cluster();
    let marks = cluster.path().join("marks");
    let mark = marks.to_str().unwrap();
    assert_eq!(
        cluster
            .run_reading(mark, &["map", "--name", "again", "work.py:fails_at_first", "-", "--retries", "2"])
            .ok(),
        "3\n"
    );
    assert_eq!(tasks_of(cluster, "again")[0]["attempts"], 3);
}

#[test]
fn a_worker_that_dies_is_a_crash_of_that_task_alone() {
    let cluster = cluster();
    let ended = cluster.run(&["map", "--name", "dies", "work.py:dies", "--range", "0..1", "--max-crashes", "1"]);
    ended.fails(1, &["1 of 1"]);
    let task = &tasks_of(cluster, "dies")[0];
    assert_eq!((&task["state"], &task["attempts"]), (&json!("lost"), &json!(2)), "{task:#}");
    assert_eq!(cluster.ok(&["map", "work.py:double", "--range", "0..4"]), "0\n2\n4\n6\n");
}

#[test]
fn detached_maps_are_waited_for() {
    let cluster = cluster();
    let text = cluster.ok(&["map", "--name", "away", "work.py:double", "--range", "0..5", "--detach"]);
    let number = number_of(cluster, "away").to_string();
    assert!(text.contains(&number), "{text}");
    cluster.ok(&["wait", &number]);
    assert_eq!(tasks_of(cluster, "away").iter().filter(|task| task["state"] == "ok").count(), 5);
}

#[test]
fn a_map_after_another_waits_for_it() {
    let cluster = cluster();
    let slow = ["map", "--name", "first", "work.py:slow_first", "--range", "0..3", "--detach"];
    cluster.ok(&slow);
    let first = number_of(cluster, "first").to_string();
    assert_eq!(cluster.ok(&["map", "--after", &first, "work.py:double", "--range", "1..2"]), "2\n");
    assert!(tasks_of(cluster, "first").iter().all(|task| task["state"] == "ok"));
}

#[test]
fn labels_and_names_are_shown() {
    let cluster = cluster();
    cluster.ok(&["map", "--name", "named", "--label", "night", "work.py:double", "--range", "0..1"]);
    let maps = cluster.json(&["results", "--label", "night"]);
    assert_eq!(maps["maps"].as_array().unwrap().len(), 1, "{maps:#}");
    assert_eq!(maps["maps"][0]["name"], "named");
}

#[test]
fn ten_thousand_inputs_each_end_once() {
    let values = lines(&cluster().ok(&["map", "work.py:double", "--range", "0..10000"]));
    assert_eq!(values, (0..10_000).map(|n| Value::from(2 * n)).collect::<Vec<_>>());
}

#[test]
fn ctrl_c_detaches_and_says_how_to_come_back() {
    let cluster = cluster();
    let running = cluster.spawn(&["map", "--name", "interrupted", "work.py:forever", "--range", "0..1"]);
    let number = super::support::wait_until("the map to run", || {
        let maps = cluster.json(&["results", "--running"]);
        let tasks = maps["tasks"].as_array()?;
        tasks
            .iter()
            .find(|task| task["input"] == json!([0]) && task["state"] == "running")?;
        Some(number_of(cluster, "interrupted").to_string())
    });
    super::support::signal(running.pid(), nix::sys::signal::Signal::SIGINT);
    let ended: Ended = running.end();
    ended.fails(130, &["pcluster wait", &number]);
    cluster.ok(&["cancel", &number]);
    cluster.run(&["wait", &number]);
    assert_eq!(tasks_of(cluster, "interrupted")[0]["state"], "aborted");
}

#[test]
fn a_second_ctrl_c_cancels() {
    let cluster = cluster();
    let running = cluster.spawn(&["map", "--name", "interrupted twice", "work.py:forever", "--range", "0..1"]);
    super::support::wait_until("the map to run", || {
        let maps = cluster.json(&["results"]);
        let maps = maps["maps"].as_array()?;
        maps.iter()
            .find(|map| map["name"] == "interrupted twice" && map["state"] == "running")
            .map(|_| ())
    });
    super::support::signal(running.pid(), nix::sys::signal::Signal::SIGINT);
    running.wait_to_hear("Ctrl-C again cancels");
    super::support::signal(running.pid(), nix::sys::signal::Signal::SIGINT);
    running.end().fails(130, &[]);
    let number = number_of(cluster, "interrupted twice").to_string();
    cluster.run(&["wait", &number]).fails(1, &[]);
    assert_eq!(tasks_of(cluster, "interrupted twice")[0]["state"], "aborted");
}
