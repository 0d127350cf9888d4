//! The tests of ipyparallel's suite that need not pass: one a line, `engines | what | test | reason`. Engines: `pcluster`,
//! `ipengine`, `ipyparallel` or `all`. What: `fails`, or `flaky` for one that sometimes does.

#[derive(Debug, PartialEq)]
pub struct Exceptions(Vec<Exception>);

#[derive(Debug, PartialEq)]
struct Exception {
    engines: String,
    flaky: bool,
    test: String,
    reason: String,
}

/// What to make of a test's outcome.
#[derive(Debug, PartialEq)]
pub enum Verdict<'a> {
    Passed,
    Skipped,
    /// It failed, and may.
    Excepted(&'a str),
    PassesThoughListed,
    Failed,
}

impl Exceptions {
    pub fn parse(text: &str) -> Result<Exceptions, String> {
        let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let parsed = lines.map(|(number, line)| {
            let parts: Vec<&str> = line.splitn(4, '|').map(str::trim).collect();
            match parts[..] {
                [engines, what @ ("fails" | "flaky"), test, reason] if !test.is_empty() && !reason.is_empty() => Ok(Exception {
                    engines: engines.into(),
                    flaky: what == "flaky",
                    test: test.into(),
                    reason: reason.into(),
                }),
                _ => Err(format!(
                    "line {number} of the exceptions is not `engines | fails or flaky | test | reason`: {line}"
                )),
            }
        });
        Ok(Exceptions(parsed.collect::<Result<_, _>>()?))
    }

    pub fn verdict(&self, engine: &str, test: &str, outcome: &str) -> Verdict<'_> {
        let applies = |e: &&Exception| e.test == test && (e.engines == "all" || e.engines.split(' ').any(|word| word == engine));
        let listed = self.0.iter().find(applies);
        match (outcome, listed) {
            // pytest's word for a test that its authors expect to fail; they say so themselves.
            ("skipped" | "xfailed", _) => Verdict::Skipped,
            ("failed", Some(exception)) => Verdict::Excepted(&exception.reason),
            ("failed", None) => Verdict::Failed,
            (_, Some(exception)) if !exception.flaky => Verdict::PassesThoughListed,
            _ => Verdict::Passed,
        }
    }

    /// Names that no test has.
    pub fn unknown<'a>(&'a self, tests: &[&str]) -> Vec<&'a str> {
        let names = self.0.iter().map(|e| e.test.as_str());
        names.filter(|name| !tests.contains(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_an_engine_a_word_a_test_and_a_reason() {
        let text = "# talk\n\nall | fails | test_a.py::b | it cannot\npcluster ipengine | flaky | test_a.py::c | now | and then\n";
        let exceptions = Exceptions::parse(text).unwrap();
        assert_eq!(
            exceptions.verdict("ipengine", "test_a.py::b", "failed"),
            Verdict::Excepted("it cannot")
        );
        assert_eq!(
            exceptions.verdict("ipengine", "test_a.py::b", "passed"),
            Verdict::PassesThoughListed
        );
        assert_eq!(
            exceptions.verdict("pcluster", "test_a.py::c", "failed"),
            Verdict::Excepted("now | and then")
        );
        assert_eq!(exceptions.verdict("pcluster", "test_a.py::c", "passed"), Verdict::Passed);
        assert_eq!(exceptions.verdict("ipyparallel", "test_a.py::c", "failed"), Verdict::Failed);
        assert_eq!(exceptions.verdict("pcluster", "test_a.py::d", "failed"), Verdict::Failed);
        assert_eq!(exceptions.verdict("pcluster", "test_a.py::d", "xfailed"), Verdict::Skipped);
        assert_eq!(exceptions.verdict("pcluster", "test_a.py::d", "xpassed"), Verdict::Passed);
        assert_eq!(exceptions.unknown(&["test_a.py::b"]), ["test_a.py::c"]);
    }

    #[test]
    fn a_line_without_a_reason_is_refused() {
        assert!(Exceptions::parse("all | fails | test_a.py::b").is_err());
        assert!(Exceptions::parse("all | perhaps | test_a.py::b | why").is_err());
    }
}
