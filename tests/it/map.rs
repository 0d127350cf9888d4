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
    // Without braces the input is the last argument.
    assert_eq!(cluster.ok(&["map", "--range", "1..3", "--", "echo", "n"]), "n 1\nn 2\n");
}

#[test]
fn csv_columns_replace_numbered_braces() {
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
        "echo out {}; echo cried {} >&2; exit {}",
    ]);
    assert_eq!(
        ended.fails(1, &["2 of 3", "pcluster results", "pcluster resubmit"]).stdout,
        "out 0\nout 1\nout 2\n"
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
fn reduce_with_a_failed_task_suggests_what_to_do() {
    let arguments = ["map", "work.py:picky", "--range", "1..6", "--reduce", "work.py:add"];
    let ended = cluster().run(&arguments).fails(1, &["1 of 5", "resubmit"]);
    assert_eq!(ended.stdout, "");
    let ended = cluster().run(&[&arguments[..], &["--skip-failed"]].concat());
    assert_eq!(ended.stdout, "12\n", "{}", ended.transcript());
}

#[test]
fn values_that_json_cannot_represent_are_kept_and_reported() {
    let cluster = cluster();
    let values = lines(&cluster.ok(&["map", "--name", "sets", "work.py:a_set", "--range", "5..6"]));
    assert_eq!(values, [json!([5])]);
    let task = &tasks_of(cluster, "sets")[0];
    assert_eq!(
        (&task["value"], &task["exact"], &task["type"]),
        (&json!([5]), &json!(false), &json!("set"))
    );
    assert!(task["pickled"].is_string(), "{task}");
}

/// Through worker, controller, database and command line, once inline and once read from the records.
#[test]
fn values_come_back_exactly() {
    let cluster = cluster();
    let source = "from collections import Counter, OrderedDict, namedtuple\n\
                  P = namedtuple('P', 'x y')\n\
                  V = [None, -0.0, 2**70, 0.1, 'a\\0\\u2028', {'k': [1, {}]}, (1, 2), {10: 1, 20: 2}, {1: 'a', '1': 'b'}, P(1, (2,)),\n\
                  \x20    Counter('abca'), OrderedDict(a=1), True, float('inf'), '\\ud83d\\ude00', 10**5000, b'\\xff' * 3000000, [[(1,)]]]\n\
                  def f(i): return V[i]\n\
                  def both(a, b): return (a if type(a) is list else [a]) + (b if type(b) is list else [b])\n\
                  def check():\n\
                  \x20   import pickle, sys\n\
                  \x20   sys.modules['exact'] = sys.modules[__name__]\n\
                  \x20   found = pickle.load(open(sys.argv[1], 'rb'))\n\
                  \x20   if hasattr(sys, 'set_int_max_str_digits'): sys.set_int_max_str_digits(0)\n\
                  \x20   assert repr(found) == repr(V) and list(map(type, found)) == list(map(type, V)), [r for r in zip(found, V) if repr(r[0]) != repr(r[1])]\n";
    std::fs::write(cluster.path().join("exact.py"), source).unwrap();
    let file = cluster.path().join("exact.pickle");
    let output = file.to_str().unwrap();
    cluster.ok(&["map", "exact.py:f", "--range", "0..18", "--format", "pickle", "-o", output]);
    let python = |code: &str| {
        let python = std::env::var("PCLUSTER_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
        let mut command = std::process::Command::new(python);
        let ran = command.current_dir(cluster.path()).args(["-c", code, output]).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8_lossy(&ran.stdout).into_owned()
    };
    python("import sys, exact; exact.check()");
    // The same out of the records.
    cluster.ok(&["map", "--name", "exact", "exact.py:f", "--range", "0..18", "--no-output"]);
    let map = cluster.json(&["results"])["maps"]
        .as_array()
        .unwrap()
        .iter()
        .rfind(|map| map["name"] == "exact")
        .unwrap()["map"]
        .to_string();
    std::fs::remove_file(&file).unwrap();
    cluster.ok(&["results", &map, "--pickle", "-o", output]);
    python("import sys, exact; exact.check()");
    // The fold of `hist` values adds the returned values, not their JSON rendering.
    let hist = "def hist(n): return {10: 1, 20: 2}\ndef add(a, b): return {k: a.get(k, 0) + b.get(k, 0) for k in (10, 20)}\n";
    std::fs::write(cluster.path().join("hist.py"), hist).unwrap();
    let reduced = cluster.run(&["map", "hist.py:hist", "--range", "0..40", "--reduce", "hist.py:add"]);
    assert_eq!(reduced.stdout, "{\"10\":40,\"20\":80}\n");
    assert!(
        reduced.stderr.contains("note: JSON cannot represent the value exactly"),
        "{}",
        reduced.stderr
    );
    // Of a class that only the map's file has.
    let added = cluster.ok(&["map", "exact.py:f", "--range", "9..10", "--reduce", "operator:add"]);
    assert_eq!(added, "{\"x\":1,\"y\":[2]}\n");
    // The reduced value is available exactly, too.
    let print = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')))";
    let reduce = ["--range", "0..3", "--format", "pickle", "-o", output, "--reduce"];
    let reduced = cluster.run(&[&["map", "hist.py:hist"], &reduce[..], &["hist.py:add"]].concat());
    assert_eq!((reduced.code, reduced.stderr.as_str()), (Some(0), ""));
    assert_eq!(python(print), "{10: 3, 20: 6}\n");
    let pickles = cluster.run(&["map", "hist.py:hist", "--range", "0..3", "--format", "pickle", "-o", output]);
    assert_eq!(
        (pickles.code, pickles.stderr.as_str()),
        (Some(0), ""),
        "nothing that is shown is inexact"
    );
    cluster.ok(&[&["map", "work.py:double"], &reduce[..], &["operator:add"]].concat());
    assert_eq!(python(print), "6\n");
}

#[test]
fn a_reduction_is_checked_first_and_reports_failures() {
    let cluster = cluster();
    let source = "import time\ndef f(n):\n    open('ran-%d' % n, 'w').close()\n    return n\n\
                  def one(a): return a\ndef picky(a, b):\n    if b == 3: raise ValueError('three')\n    return b\n";
    std::fs::write(cluster.path().join("checked.py"), source).unwrap();
    let map = ["map", "--name", "unreduced", "checked.py:f", "--range", "0..3", "--reduce"];
    let ended = cluster.run(&[&map[..], &["checked.py:one"]].concat());
    ended.fails(1, &["nothing was run", "two values", "(a)"]);
    assert!(!cluster.path().join("ran-0").exists());
    let listed = &cluster.json(&["results"])["maps"];
    let of = |map: &&Value| map["name"] == "unreduced";
    let map = listed.as_array().unwrap().iter().find(of).unwrap();
    assert_eq!((&map["state"], &map["aborted"]), (&"failed".into(), &1.into()), "{map}");
    let task = &cluster.json(&["results", &format!("{}.0", map["map"])])["tasks"][0];
    let reason = task["error"]["evalue"].as_str().unwrap();
    assert!(
        reason.contains("cannot use the function of --reduce") && reason.contains("two values"),
        "{reason}"
    );
    let ended = cluster.run(&[
        "map",
        "--name",
        "folded",
        "checked.py:f",
        "--range",
        "0..5",
        "--reduce",
        "checked.py:picky",
    ]);
    let ended = ended.fails(1, &["three", "with the values of tasks"]);
    let failed = ended
        .stderr
        .lines()
        .find_map(|line| line.split("pcluster results").nth(1)?.split_once(" --failed"));
    let map = failed.unwrap().0.split_whitespace().last().unwrap().to_string();
    let task = &cluster.json(&["results", &format!("{map}.0")])["tasks"][0];
    let traceback = task["error"]["traceback"].as_str().unwrap();
    assert!(traceback.contains("Reducing map") && traceback.contains("second: 3"), "{traceback}");
}

#[test]
fn a_poisonous_input_fails_alone() {
    let cluster = cluster();
    let mut lines: Vec<String> = (0..60).map(|i| format!("[{i}]")).collect();
    lines[20] = format!("[{}]", "7".repeat(5000));
    lines[40] = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    std::fs::write(cluster.path().join("poison.jsonl"), lines.join("\n")).unwrap();
    let ended = cluster.run(&["map", "--jsonl", "work.py:double", "poison.jsonl"]);
    let failed: Vec<usize> = ended
        .stdout
        .lines()
        .enumerate()
        .filter(|(_, line)| line.contains("__error__"))
        .map(|(i, _)| i)
        .collect();
    assert!(failed == [20, 40] || failed == [40], "{}", ended.transcript());
    assert_eq!(ended.stdout.lines().count(), 60);
    assert!(ended.stdout.contains("RecursionError") && ended.stdout.contains("the input cannot be decoded"));
}

#[test]
fn output_of_tasks_is_kept() {
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
fn tasks_have_the_given_cwd_and_environment() {
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
fn failed_tasks_are_retried() {
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
fn wait_waits_for_detached_maps() {
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
fn ctrl_c_detaches_and_explains_how_to_return() {
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
    running.wait_for_stderr("press Ctrl-C again to cancel");
    super::support::signal(running.pid(), nix::sys::signal::Signal::SIGINT);
    running.end().fails(130, &[]);
    let number = number_of(cluster, "interrupted twice").to_string();
    cluster.run(&["wait", &number]).fails(1, &[]);
    assert_eq!(tasks_of(cluster, "interrupted twice")[0]["state"], "aborted");
}
