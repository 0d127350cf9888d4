//! `cargo xtask bench`: pcluster and its peers; then a million tasks, and a thousand engines, on one controller.
use super::cluster::Cluster;
use super::numbers::{Numbers, publish, ratio, table, thousands};
use super::tools::Tools;
use super::{report, timed};
use crate::Places;
use crate::run::{captured, program};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const PEERS: &[&str] = &["ipyparallel", "parsl", "distributed", "hyperqueue"];
/// Tasks of the limit for Python functions.
const MANY: &str = "100000";

/// Of a full and a quick run.
const ROUNDS: [usize; 2] = [3, 1];
/// Tasks of the maps whose speed is shown.
const MAPS: [&[u64]; 2] = [&[1_000, 10_000, 100_000], &[1_000, 10_000]];
/// Tasks for those that take a millisecond or more for each.
const FEW: [u64; 2] = [2_000, 300];
const LATENCIES: [&str; 2] = ["300", "50"];
/// Maps after which the controller's memory is read.
const MEMORY: [&[u64]; 2] = [&[10_000, 100_000, 1_000_000], &[10_000]];
const ENGINES: [&[u64]; 2] = [&[1, 64, 1_000], &[1, 64]];
const ENGINE_TASKS: [u64; 2] = [100_000, 10_000];

/// Commands on the last map, `N`.
const RESULTS: [(&str, &str); 4] = [
    ("`pcluster results` (the maps)", "results"),
    ("`pcluster results N` (its tasks, the first page)", "results N"),
    ("`pcluster results N --failed`", "results N --failed"),
    ("`pcluster results N.I` (one task)", "results N.4321"),
];

pub fn run(places: &Places, quick: bool) -> Result<(), String> {
    let size = usize::from(quick);
    let tools = Tools::prepare(places, false, PEERS, true)?;
    let mut numbers = Numbers::default();
    for number in 1..=ROUNDS[size] {
        println!("\nround {number} of {}", ROUNDS[size]);
        round(&tools, size, &mut numbers);
    }
    println!("\nmany tasks, many engines");
    report("many tasks", many_tasks(&tools, size, &mut numbers));
    for count in ENGINES[size] {
        report(
            &format!("{count} engines"),
            many_engines(&tools, *count, ENGINE_TASKS[size], &mut numbers),
        );
    }
    let short = short(&numbers, size);
    let pages = [
        ("docs/explanation/performance.md", format!("{short}\n{}", growth(&numbers, size))),
        ("README.md", short),
    ];
    publish(places, &tools, ROUNDS[size], quick, "cargo xtask bench", &pages)
}

/// Each contender once. Failures are reported and skipped.
fn round(tools: &Tools, size: usize, numbers: &mut Numbers) {
    let (few, latencies, python) = (&*FEW[size].to_string(), LATENCIES[size], &*tools.python.to_string_lossy());
    report("pcluster", pcluster(tools, size, numbers));
    for (name, script, words) in [
        ("Parsl", "parsl_htex.py", &[few, latencies][..]),
        ("dask.distributed", "dask_distributed.py", &[few, latencies]),
        ("HyperQueue", "hyperqueue_true.py", &[few]),
    ] {
        report(name, tools.peer(script, words).and_then(|text| numbers.take(name, &text)));
    }
    let stock = Cluster::start(tools, "ipyparallel", None, 2, false);
    let stock = stock.and_then(|cluster| cluster.script("balanced_view.py", &[few, latencies]));
    report("ipyparallel", stock.and_then(|text| numbers.take("ipyparallel", &text)));
    for (name, words) in [("pipe", &["pipe", python, MANY, "2"][..]), ("spawn", &["spawn", few, "2"])] {
        let text = captured(&mut tools.load(words));
        report(name, text.and_then(|text| numbers.take(name, &text)));
    }
    let script = format!("seq {few} | parallel --will-cite -j 2 /bin/true");
    let seconds = timed(&mut program(&tools.root, &["sh", "-c", &script]));
    report(
        "GNU parallel",
        seconds.map(|seconds| numbers.add("parallel rate", FEW[size] as f64 / seconds)),
    );
}

