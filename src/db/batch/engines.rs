//! Engines: all that ever registered.
use super::Batch;
use crate::model::engine::EngineFacts;
use crate::model::{EngineId, EngineUuid, UnixTime};
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashMap;
use std::sync::Arc;

/// Uuid and host.
type Identity = (Arc<str>, Arc<str>);

/// State that the writer keeps between batches.
pub(crate) struct WriterState {
    /// By visible id: the latest engine with that id.
    engines: HashMap<EngineId, Option<Identity>>,
    /// `output` may contain rows, which finishing tasks must merge.
    pub(super) output: bool,
    /// Cleanup after a purge is pending.
    pub untidy: bool,
    /// Maximum size of an outcome, so that the task fits in one row (SQLite's limit is 10⁹ bytes).
    pub largest_outcome: usize,
}

impl WriterState {
    pub(crate) fn load(connection: &Connection) -> rusqlite::Result<WriterState> {
        Ok(WriterState {
            engines: HashMap::new(),
            output: connection.query_row("SELECT EXISTS (SELECT 1 FROM output)", [], |row| row.get(0))?,
            untidy: connection.query_row("SELECT EXISTS (SELECT 1 FROM purging)", [], |row| row.get(0))?,
            largest_outcome: 900_000_000,
        })
    }
    /// After a rollback.
    pub(crate) fn clear(&mut self) {
        self.engines.clear();
    }
}

impl Batch<'_> {
    fn engine(&mut self, id: EngineId) -> rusqlite::Result<Option<&Identity>> {
        use std::collections::hash_map::Entry;
        let entry = match self.known.engines.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let sql = "SELECT uuid, host FROM engine WHERE id = ?1 ORDER BY registered DESC LIMIT 1";
                let mut load = self.connection.prepare_cached(sql)?;
                let found = load.query_row([id.0], |row| Ok((row.get(0)?, row.get(1)?)));
                entry.insert(found.optional()?)
            }
        };
        Ok(entry.as_ref())
    }

    pub(super) fn host(&mut self, id: Option<EngineId>) -> rusqlite::Result<Option<Arc<str>>> {
        let Some(id) = id else { return Ok(None) };
        Ok(self.engine(id)?.map(|(_, host)| host.clone()).filter(|host| !host.is_empty()))
    }

    pub(super) fn uuid(&mut self, id: EngineId) -> rusqlite::Result<Option<Arc<str>>> {
        Ok(self.engine(id)?.map(|(uuid, _)| uuid.clone()))
    }

    pub(super) fn id_of(&self, uuid: &EngineUuid) -> rusqlite::Result<Option<EngineId>> {
        let mut load = self.connection.prepare_cached("SELECT id FROM engine WHERE uuid = ?1")?;
        load.query_row([&*uuid.0], |row| row.get(0).map(EngineId)).optional()
    }

    pub(super) fn engine_registered(&mut self, id: EngineId, facts: &EngineFacts, at: UnixTime) -> rusqlite::Result<()> {
        let sql = "INSERT INTO engine (uuid, id, host, pid, version, python, capabilities, registered, job, ends, node) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) \
                   ON CONFLICT (uuid) DO UPDATE SET id = excluded.id, host = excluded.host, pid = excluded.pid, \
                   version = excluded.version, python = excluded.python, capabilities = excluded.capabilities, \
                   registered = excluded.registered, job = excluded.job, ends = excluded.ends, \
                   node = excluded.node, gone = NULL, reason = NULL";
        let capabilities = serde_json::Value::from(facts.capabilities.clone()).to_string();
        let node = (!facts.node.is_empty()).then(|| serde_json::to_string(&facts.node).unwrap_or_default());
        let row = params![
            &*facts.uuid.0,
            id.0,
            facts.host,
            facts.pid,
            facts.version,
            facts.python,
            capabilities,
            at.0,
            facts.job,
            facts.ends.map(|ends| ends.0),
            node,
        ];
        self.connection.prepare_cached(sql)?.execute(row)?;
        self.known
            .engines
            .insert(id, Some((facts.uuid.0.clone(), facts.host.as_str().into())));
        Ok(())
    }

    pub(super) fn engine_gone(&mut self, uuid: &EngineUuid, at: UnixTime, reason: &str) -> rusqlite::Result<()> {
        let mut write = self
            .connection
            .prepare_cached("UPDATE engine SET gone = ?2, reason = ?3 WHERE uuid = ?1")?;
        if write.execute(params![&*uuid.0, at.0, reason])? == 0 {
            tracing::warn!(%uuid, "EngineGone not recorded: the database has no such engine");
        }
        Ok(())
    }
}
