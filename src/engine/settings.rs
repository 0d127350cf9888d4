//! What an engine is told when it starts.
use crate::connection::ConnectionFile;
use crate::model::EngineId;
use std::collections::BTreeMap;

/// One engine's settings.
#[derive(Clone, Debug)]
pub struct EngineSettings {
    /// The engine file's content.
    pub connection: ConnectionFile,
    /// The id that it would like.
    pub id: Option<EngineId>,
    /// The worker's interpreter; none: the active virtual environment's, else `python3`.
    pub python: Option<String>,
    /// From SIGINT to SIGTERM when a task is stopped.
    pub interrupt_ms: u64,
    /// From SIGTERM to SIGKILL.
    pub terminate_ms: u64,
    /// How long a running task may go on after the engine was told to leave (SIGTERM, SIGINT).
    pub grace_ms: u64,
    /// How long to try to register before giving up.
    pub registration_timeout_ms: u64,
    /// Working directory of workers and commands.
    pub cwd: Option<String>,
    /// Set in the environment of workers and commands.
    pub env: BTreeMap<String, String>,
    /// For IPython's shell in the worker, as its own configuration reads them: `--InteractiveShell.colors=nocolor`.
    pub shell: Vec<String>,
}

impl EngineSettings {
    /// The defaults for a connection file.
    pub fn new(connection: ConnectionFile) -> EngineSettings {
        EngineSettings {
            connection,
            id: None,
            python: None,
            interrupt_ms: 5000,
            terminate_ms: 5000,
            grace_ms: 5000,
            registration_timeout_ms: 30_000,
            cwd: None,
            env: BTreeMap::new(),
            shell: Vec::new(),
        }
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
