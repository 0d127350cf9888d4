//! Connection files: ipyparallel's JSON files that contain the controller's address and the keys
//! for clients and engines.
//!
//! Modules: [`file`] (reads and writes the content), [`discover`] (finds a file or waits for it,
//! and detects stale ones), [`addresses`] (the addresses of this host), [`error`].
pub mod addresses;
pub mod discover;
mod error;
pub mod file;

pub use error::ConnectionError;
pub use file::ConnectionFile;
