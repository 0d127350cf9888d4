//! Every task, in SQLite: one file per cluster, written by its controller alone, read by anyone.
//!
//! [`Writer`] applies [`crate::model::change::Change`]s, many in one commit; [`Reader`] answers queries, beside a
//! running controller or on the file of a stopped one; [`restart`] is the state that a controller resumes from.
//! `docs/reference/database.md` documents the file for users. No socket, no clock, no controller here.
mod batch;
mod buffers;
mod bundles;
mod engines;
mod error;
mod expired;
mod file;
mod find;
mod jobs;
mod large;
mod outputs;
mod reader;
mod requests;
pub(crate) mod restart;
mod rows;
mod schema;
mod tasks;
#[cfg(test)]
mod tests;
mod transaction;
mod values;
mod writer;

pub(crate) use error::{DbError, DbErrorKind};
pub(crate) use file::{note_loss, noted_loss};
pub(crate) use large::made_directory as made_buffers_directory;
pub(crate) use reader::Reader;
pub(crate) use requests::RequestRecord;
pub(crate) use values::FoundValue;
pub(crate) use writer::Writer;

/// The guarantee of a completed commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Durability {
    /// Survives the end of the process (`kill -9` too). A power failure may lose the last moments, never damage the file.
    #[default]
    Normal,
    /// Survives a power failure: each commit waits for the disk.
    Full,
}
