//! Maps and their counters.
use super::{Batch, Counted};
use crate::db::rows;
use crate::model::definition::MapDefinition;
use crate::model::task::{Counts, TaskState};
use crate::model::{MapId, TaskId, UnixTime};
use rusqlite::{OptionalExtension, params};

/// The first and the last row id that a map's tasks can have.
pub(crate) fn row_range(map: MapId) -> (i64, i64) {
    (TaskId::new(map, 0).row_id(), TaskId::new(map, u32::MAX).row_id())
}

impl Batch<'_> {
    /// The map's counters; None, and a log entry, if there is no such map.
    pub(super) fn counted(&mut self, map: MapId, change: &str) -> rusqlite::Result<Option<&mut Counted>> {
        use std::collections::hash_map::Entry;
        let counted = match self.maps.entry(map) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let mut load = self
                    .connection
                    .prepare_cached("SELECT total, ok, error, aborted, timeout, lost, running, assigned, kind FROM map WHERE id = ?1")?;
                let found = load.query_row([map.0], |row| {
                    let counts = rows::counts(row, 0)?;
                    Ok(Counted {
                        counts,
                        written: counts,
                        is_client: row.get_ref(8)?.as_str()? == crate::model::definition::CLIENT_KIND,
                    })
                });
                entry.insert(found.optional()?)
            }
        };
        if counted.is_none() {
            tracing::warn!(%map, change, "change ignored: unknown map");
        }
        Ok(counted.as_mut())
    }

    /// A task of the map went from one state to another.
    pub(super) fn count_step(&mut self, map: MapId, from: TaskState, to: TaskState) -> rusqlite::Result<()> {
        self.count_steps(map, from, to, 1)
    }

    pub(super) fn count_steps(&mut self, map: MapId, from: TaskState, to: TaskState, tasks: u64) -> rusqlite::Result<()> {
        if let Some(counted) = self.counted(map, "counters")? {
            if let Some(counter) = counter(&mut counted.counts, from) {
                *counter = counter.saturating_sub(tasks);
            }
            if let Some(counter) = counter(&mut counted.counts, to) {
                *counter += tasks;
            }
        }
        Ok(())
    }

    pub(super) fn write_counters(&mut self) -> rusqlite::Result<()> {
        let sql = "UPDATE map SET total = ?2, ok = ?3, error = ?4, aborted = ?5, timeout = ?6, lost = ?7, assigned = ?8, running = ?9 \
                   WHERE id = ?1";
        let mut write = self.connection.prepare_cached(sql)?;
        for (map, counted) in &mut self.maps {
            let Some(Counted { counts: c, written, .. }) = counted else {
                continue;
            };
            if c != written {
                let n = [c.total, c.ok, c.error, c.aborted, c.timeout, c.lost, c.assigned, c.running].map(|n| n as i64);
                write.execute(params![map.0, n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7]])?;
                *written = *c;
            }
        }
        Ok(())
    }

    pub(super) fn map_added(&mut self, map: MapId, definition: &MapDefinition, client: &str, submitted: UnixTime) -> rusqlite::Result<()> {
        let sql = "INSERT OR IGNORE INTO map (id, kind, name, label, client, submitted, definition, bundle) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        self.add_bundle(definition)?;
        let options = &definition.options;
        let name = options.name.clone().unwrap_or_else(|| definition.work.default_name());
        let json = serde_json::to_string(definition).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        let mut add = self.connection.prepare_cached(sql)?;
        add.execute(params![
            map.0,
            definition.work.kind(),
            name,
            options.label,
            client,
            submitted.0,
            json,
            definition.bundle().map(|bundle| &bundle.hash),
        ])?;
        // An earlier change in this batch may have cached that it does not exist.
        if let Some(None) = self.maps.get(&map) {
            self.maps.remove(&map);
        }
        Ok(())
    }

    /// Stores the code that a definition names, unless it exists.
    fn add_bundle(&mut self, definition: &MapDefinition) -> rusqlite::Result<()> {
        let Some(bundle) = definition.bundle().and_then(|named| named.content.as_ref()) else {
            return Ok(());
        };
        let sql = "INSERT OR IGNORE INTO bundle (hash, files, bytes, content) VALUES (?1, ?2, ?3, ?4)";
        let files = bundle.files().map_or(0, |files| files.len());
        let content = self.buffers(std::slice::from_ref(&bundle.content));
        let mut add = self.connection.prepare_cached(sql)?;
        add.execute(params![bundle.hash, files as i64, bundle.content.len() as i64, content])?;
        Ok(())
    }

    /// The map's tasks use other code from now on; the previous one stays recorded.
    pub(super) fn code_replaced(&mut self, map: MapId, definition: &MapDefinition) -> rusqlite::Result<()> {
        self.add_bundle(definition)?;
        let keep = "INSERT INTO earlier_code (map, code, definition, bundle) SELECT id, code, definition, bundle FROM map WHERE id = ?1";
        self.connection.prepare_cached(keep)?.execute([map.0])?;
        let json = serde_json::to_string(definition).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        let hash = definition.bundle().map(|bundle| &bundle.hash);
        let replace = "UPDATE map SET definition = ?2, bundle = ?3, code = code + 1 WHERE id = ?1";
        self.connection.prepare_cached(replace)?.execute(params![map.0, json, hash])?;
        Ok(())
    }

    pub(super) fn map_closed(&mut self, map: MapId, total: u32) -> rusqlite::Result<()> {
        let Some(counted) = self.counted(map, "MapClosed")? else {
            return Ok(());
        };
        if counted.counts.total != u64::from(total) {
            tracing::warn!(%map, total, recorded = counted.counts.total, "the map is closed with another number of tasks than were recorded");
        }
        self.connection
            .prepare_cached("UPDATE map SET closed = 1 WHERE id = ?1")?
            .execute([map.0])?;
        Ok(())
    }

    pub(super) fn client_known(&mut self, map: MapId, curve_key: &str) -> rusqlite::Result<()> {
        let sql = "UPDATE map SET definition = json_set(definition, '$.work.curve_key', ?2) WHERE id = ?1 AND kind = ?3";
        let mut write = self.connection.prepare_cached(sql)?;
        write.execute(params![map.0, curve_key, crate::model::definition::CLIENT_KIND])?;
        Ok(())
    }

    pub(super) fn map_priority(&mut self, map: MapId, priority: i32) -> rusqlite::Result<()> {
        let sql = "UPDATE map SET definition = json_set(definition, '$.options.priority', ?2) WHERE id = ?1";
        self.connection.prepare_cached(sql)?.execute(params![map.0, priority])?;
        Ok(())
    }

    pub(super) fn map_released(&mut self, map: MapId) -> rusqlite::Result<()> {
        let (first, last) = row_range(map);
        let sql = "UPDATE task SET state = 'ready' WHERE id BETWEEN ?1 AND ?2 AND state = 'waiting'";
        self.connection.prepare_cached(sql)?.execute([first, last])?;
        Ok(())
    }

    pub(super) fn map_completed(&mut self, map: MapId, at: Option<UnixTime>) -> rusqlite::Result<()> {
        let mut complete = self.connection.prepare_cached("UPDATE map SET completed = ?2 WHERE id = ?1")?;
        if complete.execute(params![map.0, at.map(|at| at.0)])? == 0 {
            tracing::warn!(%map, "MapCompleted not recorded: the database has no such map");
        }
        Ok(())
    }
}

/// The counter of tasks in that state; waiting and ready ones are the rest of the total.
fn counter(counts: &mut Counts, state: TaskState) -> Option<&mut u64> {
    match state {
        TaskState::Assigned => Some(&mut counts.assigned),
        TaskState::Running => Some(&mut counts.running),
        done => counts.done_counter(done),
    }
}
