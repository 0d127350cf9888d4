//! Engine targets: `all`, or a list such as `0,3,5-8`.
use super::EngineId;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Targets {
    #[default]
    All,
    /// In ascending order, without duplicates.
    Some(Vec<EngineId>),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a list of engines: {why} (write `all`, or numbers and ranges such as `0,3,5-8`)")]
pub struct BadTargets {
    text: String,
    why: String,
}

/// Maximum number of engines in a list (a mistyped range must not exhaust the memory).
const MAX_ENGINES: usize = 1_000_000;

impl FromStr for Targets {
    type Err = BadTargets;
    fn from_str(text: &str) -> Result<Self, BadTargets> {
        let bad = |why: String| BadTargets {
            text: text.to_string(),
            why,
        };
        if text.trim().eq_ignore_ascii_case("all") {
            return Ok(Targets::All);
        }
        let number = |s: &str| -> Result<u32, BadTargets> {
            let s = s.trim();
            if s.is_empty() || !s.bytes().all(|b| b.is_ascii_digit()) {
                return Err(bad(format!("{s:?} is not a number")));
            }
            s.parse().map_err(|_| bad(format!("{s} is too large")))
        };
        let mut ids = std::collections::BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = match part.split_once('-') {
                Some((a, b)) => (number(a)?, number(b)?),
                None => (number(part)?, number(part)?),
            };
            if first > last {
                return Err(bad(format!("the range {} is descending", part.trim())));
            }
            if (last - first) as usize >= MAX_ENGINES {
                return Err(bad(format!("the range {} is too long", part.trim())));
            }
            ids.extend((first..=last).map(EngineId));
            if ids.len() > MAX_ENGINES {
                return Err(bad("too many engines".into()));
            }
        }
        Ok(Targets::Some(ids.into_iter().collect()))
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Targets::Some(ids) = self else {
            return f.write_str("all");
        };
        let mut i = 0;
        while i < ids.len() {
            let mut j = i;
            while j + 1 < ids.len() && ids[j + 1].0 == ids[j].0 + 1 {
                j += 1;
            }
            if i > 0 {
                f.write_str(",")?;
            }
            if j > i {
                write!(f, "{}-{}", ids[i], ids[j])?;
            } else {
                write!(f, "{}", ids[i])?;
            }
            i = j + 1;
        }
        Ok(())
    }
}

impl Serialize for Targets {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_and_ranges() {
        let t: Targets = "0,3,5-8, 7".parse().unwrap();
        assert_eq!(t.to_string(), "0,3,5-8");
        assert_eq!("ALL".parse(), Ok(Targets::All));
        for s in ["", "a", "1-", "-1", "3-1", "1,,2", "0-4294967295", "99999999999"] {
            assert!(s.parse::<Targets>().is_err(), "{s}");
        }
    }

    proptest! {
        #[test]
        fn formatted_targets_round_trip(ids in proptest::collection::btree_set(0u32..5000, 1..50)) {
            let t = Targets::Some(ids.into_iter().map(EngineId).collect());
            prop_assert_eq!(t.to_string().parse::<Targets>(), Ok(t));
        }
        #[test]
        fn parsing_never_panics(s in "[0-9a-z,\\- ]*") {
            let _ = s.parse::<Targets>();
        }
    }
}
