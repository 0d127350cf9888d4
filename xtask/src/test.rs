//! `cargo xtask test`: everything that must hold, and a plain count at the end.
use crate::Places;
use crate::fuzz;
use crate::lint;
use crate::mpi;
use crate::ordinary_user::{self, OrdinaryUser};
use crate::python;
use crate::reasons::{Reasons, SHOWN_LINES, last_lines};
use crate::remote;
use crate::run::{captured, echo, program, spelled, status, watched};
use crate::schedulers;
use crate::tally::Tally;
use crate::wheel;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

const PYTHON_TESTS: &str = "tests/python";
/// Of the campaign that kills processes at random.
const CHAOS_MINUTES: &str = "5";

/// Whether all passed.
pub fn run(places: &Places) -> Result<bool, String> {
    let mut report = Report {
        is_ci: std::env::var_os("CI").is_some(),
        ..Report::default()
    };
    // First, because the Rust tests need it too: some run an unmodified ipyparallel beside pcluster.
    let python = match python::test_environment(places) {
        Ok(python) => Some(python),
        Err(why) => {
            println!("\nThere is no Python environment for the tests:\n{why}");
            None
        }
    };
    check(places, &mut report, &["cargo", "fmt", "--all", "--check"]);
    check(
        places,
        &mut report,
        &["cargo", "clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"],
    );
    match lint::texts(places) {
        Ok(checks) => checks
            .iter()
            .for_each(|(line, check)| report.add(line, Tally::of_check(check.passed()))),
        Err(why) => report.fail("cargo xtask lint", &why),
    }
    rust_tests(places, &mut report, python.as_deref());
    match fuzz::run(places, &["--seconds", fuzz::IN_TESTS]) {
        Ok(passed) => report.add("cargo xtask fuzz", Tally::of_check(passed)),
        Err(why) => report.fail("cargo xtask fuzz", &why),
    }
    let wheel = builds(places, &mut report, python.as_deref());
    // Beside what follows, which builds nothing more.
    let as_user = as_ordinary_user(places, &mut report);
    python_tests(places, &mut report, python.as_deref(), wheel);
    if let Some((user, beside)) = as_user {
        Beside::count(
            beside,
            &mut report,
            "integration tests as an ordinary user",
            Some(Tally::from_cargo),
        );
        report.add_skipped("integration tests as an ordinary user", &user.skipped);
    }
    // What waits more than it works runs beside something else.
    let chaos = own(places, "chaos.log", &["chaos", "--minutes", CHAOS_MINUTES]);
    match crate::conformance::run(places, &crate::conformance::Engine::BOTH, None) {
        Ok(suites) => suites
            .iter()
            .for_each(|suite| report.add_with_reasons(&suite.name, suite.tally, suite.failures.clone())),
        Err(why) => {
            println!("{why}");
            report.fail("cargo xtask conformance", &why);
        }
    }
    Beside::count(chaos, &mut report, "cargo xtask chaos", None);
    let crates = own(places, "crates.log", &["lint", "crates"]);
    let remote = remote_tests(places, &mut report, python.as_deref());
    batch_tests(places, &mut report, python.as_deref());
    if let Some(remote) = remote {
        Beside::count(remote, &mut report, "tests/remote", Some(Tally::from_pytest));
    }
    Beside::count(crates, &mut report, "cargo xtask lint crates", Some(Tally::from_own));
    Ok(report.close())
}

/// Another task of this program.
fn own(places: &Places, log: &str, words: &[&str]) -> Result<Beside, String> {
    let own = std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
    let mut command = program(&places.root, &[&own.to_string_lossy()]);
    command.args(words);
    Beside::start(places, log, format!("cargo xtask {}", words.join(" ")), command)
}

/// A background command, whose output is shown when it has finished.
struct Beside {
    line: String,
    process: Child,
    log: PathBuf,
}

