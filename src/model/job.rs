//! A batch system's jobs in the records, and how engines left their jobs.
use super::UnixTime;
use serde::{Deserialize, Serialize};

/// One element of a job (element 1 if the job is not an array), as last observed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRow {
    /// `slurm`, `sge` …
    pub launcher: String,
    /// The batch system's own id; the system may reuse it.
    pub job: String,
    /// Unique among the user's jobs.
    pub name: String,
    pub element: u32,
    /// The number of engines; 0 for a controller's job.
    pub engines: u32,
    /// How often its engines were replaced by new jobs before: 0 for a job submitted by a command.
    #[serde(default)]
    pub replaces: u32,
    pub submitted: UnixTime,
    /// A description (`running`, `timed out (TIMEOUT)`).
    pub state: String,
    /// The reason in the system's own terms; may be empty.
    #[serde(default)]
    pub reason: String,
    /// It will not restart by itself.
    #[serde(default)]
    pub over: bool,
    /// When this state was first observed.
    pub since: UnixTime,
}

/// An engine of a batch job that has left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Departure {
    /// As in [`super::engine::EngineFacts::job`].
    pub job: String,
    pub reason: String,
    pub registered: UnixTime,
    pub gone: UnixTime,
    /// The end of its job's time limit.
    #[serde(default)]
    pub ends: Option<UnixTime>,
}

/// The reason that an engine reports when it leaves before its job's time limit.
pub(crate) const WALLTIME_NEARLY_OVER: &str = "the time of its job is nearly over";
/// Prefix of the reason of an engine that was warned by its batch system.
pub(crate) const WARNED_BY_BATCH_SYSTEM: &str = "its batch system has warned it";

/// A warning this long before the known end, or in the last tenth of the time limit, is attributed
/// to that end.
const NEAR_END_S: f64 = 300.0;

impl Departure {
    /// Whether it left because its job's time limit was reached, or nearly.
    pub fn is_walltime_end(&self) -> bool {
        if self.reason == WALLTIME_NEARLY_OVER {
            return true;
        }
        let Some(ends) = self.ends else { return false };
        let near = (0.1 * (ends.0 - self.registered.0)).max(NEAR_END_S);
        self.reason.starts_with(WARNED_BY_BATCH_SYSTEM) && ends.0 - self.gone.0 <= near
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_departure_is_a_walltime_end_if_the_reason_is_walltime_or_a_warning_near_the_end() {
        let departure = |reason: &str, gone: f64, ends: Option<f64>| Departure {
            job: "4.1".into(),
            reason: reason.into(),
            registered: UnixTime(0.0),
            gone: UnixTime(gone),
            ends: ends.map(UnixTime),
        };
        let warned = format!("{WARNED_BY_BATCH_SYSTEM} (SIGUSR1)");
        assert!(departure(WALLTIME_NEARLY_OVER, 10.0, None).is_walltime_end());
        assert!(departure(&warned, 35_000.0, Some(36_000.0)).is_walltime_end());
        assert!(!departure(&warned, 30_000.0, Some(36_000.0)).is_walltime_end(), "another cause");
        assert!(!departure(&warned, 30_000.0, None).is_walltime_end());
        assert!(!departure("requested to stop", 35_999.0, Some(36_000.0)).is_walltime_end());
    }
}
