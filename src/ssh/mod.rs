//! Other hosts over ssh: connections, commands, ports that lead from one host to another.
//!
//! Parts: [`destination`], [`session`] (one connection), [`error`] (what can go wrong, read from what ssh prints), [`config`] (what
//! `ssh -G` reports of a host), [`shell`] (scripts and what they print), [`probe`] (what a host is and has), [`control_dir`] (the private directory of a connection's sockets, and its processes), [`backoff`]
//! (when to connect again), [`forward`] (local ports that lead to a remote address), [`relay`] (remote ports that lead to a local one),
//! [`tunnel`] (either, kept by a daemon).
//! It does not know what a cluster is, nor why a command is run.
pub mod backoff;
pub mod config;
pub mod control_dir;
pub mod destination;
pub mod error;
pub mod forward;
pub mod probe;
pub mod relay;
pub mod session;
pub mod shell;
pub mod tunnel;

pub use destination::Destination;
pub use error::SshError;
pub use session::{Output, Ssh};
pub use shell::quoted;
