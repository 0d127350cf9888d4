//! Tasks get the processors, memory, GPUs and other resources that they ask for, and never more than their node has.
use super::support::{Cluster, Home, signal, wait_until};
use nix::sys::signal::Signal::SIGKILL;
use serde_json::Value;
use std::collections::HashMap;
use std::fs;

const WORK: &str = r#"
import os, time

def hold(x):
    start = time.time()
    time.sleep(0.2)
    names = ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS", "MKL_NUM_THREADS"]
    return [start, time.time(), os.getpid()] + [os.environ.get(name) for name in names]

def wait(x):
    open("started-%d" % x, "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    return os.environ["CUDA_VISIBLE_DEVICES"]
"#;

/// Four engines on a node with 4 processors, 2 GPUs, and one licence.
fn cluster() -> Cluster {
    let home = Home::new();
    home.file("work.py", WORK);
    let resources = ["cpus=4", "gpus=[GPU-a, MIG-b]", "licence=1", "mem=8G"];
    Cluster::start_in(home, 4, &resources.map(|resource| ["--resource", resource]).concat())
}

/// Runs `hold` and returns its values.
fn held(cluster: &Cluster, options: &[&str]) -> Vec<Vec<Value>> {
    let printed = cluster.ok(&[&["map", "work.py:hold", "--range", "0..8"], options].concat());
    printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The maximum number of values that overlap in time, for each word at this position.
fn overlap(values: &[Vec<Value>], position: usize) -> HashMap<String, usize> {
    let mut most = HashMap::new();
    for value in values {
        let start = value[0].as_f64().unwrap();
        let same = values.iter().filter(|other| other[position] == value[position]);
        let at_once = same
            .filter(|other| other[0].as_f64().unwrap() <= start && start < other[1].as_f64().unwrap())
            .count();
        let entry = most.entry(value[position].to_string()).or_default();
        *entry = at_once.max(*entry);
    }
    most
}

#[test]
fn a_gpu_belongs_to_one_task_or_to_those_that_share_it() {
    let cluster = cluster();
    let whole = held(&cluster, &["--gpus", "1"]);
    assert_eq!(whole.len(), 8);
    let gpus = overlap(&whole, 3);
    assert!(gpus.len() == 2 && gpus.values().all(|at_once| *at_once == 1), "{gpus:?}");
    assert!(gpus.contains_key("\"GPU-a\"") && gpus.contains_key("\"MIG-b\""), "{gpus:?}");
    assert!(whole.iter().all(|value| value[4] == "PCI_BUS_ID" && value[5] == "1"), "{whole:?}");
    // A process never sees two sets of GPUs.
    let mut of_process: HashMap<String, Value> = HashMap::new();
    for value in &whole {
        let first = of_process.entry(value[2].to_string()).or_insert_with(|| value[3].clone());
        assert_eq!(*first, value[3]);
    }
    let shared = overlap(&held(&cluster, &["--gpus", "0.5"]), 3);
    assert!(shared.values().all(|at_once| *at_once <= 2), "{shared:?}");
    let both = held(&cluster, &["--gpus", "2"]);
    assert!(both.iter().all(|value| value[3] == "GPU-a,MIG-b"), "{both:?}");
    assert_eq!(overlap(&both, 3).values().max(), Some(&1));
    let none = held(&cluster, &[]);
    // Four engines share four processors.
    assert!(none.iter().all(|value| value[3].is_null() && value[5] == "1"), "{none:?}");
    let own = held(&cluster, &["--env", "OMP_NUM_THREADS=7"]);
    assert!(own.iter().all(|value| value[5] == "7" && value[6] == "1"), "{own:?}");
}

#[test]
fn processors_memory_and_named_resources_limit_how_many_run_at_once() {
    let cluster = cluster();
    for (options, most, threads) in [
        (&["--cpus", "2", "--env", "MKL_NUM_THREADS=7"][..], 2, "2"),
        (&["--cpus", "3"], 1, "3"),
        (&["--mem", "4G"], 2, "1"),
        (&["--need", "licence=1"], 1, "1"),
    ] {
        let values = held(&cluster, options);
        let at_once = overlap(&values, 3);
        assert!(
            values.len() == 8 && at_once.values().all(|at_once| *at_once <= most),
            "{options:?}: {at_once:?}"
        );
        assert!(values.iter().all(|value| value[5] == threads), "{options:?}: {values:?}");
        if options.contains(&"--env") {
            assert!(values.iter().all(|value| value[6] == "7"), "what the user set stays: {values:?}");
        }
    }
    let printed = cluster.ok(&[
        "map",
        "--range",
        "0..2",
        "--gpus",
        "1",
        "--",
        "sh",
        "-c",
        "echo $CUDA_VISIBLE_DEVICES {}",
    ]);
    let first: Vec<&str> = printed.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert!(first.iter().all(|gpu| ["GPU-a", "MIG-b"].contains(gpu)), "{printed}");
}

#[test]
fn more_than_any_node_has_is_refused_and_why_a_map_waits_is_shown() {
    let cluster = cluster();
    for (options, what) in [
        (["--gpus", "3"], "3 gpus"),
        (["--cpus", "5"], "5 cpus"),
        (["--mem", "9G"], "9G"),
        (["--need", "hammer=1"], "1 hammer"),
    ] {
        let twice = [
            "map",
            "work.py:hold",
            "--range",
            "0..2",
            "--need",
            "licence=1",
            "--need",
            "licence=2",
        ];
        cluster.run(&twice).fails(2, &["--need licence", "twice"]);
        let refused = cluster.run(&[&["map", "work.py:hold", "--range", "0..2"], &options[..]].concat());
        assert!(!refused.stderr.contains("ResourcesUnavailable"), "{}", refused.stderr);
        assert_eq!(
            refused.stderr.contains("--resource hammer=N"),
            what == "1 hammer",
            "{}",
            refused.stderr
        );
        refused.fails(4, &["no node has", what, "4 cpus, 8G, 2 gpus, 1 licence", "--wait-for-resources"]);
    }
    for bad in [
        ["--gpus", "1.5"],
        ["--cpus", "0"],
        ["--cpus", "1.5"],
        ["--mem", "500"],
        ["--need", "licence"],
        ["--gpus", "many"],
    ] {
        cluster
            .run(&[&["map", "work.py:hold", "--range", "0..2"], &bad[..]].concat())
            .fails(2, &[bad[0]]);
    }
    for command in [&["exec", "1"][..], &["apply", "os:getpid"], &["run", "work.py"]] {
        for bad in [["--mem", "500"], ["--cpus", "0"], ["--gpus", "1.5"], ["--need", "licence=0"]] {
            cluster.run(&[command, &bad[..]].concat()).fails(2, &[bad[0]]);
        }
        let refused = cluster.run(&[command, &["--gpus", "3"]].concat());
        refused.fails(4, &["engine 0 is on", "2 gpus", "too little for 1 cpu, 3 gpus"]);
    }

    cluster.ok(&[
        "map",
        "work.py:hold",
        "--range",
        "0..1",
        "--gpus",
        "3",
        "--wait-for-resources",
        "--detach",
    ]);
    let status = cluster.run(&["status"]).stderr;
    assert!(
        status.contains("waits: 0 of 4 engines can take it now: 4 have at most 2 gpus and it asks for 3"),
        "{status}"
    );
    cluster.ok(&["cancel", "1"]);
}

#[test]
fn a_node_keeps_its_gpus_for_their_tasks_when_the_controller_is_killed() {
    let cluster = cluster();
    cluster.ok(&["map", "work.py:wait", "--range", "0..2", "--gpus", "1", "--detach"]);
    let started = |n: u32| cluster.path().join(format!("started-{n}")).exists();
    wait_until("both tasks run", || (started(0) && started(1)).then_some(()));
    signal(cluster.controller_pid(), SIGKILL);
    let third = ["map", "work.py:wait", "--range", "2..3", "--gpus", "1", "--detach"];
    // A client reports a controller whose process is gone at once.
    wait_until("the next controller accepts a map", || {
        (cluster.run(&third).code == Some(0)).then_some(())
    });
    let used = || (cluster.json(&["engines"])["nodes"][0]["used"]["gpus"] == 2.0).then_some(());
    wait_until("the engines have reported their GPUs", used);
    assert!(!started(2), "a third task has started on two GPUs");
    fs::write(cluster.path().join("go"), "").unwrap();
    cluster.ok(&["wait", "1", "2"]);
    let rows = cluster.json(&["results", "1"])["tasks"].clone();
    let gpu = |task: &str| rows.as_array().unwrap().iter().find(|row| row["task"] == task).unwrap()["value"].clone();
    assert_ne!(gpu("1.0"), gpu("1.1"));
    let used = cluster.json(&["engines"])["nodes"][0]["used"].clone();
    assert_eq!(
        (&used["gpus"], &used["cpus"]),
        (&Value::from(0.0), &Value::from(0)),
        "nothing is in use at the end"
    );
}

#[test]
fn priorities_order_maps_and_can_be_changed() {
    let home = Home::new();
    home.file("work.py", WORK);
    let cluster = Cluster::start_in(home, 1, &[]);
    // An engine holds two tasks whose time is unknown.
    cluster.ok(&[
        "map",
        "--range",
        "0..2",
        "--detach",
        "--",
        "sh",
        "-c",
        "until [ -e go ]; do sleep 0.01; done",
    ]);
    let note = |name: &str| ["--detach", "--range", "0..1", "--", "sh", "-c", &format!("echo {name} >> order")].map(String::from);
    for (name, priority) in [("low", "-1"), ("later", "0"), ("raised", "0"), ("high", "3")] {
        let words = note(name);
        let mut arguments = vec!["map", "--priority", priority];
        arguments.extend(words.iter().map(String::as_str));
        cluster.ok(&arguments);
    }
    cluster.ok(&["priority", "4", "2"]);
    fs::write(cluster.path().join("go"), "").unwrap();
    cluster.ok(&["wait", "1-5"]);
    let order = fs::read_to_string(cluster.path().join("order")).unwrap();
    assert_eq!(order.split_whitespace().collect::<Vec<_>>(), ["high", "raised", "later", "low"]);
    cluster.run(&["priority", "4", "1"]).fails(4, &["map 4 has finished"]);
    cluster.run(&["priority", "99", "1"]).fails(3, &["99"]);
    cluster.run(&["priority", "4", "much"]).fails(2, &["much"]);
    let most = ["map", "work.py:hold", "--range", "0..4", "--max-running", "0"];
    cluster.run(&most).fails(2, &["--max-running"]);
}

#[test]
fn options_replace_resources_of_the_profile_and_bad_ones_start_nothing() {
    let home = Home::new();
    home.file(
        "ipython/profile_default/pcluster.yaml",
        "engine: {resources: {licence: 2, gpus: 1, cpus: 3}}\n",
    );
    for (options, message) in [
        (&["--resource", "gpus"][..], "NAME=VALUE"),
        (&["--resource", "gpus=-1"], "gpus: use a number"),
        (&["--resource", "gpu=1"], "write gpus"),
        (&["--resource", "cpus=0"], "greater than 0"),
        (&["--resource", "cpus=1.5"], "not a whole number"),
        (&["--resource", "mem=500"], "write 500M"),
        (&["--resource", "licence=0"], "greater than 0"),
        (&["--resource", "licence=0.5"], "not a whole number"),
        (&["--resource", "licence=1", "--resource", "licence=2"], "given twice"),
        (&["--resource", "gpus=1", "--engine", "ipengine"], "pcluster's own engines"),
        (&["--mem", "500"], "write 500M"),
    ] {
        home.run(&[&["start", "-n", "1"], options].concat()).fails(2, &[message]);
    }
    home.run(&["engine", "--resource", "mem=500"]).fails(2, &["write 500M"]);
    let twice = ["engine", "--resource", "a=1", "--resource", "a=1"];
    home.run(&twice).fails(2, &["given twice"]);
    let cluster = Cluster::start_in(home, 1, &["--resource", "gpus=2", "--resource", "mem=3G"]);
    let node = || cluster.json(&["engines"])["nodes"][0].clone();
    let seen = |node: &Value| {
        let gpus = node["gpus"].as_array().unwrap().len();
        (
            node["cpus"].clone(),
            node["mem_bytes"].clone(),
            gpus,
            node["named"]["licence"].clone(),
        )
    };
    assert_eq!(seen(&node()), (3.into(), (3u64 << 30).into(), 2, 2.into()));
    cluster
        .run(&["scale", "2", "--resource", "licence=x"])
        .fails(2, &["not a whole number"]);
    cluster.ok(&["scale", "2", "--resource", "licence=5"]);
    assert_eq!(seen(&node()).3, 5, "the last engine of a node counts");
}

#[test]
fn direct_tasks_wait_for_their_resources_and_have_them_only_while_they_run() {
    let cluster = cluster();
    // The interactive worker keeps its environment.
    let seen = "import os; [os.environ.get(n) for n in ('CUDA_VISIBLE_DEVICES', 'OMP_NUM_THREADS')]";
    assert!(cluster.ok(&["exec", seen, "--targets", "0"]).contains("[null,null]"));
    let given = cluster.ok(&["exec", seen, "--gpus", "2", "--cpus", "3"]);
    let lines: Vec<&str> = given.lines().collect();
    assert!(
        lines.len() == 4 && lines.iter().all(|line| line.contains("[\"GPU-a,MIG-b\",\"3\"]")),
        "{given}"
    );
    assert!(cluster.ok(&["exec", seen, "--targets", "0"]).contains("[null,null]"));
    cluster.ok(&["exec", "import time"]);
    let times = "s = time.time(); time.sleep(0.2); [s, time.time()]";
    let printed = cluster.ok(&["exec", times, "--need", "licence=1"]);
    let mut spans: Vec<Vec<f64>> = printed
        .lines()
        .map(|line| serde_json::from_str(line.split_once(' ').unwrap().1).unwrap())
        .collect();
    spans.sort_by(|one, other| one[0].total_cmp(&other[0]));
    assert!(
        spans.len() == 4 && spans.windows(2).all(|pair| pair[0][1] <= pair[1][0]),
        "one licence: {spans:?}"
    );
    // What a map uses is not taken from it.
    cluster.ok(&["map", "work.py:wait", "--range", "0..2", "--gpus", "1", "--detach"]);
    let started = |n: u32| cluster.path().join(format!("started-{n}")).exists();
    wait_until("both tasks run", || (started(0) && started(1)).then_some(()));
    let waiting = cluster.spawn(&[
        "apply",
        "--gpus",
        "1",
        "--targets",
        "0",
        "--",
        "sh",
        "-c",
        "echo gpu $CUDA_VISIBLE_DEVICES",
    ]);
    wait_until("it waits for a GPU", || {
        let status = cluster.run(&["status"]).stderr;
        status
            .contains("its engines are busy, or their nodes have less than 1 cpu, 1 gpu free")
            .then_some(())
    });
    fs::write(cluster.path().join("go"), "").unwrap();
    assert!(waiting.end().ok().contains("[0] gpu "));
}

#[test]
fn the_profile_has_defaults_for_maps_and_options_win() {
    let home = Home::new();
    home.file("work.py", WORK);
    home.file("ipython/profile_default/pcluster.yaml", "map: {cpus: 2, need: {licence: 1}}\n");
    let resources = ["cpus=4", "licence=1"].map(|resource| ["--resource", resource]).concat();
    let cluster = Cluster::start_in(home, 2, &resources);
    let default = held(&cluster, &[]);
    assert!(default.iter().all(|value| value[5] == "2"), "{default:?}");
    assert_eq!(overlap(&default, 5).values().max(), Some(&1), "one licence");
    let own = held(&cluster, &["--cpus", "4"]);
    assert!(own.iter().all(|value| value[5] == "4"), "{own:?}");
    let exec = cluster.ok(&["exec", "import os; os.environ.get('OMP_NUM_THREADS')"]);
    assert_eq!(exec.lines().count(), 0, "None is not shown: the defaults are those of maps: {exec}");
    cluster.file("ipython/profile_default/pcluster.yaml", "map: {cpus: 0}\n");
    let map = ["map", "work.py:hold", "--range", "0..1"];
    cluster.run(&map).fails(2, &["map: 0 is not", "greater than 0"]);
    cluster.file("ipython/profile_default/pcluster.yaml", "map: {mem: 500}\n");
    cluster.run(&map).fails(2, &["write 500M"]);
}
