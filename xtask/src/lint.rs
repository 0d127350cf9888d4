//! `cargo xtask lint`: format, lints, spelling, wording, crates, advisories, and the tests that read the sources and the book.
//!
//! The oldest Rust (`rust-version` in Cargo.toml) is checked twice: by clippy, which reports newer parts of the standard library, and in
//! cargo's metadata, whose crates may not require a newer one.
use crate::Places;
use crate::python;
use crate::run::{captured, echo, program, status};
use crate::tally::Tally;
use std::path::PathBuf;

/// Dependencies between modules, circles, sizes; links and names of files in the book.
const SOURCES: [&str; 8] = ["cargo", "test", "--quiet", "--test", "it", "--", "architecture::", "docs::"];

#[derive(PartialEq)]
pub enum Part {
    All,
    Crates,
}

/// The outcome of one check.
pub enum Check {
    Passed,
    Failed,
    /// It could not run, for this reason.
    Skipped(String),
}

impl Check {
    fn of(passed: bool) -> Check {
        if passed { Check::Passed } else { Check::Failed }
    }

    pub fn passed(&self) -> bool {
        matches!(self, Check::Passed)
    }
}

/// Whether all passed.
pub fn run(places: &Places, part: Part) -> Result<bool, String> {
    let mut checks = Vec::new();
    if part == Part::All {
        for words in [
            &["cargo", "fmt", "--all", "--check"][..],
            &["cargo", "clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"],
            &SOURCES,
        ] {
            checks.push((words.join(" "), Check::of(passes(places, words))));
        }
        checks.extend(texts(places)?);
    }
    checks.extend(crates(places));
    println!();
    let (lines, tally) = summary(&checks);
    lines.iter().for_each(|line| println!("{line}"));
    println!("{tally}");
    Ok(tally.failed == 0)
}

/// A line for each check that did not pass, and the count.
fn summary(checks: &[(String, Check)]) -> (Vec<String>, Tally) {
    let (mut lines, mut tally) = (Vec::new(), Tally::default());
    for (line, check) in checks {
        match check {
            Check::Passed => tally.passed += 1,
            Check::Failed => {
                tally.failed += 1;
                lines.push(format!("failed: {line}"));
            }
            Check::Skipped(why) => {
                tally.skipped += 1;
                lines.push(format!("{DID_NOT_RUN}{line}: {why}"));
            }
        }
    }
    (lines, tally)
}

/// Begins the line of a skipped check, also in the output that `cargo xtask test` reads.
pub const DID_NOT_RUN: &str = "did not run: ";

/// Spelling and wording.
pub fn texts(places: &Places) -> Result<Vec<(String, Check)>, String> {
    let python = python::test_environment(places)?;
    let typos = python.with_file_name("typos").to_string_lossy().into_owned();
    let python = python.to_string_lossy().into_owned();
    Ok(vec![
        ("typos".into(), Check::of(passes(places, &[&typos]))),
        ("ci/words.py".into(), Check::of(passes(places, &[&python, "ci/words.py"]))),
    ])
}

/// Unused crates, licences, sources, advisories, and the Rust that crates require.
fn crates(places: &Places) -> Vec<(String, Check)> {
    let tool = |name, version, words: &[&str]| {
        let tool = installed(places, name, version).map(|tool| tool.to_string_lossy().into_owned());
        tool.is_ok_and(|tool| passes(places, &[&[tool.as_str()], words].concat()))
    };
    let deny = |words: &[&str]| tool("cargo-deny", "0.20.2", words);
    let advisories = match deny(&["fetch", "db"]) {
        true => Check::of(deny(&["check", "--disable-fetch", "advisories"])),
        false => Check::Skipped("the database of advisories cannot be fetched".into()),
    };
    vec![
        (
            "cargo machete".into(),
            Check::of(tool("cargo-machete", "0.9.2", &["--with-metadata"])),
        ),
        (
            "cargo deny check".into(),
            Check::of(deny(&["check", "licenses", "bans", "sources"])),
        ),
        ("cargo deny check advisories".into(), advisories),
        ("rust-version of crates".into(), Check::of(rust_versions(places))),
    ]
}

fn rust_versions(places: &Places) -> bool {
    let words = ["cargo", "metadata", "--format-version", "1", "--locked"];
    echo(&words.join(" "));
    let manifest = std::fs::read_to_string(places.root.join("Cargo.toml")).unwrap_or_default();
    let ours = manifest.lines().find_map(|line| line.strip_prefix("rust-version = "));
    let newer = captured(&mut program(&places.root, &words)).map(|metadata| newer_crates(&metadata, ours.unwrap_or_default()));
    match &newer {
        Ok(newer) => newer.iter().for_each(|line| println!("{line}")),
        Err(why) => println!("{why}"),
    }
    newer.is_ok_and(|newer| newer.is_empty())
}

/// Crates that require a newer Rust than `ours`, from cargo's JSON: each package has its `id` before its `rust_version`.
fn newer_crates(metadata: &str, ours: &str) -> Vec<String> {
    let version = |text: &str| {
        let mut parts = text.trim_matches('"').split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        [(); 3].map(|()| parts.next().unwrap_or(0))
    };
    let mut newer = Vec::new();
    let mut seen = 0;
    for (at, key) in metadata.match_indices("\"rust_version\":\"") {
        seen += 1;
        let required = metadata[at + key.len()..].split('"').next().unwrap_or_default();
        if version(required) > version(ours) {
            let id = metadata[..at].rsplit("\"id\":\"").next().and_then(|rest| rest.split('"').next());
            newer.push(format!(
                "{} requires Rust {required}; rust-version is {ours}",
                id.unwrap_or("a crate")
            ));
        }
    }
    if seen == 0 {
        newer.push("no package in cargo's metadata has a rust_version".into());
    }
    newer
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_that_require_a_newer_rust_are_found() {
        let package =
            |id: &str, version: &str| format!("{{\"name\":\"x\",\"id\":\"{id}\",\"dependencies\":[],\"rust_version\":\"{version}\"}}");
        let metadata =
            [("a", "1.93"), ("b", "1.93.0"), ("c", "1.9"), ("d", "1.94"), ("e", "1.93.1")].map(|(id, version)| package(id, version));
        let newer = newer_crates(&metadata.join(","), "\"1.93\"");
        assert_eq!(newer.len(), 2, "{newer:?}");
        assert!(
            newer[0].starts_with("d requires Rust 1.94;") && newer[1].starts_with("e requires"),
            "{newer:?}"
        );
        assert_eq!(newer_crates("{}", "\"1.93\"").len(), 1);
    }

    #[test]
    fn a_skipped_check_is_counted_with_its_reason() {
        let checks = [("a", Check::Passed), ("b", Check::Failed), ("c", Check::Skipped("offline".into()))];
        let (lines, tally) = summary(&checks.map(|(line, check)| (line.to_string(), check)));
        assert_eq!(lines, ["failed: b", "did not run: c: offline"]);
        assert_eq!((tally.passed, tally.failed, tally.skipped), (1, 1, 1));
    }
}
