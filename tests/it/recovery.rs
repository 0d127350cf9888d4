//! Killed processes are restarted, and no task is lost or done twice.
use super::support::{Cluster, Home, Running, signal, successor_of, wait_for_exit, wait_until};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP, SIGTERM};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;
use std::net::TcpListener;
use std::path::Path;

/// Each task writes its input into a ledger when it begins: an independent record of what was run.
const WORK: &str = r#"
import os, time

def enter(x):
    with open("ledger", "ab", buffering=0) as ledger:
        ledger.write(b"%d\n" % x)

def short(x):
    enter(x)
    time.sleep(0.002)
    return x * x

def slow(x):
    enter(x)
    time.sleep(0.3)
    return x * x

def held(x):
    enter(x)
    while not os.path.exists("go"):
        time.sleep(0.02)
    return os.getpid()

def stubborn(x):
    import signal
    def note(number, frame):
        with open("signals", "a") as signals:
            signals.write(signal.Signals(number).name + "\n")
    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    enter(x)
    while True:
        time.sleep(0.01)

def dies(how):
    import ctypes, signal, sys
    sys.stderr.write("about to end\n")
    sys.stderr.flush()
    if how == "exit":
        os._exit(7)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "memory":
        heap = []
        while True:
            heap.append(b"x" * (8 << 20))
    if how == "loop":
        while True:
            pass
    return how
"#;

fn cluster(engines: u32, more: &[&str]) -> Cluster {
    let home = Home::new();
    home.file("work.py", WORK);
    Cluster::start_in(home, engines, more)
}

/// How often each input was begun.
fn ledger(home: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(home.join("ledger")).unwrap_or_default();
    let mut counts = Vec::new();
    for line in text.lines() {
        let input: usize = line.parse().unwrap();
        counts.resize(counts.len().max(input + 1), 0);
        counts[input] += 1;
    }
    counts
}

fn until_begun(cluster: &Cluster, tasks: usize) {
    wait_until("tasks in the ledger", || {
        (ledger(cluster.path()).iter().filter(|count| **count > 0).count() >= tasks).then_some(())
    });
}

fn tasks(cluster: &Cluster, map: &str) -> Vec<Value> {
    cluster.json(&["results", map])["tasks"].as_array().unwrap().clone()
}

fn squares(n: u64) -> String {
    (0..n).map(|x| format!("{}\n", x * x)).collect()
}

fn each_was_run_once(cluster: &Cluster, map: &str, n: usize) {
    let tasks = tasks(cluster, map);
    assert_eq!(tasks.len(), n);
    for task in &tasks {
        assert_eq!((&task["state"], &task["attempts"]), (&"ok".into(), &1.into()), "{task:#}");
    }
    assert_eq!(ledger(cluster.path()), vec![1; n]);
}

/// Waits for the expected number of engines, none of them silent, and none of `gone`.
fn until_whole(cluster: &Cluster, engines: usize, gone: &[u32]) {
    wait_until("the engine set to be whole", || {
        let ended = cluster.run(&["engines", "--json"]);
        let listed: Value = serde_json::from_str(&ended.stdout).ok()?;
        let listed = listed["engines"].as_array()?;
        let well = |engine: &Value| engine["state"] != "silent" && !gone.iter().any(|pid| engine["pid"] == *pid);
        (listed.len() == engines && listed.iter().all(well)).then_some(())
    });
}

#[test]
fn a_controller_killed_during_a_map_is_restarted_and_no_task_runs_twice() {
    let cluster = cluster(2, &[]);
    let running = cluster.spawn(&["map", "work.py:short", "--range", "0..2000"]);
    let engines = cluster.engine_pids();
    until_begun(&cluster, 200);
    let first = cluster.controller_pid();
    signal(first, SIGKILL);
    until_another_controller(&cluster, first);
    // Again, together with its supervisor.
    until_begun(&cluster, 800);
    cluster.kill_controller_and_supervisor();
    cluster.start_again(2, &[]).ok();
    assert_eq!(running.end().ok(), squares(2000));
    each_was_run_once(&cluster, "1", 2000);
    assert_eq!(cluster.engine_pids(), engines);
    let processes = [cluster.supervisors(), engines, vec![cluster.controller_pid()]].concat();
    cluster.ok(&["stop"]);
    processes.into_iter().for_each(wait_for_exit);
}

