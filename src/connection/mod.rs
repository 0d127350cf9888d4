//! Connection files: ipyparallel's JSON files that tell a client or an engine where the controller is and which keys to use.
//!
//! Parts: [`file`] (what one says; reading and writing it).
pub mod file;

pub use file::{ConnectionError, ConnectionFile};
