//! `cargo xtask conformance`: runs ipyparallel's test suite with pcluster's programs instead of its
//! own. docs/explanation/conformance.md explains how, and the reasons for the listed exceptions.
//!
//! Parts: [`exceptions`] (the file), [`leftovers`] (processes of failed tests).
mod exceptions;
mod leftovers;

use crate::Places;
use crate::python;
use crate::run::{echo, program, status};
use crate::tally::Tally;
use exceptions::{Exceptions, Verdict};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const OURS: &str = "tests/python/conformance";
const EXCEPTIONS: &str = "tests/python/conformance/exceptions.txt";
/// The timeout of one test, including the start of its cluster.
const TIMEOUT_S: &str = "150";

/// What serves the suite's clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// pcluster's controller and engines.
    Pcluster,
    /// pcluster's controller, ipyparallel's engines.
    Ipengine,
    /// ipyparallel alone: what there is to be reached.
    Ipyparallel,
}

impl Engine {
    pub const BOTH: [Engine; 2] = [Engine::Pcluster, Engine::Ipengine];

    fn name(self) -> &'static str {
        match self {
            Engine::Pcluster => "pcluster",
            Engine::Ipengine => "ipengine",
            Engine::Ipyparallel => "ipyparallel",
        }
    }
}

/// `[--engine pcluster|ipengine|ipyparallel] [-k EXPRESSION]`
pub fn options<'a>(words: &[&'a str]) -> Option<(Vec<Engine>, Option<&'a str>)> {
    let (mut engines, mut filter) = (Engine::BOTH.to_vec(), None);
    for pair in words.chunks(2) {
        match pair {
            ["--engine", "pcluster"] => engines = vec![Engine::Pcluster],
            ["--engine", "ipengine"] => engines = vec![Engine::Ipengine],
            ["--engine", "ipyparallel"] => engines = vec![Engine::Ipyparallel],
            ["-k", expression] => filter = Some(*expression),
            _ => return None,
        }
    }
    Some((engines, filter))
}

