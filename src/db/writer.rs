//! The one that writes: changes in, commits out.
use super::{DbError, Durability, Reader};
use crate::model::change::Change;
use std::path::Path;

pub struct Writer {}

impl Writer {
    /// Opens the file, creates it (0600) where there is none, brings an older schema up to date.
    pub fn open(path: &Path, durability: Durability) -> Result<Writer, DbError> {
        todo!()
    }
    /// Applies the changes in one transaction: all of them, or after an error none (the same call may then be repeated).
    /// What a change says of a map, task or request that is not there is logged and passed over.
    pub fn apply(&mut self, changes: &[Change]) -> Result<(), DbError> {
        todo!()
    }
    /// A reader beside this writer, for another thread. On a network file system it shares the writer's connection.
    pub fn reader(&self) -> Result<Reader, DbError> {
        todo!()
    }
    /// Writes the log back into the file and closes it. Dropping does the same but cannot tell of failure.
    pub fn close(self) -> Result<(), DbError> {
        todo!()
    }
}
