//! Parses ids of maps and tasks: `3`, `3.7`, and ranges (`3-5`, `3.7-9`).
use super::CommandError;
use crate::model::{MapId, TaskId};
use std::str::FromStr;

/// The maximum length of a range, so that a typo does not exhaust the memory.
const MAX_LENGTH: u32 = 100_000;

/// One argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ids {
    Maps(Vec<MapId>),
    Tasks(Vec<TaskId>),
}

impl FromStr for Ids {
    type Err = String;
    fn from_str(text: &str) -> Result<Ids, String> {
        let bad = || format!("{text:?} is neither a map (12) nor a task (12.3), nor a range of them (12-14, 12.3-9)");
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (first, Some(last)),
            None => (text, None),
        };
        // MapId's spelling is a plain number: digits alone, no sign.
        let number = |s: &str| s.parse::<MapId>().map(|MapId(n)| n).map_err(|_| bad());
        let range = |first: u32| -> Result<_, String> {
            let last = last.map(number).transpose()?.unwrap_or(first);
            if last < first {
                return Err(format!("{text:?} is a reversed range"));
            }
            if last - first >= MAX_LENGTH {
                return Err(format!("{text:?} is too long a range (maximum {MAX_LENGTH})"));
            }
            Ok(first..=last)
        };
        if first.contains('.') {
            let task: TaskId = first.parse().map_err(|_| bad())?;
            Ok(Ids::Tasks(range(task.index)?.map(|index| TaskId::new(task.map, index)).collect()))
        } else {
            Ok(Ids::Maps(range(number(first)?)?.map(MapId).collect()))
        }
    }
}

/// All arguments, sorted into maps and tasks, each once, in the order given.
pub(crate) fn sort(ids: &[Ids]) -> (Vec<MapId>, Vec<TaskId>) {
    let (mut maps, mut tasks) = (Vec::new(), Vec::new());
    for id in ids {
        match id {
            Ids::Maps(more) => maps.extend(more),
            Ids::Tasks(more) => tasks.extend(more),
        }
    }
    let mut seen = std::collections::HashSet::new();
    maps.retain(|map| seen.insert(TaskId::new(*map, 0)));
    seen.clear();
    tasks.retain(|task| seen.insert(*task));
    (maps, tasks)
}

/// For commands that take only maps.
pub(crate) fn maps_only(ids: &[Ids], command: &str) -> Result<Vec<MapId>, CommandError> {
    let (maps, tasks) = sort(ids);
    match tasks.first() {
        Some(task) => Err(
            CommandError::usage(format!("{task} is a task, and `pcluster {command}` takes maps"))
                .hint(format!("pcluster {command} {}", task.map)),
        ),
        None => Ok(maps),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn maps_tasks_and_ranges() {
        let all: Vec<Ids> = ["3", "1-2", "3", "1.3", "1.3-4"].map(|s| s.parse().unwrap()).into();
        let (maps, tasks) = sort(&all);
        assert_eq!(maps, [MapId(3), MapId(1), MapId(2)]);
        assert_eq!(tasks, [TaskId::new(MapId(1), 3), TaskId::new(MapId(1), 4)]);
        for bad in ["", "x", "1.", "1.x", "2-1", "1-", "-1", "1.1-1.2", "0-4294967295", "1.0-4000000000"] {
            assert!(bad.parse::<Ids>().is_err(), "{bad}");
        }
        assert_eq!(maps_only(&["1.3".parse().unwrap()], "wait").unwrap_err().hints, ["pcluster wait 1"]);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[0-9.\\-]{0,20}|.*") {
            let _ = text.parse::<Ids>();
        }
    }
}
