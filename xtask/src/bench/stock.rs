//! `cargo xtask bench ipyparallel`: an unmodified ipyparallel client on pcluster's controller and engines, and on ipyparallel's own, with
//! the same scripts. In every round each has its turn; both clusters are up meanwhile.
use super::pages;
use super::side::Side;
use super::table::{self, median, thousands};
use super::tools::Tools;
use crate::Places;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

const MARK: &str = "cargo xtask bench ipyparallel";
/// Of the arrays that are pushed, MB.
const ARRAY: &str = "100";

struct Size {
    rounds: usize,
    tasks: u64,
    latencies: u64,
    /// For the memory of the controllers, after the rounds: of pcluster, and of ipyparallel, which takes longer.
    many: [u64; 2],
    /// To so many engines at once; the last is the size of the cluster.
    calls: &'static [&'static str],
    count: &'static str,
    pushes: &'static str,
    push_to: &'static [&'static str],
}

const FULL: Size = Size {
    rounds: 3,
    tasks: 2_000,
    latencies: 200,
    many: [100_000, 20_000],
    calls: &["1", "16", "64"],
    count: "300",
    pushes: "3",
    push_to: &["1", "8"],
};

const QUICK: Size = Size {
    rounds: 2,
    tasks: 300,
    latencies: 50,
    many: [2_000, 2_000],
    calls: &["1", "4"],
    count: "20",
    pushes: "1",
    push_to: &["1"],
};

const SIDES: [&str; 2] = ["pcluster", "ipyparallel"];

/// Of each side: the values of the rounds, by name.
#[derive(Default)]
struct Found([BTreeMap<String, Vec<f64>>; 2]);

impl Found {
    fn add(&mut self, side: usize, name: &str, value: f64) {
        if let Some(values) = self.0.get_mut(side) {
            values.entry(name.into()).or_default().push(value);
        }
    }

    fn median(&self, side: usize, name: &str) -> Option<f64> {
        self.0.get(side)?.get(name).map(|values| median(values))
    }
}

pub fn run(places: &Places, quick: bool) -> Result<(), String> {
    let size = if quick { QUICK } else { FULL };
    let tools = Tools::for_client(places, false)?;
    let mut found = measured(&tools, &size);
    shared(&mut found, &size);
    let text = format!("{}\n{}", table::head(places, size.rounds, &tools), tables(&found, &size));
    let kept = tools.folder.join("ipyparallel.md");
    fs::write(&kept, &text).map_err(|e| format!("cannot write {}: {e}", kept.display()))?;
    println!("\n{text}");
    if quick {
        println!("(--quick: no page is changed; the tables are in {})", kept.display());
        return Ok(());
    }
    pages::put_marked(&places.root.join("docs/explanation/performance.md"), MARK, &text)
}

fn measured(tools: &Tools, size: &Size) -> Found {
    let mut found = Found::default();
    said("many tasks, 2 engines", two_engines(tools, size, &mut found));
    said("direct views", direct(tools, size, &mut found));
    said("pushes, both encrypted or neither", alike(tools, size, &mut found));
    found
}

fn said(what: &str, done: Result<(), String>) {
    match done {
        Ok(()) => println!("  {what}"),
        Err(why) => println!("  {what} failed: {why}"),
    }
}

fn both<'a>(tools: &'a Tools, engines: u64) -> Result<[Side<'a>; 2], String> {
    Ok([Side::start(tools, true, engines, &[])?, Side::start(tools, false, engines, &[])?])
}

fn two_engines(tools: &Tools, size: &Size, found: &mut Found) -> Result<(), String> {
    let sides = both(tools, 2)?;
    for side in &sides {
        // The engines have imported what they need.
        side.script("balanced_view.py", &["50", "1"])?;
    }
    for _ in 0..size.rounds {
        for (i, side) in sides.iter().enumerate() {
            tasks(side, i, size.tasks, size.latencies, "", found)?;
        }
    }
    for (i, side) in sides.iter().enumerate() {
        found.add(i, "idle_mb", side.processes().0.mb);
        tasks(side, i, if i == 0 { size.many[0] } else { size.many[1] }, 1, "many_", found)?;
        found.add(i, "many_mb", side.processes().0.mb);
    }
    Ok(())
}

fn tasks(side: &Side, i: usize, count: u64, latencies: u64, prefix: &str, found: &mut Found) -> Result<(), String> {
    let before = side.processes();
    let values = side.script("balanced_view.py", &[&count.to_string(), &latencies.to_string()])?;
    let after = side.processes();
    let value = |name: &str| values.get(name).copied().ok_or_else(|| format!("the script did not say {name}"));
    // What the script does before and after the map is work for the processes, too.
    let all = (count + latencies + 50) as f64;
    let per_task = |before: f64, after: f64| (after - before) / all * 1e6;
    found.add(i, &format!("{prefix}rate"), count as f64 / value("seconds")?);
    found.add(i, &format!("{prefix}client_us"), value("client_cpu")? / count as f64 * 1e6);
    found.add(i, &format!("{prefix}controller_us"), per_task(before.0.cpu, after.0.cpu));
    found.add(i, &format!("{prefix}engines_us"), per_task(before.1.cpu, after.1.cpu));
    found.add(i, &format!("{prefix}latency"), value("median_us")? / 1e6);
    found.add(i, &format!("{prefix}p99"), value("p99_us")? / 1e6);
    Ok(())
}