impl Beside {
    /// `line` is how a user would run it.
    fn start(places: &Places, log: &str, line: String, mut command: Command) -> Result<Beside, String> {
        let log = places.target.join(log);
        let failed = |e: std::io::Error| format!("cannot run {line} with its output in {}: {e}", log.display());
        let output = File::create(&log).map_err(failed)?;
        command.stdout(output.try_clone().map_err(failed)?).stderr(output);
        let process = command.spawn().map_err(failed)?;
        println!("\n$ {line} &");
        Ok(Beside { line, process, log })
    }

    /// Waits for completion; returns whether it passed, and its output.
    fn end(mut self) -> Result<(bool, String), String> {
        let status = self.process.wait().map_err(|e| format!("{}: {e}", self.line))?;
        echo(&format!("{}   # ran beside the tests above", self.line));
        let output = fs::read(&self.log).map_err(|e| format!("{}: {e}", self.log.display()))?;
        let output = String::from_utf8_lossy(&output).into_owned();
        print!("{output}");
        Ok((status.success(), output))
    }

    /// Adds up the lines in which it counts; what does not count is one test.
    fn count(started: Result<Beside, String>, report: &mut Report, what: &str, count: Option<fn(&str) -> Option<Tally>>) {
        let (passed, output) = started.and_then(Beside::end).unwrap_or_else(|why| {
            println!("{why}");
            (false, why)
        });
        let tally = match count {
            Some(count) => {
                let mut tally = Tally::default();
                output.lines().filter_map(count).for_each(|more| tally += more);
                tally.of_one_that(passed)
            }
            None => Tally::of_check(passed),
        };
        report.skipped.extend(
            output
                .lines()
                .filter_map(|line| Some(line.strip_prefix(lint::DID_NOT_RUN)?.to_string())),
        );
        report.add_with_reasons(what, tally, Reasons::of(&output).lines());
    }
}

#[derive(Default)]
struct Report {
    /// Continuous integration: everything must run.
    is_ci: bool,
    tally: Tally,
    /// What failed, and why.
    failed: Vec<(String, Vec<String>)>,
    skipped: Vec<String>,
}

impl Report {
    fn add(&mut self, what: &str, tally: Tally) {
        self.add_with_reasons(what, tally, Vec::new());
    }

    /// The reasons are repeated at the end if anything failed.
    fn add_with_reasons(&mut self, what: &str, tally: Tally, reasons: Vec<String>) {
        self.tally += tally;
        if tally.failed > 0 {
            self.failed.push((format!("{what} ({} failed)", tally.failed), reasons));
        }
    }

    /// One failure, with its reason.
    fn fail(&mut self, what: &str, why: &str) {
        self.add_with_reasons(what, Tally::of_check(false), Reasons::of(why).lines());
    }

    /// `count` tests cannot run here, which is a failure in continuous integration.
    fn skip(&mut self, what: &str, count: u64, why: &str) {
        if self.is_ci {
            self.fail(what, &format!("cannot run here, and must in continuous integration: {why}"));
        }
        self.add_skip(what, count, why);
    }

    fn add_skip(&mut self, what: &str, count: u64, why: &str) {
        self.tally.skipped += count;
        self.skipped.push(format!("{what} ({count}): {why}"));
    }

    /// Tests of Rust that returned early and reported that they could not run, one per line: they were counted as passed. (In continuous
    /// integration they panic, except as an ordinary user.)
    fn add_skipped(&mut self, what: &str, reported: &Path) {
        for line in fs::read_to_string(reported).unwrap_or_default().lines() {
            self.tally.passed = self.tally.passed.saturating_sub(1);
            let (test, why) = line.split_once(": ").unwrap_or((line, "it gave no reason"));
            self.add_skip(&format!("{what}: {test}"), 1, why);
        }
    }

    /// The closing line stands last and alone.
    fn close(self) -> bool {
        println!();
        for skipped in &self.skipped {
            println!("did not run: {skipped}");
        }
        for (what, reasons) in &self.failed {
            println!("failed: {what}");
            reasons.iter().for_each(|line| println!("    {line}"));
        }
        println!("{}", self.tally);
        self.failed.is_empty()
    }
}

