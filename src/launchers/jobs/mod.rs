//! The launcher for batch systems: it runs the commands that the system's row defines, and the row
//! parses their output.
//!
//! Modules: `submit` (writes the script and submits it once), `queue` (the cached state of all
//! jobs), `states` (converts rows into members' states), `end` (cancels jobs and waits for their
//! end).
mod end;
mod queue;
mod states;
mod submit;
#[cfg(test)]
mod tests;

use super::batch::{self, BatchSystem, CommandLine, CommandOutput, environment, launch};
use super::command::{LocalRunner, RunError, Runner};
use super::launched::Launched;
use super::{BatchJob, Capabilities, ControllerLaunch, EnginesLaunch, LaunchError, Launcher, MemberState, Stage, StopReport, logs};
use crate::profile::ProfileDir;
use crate::profile::config::Config;
use crate::profile::config::resources::Resources;
use crate::sys::process;
use queue::QueueCache;
use std::sync::Arc;
use std::time::Duration;

pub(crate) struct BatchLauncher {
    system: &'static dyn BatchSystem,
    runner: Arc<dyn Runner>,
    profile: ProfileDir,
    config: Config,
    queue: QueueCache,
    /// How long the system may take to cancel waiting jobs.
    cancel_timeout: Duration,
}

impl BatchLauncher {
    pub(crate) fn new(system: &'static dyn BatchSystem, profile: &ProfileDir, config: &Config) -> BatchLauncher {
        BatchLauncher::with_runner(system, profile, config, Arc::new(LocalRunner))
    }

    /// Uses another runner for the commands, for example on another host.
    pub(crate) fn with_runner(
        system: &'static dyn BatchSystem,
        profile: &ProfileDir,
        config: &Config,
        runner: Arc<dyn Runner>,
    ) -> BatchLauncher {
        BatchLauncher {
            system,
            queue: QueueCache::new(system, profile, config),
            cancel_timeout: end::CANCEL_TIMEOUT,
            runner,
            profile: profile.clone(),
            config: config.clone(),
        }
    }

    fn resources(&self) -> Resources {
        self.config.launchers.of(self.system.name()).cloned().unwrap_or_default()
    }

    /// The timeout of one command.
    fn command_timeout(&self) -> Duration {
        Duration::from_millis(self.config.launcher.command_timeout_ms)
    }

    /// Runs a query or cancellation whose output the environment does not affect.
    fn run(&self, row: &dyn BatchSystem, command: CommandLine) -> Result<CommandOutput, RunError> {
        self.run_as(&environment::for_query(row, command))
    }

    /// Runs a submission of `script` that the environment does not override.
    fn run_submission(&self, row: &dyn BatchSystem, command: CommandLine, script: &str) -> Result<CommandOutput, RunError> {
        self.run_as(&environment::for_submission(row, command, script))
    }

    fn run_as(&self, command: &CommandLine) -> Result<CommandOutput, RunError> {
        tracing::debug!("{command}");
        self.runner.run(command, self.command_timeout())
    }

    /// The row for the dialect in which the job was submitted.
    fn row(&self, job: &BatchJob) -> &'static dyn BatchSystem {
        match job.dialect.as_str() {
            "" => self.system,
            dialect => self.system.with_dialect(dialect).unwrap_or(self.system),
        }
    }

    /// The row for the dialect of this host.
    fn detect_row(&self) -> &'static dyn BatchSystem {
        let Some(query) = self.system.dialect_command() else {
            return self.system;
        };
        match self.run(self.system, query) {
            Ok(output) => self.system.detect_dialect(&output).unwrap_or(self.system),
            Err(_) => self.system,
        }
    }

    fn launched(&self, job: BatchJob) -> Launched {
        Launched {
            jobs: vec![job],
            ..Launched::new(self.system.name(), process::host())
        }
    }
}

impl Launcher for BatchLauncher {
    fn name(&self) -> &str {
        self.system.name()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            remote: true,
            has_cached_state: true,
            ..Capabilities::default()
        }
    }

    fn start_controller(&self, launch: &ControllerLaunch) -> Result<Launched, LaunchError> {
        let request = launch::controller(launch, &self.resources(), &submit::unique_suffix());
        Ok(self.launched(self.submit(request)?))
    }

    fn start_engines(&self, launch: &EnginesLaunch) -> Result<Launched, LaunchError> {
        if launch.n == 0 {
            return Ok(Launched::new(self.system.name(), process::host()));
        }
        let request = launch::engines(launch, &self.resources(), &self.config.launchers.mpi, &submit::unique_suffix())?;
        let mut job = self.submit(request)?;
        job.first_engine = launch.first;
        Ok(self.launched(job))
    }

    fn states(&self, launched: &Launched) -> Vec<MemberState> {
        let snapshot = self.queue.get(self, &launched.jobs, self.queue.interval());
        launched
            .jobs
            .iter()
            .flat_map(|job| states::element_states(job, &snapshot, crate::sys::clock::unix_now()))
            .collect()
    }

    /// Waits until the jobs are gone, and fails with those that remain.
    fn stop(&self, launched: &Launched, _grace: Duration) -> Result<StopReport, LaunchError> {
        self.end(launched)
    }

    fn log_tail(&self, launched: &Launched, index: usize, lines: usize) -> String {
        launched
            .members()
            .get(index)
            .map_or_else(String::new, |m| logs::tail(&m.log, 0, lines))
    }

    fn describe(&self, launched: &Launched) -> String {
        let jobs: Vec<&str> = launched.jobs.iter().map(|job| job.id.as_str()).collect();
        let word = if jobs.len() == 1 { "job" } else { "jobs" };
        format!("{} {word} {}", self.system.name(), jobs.join(" "))
    }
}

/// The launcher of a batch system; none if there is no such system.
pub(crate) fn by_name(name: &str, profile: &ProfileDir, config: &Config) -> Option<BatchLauncher> {
    batch::by_name(name).map(|system| BatchLauncher::new(system, profile, config))
}

/// Waiting, starting, running or completing.
fn stage(status: &batch::JobStatus) -> Stage {
    use batch::JobStatus::*;
    match status {
        Queued | Held | Stuck | Starting | Requeued => Stage::Queued,
        Running | Completing => Stage::Running,
        Suspended => Stage::Suspended,
        Unknown(_) => Stage::Unknown,
        Completed | Failed | Cancelled | TimedOut | NodeFailed | OutOfMemory | Preempted => Stage::Ended,
    }
}
