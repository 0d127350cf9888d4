//! Why a cluster could not be started, changed or stopped, and what to do next.
use super::remote::RemoteError;
use crate::client::ClientError;
use crate::connection::ConnectionError;
use crate::launchers::LaunchError;
use crate::profile::{ConfigError, ProfileError};
use crate::ssh::SshError;
use crate::ssh::tunnel::TunnelError;
use crate::sys::process::ProcessId;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
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
    #[error("{cluster} is running already{}", controller.as_ref().map(|c| format!(": its controller is {c}")).unwrap_or_default())]
    Running {
        cluster: String,
        options: String,
        controller: Option<ProcessId>,
    },
    #[error("no cluster is running: {cluster} has been stopped, or was never started")]
    NotRunning { cluster: String, options: String },
    #[error("in {cluster} runs a controller that is not pcluster's; it wrote {}", path.display())]
    Foreign { cluster: String, options: String, path: PathBuf },
    #[error(
        "it cannot be told whether {cluster} still runs: its controller ({controller}) does not answer, and cannot be seen from here: {why}"
    )]
    Elsewhere {
        cluster: String,
        options: String,
        controller: ProcessId,
        why: String,
    },
    #[error("{cluster} is not stopped altogether:{}", lines(&left.join("\n")))]
    Left {
        cluster: String,
        options: String,
        left: Vec<String>,
        /// What to do about them.
        hints: Vec<String>,
    },
    #[error("another pcluster command is starting or stopping this cluster: {}", holder.as_deref().unwrap_or("it has not said which"))]
    Busy {
        path: PathBuf,
        holder: Option<String>,
        /// It is the cluster's keeper: it will be done soon.
        passes: bool,
    },
    #[error("the controller ended at once ({ending}){}", quoted(tail))]
    ControllerEnded { ending: String, log: PathBuf, tail: String },
    #[error("the controller wrote no connection file within {seconds} s{}", quoted(tail))]
    ControllerSilent { seconds: f64, log: PathBuf, tail: String },
    #[error("{ended} of {n} engines ended before they were registered ({ending}){}", quoted(tail))]
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
        said(tail)
    )]
    EnginesLate {
        registered: usize,
        n: usize,
        seconds: f64,
        /// `3 queued: Resources`
        left: String,
        /// Where the cluster was left running: the options that name it.
        options: Option<String>,
        log: PathBuf,
        tail: String,
    },
    #[error(
        "the engines' launcher is {launcher}, whose engines may be on other hosts, and these cannot reach {ip}, where the controller listens"
    )]
    Unreachable { launcher: String, ip: String },
    #[error("cannot {doing} the cluster's state {}: {why}", path.display())]
    StateFile { doing: &'static str, path: PathBuf, why: String },
    #[error("cannot find the pcluster program itself: {0}")]
    NoProgram(std::io::Error),
    #[error("cannot tell the current directory: {0}")]
    NoDirectory(std::io::Error),
    /// A mistake of pcluster's own.
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
        None => "one of them",
        Some(_) => "the cluster runs, and the others join it when they can; an engine",
    }
}

fn said(tail: &str) -> String {
    if tail.is_empty() {
        " has said nothing".into()
    } else {
        format!(" has said:{}", lines(tail))
    }
}

/// The end of a log below a sentence.
fn quoted(tail: &str) -> String {
    if tail.is_empty() {
        return "; it said nothing".into();
    }
    format!("; the end of its log:{}", lines(tail))
}

fn lines(tail: &str) -> String {
    tail.lines().map(|line| format!("\n  | {line}")).collect()
}

/// `clean` without a profile is about all profiles.
fn clean_options(options: &str) -> String {
    match options.starts_with(" --profile") {
        true => options.to_string(),
        false => format!(" --profile default{options}"),
    }
}

impl ClusterError {
    /// What to do next, one line each.
    pub fn hints(&self) -> Vec<String> {
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
                format!("stop it first: pcluster stop{options}; or see its engines: pcluster engines{options}"),
                "a second cluster in the same profile needs a name of its own: --cluster-id NAME".into(),
            ],
            ClusterError::NotRunning { options, .. } => {
                vec![format!("start it: pcluster start{options} -n 4; `pcluster list` shows what runs")]
            }
            ClusterError::Foreign { path, .. } => vec![
                "stop it as it was started (ipcluster stop), or start under a name of its own: --cluster-id NAME".into(),
                format!("if you know that it is gone, remove {}", path.display()),
            ],
            ClusterError::Elsewhere { options, .. } => vec![
                format!("where it was started: pcluster stop{options}"),
                format!("if you know that it is gone: pcluster clean{} --force", clean_options(options)),
            ],
            ClusterError::Left { options, hints, .. } => match hints.is_empty() {
                true => vec![
                    format!("try again: pcluster stop{options}"),
                    format!("if you know that it is gone: pcluster clean{} --force", clean_options(options)),
                ],
                false => hints.clone(),
            },
            ClusterError::Busy { .. } => vec!["wait for it to finish, then try again".into()],
            ClusterError::ControllerEnded { log, .. } | ClusterError::ControllerSilent { log, .. } => {
                vec![format!("all that it said: {}", log.display())]
            }
            ClusterError::EnginesEnded { log, .. } => vec![format!("all that it said: {}; the other logs are beside it", log.display())],
            ClusterError::EnginesLate {
                log,
                options: Some(options),
                ..
            } => vec![
                format!("see how far they are: pcluster list; or give up: pcluster stop{options}"),
                format!("all that it said: {}", log.display()),
            ],
            ClusterError::Unreachable { .. } => {
                vec!["leave --ip out, or name an address or network interface that the nodes reach, or 0.0.0.0: --ip eth0".into()]
            }
            ClusterError::EnginesLate { log, .. } => vec![
                format!("all that it said: {}; the other logs are beside it", log.display()),
                "more time: --set launcher.engines_timeout_ms=300000".into(),
            ],
            ClusterError::StateFile { doing: "read", path, .. } => {
                vec![format!("look which processes it names, end them, and remove {}", path.display())]
            }
            ClusterError::StateFile { .. } | ClusterError::NoProgram(_) | ClusterError::NoDirectory(_) | ClusterError::Internal(_) => {
                Vec::new()
            }
        }
    }
}
