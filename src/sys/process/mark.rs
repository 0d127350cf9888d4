//! Identifies the supervisor of a process by a mark in its environment, which names the first supervisor.
use super::{ProcessId, processes_in_sessions};
use std::fs;

/// The environment variable that names a process's supervisor.
pub(crate) const SUPERVISOR: &str = "PCLUSTER_SUPERVISOR";

/// The value of the variable: the first supervisor, whose session the processes belong to. A replacement supervisor is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub pid: u32,
    pub ticks: u64,
    /// Set for a supervisor itself.
    pub is_supervisor: bool,
}

impl Mark {
    /// The mark for a process that this process is about to start as its supervisor.
    pub(crate) fn for_supervised() -> Mark {
        let own = ProcessId::own();
        let first = Mark::of_this_process().filter(|mark| mark.is_supervisor);
        Mark {
            is_supervisor: false,
            ..first.unwrap_or(Mark {
                pid: own.pid,
                ticks: own.ticks.unwrap_or_default(),
                is_supervisor: false,
            })
        }
    }

    pub(crate) fn of_this_process() -> Option<Mark> {
        Mark::parse(&std::env::var(SUPERVISOR).ok()?)
    }

    pub(crate) fn parse(text: &str) -> Option<Mark> {
        let mut words = text.split(' ');
        let (pid, ticks) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Mark {
            pid,
            ticks,
            is_supervisor: words.next().is_some(),
        })
    }

    /// Returns whether the mark names this supervisor. Both must be of the same host.
    pub(crate) fn is_of(&self, process: &ProcessId) -> bool {
        self.pid == process.pid && Some(self.ticks) == process.ticks
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = if self.is_supervisor { " supervisor" } else { "" };
        write!(f, "{} {}{word}", self.pid, self.ticks)
    }
}

/// A remaining process of a supervisor that has ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Orphan {
    /// Index of its supervisor.
    pub of: usize,
    pub process: ProcessId,
}

/// Remaining processes of supervisors that have ended: for each its replacement supervisor, or otherwise the processes that it supervised.
pub(crate) fn orphans_of(supervisors: &[ProcessId]) -> Vec<Orphan> {
    let sessions: Vec<u32> = supervisors.iter().map(|process| process.pid).collect();
    let marked = |pid: u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let variable = |entry: &[u8]| entry.strip_prefix(SUPERVISOR.as_bytes())?.strip_prefix(b"=").map(<[u8]>::to_vec);
        let mark = Mark::parse(&String::from_utf8(environment.split(|byte| *byte == 0).find_map(variable)?).ok()?)?;
        let orphan = Orphan {
            of: supervisors.iter().position(|process| mark.is_of(process))?,
            process: Some(ProcessId::of(pid)).filter(|process| process.ticks.is_some())?,
        };
        Some((orphan, mark.is_supervisor))
    };
    let found: Vec<(Orphan, bool)> = processes_in_sessions(&sessions).into_iter().filter_map(marked).collect();
    let has_replacement = |of: usize| found.iter().any(|(orphan, is_supervisor)| orphan.of == of && *is_supervisor);
    let is_relevant = |(orphan, is_supervisor): &&(Orphan, bool)| *is_supervisor || !has_replacement(orphan.of);
    found.iter().filter(is_relevant).map(|(orphan, _)| orphan.clone()).collect()
}

/// The leaders of sessions in whose environment this variable is set, with its value.
pub(crate) fn marked_leaders(variable: &str) -> Vec<(u32, String)> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let marked = |pid: u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let value = |entry: &[u8]| entry.strip_prefix(variable.as_bytes())?.strip_prefix(b"=").map(<[u8]>::to_vec);
        let value = environment.split(|byte| *byte == 0).find_map(value)?;
        (super::session_of(pid) == Some(pid)).then_some(())?;
        Some((pid, String::from_utf8(value).ok()?))
    };
    pids.filter_map(marked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_round_trip() {
        let first = Mark {
            pid: 17,
            ticks: 123456,
            is_supervisor: false,
        };
        let next = Mark {
            is_supervisor: true,
            ..first
        };
        for mark in [first, next] {
            assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
        }
        let none = ["", "17", "x 1", "17 1234.56"];
        assert!(none.into_iter().all(|text| Mark::parse(text).is_none()));
    }
}