#[test]
fn a_restarted_controller_waits_for_its_ports() {
    let taken = TakenPort::of_a_killed_controller();
    let port = taken.port;
    let (cluster, engines) = taken.gives_it_back(drop);
    assert_eq!((control_port(&cluster), cluster.engine_pids()), (port, engines));
    cluster.ok(&["stop"]);
}

#[test]
fn a_controller_restarted_on_other_ports_is_found_by_its_engines_and_clients() {
    let taken = TakenPort::of_a_killed_controller();
    let port = taken.port;
    let mut kept = None;
    let (cluster, engines) = taken.gives_it_back(|held| kept = Some(held));
    assert_ne!(control_port(&cluster), port);
    assert_eq!(cluster.engine_pids(), engines);
    cluster.ok(&["stop"]);
    engines.into_iter().for_each(wait_for_exit);
    drop(kept);
}

/// A cluster whose controller was killed in the midst of a map, and another program has one of its ports.
struct TakenPort {
    cluster: Cluster,
    engines: Vec<u32>,
    port: u16,
    map: Running,
    held: TcpListener,
}

impl TakenPort {
    fn of_a_killed_controller() -> TakenPort {
        let cluster = cluster(1, &[]);
        let map = cluster.spawn(&["map", "work.py:held", "--range", "0..1"]);
        until_begun(&cluster, 1);
        let (engines, port) = (cluster.engine_pids(), control_port(&cluster));
        cluster.kill_controller_and_supervisor();
        let held = wait_until("the port to be free", || TcpListener::bind(("127.0.0.1", port)).ok());
        TakenPort {
            cluster,
            engines,
            port,
            map,
            held,
        }
    }

    /// Starts a controller that finds its port in use, then calls `then` with the port. The map succeeds.
    fn gives_it_back(self, then: impl FnOnce(TcpListener)) -> (Cluster, Vec<u32>) {
        let cluster = self.cluster;
        let start = cluster.spawn(&["start", "-n", "1"]);
        wait_until("the controller to find it taken", || {
            let log = std::fs::read_to_string(cluster.profile().join("log/controller.log")).ok()?;
            log.contains("cannot listen on the ports of the previous run; retrying")
                .then_some(())
        });
        then(self.held);
        start.end().ok();
        cluster.file("go", "");
        assert_eq!(self.map.end().ok().lines().count(), 1);
        each_was_run_once(&cluster, "1", 1);
        (cluster, self.engines)
    }
}

/// One of the ports for clients.
fn control_port(cluster: &Cluster) -> u16 {
    let file = std::fs::read(cluster.profile().join("security/ipcontroller-client.json")).unwrap();
    let file: Value = serde_json::from_slice(&file).unwrap();
    file["control"].as_u64().unwrap().try_into().unwrap()
}

#[test]
fn killed_engines_are_replaced_and_their_tasks_run_again() {
    let cluster = cluster(3, &[]);
    let running = cluster.spawn(&["map", "work.py:slow", "--range", "0..40"]);
    until_begun(&cluster, 6);
    let engines = cluster.engine_pids();
    engines[..2].iter().for_each(|pid| signal(*pid, SIGKILL));
    assert_eq!(running.end().ok(), squares(40));
    until_whole(&cluster, 3, &engines[..2]);
    // Each engine held one task that had begun. If it had not yet reported that, it is no attempt.
    let counts = ledger(cluster.path());
    assert!(counts.iter().sum::<u32>() <= 42, "{counts:?}");
    for (task, count) in tasks(&cluster, "1").iter().zip(counts) {
        assert_eq!(task["state"], "ok");
        assert!(
            (1..=count.into()).contains(&task["attempts"].as_u64().unwrap()),
            "{count} times: {task:#}"
        );
    }
    let left = [cluster.supervisors(), cluster.engine_pids()].concat();
    cluster.ok(&["stop"]);
    left.into_iter().for_each(wait_for_exit);
}

/// Waits until a controller other than `pid` answers; returns its process id.
fn until_another_controller(cluster: &Cluster, pid: u32) -> u32 {
    wait_until("another controller", || {
        (cluster.controller_pid() != pid && cluster.run(&["status"]).code == Some(0)).then_some(())
    });
    cluster.controller_pid()
}

