//! Words that every room shares: plain data, no sockets, files, clocks or randomness.
//!
//! Parts: [`ids`], [`time`], [`targets`], [`definition`] (what a map runs), [`bundle`] (its code), [`stdlib`] (Python's modules), [`task`] (states and outcomes),
//! [`change`] (what is to be recorded), [`kept`] (where large buffers are), [`output`] (what tasks write),
//! [`pickled`] (values that JSON does not hold), [`query`] (what may be asked of the records), [`engine`], [`job`].
pub mod bundle;
pub mod change;
pub mod definition;
pub mod engine;
pub mod ids;
pub mod job;
pub mod kept;
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

/// The version of pcluster's own messages. A client or engine with another one is refused with a clear word.
pub const PROTOCOL_VERSION: u32 = 3;
/// The version of this binary.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
