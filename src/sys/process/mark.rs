//! Whose a supervised process is: in its environment, the supervisor that was started first.
use super::{ProcessId, in_sessions_of};
use std::fs;

/// Names its supervisor in the environment of a process.
pub const SUPERVISOR: &str = "PCLUSTER_SUPERVISOR";

/// What stands there: the supervisor that was started first, whose session they are in. One that has taken its place says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub pid: u32,
    pub ticks: u64,
    /// On a supervisor itself.
    pub is_supervisor: bool,
}

impl Mark {
    /// Of a process that this one is about to start, as its supervisor.
    pub fn for_supervised() -> Mark {
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

    pub fn of_this_process() -> Option<Mark> {
        Mark::parse(&std::env::var(SUPERVISOR).ok()?)
    }

    pub fn parse(text: &str) -> Option<Mark> {
        let mut words = text.split(' ');
        let (pid, ticks) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Mark {
            pid,
            ticks,
            is_supervisor: words.next().is_some(),
        })
    }

    /// Whether this supervisor is meant. Marks and processes of one host are compared.
    pub fn is_of(&self, process: &ProcessId) -> bool {
        self.pid == process.pid && Some(self.ticks) == process.ticks
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = if self.is_supervisor { " supervisor" } else { "" };
        write!(f, "{} {}{word}", self.pid, self.ticks)
    }
}

/// A process that a supervisor has left which is gone.
#[derive(Clone, Debug, PartialEq)]
pub struct Left {
    /// Which one's, by index.
    pub of: usize,
    pub process: ProcessId,
}

/// What these supervisors, which are gone, left: the supervisor that has taken the place of one, else what that kept running.
pub fn left_by(supervisors: &[ProcessId]) -> Vec<Left> {
    let sessions: Vec<u32> = supervisors.iter().map(|process| process.pid).collect();
    let marked = |pid: u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let variable = |entry: &[u8]| entry.strip_prefix(SUPERVISOR.as_bytes())?.strip_prefix(b"=").map(<[u8]>::to_vec);
        let mark = Mark::parse(&String::from_utf8(environment.split(|byte| *byte == 0).find_map(variable)?).ok()?)?;
        let left = Left {
            of: supervisors.iter().position(|process| mark.is_of(process))?,
            process: Some(ProcessId::of(pid)).filter(|process| process.ticks.is_some())?,
        };
        Some((left, mark.is_supervisor))
    };
    let found: Vec<(Left, bool)> = in_sessions_of(&sessions).into_iter().filter_map(marked).collect();
    let has_another = |of: usize| found.iter().any(|(left, is_supervisor)| left.of == of && *is_supervisor);
    let counts = |(left, is_supervisor): &&(Left, bool)| *is_supervisor || !has_another(left.of);
    found.iter().filter(counts).map(|(left, _)| left.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
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
