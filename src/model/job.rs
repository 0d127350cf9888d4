//! A batch system's jobs as the records keep them, and how engines left theirs.
use super::UnixTime;
use serde::{Deserialize, Serialize};

/// One element of a job (of one that is no array, element 1), as it was last seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRow {
    /// `slurm`, `sge` …
    pub launcher: String,
    /// The batch system's own id; it may use it again.
    pub job: String,
    /// Unlike that of any other job of the user's.
    pub name: String,
    pub element: u32,
    /// How many engines it is; 0 for a controller's job.
    pub engines: u32,
    /// How often its engines had been replaced by new jobs before: 0 for one that a command has submitted.
    #[serde(default)]
    pub replaces: u32,
    pub submitted: UnixTime,
    /// In words (`running`, `timed out (TIMEOUT)`).
    pub state: String,
    /// Why, in the system's words; may be empty.
    #[serde(default)]
    pub reason: String,
    /// It will not come back by itself.
    #[serde(default)]
    pub over: bool,
    /// When it was seen so, first.
    pub since: UnixTime,
}

/// An engine of a batch job that has gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Departure {
    /// As in [`super::engine::EngineFacts::job`].
    pub job: String,
    pub reason: String,
    pub registered: UnixTime,
    pub gone: UnixTime,
    /// When its job's time is, or was, over.
    #[serde(default)]
    pub ends: Option<UnixTime>,
}

/// What an engine says that leaves before its job's time is over.
pub const TIME_IS_OVER: &str = "the time of its job is nearly over";
/// How the reason begins of one that was warned by its batch system.
pub const WARNED: &str = "its batch system has warned it";

/// A warning this long before the known end, or in the last tenth of the time, is about that end.
const NEAR_S: f64 = 300.0;

impl Departure {
    /// Whether it left because its job's time was over, or nearly.
    pub fn is_of_walltime(&self) -> bool {
        if self.reason == TIME_IS_OVER {
            return true;
        }
        let Some(ends) = self.ends else { return false };
        let near = (0.1 * (ends.0 - self.registered.0)).max(NEAR_S);
        self.reason.starts_with(WARNED) && ends.0 - self.gone.0 <= near
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_departure_is_of_walltime_when_it_says_so_or_was_warned_near_the_end() {
        let departure = |reason: &str, gone: f64, ends: Option<f64>| Departure {
            job: "4.1".into(),
            reason: reason.into(),
            registered: UnixTime(0.0),
            gone: UnixTime(gone),
            ends: ends.map(UnixTime),
        };
        let warned = format!("{WARNED} (SIGUSR1)");
        assert!(departure(TIME_IS_OVER, 10.0, None).is_of_walltime());
        assert!(departure(&warned, 35_000.0, Some(36_000.0)).is_of_walltime());
        assert!(
            !departure(&warned, 30_000.0, Some(36_000.0)).is_of_walltime(),
            "somebody else wanted it gone"
        );
        assert!(!departure(&warned, 30_000.0, None).is_of_walltime());
        assert!(!departure("it was told to stop", 35_999.0, Some(36_000.0)).is_of_walltime());
    }
}
