//! `cargo xtask demo`: the real commands one by one, from the digits of pi to `pcluster stop`.
//!
//! Everything is made under `target/demo/`, also the IPython directory, so the user's own is not touched.
use crate::run::{echo, program, status, watched};
use crate::{Places, pi, python};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const DIGITS: &str = "target/demo/digits";
const LISTING: &str = "target/demo/digits/files.txt";
const COUNT: &str = "examples/pi/pidigits.py:two_digit_counts";
const ADD: &str = "examples/pi/pidigits.py:add_counts";

pub fn run(places: &Places) -> Result<(), String> {
    let python = python::find(places)?;
    println!("pcluster is built first; with a cold cache that takes some minutes.");
    echo("cargo build");
    must(&mut program(&places.root, &["cargo", "build"]))?;
    let demo = Demo::new(places, &python)?;
    println!(
        "\nBelow, pcluster is {}, and IPYTHONDIR is {}.",
        places.pcluster.display(),
        demo.ipython.display()
    );
    let sum = demo.main_job()?;
    demo.look_around()?;
    demo.stop()?;
    check(&sum, &demo.folder.join("digits/files.txt"))
}

struct Demo<'a> {
    places: &'a Places,
    python: &'a str,
    folder: PathBuf,
    ipython: PathBuf,
}

impl<'a> Demo<'a> {
    fn new(places: &'a Places, python: &'a str) -> Result<Demo<'a>, String> {
        let folder = places.root.join("target/demo");
        let demo = Demo {
            places,
            python,
            ipython: folder.join("ipython"),
            folder,
        };
        // What an interrupted demo left running would otherwise lose its profile.
        if demo.ipython.exists() {
            let _ = demo.pcluster(&["stop"]).output();
        }
        let _ = fs::remove_dir_all(&demo.folder);
        fs::create_dir_all(&demo.ipython).map_err(|e| format!("cannot make {}: {e}", demo.ipython.display()))?;
        Ok(demo)
    }

    /// Digits, cluster, map: the sum as it was printed.
    fn main_job(&self) -> Result<String, String> {
        let words = [
            self.python,
            "examples/pi/make_digits.py",
            "--digits",
            "1000000",
            "--files",
            "15",
            "--out",
            DIGITS,
        ];
        echo(&words.join(" "));
        must(&mut program(&self.places.root, &words))?;
        self.must(&["start", "-n", "4"])?;
        let mut sum = String::new();
        let words = ["map", COUNT, LISTING, "--reduce", ADD];
        echo(&format!("pcluster {}", words.join(" ")));
        let mut map = self.pcluster(&words);
        let ended = watched(&mut map, |line| sum.push_str(line))?;
        match ended.success() {
            true => Ok(sum),
            false => Err(format!("pcluster map ended with {ended}")),
        }
    }

    fn look_around(&self) -> Result<(), String> {
        self.must(&["engines"])?;
        self.must(&["results"])?;
        self.must(&["results", "1"])?;
        self.must(&["resubmit", "1.3"])?;
        self.must(&["wait", "1"])?;
        self.must(&["results", "1.3"])?;
        self.must(&["results", "--pending"])
    }

    fn stop(&self) -> Result<(), String> {
        self.must(&["stop"])
    }

    fn must(&self, words: &[&str]) -> Result<(), String> {
        echo(&format!("pcluster {}", words.join(" ")));
        must(&mut self.pcluster(words))
    }

    fn pcluster(&self, words: &[&str]) -> Command {
        let mut command = program(&self.places.root, &[&self.places.pcluster.to_string_lossy()]);
        command.args(words).env("IPYTHONDIR", &self.ipython);
        // The demo shows what a newcomer sees who has set nothing.
        for name in ["PCLUSTER_PROFILE", "PCLUSTER_CLUSTER_ID"] {
            command.env_remove(name);
        }
        command
    }
}

/// However the demo ends, nothing of it stays running.
impl Drop for Demo<'_> {
    fn drop(&mut self) {
        let _ = self.pcluster(&["stop"]).output();
    }
}

fn must(command: &mut Command) -> Result<(), String> {
    let ended = status(command)?;
    match ended.success() {
        true => Ok(()),
        false => Err(format!("{} ended with {ended}", crate::run::spelled(command))),
    }
}

fn check(sum: &str, listing: &Path) -> Result<(), String> {
    let cluster = pi::parse_counts(sum).ok_or_else(|| format!("what map --reduce printed is not a list of counts: {sum:?}"))?;
    let independent = pi::count_pairs(listing)?;
    let pairs: u64 = independent.iter().sum();
    if cluster != independent {
        let differ = cluster.iter().zip(&independent).position(|(a, b)| a != b);
        return Err(format!(
            "the cluster's sum differs from an independent count (first at pair {differ:?})"
        ));
    }
    println!("\nThe cluster's sum of {pairs} pairs is what an independent count gives.");
    Ok(())
}
