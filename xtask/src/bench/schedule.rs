//! `cargo xtask bench schedule`: what the controller's decisions alone cost for each task, while tasks of one processor, of one with
//! memory, and of four wait for the same nodes. The simulated cluster is part of the measured time.
use super::numbers::{Numbers, pairs, publish, table, thousands};
use super::report;
use super::tools::Tools;
use crate::Places;
use crate::run::captured;

/// Engines, nodes, tasks.
const FULL: &[[u64; 3]] = &[
    [1_000, 20, 10_000],
    [1_000, 20, 100_000],
    [1_000, 20, 1_000_000],
    [10_000, 200, 100_000],
    [10_000, 200, 1_000_000],
    [10_000, 200, 10_000_000],
];

pub fn run(places: &Places, quick: bool) -> Result<(), String> {
    let tools = Tools::prepare(places, quick, &[], true)?;
    let mut numbers = Numbers::default();
    let sizes = if quick { &[[100, 2, 1_000]][..] } else { FULL };
    for size in sizes {
        let name = size.map(|number| number.to_string()).join(" ");
        report(&name, measure(&tools, size, &name, &mut numbers));
    }
    let pages = [("docs/explanation/performance.md", shown(sizes, &numbers))];
    publish(places, &tools, 1, quick, "cargo xtask bench schedule", &pages)
}

fn measure(tools: &Tools, size: &[u64; 3], name: &str, numbers: &mut Numbers) -> Result<(), String> {
    let words = size.map(|number| number.to_string());
    let text = captured(tools.load(&["schedule"]).args(words))?;
    let seen = pairs(&text);
    if seen.get("ended") != Some(&(size[2] as f64)) {
        return Err(format!("not all tasks ended:\n{text}"));
    }
    for key in ["task_us", "total_s", "peak_mb"] {
        let value = seen.get(key).ok_or_else(|| format!("no {key} in\n{text}"))?;
        numbers.add(format!("{key} {name}"), *value);
    }
    Ok(())
}

fn shown(sizes: &[[u64; 3]], numbers: &Numbers) -> String {
    let head = [
        "simulated engines",
        "nodes",
        "tasks",
        "CPU for each task",
        "whole run",
        "peak memory",
    ];
    let rows = sizes.iter().map(|size| {
        let name = size.map(|number| number.to_string()).join(" ");
        let value = |key: &str, unit: &str, digits: usize| numbers.cell(&format!("{key} {name}"), |seen| format!("{seen:.digits$} {unit}"));
        let [engines, nodes, tasks] = size.map(|number| thousands(number as f64));
        let measured = [value("task_us", "µs", 1), value("total_s", "s", 1), value("peak_mb", "MB", 0)];
        [vec![engines, nodes, tasks], measured.to_vec()].concat()
    });
    table(&head, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_was_not_measured_has_dashes() {
        let mut numbers = Numbers::default();
        for (key, value) in [("task_us", 12.34), ("total_s", 1.26), ("peak_mb", 60.0)] {
            numbers.add(format!("{key} 1000 20 10000"), value);
        }
        let text = shown(&FULL[..2], &numbers);
        assert!(text.contains("| 1,000 | 20 | 10,000 | 12.3 µs | 1.3 s | 60 MB |\n"), "{text}");
        assert!(text.contains("| 1,000 | 20 | 100,000 | – | – | – |\n"), "{text}");
    }
}
