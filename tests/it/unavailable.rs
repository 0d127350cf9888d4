//! Engines whose Python does not work: they take no Python tasks, report why, and recover.
use super::support::{Cluster, Home, PCLUSTER, Running, wait_until};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A Python that fails as a worker while the file `broken` exists.
const FRAGILE: &str = r#"#!/bin/sh
if [ -e "$(dirname "$0")/broken" ] && case "$*" in *"pcluster worker"*) true ;; *) false ;; esac; then
    echo "cannot open shared object file: libpython3.so" >&2
    exit 127
fi
exec python3 "$@"
"#;

#[expect(clippy::disallowed_methods, reason = "a program must be executable; it holds no secret")]
fn fragile_python(home: &Home) -> PathBuf {
    let path = home.file("fragile-python", FRAGILE);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn states(cluster: &Cluster) -> Vec<String> {
    let engines = cluster.json(&["engines"])["engines"].as_array().unwrap().clone();
    engines.iter().map(|engine| engine["state"].as_str().unwrap().to_string()).collect()
}

#[test]
fn an_engine_with_failing_python_takes_no_tasks_reports_why_and_recovers() {
    let cluster = Cluster::start(1);
    let python = fragile_python(&cluster);
    let broken = cluster.file("broken", "");
    let engine_file = cluster.profile().join("security/ipcontroller-engine.json");
    let (engine_file, python) = (engine_file.to_str().unwrap(), python.to_str().unwrap());
    let _engine = cluster.spawn(&["engine", "--file", engine_file, "--python", python]);
    wait_until("the engine to report that its Python fails", || {
        states(&cluster).contains(&"unavailable".to_string()).then_some(())
    });
    let shown = cluster.run(&["engines"]);
    assert!(shown.stdout.contains("unavailable"), "{}", shown.stdout);
    assert!(shown.stderr.contains("libpython3.so"), "{}", shown.stderr);
    for command in ["status", "list"] {
        let shown = cluster.run(&[command]);
        assert!(shown.stderr.contains("cannot run Python functions"), "{command}: {}", shown.stderr);
    }
    // The other engine runs the whole map, and no retry is counted.
    let values = cluster.ok(&["map", "math:sqrt", "--range", "0..40"]);
    assert_eq!(values.lines().count(), 40);
    assert!(!values.contains("error"), "{values}");
    let tasks = cluster.json(&["results", "1"]);
    let tasks = tasks["tasks"].as_array().unwrap();
    assert!(tasks.iter().all(|task| task["state"] == "ok" && task["engine"] == 0), "{tasks:?}");
    // Both run commands.
    let pids = cluster.ok(&["map", "--range", "0..20", "--", "sh", "-c", "sleep 0.05; echo $PPID"]);
    let mut pids: Vec<&str> = pids.lines().collect();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 2, "{pids:?}");
    // What is meant for that engine alone fails with the reason.
    let direct = cluster.run(&["exec", "--targets", "1", "1 + 1"]);
    assert_ne!(direct.code, Some(0));
    assert!((direct.stdout + &direct.stderr).contains("libpython3.so"));
    fs::remove_file(broken).unwrap();
    wait_until("the engine to recover", || {
        states(&cluster).iter().all(|state| state == "idle").then_some(())
    });
    assert_eq!(cluster.ok(&["exec", "--targets", "1", "1 + 1"]).trim(), "[1] 2");
}

#[test]
fn a_start_without_working_python_reports_it_and_so_does_a_waiting_map() {
    let home = Home::new();
    let python = fragile_python(&home);
    let broken = home.file("broken", "");
    let cluster = Cluster::running_in(home);
    let started = cluster.start_again(2, &["--python", python.to_str().unwrap()]);
    assert_eq!(started.code, Some(0), "{}", started.stderr);
    assert!(
        started.stderr.contains("warning: engines 0, 1 on ") && started.stderr.contains("libpython3.so"),
        "{}",
        started.stderr
    );
    let map = cluster.spawn(&["map", "math:sqrt", "--range", "0..2"]);
    map.wait_for_stderr("libpython3.so");
    fs::remove_file(broken).unwrap();
    assert_eq!(map.end().ok(), "0.0\n1.0\n");
}

