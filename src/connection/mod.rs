//! Connection files: ipyparallel's JSON files that tell a client or an engine where the controller is and which keys to use.
//!
//! Parts: [`file`] (what one contains; reading and writing it), [`discover`] (find one or wait for it, and tell a stale one),
//! [`addresses`] (where this host can be reached), [`error`].
pub mod addresses;
pub mod discover;
mod error;
pub mod file;

pub use error::ConnectionError;
pub use file::ConnectionFile;
