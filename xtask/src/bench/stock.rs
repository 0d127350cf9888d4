//! `cargo xtask bench ipyparallel`: an unmodified ipyparallel client on pcluster's controller and engines, and on ipyparallel's own, with
//! the same scripts. Both clusters are up and take turns.
use super::cluster::Cluster;
use super::numbers::{Numbers, pairs, publish, table, thousands};
use super::report;
use super::tools::Tools;
use crate::Places;

/// MB of the arrays that are pushed.
const ARRAY: &str = "100";

/// Of a full and a quick run.
const ROUNDS: [usize; 2] = [3, 2];
const TASKS: [u64; 2] = [2_000, 300];
const LATENCIES: [u64; 2] = [200, 50];
/// Tasks before the controllers' memory is read: pcluster's, and ipyparallel's, which takes longer.
const MANY: [[u64; 2]; 2] = [[100_000, 20_000], [2_000, 2_000]];
/// Calls go to this many engines at once; the last is the size of the cluster.
const CALLS: [&[&str]; 2] = [&["1", "16", "64"], &["1", "4"]];
const COUNT: [&str; 2] = ["300", "20"];
const PUSHES: [&str; 2] = ["3", "1"];
const PUSH_TO: [&[&str]; 2] = [&["1", "8"], &["1"]];

const SIDES: [&str; 2] = ["pcluster", "ipyparallel"];

pub fn run(places: &Places, quick: bool) -> Result<(), String> {
    let size = usize::from(quick);
    let tools = Tools::prepare(places, false, &["ipyparallel", "numpy"], false)?;
    let mut numbers = Numbers::default();
    report("many tasks, 2 engines", two_engines(&tools, size, &mut numbers));
    report("direct views", direct(&tools, size, &mut numbers));
    report("pushes, both encrypted or neither", alike(&tools, size, &mut numbers));
    // The sides' defaults are lines of their own, and those of equal encryption.
    for engines in PUSH_TO[size] {
        for (side, prefix) in [("pcluster", "curve_"), ("ipyparallel", "plain_")] {
            if let Some(seconds) = numbers.median(&format!("{side} push_{engines}")) {
                numbers.add(format!("{side} {prefix}push_{engines}"), seconds);
            }
        }
    }
    let pages = [("docs/explanation/performance.md", tables(&numbers, size))];
    publish(places, &tools, ROUNDS[size], quick, "cargo xtask bench ipyparallel", &pages)
}

/// Both clusters, with CURVE or not.
fn both(tools: &Tools, engines: u64, curve: [bool; 2]) -> Result<[(&'static str, Cluster<'_>); 2], String> {
    Ok([
        (SIDES[0], Cluster::start(tools, SIDES[0], Some(&tools.pcluster), engines, curve[0])?),
        (SIDES[1], Cluster::start(tools, SIDES[1], None, engines, curve[1])?),
    ])
}

fn two_engines(tools: &Tools, size: usize, numbers: &mut Numbers) -> Result<(), String> {
    let sides = both(tools, 2, [true, false])?;
    for (_, cluster) in &sides {
        // The engines import what they need.
        cluster.script("balanced_view.py", &["50", "1"])?;
    }
    for _ in 0..ROUNDS[size] {
        for (side, cluster) in &sides {
            tasks(cluster, side, TASKS[size], LATENCIES[size], numbers)?;
        }
    }
    for ((side, cluster), count) in sides.iter().zip(MANY[size]) {
        numbers.add(format!("{side} idle_mb"), cluster.processes().0.now_mb);
        tasks(cluster, &format!("{side} many"), count, 1, numbers)?;
        numbers.add(format!("{side} many_mb"), cluster.processes().0.now_mb);
    }
    Ok(())
}

fn tasks(cluster: &Cluster, name: &str, count: u64, latencies: u64, numbers: &mut Numbers) -> Result<(), String> {
    let before = cluster.processes();
    let text = cluster.script("balanced_view.py", &[&count.to_string(), &latencies.to_string()])?;
    let after = cluster.processes();
    numbers.take(name, &text)?;
    // The processes also work for the script's calls before and after the map.
    let per_task = |cpu: f64| cpu / (count + latencies + 50) as f64 * 1e6;
    let client = pairs(&text)
        .get("client_cpu")
        .copied()
        .ok_or("balanced_view.py did not print client_cpu")?;
    numbers.add(format!("{name} client_us"), client / count as f64 * 1e6);
    numbers.add(format!("{name} controller_us"), per_task(after.0.cpu - before.0.cpu));
    numbers.add(format!("{name} engines_us"), per_task(after.1.cpu - before.1.cpu));
    Ok(())
}

fn direct(tools: &Tools, size: usize, numbers: &mut Numbers) -> Result<(), String> {
    let all = CALLS[size].last().copied().unwrap_or("1");
    let sides = both(tools, all.parse().unwrap_or(1), [true, false])?;
    for _ in 0..ROUNDS[size] {
        for (side, cluster) in &sides {
            let calls = [&[all, "calls", COUNT[size]], CALLS[size]].concat();
            numbers.take(side, &cluster.script("direct_view.py", &calls)?)?;
            numbers.take(side, &push(cluster, all, size)?)?;
        }
    }
    Ok(())
}

