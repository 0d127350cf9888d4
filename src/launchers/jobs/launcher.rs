//! Runs the commands of a batch system, each with its timeout and a suitable environment.
use super::queue::QueueCache;
use crate::launchers::batch::{BatchSystem, CommandLine, CommandOutput, environment};
use crate::launchers::command::{LocalRunner, RunError, Runner};
use crate::launchers::{BatchJob, Launched};
use crate::profile::ProfileDir;
use crate::profile::config::Config;
use crate::profile::config::resources::Resources;
use crate::sys::process;
use std::sync::Arc;
use std::time::Duration;

/// Time for the system to cancel waiting jobs. Running jobs additionally get the system's own kill
/// delay.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct BatchLauncher {
    pub(super) system: &'static dyn BatchSystem,
    pub(super) runner: Arc<dyn Runner>,
    pub(super) profile: ProfileDir,
    pub(super) config: Config,
    pub(super) queue: QueueCache,
    /// How long the system may take to cancel waiting jobs.
    pub(super) cancel_timeout: Duration,
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
            cancel_timeout: CANCEL_TIMEOUT,
            runner,
            profile: profile.clone(),
            config: config.clone(),
        }
    }

    pub(super) fn resources(&self) -> Resources {
        self.config.launchers.of(self.system.name()).cloned().unwrap_or_default()
    }

    /// The timeout of one command.
    fn command_timeout(&self) -> Duration {
        Duration::from_millis(self.config.launcher.command_timeout_ms)
    }

    /// Runs a query or cancellation whose output the environment does not affect.
    pub(super) fn run(&self, row: &dyn BatchSystem, command: CommandLine) -> Result<CommandOutput, RunError> {
        self.run_as(&environment::for_query(row.table(), command))
    }

    /// Runs a submission of `script` that the environment does not override.
    pub(super) fn run_submission(&self, row: &dyn BatchSystem, command: CommandLine, script: &str) -> Result<CommandOutput, RunError> {
        self.run_as(&environment::for_submission(row.table(), command, script))
    }

    fn run_as(&self, command: &CommandLine) -> Result<CommandOutput, RunError> {
        tracing::debug!("{command}");
        self.runner.run(command, self.command_timeout())
    }

    /// The row for the dialect in which the job was submitted.
    pub(super) fn row(&self, job: &BatchJob) -> &'static dyn BatchSystem {
        match job.dialect.as_str() {
            "" => self.system,
            dialect => self.system.with_dialect(dialect).unwrap_or(self.system),
        }
    }

    /// The row for the dialect of this host.
    pub(super) fn detect_row(&self) -> &'static dyn BatchSystem {
        let Some(query) = self.system.dialect_command() else {
            return self.system;
        };
        match self.run(self.system, query) {
            Ok(output) => self.system.detect_dialect(&output).unwrap_or(self.system),
            Err(_) => self.system,
        }
    }

    pub(super) fn launched(&self, job: BatchJob) -> Launched {
        Launched {
            jobs: vec![job],
            ..Launched::new(self.system.name(), process::host())
        }
    }
}