/// One of cargo's own checks, counted as one test. Its tool may not be installed.
fn check(places: &Places, report: &mut Report, words: &[&str]) {
    let line = words.join(" ");
    let tool = format!("cargo-{}", words[1]);
    if captured(&mut program(&places.root, &["cargo", words[1], "--version"])).is_err() {
        let component = if words[1] == "fmt" { "rustfmt" } else { words[1] };
        let added = captured(&mut program(&places.root, &["rustup", "component", "add", component]));
        if added.is_err() {
            report.skip(&line, 1, &format!("{tool} is not installed (rustup component add {component})"));
            return;
        }
    }
    echo(&line);
    match captured(&mut program(&places.root, words)) {
        Ok(_) => report.add(&line, Tally::of_check(true)),
        Err(why) => {
            println!("{why}");
            report.fail(&line, &why);
        }
    }
}

fn rust_tests(places: &Places, report: &mut Report, python: Option<&Path>) {
    let mut command = program(&places.root, &["cargo", "test", "--workspace", "--no-fail-fast"]);
    // Lives of the simulated cluster; `cargo test` alone runs 400.
    command.env("PCLUSTER_SEEDS", "10000");
    match python {
        Some(python) => command.env("PCLUSTER_TEST_PYTHON", python),
        None => command.env_remove("PCLUSTER_TEST_PYTHON"),
    };
    let skipped = places.target.join("skipped.txt");
    let _ = fs::remove_file(&skipped);
    command.env("PCLUSTER_TEST_SKIPPED", &skipped);
    counted(report, &mut command, Tally::from_cargo);
    report.add_skipped("cargo test", &skipped);
}

/// Starts the integration tests as an ordinary user, beside what follows.
fn as_ordinary_user(places: &Places, report: &mut Report) -> Option<(OrdinaryUser, Result<Beside, String>)> {
    let ready = OrdinaryUser::make(places).and_then(|user| Ok((user, ordinary_user::integration_tests(places)?)));
    match ready {
        Ok((user, binary)) => {
            let command = user.tests(&binary);
            let line = format!("{binary}   # as an ordinary user");
            Some((user, Beside::start(places, "ordinary-user.log", line, command)))
        }
        Err(why) => {
            report.skip("integration tests as an ordinary user", 1, &why);
            None
        }
    }
}

/// What the tests from Python need besides: the program by itself, and the wheel, where that can be had.
fn builds(places: &Places, report: &mut Report, python: Option<&Path>) -> Option<PathBuf> {
    python?;
    // Of cargo test's build; repeated in case that failed.
    if !status(&mut program(&places.root, &["cargo", "build", "--quiet", "--bin", "pcluster"])).is_ok_and(|status| status.success()) {
        report.add("cargo build", Tally::of_check(false));
    }
    mpi::prepare(places);
    let wheel = wheel::run(places, "dev");
    if let Err(why) = &wheel {
        println!("{why}");
    }
    let why = wheel.as_ref().err().into_iter().cloned().collect();
    report.add_with_reasons("cargo xtask wheel --profile dev", Tally::of_check(wheel.is_ok()), why);
    wheel.ok()
}

fn python_tests(places: &Places, report: &mut Report, python: Option<&Path>, wheel: Option<PathBuf>) {
    let Some(python) = python else {
        let count = functions_in(&places.root.join(PYTHON_TESTS));
        report.skip(
            PYTHON_TESTS,
            count,
            "there is no Python environment for them (see the top of this output)",
        );
        return;
    };
    let python = python.to_string_lossy();
    let mut command = program(
        &places.root,
        &[
            &python,
            "-m",
            "pytest",
            "-v",
            "-rsfE",
            // A hanging test prints its stack and fails.
            "--timeout=120",
            "-p",
            "no:cacheprovider",
            PYTHON_TESTS,
        ],
    );
    command.env("PCLUSTER_BIN", &places.pcluster).env("PCLUSTER_TEST_PYTHON", &*python);
    match wheel {
        Some(wheel) => command.env("PCLUSTER_TEST_WHEEL", wheel),
        None => command.env_remove("PCLUSTER_TEST_WHEEL"),
    };
    counted(report, &mut command, Tally::from_pytest);
}