#[test]
fn a_killed_supervisor_is_replaced_by_its_child_and_all_recover_from_any_kill() {
    let cluster = cluster(2, &[]);
    let running = cluster.spawn(&["map", "work.py:short", "--range", "0..1000"]);
    until_begun(&cluster, 50);
    let (first, engines, controller) = (cluster.supervisors(), cluster.engine_pids(), cluster.controller_pid());
    first.iter().for_each(|pid| signal(*pid, SIGKILL));
    let second: Vec<u32> = first.iter().map(|pid| successor_of(*pid, &[*pid])).collect();
    // Only the supervisors were replaced, and their ids are known.
    assert_eq!((cluster.engine_pids(), cluster.controller_pid()), (engines.clone(), controller));
    let listed = cluster.json(&["list"]);
    assert_eq!(listed["clusters"][0]["engines_alive"], 2, "{listed:#}");
    // The new ones are replaced too, and restart killed processes.
    second.iter().for_each(|pid| signal(*pid, SIGKILL));
    let third: Vec<u32> = first
        .iter()
        .zip(&second)
        .map(|(first, second)| successor_of(*first, &[*first, *second]))
        .collect();
    engines.iter().for_each(|pid| signal(*pid, SIGKILL));
    signal(controller, SIGKILL);
    let controller = until_another_controller(&cluster, controller);
    until_whole(&cluster, 2, &engines);
    // Again, now that they have the same supervisors.
    let again = cluster.engine_pids();
    again.iter().for_each(|pid| signal(*pid, SIGKILL));
    signal(controller, SIGKILL);
    let controller = until_another_controller(&cluster, controller);
    until_whole(&cluster, 2, &again);
    assert_eq!(running.end().ok(), squares(1000));
    let all = [third, cluster.engine_pids(), vec![controller]].concat();
    cluster.ok(&["stop"]);
    all.into_iter().for_each(wait_for_exit);
    nothing_runs(&cluster);
}

/// Checks that no process of this home runs.
fn nothing_runs(cluster: &Cluster) {
    let mark = format!("IPYTHONDIR={}", cluster.path().join("ipython").display());
    wait_until("the end of all processes", || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let of_it = |path: &Path| std::fs::read(path).is_ok_and(|environ| environ.split(|b| *b == 0).any(|v| v == mark.as_bytes()));
        (!all.map(|entry| entry.path().join("environ")).any(|path| of_it(&path))).then_some(())
    });
}

#[test]
fn processes_that_exit_in_order_are_not_restarted() {
    let cluster = cluster(3, &[]);
    let first = cluster.supervisors();
    first.iter().for_each(|pid| signal(*pid, SIGKILL));
    let second: Vec<u32> = first.iter().map(|pid| successor_of(*pid, &[*pid])).collect();
    let supervisor_of = |engine: u32| {
        let session = session_of(engine);
        second[first.iter().position(|pid| *pid == session).unwrap()]
    };
    let engines: Vec<(u32, u32)> = cluster.engine_pids().into_iter().map(|pid| (pid, supervisor_of(pid))).collect();
    // A leaving engine stops its new supervisor, as it would have stopped the first one,
    cluster.ok(&["engines", "remove", "1"]);
    wait_until("two engines", || (cluster.engine_pids().len() == 2).then_some(()));
    let stay = cluster.engine_pids();
    let (gone, stay): (Vec<_>, Vec<_>) = engines.into_iter().partition(|(engine, _)| !stay.contains(engine));
    gone.iter()
        .for_each(|(engine, supervisor)| [*engine, *supervisor].into_iter().for_each(wait_for_exit));
    // ... and one whose supervisor is ended ends with it.
    signal(stay[0].1, SIGTERM);
    [stay[0].0, stay[0].1].into_iter().for_each(wait_for_exit);
    assert_eq!(cluster.engine_pids(), [stay[1].0]);
    // Also when supervisors are killed while the cluster stops.
    let stop = cluster.spawn(&["stop"]);
    for pid in [stay[1].1, second[0]] {
        // It may have exited already.
        let _ = kill(Pid::from_raw(pid as i32), SIGKILL);
    }
    stop.end().ok();
    nothing_runs(&cluster);
}

fn session_of(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit(')').next().unwrap();
    fields.split_ascii_whitespace().nth(3).unwrap().parse().unwrap()
}

#[test]
fn engines_stop_with_the_cluster_even_without_a_supervisor() {
    let cluster = cluster(2, &[]);
    let engines = cluster.engine_pids();
    // A stopped process is not replaced.
    engines.iter().for_each(|pid| signal(*pid, SIGSTOP));
    for supervisor in &cluster.supervisors()[1..] {
        signal(*supervisor, SIGKILL);
        wait_for_exit(*supervisor);
    }
    cluster.kill_controller_and_supervisor();
    let stop = cluster.spawn(&["stop"]);
    engines.iter().for_each(|pid| signal(*pid, SIGCONT));
    stop.end().ok();
    engines.into_iter().for_each(wait_for_exit);
    nothing_runs(&cluster);
}

