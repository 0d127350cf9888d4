//! Integer ranges: `A..B` without B (as in Python and Rust), `A..=B` with it, `A..B..S` in steps of S, which may be negative.
use std::fmt;
use std::str::FromStr;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    first: i64,
    end: i64,
    inclusive: bool,
    step: i64,
}

impl FromStr for Range {
    type Err = String;
    fn from_str(text: &str) -> Result<Range, String> {
        let how = "must be A..B (without B), A..=B (with B) or A..B..STEP, for example 0..100";
        let (first, rest) = text.split_once("..").ok_or_else(|| how.to_string())?;
        let (end, step) = match rest.split_once("..") {
            Some((end, step)) => (end, Some(step)),
            None => (rest, None),
        };
        let (end, inclusive) = match end.strip_prefix('=') {
            Some(end) => (end, true),
            None => (end, false),
        };
        let number = |s: &str| -> Result<i64, String> {
            let plain = s.trim().replace('_', "");
            plain.parse().map_err(
                |_| match plain.trim_start_matches(['-', '+']).bytes().all(|b| b.is_ascii_digit()) && !plain.is_empty() {
                    true => format!("{s} is not a 64-bit integer"),
                    false => format!("{s:?} is not an integer; {how}"),
                },
            )
        };
        let range = Range {
            first: number(first)?,
            end: number(end)?,
            inclusive,
            step: step.map(number).transpose()?.unwrap_or(1),
        };
        if range.step == 0 {
            return Err("the step is 0".into());
        }
        Ok(range)
    }
}

impl Range {
    /// The number of integers.
    pub fn len(&self) -> u64 {
        let (first, mut end, step) = (i128::from(self.first), i128::from(self.end), i128::from(self.step));
        if self.inclusive {
            end += step.signum();
        }
        let span = (end - first) * step.signum();
        if span <= 0 {
            return 0;
        }
        let count = (span + step.abs() - 1) / step.abs();
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl IntoIterator for Range {
    type Item = i64;
    type IntoIter = Box<dyn Iterator<Item = i64> + Send>;
    fn into_iter(self) -> Self::IntoIter {
        let (first, step) = (i128::from(self.first), i128::from(self.step));
        // All numbers lie between two 64-bit integers.
        Box::new((0..self.len()).filter_map(move |i| i64::try_from(first + i128::from(i) * step).ok()))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}{}", self.first, if self.inclusive { "=" } else { "" }, self.end)?;
        if self.step != 1 {
            write!(f, "..{}", self.step)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbers(text: &str) -> Vec<i64> {
        text.parse::<Range>().unwrap().into_iter().collect()
    }

    #[test]
    fn ranges() {
        assert_eq!(numbers("0..3"), [0, 1, 2]);
        assert_eq!(numbers("0..=3"), [0, 1, 2, 3]);
        assert_eq!(numbers("-2..1"), [-2, -1, 0]);
        assert_eq!(numbers("0..10..4"), [0, 4, 8]);
        assert_eq!(numbers("0..=8..4"), [0, 4, 8]);
        assert_eq!(numbers("3..0..-1"), [3, 2, 1]);
        assert!(numbers("3..0").is_empty());
        assert_eq!(numbers("1_000..1_001"), [1000]);
        assert_eq!(
            "-9223372036854775808..9223372036854775807".parse::<Range>().unwrap().len(),
            u64::MAX
        );
        for (text, says) in [
            ("5", "A..B"),
            ("a..b", "not an integer"),
            ("..", "not an integer"),
            ("1..2..0", "step is 0"),
            ("0..99999999999999999999", "64-bit"),
        ] {
            let error = text.parse::<Range>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn the_length_is_the_number_of_numbers(first in -50i64..50, end in -50i64..50, step in prop_oneof![-7i64..0, 1i64..7], inclusive: bool) {
            let range = Range { first, end, inclusive, step };
            let all: Vec<i64> = range.clone().into_iter().collect();
            prop_assert_eq!(all.len() as u64, range.len());
            let mut expected = Vec::new();
            let mut n = first;
            while (step > 0 && (n < end || inclusive && n == end)) || (step < 0 && (n > end || inclusive && n == end)) {
                expected.push(n);
                n += step;
            }
            prop_assert_eq!(all, expected);
            prop_assert_eq!(range.to_string().parse::<Range>(), Ok(range));
        }
        #[test]
        fn parsing_never_panics(s in "[0-9.=_-]{0,12}|.*") {
            let _ = s.parse::<Range>().map(|r| r.len());
        }
    }
}
