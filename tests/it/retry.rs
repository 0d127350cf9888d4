//! Tasks that had too little memory or time are tried again with more; their neighbours are not harmed.
use super::support::{Cluster, Ended, Home, PCLUSTER, Running, signal, skip, wait_until};
use nix::sys::signal::Signal::SIGKILL;
use serde_json::Value;
use std::path::{Path, PathBuf};

const WORK: &str = r#"
import os, sys, time

def uses(mib):
    data = bytearray(mib << 20)
    data[::4096] = bytes(1) * len(data[::4096])
    time.sleep(0.3)
    return mib

def takes(seconds):
    time.sleep(seconds)
    return seconds

def once(mib):
    """Only its first attempt uses memory."""
    is_first = not os.path.exists("begun")
    open("begun", "w").close()
    return uses(mib if is_first else 1)

def waits_once(mib):
    """Its second attempt uses memory only once it may."""
    with open("begun", "a+") as begun:
        begun.write("x")
        begun.flush()
        begun.seek(0)
        attempt = len(begun.read())
    while attempt == 2 and not os.path.exists("go"):
        time.sleep(0.02)
    return [uses(mib), attempt]

if __name__ == "__main__":
    print(globals()[sys.argv[1]](int(sys.argv[2])))
"#;

fn home() -> Home {
    let home = Home::new();
    home.file("work.py", WORK);
    home
}

fn lines(home: &Home, numbers: &[f64]) {
    let text: String = numbers.iter().map(|number| format!("{number}\n")).collect();
    home.file("inputs", &text);
}

/// The task in full, and what its attempts asked for of this, in MiB or seconds, with the cause of their end.
fn attempts(cluster: &Cluster, task: &str, of: &str) -> (Value, Vec<(f64, String)>) {
    let task = cluster.json(&["results", task])["tasks"][0].clone();
    let seen = |attempt: &Value| {
        let asked = attempt["request"][of].as_f64().unwrap();
        let unit = if of == "mem_bytes" { f64::from(1 << 20) } else { 1.0 };
        (asked / unit, attempt["cause"].as_str().unwrap_or_default().to_string())
    };
    let all = task["earlier"].as_array().unwrap().iter().chain([&task]).map(seen).collect();
    (task, all)
}

fn attempt_counts(cluster: &Cluster, map: &str) -> Vec<u64> {
    let tasks = cluster.json(&["results", map])["tasks"].as_array().unwrap().clone();
    tasks.iter().map(|task| task["attempts"].as_u64().unwrap()).collect()
}

