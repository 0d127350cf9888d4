//! `cargo xtask bench`: pcluster beside its peers, ipyparallel, the batch systems, ssh, or an earlier commit.
//!
//! Everything that is compared takes turns in each round, so that other load affects all alike; the tables show medians. A full run
//! updates `docs/explanation/performance.md` and `README.md`; `--quick` only prints.
//!
//! Parts: [`tools`] (built and installed programs), [`cluster`] (a cluster in its own directory, its use of CPU and memory),
//! [`numbers`] (medians, tables, pages); one file per comparison: [`peers`], [`grain`], [`stock`], [`start`], [`remote`],
//! [`schedule`], [`against`].
mod against;
mod cluster;
mod grain;
mod numbers;
mod peers;
mod remote;
mod schedule;
mod start;
mod stock;
mod tools;

use crate::Places;
use crate::run::captured;
use std::process::Command;
use std::time::Instant;

pub fn run(places: &Places, words: &[&str]) -> Result<(), String> {
    let (words, quick) = match words {
        [rest @ .., "--quick"] => (rest, true),
        all => (all, false),
    };
    match words {
        [] => peers::run(places, quick),
        ["grain"] => grain::run(places, quick),
        ["ipyparallel"] => stock::run(places, quick),
        ["start"] => start::run(places, quick),
        ["remote"] => remote::run(places, quick),
        ["schedule"] => schedule::run(places, quick),
        ["--against", commit] => against::run(places, commit, quick),
        _ => Err("cargo xtask bench accepts grain, ipyparallel, start, remote, schedule or --against COMMIT, then --quick".into()),
    }
}

fn report(what: &str, done: Result<(), String>) {
    match done {
        Ok(()) => println!("  {what}"),
        Err(why) => println!("  {what} failed: {why}"),
    }
}

/// Runs to completion; returns the seconds.
fn timed(command: &mut Command) -> Result<f64, String> {
    let began = Instant::now();
    captured(command)?;
    Ok(began.elapsed().as_secs_f64())
}
