//! Why a request to the controller did not work, and what may be done about it.
use crate::connection::ConnectionFile;
use crate::model::{MapId, PROTOCOL_VERSION, VERSION};
use crate::transport::TransportError;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens at any address of the connection file.
    #[error("no controller listens at {}: {why}", addresses.join(" or "))]
    NoController {
        addresses: Vec<String>,
        why: String,
        /// Process and host of the controller that wrote the file, where it says.
        controller: Option<String>,
    },
    /// From here none of the file's addresses can be the controller's.
    #[error("the controller on {location} listens only on its own loopback address ({interface}), and this is {here}")]
    OnlyThere { location: String, interface: String, here: String },
    /// It has not answered for a while.
    #[error("the controller at {address} has not answered {request} for {silent_s:.0} s ({heard})")]
    Unreachable {
        address: String,
        request: String,
        silent_s: f64,
        /// When it was last heard of, in words.
        heard: String,
    },
    /// It answered that it will not.
    #[error("the controller refused {request}: {ename}: {evalue}")]
    Refused {
        request: String,
        ename: String,
        evalue: String,
        hint: Option<String>,
    },
    #[error("this is pcluster {VERSION} (protocol {PROTOCOL_VERSION}), the controller is pcluster {version} (protocol {protocol})")]
    VersionMismatch { version: String, protocol: u32 },
    /// It answers, but not as pcluster's controller does.
    #[error("what answers at {address} is not pcluster's controller: {why}")]
    NotPcluster { address: String, why: String },
    #[error("the controller's answer to {request} cannot be read: {why}")]
    BadReply { request: String, why: String },
    /// The controller receives no message of this length.
    #[error("{request} has {bytes} bytes; the controller receives messages of up to {max} bytes")]
    TooLarge { request: String, bytes: u64, max: u64 },
    /// The inputs of a map ended with an error; what was submitted of it is cancelled.
    #[error("{why}; map {map}, with the inputs before it ({submitted}), is cancelled")]
    Inputs { map: MapId, submitted: u32, why: String },
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl ClientError {
    /// What the user may do next, one sentence each.
    pub fn hints(&self) -> Vec<String> {
        let say = |texts: &[&str]| texts.iter().map(|t| t.to_string()).collect();
        match self {
            ClientError::NoController { controller, .. } => {
                let mut hints = Vec::new();
                if let Some(controller) = controller {
                    hints.push(format!(
                        "the connection file was written by {controller}, which is gone or cannot be reached from here"
                    ));
                }
                hints.push(
                    "`pcluster list` shows the clusters, `pcluster clean` removes what a dead one left, `pcluster start` starts one".into(),
                );
                hints
            }
            ClientError::OnlyThere { location, .. } => vec![
                format!("run this command on {location}"),
                "or restart the cluster so that it listens on the network: `pcluster start --ip 0.0.0.0`".into(),
            ],
            ClientError::Unreachable { .. } => say(&[
                "`pcluster list` shows whether it runs, `pcluster logs` what it said last",
                "if it is gone, `pcluster start` brings it back with its tasks; `pcluster results` reads them meanwhile",
                "if it runs, the connection file may be an old one with other keys, or a firewall stands between",
            ]),
            ClientError::Refused { hint, .. } => hint.iter().cloned().collect(),
            ClientError::VersionMismatch { protocol, .. } => {
                let newer = if *protocol > PROTOCOL_VERSION {
                    "this pcluster"
                } else {
                    "the controller's pcluster"
                };
                vec![
                    format!("update {newer} so that both are of the same version"),
                    "then restart the cluster with `pcluster restart` (finished results stay readable)".into(),
                ]
            }
            ClientError::NotPcluster { .. } => {
                say(&["ipyparallel's own ipcontroller runs no maps: stop it, and start the cluster with `pcluster start`"])
            }
            ClientError::BadReply { .. } => say(&["update pcluster here or on the controller's host, so that both are of one version"]),
            ClientError::TooLarge { .. } => say(&[
                "restart the cluster with a larger `controller.max_message_mb`, or pass large data as files and only their names as inputs",
            ]),
            ClientError::Inputs { .. } => say(&["correct the input and run the map again"]),
            ClientError::Transport(TransportError::BadKey(_)) => {
                say(&["the connection file is damaged: restart the cluster with `pcluster restart`"])
            }
            ClientError::Transport(_) => Vec::new(),
        }
    }

    /// Whether the controller could not be talked to at all (as against: it answered no).
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            ClientError::NoController { .. } | ClientError::OnlyThere { .. } | ClientError::Unreachable { .. }
        )
    }
}

/// `process 77 on n1`, where the file says so.
pub(super) fn writer_of(file: &ConnectionFile) -> Option<String> {
    file.pcluster.as_ref().map(|keys| keys.process.to_string())
}
