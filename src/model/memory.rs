//! Amounts of memory with units, the same in options, profiles and messages.
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// An amount of memory in bytes. Format: `4G`, `4GB`, `4GiB`, `512M`, `1.5T`, `100K`, `4096B`, all of them powers of 1024. A
/// number without a unit is rejected: systems disagree about what it means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Memory {
    pub bytes: u64,
}

const UNITS: [(char, u32); 5] = [('T', 40), ('G', 30), ('M', 20), ('K', 10), ('B', 0)];
/// 1 EiB; more is assumed to be a typo.
const MAX: f64 = (1u64 << 60) as f64;

impl Memory {
    pub const fn of_mib(mib: u64) -> Memory {
        Memory { bytes: mib << 20 }
    }

    /// In MiB, rounded up.
    pub const fn mib(self) -> u64 {
        self.bytes.div_ceil(1 << 20)
    }

    /// Rounded to three digits, for people: `62.7G`, `512M`.
    pub fn rounded(self) -> String {
        let (unit, shift) = UNITS
            .into_iter()
            .find(|(_, shift)| self.bytes >= 1 << shift)
            .unwrap_or(UNITS[UNITS.len() - 1]);
        let amount = self.bytes as f64 / (1u64 << shift) as f64;
        match amount < 99.95 && !self.bytes.is_multiple_of(1 << shift) {
            true => format!("{amount:.1}{unit}"),
            false => format!("{amount:.0}{unit}"),
        }
    }
}

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Memory, String> {
        let bare = text.trim();
        let invalid = || format!("{text:?} is not an amount of memory: use a number with a unit, for example 4G or 512M");
        let end = bare.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(bare.len());
        let (digits, unit) = bare.split_at(end);
        let amount: f64 = digits.parse().map_err(|_| invalid())?;
        let unit = unit.trim().to_ascii_uppercase();
        if unit.is_empty() && amount > 0.0 {
            return Err(format!("{text:?} has no unit: write {digits}M for MiB, or {digits}G for GiB"));
        }
        let letter = match unit.as_str() {
            "B" => Some('B'),
            _ => {
                let short = unit.strip_suffix("IB").or(unit.strip_suffix('B')).unwrap_or(&unit);
                let mut letters = short.chars();
                letters.next().filter(|letter| *letter != 'B' && letters.next().is_none())
            }
        };
        let shift = UNITS.iter().find(|(name, _)| Some(*name) == letter).ok_or_else(invalid)?.1;
        let bytes = (amount * (1u64 << shift) as f64).round();
        match bytes {
            _ if (1.0..MAX).contains(&bytes) => Ok(Memory { bytes: bytes as u64 }),
            _ if bytes < 1.0 => Err(format!("{text:?} must be greater than 0")),
            _ => Err(format!("{text:?} is more than any machine has")),
        }
    }
}

impl fmt::Display for Memory {
    /// Exact, and parses again: `4G`, `512M`, `1536M`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS
            .into_iter()
            .find(|(_, shift)| self.bytes > 0 && self.bytes.is_multiple_of(1 << shift));
        let (unit, shift) = exact.unwrap_or(UNITS[UNITS.len() - 1]);
        write!(f, "{}{unit}", self.bytes >> shift)
    }
}

impl Serialize for Memory {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Memory, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Memory;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount of memory with a unit, for example 4G or 512M")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Memory, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Memory, E> {
                number.to_string().parse().map_err(E::custom)
            }
            fn visit_f64<E: Error>(self, number: f64) -> Result<Memory, E> {
                Err(E::invalid_value(Unexpected::Float(number), &self))
            }
        }
        from.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_format() {
        for (text, bytes) in [
            ("4G", 4 << 30),
            ("4GB", 4 << 30),
            ("4 GiB", 4 << 30),
            ("4g", 4 << 30),
            ("512M", 512 << 20),
            ("1.5T", 3 << 39),
            ("100K", 100 << 10),
            ("4096B", 4096),
            (" 7kb ", 7 << 10),
        ] {
            assert_eq!(text.parse::<Memory>(), Ok(Memory { bytes }), "{text}");
        }
        for text in [
            "", "0G", "0", "G", "4X", "-1G", "1..5G", "9999999T", "inf", "nan", "4BB", "4IB", "é", "4 G G",
        ] {
            assert!(text.parse::<Memory>().is_err(), "{text}");
        }
        insta::assert_snapshot!("500".parse::<Memory>().unwrap_err(), @r#""500" has no unit: write 500M for MiB, or 500G for GiB"#);
        insta::assert_snapshot!("4X".parse::<Memory>().unwrap_err(), @r#""4X" is not an amount of memory: use a number with a unit, for example 4G or 512M"#);
    }

    #[test]
    fn amounts_in_files_need_a_unit_too() {
        let parse = |json: &str| serde_json::from_str::<Memory>(json).map_err(|e| e.to_string());
        assert_eq!(parse("\"2G\""), Ok(Memory { bytes: 2 << 30 }));
        assert!(parse("500").unwrap_err().contains("write 500M"), "{:?}", parse("500"));
        assert!(parse("1.5").is_err() && parse("null").is_err());
    }

    #[test]
    fn rounding_for_people() {
        for (bytes, shown) in [
            (0, "0B"),
            (1023, "1023B"),
            (64 << 30, "64G"),
            (67_321_741_312, "62.7G"),
            (1536 << 20, "1.5G"),
            (999 << 30, "999G"),
            ((99 << 30) + 1, "99.0G"),
        ] {
            assert_eq!(Memory { bytes }.rounded(), shown);
        }
    }

    proptest! {
        #[test]
        fn displayed_values_parse_again(bytes in 1u64..1 << 50) {
            let memory = Memory { bytes };
            prop_assert_eq!(memory.to_string().parse(), Ok(memory));
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,20}") {
            let _ = text.parse::<Memory>();
        }
    }
}
