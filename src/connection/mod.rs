//! Connection files: ipyparallel's JSON files that contain the controller's address and the keys
//! for clients and engines.
//!
//! Modules: [`file`] (reads and writes the content), [`discover`] (finds a file or waits for it,
//! and detects stale ones), [`addresses`] (the addresses of this host), [`error`].
pub(crate) mod addresses;
pub(crate) mod discover;
mod error;
pub(crate) mod file;

pub(crate) use error::ConnectionError;
pub use file::ConnectionFile;
