//! Batch systems: what each is asked, in its own words, and what its answers mean. Pure: nothing here runs a command or reads a file.
//!
//! A batch system is one row, a [`BatchSystem`], with its templates. The rows share what is here and know nothing of each other.
//! Parts: [`request`] (what a job is to be), [`job`] (what is said about jobs), [`command`] (a command line, an output),
//! [`environment`] (which variables it does not get), [`failure`], [`launch`] (a launch becomes a request), [`render`] (a template becomes a script), [`quote`].
pub mod command;
pub mod engines;
pub mod environment;
pub mod failure;
pub mod job;
pub mod launch;
pub mod quote;
pub mod ranges;
pub mod render;
pub mod request;
pub mod slurm_environment;
pub mod squeue;
pub mod xml;

pub use command::{CommandLine, Output};
pub use environment::EnvironmentRules;
pub use failure::{Problem, QueryFailure, SubmitFailure};
pub use job::{JobId, JobRow, JobStatus, JobTarget};
#[cfg(test)]
pub use render::render;
pub use render::{ScriptFile, Template, TemplateError};
pub use request::{JobKind, JobRequest};

use std::path::{Path, PathBuf};

/// The batch systems, by the names that the command line and the configuration have for them.
pub const SYSTEMS: [&str; 5] = ["slurm", "sge", "pbs", "lsf", "htcondor"];

/// The row of a batch system.
pub fn by_name(name: &str) -> Option<&'static dyn BatchSystem> {
    match name {
        "slurm" => Some(&super::slurm::Slurm),
        "sge" => Some(&super::sge::Sge),
        "pbs" => Some(super::pbs::row()),
        "lsf" => Some(&super::lsf::Lsf),
        "htcondor" => Some(&super::htcondor::HtCondor),
        _ => None,
    }
}

/// One batch system: commands to be run by others, and parsers of their outputs. A parser never fails on a word that it does not
/// know; it fails where an answer is none.
///
/// A job's array has the elements 1 … [`JobRequest::jobs`]. Where that is one job, a system may have no array: its rows then have no
/// element.
pub trait BatchSystem: Send + Sync {
    /// As in [`SYSTEMS`].
    fn name(&self) -> &'static str;
    /// For people, with the dialect where there are several: `Slurm`, `OpenPBS`.
    fn title(&self) -> &'static str;

