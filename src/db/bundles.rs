//! Reads the code of maps: see [`crate::model::bundle`].
use super::reader::Reader;
use super::{DbError, schema};
use crate::model::bundle::Bundle;
use crate::model::definition::{BundleRef, MapDefinition};
use bytes::Bytes;
use rusqlite::OptionalExtension;
use std::collections::BTreeMap;
use std::sync::Arc;

const OPERATION: &str = "read the code of a map from";

impl Reader {
    /// The content of a bundle; None if it or its file does not exist.
    pub(crate) fn bundle(&self, hash: &str) -> Result<Option<Bytes>, DbError> {
        self.read(OPERATION, |connection| {
            // A file that is only read is not migrated.
            if schema::version(connection)? < 9 {
                return Ok(None);
            }
            let mut select = connection.prepare_cached("SELECT content FROM bundle WHERE hash = ?1")?;
            let list = select.query_row([hash], |row| self.large.list(row, 0)).optional()?;
            Ok(list.and_then(|list| list.into_iter().next()))
        })
    }

    /// The definition with its code, if that is recorded and intact.
    pub(crate) fn with_bundle(&self, mut definition: MapDefinition) -> Result<MapDefinition, DbError> {
        if let Some(named) = definition.bundle_mut().filter(|named| named.content.is_none()) {
            let found = self.bundle(&named.hash)?.map(Bundle::from);
            let is_whole = |bundle: &Bundle| bundle.hash == named.hash;
            named.content = found.filter(is_whole).map(Arc::new);
            if named.content.is_none() {
                tracing::warn!(hash = named.hash, "the code of a map is not on record any more");
            }
        }
        Ok(definition)
    }

    /// A hash of each file of a bundle, by its path.
    pub(crate) fn file_hashes(&self, named: &BundleRef) -> Result<BTreeMap<String, String>, DbError> {
        let content = match &named.content {
            Some(bundle) => Some(bundle.content.clone()),
            None => self.bundle(&named.hash)?,
        };
        let hashes = content.map(|content| Bundle::from(content).hashes());
        hashes
            .transpose()
            .map(Option::unwrap_or_default)
            .map_err(|cause| self.bad_query(OPERATION, &cause))
    }
}
