//! Settings of an engine.
use crate::connection::ConnectionFile;
use crate::model::{EngineId, UnixTime};
use crate::profile::config::node::NodeResources;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// One engine's settings.
#[derive(Clone, Debug)]
pub(crate) struct EngineSettings {
    /// The engine file's content.
    pub connection: ConnectionFile,
    /// The engine file, to be read again when its controller is silent.
    pub file: Option<PathBuf>,
    /// An address of the controller to try before those of the file.
    pub location: Option<String>,
    /// The requested id.
    pub id: Option<EngineId>,
    /// The worker's interpreter; None: that of the active virtual environment, else `python3`.
    pub python: Option<String>,
    /// Time between SIGINT and SIGTERM when a task is stopped.
    pub interrupt_timeout_ms: u64,
    /// Time between SIGTERM and SIGKILL.
    pub terminate_timeout_ms: u64,
    /// Grace period of a running task after SIGTERM or a warning of the batch system; by default the time that the batch system is
    /// known to leave, or 5 seconds if that is unknown.
    pub grace_period_ms: Option<u64>,
    /// What the node has, in place of what is detected.
    pub resources: NodeResources,
    pub batch: BatchJob,
    /// How long to try to register.
    pub registration_timeout_ms: u64,
    /// Working directory of workers and commands.
    pub cwd: Option<String>,
    /// Environment variables of workers and commands.
    pub env: BTreeMap<String, String>,
    /// Options of IPython's shell in the worker, in IPython's syntax: `--InteractiveShell.colors=nocolor`.
    pub shell: Vec<String>,
    /// Create the shell, with its startup files, at the start; otherwise at a client's first request.
    pub shell_at_start: bool,
    /// The process contains only this engine, which may therefore adopt and end processes that tasks leave behind.
    pub takes_in_orphans: bool,
    /// For the shell's startup files.
    pub profile_dir: Option<PathBuf>,
}

impl EngineSettings {
    /// The defaults for a connection file.
    pub(crate) fn new(connection: ConnectionFile) -> EngineSettings {
        EngineSettings {
            connection,
            file: None,
            location: None,
            id: None,
            python: None,
            interrupt_timeout_ms: 5000,
            terminate_timeout_ms: 5000,
            grace_period_ms: None,
            resources: NodeResources::default(),
            batch: BatchJob::default(),
            registration_timeout_ms: 30_000,
            cwd: None,
            env: BTreeMap::new(),
            shell: Vec::new(),
            shell_at_start: false,
            takes_in_orphans: false,
            profile_dir: None,
        }
    }

    /// The current content of the engine file if the controller has moved.
    pub(crate) fn moved(&self) -> Option<ConnectionFile> {
        self.connection.moved(self.file.as_deref()?)
    }

    /// Addresses of the controller, in the order in which to try them.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let mut addresses: Vec<String> = self.location.iter().cloned().collect();
        match &self.connection.pcluster {
            Some(keys) if !keys.addresses.is_empty() => addresses.extend(keys.addresses.iter().cloned()),
            _ => addresses.push(self.connection.location.clone()),
        }
        addresses
    }
}

/// The interpreter to use: the configured one, that of the active virtual environment, or `python3`.
pub(crate) fn interpreter(set: Option<&str>) -> String {
    if let Some(python) = set {
        return match (python.strip_prefix("~/"), std::env::var("HOME")) {
            (Some(rest), Ok(home)) => format!("{home}/{rest}"),
            _ => python.to_string(),
        };
    }
    match std::env::var("VIRTUAL_ENV") {
        Ok(environment) if !environment.is_empty() => format!("{environment}/bin/python"),
        _ => "python3".to_string(),
    }
}

/// The time between a batch system's warning and SIGKILL, in seconds; None if unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct BatchJob {
    /// After SIGTERM.
    pub after_term_s: Option<f64>,
    /// After SIGUSR1 or SIGUSR2.
    pub after_user_s: Option<f64>,
}

impl BatchJob {
    /// As set by the job's script.
    pub(crate) fn of_this_process() -> BatchJob {
        BatchJob {
            after_term_s: seconds("PCLUSTER_AFTER_TERM"),
            after_user_s: seconds("PCLUSTER_AFTER_USR"),
        }
    }
}

fn seconds(name: &str) -> Option<f64> {
    let seconds = std::env::var(name).ok()?.trim().parse::<f64>().ok()?;
    (seconds.is_finite() && seconds > 0.0).then_some(seconds)
}

/// The batch job of this process, as set by the job's script.
pub(crate) fn job() -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    match (variable("PCLUSTER_JOB"), variable("PCLUSTER_ELEMENT")) {
        (Some(job), Some(element)) => format!("{job}.{element}"),
        (Some(job), None) => job,
        (None, _) => String::new(),
    }
}

/// The job's time limit, as set by the script or by Slurm (sbatch(1), "OUTPUT ENVIRONMENT VARIABLES").
pub(crate) fn ends() -> Option<UnixTime> {
    let ends = ["PCLUSTER_ENDS", "SLURM_JOB_END_TIME"].into_iter().find_map(seconds);
    ends.map(UnixTime)
}
