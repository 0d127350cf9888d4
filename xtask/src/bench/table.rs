//! What was measured, its medians, and the tables made of them.
use super::tools::Tools;
use crate::Places;
use crate::run::{captured, program};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

#[derive(Default)]
pub struct Numbers {
    /// Tasks a second of each round.
    rates: BTreeMap<String, Vec<f64>>,
    /// Median and 99th percentile of each round, microseconds.
    latencies: BTreeMap<String, Vec<(f64, f64)>>,
    pub idle_mb: f64,
    pub memory: Vec<MemoryRow>,
    pub engines: Vec<EnginesRow>,
    /// Seconds of a command on the last of the maps.
    pub results: Vec<(String, f64)>,
}

pub struct MemoryRow {
    pub tasks: u64,
    pub rate: f64,
    /// The controller's CPU for one task.
    pub cpu_us: f64,
    pub peak_mb: f64,
}

pub struct EnginesRow {
    pub count: u64,
    /// Until all were registered.
    pub seconds: f64,
    /// The controller's CPU for one registration.
    pub cpu_ms: f64,
    pub rate: f64,
    pub cpu_us: f64,
    /// Of one core, when they only beat.
    pub idle_percent: f64,
    pub peak_mb: f64,
}

impl Numbers {
    pub fn rate(&mut self, name: &str, rate: f64) {
        self.rates.entry(name.into()).or_default().push(rate);
    }

    /// Takes in the `name value` lines of a contender.
    pub fn take(&mut self, name: &str, said: &str) -> Result<(), String> {
        let value = |key: &str| {
            let found = said.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
            found.trim().parse::<f64>().ok()
        };
        let (speed, latency) = (value("tasks").zip(value("seconds")), value("median_us").zip(value("p99_us")));
        if speed.is_none() && latency.is_none() {
            return Err(format!("it did not say what it measured: {said:?}"));
        }
        if let Some((tasks, seconds)) = speed {
            self.rate(name, tasks / seconds);
        }
        self.latencies.entry(name.into()).or_default().extend(latency);
        Ok(())
    }

    fn median_rate(&self, name: &str) -> Option<f64> {
        self.rates.get(name).filter(|rates| !rates.is_empty()).map(|rates| median(rates))
    }

    fn latency(&self, name: &str) -> Option<(f64, f64)> {
        let all = self.latencies.get(name).filter(|all| !all.is_empty())?;
        let (medians, tails): (Vec<f64>, Vec<f64>) = all.iter().copied().unzip();
        Some((median(&medians), median(&tails)))
    }

    /// The name in the table, the one of the speed, the one of the latency.
    fn python_rows(&self) -> Vec<(String, String, &'static str)> {
        let maps = self.rates.keys().filter_map(|name| name.strip_prefix("map ")?.parse::<u64>().ok());
        let mut maps: Vec<u64> = maps.collect();
        maps.sort_unstable();
        let last = maps.last().copied();
        let mut rows: Vec<(String, String, &'static str)> = maps
            .iter()
            .map(|n| {
                let latency = if Some(*n) == last { "map" } else { "" };
                (
                    format!("`pcluster map`, {} tasks", thousands(*n as f64)),
                    format!("map {n}"),
                    latency,
                )
            })
            .collect();
        for (label, name) in [
            ("Parsl, HighThroughputExecutor", "Parsl"),
            ("dask.distributed", "dask.distributed"),
            (
                "ipyparallel's client on pcluster's controller and engines",
                "ipyparallel on pcluster",
            ),
            ("ipyparallel, LoadBalancedView", "ipyparallel"),
            ("*limit: Python workers on pipes, nothing recorded*", "pipe"),
        ] {
            rows.push((label.into(), name.into(), name));
        }
        rows
    }
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// `12,345`, rounded to what was measured (three digits are enough of a noisy number).
pub fn thousands(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// When, on what, with which versions.
pub fn head(places: &Places, rounds: usize, tools: &Tools) -> String {
    let said = |words: &[&str]| captured(&mut program(&places.root, words)).map_or_else(|_| "?".into(), |s| s.trim().to_string());
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, m)| m.to_string()));
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut head = format!(
        "Measured on {} by `cargo xtask bench`: {cores} cores ({}), Linux {}, Python {}; medians of {rounds} rounds. \
         Other work ran on the machine too (load at the end: {}), so compare lines with each other. ",
        said(&["date", "-u", "+%Y-%m-%d"]),
        model.unwrap_or_else(|| "unknown".into()),
        said(&["uname", "-r"]),
        said(&[
            &tools.python.to_string_lossy(),
            "-c",
            "import platform; print(platform.python_version())"
        ]),
        load.split(' ').next().unwrap_or("?"),
    );
    let _ = write!(head, "Peers: {}.", tools.versions.join(", "));
    if !tools.missing.is_empty() {
        let _ = write!(head, " Not measured: {}.", tools.missing.join(", "));
    }
    head.push('\n');
    head
}

