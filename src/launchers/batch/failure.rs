//! Failures of a batch system's commands: the system's message and a hint.
use super::command::CommandOutput;

/// A failed submission. Displays the system's message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct SubmitFailure {
    pub problem: Problem,
    /// The command's output, or a description if it printed nothing.
    pub message: String,
    /// A suggested action.
    pub hint: Option<String>,
}

/// A failed query: the state of the jobs is unknown; in particular they are not known to be gone.
/// Displays the system's message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct QueryFailure {
    pub problem: Problem,
    pub message: String,
}

/// The kind of failure, as far as the output reveals it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
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
    pub(crate) fn is_uncertain(self) -> bool {
        matches!(self, Problem::SchedulerDown | Problem::NoId)
    }
}

impl SubmitFailure {
    /// The command could not be run at all.
    pub(crate) fn no_command(system: &str, program: &str) -> SubmitFailure {
        SubmitFailure {
            problem: Problem::NoCommand,
            message: format!("{program}: command not found"),
            hint: Some(format!(
                "{system}'s commands are not on the PATH: run this on a login node of the cluster, perhaps after `module load`"
            )),
        }
    }

    pub(crate) fn of(problem: Problem, output: &CommandOutput, hint: Option<String>) -> SubmitFailure {
        SubmitFailure {
            problem,
            message: message_of(output),
            hint,
        }
    }
}

impl QueryFailure {
    pub(crate) fn of(problem: Problem, output: &CommandOutput) -> QueryFailure {
        QueryFailure {
            problem,
            message: message_of(output),
        }
    }
}

fn message_of(output: &CommandOutput) -> String {
    match (output.message(), output.code) {
        (message, _) if !message.is_empty() => message,
        (_, Some(code)) => format!("no output (exit code {code})"),
        (_, None) => "no output; terminated by a signal".into(),
    }
}

/// Lower-case texts to search for in the output, the problem that they indicate, and a hint. The first match counts.
pub(crate) type ErrorPatterns = [(&'static [&'static str], Problem, &'static str)];

/// `Problem: "text" | "other text" => "hint";`
macro_rules! failures {
    ($($problem:ident: $($text:literal)|+ => $hint:literal;)*) => {
        &[$((&[$($text),+], crate::launchers::batch::Problem::$problem, $hint)),*]
    };
}
pub(crate) use failures;

fn classify(output: &CommandOutput, patterns: &ErrorPatterns) -> (Problem, Option<String>) {
    let message = output.message().to_lowercase();
    let found = patterns
        .iter()
        .find(|(texts, _, _)| texts.iter().any(|text| message.contains(text)));
    found.map_or((Problem::Other, None), |(_, problem, hint)| (*problem, Some(hint.to_string())))
}

/// A submission that the system rejected.
pub(crate) fn of_submit(output: &CommandOutput, patterns: &ErrorPatterns) -> SubmitFailure {
    let (problem, hint) = classify(output, patterns);
    SubmitFailure::of(problem, output, hint)
}

/// A submission that succeeded but printed no id.
pub(crate) fn no_id(output: &CommandOutput, hint: &str) -> SubmitFailure {
    SubmitFailure::of(Problem::NoId, output, Some(hint.into()))
}

/// A query or cancellation that failed.
pub(crate) fn of_query(output: &CommandOutput, patterns: &ErrorPatterns) -> QueryFailure {
    QueryFailure::of(classify(output, patterns).0, output)
}

/// The result of a cancellation: it may name jobs that have already ended.
pub(crate) fn of_cancellation(output: &CommandOutput, fine: &[&str], patterns: &ErrorPatterns) -> Result<(), QueryFailure> {
    let message = output.message().to_lowercase();
    let is_fine = |line: &str| fine.iter().any(|text| line.contains(text));
    match output.is_success() || (!message.is_empty() && message.lines().all(is_fine)) {
        true => Ok(()),
        false => Err(of_query(output, patterns)),
    }
}
