//! Why a tunnel could not be established, or ended.
use crate::ssh::error::{SshError, lines};
use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// Reported by the code that locates the controller, or by the tunnel's daemon.
    #[error("{what}")]
    Reported { what: String, hints: Vec<String>, missing: bool },
    #[error("nothing answers for the controller at {} as seen from {from}{}", tried.join(" or "), because(log))]
    NoAnswer {
        from: String,
        tried: Vec<String>,
        log: String,
        hints: Vec<String>,
    },
    #[error("the port {port} of {to} is no longer free, and its engines use no other: {why}")]
    PortTaken { to: String, port: u16, why: String },
    #[error("cannot listen on this host for the tunnel: {0}")]
    Listen(io::Error),
    #[error("cannot {doing} {}: {why}", path.display())]
    State { doing: &'static str, path: PathBuf, why: String },
    #[error("cannot start {}: {source}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("the tunnel to {to} ended before it was established{}", because(output))]
    Ended { to: String, output: String, log: PathBuf },
    #[error("the tunnel to {to} is not established after {seconds} s{}", because(output))]
    Late {
        to: String,
        seconds: u64,
        output: String,
        log: PathBuf,
    },
    #[error("{0}")]
    Internal(String),
}

impl TunnelError {
    /// Suggests what to do next.
    pub(crate) fn hints(&self) -> Vec<String> {
        match self {
            TunnelError::Ssh(error) => error.hint().into_iter().collect(),
            TunnelError::Reported { hints, .. } | TunnelError::NoAnswer { hints, .. } => hints.clone(),
            TunnelError::Ended { log, .. } | TunnelError::Late { log, .. } => vec![format!("its log: {}", log.display())],
            _ => Vec::new(),
        }
    }

    /// The message with its hints, for a message without a separate field for them.
    pub(crate) fn with_hints(&self) -> String {
        let hints = self.hints();
        std::iter::once(self.to_string()).chain(hints).collect::<Vec<_>>().join("\n  ")
    }

    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, TunnelError::Reported { missing: true, .. })
    }

    /// Whether a retry may help without an action of the user.
    pub(crate) fn may_pass(&self) -> bool {
        !matches!(self, TunnelError::Ssh(error) if !error.may_pass())
    }
}

fn because(output: &str) -> String {
    match output.contains('\n') {
        _ if output.is_empty() => String::new(),
        false => format!(": {output}"),
        true => format!(":{}", lines(output)),
    }
}
