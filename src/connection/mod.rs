//! Connection files: ipyparallel's JSON files that tell a client or an engine where the controller is and which keys to use.
pub mod file;

pub use file::ConnectionFile;
