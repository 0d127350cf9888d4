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
    /// It ended because it used too much memory. Not recorded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub out_of_memory: bool,
    /// When this state was first observed.
    pub since: UnixTime,
}

impl JobRow {
    /// Whether this is the job, or the element of a job, that a user or an engine names.
    pub(crate) fn is(&self, asked: &str) -> bool {
        is_job(&self.job, asked) || is_job(&format!("{}.{}", parts(&self.job).0, self.element), asked)
    }

    /// Whether an engine with this [`super::engine::EngineFacts::job`] is one of its engines.
    pub fn is_of_engine(&self, job: &str) -> bool {
        let of_element = || Some(job.strip_prefix(&*self.job)?.strip_prefix('.')?.parse::<u32>().ok()? == self.element);
        (self.element == 1 && job == self.job) || of_element() == Some(true)
    }
}

/// An engine of a batch job that has left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Departure {
    /// As in [`super::engine::EngineFacts::job`].
    pub job: String,
    pub reason: LeaveReason,
    pub registered: UnixTime,
    pub gone: UnixTime,
    /// The end of its job's time limit.
    #[serde(default)]
    pub ends: Option<UnixTime>,
}

/// The number of a job, and the element of an array: from `4711`, `4711.3`, `4711_3`, `19[3].server` or `19[].server`.
fn parts(job: &str) -> (&str, Option<u32>) {
    let end = job.find(|c: char| !c.is_ascii_digit()).unwrap_or(job.len());
    let (number, rest) = job.split_at(end);
    let element = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((element, _)) => element,
        None => rest.trim_start_matches(['.', '_']),
    };
    (number, element.parse().ok())
}

/// Whether `job`, as a batch system or an engine spells it, is the one that a user means by `asked`: a job, or one element of
/// an array.
pub(crate) fn is_job(job: &str, asked: &str) -> bool {
    let ((number, element), (wanted, wanted_element)) = (parts(job), parts(asked));
    job == asked || (!wanted.is_empty() && number == wanted && (wanted_element.is_none() || element == wanted_element))
}

/// Why an engine leaves. It is reported, recorded and displayed as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum LeaveReason {
    /// Its job's time limit is near.
    Walltime,
    /// Its batch system sent this signal as a warning.
    Warned(String),
    /// Another process sent this signal.
    Signal(String),
    Unknown(String),
}

const WALLTIME: &str = "the time of its job is nearly over";
const WARNED: &str = "its batch system has warned it (";
const SIGNAL: &str = "the engine received ";

impl std::fmt::Display for LeaveReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LeaveReason::Walltime => f.write_str(WALLTIME),
            LeaveReason::Warned(signal) => write!(f, "{WARNED}{signal})"),
            LeaveReason::Signal(signal) => write!(f, "{SIGNAL}{signal}"),
            LeaveReason::Unknown(text) => f.write_str(text),
        }
    }
}

impl From<String> for LeaveReason {
    fn from(text: String) -> LeaveReason {
        let warned = text.strip_prefix(WARNED).and_then(|rest| rest.strip_suffix(')'));
        match (warned, text.strip_prefix(SIGNAL)) {
            _ if text == WALLTIME => LeaveReason::Walltime,
            (Some(signal), _) => LeaveReason::Warned(signal.into()),
            (_, Some(signal)) => LeaveReason::Signal(signal.into()),
            _ => LeaveReason::Unknown(text),
        }
    }
}

impl From<LeaveReason> for String {
    fn from(reason: LeaveReason) -> String {
        reason.to_string()
    }
}

/// A warning this long before the known end, or in the last tenth of the time limit, is attributed
/// to that end.
const NEAR_END_S: f64 = 300.0;

impl Departure {
    /// Whether it left because its job's time limit was reached, or nearly.
    pub fn is_walltime_end(&self) -> bool {
        match (&self.reason, self.ends) {
            (LeaveReason::Walltime, _) => true,
            (LeaveReason::Warned(_), Some(ends)) => ends.0 - self.gone.0 <= (0.1 * (ends.0 - self.registered.0)).max(NEAR_END_S),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_recognized_in_every_spelling() {
        for (job, asked) in [
            ("4711", "4711"),
            ("4711.3", "4711"),
            ("4711.3", "4711_3"),
            ("19[3].server", "19"),
            ("19[3].server", "19[3]"),
            ("19[3].server", "19.3"),
            ("19[].server", "19[].server"),
            ("7.server", "7"),
        ] {
            assert!(is_job(job, asked), "{job} {asked}");
        }
        for (job, asked) in [
            ("4711.3", "4711.4"),
            ("47", "4711"),
            ("4711", "47"),
            ("", ""),
            ("4711", ""),
            ("4711", "x"),
        ] {
            assert!(!is_job(job, asked) || job == asked, "{job} {asked}");
        }
    }

    #[test]
    fn a_departure_is_a_walltime_end_if_the_reason_is_walltime_or_a_warning_near_the_end() {
        let departure = |reason: LeaveReason, gone: f64, ends: Option<f64>| Departure {
            job: "4.1".into(),
            reason,
            registered: UnixTime(0.0),
            gone: UnixTime(gone),
            ends: ends.map(UnixTime),
        };
        let warned = LeaveReason::Warned("SIGUSR1".into());
        assert!(departure(LeaveReason::Walltime, 10.0, None).is_walltime_end());
        assert!(departure(warned.clone(), 35_000.0, Some(36_000.0)).is_walltime_end());
        assert!(
            !departure(warned.clone(), 30_000.0, Some(36_000.0)).is_walltime_end(),
            "another cause"
        );
        assert!(!departure(warned, 30_000.0, None).is_walltime_end());
        let requested = LeaveReason::Unknown("requested to stop".into());
        assert!(!departure(requested, 35_999.0, Some(36_000.0)).is_walltime_end());
    }

    #[test]
    fn reasons_are_recorded_as_text_also_unknown_ones() {
        for (text, reason) in [
            ("the time of its job is nearly over", LeaveReason::Walltime),
            ("its batch system has warned it (SIGUSR2)", LeaveReason::Warned("SIGUSR2".into())),
            ("the engine received SIGTERM", LeaveReason::Signal("SIGTERM".into())),
            ("moved to another planet", LeaveReason::Unknown("moved to another planet".into())),
        ] {
            let json = serde_json::json!(text);
            assert_eq!(serde_json::from_value::<LeaveReason>(json.clone()).unwrap(), reason);
            assert_eq!(serde_json::to_value(&reason).unwrap(), json);
        }
    }
}