/// The same tests on each batch system that can be brought up here.
fn batch_tests(places: &Places, report: &mut Report, python: Option<&Path>) {
    let count = functions_of(&places.root.join(schedulers::TESTS));
    for scheduler in &schedulers::ALL {
        let what = format!("{} with {}", schedulers::TESTS, scheduler.name);
        let Some(python) = python else {
            report.skip(&what, count, "there is no Python environment for them");
            continue;
        };
        let up = match scheduler.up(places) {
            Ok(up) => up,
            Err(not_up) => {
                if report.is_ci {
                    println!("{}", last_lines(&not_up.reason, 2 * SHOWN_LINES));
                }
                report.skip(&what, count, not_up.summary());
                continue;
            }
        };
        let python = python.to_string_lossy();
        let words = [
            "-m",
            "pytest",
            "-v",
            "-rsfE",
            "--timeout=300",
            "--durations=5",
            "-p",
            "no:cacheprovider",
            schedulers::TESTS,
        ];
        let mut command = program(&places.root, &[&*python]);
        command
            .args(words)
            .env("PCLUSTER_BIN", &places.pcluster)
            .env("PCLUSTER_TEST_BATCH", up.place());
        counted(report, &mut command, Tally::from_pytest);
    }
}

/// Over ssh, between hosts made for it, if they can be made.
fn remote_tests(places: &Places, report: &mut Report, python: Option<&Path>) -> Option<Result<Beside, String>> {
    let ready = python.ok_or_else(|| "there is no Python environment for them".to_string());
    match ready.and_then(|python| remote::tests(places, python)) {
        Ok(command) => Some(Beside::start(places, "remote.log", spelled(&command), command)),
        Err(why) => {
            report.skip("tests/remote", remote::count(places), &why);
            None
        }
    }
}

/// Runs a test program and adds up the lines in which it counts. One that fails without counting a failure (it did not
/// compile, it crashed) counts as one.
fn counted(report: &mut Report, command: &mut Command, count: fn(&str) -> Option<Tally>) {
    let line = spelled(command);
    echo(&line);
    let (mut tally, mut reasons) = (Tally::default(), Reasons::default());
    let passed = watched(command, |line| {
        reasons.read(line);
        if let Some(more) = count(line) {
            tally += more;
        }
    });
    if let Err(why) = &passed {
        println!("{why}");
        reasons.read(why);
    }
    let passed = passed.is_ok_and(|status| status.success());
    report.add_with_reasons(&line, tally.of_one_that(passed), reasons.lines());
}

/// How many test functions the Python files of `folder` hold.
pub fn functions_in(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let files = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "py"));
    files
        .filter(|path| !path.ends_with(schedulers::TESTS))
        .map(|path| functions_of(&path))
        .sum()
}

fn functions_of(file: &Path) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|line| line.trim_start().starts_with("def test_")).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_that_cannot_run_are_skipped_and_fail_in_continuous_integration() {
        for is_ci in [false, true] {
            let mut report = Report {
                is_ci,
                ..Report::default()
            };
            report.skip("tests/remote", 7, "not root");
            assert_eq!(
                (report.tally.skipped, report.tally.failed, report.skipped.len()),
                (7, u64::from(is_ci), 1)
            );
            assert_eq!(report.close(), !is_ci);
        }
    }

    #[test]
    fn a_reported_skip_does_not_count_as_passed() {
        let file = std::env::temp_dir().join(format!("pcluster-skips-{}", std::process::id()));
        fs::write(&file, "it::a: not root\n").unwrap();
        let mut report = Report::default();
        report.add(
            "cargo test",
            Tally {
                passed: 3,
                ..Tally::default()
            },
        );
        report.add_skipped("cargo test", &file);
        fs::remove_file(&file).unwrap();
        assert_eq!(report.tally.to_string(), "2 passed, 0 failed, 1 skipped");
        assert_eq!(report.skipped, ["cargo test: it::a (1): not root"]);
    }
}
