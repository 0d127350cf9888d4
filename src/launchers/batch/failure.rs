//! When a batch system's command does not do what it was to: the system's words, and what to do.
use super::command::Output;

/// A submission that failed. Its text is what the system said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{said}")]
pub struct SubmitFailure {
    pub problem: Problem,
    /// What the command said, or what is to be known where it said nothing.
    pub said: String,
    /// What to do.
    pub hint: Option<String>,
}

/// A query that failed: nothing is known about the jobs, least of all that they are gone. Its text is what the system said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{said}")]
pub struct QueryFailure {
    pub problem: Problem,
    pub said: String,
}

/// What kind of failure it is, as far as the words tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Its command is not there.
    NoCommand,
    NoSuchQueue,
    NoSuchAccount,
    /// More than a limit allows, or than there is.
    Limit,
    NoPermission,
    /// It does not answer; whether the job was submitted is to be found out by its name.
    SchedulerDown,
    /// It does not understand a line of the script or an option.
    BadScript,
    /// It said that all is well, but no id was found in its words. The job may be there.
    NoId,
    Other,
}

impl Problem {
    /// Whether the job may have been submitted all the same.
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

/// Words in lower case that an answer may have, what they mean, and what to do.
pub type Meanings = [(&'static str, Problem, &'static str)];

fn meaning(output: &Output, meanings: &Meanings) -> (Problem, Option<String>) {
    let said = output.said().to_lowercase();
    let found = meanings.iter().find(|(words, _, _)| said.contains(words));
    found.map_or((Problem::Other, None), |(_, problem, hint)| (*problem, Some(hint.to_string())))
}

/// A submission that the system refused.
pub fn of_submit(output: &Output, meanings: &Meanings) -> SubmitFailure {
    let (problem, hint) = meaning(output, meanings);
    SubmitFailure::of(problem, output, hint)
}

/// A submission that seems to have worked, but has no id in what was said.
pub fn no_id(output: &Output, hint: &str) -> SubmitFailure {
    SubmitFailure::of(Problem::NoId, output, Some(hint.into()))
}

/// A question or an order that was not answered.
pub fn of_query(output: &Output, meanings: &Meanings) -> QueryFailure {
    QueryFailure::of(meaning(output, meanings).0, output)
}
