//! `cargo xtask bench --against COMMIT`: pcluster of that commit, built in a git worktree, and of this one. Both clusters are up; each
//! workload runs on one and then on the other, in alternating order.
use super::cluster::{Cluster, children_cpu};
use super::numbers::{Numbers, ratio, table};
use super::timed;
use super::tools::Tools;
use crate::Places;
use crate::run::{captured, echo, program};
use std::fs;
use std::path::{Path, PathBuf};

const ROUNDS: usize = 5;
const SIDES: [&str; 2] = ["before", "after"];

/// Name, words of the command, and `N` in a full and a quick run.
const WORKLOADS: [(&str, &str, [u32; 2]); 7] = [
    ("map of 1 no-op", "map benches/noop.py:noop --range 0..1", [1, 1]),
    ("map of N no-ops", "map benches/noop.py:noop --range 0..N", [10_000, 100]),
    ("map of N no-ops", "map benches/noop.py:noop --range 0..N", [100_000, 1_000]),
    ("map of N × true", "map --range 0..N --no-output -- /bin/true", [1_000, 20]),
    ("list of maps", "results", [0, 0]),
    ("tasks of map 2", "results 2", [0, 0]),
    ("engines", "engines", [0, 0]),
];

pub fn run(places: &Places, commit: &str, quick: bool) -> Result<(), String> {
    let tree = Worktree::add(&places.root, places.target.join("bench/against"), commit)?;
    let old = tree.build(&places.target, quick);
    drop(tree);
    let old = old?;
    let tools = Tools::prepare(places, quick, &[], false)?;
    let numbers = measure(&tools, &old, quick)?;
    let build = if quick { "development" } else { "release" };
    println!(
        "\nbefore: {commit}; {build} builds, 2 engines, medians of {ROUNDS} interleaved rounds\n\n{}",
        lines(&numbers, quick)
    );
    fs::remove_file(&old).map_err(|e| format!("cannot remove {}: {e}", old.display()))
}

/// A checkout of another commit, removed on drop.
struct Worktree<'a> {
    root: &'a Path,
    folder: PathBuf,
}

impl<'a> Worktree<'a> {
    fn add(root: &'a Path, folder: PathBuf, commit: &str) -> Result<Worktree<'a>, String> {
        let tree = Worktree { root, folder };
        // The worktree of an interrupted run.
        tree.remove();
        let folder = tree.folder.to_string_lossy();
        captured(&mut program(
            root,
            &["git", "worktree", "add", "--quiet", "--force", "--detach", &folder, commit],
        ))?;
        Ok(tree)
    }

    fn remove(&self) {
        let folder = self.folder.to_string_lossy();
        let _ = captured(&mut program(self.root, &["git", "worktree", "remove", "--force", &folder]));
    }

    /// Builds pcluster with the dependencies already in `target`; returns a copy, since the next build replaces the program.
    fn build(&self, target: &Path, development: bool) -> Result<PathBuf, String> {
        let folder = target.to_string_lossy();
        let mut words = vec!["cargo", "build", "--bin", "pcluster", "--target-dir", &*folder];
        words.extend((!development).then_some("--release"));
        echo(&format!("{}   # in {}", words.join(" "), self.folder.display()));
        captured(&mut program(&self.folder, &words))?;
        let built = target.join(if development { "debug/pcluster" } else { "release/pcluster" });
        let copy = target.join("bench/pcluster-before");
        fs::copy(&built, &copy).map_err(|e| format!("cannot copy {}: {e}", built.display()))?;
        Ok(copy)
    }
}

impl Drop for Worktree<'_> {
    fn drop(&mut self) {
        self.remove();
    }
}

fn measure(tools: &Tools, old: &Path, quick: bool) -> Result<Numbers, String> {
    let clusters = [
        Cluster::start(tools, SIDES[0], Some(old), 2, true)?,
        Cluster::start(tools, SIDES[1], Some(&tools.pcluster), 2, true)?,
    ];
    let mut numbers = Numbers::default();
    // Round 0 warms up.
    for round in 0..=ROUNDS {
        println!("  round {round} of {ROUNDS}");
        for workload in &WORKLOADS {
            for side in order(round) {
                let (label, words) = described(workload, quick);
                let words: Vec<&str> = words.split(' ').collect();
                let cpu = || {
                    let (controller, engines) = clusters[side].processes();
                    controller.cpu + engines.cpu + children_cpu()
                };
                let before = cpu();
                let seconds = timed(&mut clusters[side].command(&words))?;
                if round > 0 {
                    numbers.add(format!("{label} {} elapsed", SIDES[side]), seconds);
                    numbers.add(format!("{label} {} cpu", SIDES[side]), cpu() - before);
                }
            }
        }
    }
    Ok(numbers)
}

/// The side that runs first alternates.
fn order(round: usize) -> [usize; 2] {
    [round % 2, 1 - round % 2]
}

/// Label and command.
fn described((label, words, counts): &(&str, &str, [u32; 2]), quick: bool) -> (String, String) {
    let count = counts[usize::from(quick)].to_string();
    (label.replace('N', &count), words.replace('N', &count))
}

fn lines(numbers: &Numbers, quick: bool) -> String {
    let rows = WORKLOADS.iter().map(|workload| {
        let (label, _) = described(workload, quick);
        let mut row = vec![label.clone()];
        for what in ["elapsed", "cpu"] {
            let [before, after] = SIDES.map(|side| format!("{label} {side} {what}"));
            let ms = |s: f64| format!("{:.0} ms", s * 1e3);
            row.extend([numbers.cell(&before, ms), numbers.cell(&after, ms)]);
            row.push(ratio(numbers.median(&after), numbers.median(&before), 2));
        }
        row
    });
    table(
        &["workload", "elapsed before", "after", "ratio", "CPU before", "after", "ratio"],
        rows,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_medians_and_ratios_of_both_builds() {
        let mut numbers = Numbers::default();
        for (side, elapsed) in [("before", [0.4, 0.1, 0.2]), ("after", [0.3, 0.1, 0.9])] {
            elapsed
                .into_iter()
                .for_each(|s| numbers.add(format!("map of 10000 no-ops {side} elapsed"), s));
            numbers.add(format!("map of 10000 no-ops {side} cpu"), if side == "before" { 0.0 } else { 0.01 });
        }
        let text = lines(&numbers, false);
        assert!(
            text.contains("| map of 10000 no-ops | 200 ms | 300 ms | 1.50 | 0 ms | 10 ms | – |\n"),
            "{text}"
        );
        assert!(text.contains("| engines | – | – | – | – | – | – |\n"), "{text}");
    }

    #[test]
    fn each_build_runs_first_in_turn() {
        assert_eq!((order(0), order(1), order(2)), ([0, 1], [1, 0], [0, 1]));
        let workload = described(&WORKLOADS[3], true);
        assert_eq!(
            workload,
            ("map of 20 × true".into(), "map --range 0..20 --no-output -- /bin/true".into())
        );
    }

    #[test]
    fn the_worktree_is_removed_and_an_unknown_commit_rejected() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let folder = std::env::temp_dir().join(format!("pcluster-worktree-{}", std::process::id()));
        let tree = Worktree::add(&root, folder.clone(), "HEAD").unwrap();
        assert!(folder.join("Cargo.toml").exists());
        drop(tree);
        assert!(!folder.exists());
        assert!(Worktree::add(&root, folder.clone(), "no-such-commit").is_err());
        assert!(!folder.exists());
    }
}
