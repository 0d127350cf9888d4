//! Batch systems: the commands of each, and how to interpret their output. Pure: nothing here runs
//! a command or reads a file.
//!
//! Each batch system is one row, a [`BatchSystem`], with its templates. The rows share the code
//! here and do not depend on each other. Modules: [`request`] (a job to submit), [`job`] (jobs as
//! reported), [`command`] (a command line, an output), [`environment`] (variables to remove),
//! [`failure`], [`launch`] (converts a launch into a request), [`render`] (renders a template into
//! a script), [`template`] (templates and variables), `conditions` (of templates), [`table`] (constants), `systems` (the row of each name).
pub(crate) mod command;
mod conditions;
pub(crate) mod engines;
pub(crate) mod environment;
pub(crate) mod failure;
pub(crate) mod job;
pub(crate) mod launch;
pub(crate) mod ranges;
pub(crate) mod render;
pub(crate) mod request;
pub(crate) mod slurm_environment;
pub(crate) mod squeue;
mod systems;
pub(crate) mod table;
pub(crate) mod template;
pub(crate) mod xml;

pub(crate) use command::{CommandLine, CommandOutput};
pub(crate) use environment::EnvironmentRules;
pub(crate) use failure::{Problem, QueryFailure, SubmitFailure};
pub(crate) use job::{JobId, JobRow, JobStatus, JobTarget};
#[cfg(test)]
pub(crate) use render::render;
pub(crate) use request::{JobKind, JobRequest};
pub(crate) use systems::{SYSTEMS, by_name};
pub(crate) use table::{KillWait, SystemTable};
pub(crate) use template::{ScriptFile, Template, TemplateError};

use std::path::{Path, PathBuf};

