//! Errors of requests to the controller, with hints.
use crate::connection::ConnectionFile;
use crate::model::{MapId, PROTOCOL_VERSION, VERSION};
use crate::transport::TransportError;
use crate::wire::content::error::Refusal;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No address of the connection file accepts a connection.
    #[error("no controller listens at {}: {why}", addresses.join(" or "))]
    NoController {
        addresses: Vec<String>,
        why: String,
        /// The process and host that wrote the file, if known.
        controller: Option<String>,
    },
    /// No address of the file is reachable from this host.
    #[error("the controller on {location} listens only on its loopback address ({interface}), which {here} cannot reach")]
    OnlyThere { location: String, interface: String, here: String },
    /// It has not answered for a while.
    #[error("the controller at {address} has not answered {request} for {silent_s:.0} s ({heard})")]
    Unreachable {
        address: String,
        request: String,
        silent_s: f64,
        /// When its last message arrived.
        heard: String,
    },
    /// The controller refused the request.
    #[error("{evalue}")]
    Refused {
        request: String,
        refusal: Refusal,
        evalue: String,
        hint: Option<String>,
    },
    #[error(
        "incompatible versions: this is pcluster {VERSION} (protocol {PROTOCOL_VERSION}), the controller is pcluster {version} (protocol {protocol})"
    )]
    VersionMismatch { version: String, protocol: u32 },
    /// It answers, but is not pcluster's controller.
    #[error("the server at {address} is not pcluster's controller: {why}")]
    NotPcluster { address: String, why: String },
    #[error("cannot decode the controller's answer to {request}: {why}")]
    BadReply { request: String, why: String },
    /// The message exceeds the controller's limit.
    #[error("{request} has {bytes} bytes; the controller accepts at most {max} bytes")]
    TooLarge { request: String, bytes: u64, max: u64 },
    /// The inputs of a map ended with an error; the map is cancelled.
    #[error("{why}; map {map} is cancelled (inputs submitted before: {submitted})")]
    Inputs { map: MapId, submitted: u32, why: String },
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl ClientError {
    /// Hints, one sentence each.
    pub fn hints(&self) -> Vec<String> {
        let say = |texts: &[&str]| texts.iter().map(|t| t.to_string()).collect();
        match self {
            ClientError::NoController { controller, .. } => {
                let mut hints = Vec::new();
                if let Some(controller) = controller {
                    hints.push(format!(
                        "the connection file was written by {controller}, which is dead or unreachable"
                    ));
                }
                hints.push(
                    "list clusters with `pcluster list`, remove files of dead ones with `pcluster clean`, start one with `pcluster start`"
                        .into(),
                );
                hints
            }
            ClientError::OnlyThere { location, .. } => vec![
                format!("run this command on {location}"),
                "or make the cluster listen on the network: `pcluster restart --ip 0.0.0.0`".into(),
            ],
            ClientError::Unreachable { .. } => say(&[
                "check it with `pcluster list` and `pcluster logs`",
                "if it is dead, `pcluster start` restarts it with its tasks; `pcluster results` reads them in the meantime",
                "if it is running, the connection file may be outdated, or a firewall may block the connection",
            ]),
            ClientError::Refused { hint, .. } => hint.iter().cloned().collect(),
            ClientError::VersionMismatch { protocol, .. } => {
                let newer = if *protocol > PROTOCOL_VERSION {
                    "this pcluster"
                } else {
                    "the controller's pcluster"
                };
                vec![
                    format!("update {newer} so that both have the same version"),
                    "then restart the cluster with `pcluster restart` (finished results remain readable)".into(),
                ]
            }
            ClientError::NotPcluster { .. } => {
                say(&["ipyparallel's ipcontroller does not support maps: stop it, then start the cluster with `pcluster start`"])
            }
            ClientError::BadReply { .. } => say(&["update pcluster so that this host and the controller's host have the same version"]),
            ClientError::TooLarge { .. } => {
                say(&["restart the cluster with a larger `controller.max_message_mb`, or pass file names instead of large inputs"])
            }
            ClientError::Inputs { .. } => say(&["fix the input and run the map again"]),
            ClientError::Transport(TransportError::BadKey(_)) => {
                say(&["the connection file is damaged: restart the cluster with `pcluster restart`"])
            }
            ClientError::Transport(_) => Vec::new(),
        }
    }

    /// Whether the controller, of an earlier version, does not know the request.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self,
            ClientError::Refused {
                refusal: Refusal::UnknownRequest,
                ..
            }
        )
    }

    /// Whether the controller could not be reached (as opposed to a refusal).
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            ClientError::NoController { .. } | ClientError::OnlyThere { .. } | ClientError::Unreachable { .. }
        )
    }
}

/// `process 77 on n1`, if the file has it.
pub(super) fn writer_of(file: &ConnectionFile) -> Option<String> {
    file.pcluster.as_ref().map(|keys| keys.process.to_string())
}
