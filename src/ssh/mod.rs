//! Other hosts over ssh: connections, commands, ports that lead from one host to another.
//!
//! Parts: [`destination`], [`session`] (one connection), [`error`] (what can go wrong, read from what ssh prints), [`config`] (what
//! `ssh -G` reports of a host), [`shell`] (scripts and what they print), [`probe`] (what a host is and has), [`control_dir`] (the private directory of a connection's sockets, and its processes), [`backoff`]
//! (when to connect again), [`forward`] (local ports that lead to a remote address), [`relay`] (remote ports that lead to a local one),
//! [`tunnel`] (either, kept by a daemon).
//! It does not know what a cluster is, nor why a command is run.
pub(crate) mod backoff;
pub(crate) mod config;
pub(crate) mod control_dir;
pub(crate) mod destination;
pub(crate) mod error;
pub(crate) mod forward;
pub(crate) mod probe;
pub(crate) mod relay;
pub(crate) mod session;
pub(crate) mod shell;
pub(crate) mod tunnel;

pub(crate) use destination::Destination;
pub(crate) use error::SshError;
pub(crate) use session::{Output, Ssh};