#[test]
fn tasks_that_exceed_their_memory_fit_with_more() {
    let home = home();
    lines(&home, &[1.0, 120.0, 1.0, 1.0]);
    let cluster = Cluster::start_in(home, 2, &[]);
    let more = ["--mem", "60M", "--retry-mem", "x1.7", "--max-crashes", "0"];
    let function = [&["map", "work.py:uses", "inputs", "--jsonl"], &more[..]].concat();
    assert_eq!(cluster.ok(&function), "1\n120\n1\n1\n");
    let python = std::env::var("PCLUSTER_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let command = [&["map", "inputs"], &more[..], &["--", &python, "-S", "work.py", "uses", "{}"]].concat();
    assert_eq!(cluster.ok(&command), "1\n120\n1\n1\n");
    let limit = || "out_of_memory_limit".to_string();
    for map in ["1", "2"] {
        let (task, all) = attempts(&cluster, &format!("{map}.1"), "mem_bytes");
        assert_eq!(all, [(60.0, limit()), (102.0, limit()), (174.0, String::new())], "{task:#}");
        let peak = task["peak_memory"].as_u64().unwrap() >> 20;
        assert!((120..174).contains(&peak), "{peak}");
        assert_eq!(attempt_counts(&cluster, map), [1, 3, 1, 1], "neighbours are not harmed");
    }
    let shown = cluster.ok(&["results", "1.1"]);
    for part in [
        "asked for  1 cpu, 174M",
        "asked for 1 cpu, 60M",
        "asked for 1 cpu, 102M",
        "memory     peak 1",
    ] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
    // Resubmitted, it begins with what the map asks for.
    cluster.ok(&["resubmit", "1.1"]);
    cluster.ok(&["wait", "1"]);
    let (_, all) = attempts(&cluster, "1.1", "mem_bytes");
    assert_eq!(
        all.iter().map(|(asked, _)| *asked).collect::<Vec<_>>(),
        [60.0, 102.0, 174.0, 60.0, 102.0, 174.0]
    );
}

#[test]
fn the_last_attempt_asks_for_all_that_is_allowed() {
    let home = home();
    lines(&home, &[150.0, 1.0]);
    let cluster = Cluster::start_in(home, 1, &["--set", "engine.resources.mem=90M"]);
    let map = ["map", "work.py:uses", "inputs", "--jsonl", "--mem", "60M", "--retry-mem", "x1.1"];
    let failed = cluster.run(&[&map[..], &["--max-mem", "70M", "--retries", "5"]].concat());
    failed.fails(
        1,
        &["not retried: the last attempt asked for 70M, which is all that --max-mem allows"],
    );
    let limit = || "out_of_memory_limit".to_string();
    let (_, all) = attempts(&cluster, "1.0", "mem_bytes");
    assert_eq!(all, [(60.0, limit()), (66.0, limit()), (70.0, limit())]);
    let failed = cluster.run(&[&map[..7], &["x1.4"]].concat());
    failed.fails(1, &["not retried: the last attempt asked for 90M, and no node has more"]);
    let (_, all) = attempts(&cluster, "2.0", "mem_bytes");
    assert_eq!(all, [(60.0, limit()), (84.0, limit()), (90.0, limit())]);
    assert_eq!((attempt_counts(&cluster, "1")[1], attempt_counts(&cluster, "2")[1]), (1, 1));
}

#[test]
fn a_timeout_fits_at_the_second_attempt() {
    let home = home();
    lines(&home, &[1.0, 0.0, 30.0]);
    let cluster = Cluster::start_in(home, 2, &[]);
    let map = [
        "map",
        "work.py:takes",
        "inputs",
        "--jsonl",
        "--timeout",
        "0.5s",
        "--retry-time",
        "x4",
        "--max-time",
        "3s",
    ];
    let ended = cluster.run(&map);
    assert_eq!(ended.stdout.lines().take(2).collect::<Vec<_>>(), ["1", "0"]);
    ended.fails(1, &["not retried: the last attempt had 3 s, which is all that --max-time allows"]);
    let timeout = || "timeout".to_string();
    assert_eq!(attempts(&cluster, "1.0", "limit_s").1, [(0.5, timeout()), (2.0, String::new())]);
    assert_eq!(
        attempts(&cluster, "1.2", "limit_s").1,
        [(0.5, timeout()), (2.0, timeout()), (3.0, timeout())]
    );
    assert_eq!(attempt_counts(&cluster, "1"), [2, 1, 3]);
}

#[test]
fn a_restarted_controller_goes_on_with_what_the_last_attempt_asked_for() {
    let home = home();
    lines(&home, &[110.0]);
    let cluster = Cluster::start_in(home, 1, &[]);
    let running = cluster.spawn(&[
        "map",
        "work.py:waits_once",
        "inputs",
        "--jsonl",
        "--mem",
        "60M",
        "--retry-mem",
        "x1.3",
    ]);
    wait_until("the second attempt", || {
        let begun = std::fs::read_to_string(cluster.path().join("begun")).unwrap_or_default();
        (begun.len() == 2).then_some(())
    });
    let first = cluster.controller_pid();
    signal(first, SIGKILL);
    wait_until("another controller", || {
        (cluster.controller_pid() != first && cluster.run(&["status"]).code == Some(0)).then_some(())
    });
    cluster.file("go", "");
    assert_eq!(running.end().ok(), "[110,4]\n");
    let limit = || "out_of_memory_limit".to_string();
    let (_, all) = attempts(&cluster, "1.0", "mem_bytes");
    assert_eq!(all, [(60.0, limit()), (78.0, limit()), (102.0, limit()), (133.0, String::new())]);
}

/// A control group of its own with less memory than a task may use; removed when its processes have ended.
struct Group(PathBuf);

impl Group {
    fn with_memory(limit: &str) -> Option<Group> {
        let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let (names, path) = own.lines().find_map(|line| {
            let (names, path) = line.split_once(':')?.1.split_once(':')?;
            (names.is_empty() || names.split(',').any(|name| name == "memory")).then_some((names, path))
        })?;
        let (top, file) = match names {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        };
        let name = format!("pcluster-test-{}", std::process::id());
        let group = Group(Path::new(top).join(path.trim_start_matches('/')).join(name));
        std::fs::create_dir(&group.0).ok()?;
        std::fs::write(group.0.join(file), limit).ok()?;
        Some(group)
    }

    fn start(&self, home: &Home, options: &[&str]) -> Ended {
        let enter = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
        let mut command = home.program("sh");
        command
            .args(["-c", enter])
            .arg(&self.0)
            .args([PCLUSTER, "start", "-n", "1"])
            .args(options);
        Running::spawn(&mut command, "").end()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() || !self.0.exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

#[test]
fn a_task_that_the_kernel_kills_for_lack_of_memory_is_retried_with_more() {
    let Some(group) = Group::with_memory("250M") else {
        return skip("it cannot make control groups with a memory limit");
    };
    let home = home();
    lines(&home, &[400.0, 1.0]);
    // More than the group has, so that the kernel kills before the engine does.
    group.start(&home, &["--set", "engine.resources.mem=8G"]).ok();
    let cluster = Cluster::running_in(home);
    let more = ["--mem", "1G", "--retry-mem", "x1.5", "--max-crashes", "0", "--max-running", "1"];
    let function = [&["map", "work.py:once", "inputs", "--jsonl"], &more[..]].concat();
    assert_eq!(cluster.ok(&function), "1\n1\n");
    std::fs::remove_file(cluster.path().join("begun")).unwrap();
    let python = std::env::var("PCLUSTER_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let command = [&["map", "inputs"], &more[..], &["--", &python, "-S", "work.py", "once", "{}"]].concat();
    assert_eq!(cluster.ok(&command), "1\n1\n");
    for map in ["1", "2"] {
        let (_, all) = attempts(&cluster, &format!("{map}.0"), "mem_bytes");
        assert_eq!(all, [(1024.0, "out_of_memory_cgroup".into()), (1536.0, String::new())]);
        assert_eq!(attempt_counts(&cluster, map), [2, 1]);
    }
}
