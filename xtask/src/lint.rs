//! `cargo xtask lint`: what must hold of the text itself: format, lints, spelling, wording, crates.
//!
//! Modules, dependencies and circles between files are held by `tests/it/architecture.rs`, links by `tests/it/docs.rs`. The oldest Rust
//! (`rust-version` in Cargo.toml) is held by clippy, which reports what newer versions of the standard library have.
use crate::Places;
use crate::python;
use crate::run::{captured, echo, program, status};
use crate::tally::Tally;
use std::path::PathBuf;

/// Tools that cargo installs below `target/tools`: name, version, and the arguments that check.
const CRATES: [(&str, &str, &[&str]); 2] = [
    ("cargo-machete", "0.9.2", &["machete", "--with-metadata"]),
    ("cargo-deny", "0.20.2", &["deny", "check", "licenses", "bans", "sources"]),
];

#[derive(PartialEq)]
pub enum Part {
    All,
    Crates,
}

/// Whether all passed.
pub fn run(places: &Places, part: Part) -> Result<bool, String> {
    let mut checks = Vec::new();
    if part == Part::All {
        for words in [
            &["cargo", "fmt", "--all", "--check"][..],
            &["cargo", "clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"],
        ] {
            checks.push((words.join(" "), passes(places, words)));
        }
        checks.extend(texts(places)?);
    }
    checks.extend(crates(places));
    let mut tally = Tally::default();
    println!();
    for (line, passed) in &checks {
        tally += Tally::of_check(*passed);
        if !passed {
            println!("failed: {line}");
        }
    }
    println!("{tally}");
    Ok(tally.failed == 0)
}

/// Spelling and wording.
pub fn texts(places: &Places) -> Result<Vec<(String, bool)>, String> {
    let python = python::test_environment(places)?;
    let typos = python.with_file_name("typos").to_string_lossy().into_owned();
    let python = python.to_string_lossy().into_owned();
    Ok(vec![
        ("typos".into(), passes(places, &[&typos])),
        ("ci/words.py".into(), passes(places, &[&python, "ci/words.py"])),
    ])
}

/// Unused crates, licences, sources.
pub fn crates(places: &Places) -> Vec<(String, bool)> {
    let mut checks = Vec::new();
    for (name, version, words) in CRATES {
        let line = format!("cargo {}", words.join(" "));
        let passed = installed(places, name, version).is_ok_and(|tool| {
            let mut all = vec![tool.to_string_lossy().into_owned()];
            // As cargo would start them; cargo-deny takes its arguments without its own name.
            all.extend(words.iter().skip(1).map(|word| word.to_string()));
            passes(places, &all.iter().map(String::as_str).collect::<Vec<_>>())
        });
        checks.push((line, passed));
    }
    checks
}

fn installed(places: &Places, name: &str, version: &str) -> Result<PathBuf, String> {
    let folder = places.target.join("tools");
    let tool = folder.join("bin").join(name);
    let has = captured(&mut program(&places.root, &[&tool.to_string_lossy(), "--version"]));
    if has.is_ok_and(|text| text.contains(version)) {
        return Ok(tool);
    }
    let root = folder.to_string_lossy().into_owned();
    let words = [
        "cargo",
        "install",
        "--quiet",
        "--locked",
        "--debug",
        "--root",
        &root,
        "--version",
        version,
        name,
    ];
    echo(&words.join(" "));
    match status(&mut program(&places.root, &words))?.success() {
        true => Ok(tool),
        false => Err(format!("{name} could not be installed")),
    }
}

fn passes(places: &Places, words: &[&str]) -> bool {
    echo(&words.join(" "));
    status(&mut program(&places.root, words)).is_ok_and(|status| status.success())
}
