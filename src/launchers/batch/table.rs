//! What is fixed about a batch system, as data.
use super::environment::EnvironmentRules;
use super::failure::ErrorPatterns;
use super::job::JobStatus;
use super::template::{FoundBy, Requirement, Template};
use crate::profile::config::resources::{Resources, StartMode};

/// The constants of a batch system, or of one of its dialects.
#[derive(Clone, Copy)]
pub(crate) struct SystemTable {
    /// As on the command line and in the configuration.
    pub name: &'static str,
    /// Display name, including the dialect if there are several: `Slurm`, `OpenPBS`.
    pub title: &'static str,
    /// The prefix of a directive line (`#SBATCH`); empty in a file that consists of directives only.
    pub directive_prefix: &'static str,
    /// The templates of a job; the first one is submitted.
    pub controller: &'static [Template],
    pub engines: &'static [Template],
    /// The prefixes of the option that makes a job an array, and the line that contains it.
    pub array: (&'static [&'static str], &'static str),
    /// Settings without an equivalent.
    pub unsupported: &'static [&'static str],
    /// How one job of all engines can start them; the first one is suggested. Empty if it cannot.
    pub one_job: &'static [StartMode],
    /// Ends of the names of output files, with the system's placeholders: of an array, of a single job.
    pub log: [&'static str; 2],
    /// The character before the element's number in that name.
    pub log_separator: char,
    /// Whether a job that is not an array has the element 1 in that name.
    pub log_has_element: bool,
    /// Shell expressions for the job's id and the array element.
    pub job: [&'static str; 2],
    pub environment: EnvironmentRules,
    pub failures: &'static ErrorPatterns,
    /// How to find a job whose id is unknown.
    pub no_id: &'static str,
    /// The system's words for states.
    pub states: &'static [(&'static str, JobStatus)],
    /// Lower-case parts of the lines that a cancellation prints without having failed.
    pub cancelled: &'static [&'static str],
    pub kill_wait: KillWait,
}

impl SystemTable {
    /// The status that a word means.
    pub(crate) fn status(&self, word: &str) -> JobStatus {
        status_in(self.states, word)
    }

    /// The line that makes the job an array.
    pub(crate) fn array_requirement(&self) -> Requirement {
        let (options, line) = self.array;
        Requirement {
            what: "the line that makes the job an array".into(),
            found_by: match options {
                [] => FoundBy::Variable(&["array"]),
                _ => FoundBy::Directive(options),
            },
            line: line.into(),
        }
    }
}

/// Looks up a word; the words of one status are separated by spaces.
pub(crate) fn status_in(states: &[(&str, JobStatus)], word: &str) -> JobStatus {
    let found = states.iter().find(|(words, _)| words.split(' ').any(|known| known == word));
    found.map_or_else(|| JobStatus::Unknown(word.into()), |(_, status)| status.clone())
}

/// Whether a setting is given.
pub(crate) fn is_set(resources: &Resources, key: &str) -> bool {
    match key {
        "queue" => resources.queue.is_some(),
        "qos" => resources.qos.is_some(),
        "nodes" => resources.nodes.is_some(),
        "reservation" => resources.reservation.is_some(),
        "parallel_environment" => resources.parallel_environment.is_some(),
        _ => false,
    }
}

/// The number of seconds between a batch system's warning and its SIGKILL, if known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KillWait {
    /// After SIGTERM. A site's setting applies to this delay if it is set.
    pub term_s: Option<u32>,
    /// After SIGUSR1 or SIGUSR2.
    pub user_s: Option<u32>,
}

impl KillWait {
    /// Applies the site's setting.
    pub(crate) fn with_site_value(mut self, site_s: Option<u32>) -> KillWait {
        let delay = match (self.term_s, self.user_s) {
            (None, Some(_)) => &mut self.user_s,
            _ => &mut self.term_s,
        };
        *delay = site_s.or(*delay);
        self
    }
}

/// A built-in template, by its system and its file name.
macro_rules! template {
    ($system:literal, $name:literal) => {
        crate::launchers::batch::Template {
            name: $name,
            text: include_str!(concat!("../../templates/", $system, "/", $name)),
        }
    };
}
pub(crate) use template;
