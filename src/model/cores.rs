//! Processors as the kernel numbers them.
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// The number of processors in the kernel's `cpu_set_t` (sched_setaffinity(2)); those beyond it are ignored.
const MAX_CORES: u16 = 1024;

/// A set of processors, in text as the kernel writes it: `0-3,8`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreSet {
    cores: BTreeSet<u16>,
}

impl CoreSet {
    pub fn len(&self) -> usize {
        self.cores.len()
    }
    pub fn is_empty(&self) -> bool {
        self.cores.is_empty()
    }
    pub fn contains(&self, core: u16) -> bool {
        self.cores.contains(&core)
    }
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.cores.iter().copied()
    }
}

impl FromIterator<u16> for CoreSet {
    fn from_iter<I: IntoIterator<Item = u16>>(cores: I) -> CoreSet {
        CoreSet {
            cores: cores.into_iter().filter(|core| *core < MAX_CORES).collect(),
        }
    }
}

impl FromStr for CoreSet {
    type Err = String;

    /// The format of `cpulist` files (cpuset(7), "List format").
    fn from_str(text: &str) -> Result<CoreSet, String> {
        let invalid = || format!("{text:?} is not a list of processors such as 0-3,8");
        let number = |word: &str| word.trim().parse::<u32>().map_err(|_| invalid());
        let mut cores = BTreeSet::new();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(invalid());
            }
            let last = last.min(u32::from(MAX_CORES) - 1);
            cores.extend((first..=last).filter_map(|core| u16::try_from(core).ok()));
        }
        Ok(CoreSet { cores })
    }
}

impl fmt::Display for CoreSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if_eq(&(last + 1)) {
                last = next;
            }
            match first == last {
                true => write!(f, "{separator}{first}")?,
                false => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

impl Serialize for CoreSet {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CoreSet {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<CoreSet, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        for (text, shown, count) in [
            ("0-3,8\n", "0-3,8", 5),
            ("7,5,6", "5-7", 3),
            ("", "", 0),
            ("3", "3", 1),
            ("1022-4294967295", "1022-1023", 2),
            ("5000", "", 0),
        ] {
            let cores: CoreSet = text.parse().unwrap();
            assert_eq!((cores.to_string().as_str(), cores.len()), (shown, count), "{text:?}");
        }
        for bad in ["3-1", "a", "1-", "-1", "1-2-3", "99999999999"] {
            assert!(bad.parse::<CoreSet>().is_err(), "{bad}");
        }
    }
}
