//! Tasks of this project: `cargo xtask demo`, `cargo xtask test`, `cargo xtask bench`. Needs only Rust; everything else is set up
//! automatically, or reported as missing.
//!
//! Parts: [`run`] (running programs), [`python`] (finding one, and the tests' virtual environment), [`demo`], [`docs`], [`bench`], [`chaos`], [`conformance`], [`fuzz`], [`lint`], [`wheel`], [`ordinary_user`], [`test`]
//! with [`tally`] and [`reasons`] (what the tools report), [`remote`] (the hosts for what goes over ssh), [`pi`] (the demo's independent count).
mod bench;
mod chaos;
mod conformance;
mod demo;
mod docs;
mod fuzz;
mod lint;
mod mpi;
mod ordinary_user;
mod pi;
mod python;
mod reasons;
mod remote;
mod run;
mod schedulers;
mod tally;
mod test;
mod wheel;

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
Tasks of this project:

  cargo xtask demo         count the digit pairs of pi on a cluster of 4 engines, and check the sum
  cargo xtask test         run all checks and tests: format, lints, Rust, worker, ipyparallel clients
  cargo xtask lint         check format, lints, architecture, links, spelling, wording and crates (lint crates: only unused ones, licences, advisories, rust-version)
  cargo xtask docs         build the book of docs/ as HTML in target/book/; install mdbook under target/ if missing
  cargo xtask fuzz         fuzz all parsers of foreign input (--seconds, --seed, --target, --replay)
  cargo xtask chaos        kill processes at random under load (--minutes N, --seed S)
  cargo xtask wheel        build the Python package with the program in target/wheels/ (--profile dev: development build)
  cargo xtask conformance  run ipyparallel's test suite on pcluster (--engine pcluster|ipengine|ipyparallel, -k EXPRESSION)
  cargo xtask bench        compare pcluster with its peers; update docs/explanation/performance.md and README.md (--quick: print only)
  cargo xtask bench grain        measure how well tasks of 0.1 to 100 ms use two engines, beside its peers (--quick: development build)
  cargo xtask bench schedule     measure what the decisions for a task cost, with up to 10,000 engines and 10,000,000 tasks
  cargo xtask bench ipyparallel  compare ipyparallel's client on both controllers (--quick)
  cargo xtask bench start        measure the start of engines, also on a real Slurm and Grid Engine (--quick: development build)
  cargo xtask bench remote       measure tunnels over ssh between local network namespaces; needs root (--quick: development build)
  cargo xtask bench --against COMMIT  compare with an earlier commit: elapsed time and CPU, in alternating rounds (--quick: development build)
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["lint"] => lint::run(&Places::find(), lint::Part::All),
        ["lint", "crates"] => lint::run(&Places::find(), lint::Part::Crates),
        ["docs"] => docs::run(&Places::find()).map(|()| true),
        ["demo"] => demo::run(&Places::find()).map(|()| true),
        ["bench", words @ ..] => bench::run(&Places::find(), words).map(|()| true),
        ["fuzz", arguments @ ..] => fuzz::run(&Places::find(), arguments),
        ["chaos", options @ ..] => match chaos_options(options) {
            Some((minutes, seed)) => chaos::run(&Places::find(), minutes, seed).map(|()| true),
            None => Err("cargo xtask chaos accepts --minutes N and, to repeat a run, --seed S".into()),
        },
        ["wheel"] => wheel::run(&Places::find(), "release").map(|_| true),
        ["wheel", "--profile", profile] => wheel::run(&Places::find(), profile).map(|_| true),
        ["conformance", words @ ..] => match conformance::options(words) {
            Some((engines, filter)) => {
                conformance::run(&Places::find(), &engines, filter).map(|tallies| tallies.iter().all(|suite| suite.tally.failed == 0))
            }
            None => Err("cargo xtask conformance accepts --engine pcluster, ipengine or ipyparallel, and -k EXPRESSION".into()),
        },
        ["test"] => test::run(&Places::find()),
        [] | ["help" | "-h" | "--help"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("error: unknown task: {}\n\n{USAGE}", words.join(" "));
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        // The task has reported the failure.
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\nerror: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `--minutes N [--seed S]`
fn chaos_options(words: &[&str]) -> Option<(f64, Option<u64>)> {
    let (mut minutes, mut seed) = (1.0, None);
    for pair in words.chunks(2) {
        match pair {
            ["--minutes", n] => minutes = n.parse().ok().filter(|n: &f64| *n > 0.0 && n.is_finite())?,
            ["--seed", s] => seed = Some(s.parse().ok()?),
            _ => return None,
        }
    }
    Some((minutes, seed))
}

/// The directories of the project.
pub struct Places {
    /// The repository.
    pub root: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
    /// The built `pcluster`.
    pub pcluster: PathBuf,
}

impl Places {
    fn find() -> Places {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .canonicalize()
            .unwrap_or_else(|_| PathBuf::from("."));
        // This program is <target>/debug/xtask, beside pcluster's development build.
        let own = std::env::current_exe().unwrap_or_else(|_| root.join("target/debug/xtask"));
        let profile = own.parent().map_or_else(|| root.join("target/debug"), PathBuf::from);
        Places {
            pcluster: profile.join("pcluster"),
            target: profile.parent().map_or_else(|| root.join("target"), PathBuf::from),
            root,
        }
    }
}
