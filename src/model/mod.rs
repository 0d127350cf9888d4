//! Vocabulary shared by all modules: plain data, no sockets, files, clocks or randomness.
//!
//! Modules: [`ids`], [`time`], [`targets`], [`definition`] (what a map runs), [`bundle`] (its
//! code), [`stdlib`] (Python's modules), [`task`] (states and outcomes), [`change`] (what is
//! recorded), [`buffer_file`] (where large buffers are stored), [`output`] (what tasks write), [`pickled`]
//! (values that JSON cannot represent), [`query`] (queries of the records), [`engine`], [`job`].
pub mod buffer_file;
pub mod bundle;
pub mod change;
pub mod definition;
pub mod engine;
pub mod ids;
pub mod job;
pub mod output;
pub mod pickled;
pub mod query;
pub mod shell;
pub mod stdlib;
pub mod targets;
pub mod task;
pub mod time;

pub use ids::{EngineId, EngineUuid, MapId, TaskId};
pub use time::UnixTime;

/// The version of pcluster's own messages. Clients and engines with another version are rejected
/// with a clear error.
pub const PROTOCOL_VERSION: u32 = 3;
/// The version of this binary.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
