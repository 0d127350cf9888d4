//! Why the engines of a host cannot be started, queried or ended.
use crate::connection::ConnectionError;
use crate::launchers::LaunchError;
use crate::model::VERSION;
use crate::ssh::SshError;
use crate::ssh::tunnel::TunnelError;
use crate::sys::process::Unseen;

#[derive(Debug, thiserror::Error)]
pub(super) enum HostError {
    #[error("{}", .0.with_hint())]
    Ssh(#[from] SshError),
    #[error("the host that answers is {there}, not {node}")]
    Other { there: String, node: String },
    #[error("it has no /proc, by which processes are known")]
    NoProc,
    #[error("process {0} is still there after SIGKILL")]
    Unkillable(String),
    #[error("process {pid} there: {why}")]
    Unseen { pid: u32, why: Unseen },
    #[error("the directory to start in, {0}, is not there")]
    NoDirectory(String),
    /// `host` is the name that the user gave.
    #[error("there is no pcluster there ({platform}); pcluster install {host}")]
    NoPcluster { platform: String, host: String },
    #[error("{path} there ({platform}) is not pcluster {VERSION}, it says {version:?}; pcluster install {host}")]
    OtherVersion {
        path: String,
        platform: String,
        version: String,
        host: String,
    },
    #[error("{python} does not run there, or is older than 3.8: {version:?}; name one in --python, or for {host} in launchers.ssh.hosts")]
    NoPython { python: String, version: String, host: String },
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("the tunnel to {host} could not be made: {}", error.with_hints())]
    TunnelReported { host: String, error: TunnelError },
    #[error("{}", .0.with_hints())]
    Tunnel(TunnelError),
    #[error("{}; what has been started there ends with the controller", .0.with_hint())]
    LostDuringStart(SshError),
    #[error("it says of an engine {0:?}")]
    BadReport(String),
    #[error("cannot encode the connection file: {0}")]
    Encode(#[from] serde_json::Error),
}
