//! What an engine is told when it starts.
use crate::connection::ConnectionFile;
use crate::model::{EngineId, UnixTime};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// One engine's settings.
#[derive(Clone, Debug)]
pub struct EngineSettings {
    /// The engine file's content.
    pub connection: ConnectionFile,
    /// The engine file, to be read again when its controller is silent.
    pub file: Option<PathBuf>,
    /// An address of the controller's that is tried first, whatever the file says.
    pub location: Option<String>,
    /// The id that it would like.
    pub id: Option<EngineId>,
    /// The worker's interpreter; none: the active virtual environment's, else `python3`.
    pub python: Option<String>,
    /// From SIGINT to SIGTERM when a task is stopped.
    pub interrupt_timeout_ms: u64,
    /// From SIGTERM to SIGKILL.
    pub terminate_timeout_ms: u64,
    /// How long a running task may go on after the engine was told to leave (SIGTERM, a warning of its batch system); by default as
    /// long as that system is known to leave, and 5 seconds where that is not known.
    pub grace_period_ms: Option<u64>,
    pub batch: BatchJob,
    /// How long to try to register before giving up.
    pub registration_timeout_ms: u64,
    /// Working directory of workers and commands.
    pub cwd: Option<String>,
    /// Set in the environment of workers and commands.
    pub env: BTreeMap<String, String>,
    /// For IPython's shell in the worker, as its own configuration reads them: `--InteractiveShell.colors=nocolor`.
    pub shell: Vec<String>,
    /// The shell is made at once, with all that runs at its start; else with a client's first request.
    pub shell_at_start: bool,
    /// This process is the engine's alone: it may end what tasks leave behind.
    pub takes_in_orphans: bool,
    /// For the shell's startup files.
    pub profile_dir: Option<PathBuf>,
}

impl EngineSettings {
    /// The defaults for a connection file.
    pub fn new(connection: ConnectionFile) -> EngineSettings {
        EngineSettings {
            connection,
            file: None,
            location: None,
            id: None,
            python: None,
            interrupt_timeout_ms: 5000,
            terminate_timeout_ms: 5000,
            grace_period_ms: None,
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

    /// The engine file as it is now, where the controller has moved.
    pub fn moved(&self) -> Option<ConnectionFile> {
        self.connection.moved(self.file.as_deref()?)
    }

    /// Where the controller may be, in the order in which it is tried there.
    pub fn addresses(&self) -> Vec<String> {
        let mut addresses: Vec<String> = self.location.iter().cloned().collect();
        match &self.connection.pcluster {
            Some(keys) if !keys.addresses.is_empty() => addresses.extend(keys.addresses.iter().cloned()),
            _ => addresses.push(self.connection.location.clone()),
        }
        addresses
    }
}

/// The interpreter to use: the one that is set, the active virtual environment's, `python3`.
pub fn interpreter(set: Option<&str>) -> String {
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

/// How long a batch system waits with SIGKILL after it has warned, in seconds; none where that is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BatchJob {
    /// After SIGTERM.
    pub after_term_s: Option<f64>,
    /// After SIGUSR1 or SIGUSR2.
    pub after_user_s: Option<f64>,
}

impl BatchJob {
    /// As the job's script says it.
    pub fn of_this_process() -> BatchJob {
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

/// The batch job that this process is in, as the job's script says it.
pub fn job() -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    match (variable("PCLUSTER_JOB"), variable("PCLUSTER_ELEMENT")) {
        (Some(job), Some(element)) => format!("{job}.{element}"),
        (Some(job), None) => job,
        (None, _) => String::new(),
    }
}

/// When the job's time is over: what the script says, or Slurm itself (sbatch(1), "OUTPUT ENVIRONMENT VARIABLES").
pub fn ends() -> Option<UnixTime> {
    let ends = ["PCLUSTER_ENDS", "SLURM_JOB_END_TIME"].into_iter().find_map(seconds);
    ends.map(UnixTime)
}
