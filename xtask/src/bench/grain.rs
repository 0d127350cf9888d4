//! `cargo xtask bench grain`: tasks of different lengths that spin, and how well they use two engines: the time that an ideal pair of
//! engines would take, over the time that it took. The engines share two cores with the controller and the client.
//!
//! The best of all rounds counts: other load on the machine only makes a round slower.
use super::cluster::Cluster;
use super::numbers::{Numbers, publish, ratio, table};
use super::tools::Tools;
use super::{report, timed};
use crate::Places;
use std::fs;

const PEERS: &[&str] = &["distributed", "ipyparallel", "hyperqueue"];
const ENGINES: f64 = 2.0;
/// Milliseconds that a task spins.
const GRAINS: [f64; 6] = [0.1, 0.3, 1.0, 3.0, 10.0, 100.0];

/// Of a full and a quick run.
const ROUNDS: [usize; 2] = [3, 1];
/// Seconds of an ideal map.
const IDEAL_S: [f64; 2] = [3.0, 0.5];
/// A peer that needs milliseconds for each task gets no more tasks than this.
const PEER_TASKS: [u64; 2] = [1_000, 200];

pub fn run(places: &Places, quick: bool) -> Result<(), String> {
    let size = usize::from(quick);
    let tools = Tools::prepare(places, quick, PEERS, false)?;
    let mut numbers = Numbers::default();
    for number in 1..=ROUNDS[size] {
        println!("\nround {number} of {}", ROUNDS[size]);
        report("pcluster", pcluster(&tools, size, &mut numbers));
        for (name, script, words) in [
            ("dask.distributed", "spin_dask.py", &[][..]),
            ("HyperQueue", "spin_hyperqueue.py", &["benches/spin.py"]),
        ] {
            let words = [words.iter().map(|word| path(&tools, word)).collect(), peer_words(size)].concat();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            report(name, tools.peer(script, &words).map(|text| take(&mut numbers, name, size, &text)));
        }
        let stock = Cluster::start(&tools, "ipyparallel", None, ENGINES as u64, false);
        let words = peer_words(size);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let stock = stock.and_then(|cluster| cluster.script("spin_balanced_view.py", &words));
        report("ipyparallel", stock.map(|text| take(&mut numbers, "ipyparallel", size, &text)));
    }
    let pages = [("docs/explanation/performance.md", shown(&numbers))];
    publish(places, &tools, ROUNDS[size], quick, "cargo xtask bench grain", &pages)
}

fn path(tools: &Tools, word: &str) -> String {
    tools.root.join(word).to_string_lossy().into_owned()
}

fn tasks(ms: f64, size: usize) -> u64 {
    (IDEAL_S[size] * ENGINES * 1e3 / ms).round().max(ENGINES) as u64
}

fn efficiency(tasks: u64, ms: f64, seconds: f64) -> f64 {
    tasks as f64 * ms / 1e3 / ENGINES / seconds
}

/// `TASKS MS` of each grain.
fn peer_words(size: usize) -> Vec<String> {
    let words = |ms: f64| [tasks(ms, size).min(PEER_TASKS[size]).to_string(), ms.to_string()];
    GRAINS.into_iter().flat_map(words).collect()
}

/// Adds the `MS SECONDS` lines of a peer.
fn take(numbers: &mut Numbers, name: &str, size: usize, text: &str) {
    let seconds = super::numbers::pairs(text);
    for ms in GRAINS {
        if let Some(seconds) = seconds.get(&ms.to_string()) {
            let tasks = tasks(ms, size).min(PEER_TASKS[size]);
            numbers.add(format!("{name} {ms}"), efficiency(tasks, ms, *seconds));
        }
    }
}

/// The whole command, with its start and its output.
fn pcluster(tools: &Tools, size: usize, numbers: &mut Numbers) -> Result<(), String> {
    let cluster = Cluster::ours(tools, ENGINES as u64)?;
    cluster.map(1_000)?;
    let (inputs, values) = (tools.folder.join("spin.jsonl"), tools.folder.join("spun.jsonl"));
    for ms in GRAINS {
        let tasks = tasks(ms, size);
        let lines: String = (0..tasks).map(|i| format!("[{i},{ms}]\n")).collect();
        fs::write(&inputs, lines).map_err(|e| format!("cannot write {}: {e}", inputs.display()))?;
        let (inputs, values) = (inputs.to_string_lossy(), values.to_string_lossy());
        let words = ["map", "benches/spin.py:spin", "--jsonl", &inputs, "--output", &values];
        let seconds = timed(&mut cluster.command(&words))?;
        let lines = fs::read_to_string(&*values).map_err(|e| format!("cannot read {values}: {e}"))?;
        if !lines.lines().map(str::parse).eq((0..tasks).map(Ok)) {
            return Err(format!("{values} does not contain the {tasks} values"));
        }
        numbers.add(format!("pcluster {ms}"), efficiency(tasks, ms, seconds));
    }
    Ok(())
}

fn shown(numbers: &Numbers) -> String {
    let heads: Vec<String> = GRAINS.iter().map(|ms| format!("{ms} ms")).collect();
    let mut head = vec!["tasks that spin, 2 engines, 2 cores: ideal over real time"];
    head.extend(heads.iter().map(String::as_str));
    let rows = [
        ("`pcluster map`, the whole command", "pcluster"),
        ("dask.distributed", "dask.distributed"),
        ("ipyparallel, LoadBalancedView", "ipyparallel"),
        ("HyperQueue, its Python package: a process for each task", "HyperQueue"),
    ];
    let rows = rows.into_iter().map(|(label, name)| {
        let cells = GRAINS.map(|ms| ratio(numbers.highest(&format!("{name} {ms}")), Some(1.0), 3));
        std::iter::once(label.to_string()).chain(cells).collect::<Vec<_>>()
    });
    table(&head, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn efficiency_is_the_ideal_time_over_the_real_one() {
        assert_eq!((tasks(0.1, 0), tasks(100.0, 0)), (60_000, 60));
        assert_eq!(efficiency(60, 100.0, 4.0), 0.75);
        assert_eq!(peer_words(0)[..4], ["1000", "0.1", "1000", "0.3"]);
    }

    #[test]
    fn the_best_round_of_each_contender_is_shown() {
        let mut numbers = Numbers::default();
        take(&mut numbers, "ipyparallel", 0, "10 4.0\n100 6.0\nother words\n");
        take(&mut numbers, "ipyparallel", 0, "10 6.0\n100 4.0\n");
        let text = shown(&numbers);
        let line = "| ipyparallel, LoadBalancedView | – | – | – | – | 0.750 | 0.750 |\n";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("| dask.distributed | – |"), "{text}");
    }
}
