//! What grows: many tasks on one controller, many engines on one controller.
use super::Size;
use super::cluster::Cluster;
use super::table::{EnginesRow, MemoryRow, Numbers};
use super::tools::Tools;
use crate::run::program;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Maps of growing size, one after another, on one controller; then `results` on what is there.
pub fn tasks(tools: &Tools, size: &Size, numbers: &mut Numbers) {
    if let Err(why) = try_tasks(tools, size, numbers) {
        println!("  many tasks: {why}");
    }
}

fn try_tasks(tools: &Tools, size: &Size, numbers: &mut Numbers) -> Result<(), String> {
    let cluster = Cluster::start(tools, 2)?;
    std::thread::sleep(Duration::from_secs(2));
    numbers.idle_mb = cluster.usage().now_mb;
    for tasks in size.memory {
        let before = cluster.usage();
        let seconds = cluster.map(*tasks)?;
        let after = cluster.usage();
        println!("  {tasks} tasks");
        numbers.memory.push(MemoryRow {
            tasks: *tasks,
            rate: *tasks as f64 / seconds,
            cpu_us: (after.cpu - before.cpu) * 1e6 / *tasks as f64,
            peak_mb: after.peak_mb,
        });
    }
    let last = size.memory.len().to_string();
    for (what, words) in [
        ("`pcluster results` (the maps)", vec!["results"]),
        ("`pcluster results N` (its tasks, the first page)", vec!["results", &last]),
        ("`pcluster results N --failed`", vec!["results", &last, "--failed"]),
        ("`pcluster results N.I` (one task)", vec!["results", &format!("{last}.4321")]),
    ] {
        let mut times = Vec::new();
        for _ in 0..5 {
            times.push(cluster.timed(&words)?);
        }
        numbers.results.push((what.into(), super::table::median(&times)));
    }
    Ok(())
}

/// Light engines (`benches/load.rs`): time to register, and the cost of a task with many engines.
pub fn engines(tools: &Tools, size: &Size, numbers: &mut Numbers) {
    for count in size.engines {
        match try_engines(tools, *count, size.engine_tasks) {
            Ok(row) => {
                println!("  {count} engines");
                numbers.engines.push(row);
            }
            Err(why) => println!("  {count} engines: {why}"),
        }
    }
}

fn try_engines(tools: &Tools, count: u64, tasks: u64) -> Result<EnginesRow, String> {
    let cluster = Cluster::start(tools, 0)?;
    let before = cluster.usage();
    let file = cluster.engine_file().to_string_lossy().into_owned();
    let words = [&tools.load.to_string_lossy(), "engines", &file, &count.to_string()];
    let mut command = program(&tools.root, &words);
    let mut child = Running(
        command
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot run load: {e}"))?,
    );
    let seconds = registered(&mut child.0)?;
    let joined = cluster.usage();
    // Definitions have reached all engines.
    cluster.map(count * 4)?;
    let begun = cluster.usage();
    let map_seconds = cluster.map(tasks)?;
    let after = cluster.usage();
    let idle = idle_cpu(&cluster);
    Ok(EnginesRow {
        count,
        seconds,
        cpu_ms: (joined.cpu - before.cpu) * 1e3 / count as f64,
        rate: tasks as f64 / map_seconds,
        cpu_us: (after.cpu - begun.cpu) * 1e6 / tasks as f64,
        idle_percent: idle * 100.0,
        peak_mb: after.peak_mb,
    })
}

/// Of one core, with the engines only beating.
fn idle_cpu(cluster: &Cluster) -> f64 {
    let (began, before) = (Instant::now(), cluster.usage());
    std::thread::sleep(Duration::from_secs(3));
    (cluster.usage().cpu - before.cpu) / began.elapsed().as_secs_f64()
}

/// The seconds that `load engines` reports.
fn registered(child: &mut Child) -> Result<f64, String> {
    let stdout = child.stdout.take().ok_or("load has no stdout")?;
    for line in BufReader::new(stdout).lines() {
        let line = line.map_err(|e| format!("cannot read what load says: {e}"))?;
        if let Some(seconds) = line.strip_prefix("seconds ") {
            return seconds.parse().map_err(|e| format!("{seconds:?}: {e}"));
        }
    }
    Err("the engines did not register".into())
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
