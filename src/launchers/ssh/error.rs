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
    #[error("connected to {actual} instead of {node}")]
    WrongHost { actual: String, node: String },
    #[error("the host has no /proc, which is needed to identify processes")]
    NoProc,
    #[error("process {0} still runs after SIGKILL")]
    Unkillable(String),
    #[error("process {pid} on the host: {why}")]
    Unseen { pid: u32, why: Unseen },
    #[error("the working directory {0} does not exist on the host")]
    NoDirectory(String),
    /// `host` is the name that the user gave.
    #[error("pcluster is not installed on the host ({platform}); run pcluster install {host}")]
    NoPcluster { platform: String, host: String },
    #[error("{path} on the host ({platform}) is not pcluster {VERSION}: it printed {version:?}; run pcluster install {host}")]
    OtherVersion {
        path: String,
        platform: String,
        version: String,
        host: String,
    },
    #[error(
        "{python} does not run on the host, or is older than 3.8: {version:?}; name one in --python, or for {host} in launchers.ssh.hosts"
    )]
    NoPython { python: String, version: String, host: String },
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("cannot open a tunnel to {host}: {}", error.with_hints())]
    TunnelReported { host: String, error: TunnelError },
    #[error("{}", .0.with_hints())]
    Tunnel(TunnelError),
    #[error("{}; engines that were started end with the controller", .0.with_hint())]
    LostDuringStart(SshError),
    #[error("unexpected output about an engine: {0:?}")]
    BadReport(String),
    #[error("cannot encode the connection file: {0}")]
    Encode(#[from] serde_json::Error),
}
