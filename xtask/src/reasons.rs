//! Why a part of the tests failed: the lines of its output that name failed tests, or else its last lines. They are repeated at the
//! end of the report, because the tail of a long output may be all that is kept of it.
use std::collections::VecDeque;

/// Lines that are repeated of one part.
pub const SHOWN_LINES: usize = 15;
/// Characters that are repeated of one line.
const SHOWN_LENGTH: usize = 500;

/// Reads the output of one part as it comes.
#[derive(Default)]
pub struct Reasons {
    failures: Vec<String>,
    last: VecDeque<String>,
    /// Lines that belong to the last failure: a panic's message stands below its place.
    follows: usize,
}

impl Reasons {
    pub fn of(output: &str) -> Reasons {
        let mut reasons = Reasons::default();
        output.lines().for_each(|line| reasons.read(line));
        reasons
    }

    pub fn read(&mut self, line: &str) {
        let line = shortened(line.trim_end());
        if line.is_empty() {
            return;
        }
        let is_panic = line.contains("panicked at");
        // cargo test: `test a::b ... FAILED`; the summary of pytest: `FAILED file::test - reason`; its live lines have no reason.
        let names_test =
            (line.starts_with("test ") && line.ends_with(" ... FAILED")) || ["FAILED ", "ERROR "].iter().any(|word| line.starts_with(word));
        if names_test || is_panic || self.follows > 0 {
            self.follows = if is_panic { 2 } else { self.follows.saturating_sub(1) };
            self.failures.push(line.clone());
        }
        self.last.push_back(line);
        if self.last.len() > SHOWN_LINES {
            self.last.pop_front();
        }
    }

    pub fn lines(self) -> Vec<String> {
        if self.failures.is_empty() {
            return self.last.into();
        }
        let more = self.failures.len().saturating_sub(2 * SHOWN_LINES);
        let mut lines = self.failures;
        lines.truncate(2 * SHOWN_LINES);
        if more > 0 {
            lines.push(format!("(and {more} more lines about failures)"));
        }
        lines
    }
}

/// The last lines of a text that are not empty.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<String> = text.lines().filter(|line| !line.trim().is_empty()).map(shortened).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn shortened(line: &str) -> String {
    match line.char_indices().nth(SHOWN_LENGTH) {
        Some((end, _)) => format!("{} [...]", &line[..end]),
        None => line.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_tests_of_cargo_are_the_reason_with_their_panics() {
        let output = "\
running 3 tests
test map::works ... ok
test map::fails ... FAILED

---- map::fails stdout ----

thread 'map::fails' panicked at tests/it/map.rs:7:5:
assertion `left == right` failed
  left: 1
 right: 2

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s";
        let expected = [
            "test map::fails ... FAILED",
            "thread 'map::fails' panicked at tests/it/map.rs:7:5:",
            "assertion `left == right` failed",
            "  left: 1",
        ];
        assert_eq!(Reasons::of(output).lines(), expected);
    }

    #[test]
    fn the_summary_of_pytest_is_the_reason() {
        let output = "a.py::test_a PASSED\na.py::test_b FAILED\nFAILED a.py::test_b - assert 1 == 2\n1 failed, 1 passed in 0.52s";
        assert_eq!(Reasons::of(output).lines(), ["FAILED a.py::test_b - assert 1 == 2"]);
    }

    #[test]
    fn else_the_last_lines_are_the_reason() {
        let output: String = (0..100).map(|n| format!("line {n}\n\n")).collect();
        let lines = Reasons::of(&output).lines();
        assert_eq!((lines.len(), &*lines[0], &*lines[14]), (15, "line 85", "line 99"));
        assert_eq!(last_lines(&output, 2), "line 98\nline 99");
        assert_eq!(last_lines(&"é".repeat(600), 1), format!("{} [...]", "é".repeat(500)));
    }
}
