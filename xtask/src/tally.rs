//! Counts passed, failed and skipped tests from the output of `cargo test` and pytest.
use std::fmt;
use std::ops::AddAssign;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// The closing line.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

impl Tally {
    pub fn of_check(passed: bool) -> Tally {
        Tally {
            passed: u64::from(passed),
            failed: u64::from(!passed),
            skipped: 0,
        }
    }

    /// Of a test program; one that failed without counting a failure (it did not compile, it crashed) counts as one.
    pub fn of_one_that(self, passed: bool) -> Tally {
        Tally {
            failed: self.failed.max(u64::from(!passed)),
            ..self
        }
    }

    /// `test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.02s`
    pub fn from_cargo(line: &str) -> Option<Tally> {
        let counts = line.strip_prefix("test result: ")?;
        Some(Tally::from_words(counts.split_once(". ")?.1, ';'))
    }

    /// The last line of `pytest -q`: `1 failed, 12 passed, 2 skipped, 1 warning in 0.52s`, maybe between `=` signs.
    pub fn from_pytest(line: &str) -> Option<Tally> {
        let line = line.trim_matches(|c| c == '=' || c == ' ');
        let (counts, seconds) = line.rsplit_once(" in ")?;
        let timed = seconds
            .split(' ')
            .next()
            .is_some_and(|s| s.strip_suffix('s').is_some_and(|s| s.parse::<f64>().is_ok()));
        let tally = Tally::from_words(counts, ',');
        (timed && (tally != Tally::default() || counts.starts_with("no tests ran"))).then_some(tally)
    }

    /// The closing line of another task of this program.
    pub fn from_own(line: &str) -> Option<Tally> {
        let tally = Tally::from_words(line, ',');
        (tally.to_string() == line).then_some(tally)
    }

    fn from_words(text: &str, separator: char) -> Tally {
        let mut tally = Tally::default();
        for part in text.split(separator) {
            let Some((number, word)) = part.trim().split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse::<u64>() else { continue };
            match word {
                "passed" | "xpassed" => tally.passed += number,
                "failed" | "error" | "errors" => tally.failed += number,
                "ignored" | "skipped" | "xfailed" | "deselected" => tally.skipped += number,
                _ => {}
            }
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_crashes_counts_as_a_failure() {
        let tally = |passed, failed| Tally {
            passed,
            failed,
            skipped: 0,
        };
        assert_eq!(tally(3, 0).of_one_that(true), tally(3, 0));
        assert_eq!(tally(3, 0).of_one_that(false), tally(3, 1));
        assert_eq!(tally(3, 2).of_one_that(false), tally(3, 2));
    }

    fn tally(passed: u64, failed: u64, skipped: u64) -> Option<Tally> {
        Some(Tally { passed, failed, skipped })
    }

    #[test]
    fn reads_cargo() {
        let line = "test result: FAILED. 12 passed; 2 failed; 3 ignored; 0 measured; 4 filtered out; finished in 0.02s";
        assert_eq!(Tally::from_cargo(line), tally(12, 2, 3));
        assert_eq!(Tally::from_cargo("test architecture::dependencies_point_down ... ok"), None);
        assert_eq!(Tally::from_cargo("running 3 tests"), None);
    }

    #[test]
    fn reads_pytest() {
        assert_eq!(
            Tally::from_pytest("1 failed, 12 passed, 2 skipped, 1 warning in 0.52s"),
            tally(12, 1, 2)
        );
        assert_eq!(
            Tally::from_pytest("===== 3 passed, 1 error in 61.02s (0:01:01) ====="),
            tally(3, 1, 0)
        );
        assert_eq!(Tally::from_pytest("no tests ran in 0.01s"), tally(0, 0, 0));
        assert_eq!(Tally::from_pytest("12 passed, as they say in passing"), None);
        assert_eq!(Tally::from_pytest("tests/python/test_worker.py ..... [100%]"), None);
    }

    #[test]
    fn the_closing_line() {
        let line = "12 passed, 0 failed, 3 skipped";
        assert_eq!(tally(12, 0, 3).unwrap().to_string(), line);
        assert_eq!((Tally::from_own(line), Tally::from_own("12 passed")), (tally(12, 0, 3), None));
    }
}
