//! `cargo xtask bench`: pcluster and its peers side by side in one run, medians of several rounds.
//!
//! Every round runs each contender once, so that other load affects all of them equally. A full run
//! writes its tables into `docs/explanation/performance.md` and `README.md`; `--quick` only prints them.
//!
//! Parts: [`tools`] (built and installed programs), [`cluster`] (a pcluster cluster in a separate directory, and its controller's
//! usage from /proc), [`contenders`] (one round), [`scale`] (a million tasks, a thousand engines),
//! [`table`] (medians and Markdown), [`pages`] (into which pages they go); [`stock`] with [`side`] (ipyparallel's client on
//! pcluster's cluster and on its own; a separate task); [`start`] (duration of a start; another); [`remote`] (cost of ssh; a third).
mod cluster;
mod contenders;
mod pages;
pub mod remote;
mod scale;
mod side;
pub mod start;
pub mod stock;
mod table;
mod tools;

use crate::Places;
use std::fs;

/// How much is measured.
struct Size {
    rounds: usize,
    /// Tasks of the maps whose speed is shown.
    maps: &'static [u64],
    /// Tasks for those that need a millisecond or more for each.
    few: u64,
    latencies: u64,
    /// Maps after which the controller's memory is read.
    memory: &'static [u64],
    engines: &'static [u64],
    engine_tasks: u64,
}

const FULL: Size = Size {
    rounds: 3,
    maps: &[1_000, 10_000, 100_000],
    few: 2_000,
    latencies: 300,
    memory: &[10_000, 100_000, 1_000_000],
    engines: &[1, 64, 1_000],
    engine_tasks: 100_000,
};

const QUICK: Size = Size {
    rounds: 1,
    maps: &[1_000, 10_000],
    few: 300,
    latencies: 50,
    memory: &[10_000],
    engines: &[1, 64],
    engine_tasks: 10_000,
};

pub fn run(places: &Places, quick: bool) -> Result<(), String> {
    let size = if quick { QUICK } else { FULL };
    let tools = tools::Tools::prepare(places)?;
    let mut numbers = table::Numbers::default();
    for round in 1..=size.rounds {
        println!("\nround {round} of {}", size.rounds);
        contenders::round(&tools, &size, &mut numbers);
    }
    println!("\nmany tasks, many engines");
    scale::tasks(&tools, &size, &mut numbers);
    scale::engines(&tools, &size, &mut numbers);
    let head = table::head(places, size.rounds, &tools);
    let full = format!("{head}\n{}", table::full(&numbers));
    let kept = tools.folder.join("tables.md");
    fs::write(&kept, &full).map_err(|e| format!("cannot write {}: {e}", kept.display()))?;
    println!("\n{full}");
    if quick {
        println!("(--quick: no page is changed; the tables are in {})", kept.display());
        return Ok(());
    }
    pages::put(&places.root.join("docs/explanation/performance.md"), &full)?;
    pages::put(&places.root.join("README.md"), &format!("{head}\n{}", table::short(&numbers)))?;
    println!("docs/explanation/performance.md and README.md have the tables");
    Ok(())
}