/// By default pcluster encrypts and ipyparallel does not; here the other way round.
fn alike(tools: &Tools, size: usize, numbers: &mut Numbers) -> Result<(), String> {
    let all = PUSH_TO[size].last().copied().unwrap_or("1");
    let sides = both(tools, all.parse().unwrap_or(1), [false, true])?;
    for _ in 0..ROUNDS[size] {
        for ((side, cluster), prefix) in sides.iter().zip(["plain", "curve"]) {
            for (key, seconds) in pairs(&push(cluster, all, size)?) {
                numbers.add(format!("{side} {prefix}_{key}"), seconds);
            }
        }
    }
    Ok(())
}

fn push(cluster: &Cluster, all: &str, size: usize) -> Result<String, String> {
    cluster.script("direct_view.py", &[&[all, "push", ARRAY, PUSHES[size]], PUSH_TO[size]].concat())
}

fn tables(numbers: &Numbers, size: usize) -> String {
    let (ms, us) = (|s: f64| format!("{:.2} ms", s * 1e3), |us: f64| format!("{us:.0} µs"));
    let (mb, seconds) = (|mb: f64| format!("{mb:.0} MB"), |s: f64| format!("{s:.2} s"));
    let from_us = |us: f64| format!("{:.2} ms", us / 1e3);
    let plural = |n: &str| if n == "1" { "1 engine".into() } else { format!("{n} engines") };
    let row = |label: String, name: String, shown: &dyn Fn(f64) -> String| {
        let ours = numbers.median(&format!("pcluster {name}"));
        let theirs = numbers.median(&format!("ipyparallel {name}"));
        let ratio = match (ours, theirs) {
            (Some(a), Some(b)) if name.ends_with("rate") => format!("{:.1} ×", a / b),
            (Some(a), Some(b)) => format!("1 / {:.1}", b / a),
            _ => String::new(),
        };
        let cell = |value: Option<f64>| value.map_or_else(|| "–".into(), shown);
        [label, cell(ours), cell(theirs), ratio]
    };
    let map = format!("`lview.map` of {} no-ops, 2 engines, tasks/s", thousands(TASKS[size] as f64));
    let mut rows = vec![
        row(map, "rate".into(), &thousands),
        row("… CPU for a task: client".into(), "client_us".into(), &us),
        row("… controller (all its processes)".into(), "controller_us".into(), &us),
        row("… engines and workers".into(), "engines_us".into(), &us),
        row("`lview.apply_sync`, median".into(), "median_us".into(), &from_us),
        row("… 99th percentile".into(), "p99_us".into(), &from_us),
    ];
    for n in CALLS[size] {
        let label = format!("`dview.apply_sync` to {}, median", plural(n));
        rows.push(row(label, format!("calls_{n}"), &ms));
    }
    for n in PUSH_TO[size] {
        let label = format!("push of a {ARRAY} MB array to {}", plural(n));
        rows.push(row(label, format!("push_{n}"), &seconds));
        rows.push(row("… both encrypted".into(), format!("curve_push_{n}"), &seconds));
        rows.push(row("… neither encrypted".into(), format!("plain_push_{n}"), &seconds));
    }
    let [ours, theirs] = MANY[size].map(|count| thousands(count as f64));
    let theirs = if ours == theirs {
        String::new()
    } else {
        format!("; ipyparallel's after {theirs}")
    };
    rows.push(row("controller's memory before many tasks".into(), "idle_mb".into(), &mb));
    rows.push(row(format!("… after {ours} tasks more{theirs}"), "many_mb".into(), &mb));
    rows.push(row("… tasks/s meanwhile".into(), "many rate".into(), &thousands));
    rows.push(row("… controller's CPU for a task".into(), "many controller_us".into(), &us));
    table(&["an unmodified ipyparallel client", SIDES[0], SIDES[1], "ratio"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_both_sides_and_their_ratio() {
        let mut numbers = Numbers::default();
        let values = [
            ("pcluster", 900.0),
            ("pcluster", 1100.0),
            ("ipyparallel", 400.0),
            ("pcluster", 1000.0),
        ];
        values
            .into_iter()
            .for_each(|(side, rate)| numbers.add(format!("{side} rate"), rate));
        numbers.add("pcluster push_1", 0.5);
        numbers.add("ipyparallel push_1", 0.25);
        let text = tables(&numbers, 1);
        assert!(
            text.contains("| `lview.map` of 300 no-ops, 2 engines, tasks/s | 1,000 | 400 | 2.5 × |\n"),
            "{text}"
        );
        assert!(
            text.contains("| push of a 100 MB array to 1 engine | 0.50 s | 0.25 s | 1 / 0.5 |\n"),
            "{text}"
        );
        assert!(text.contains("| … 99th percentile | – | – |  |\n"), "{text}");
    }
}
