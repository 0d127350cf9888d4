//! The sections that every profile has: controller, engine, launcher.
use super::node::NodeResources;
use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControllerConfig {
    /// The address to listen on; `0.0.0.0` or `*` for all.
    pub ip: String,
    /// The name or address that clients connect to, if it cannot be derived from `ip`.
    pub location: Option<String>,
    /// `[user@]host[:port]`: the ssh server through which engines connect if they cannot reach the controller directly.
    pub engine_ssh: Option<String>,
    /// `10101-10116`: the 16 ports to listen on; default: any free ports.
    pub ports: Option<String>,
    /// Encrypt with CURVE.
    pub curve: bool,
    #[serde(deserialize_with = "positive")]
    pub heartbeat_interval_ms: u64,
    /// How long an engine may be silent before it is lost.
    pub lease_ms: u64,
    pub registration_timeout_ms: u64,
    /// How long an engine tries to reconnect to a silent controller before it exits.
    pub engine_reconnect_timeout_ms: u64,
    pub durability: Durability,
    /// ipyparallel's scheme for assigning balanced tasks: leastload, lru, plainrandom, twobin, weighted.
    #[serde(deserialize_with = "task_scheme")]
    pub task_scheme: String,
    /// The maximum number of tasks of ipyparallel's clients that one engine holds; 0 for no limit.
    pub hwm: u32,
    /// The amount of work, in short tasks, that is sent to an engine ahead of time,
    pub prefetch_ms: u64,
    /// and the maximum number of these tasks.
    pub max_prefetch: u32,
    /// The maximum size of a message; a peer that sends a larger one is disconnected.
    #[serde(deserialize_with = "positive")]
    pub max_message_mb: u64,
    /// Finished maps and requests are deleted after this many days.
    #[serde(deserialize_with = "positive_days")]
    pub retention_days: Option<f64>,
    /// The maximum amount of data buffered for all peers; above it, the slowest reader is disconnected.
    #[serde(deserialize_with = "positive")]
    pub max_buffered_mb: u64,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        ControllerConfig {
            ip: "127.0.0.1".into(),
            location: None,
            engine_ssh: None,
            ports: None,
            curve: true,
            heartbeat_interval_ms: 1000,
            lease_ms: 60_000,
            registration_timeout_ms: 30_000,
            engine_reconnect_timeout_ms: 600_000,
            durability: Durability::Normal,
            task_scheme: "leastload".into(),
            hwm: 1,
            prefetch_ms: 100,
            max_prefetch: 1000,
            max_message_mb: 2048,
            retention_days: None,
            max_buffered_mb: 4096,
        }
    }
}

/// What a commit survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// A crash of the controller process.
    Normal,
    /// Also a crash of the machine.
    Full,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    pub kind: EngineKind,
    /// The interpreter of the workers; default: the active virtual environment's, else `python3`.
    pub python: Option<String>,
    /// The command of an `ipengine`; default: `<python> -m ipyparallel.engine`.
    pub ipengine: Option<String>,
    /// The time between SIGINT and SIGTERM for a cancelled task.
    pub interrupt_timeout_ms: u64,
    /// The time between SIGTERM and SIGKILL.
    pub terminate_timeout_ms: u64,
    /// How long a task may continue after its engine was warned; default: as long as its batch system allows.
    pub grace_period_ms: Option<u64>,
    /// Environment variables of the workers, in addition to inherited ones.
    pub env: BTreeMap<String, String>,
    /// The working directory of the workers; default: the engine's.
    pub cwd: Option<PathBuf>,
    /// What a node has, in place of what its engines detect.
    pub resources: NodeResources,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            kind: EngineKind::Pcluster,
            python: None,
            ipengine: None,
            interrupt_timeout_ms: 5000,
            terminate_timeout_ms: 5000,
            grace_period_ms: None,
            env: BTreeMap::new(),
            cwd: None,
            resources: NodeResources::default(),
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

impl EngineKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            EngineKind::Pcluster => "pcluster",
            EngineKind::Ipengine => "ipengine",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LauncherConfig {
    /// The controller's launcher.
    pub controller: String,
    /// The engines' launcher.
    pub engines: String,
    /// The number of engines; default: one per processor of this host.
    pub n: Option<u32>,
    /// Whether engines for which this host has no room (processes, memory, open files) are refused before any is started.
    pub check_limits: bool,
    /// How long `start` waits for the controller's connection files.
    pub controller_timeout_ms: u64,
    /// How long `start` waits for all engines to register.
    pub engines_timeout_ms: u64,
    /// How long `stop` waits after its request before SIGTERM.
    pub stop_timeout_ms: u64,
    /// How long `stop` waits after SIGTERM before SIGKILL.
    pub kill_timeout_ms: u64,
    /// The minimum interval between queries to a batch system.
    pub poll_interval_ms: u64,
    /// The timeout for a command of a batch system.
    pub command_timeout_ms: u64,
    /// How often engines are restarted in a new job after walltime, node failure or preemption.
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
            stop_timeout_ms: 10_000,
            kill_timeout_ms: 5000,
            poll_interval_ms: 10_000,
            command_timeout_ms: 60_000,
            max_walltime_restarts: 0,
        }
    }
}

/// ipyparallel's schemes for assigning balanced tasks.
pub(super) const TASK_SCHEMES: [&str; 5] = ["leastload", "lru", "plainrandom", "twobin", "weighted"];

fn task_scheme<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let scheme = String::deserialize(from)?;
    if !TASK_SCHEMES.contains(&scheme.as_str()) {
        return Err(D::Error::unknown_variant(&scheme, &TASK_SCHEMES));
    }
    Ok(scheme)
}

fn positive_days<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    match Option::<f64>::deserialize(from)? {
        Some(days) if !(days > 0.0 && days.is_finite()) => {
            Err(D::Error::invalid_value(Unexpected::Float(days), &"a number of days greater than 0"))
        }
        days => Ok(days),
    }
}

fn positive<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    match u64::deserialize(from)? {
        0 => Err(D::Error::invalid_value(Unexpected::Unsigned(0), &"a whole number greater than 0")),
        number => Ok(number),
    }
}