/// Runs the suite concurrently for each engine; returns the results. Known exceptions count as skipped.
pub fn run(places: &Places, engines: &[Engine], filter: Option<&str>) -> Result<Vec<Outcome>, String> {
    let python = python::test_environment(places)?;
    if !status(&mut program(&places.root, &["cargo", "build", "--quiet", "--bin", "pcluster"]))?.success() {
        return Err("pcluster does not build".into());
    }
    configure(places, &python)?;
    let text = fs::read_to_string(places.root.join(EXCEPTIONS)).map_err(|e| format!("cannot read {EXCEPTIONS}: {e}"))?;
    let exceptions = Exceptions::parse(&text)?;
    let mut suites = Vec::new();
    for engine in engines {
        suites.push(Suite::start(places, &python, *engine, filter)?);
    }
    let began = Instant::now();
    loop {
        let ended = suites.iter_mut().map(Suite::look).collect::<Result<Vec<bool>, String>>()?;
        if ended.iter().all(|ended| *ended) {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    println!();
    let tallies = suites.into_iter().map(|suite| suite.close(&exceptions, filter.is_none()));
    let tallies = tallies.collect::<Result<Vec<_>, String>>()?;
    println!("in {:.0} s", began.elapsed().as_secs_f64());
    Ok(tallies)
}

/// Tells the processes that tests start which commands begin a cluster, as a site would.
fn configure(places: &Places, python: &Path) -> Result<(), String> {
    let etc = python
        .parent()
        .and_then(Path::parent)
        .map(|environment| environment.join("etc/ipython"));
    let etc = etc.ok_or("the test environment has no folder")?;
    let copied = fs::create_dir_all(&etc)
        .and_then(|()| fs::copy(places.root.join(OURS).join("ipcluster_config.py"), etc.join("ipcluster_config.py")));
    copied.map(drop).map_err(|e| format!("cannot write to {}: {e}", etc.display()))
}

/// What one run of the suite came to.
pub struct Outcome {
    pub name: String,
    pub tally: Tally,
    /// Failed tests that are no exceptions, with their reasons.
    pub failures: Vec<String>,
}

/// One run of pytest.
struct Suite {
    engine: Engine,
    process: Child,
    ended: Option<i32>,
    folder: PathBuf,
    /// How many lines of its report have been shown.
    shown: usize,
    outcomes: BTreeMap<String, TestOutcome>,
}

/// What became of one test.
struct TestOutcome {
    outcome: String,
    why: String,
}

impl Suite {
    fn start(places: &Places, python: &Path, engine: Engine, filter: Option<&str>) -> Result<Suite, String> {
        let folder = places.target.join("conformance").join(engine.name());
        let _ = fs::remove_dir_all(&folder);
        let failed = |e: std::io::Error| format!("cannot prepare {}: {e}", folder.display());
        fs::create_dir_all(folder.join("home")).map_err(failed)?;
        let log = File::create(folder.join("pytest.log")).map_err(failed)?;
        let python = python.to_string_lossy();
        let timeout = format!("--timeout={TIMEOUT_S}");
        let mut words = vec![&*python, "-m", "pytest", "--pyargs", "ipyparallel.tests", "-p", "pcluster_commands"];
        words.extend([
            "-v",
            "-ra",
            &timeout,
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore",
            "-o",
            "asyncio_mode=auto",
        ]);
        words.extend(filter.into_iter().flat_map(|expression| ["-k", expression]));
        echo(&format!("{} (engines: {})", words.join(" "), engine.name()));
        let mut command = program(&folder, &words);
        for name in [
            "IPYTHONDIR",
            "IPP_PROFILE_DIR",
            "IPP_CLUSTER_ID",
            "IPP_CONNECTION_INFO",
            "PCLUSTER_PROFILE",
        ] {
            command.env_remove(name);
        }
        command.env("HOME", folder.join("home"));
        command.env("PYTHONPATH", places.root.join(OURS));
        command.env("PCLUSTER_REPORT", folder.join("report.jsonl"));
        command.env("PCLUSTER_ENGINE", engine.name());
        // mpiexec, where there is one, is to run as root in a container too, and more processes than processors.
        for name in [
            "OMPI_ALLOW_RUN_AS_ROOT",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
            "OMPI_MCA_rmaps_base_oversubscribe",
        ] {
            command.env(name, "1");
        }
        match engine {
            Engine::Ipyparallel => command.env_remove("PCLUSTER_BIN"),
            Engine::Pcluster | Engine::Ipengine => command.env("PCLUSTER_BIN", &places.pcluster),
        };
        command.stdout(log.try_clone().map_err(failed)?).stderr(Stdio::from(log));
        let process = command.spawn().map_err(|e| format!("cannot run {python}: {e}"))?;
        Ok(Suite {
            engine,
            process,
            ended: None,
            folder,
            shown: 0,
            outcomes: BTreeMap::new(),
        })
    }

    /// Shows new results; returns whether the run is complete.
    fn look(&mut self) -> Result<bool, String> {
        if self.ended.is_none() {
            let status = self.process.try_wait().map_err(|e| format!("pytest: {e}"))?;
            self.ended = status.map(|status| status.code().unwrap_or(-1));
        }
        let text = fs::read_to_string(self.folder.join("report.jsonl")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines().skip(self.shown) {
            self.shown += 1;
            let Some([test, outcome, why]) = fields(line) else { continue };
            println!("{:<9} {outcome:<8} {test}", self.engine.name());
            self.outcomes.insert(test, TestOutcome { outcome, why });
        }
        Ok(self.ended.is_some())
    }

    fn close(self, exceptions: &Exceptions, whole: bool) -> Result<Outcome, String> {
        let word = self.engine.name();
        let log = self.folder.join("pytest.log");
        // 0: all passed, 1: some failed; else pytest itself did not get through.
        if !matches!(self.ended, Some(0 | 1)) || self.outcomes.is_empty() {
            let tail = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = tail.lines().collect();
            let tail = lines[lines.len().saturating_sub(20)..].join("\n");
            return Err(format!("{tail}\npytest did not get through (see above, and {})", log.display()));
        }
        let left = leftovers::end(&self.folder.join("report.jsonl"));
        let (mut tally, mut failures) = (Tally::default(), Vec::new());
        for (test, found) in &self.outcomes {
            match exceptions.verdict(word, test, &found.outcome) {
                Verdict::Passed => tally.passed += 1,
                Verdict::Skipped => tally.skipped += 1,
                Verdict::Excepted(reason) => {
                    tally.skipped += 1;
                    println!("{word}: fails as expected: {test}: {reason}");
                }
                Verdict::PassesThoughListed => {
                    tally.passed += 1;
                    println!("{word}: passes, though {EXCEPTIONS} lists it as failing: {test}");
                }
                Verdict::Failed => {
                    tally.failed += 1;
                    let failure = format!("FAILED {test}: {}", found.why);
                    println!("{word}: {failure}");
                    failures.push(failure);
                }
            }
        }
        if whole {
            for test in exceptions.unknown(&self.outcomes.keys().map(String::as_str).collect::<Vec<_>>()) {
                println!("{word}: {EXCEPTIONS} names a test that there is not: {test}");
            }
        }
        if left > 0 {
            println!("{word}: {left} processes that tests had left running were ended");
        }
        println!("{word}: {tally} ({})", log.display());
        Ok(Outcome {
            name: format!("conformance, engines: {word}"),
            tally,
            failures,
        })
    }
}

/// `test`, `outcome` and `why` of one line of the report, which is JSON of strings and numbers.
fn fields(line: &str) -> Option<[String; 3]> {
    let field = |name: &str| {
        let (_, rest) = line.split_once(&format!("\"{name}\": \""))?;
        let mut value = String::new();
        let mut letters = rest.chars();
        loop {
            match letters.next()? {
                '"' => return Some(value),
                '\\' => match letters.next()? {
                    'n' => value.push(' '),
                    'u' => {
                        let code: String = letters.by_ref().take(4).collect();
                        value.push(u32::from_str_radix(&code, 16).ok().and_then(char::from_u32).unwrap_or('?'));
                    }
                    other => value.push(other),
                },
                other => value.push(other),
            }
        }
    };
    Some([field("test")?, field("outcome")?, field("why")?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_name_an_engine_and_a_filter() {
        assert_eq!(options(&[]), Some((Engine::BOTH.to_vec(), None)));
        assert_eq!(
            options(&["--engine", "ipengine", "-k", "not db"]),
            Some((vec![Engine::Ipengine], Some("not db")))
        );
        assert_eq!(options(&["--engine", "mpi"]), None);
        assert_eq!(options(&["-k"]), None);
    }

    #[test]
    fn a_line_of_the_report_is_read() {
        let line = r#"{"outcome": "failed", "seconds": 1.5, "why": "was \"no\"\nand \u2026", "test": "test_a.py::test_b[x]"}"#;
        assert_eq!(
            fields(line),
            Some(["test_a.py::test_b[x]".into(), "failed".into(), "was \"no\" and …".into()])
        );
        assert_eq!(fields(r#"{"outcome": "failed""#), None);
    }
}
