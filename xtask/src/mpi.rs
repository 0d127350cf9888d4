//! Requirements of the MPI tests: installed in continuous integration, reported as missing on other machines.
use crate::Places;
use crate::run::{captured, echo, program};

const PACKAGES: [&str; 2] = ["openmpi-bin", "mpich"];

/// Tries to have an `mpiexec` of each kind. Where that fails, their tests are skipped, with the reason.
pub fn prepare(places: &Places) {
    let there = |words: &[&str]| captured(&mut program(&places.root, words)).is_ok();
    let missing: Vec<&str> = PACKAGES
        .into_iter()
        .filter(|package| !there(&["dpkg-query", "--status", package]))
        .collect();
    let is_root = captured(&mut program(&places.root, &["id", "-u"])).is_ok_and(|id| id.trim() == "0");
    if missing.is_empty() || !is_root || std::env::var_os("CI").is_none() || !there(&["apt-get", "--version"]) {
        return;
    }
    for words in [
        vec!["apt-get", "update", "-qq"],
        [&["apt-get", "install", "-y", "-qq", "--no-install-recommends"], missing.as_slice()].concat(),
    ] {
        echo(&words.join(" "));
        if let Err(why) = captured(program(&places.root, &words).env("DEBIAN_FRONTEND", "noninteractive")) {
            println!("{why}");
            return;
        }
    }
}
