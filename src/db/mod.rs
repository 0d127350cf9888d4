//! Every task, in SQLite: one file per cluster, written by its controller alone, read by anyone.
//!
//! [`Writer`] applies [`crate::model::change::Change`]s, many in one commit; [`Reader`] answers queries, beside a
//! running controller or on the file of a stopped one; [`restart`] is what a controller needs to carry on from a file.
//! `docs/reference/database.md` tells users what is in the file. Nothing here knows a socket, a clock or the controller's core.
mod batch;
mod buffers;
mod bundles;
mod error;
mod expired;
mod file;
mod find;
mod jobs;
mod large;
mod outputs;
mod reader;
mod requests;
pub mod restart;
mod rows;
mod schema;
mod tasks;
#[cfg(test)]
mod tests;
mod values;
mod writer;

pub use error::{DbError, DbErrorKind};
pub use file::{note_loss, noted_loss};
pub use large::made_directory as made_buffers_directory;
pub use reader::Reader;
pub use requests::RequestRecord;
pub use values::FoundValue;
pub use writer::Writer;

/// The guarantee of a completed commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// Survives the end of the process (`kill -9` too). A power failure may lose the last moments, never damage the file.
    #[default]
    Normal,
    /// Survives a power failure: each commit waits for the disk.
    Full,
}
