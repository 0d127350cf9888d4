//! Vocabulary shared by all modules: plain data, no sockets, files, clocks or randomness.
//!
//! Modules: [`ids`], [`time`], [`targets`], [`definition`] (what a map runs), [`bundle`] (its
//! code), [`stdlib`] (Python's modules), [`task`] (states and outcomes), [`change`] (what is
//! recorded), [`buffer_file`] (where large buffers are stored), [`output`] (what tasks write), [`pickled`]
//! (values that JSON cannot represent), [`query`] (queries of the records), [`engine`], [`node`] (the
//! owner of resources), [`cores`] (its processors), [`resources`] (what tasks ask for), [`explanation`]
//! (why work waits), [`job`], [`memory`] (amounts with units),
//! [`open_enum`] (enums of words from other processes).
pub(crate) mod buffer_file;
pub(crate) mod bundle;
pub(crate) mod change;
pub(crate) mod cores;
pub(crate) mod definition;
pub(crate) mod engine;
pub(crate) mod explanation;
pub(crate) mod growth;
pub(crate) mod ids;
pub(crate) mod job;
pub(crate) mod memory;
pub(crate) mod node;
pub(crate) mod open_enum;
pub(crate) mod output;
pub(crate) mod pickled;
pub(crate) mod query;
pub(crate) mod resources;
pub(crate) mod shell;
pub(crate) mod stdlib;
pub(crate) mod targets;
pub(crate) mod task;
pub(crate) mod time;

pub(crate) use ids::EngineId;
pub use ids::{EngineUuid, MapId, TaskId};
pub use time::UnixTime;

/// The version of pcluster's own messages. Clients and engines with another version are rejected
/// with a clear error.
pub const PROTOCOL_VERSION: u32 = 3;
/// The version of this binary.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
