//! Reverse tunnels: where engines on another host do not reach the controller, ports of that host's loopback lead to it, through
//! an ssh connection that a process here keeps. What goes through stays encrypted from end to end.
//!
//! Parts: [`probe`] (whether a tunnel is needed), [`target`] (where it leads, and the connection file for who uses it), [`open`] (its
//! process is started, waited for and ended), [`serve`] (that process), [`state`] (what is known of it).
pub mod open;
pub mod probe;
pub mod serve;
pub mod state;
pub mod target;

pub use open::{bring_back, end, end_all, open};
pub use serve::serve;
pub use state::{Phase, ReverseState};

use crate::connection::ConnectionError;
use crate::ssh::SshError;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum ReverseError {
    #[error(transparent)]
    Ssh(#[from] SshError),
    #[error(transparent)]
    File(#[from] ConnectionError),
    #[error("no controller answers from here: {}", tried.join(", "))]
    NoController { tried: Vec<String> },
    #[error("the port {port} of {to} is not free any more, and its engines know no other: {why}")]
    Taken { to: String, port: u16, why: String },
    #[error("the controller is at other ports now")]
    Moved,
    #[error("cannot {doing} {}: {why}", path.display())]
    State { doing: &'static str, path: PathBuf, why: String },
    #[error("the process of the tunnel to {to} ended{}", said_in_words(said))]
    Ended { to: String, said: String },
    #[error("the tunnel to {to} leads nowhere yet after {seconds} s{}", said_in_words(said))]
    Late { to: String, seconds: u64, said: String },
    /// Its process has said why.
    #[error("the tunnel to {to} could not be made: {why}")]
    Told { to: String, why: String },
    #[error("{0}")]
    Internal(String),
}

impl ReverseError {
    /// Whether trying again later may help without anybody doing anything.
    fn may_pass(&self) -> bool {
        !matches!(self, ReverseError::Ssh(e) if !e.may_pass())
    }
}

fn said_in_words(said: &str) -> String {
    match said.is_empty() {
        true => String::new(),
        false => format!(": {said}"),
    }
}
