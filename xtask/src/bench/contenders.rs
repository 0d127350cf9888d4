//! One round: each contender once. Failing ones are reported and skipped.
use super::Size;
use super::cluster::Cluster;
use super::table::Numbers;
use super::tools::Tools;
use crate::run::{captured, program};
use std::time::Instant;

/// Tasks for the contenders that are limits.
const MANY: u64 = 100_000;
/// Engines, workers or lanes of every contender.
const TWO: &str = "2";

pub fn round(tools: &Tools, size: &Size, numbers: &mut Numbers) {
    said("pcluster", pcluster(tools, size, numbers));
    for (name, script) in [("Parsl", "parsl_htex.py"), ("dask.distributed", "dask_distributed.py")] {
        let result = peer(tools, script, &[&size.few.to_string(), &size.latencies.to_string()]);
        said(name, result.and_then(|text| numbers.take(name, &text)));
    }
    said("ipyparallel", ipyparallel(tools, size, numbers));
    let python = tools.python.to_string_lossy();
    let limit = load(tools, &["pipe", &python, &MANY.to_string(), TWO]);
    said("pipe", limit.and_then(|text| numbers.take("pipe", &text)));
    let limit = load(tools, &["spawn", &size.few.to_string(), TWO]);
    said("spawn", limit.and_then(|text| numbers.take("spawn", &text)));
    said("GNU parallel", parallel(tools, size, numbers));
    let result = peer(tools, "hyperqueue_true.py", &[&size.few.to_string()]);
    said("HyperQueue", result.and_then(|text| numbers.take("HyperQueue", &text)));
}

fn said(name: &str, result: Result<(), String>) {
    match result {
        Ok(()) => println!("  {name}"),
        Err(why) => println!("  {name} failed: {why}"),
    }
}

fn pcluster(tools: &Tools, size: &Size, numbers: &mut Numbers) -> Result<(), String> {
    let cluster = Cluster::start(tools, 2)?;
    // Warm up: imports are done, files are cached.
    cluster.map(1_000)?;
    for tasks in size.maps {
        numbers.rate(&format!("map {tasks}"), *tasks as f64 / cluster.map(*tasks)?);
    }
    let file = cluster.client_file().to_string_lossy().into_owned();
    numbers.take("map", &load(tools, &["latency", &file, &size.latencies.to_string()])?)?;
    numbers.rate("true", size.few as f64 / cluster.map_of_true(size.few)?);
    let script = peer(
        tools,
        "balanced_view.py",
        &[&file, &size.few.to_string(), &size.latencies.to_string()],
    )?;
    numbers.take("ipyparallel on pcluster", &script)
}

/// Its own controller and engines, in an IPython directory of their own.
fn ipyparallel(tools: &Tools, size: &Size, numbers: &mut Numbers) -> Result<(), String> {
    let ipython = tools.folder.join("ipyparallel");
    let ipcluster = |words: &[&str]| {
        let mut command = program(&tools.folder, &[&tools.python.to_string_lossy(), "-m", "ipyparallel.cluster"]);
        command.args(words).env("IPYTHONDIR", &ipython);
        captured(&mut command)
    };
    let _ = ipcluster(&["stop"]);
    let _ = std::fs::remove_dir_all(&ipython);
    ipcluster(&["start", "-n", TWO, "--daemonize"])?;
    let file = ipython.join("profile_default/security/ipcontroller-client.json");
    let until = Instant::now() + std::time::Duration::from_secs(60);
    while !file.exists() && Instant::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let file = file.to_string_lossy().into_owned();
    let result = peer(
        tools,
        "balanced_view.py",
        &[&file, &size.few.to_string(), &size.latencies.to_string()],
    );
    let stopped = ipcluster(&["stop"]);
    numbers.take("ipyparallel", &result?)?;
    stopped.map(drop)
}

fn parallel(tools: &Tools, size: &Size, numbers: &mut Numbers) -> Result<(), String> {
    if !tools.has_parallel {
        return Err("it is not installed".into());
    }
    let inputs: String = (0..size.few).map(|i| format!("{i}\n")).collect();
    let file = tools.folder.join("inputs.txt");
    std::fs::write(&file, inputs).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
    let began = Instant::now();
    let words = ["parallel", "--will-cite", "-j", TWO, "-a", &file.to_string_lossy(), "/bin/true"];
    captured(&mut program(&tools.root, &words))?;
    numbers.rate("GNU parallel", size.few as f64 / began.elapsed().as_secs_f64());
    Ok(())
}

fn peer(tools: &Tools, script: &str, words: &[&str]) -> Result<String, String> {
    let script = tools.root.join("benches/peers").join(script);
    let mut command = program(
        &tools.folder,
        &[&tools.python.to_string_lossy(), "-W", "ignore", &script.to_string_lossy()],
    );
    captured(command.args(words))
}

pub fn load(tools: &Tools, words: &[&str]) -> Result<String, String> {
    captured(program(&tools.root, &[&tools.load.to_string_lossy()]).args(words))
}