/// The code of a map that cannot be stored: a file size limit simulates a full disk.
#[test]
fn an_engine_that_cannot_store_code_returns_tasks_reports_why_and_recovers() {
    let cluster = Cluster::start(1);
    let engine_file = cluster.profile().join("security/ipcontroller-engine.json");
    let script = "trap '' XFSZ; ulimit -S -f 4096; exec \"$@\"";
    let mut limited = cluster.program("sh");
    limited.args(["-c", script, "sh", PCLUSTER, "engine", "--file", engine_file.to_str().unwrap()]);
    let engine = Running::spawn(&mut limited, "");
    wait_until("both engines", || (states(&cluster).len() == 2).then_some(()));
    cluster.file("data.bin", &"x".repeat(6 << 20));
    let code = cluster.file(
        "where.py",
        "import os, time\ndef pid(x):\n    time.sleep(0.05)\n    return os.getppid()\n",
    );
    let function = format!("{}:pid", code.display());
    let data = cluster.path().join("data.bin");
    let map = ["map", &function, "--with", data.to_str().unwrap()];
    let many = [&map[..], &["--range", "0..20"]].concat();
    let one = [&map[..], &["--range", "0..1", "--targets", "1"]].concat();
    let done = cluster.run(&many);
    assert_eq!((done.code, done.stdout.lines().count()), (Some(0), 20), "{}", done.transcript());
    let tasks = cluster.json(&["results", "1"]);
    let tasks = tasks["tasks"].as_array().unwrap();
    assert!(
        tasks
            .iter()
            .all(|task| task["state"] == "ok" && task["engine"] == 0 && task["runs"].as_u64().unwrap_or(1) == 1),
        "{tasks:?}"
    );
    // One that is meant for it alone fails, with the reason.
    let direct = cluster.run(&one);
    assert!(
        direct.code != Some(0) && direct.stderr.contains("the code of maps cannot be stored"),
        "{}",
        direct.transcript()
    );
    // What needs no code it does all the while.
    assert_eq!(cluster.ok(&["exec", "--targets", "1", "1 + 1"]).trim(), "[1] 2");
    let lifted = cluster
        .program("prlimit")
        .args(["--pid", &engine.pid().to_string(), "--fsize=unlimited"])
        .status();
    assert!(lifted.unwrap().success());
    wait_until("the engine to do its part", || {
        let done = cluster.run(&one);
        (done.code == Some(0)).then_some(())
    });
    assert!(states(&cluster).iter().all(|state| state == "idle"));
}

/// Directories with the code of maps.
fn stored_in(temporary: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(temporary).unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("pcluster-code-"))
        .collect()
}

/// As cleaners of temporary directories do.
#[test]
fn code_removed_from_an_engine_is_sent_again() {
    let home = Home::new();
    let temporary = home.path().join("temporary");
    fs::create_dir(&temporary).unwrap();
    let cluster = Cluster::running_in(home);
    let mut start = cluster.program(PCLUSTER);
    start.args(["start", "-n", "1"]).env("TMPDIR", &temporary);
    Running::spawn(&mut start, "").end().ok();
    let code = cluster.file("twice.py", "def f(x):\n    return 2 * x\n");
    let function = format!("{}:f", code.display());
    let map = ["map", function.as_str(), "--range", "0..3"];
    assert_eq!(cluster.ok(&map), "0\n2\n4\n");
    let stored = stored_in(&temporary);
    assert_eq!(stored.len(), 1, "{stored:?}");
    fs::remove_dir_all(&stored[0]).unwrap();
    assert_eq!(cluster.ok(&map), "0\n2\n4\n");
}
