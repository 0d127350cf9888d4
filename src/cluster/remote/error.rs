//! What can be wrong with a cluster behind an ssh connection, and what to do next.
use crate::model::shell;
use crate::ssh::error::lines;
use crate::ssh::tunnel::TunnelError;

#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    #[error("no cluster is running on {to} in {wanted}{}", others_in_words(others))]
    NoCluster {
        to: String,
        wanted: String,
        others: Vec<String>,
        profile: String,
    },
    #[error("the connection file {path} on {to} is of a controller that is gone: process {pid} on {host} no longer runs")]
    Gone { to: String, path: String, pid: u32, host: String },
    #[error("the controller runs on {host} and listens only there ({interface}), and {to} is {login}")]
    OnlyThere {
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
    #[error("{to} is {there}, and this pcluster is for {here}")]
    OtherMachine { to: String, there: String, here: String },
    #[error("pcluster is not installed on {to}")]
    NotInstalled { to: String },
    #[error("pcluster on {to} ({path}) is version {there}, this is {here}")]
    OtherVersion {
        to: String,
        path: String,
        there: String,
        here: String,
    },
    #[error("this pcluster does not run on {to}:{}", lines(said))]
    DoesNotRun { to: String, said: String },
    #[error("what has arrived on {to} is not what was sent (sha256 {there}, here {here})")]
    Damaged { to: String, there: String, here: String },
    #[error("cannot read this program: {0}")]
    Program(std::io::Error),
    /// A command there failed, and has said why.
    #[error("`pcluster {command}` failed on {to}{}", lines(said))]
    Failed {
        to: String,
        command: String,
        code: Option<i32>,
        said: String,
    },
}

impl RemoteError {
    pub fn hints(&self) -> Vec<String> {
        let say = |texts: &[&str]| texts.iter().map(|t| t.to_string()).collect();
        match self {
            RemoteError::NoCluster { to, others, profile, .. } => match others.is_empty() {
                true => vec![format!(
                    "start one on that host: pcluster start --on {} --profile {} -n 4",
                    shell::word(to),
                    shell::word(profile)
                )],
                false => say(&["name the one that is meant: --remote-profile NAME and --remote-cluster-id ID"]),
            },
            RemoteError::Gone { to, .. } => vec![format!("on {to}: pcluster list; pcluster start brings it back with its tasks")],
            RemoteError::OnlyThere { to, host, .. } => vec![
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
                    "connect it: pcluster connect me@login.cluster{options}; `pcluster list` shows what is there"
                )]
            }
            RemoteError::OtherMachine { .. } => {
                say(&["build or download pcluster for that machine, and install it there by hand, as pcluster in ~/.local/bin"])
            }
            RemoteError::NotInstalled { to } | RemoteError::OtherVersion { to, .. } => {
                vec![format!("copy this one there: pcluster install {to}")]
            }
            RemoteError::DoesNotRun { .. } => say(&[
                "if it misses a library or a newer GLIBC: build pcluster on a host as old as that one (or for the target \
                 x86_64-unknown-linux-musl), and install it from there",
            ]),
            RemoteError::Damaged { .. } => say(&["try again"]),
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

fn others_in_words(others: &[String]) -> String {
    match others {
        [] => String::new(),
        others => format!("; there run: {}", others.join(", ")),
    }
}