#[test]
fn a_suspended_engine_returns_with_its_id_and_its_result_counts() {
    let cluster = cluster(2, &["--set", "controller.heartbeat_interval_ms=100"]);
    let running = cluster.spawn(&["map", "work.py:held", "--range", "0..2"]);
    until_begun(&cluster, 2);
    let engines = cluster.engine_pids();
    signal(engines[0], SIGSTOP);
    wait_until("the engine to be silent", || {
        let listed = cluster.json(&["engines"]);
        (listed["engines"][0]["state"] == "silent").then_some(())
    });
    cluster.file("go", "");
    signal(engines[0], SIGCONT);
    assert_eq!(running.end().ok().lines().count(), 2);
    each_was_run_once(&cluster, "1", 2);
    until_whole(&cluster, 2, &[]);
    assert_eq!(cluster.engine_pids(), engines);
    let listed = cluster.json(&["engines"]);
    assert_eq!((&listed["engines"][0]["id"], &listed["engines"][1]["id"]), (&0.into(), &1.into()));
    cluster.ok(&["stop"]);
}

#[test]
fn after_its_lease_a_suspended_engines_task_is_reassigned_and_one_result_is_recorded() {
    let settings = ["--set", "controller.heartbeat_interval_ms=50", "--set", "controller.lease_ms=400"];
    let cluster = cluster(2, &settings);
    let running = cluster.spawn(&["map", "work.py:held", "--range", "0..2"]);
    until_begun(&cluster, 2);
    wait_until("both to be known to run", || {
        tasks(&cluster, "1").iter().all(|task| task["state"] == "running").then_some(())
    });
    let engines = cluster.engine_pids();
    signal(engines[0], SIGSTOP);
    wait_until("the engine to be given up", || (cluster.engine_pids().len() == 1).then_some(()));
    cluster.file("go", "");
    let values = running.end().ok();
    assert_eq!(values.lines().count(), 2);
    let before = tasks(&cluster, "1");
    let mut runs: Vec<_> = before.iter().map(|task| task["attempts"].as_u64().unwrap()).collect();
    runs.sort_unstable();
    assert_eq!(runs, [1, 2]);
    // It returns as a new engine, with an obsolete result.
    signal(engines[0], SIGCONT);
    wait_until("both engines", || (cluster.engine_pids().len() == 2).then_some(()));
    assert_eq!(cluster.ok(&["map", "math:sqrt", "--range", "4..6"]).lines().count(), 2);
    assert_eq!(tasks(&cluster, "1"), before);
    let mut counts = ledger(cluster.path());
    counts.sort_unstable();
    assert_eq!(counts, [1, 2]);
    cluster.ok(&["stop"]);
}

#[test]
fn a_task_that_ignores_its_cancellation_gets_increasing_signals() {
    let cluster = cluster(
        2,
        &[
            "--set",
            "engine.interrupt_timeout_ms=400",
            "--set",
            "engine.terminate_timeout_ms=400",
        ],
    );
    let running = cluster.spawn(&["map", "work.py:stubborn", "--range", "0..1"]);
    until_begun(&cluster, 1);
    let other = cluster.spawn(&["map", "work.py:held", "--range", "1..2"]);
    until_begun(&cluster, 2);
    let engines = cluster.engine_pids();
    cluster.ok(&["cancel", "1"]);
    running.end().fails(1, &["cancelled"]);
    // The third cannot be noted.
    assert_eq!(
        std::fs::read_to_string(cluster.path().join("signals")).unwrap(),
        "SIGINT\nSIGTERM\n"
    );
    let task = &tasks(&cluster, "1")[0];
    assert_eq!(
        (&task["state"], &task["error"]["ename"]),
        (&"aborted".into(), &"TaskCancelled".into()),
        "{task:#}"
    );
    // Nothing else is affected, and the engine takes the next task.
    cluster.file("go", "");
    assert_eq!(other.end().ok().lines().count(), 1);
    assert_eq!(cluster.engine_pids(), engines);
    assert_eq!(cluster.ok(&["map", "work.py:short", "--range", "2..20"]).lines().count(), 18);
    cluster.ok(&["stop"]);
}