fn pcluster(tools: &Tools, size: usize, numbers: &mut Numbers) -> Result<(), String> {
    let cluster = Cluster::ours(tools, 2)?;
    // Imports and file caches.
    cluster.map(1_000)?;
    for tasks in MAPS[size] {
        numbers.add(format!("map {tasks} rate"), *tasks as f64 / cluster.map(*tasks)?);
    }
    let (few, latencies) = (FEW[size].to_string(), LATENCIES[size]);
    let last = MAPS[size].last().copied().unwrap_or_default();
    let latency = captured(tools.load(&["latency"]).arg(cluster.file("client")).arg(latencies))?;
    numbers.take(&format!("map {last}"), &latency)?;
    let words = ["map", "--range", &format!("0..{few}"), "--no-output", "--", "/bin/true"];
    numbers.add("true rate", FEW[size] as f64 / timed(&mut cluster.command(&words))?);
    numbers.take("client", &cluster.script("balanced_view.py", &[&few, latencies])?)
}

/// Maps of growing size on one controller, then `results` on the last one.
fn many_tasks(tools: &Tools, size: usize, numbers: &mut Numbers) -> Result<(), String> {
    let cluster = Cluster::ours(tools, 2)?;
    sleep(Duration::from_secs(2));
    numbers.add("idle mb", cluster.controller().now_mb);
    for tasks in MEMORY[size] {
        let before = cluster.controller();
        let seconds = cluster.map(*tasks)?;
        let after = cluster.controller();
        println!("  {tasks} tasks");
        numbers.add(format!("memory {tasks} rate"), *tasks as f64 / seconds);
        numbers.add(format!("memory {tasks} us"), (after.cpu - before.cpu) * 1e6 / *tasks as f64);
        numbers.add(format!("memory {tasks} mb"), after.peak_mb);
    }
    let last = MEMORY[size].len().to_string();
    for (what, words) in RESULTS {
        let words = words.replace('N', &last);
        let words: Vec<&str> = words.split(' ').collect();
        for _ in 0..5 {
            numbers.add(what, timed(&mut cluster.command(&words))?);
        }
    }
    Ok(())
}

/// Light engines (`benches/load.rs`): the time to register, and the cost of a task with many engines.
fn many_engines(tools: &Tools, count: u64, tasks: u64, numbers: &mut Numbers) -> Result<(), String> {
    let cluster = Cluster::ours(tools, 0)?;
    let start = cluster.controller();
    let mut load = tools.load(&["engines"]);
    let load = load
        .arg(cluster.file("engine"))
        .arg(count.to_string())
        .stdout(Stdio::piped())
        .spawn();
    let mut load = Running(load.map_err(|e| format!("cannot run load: {e}"))?);
    let seconds = registered(&mut load.0)?;
    let joined = cluster.controller();
    // All engines receive the definition.
    cluster.map(count * 4)?;
    let begun = cluster.controller();
    let map_seconds = cluster.map(tasks)?;
    let done = cluster.controller();
    let began = Instant::now();
    sleep(Duration::from_secs(3));
    let idle = (cluster.controller().cpu - done.cpu) / began.elapsed().as_secs_f64();
    for (name, value) in [
        ("seconds", seconds),
        ("ms", (joined.cpu - start.cpu) * 1e3 / count as f64),
        ("rate", tasks as f64 / map_seconds),
        ("us", (done.cpu - begun.cpu) * 1e6 / tasks as f64),
        ("idle", idle * 100.0),
        ("mb", done.peak_mb),
    ] {
        numbers.add(format!("engines {count} {name}"), value);
    }
    Ok(())
}

/// The seconds that `load engines` prints.
fn registered(child: &mut Child) -> Result<f64, String> {
    let lines = BufReader::new(child.stdout.take().ok_or("load has no stdout")?).lines();
    let seconds = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("seconds ")?.parse().ok());
    seconds.ok_or_else(|| "the engines did not register".into())
}