fn direct(tools: &Tools, size: &Size, found: &mut Found) -> Result<(), String> {
    let most = size.calls.last().copied().unwrap_or("1");
    let sides = both(tools, most.parse().unwrap_or(1))?;
    for _ in 0..size.rounds {
        for (i, side) in sides.iter().enumerate() {
            let calls = [&[most, "calls", size.count], size.calls].concat();
            take(i, "", side.script("direct_view.py", &calls)?, found);
            let pushes = [&[most, "push", ARRAY, size.pushes], size.push_to].concat();
            take(i, "", side.script("direct_view.py", &pushes)?, found);
        }
    }
    Ok(())
}

/// ipyparallel does not encrypt by default: here pcluster does not, and ipyparallel does.
fn alike(tools: &Tools, size: &Size, found: &mut Found) -> Result<(), String> {
    let most = size.push_to.last().copied().unwrap_or("1");
    let engines = most.parse().unwrap_or(1);
    let sides = [
        Side::start(tools, true, engines, &["--no-curve"])?,
        Side::start_encrypted(tools, engines)?,
    ];
    for _ in 0..size.rounds {
        for (side, prefix) in sides.iter().zip(["plain_", "curve_"]) {
            let pushes = [&[most, "push", ARRAY, size.pushes], size.push_to].concat();
            take(usize::from(!side.ours), prefix, side.script("direct_view.py", &pushes)?, found);
        }
    }
    Ok(())
}

/// Single measurements are shown in two lines: pcluster encrypted, and ipyparallel not.
fn shared(found: &mut Found, size: &Size) {
    for engines in size.push_to {
        for (side, prefix) in [(0, "curve_"), (1, "plain_")] {
            if let Some(seconds) = found.median(side, &format!("push_{engines}")) {
                found.add(side, &format!("{prefix}push_{engines}"), seconds);
            }
        }
    }
}

fn take(side: usize, prefix: &str, values: BTreeMap<String, f64>, found: &mut Found) {
    for (name, value) in values {
        found.add(side, &format!("{prefix}{name}"), value);
    }
}

fn tables(found: &Found, size: &Size) -> String {
    let mut out = format!(
        "| an unmodified ipyparallel client | {} | {} | ratio |\n|---|--:|--:|--:|\n",
        SIDES[0], SIDES[1]
    );
    let mut row = |label: String, name: &str, shown: &dyn Fn(f64) -> String, more_is_better: bool| {
        let [ours, theirs] = [0, 1].map(|side| found.median(side, name));
        let cell = |value: Option<f64>| value.map_or_else(|| "–".into(), shown);
        let ratio = match (ours, theirs) {
            (Some(a), Some(b)) if more_is_better => format!("{:.1} ×", a / b),
            (Some(a), Some(b)) => format!("1 / {:.1}", b / a),
            _ => String::new(),
        };
        let _ = writeln!(out, "| {label} | {} | {} | {ratio} |", cell(ours), cell(theirs));
    };
    let (ms, us) = (|s: f64| format!("{:.2} ms", s * 1e3), |us: f64| format!("{us:.0} µs"));
    let (mb, seconds) = (|mb: f64| format!("{mb:.0} MB"), |s: f64| format!("{s:.2} s"));
    let rate = |rate: f64| thousands(rate);
    row(
        format!("`lview.map` of {} no-ops, 2 engines, tasks/s", thousands(size.tasks as f64)),
        "rate",
        &rate,
        true,
    );
    row("… CPU for a task: client".into(), "client_us", &us, false);
    row("… controller (all its processes)".into(), "controller_us", &us, false);
    row("… engines and workers".into(), "engines_us", &us, false);
    row("`lview.apply_sync`, median".into(), "latency", &ms, false);
    row("… 99th percentile".into(), "p99", &ms, false);
    for engines in size.calls {
        let engines_word = if *engines == "1" { "engine" } else { "engines" };
        row(
            format!("`dview.apply_sync` to {engines} {engines_word}, median"),
            &format!("calls_{engines}"),
            &ms,
            false,
        );
    }
    for engines in size.push_to {
        let engines_word = if *engines == "1" { "engine" } else { "engines" };
        row(
            format!("push of a {ARRAY} MB array to {engines} {engines_word}"),
            &format!("push_{engines}"),
            &seconds,
            false,
        );
        row("… both encrypted".into(), &format!("curve_push_{engines}"), &seconds, false);
        row("… neither encrypted".into(), &format!("plain_push_{engines}"), &seconds, false);
    }
    row("controller's memory before many tasks".into(), "idle_mb", &mb, false);
    let [ours, theirs] = size.many.map(|count| thousands(count as f64));
    let after = match ours == theirs {
        true => format!("… after {ours} tasks more"),
        false => format!("… after {ours} tasks more; ipyparallel's after {theirs}"),
    };
    row(after, "many_mb", &mb, false);
    row("… tasks/s meanwhile".into(), "many_rate", &rate, true);
    row("… controller's CPU for a task".into(), "many_controller_us", &us, false);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_both_sides_and_their_ratio() {
        let mut found = Found::default();
        for (side, rate) in [(0, 900.0), (0, 1100.0), (1, 400.0), (0, 1000.0)] {
            found.add(side, "rate", rate);
        }
        found.add(0, "push_1", 0.5);
        found.add(1, "push_1", 0.25);
        let text = tables(&found, &QUICK);
        assert!(
            text.contains("| `lview.map` of 300 no-ops, 2 engines, tasks/s | 1,000 | 400 | 2.5 × |"),
            "{text}"
        );
        assert!(
            text.contains("| push of a 100 MB array to 1 engine | 0.50 s | 0.25 s | 1 / 0.5 |"),
            "{text}"
        );
        assert!(text.contains("| … 99th percentile | – | – |  |"), "{text}");
    }
}
