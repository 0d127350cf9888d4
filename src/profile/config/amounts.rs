//! Time limits with units.
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// How long a job may run, in whole seconds.
///
/// Format: `1:30:00` (hours, minutes, seconds), `2-12:00:00` (days before them), `90m`, `36h`, `2d`, `1h30m`, `5400s`; a bare
/// number is minutes, as in Slurm. `1:30` is rejected: it is ambiguous between systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Walltime {
    pub seconds: u64,
}

const DAY: u64 = 86_400;
/// Ten years; a longer limit is assumed to be a typo.
const MAX_SECONDS: u64 = 3660 * DAY;
const TIMES: &str = "use 1:30:00 (hours:minutes:seconds), 90m, 36h or 2d; a bare number is minutes";

impl FromStr for Walltime {
    type Err = String;

    fn from_str(text: &str) -> Result<Walltime, String> {
        let seconds = match text.contains(':') {
            true => clock(text.trim()),
            false => units(text.trim()),
        };
        match seconds {
            Some(seconds) if (1..=MAX_SECONDS).contains(&seconds) => Ok(Walltime { seconds }),
            _ => Err(format!("{text:?} is not a valid time limit: {TIMES}")),
        }
    }
}

/// `[days-]hours:minutes:seconds`
fn clock(text: &str) -> Option<u64> {
    let (days, rest) = match text.split_once('-') {
        Some((days, rest)) => (number(days)?, rest),
        None => (0, text),
    };
    let parts: Vec<u64> = rest.split(':').map(number).collect::<Option<_>>()?;
    let [hours, minutes, seconds] = parts[..] else { return None };
    if minutes >= 60 || seconds >= 60 || (days > 0 && hours >= 24) {
        return None;
    }
    days.checked_mul(DAY)?
        .checked_add(hours.checked_mul(3600)?)?
        .checked_add(minutes * 60 + seconds)
}

/// `2d`, `1h30m`, `90` (minutes)
fn units(text: &str) -> Option<u64> {
    if let Some(minutes) = number(text) {
        return minutes.checked_mul(60);
    }
    let mut total: u64 = 0;
    let mut digits = String::new();
    for character in text.chars().filter(|c| *c != ' ') {
        if character.is_ascii_digit() {
            digits.push(character);
            continue;
        }
        let unit = match character.to_ascii_lowercase() {
            'd' => DAY,
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        total = total.checked_add(number(&digits)?.checked_mul(unit)?)?;
        digits.clear();
    }
    digits.is_empty().then_some(total)
}

fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

impl fmt::Display for Walltime {
    /// `36:00:00`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.seconds;
        write!(f, "{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    }
}

/// A YAML number or string.
#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl Serialize for Walltime {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Walltime {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Walltime, D::Error> {
        let text = match NumberOrText::deserialize(from)? {
            NumberOrText::Number(number) => number.to_string(),
            NumberOrText::Text(text) => text,
        };
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_in_every_format() {
        for (text, seconds) in [
            ("90", 5400),
            ("90m", 5400),
            ("1:30:00", 5400),
            ("1h30m", 5400),
            ("1h 30m", 5400),
            ("5400s", 5400),
            ("2d", 172_800),
            ("2-00:00:00", 172_800),
            ("1-12:00:05", 129_605),
            ("36h", 129_600),
            ("100:00:00", 360_000),
        ] {
            assert_eq!(text.parse::<Walltime>(), Ok(Walltime { seconds }), "{text}");
        }
        for text in [
            "",
            "0",
            "1:30",
            "1:60:00",
            "h",
            "5x",
            "-5",
            "1-25:00:00",
            "1:2:3:4",
            "99999999999999999999",
            "2d5",
            "1.5h",
        ] {
            assert!(text.parse::<Walltime>().is_err(), "{text}");
        }
        insta::assert_snapshot!("1:30".parse::<Walltime>().unwrap_err(), @r#""1:30" is not a valid time limit: use 1:30:00 (hours:minutes:seconds), 90m, 36h or 2d; a bare number is minutes"#);
    }

    proptest! {
        #[test]
        fn displayed_values_parse_again(seconds in 1..MAX_SECONDS) {
            let time = Walltime { seconds };
            prop_assert_eq!(time.to_string().parse(), Ok(time));
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,20}") {
            let _ = text.parse::<Walltime>();
        }
    }
}
