//! Errors of starting, changing and stopping clusters, with hints.
use super::elastic::settings::InvalidSettings;
use super::remote::RemoteError;
use crate::client::ClientError;
use crate::connection::ConnectionError;
use crate::launchers::LaunchError;
use crate::profile::{ConfigError, ProfileError};
use crate::ssh::SshError;
use crate::ssh::error::lines;
use crate::ssh::tunnel::TunnelError;
use crate::sys::process::ProcessId;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Ssh(#[from] SshError),
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    #[error(transparent)]
    Elastic(#[from] InvalidSettings),
    #[error("the hosts have room for {capacity} engines; the maximum is {max}")]
    TooManyForHosts { max: u32, capacity: u32 },
    #[error("{cluster} has a fixed number of engines")]
    NotElastic { cluster: String, options: String },
    #[error("the number of engines of {cluster} is decided by its work")]
    IsElastic { cluster: String, options: String },
    #[error("{cluster} is already running{}", controller.as_ref().map(|c| format!(": its controller is {c}")).unwrap_or_default())]
    Running {
        cluster: String,
        options: String,
        controller: Option<ProcessId>,
    },
    #[error("no cluster is running: {cluster} was stopped or never started")]
    NotRunning { cluster: String, options: String },
    #[error("{cluster} is in use by a controller other than pcluster's, which wrote {}", path.display())]
    Foreign { cluster: String, options: String, path: PathBuf },
    #[error(
        "cannot determine whether {cluster} is running: its controller ({controller}) does not answer and is not visible from this host: {why}"
    )]
    Elsewhere {
        cluster: String,
        options: String,
        controller: ProcessId,
        why: String,
    },
    #[error("{cluster} was not stopped completely:{}", lines(&left.join("\n")))]
    Left {
        cluster: String,
        options: String,
        left: Vec<String>,
        /// Hints about the remaining processes.
        hints: Vec<String>,
    },
    #[error("another pcluster command is starting or stopping this cluster: {}", holder.as_deref().unwrap_or("unknown process"))]
    Busy {
        path: PathBuf,
        holder: Option<String>,
        /// The holder is the cluster's walltime monitor, which releases the lock soon.
        passes: bool,
    },
    #[error("the controller exited during startup ({ending}){}", quoted(tail))]
    ControllerEnded { ending: String, log: PathBuf, tail: String },
    #[error("the controller wrote no connection file within {seconds} s{}", quoted(tail))]
    ControllerSilent { seconds: f64, log: PathBuf, tail: String },
    #[error("{ended} of {n} engines exited before they registered ({ending}){}", quoted(tail))]
    EnginesEnded {
        ended: usize,
        n: usize,
        ending: String,
        log: PathBuf,
        tail: String,
    },
    #[error(
        "{registered} of {n} engines registered within {seconds:.0} s{}; {}{}",
        others(left),
        one_of_them(options),
        logged(tail)
    )]
    EnginesLate {
        registered: usize,
        n: usize,
        seconds: f64,
        /// `3 queued: Resources`
        left: String,
        /// If the cluster was left running: the options that select it.
        options: Option<String>,
        log: PathBuf,
        tail: String,
    },
    #[error("engines of the launcher {launcher} may run on other hosts, which cannot reach the controller on {ip}")]
    Unreachable { launcher: String, ip: String },
    #[error("cannot read the cluster's state {}: {why}", path.display())]
    StateUnreadable { path: PathBuf, why: String },
    #[error("cannot {doing} the cluster's state {}: {why}", path.display())]
    StateFile { doing: &'static str, path: PathBuf, why: String },
    #[error("cannot determine the path of the pcluster program: {0}")]
    NoProgram(std::io::Error),
    #[error("cannot determine the current directory: {0}")]
    NoDirectory(std::io::Error),
    /// A bug in pcluster.
    #[error("a thread of this process failed: {0}")]
    Internal(String),
}

fn others(left: &str) -> String {
    match left {
        "" => String::new(),
        left => format!(" ({left})"),
    }
}

fn one_of_them(kept: &Option<String>) -> &'static str {
    match kept {
        None => "one engine",
        Some(_) => "the cluster is running, and the others join it later; one engine",
    }
}

