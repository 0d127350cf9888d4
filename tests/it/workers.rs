//! Each map has its own worker on each engine, whose processes end with it; the interactive worker remains.
use super::support::{Cluster, Home, signal, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::path::Path;

fn runs(pid: &str) -> bool {
    let pid = pid.trim();
    assert!(pid.parse::<u32>().is_ok(), "{pid:?} is no process id");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with(['Z', 'X']))
}

fn wait_until_gone(what: &str, pids: &str) {
    for pid in pids.split_ascii_whitespace() {
        wait_until(what, || (!runs(pid)).then_some(()));
    }
}

fn in_directory(home: &Home, directory: &Path, arguments: &[&str]) -> String {
    std::fs::create_dir_all(directory).unwrap();
    let mut command = home.program(env!("CARGO_BIN_EXE_pcluster"));
    let output = command.args(arguments).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn each_map_loads_its_modules_once() {
    let home = Home::new();
    let cluster = Cluster::start_in(home, 1, &[]);
    let place = cluster.path().join("modules");
    std::fs::create_dir_all(&place).unwrap();
    cluster.ok(&["exec", &format!("import sys; sys.path.insert(0, {:?})", place.to_str().unwrap())]);
    let module = |text: &str| {
        std::fs::write(place.join("counted.py"), text).unwrap();
    };
    let map = || {
        let env = format!("PYTHONPATH={}", place.display());
        let text = "import os, sys\nsys.path.insert(0, os.environ['PYTHONPATH'])\nimport counted\nseen = []\ndef f(i):\n seen.append(i)\n return [counted.K, len(seen), os.getpid()]\n";
        cluster.file("work.py", text);
        let text = cluster.ok(&["map", "work.py:f", "--range", "0..3", "--env", &env]);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    module("K = 'old'\n");
    let first = map();
    // Of another length: Python notices a change within a second by that.
    module("K = 'current'\n");
    let second = map();
    let seen = |rows: &[Value]| rows.iter().map(|row| (row[0].clone(), row[1].clone())).collect::<Vec<_>>();
    assert_eq!(
        seen(&first),
        (1..4).map(|n| ("old".into(), n.into())).collect::<Vec<(Value, Value)>>()
    );
    assert_eq!(
        seen(&second),
        (1..4).map(|n| ("current".into(), n.into())).collect::<Vec<(Value, Value)>>()
    );
    assert_ne!(first[0][2], second[0][2]);
    // The memory of a map goes with its process.
    wait_until_gone("the map's worker", &first[0][2].to_string());
    wait_until_gone("the map's worker", &second[0][2].to_string());
    cluster.ok(&["stop"]);
}

const LEAVES: &str = r#"
import os, subprocess, time

def f(way):
    if way == "session":
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid
    if way == "shell":
        return int(subprocess.check_output("setsid sleep 600 >/dev/null 2>&1 & echo $!", shell=True))
    if way == "bare":
        return int(subprocess.check_output("env -i setsid sleep 600 >/dev/null 2>&1 & echo $!", shell=True))
    near, far = os.pipe()
    if os.fork() == 0:
        os.setsid()
        pid = os.fork()
        if pid:
            os.write(far, b"%d" % pid)
            os._exit(0)
        if way == "daemon":
            os.closerange(0, 1024)
        time.sleep(600)
        os._exit(0)
    return int(os.read(near, 20))
"#;

#[test]
fn leftover_processes_of_maps_and_commands_end_with_them_and_those_of_a_namespace_remain_until_stop() {
    let home = Home::new();
    home.file("leaves.py", LEAVES);
    home.file("ways.txt", "session\nshell\nbare\nfork\ndaemon\n");
    let cluster = Cluster::start_in(home, 1, &[]);
    let left = cluster.ok(&["map", "leaves.py:f", "ways.txt"]);
    assert_eq!(left.lines().count(), 5);
    wait_until_gone("what a map left", &left);

    let script = "setsid sleep 600 >/dev/null 2>&1 & echo $!; sleep 600 >/dev/null 2>&1 & echo $!; env -i setsid sleep 600 >/dev/null 2>&1 & echo $!";
    cluster.ok(&["map", "--range", "0..1", "--", "sh", "-c", script]);
    let details = cluster.json(&["results", "2.0"]);
    let left = details["tasks"][0]["stdout"].as_str().unwrap();
    assert_eq!(left.lines().count(), 3, "{left}");
    // They were ended before the task was.
    assert!(left.split_ascii_whitespace().all(|pid| !runs(pid)), "{left}");

    let background = cluster.ok(&["apply", "leaves.py:f", "shell"]) + &cluster.ok(&["apply", "leaves.py:f", "session"]);
    let background = background.replace("[0]", "");
    let left = cluster.ok(&["map", "leaves.py:f", "ways.txt"]);
    let marked: Vec<&str> = left.lines().enumerate().filter(|(i, _)| *i != 2).map(|(_, pid)| pid).collect();
    wait_until_gone("what a map left", &marked.join(" "));
    assert!(background.split_ascii_whitespace().all(runs), "{background}");
    cluster.ok(&["stop"]);
    wait_until_gone("what was left at the end", &format!("{background} {left}"));
}

#[test]
fn directory_streams_and_limits_of_maps_are_separate() {
    let home = Home::new();
    let spoil = "import os, sys, resource\n\
                 def f(i):\n\
                \x20   here = os.getcwd()\n\
                \x20   os.chdir('/'); os.umask(0o77); sys.setrecursionlimit(5000); sys.stdout.close(); os.close(2)\n\
                \x20   return here\n";
    let plain = "import os, sys\n\
                 def f(i):\n\
                \x20   print('hello', i); print('err', file=sys.stderr)\n\
                \x20   mask = os.umask(0); os.umask(mask)\n\
                \x20   return [os.getcwd(), mask, sys.getrecursionlimit()]\n";
    home.file("spoil.py", spoil);
    home.file("plain.py", plain);
    let cluster = Cluster::start_in(home, 1, &[]);
    let here = cluster.path().canonicalize().unwrap();
    let directory = format!("\"{}\"\n", here.display());
    let before = cluster.ok(&["map", "plain.py:f", "--range", "0..1"]);
    assert_eq!(cluster.ok(&["map", "spoil.py:f", "--range", "0..6"]), directory.repeat(6));
    assert_eq!(cluster.ok(&["map", "plain.py:f", "--range", "0..3"]), before.repeat(3));
    let tasks = cluster.json(&["results", "3"]);
    for i in 0..tasks["tasks"].as_array().unwrap().len() {
        let task = cluster.json(&["results", &format!("3.{i}")])["tasks"][0].clone();
        assert_eq!(
            (task["stdout"].as_str(), task["stderr"].as_str()),
            (Some(&*format!("hello {i}\n")), Some("err\n"))
        );
    }
    assert_eq!(tasks["tasks"].as_array().unwrap().len(), 3);
    cluster.ok(&["stop"]);
}

#[test]
fn an_idle_engine_that_loses_its_namespace_gets_another_id() {
    let cluster = Cluster::start(1);
    let ids = || {
        let engines = cluster.json(&["engines"]);
        let ids: Vec<u64> = engines["engines"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|engine| engine["id"].as_u64())
            .collect();
        ids
    };
    assert_eq!(ids(), [0]);
    // A worker that has no namespace to lose may go.
    cluster.file("pid.py", "import os\ndef f(i): return os.getpid()\n");
    cluster.ok(&["map", "pid.py:f", "--range", "0..1"]);
    assert_eq!(ids(), [0]);
    let pid = cluster.ok(&["exec", "a = 5; import os; os.getpid()"]);
    let pid: u32 = pid.trim_start_matches("[0]").trim().parse().unwrap();
    signal(pid, Signal::SIGKILL);
    wait_until("another id", || (ids() == [1]).then_some(()));
    cluster.run(&["exec", "a"]).fails(1, &["NameError"]);
    cluster.ok(&["stop"]);
}

#[test]
fn files_named_like_standard_library_modules_do_not_prevent_python_from_starting() {
    let home = Home::new();
    let place = home.path().join("shadowed");
    std::fs::create_dir_all(&place).unwrap();
    for name in [
        "struct", "types", "json", "signal", "random", "queue", "copy", "code", "string", "calendar",
    ] {
        std::fs::write(place.join(format!("{name}.py")), "raise SystemExit(3)\n").unwrap();
    }
    std::fs::write(place.join("work.py"), "def f(n):\n    return n\n").unwrap();
    in_directory(&home, &place, &["start", "-n", "1"]);
    assert_eq!(in_directory(&home, &place, &["map", "work.py:f", "--range", "0..3"]), "0\n1\n2\n");
    assert_eq!(in_directory(&home, &place, &["exec", "1 + 1"]), "[0] 2\n");
    in_directory(&home, &place, &["stop"]);
}
