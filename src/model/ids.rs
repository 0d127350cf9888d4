//! Id types, each with the single spelling that users see (`12`, `12.3`).
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The number of a map (submission), counted from 1 within one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MapId(pub u32);

/// One task: its map and its index in the map's inputs, counted from 0. Displayed as `12.3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    pub map: MapId,
    pub index: u32,
}

impl TaskId {
    pub fn new(map: MapId, index: u32) -> Self {
        TaskId { map, index }
    }
    /// The task's row id in the database: the map in the high 32 bits, the index in the low ones.
    pub fn row_id(self) -> i64 {
        (i64::from(self.map.0) << 32) | i64::from(self.index)
    }
    pub fn from_row_id(row: i64) -> Self {
        TaskId {
            map: MapId((row >> 32) as u32),
            index: row as u32,
        }
    }
}

impl fmt::Display for MapId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.map.0, self.index)
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct BadId(String);

fn not_an_id(text: &str) -> String {
    format!("{text:?} is not a map (12) or a task (12.3)")
}

impl FromStr for MapId {
    type Err = BadId;
    fn from_str(s: &str) -> Result<Self, BadId> {
        let bad = || {
            BadId(match s.parse::<TaskId>() {
                Ok(task) => format!("{s} is a task, not a map: use its map, {}", task.map),
                Err(_) => not_an_id(s),
            })
        };
        if !s.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        s.parse().map(MapId).map_err(|_| bad())
    }
}

impl FromStr for TaskId {
    type Err = BadId;
    fn from_str(s: &str) -> Result<Self, BadId> {
        let number = |part: &str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok())?;
        let id = s.split_once('.').and_then(|(map, index)| Some((number(map)?, number(index)?)));
        let (map, index) = id.ok_or_else(|| BadId(not_an_id(s)))?;
        Ok(TaskId { map: MapId(map), index })
    }
}

/// `"12.3"` in JSON.
impl Serialize for TaskId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for TaskId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = String::deserialize(d)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

/// The engine number that users see, such as 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EngineId(pub u32);

impl fmt::Display for EngineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An engine's identity on the wire: its uuid, which is also its ZeroMQ routing id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EngineUuid(pub std::sync::Arc<str>);

impl fmt::Display for EngineUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for EngineUuid {
    fn from(s: &str) -> Self {
        EngineUuid(s.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn task_ids_survive_text_and_row(map: u32, index: u32) {
            let id = TaskId::new(MapId(map & 0x7fff_ffff), index);
            prop_assert_eq!(id.to_string().parse::<TaskId>(), Ok(id));
            prop_assert_eq!(TaskId::from_row_id(id.row_id()), id);
        }
        #[test]
        fn parsing_never_panics(s in ".*") {
            let _ = s.parse::<TaskId>();
            let _ = s.parse::<MapId>();
        }
    }

    #[test]
    fn malformed_ids_are_rejected() {
        for s in ["", ".", "1.", ".1", "+1", "1.-2", "1.2.3", "99999999999"] {
            assert!(s.parse::<TaskId>().is_err(), "{s}");
        }
        assert!("+1".parse::<MapId>().is_err());
        let task = "95.1".parse::<MapId>().unwrap_err().to_string();
        assert_eq!(task, "95.1 is a task, not a map: use its map, 95");
    }
}