fn logged(tail: &str) -> String {
    if tail.is_empty() {
        " has an empty log".into()
    } else {
        format!(" logged:{}", lines(tail))
    }
}

/// The end of a log below a sentence.
fn quoted(tail: &str) -> String {
    if tail.is_empty() {
        return "; its log is empty".into();
    }
    format!("; the end of its log:{}", lines(tail))
}

/// `clean` without a profile cleans all profiles.
fn clean_options(options: &str) -> String {
    match options.starts_with(" --profile") {
        true => options.to_string(),
        false => format!(" --profile default{options}"),
    }
}

impl ClusterError {
    /// Hints, one line each.
    pub(crate) fn hints(&self) -> Vec<String> {
        match self {
            ClusterError::Profile(_) => Vec::new(),
            ClusterError::Config(e) => e.hint().map(str::to_string).into_iter().collect(),
            ClusterError::Connection(e) => e.hint().into_iter().collect(),
            ClusterError::Launch(e) => e.hint().into_iter().collect(),
            ClusterError::Client(e) => e.hints(),
            ClusterError::Ssh(e) => e.hint().into_iter().collect(),
            ClusterError::Remote(e) => e.hints(),
            ClusterError::Tunnel(e) => e.hints(),
            ClusterError::Running { options, .. } => vec![
                format!("stop it first: pcluster stop{options}; or list its engines: pcluster engines{options}"),
                "start a second cluster in the same profile with --cluster-id NAME".into(),
            ],
            ClusterError::NotRunning { options, .. } => {
                vec![format!(
                    "start it: pcluster start{options} -n 4; `pcluster list` shows running clusters"
                )]
            }
            ClusterError::Elastic(_) => vec!["`pcluster profile show` shows the settings and where they come from".into()],
            ClusterError::TooManyForHosts { .. } => vec!["add hosts with --host, or reduce --max".into()],
            ClusterError::NotElastic { options, .. } => {
                vec![format!("start it with a maximum: pcluster restart{options} --max 8")]
            }
            ClusterError::IsElastic { options, .. } => vec![format!(
                "change its limits: pcluster elastic{options} set --max 8; or fix the number: pcluster elastic{options} off"
            )],
            ClusterError::Foreign { path, .. } => vec![
                "stop it with ipcluster stop, or start another cluster with --cluster-id NAME".into(),
                format!("if it is dead, remove {}", path.display()),
            ],
            ClusterError::Elsewhere { options, .. } => vec![
                format!("stop it on its own host: pcluster stop{options}"),
                format!("if it is dead: pcluster clean{} --force", clean_options(options)),
            ],
            ClusterError::Left { options, hints, .. } => match hints.is_empty() {
                true => vec![
                    format!("try again: pcluster stop{options}"),
                    format!("if it is dead: pcluster clean{} --force", clean_options(options)),
                ],
                false => hints.clone(),
            },
            ClusterError::Busy { .. } => vec!["wait for it to finish, then try again".into()],
            ClusterError::ControllerEnded { log, .. } | ClusterError::ControllerSilent { log, .. } => {
                vec![format!("full log: {}", log.display())]
            }
            ClusterError::EnginesEnded { log, .. } => {
                vec![format!("full log: {}; the other logs are in the same directory", log.display())]
            }
            ClusterError::EnginesLate {
                log,
                options: Some(options),
                ..
            } => vec![
                format!("check their state with pcluster list, or stop the cluster with pcluster stop{options}"),
                format!("full log: {}", log.display()),
            ],
            ClusterError::Unreachable { .. } => {
                vec!["omit --ip, or use an address or network interface that the nodes can reach, or 0.0.0.0: --ip eth0".into()]
            }
            ClusterError::EnginesLate { log, .. } => vec![
                format!("full log: {}; the other logs are in the same directory", log.display()),
                "increase the timeout: --set launcher.engines_timeout_ms=300000".into(),
            ],
            ClusterError::StateUnreadable { path, .. } => {
                vec![format!("end the processes listed in it, then remove {}", path.display())]
            }
            ClusterError::StateFile { .. } | ClusterError::NoProgram(_) | ClusterError::NoDirectory(_) | ClusterError::Internal(_) => {
                Vec::new()
            }
        }
    }
}