    /// A command whose output tells which dialect this is; none where there is only one.
    fn dialect_command(&self) -> Option<CommandLine> {
        None
    }
    /// The row to use, given what `dialect_command` said. A dialect's name is to be kept with its jobs: [`BatchSystem::dialect`].
    fn of_dialect(&self, _said: &Output) -> Option<&'static dyn BatchSystem> {
        None
    }
    /// The dialect's name, for [`BatchSystem::with_dialect`]; empty where there is only one.
    fn dialect(&self) -> &'static str {
        ""
    }
    fn with_dialect(&self, _name: &str) -> Option<&'static dyn BatchSystem> {
        None
    }

    /// The templates of a job, the one that is submitted first.
    fn templates(&self, kind: JobKind) -> &'static [Template];
    /// How a directive line begins (`#SBATCH`); in a script of directives alone it is empty.
    fn directive_prefix(&self) -> &'static str;
    /// A value in a directive line, as this system reads it. It has no control characters.
    fn quote_directive(&self, name: &str, value: &str) -> Result<String, TemplateError>;
    /// What the variables of a template stand for. See [`render::VARIABLES`].
    fn variables(&self, request: &JobRequest) -> Result<render::Variables, TemplateError>;
    /// What a template must have for this job: what to look for, and the line to add.
    fn needs(&self, template: &str, request: &JobRequest) -> Vec<render::Need>;
    /// Where the output of a job is, or will be. For one that is over it may be missing.
    fn log_path(&self, request: &JobRequest, job: &JobId, element: Option<u32>) -> PathBuf;

    /// Which environment variables its commands must not get.
    fn environment(&self) -> EnvironmentRules;
    /// The cluster that a job was sent to, where one system has several; empty for its own.
    fn cluster_of<'a>(&self, _job: &'a JobId) -> &'a str {
        ""
    }

    /// Submits `script` (the first of the rendered files). To be run in the request's working directory.
    fn submit_command(&self, script: &Path, text: &str, request: &JobRequest) -> CommandLine;
    /// The id, also between a site's banners. Only the outcome of `submit_command` is meant.
    fn parse_submit(&self, output: &Output) -> Result<JobId, SubmitFailure>;

    /// One command about all these jobs (which may be gone already) of this user.
    fn query_command(&self, jobs: &[JobId], user: &str) -> CommandLine;
    /// A row for each job that is known, also of others than asked for. One that is unknown to the system has no row.
    fn parse_query(&self, output: &Output) -> Result<Vec<JobRow>, QueryFailure>;
    /// Where a waiting job's reason needs a query of its own (Grid Engine's `qstat -j`).
    fn reason_command(&self, _job: &JobId) -> Option<CommandLine> {
        None
    }
    /// Why a job waits, in one line.
    fn parse_reason(&self, _output: &Output) -> Option<String> {
        None
    }
    /// Asks what became of a job that a query no longer shows; none where the system keeps no such record.
    fn history_command(&self, _job: &JobId) -> Option<CommandLine> {
        None
    }
    /// Rows of jobs that are over. Empty where nothing is known (yet).
    fn parse_history(&self, _output: &Output) -> Vec<JobRow> {
        Vec::new()
    }

    /// Looks for jobs of this name, whatever their state.
    fn find_command(&self, name: &str, user: &str) -> CommandLine;
    /// The ids of the submissions of this name.
    fn parse_find(&self, output: &Output, name: &str) -> Result<Vec<JobId>, QueryFailure> {
        let rows = self.parse_query(output)?.into_iter();
        let mut ids: Vec<JobId> = rows.filter(|row| row.name.as_deref() == Some(name)).map(|row| row.job).collect();
        ids.dedup();
        Ok(ids)
    }

    /// Takes jobs away, waiting or running. One command for all.
    fn cancel_command(&self, targets: &[JobTarget]) -> CommandLine;
    /// A job that is unknown, or over, counts as cancelled.
    fn parse_cancel(&self, output: &Output) -> Result<(), QueryFailure>;
    /// How the system warns before SIGKILL, by its manual.
    fn kill_wait(&self) -> KillWait {
        KillWait::default()
    }
    /// Asks the system how long it waits, where it tells.
    fn kill_wait_command(&self) -> Option<CommandLine> {
        None
    }
    /// In seconds.
    fn parse_kill_wait(&self, _output: &Output) -> Option<u32> {
        None
    }

    /// Asks which resources the system counts once for each job, where a site decides that.
    fn counting_command(&self) -> Option<CommandLine> {
        None
    }
    fn parse_counting(&self, _output: &Output) -> Vec<String> {
        Vec::new()
    }
}

/// How many seconds pass from a batch system's warning to its SIGKILL, where that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KillWait {
    /// After SIGTERM; what a site sets is this one, if there is one.
    pub term_s: Option<u32>,
    /// After SIGUSR1 or SIGUSR2.
    pub user_s: Option<u32>,
}

impl KillWait {
    /// With what a site says of itself.
    pub fn at_site(mut self, said_s: Option<u32>) -> KillWait {
        let place = match (self.term_s, self.user_s) {
            (None, Some(_)) => &mut self.user_s,
            _ => &mut self.term_s,
        };
        *place = said_s.or(*place);
        self
    }
}

impl JobRequest {
    /// With what the system says of itself, as far as that matters for this job and the system answers.
    pub fn at_site(self, row: &dyn BatchSystem, ask: impl Fn(CommandLine) -> Option<Output>) -> JobRequest {
        let said = self.kill_wait_question(row).and_then(&ask);
        let mut request = self.with_kill_wait(row, said.as_ref());
        let amounts = request.resources.memory.is_some() || request.resources.gpus.is_some();
        let said = row.counting_command().filter(|_| amounts).and_then(ask);
        request.counted_by_job = said.map_or_else(Vec::new, |output| row.parse_counting(&output));
        request
    }

    /// Notes how long the system waits with SIGKILL: the setting's word, else the system's own (`said`), else its manual's.
    pub fn with_kill_wait(mut self, row: &dyn BatchSystem, said: Option<&Output>) -> JobRequest {
        if self.kind == JobKind::Engines {
            let said = said.and_then(|output| row.parse_kill_wait(output));
            let wait = row.kill_wait().at_site(self.resources.kill_wait_s.or(said));
            (self.after_term_s, self.after_user_s) = (wait.term_s, wait.user_s);
        }
        self
    }

    /// What to ask the system for that; none where it need not be asked.
    pub fn kill_wait_question(&self, row: &dyn BatchSystem) -> Option<CommandLine> {
        let is_open = self.kind == JobKind::Engines && self.resources.kill_wait_s.is_none();
        row.kill_wait_command().filter(|_| is_open)
    }
}

#[cfg(test)]
pub(crate) mod tests;
