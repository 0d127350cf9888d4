//! Failures of a batch system's commands: the system's message and a hint.
use super::command::Output;

/// A failed submission. Displays the system's message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{said}")]
pub struct SubmitFailure {
    pub problem: Problem,
    /// The command's output, or a description if it printed nothing.
    pub said: String,
    /// A suggested action.
    pub hint: Option<String>,
}

/// A failed query: the state of the jobs is unknown; in particular they are not known to be gone.
/// Displays the system's message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{said}")]
pub struct QueryFailure {
    pub problem: Problem,
    pub said: String,
}

/// The kind of failure, as far as the output reveals it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The command is not installed.
    NoCommand,
    NoSuchQueue,
    NoSuchAccount,
    /// More than a limit allows, or more than the system has.
    Limit,
    NoPermission,
    /// The scheduler does not answer; look up the job by name to find out whether it was submitted.
    SchedulerDown,
    /// The system does not understand a line of the script or an option.
    BadScript,
    /// The command succeeded, but its output contains no job id. The job may exist.
    NoId,
    Other,
}

impl Problem {
    /// Whether the job may have been submitted despite the error.
    pub fn is_uncertain(self) -> bool {
        matches!(self, Problem::SchedulerDown | Problem::NoId)
    }
}

impl SubmitFailure {
    /// The command could not be run at all.
    pub fn no_command(system: &str, program: &str) -> SubmitFailure {
        SubmitFailure {
            problem: Problem::NoCommand,
            said: format!("{program}: command not found"),
            hint: Some(format!(
                "{system}'s commands are not on the PATH here: is this one of the cluster's login nodes, and does it want `module load` first?"
            )),
        }
    }

    pub fn of(problem: Problem, output: &Output, hint: Option<String>) -> SubmitFailure {
        SubmitFailure {
            problem,
            said: words_of(output),
            hint,
        }
    }
}

impl QueryFailure {
    pub fn of(problem: Problem, output: &Output) -> QueryFailure {
        QueryFailure {
            problem,
            said: words_of(output),
        }
    }
}

fn words_of(output: &Output) -> String {
    match (output.said(), output.code) {
        (said, _) if !said.is_empty() => said,
        (_, Some(code)) => format!("it said nothing (exit code {code})"),
        (_, None) => "it said nothing, and was ended by a signal".into(),
    }
}

/// Lower-case text to search for in the output, the problem it indicates, and a hint.
pub type Meanings = [(&'static str, Problem, &'static str)];

fn meaning(output: &Output, meanings: &Meanings) -> (Problem, Option<String>) {
    let said = output.said().to_lowercase();
    let found = meanings.iter().find(|(words, _, _)| said.contains(words));
    found.map_or((Problem::Other, None), |(_, problem, hint)| (*problem, Some(hint.to_string())))
}

/// A submission that the system rejected.
pub fn of_submit(output: &Output, meanings: &Meanings) -> SubmitFailure {
    let (problem, hint) = meaning(output, meanings);
    SubmitFailure::of(problem, output, hint)
}

/// A submission that succeeded but printed no id.
pub fn no_id(output: &Output, hint: &str) -> SubmitFailure {
    SubmitFailure::of(Problem::NoId, output, Some(hint.into()))
}

/// A query or cancellation that failed.
pub fn of_query(output: &Output, meanings: &Meanings) -> QueryFailure {
    QueryFailure::of(meaning(output, meanings).0, output)
}
