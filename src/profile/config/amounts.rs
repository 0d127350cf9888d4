//! Amounts with units: time limits and memory.
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

/// Memory in whole MiB. Format: `4G`, `4GB`, `4GiB`, `512M`, `1.5T`; a bare number is MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Memory {
    pub mib: u64,
}

const DAY: u64 = 86_400;
/// Ten years; a longer limit is assumed to be a typo.
const MAX_SECONDS: u64 = 3660 * DAY;
const TIMES: &str = "use 1:30:00 (hours:minutes:seconds), 90m, 36h or 2d; a bare number is minutes";
const SIZES: &str = "use 4G or 512M; a bare number is MiB";

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

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Memory, String> {
        memory(text.trim())
            .filter(|mib| *mib > 0)
            .map(|mib| Memory { mib })
            .ok_or_else(|| format!("{text:?} is not a valid amount of memory: {SIZES}"))
    }
}

fn memory(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let amount: f64 = digits.parse().ok()?;
    let unit = unit.trim().to_ascii_lowercase();
    let unit = unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit);
    let factor = match unit {
        "k" => 1.0 / 1024.0,
        "" | "m" => 1.0,
        "g" => 1024.0,
        "t" => 1024.0 * 1024.0,
        _ => return None,
    };
    let mib = (amount * factor).ceil();
    (mib.is_finite() && mib < 1e12).then_some(mib as u64)
}

impl fmt::Display for Memory {
    /// `4G`, `512M`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mib % 1024 {
            0 if self.mib > 0 => write!(f, "{}G", self.mib / 1024),
            _ => write!(f, "{}M", self.mib),
        }
    }
}

/// A YAML number or string.
#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

fn from_number_or_text<'de, D: Deserializer<'de>, T: FromStr<Err = String>>(from: D) -> Result<T, D::Error> {
    let text = match NumberOrText::deserialize(from)? {
        NumberOrText::Number(number) => number.to_string(),
        NumberOrText::Text(text) => text,
    };
    text.parse().map_err(D::Error::custom)
}

macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from_number_or_text(from)
            }
        }
    };
}
as_text!(Walltime);
as_text!(Memory);

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

    #[test]
    fn memory_in_every_format() {
        for (text, mib) in [
            ("4G", 4096),
            ("4GB", 4096),
            ("4 GiB", 4096),
            ("4g", 4096),
            ("512M", 512),
            ("512", 512),
            ("1.5T", 1_572_864),
            ("100K", 1),
        ] {
            assert_eq!(text.parse::<Memory>(), Ok(Memory { mib }), "{text}");
        }
        for text in ["", "0", "G", "4X", "-1G", "1..5G", "1e9G", "inf"] {
            assert!(text.parse::<Memory>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn displayed_values_parse_again(seconds in 1..MAX_SECONDS, mib in 1u64..1 << 39) {
            let (time, memory) = (Walltime { seconds }, Memory { mib });
            prop_assert_eq!(time.to_string().parse(), Ok(time));
            prop_assert_eq!(memory.to_string().parse(), Ok(memory));
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,20}") {
            let _ = text.parse::<Walltime>();
            let _ = text.parse::<Memory>();
        }
    }
}