/// Killed on drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn short(numbers: &Numbers, size: usize) -> String {
    let maps = MAPS[size]
        .iter()
        .map(|n| (format!("`pcluster map`, {} tasks", thousands(*n as f64)), format!("map {n}")));
    let peers = [
        ("Parsl, HighThroughputExecutor", "Parsl"),
        ("dask.distributed", "dask.distributed"),
        ("ipyparallel's client on pcluster's controller and engines", "client"),
        ("ipyparallel, LoadBalancedView", "ipyparallel"),
        ("*limit: Python workers on pipes, nothing recorded*", "pipe"),
    ];
    let rows = maps
        .chain(peers.map(|(label, name)| (label.into(), name.into())))
        .filter_map(|(label, name)| {
            let rate = numbers.median(&format!("{name} rate"))?;
            let ms = |key| {
                numbers
                    .median(&format!("{name} {key}"))
                    .map_or_else(String::new, |us| format!("{:.2} ms", us / 1e3))
            };
            let times = ratio(Some(rate), numbers.median("ipyparallel rate"), 1);
            Some([label, thousands(rate), times, ms("median_us"), ms("p99_us")])
        });
    let head = [
        "no-op Python function, 2 engines or workers",
        "tasks/s",
        "× ipyparallel",
        "latency, median",
        "p99",
    ];
    let python = table(&head, rows);
    let commands = [
        ("`pcluster map … -- true`", "true"),
        ("HyperQueue, its Python package", "HyperQueue"),
        ("GNU parallel", "parallel"),
        ("*limit: a bare `posix_spawn` loop*", "spawn"),
    ];
    let rows = commands.into_iter().filter_map(|(label, name)| {
        let rate = numbers.median(&format!("{name} rate"))?;
        Some([label.into(), thousands(rate), ratio(Some(rate), numbers.median("spawn rate"), 2)])
    });
    format!(
        "{python}\n{}",
        table(&["command `true NUMBER`, 2 at a time", "tasks/s", "of the limit"], rows)
    )
}

fn growth(numbers: &Numbers, size: usize) -> String {
    type Column = (&'static str, &'static str, fn(f64) -> String);
    let mb = |mb: f64| format!("{mb:.0} MB");
    let us = |us: f64| format!("{us:.1} µs");
    let per_line = |what: &str, counts: &[u64], columns: &[Column]| {
        let head: Vec<&str> = columns.iter().map(|(title, _, _)| *title).collect();
        let rows = counts.iter().map(|count| {
            let cells = columns[1..]
                .iter()
                .map(|(_, key, shown)| numbers.cell(&format!("{what} {count} {key}"), shown));
            std::iter::once(thousands(*count as f64)).chain(cells).collect::<Vec<_>>()
        });
        table(&head, rows)
    };
    let memory: [Column; 4] = [
        ("tasks in a map", "", thousands),
        ("tasks/s", "rate", thousands),
        ("controller CPU per task", "us", us),
        ("controller's peak memory", "mb", mb),
    ];
    let engines: [Column; 7] = [
        ("light engines", "", thousands),
        ("all registered after", "seconds", |s| format!("{s:.2} s")),
        ("controller CPU per registration", "ms", |ms| format!("{ms:.1} ms")),
        ("tasks/s", "rate", thousands),
        ("controller CPU per task", "us", us),
        ("idle, of one core", "idle", |percent| format!("{percent:.1} %")),
        ("peak memory", "mb", mb),
    ];
    let last = format!(
        "on a map of {} tasks",
        thousands(MEMORY[size].last().copied().unwrap_or_default() as f64)
    );
    let results = RESULTS.map(|(what, _)| [what.into(), numbers.cell(what, |s| format!("{:.0} ms", s * 1e3))]);
    format!(
        "The controller, idle with 2 engines, holds {}. Then, one map after another on it:\n\n{}\n{}\n{}",
        numbers.cell("idle mb", mb),
        per_line("memory", MEMORY[size], &memory),
        per_line("engines", ENGINES[size], &engines),
        table(&[&*last, "from the command's start to its end"], results),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_contenders_become_lines() {
        let mut numbers = Numbers::default();
        numbers
            .take("ipyparallel", "tasks 100\nseconds 0.5\nmedian_us 4000\np99_us 8000\n")
            .unwrap();
        numbers.add("map 1000 rate", 20_000.4);
        assert!(numbers.take("Parsl", "Traceback").is_err());
        let text = short(&numbers, 1);
        assert!(text.contains("| `pcluster map`, 1,000 tasks | 20,000 | 100.0 |  |  |\n"), "{text}");
        assert!(
            text.contains("| ipyparallel, LoadBalancedView | 200 | 1.0 | 4.00 ms | 8.00 ms |\n"),
            "{text}"
        );
        assert!(!text.contains("Parsl"), "{text}");
        assert!(growth(&numbers, 1).contains("| 10,000 | – | – | – |\n"));
    }
}