/// One batch system: its command lines, which the caller runs, and parsers for their output. A
/// parser accepts unknown words; it fails only if the output is not an answer at all.
///
/// A job's array has the elements 1 … [`JobRequest::jobs`]. For a single job, a system may not use
/// an array: then its rows have no element.
pub(crate) trait BatchSystem: Send + Sync {
    /// What is fixed.
    fn table(&self) -> &'static SystemTable;
    /// One of [`SYSTEMS`].
    fn name(&self) -> &'static str {
        self.table().name
    }
    fn title(&self) -> &'static str {
        self.table().title
    }

    /// A command whose output identifies the dialect; none if there is only one.
    fn dialect_command(&self) -> Option<CommandLine> {
        None
    }
    /// The row to use, given the output of `dialect_command`. Store the dialect with the jobs:
    /// [`BatchSystem::dialect`].
    fn detect_dialect(&self, _output: &CommandOutput) -> Option<&'static dyn BatchSystem> {
        None
    }
    /// The dialect's name, for [`BatchSystem::with_dialect`]; empty if there is only one.
    fn dialect(&self) -> &'static str {
        ""
    }
    fn with_dialect(&self, _name: &str) -> Option<&'static dyn BatchSystem> {
        None
    }

    /// The templates of a job; the first one is submitted.
    fn templates(&self, kind: JobKind) -> &'static [Template] {
        match kind {
            JobKind::Controller => self.table().controller,
            JobKind::Engines => self.table().engines,
        }
    }
    /// Quotes a value for a directive line. The value contains no control characters.
    fn quote_directive(&self, name: &str, value: &str) -> Result<String, TemplateError>;
    /// The values of the template variables. See [`template::VARIABLES`].
    fn variables(&self, request: &JobRequest) -> Result<template::Variables, TemplateError>;
    /// What a template must contain for this job: how to find it, and the line to add.
    fn requirements(&self, _template: &str, request: &JobRequest) -> Vec<template::Requirement> {
        let array = request.is_array().then(|| self.table().array_requirement());
        [engines::requirement(request)].into_iter().chain(array).collect()
    }
    /// The path of the job's output file. The file may be missing if the job has ended.
    fn log_path(&self, request: &JobRequest, job: &JobId, element: Option<u32>) -> PathBuf {
        let table = self.table();
        let number: String = job.0.chars().take_while(char::is_ascii_digit).collect();
        let element = element.or(table.log_has_element.then_some(1));
        let element = element.map_or_else(String::new, |element| format!("{}{element}", table.log_separator));
        request.log_dir.join(format!("{}-{number}{element}.log", request.log_stem))
    }

    /// The cluster that a job was sent to, if the system has several; empty for the default
    /// cluster.
    fn cluster_of<'a>(&self, _job: &'a JobId) -> &'a str {
        ""
    }

    /// Submits `script` (the first of the rendered files). Run it in the request's working
    /// directory.
    fn submit_command(&self, script: &Path, text: &str, request: &JobRequest) -> CommandLine;
    /// Finds the id, even between a site's banner lines. Accepts only the output of
    /// `submit_command`.
    fn parse_submit(&self, output: &CommandOutput) -> Result<JobId, SubmitFailure>;

    /// One command that queries all these jobs of this user. Some of them may be gone.
    fn query_command(&self, jobs: &[JobId], user: &str) -> CommandLine;
    /// One row per known job, possibly including jobs that were not requested. Unknown jobs have no
    /// row.
    fn parse_query(&self, output: &CommandOutput) -> Result<Vec<JobRow>, QueryFailure>;
    /// Set if a waiting job's reason requires a separate query (Grid Engine's `qstat -j`).
    fn reason_command(&self, _job: &JobId) -> Option<CommandLine> {
        None
    }
    /// The reason why a job waits, in one line.
    fn parse_reason(&self, _output: &CommandOutput) -> Option<String> {
        None
    }
    /// Queries the outcome of a job that no longer appears in the queue; none if the system keeps
    /// no such record.
    fn history_command(&self, _job: &JobId) -> Option<CommandLine> {
        None
    }
    /// Rows of jobs that have ended. Empty if nothing is known (yet).
    fn parse_history(&self, _output: &CommandOutput) -> Vec<JobRow> {
        Vec::new()
    }

    /// Finds jobs of this name in any state.
    fn find_command(&self, name: &str, user: &str) -> CommandLine;
    /// The ids of the submissions of this name.
    fn parse_find(&self, output: &CommandOutput, name: &str) -> Result<Vec<JobId>, QueryFailure> {
        let rows = self.parse_query(output)?.into_iter();
        let mut ids: Vec<JobId> = rows.filter(|row| row.name.as_deref() == Some(name)).map(|row| row.job).collect();
        ids.dedup();
        Ok(ids)
    }

    /// Cancels jobs, waiting or running, with one command.
    fn cancel_command(&self, targets: &[JobTarget]) -> CommandLine;
    /// An unknown job, or one that has ended, counts as cancelled.
    fn parse_cancel(&self, output: &CommandOutput) -> Result<(), QueryFailure> {
        failure::of_cancellation(output, self.table().cancelled, self.table().failures)
    }
    /// The documented delay between a warning signal and SIGKILL.
    fn kill_wait(&self) -> KillWait {
        self.table().kill_wait
    }
    /// Queries the configured delay, if the system reports it.
    fn kill_wait_command(&self) -> Option<CommandLine> {
        None
    }
    /// The delay in seconds.
    fn parse_kill_wait(&self, _output: &CommandOutput) -> Option<u32> {
        None
    }

    /// Queries which resources the system counts per job, if that is configurable.
    fn job_resources_command(&self) -> Option<CommandLine> {
        None
    }
    fn parse_job_resources(&self, _output: &CommandOutput) -> Vec<String> {
        Vec::new()
    }
}

impl JobRequest {
    /// Applies the site's settings that matter for this job, as far as the system answers.
    pub(crate) fn with_site_settings(self, row: &dyn BatchSystem, ask: impl Fn(CommandLine) -> Option<CommandOutput>) -> JobRequest {
        let output = self.kill_wait_query(row).and_then(&ask);
        let mut request = self.with_kill_wait(row, output.as_ref());
        let amounts = request.resources.memory.is_some() || request.resources.gpus.is_some();
        let output = row.job_resources_command().filter(|_| amounts).and_then(ask);
        request.per_job_resources = output.map_or_else(Vec::new, |output| row.parse_job_resources(&output));
        request
    }

    /// Sets the delays before SIGKILL from the configuration, else from the system's answer
    /// (`output`), else from its manual.
    pub(crate) fn with_kill_wait(mut self, row: &dyn BatchSystem, output: Option<&CommandOutput>) -> JobRequest {
        if self.kind == JobKind::Engines {
            let reported_s = output.and_then(|output| row.parse_kill_wait(output));
            let wait = row.kill_wait().with_site_value(self.resources.kill_wait_s.or(reported_s));
            (self.after_term_s, self.after_user_s) = (wait.term_s, wait.user_s);
        }
        self
    }

    /// The query for those delays; none if no query is needed.
    pub(crate) fn kill_wait_query(&self, row: &dyn BatchSystem) -> Option<CommandLine> {
        let is_open = self.kind == JobKind::Engines && self.resources.kill_wait_s.is_none();
        row.kill_wait_command().filter(|_| is_open)
    }
}

#[cfg(test)]
pub(crate) mod tests;