#[test]
fn damage_by_a_task_to_its_worker_is_reported_with_its_cause_and_affects_no_other() {
    let cluster = cluster(
        2,
        &[
            "--set",
            "engine.interrupt_timeout_ms=300",
            "--set",
            "engine.terminate_timeout_ms=300",
        ],
    );
    let engines = cluster.engine_pids();
    cluster.file("how", "exit\nsegfault\nkill\nmemory\nloop\nfine\n");
    let options = ["--mem", "200M", "--timeout", "3", "--max-crashes", "1", "--retries", "0"];
    let ended = cluster.run(&[&["map", "work.py:dies", "how"][..], &options].concat());
    assert_eq!(ended.code, Some(1), "{}", ended.transcript());
    assert!(ended.stdout.contains("\"fine\""), "{}", ended.transcript());
    let tasks = tasks(&cluster, "1");
    // State, error, how often it was run, words of the error.
    let expected: [(&str, &str, u64, &[&str]); 6] = [
        ("lost", "WorkerDied", 2, &["exit code 7", "about to end"]),
        ("lost", "WorkerDied", 2, &["SIGSEGV", "about to end"]),
        ("lost", "WorkerDied", 2, &["SIGKILL", "about to end"]),
        ("lost", "MemoryLimit", 2, &["MiB of memory", "its limit is 200 MiB"]),
        ("timeout", "TaskTimeout", 1, &["3 s"]),
        ("ok", "", 1, &[]),
    ];
    for (task, (state, ename, runs, words)) in tasks.iter().zip(expected) {
        assert_eq!((&task["state"], &task["attempts"]), (&state.into(), &runs.into()), "{task:#}");
        assert_eq!(task["error"]["ename"].as_str().unwrap_or_default(), ename, "{task:#}");
        let evalue = task["error"]["evalue"].as_str().unwrap_or_default();
        assert!(words.iter().all(|word| evalue.contains(word)), "{task:#}");
        // What it had written is on record, however it ended.
        assert_eq!(task["stderr"].as_str().unwrap_or_default(), "about to end\n", "{task:#}");
    }
    // The same engines are still connected.
    assert_eq!(cluster.engine_pids(), engines);
    assert_eq!(cluster.ok(&["map", "work.py:short", "--range", "0..20"]), squares(20));
    // A command, too.
    let hog = ["map", "--mem", "100M", "--max-crashes", "0", "--range", "0..1", "--"];
    let python = ["python3", "-c", "import time; x = b'x' * (300 << 20); time.sleep(60)"];
    cluster.run(&[&hog[..], &python].concat()).fails(1, &["MemoryLimit", "100 MiB"]);
    cluster.ok(&["stop"]);
}

/// Sixteen ports in a row that are free now.
fn free_ports() -> std::ops::Range<u16> {
    let first = 12_000 + u16::try_from(std::process::id() % 500).unwrap() * 32;
    let mut rows = (0..600).map(|row| first.wrapping_add(row * 16)..first.wrapping_add(row * 16 + 16));
    let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    rows.find(|row| row.start > 1024 && row.len() == 16 && row.clone().all(is_free))
        .unwrap()
}

#[test]
fn a_cause_that_passes_never_ends_the_controller_and_status_names_it() {
    let ports = free_ports();
    let setting = format!("controller.ports={}-{}", ports.start, ports.end - 1);
    let cluster = cluster(1, &["--set", &setting]);
    let (supervisor, controller) = (cluster.supervisors()[0], cluster.controller_pid());
    signal(supervisor, SIGSTOP);
    signal(controller, SIGKILL);
    wait_for_exit(controller);
    // Its last thread may close the port a moment later.
    let other = wait_until("the port is free", || TcpListener::bind(("127.0.0.1", ports.start)).ok());
    signal(supervisor, SIGCONT);
    wait_until("more failed starts than a lasting cause is given", || {
        let list = cluster.json(&["list"]);
        let problem = list["clusters"][0]["problem"].as_str().unwrap_or_default().to_string();
        (problem.contains("failed starts in a row") && problem.to_lowercase().contains("in use")).then_some(())
    });
    cluster
        .run(&["status"])
        .fails(4, &["is not running", "n use", "failed starts", "fix the cause"]);
    drop(other);
    wait_until("the controller to be back", || {
        (cluster.run(&["status"]).code == Some(0)).then_some(())
    });
    assert_eq!(cluster.ok(&["map", "math:sqrt", "--range", "0..2"]), "0.0\n1.0\n");
    assert_eq!(cluster.json(&["list"])["clusters"][0]["problem"], Value::Null);
    cluster.ok(&["stop"]);
    assert!(!cluster.profile().join("pid/controller.problem").exists());
}
