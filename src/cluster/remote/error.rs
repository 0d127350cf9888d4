//! Errors of clusters on other hosts, with hints.
use crate::model::shell;
use crate::ssh::error::lines;
use crate::ssh::tunnel::TunnelError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    #[error("no cluster is running on {to} in {wanted}{}", list_others(others))]
    NoCluster {
        to: String,
        wanted: String,
        others: Vec<String>,
        profile: String,
    },
    #[error("the connection file {path} on {to} is of a controller that is gone: process {pid} on {host} no longer runs")]
    Gone { to: String, path: String, pid: u32, host: String },
    #[error("the controller runs on {host} and listens only there ({interface}), and {to} is {login}")]
    LocalOnly {
        to: String,
        login: String,
        host: String,
        interface: String,
    },
    #[error("{cluster} is connected to {destination}, and runs there")]
    Connected {
        cluster: String,
        options: String,
        destination: String,
    },
    #[error("{cluster} is connected to {destination} already, not to {wanted}")]
    OtherDestination {
        cluster: String,
        options: String,
        destination: String,
        wanted: String,
    },
    #[error("{cluster} is not connected to another host")]
    NotConnected { cluster: String, options: String },
    #[error("{to} is {remote}, and this pcluster is for {local}")]
    OtherMachine { to: String, remote: String, local: String },
    #[error("pcluster is not installed on {to}")]
    NotInstalled { to: String },
    #[error("pcluster on {to} ({path}) is version {remote}, this is {local}")]
    OtherVersion {
        to: String,
        path: String,
        remote: String,
        local: String,
    },
    #[error("this pcluster does not run on {to}:{}", lines(output))]
    DoesNotRun { to: String, output: String },
    #[error("the copy on {to} is damaged (sha256 {remote}, expected {local})")]
    Damaged { to: String, remote: String, local: String },
    #[error("cannot read this program: {0}")]
    Program(std::io::Error),
    /// A remote command failed, and printed why.
    #[error("`pcluster {command}` failed on {to}{}", lines(output))]
    Failed {
        to: String,
        command: String,
        code: Option<i32>,
        output: String,
    },
}

impl RemoteError {
    pub(crate) fn hints(&self) -> Vec<String> {
        let fixed = |texts: &[&str]| texts.iter().map(|t| t.to_string()).collect();
        match self {
            RemoteError::NoCluster { to, others, profile, .. } => match others.is_empty() {
                true => vec![format!(
                    "start one on that host: pcluster start --on {} --profile {} -n 4",
                    shell::quoted(to),
                    shell::quoted(profile)
                )],
                false => fixed(&["select one: --remote-profile NAME and --remote-cluster-id ID"]),
            },
            RemoteError::Gone { to, .. } => vec![format!("on {to}: pcluster list; pcluster start brings it back with its tasks")],
            RemoteError::LocalOnly { to, host, .. } => vec![
                format!(
                    "connect to {host} itself, through {to}: in ~/.ssh/config, Host {host} with ProxyJump {to}; then pcluster connect {host}"
                ),
                "or start the cluster so that it listens on the network: pcluster start --ip 0.0.0.0".into(),
            ],
            RemoteError::Connected { options, destination, .. } => vec![
                format!("stop it there, and disconnect: pcluster stop{options}"),
                format!("or only disconnect from {destination}: pcluster disconnect{options}"),
            ],
            RemoteError::OtherDestination { options, .. } => vec![format!(
                "first pcluster disconnect{options}; or take another profile or cluster id for the second one"
            )],
            RemoteError::NotConnected { options, .. } => {
                vec![format!(
                    "connect it: pcluster connect me@login.cluster{options}; `pcluster list` shows all clusters"
                )]
            }
            RemoteError::OtherMachine { .. } => {
                fixed(&["build or download pcluster for that machine, and copy it to ~/.local/bin/pcluster on the host"])
            }
            RemoteError::NotInstalled { to } | RemoteError::OtherVersion { to, .. } => {
                vec![format!("copy this version to the host: pcluster install {to}")]
            }
            RemoteError::DoesNotRun { .. } => fixed(&[
                "if it misses a library or a newer GLIBC: build pcluster on a host as old as that one (or for the target \
                 x86_64-unknown-linux-musl), and install it from there",
            ]),
            RemoteError::Damaged { .. } => fixed(&["try again"]),
            RemoteError::Program(_) | RemoteError::Failed { .. } => Vec::new(),
        }
    }
}

impl From<RemoteError> for TunnelError {
    fn from(error: RemoteError) -> Self {
        TunnelError::Reported {
            what: error.to_string(),
            hints: error.hints(),
            missing: matches!(error, RemoteError::NoCluster { .. } | RemoteError::Gone { .. }),
        }
    }
}

fn list_others(others: &[String]) -> String {
    match others {
        [] => String::new(),
        others => format!("; running: {}", others.join(", ")),
    }
}