/// For README.
pub fn short(numbers: &Numbers) -> String {
    python(numbers) + "\n" + &commands(numbers)
}

pub fn full(numbers: &Numbers) -> String {
    [
        python(numbers),
        commands(numbers),
        memory(numbers),
        engines(numbers),
        results(numbers),
    ]
    .join("\n")
}

fn python(numbers: &Numbers) -> String {
    let mut out = String::from(
        "| no-op Python function, 2 engines or workers | tasks/s | × ipyparallel | latency, median | p99 |\n|---|--:|--:|--:|--:|\n",
    );
    let base = numbers.median_rate("ipyparallel").unwrap_or(f64::NAN);
    for (label, name, latency) in numbers.python_rows() {
        let Some(rate) = numbers.median_rate(&name) else { continue };
        let times = rate / base;
        let times = if times.is_finite() { format!("{times:.1}") } else { "–".into() };
        let ms = |us: f64| format!("{:.2} ms", us / 1e3);
        let (median, tail) = numbers
            .latency(latency)
            .map_or((String::new(), String::new()), |(m, t)| (ms(m), ms(t)));
        let _ = writeln!(out, "| {label} | {} | {times} | {median} | {tail} |", thousands(rate));
    }
    out
}

fn commands(numbers: &Numbers) -> String {
    let mut out = String::from("| command `true NUMBER`, 2 at a time | tasks/s | of the limit |\n|---|--:|--:|\n");
    let base = numbers.median_rate("spawn").unwrap_or(f64::NAN);
    for (label, name) in [
        ("`pcluster map … -- true`", "true"),
        ("HyperQueue, its Python package", "HyperQueue"),
        ("GNU parallel", "GNU parallel"),
        ("*limit: a bare `posix_spawn` loop*", "spawn"),
    ] {
        let Some(rate) = numbers.median_rate(name) else { continue };
        let share = rate / base;
        let share = if share.is_finite() { format!("{share:.2}") } else { "–".into() };
        let _ = writeln!(out, "| {label} | {} | {share} |", thousands(rate));
    }
    out
}

fn memory(numbers: &Numbers) -> String {
    let mut out = format!(
        "The controller, idle with 2 engines, holds {:.0} MB. Then, one map after another on it:\n\n",
        numbers.idle_mb
    );
    out.push_str("| tasks in a map | tasks/s | controller CPU per task | controller's peak memory |\n|--:|--:|--:|--:|\n");
    for row in &numbers.memory {
        let (tasks, rate) = (thousands(row.tasks as f64), thousands(row.rate));
        let _ = writeln!(out, "| {tasks} | {rate} | {:.1} µs | {:.0} MB |", row.cpu_us, row.peak_mb);
    }
    out
}

fn engines(numbers: &Numbers) -> String {
    let mut out = String::from(
        "| light engines | all registered after | controller CPU per registration | tasks/s | controller CPU per task | idle, of one core | peak memory |\n|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for row in &numbers.engines {
        let _ = writeln!(
            out,
            "| {} | {:.2} s | {:.1} ms | {} | {:.1} µs | {:.1} % | {:.0} MB |",
            thousands(row.count as f64),
            row.seconds,
            row.cpu_ms,
            thousands(row.rate),
            row.cpu_us,
            row.idle_percent,
            row.peak_mb
        );
    }
    out
}

fn results(numbers: &Numbers) -> String {
    let most = numbers.memory.last().map_or(0, |row| row.tasks);
    let mut out = format!(
        "| on a map of {} tasks | from the command's start to its end |\n|---|--:|\n",
        thousands(most as f64)
    );
    for (what, seconds) in &numbers.results {
        let _ = writeln!(out, "| {what} | {:.0} ms |", seconds * 1e3);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn what_contenders_say_becomes_lines() {
        let mut numbers = Numbers::default();
        numbers
            .take("ipyparallel", "tasks 100\nseconds 0.5\nmedian_us 4000\np99_us 8000\n")
            .unwrap();
        numbers.rate("map 1000", 20_000.4);
        assert!(numbers.take("Parsl", "Traceback").is_err());
        let table = python(&numbers);
        assert!(table.contains("| `pcluster map`, 1,000 tasks | 20,000 | 100.0 |  |  |"), "{table}");
        assert!(
            table.contains("| ipyparallel, LoadBalancedView | 200 | 1.0 | 4.00 ms | 8.00 ms |"),
            "{table}"
        );
        assert!(!table.contains("Parsl"), "{table}");
    }
}
