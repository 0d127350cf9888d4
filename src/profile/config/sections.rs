//! The sections that every profile has: controller, engine, launcher.
use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControllerConfig {
    /// The address to listen on; `0.0.0.0` or `*` for all.
    pub ip: String,
    /// The name or address that clients are to use, where `ip` does not tell.
    pub location: Option<String>,
    /// `[user@]host[:port]`: the ssh server through which engines reach it where they do not reach it otherwise.
    pub engine_ssh: Option<String>,
    /// `10101-10116`: the ports to listen on, 16 of them; by default any that are free.
    pub ports: Option<String>,
    /// Encrypt with CURVE.
    pub curve: bool,
    #[serde(deserialize_with = "above_zero")]
    pub heartbeat_ms: u64,
    /// How long an engine may be silent before it counts as lost.
    pub lease_ms: u64,
    pub registration_timeout_ms: u64,
    /// How long an engine looks for a silent controller before it exits.
    pub controller_patience_ms: u64,
    pub durability: Durability,
    /// ipyparallel's word for how balanced tasks are placed: leastload, lru, plainrandom, twobin, weighted.
    #[serde(deserialize_with = "task_scheme")]
    pub task_scheme: String,
    /// How many tasks of ipyparallel's clients an engine may hold at a time; 0 is no bound.
    pub hwm: u32,
    /// About so much work of short tasks is sent to an engine ahead of time.
    pub prefetch_ms: u64,
    /// And never more tasks than this.
    pub most_prefetched: u32,
    /// A peer that sends a longer message loses its connection.
    #[serde(deserialize_with = "above_zero")]
    pub most_message_mb: u64,
    /// Finished maps and requests are forgotten so many days after their end.
    #[serde(deserialize_with = "some_days")]
    pub keep_days: Option<f64>,
    /// What may wait in memory for all peers together; beyond it the one that lets most wait is cut off.
    #[serde(deserialize_with = "above_zero")]
    pub most_waiting_mb: u64,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        ControllerConfig {
            ip: "127.0.0.1".into(),
            location: None,
            engine_ssh: None,
            ports: None,
            curve: true,
            heartbeat_ms: 1000,
            lease_ms: 60_000,
            registration_timeout_ms: 30_000,
            controller_patience_ms: 600_000,
            durability: Durability::Normal,
            task_scheme: "leastload".into(),
            hwm: 1,
            prefetch_ms: 50,
            most_prefetched: 1000,
            most_message_mb: 2048,
            keep_days: None,
            most_waiting_mb: 4096,
        }
    }
}

/// What a commit survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The end of the controller process.
    Normal,
    /// Also the end of the machine.
    Full,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    pub kind: EngineKind,
    /// The interpreter of the workers; by default the active virtual environment's, else `python3`.
    pub python: Option<String>,
    /// The command of an `ipengine`, by default `<python> -m ipyparallel.engine`.
    pub ipengine: Option<String>,
    /// From SIGINT to SIGTERM, for a task that is to end.
    pub interrupt_ms: u64,
    /// From SIGTERM to SIGKILL.
    pub terminate_ms: u64,
    /// How long a task may go on at most once its engine was warned; by default as long as its batch system is known to leave.
    pub grace_ms: Option<u64>,
    /// Environment variables of the workers, besides those inherited.
    pub env: BTreeMap<String, String>,
    /// The workers' working directory, by default the engine's.
    pub cwd: Option<PathBuf>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            kind: EngineKind::Pcluster,
            python: None,
            ipengine: None,
            interrupt_ms: 5000,
            terminate_ms: 5000,
            grace_ms: None,
            env: BTreeMap::new(),
            cwd: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// pcluster's own.
    Pcluster,
    /// ipyparallel's.
    Ipengine,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LauncherConfig {
    /// What starts the controller.
    pub controller: String,
    /// What starts the engines.
    pub engines: String,
    /// How many engines `start` starts; by default one for each processor here.
    pub n: Option<u32>,
    /// Whether engines for which this host has no room (processes, memory, open files) are refused before any is started.
    pub check_limits: bool,
    /// How long `start` waits for the controller's connection files.
    pub controller_timeout_ms: u64,
    /// How long `start` waits for all engines to register.
    pub engines_timeout_ms: u64,
    /// How long `stop` waits after asking, before SIGTERM.
    pub stop_ms: u64,
    /// How long `stop` waits after SIGTERM, before SIGKILL.
    pub kill_ms: u64,
    /// A batch system is asked about jobs at most once in so long.
    pub poll_ms: u64,
    /// A command of a batch system may take so long.
    pub command_ms: u64,
    /// How often engines are replaced by a new job when theirs was ended by its time limit, by the loss of a node, or by preemption.
    pub max_walltime_restarts: u32,
}

impl Default for LauncherConfig {
    fn default() -> Self {
        LauncherConfig {
            controller: "local".into(),
            engines: "local".into(),
            n: None,
            check_limits: true,
            controller_timeout_ms: 30_000,
            engines_timeout_ms: 60_000,
            stop_ms: 10_000,
            kill_ms: 5000,
            poll_ms: 10_000,
            command_ms: 60_000,
            max_walltime_restarts: 0,
        }
    }
}

/// ipyparallel's words for how a balanced task finds an engine.
pub const TASK_SCHEMES: [&str; 5] = ["leastload", "lru", "plainrandom", "twobin", "weighted"];

fn task_scheme<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let scheme = String::deserialize(from)?;
    if !TASK_SCHEMES.contains(&scheme.as_str()) {
        return Err(D::Error::unknown_variant(&scheme, &TASK_SCHEMES));
    }
    Ok(scheme)
}

fn some_days<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    match Option::<f64>::deserialize(from)? {
        Some(days) if !(days > 0.0 && days.is_finite()) => {
            Err(D::Error::invalid_value(Unexpected::Float(days), &"a number of days above 0"))
        }
        days => Ok(days),
    }
}

fn above_zero<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    match u64::deserialize(from)? {
        0 => Err(D::Error::invalid_value(Unexpected::Unsigned(0), &"a whole number above 0")),
        number => Ok(number),
    }
}
