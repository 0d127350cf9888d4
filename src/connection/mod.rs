//! Connection files: ipyparallel's JSON files that tell a client or an engine where the controller is and which keys to use.
//!
//! Parts: [`file`] (what one says; reading and writing it), [`discover`] (find one or wait for it, and tell a stale one),
//! [`private`] (files that are born for their owner only), [`private_dir`] (a directory that is one user's alone), [`lock`] (what one process at a time may do), [`process`] (which process is meant, and does it run?), [`network_fs`] (may another host have the same file?),
//! [`place`] (is this still the directory?), [`addresses`] (where this host can be reached), [`ssh`] (a connection to another host), [`keep`] (making one again), [`tunnel`]
//! (ports here that lead to ports there), [`relay`] (the reverse). What is said over a connection is not known here.
pub mod addresses;
pub mod discover;
mod error;
pub mod file;
pub mod keep;
pub mod lock;
pub mod network_fs;
pub mod place;
pub mod private;
pub mod private_dir;
pub mod process;
pub mod relay;
pub mod ssh;
pub mod trouble;
pub mod tunnel;

pub use error::ConnectionError;
pub use file::{ConnectionFile, PclusterKeys};
