//! Deletion of finished maps and requests.
use super::Batch;
use super::maps::row_range;
use crate::model::change::Purge;
use crate::model::{MapId, TaskId};
use rusqlite::{Connection, ToSql, params};

/// Tasks that are deleted in one transaction.
const STEP: u64 = 1000;
/// Pages returned to the file system in one transaction.
const PAGES: u32 = 500;

impl Batch<'_> {
    pub(super) fn purged(&mut self, what: &Purge) -> rusqlite::Result<()> {
        match what {
            Purge::AllRequests => {
                let all = "SELECT r.task FROM request r JOIN task t ON t.id = r.task WHERE t.completed IS NOT NULL";
                self.purge_requests(all, &[])
            }
            Purge::Requests(msg_ids) => {
                let one = "SELECT r.task FROM request r JOIN task t ON t.id = r.task WHERE t.completed IS NOT NULL AND r.msg_id = ?1";
                msg_ids.iter().try_for_each(|msg_id| self.purge_requests(one, &[msg_id]))
            }
            Purge::RequestsOfEngine(uuid) => {
                let of_engine =
                    "SELECT r.task FROM request r JOIN task t ON t.id = r.task WHERE t.completed IS NOT NULL AND r.engine_uuid = ?1";
                self.purge_requests(of_engine, &[&&*uuid.0])
            }
            Purge::Map(map) => self.purge_map(*map),
            Purge::EmptySession(map) => {
                let is_empty = self.counted(*map, "Purged")?.is_some_and(|counted| counted.counts.total == 0);
                if is_empty { self.purge_map(*map) } else { Ok(()) }
            }
        }
    }

    fn purge_requests(&mut self, select: &str, params: &[&dyn ToSql]) -> rusqlite::Result<()> {
        let mut find = self.connection.prepare_cached(select)?;
        let found: Vec<i64> = find.query_map(params, |row| row.get(0))?.collect::<Result<_, _>>()?;
        self.known.untidy |= !found.is_empty();
        for row in found {
            let task = TaskId::from_row_id(row);
            let Some(prior) = self.prior(task, "Purged")? else { continue };
            for sql in [
                "DELETE FROM request WHERE task = ?1",
                "DELETE FROM attempt WHERE task = ?1",
                "DELETE FROM output WHERE task = ?1",
                "DELETE FROM cancelling WHERE task = ?1",
                "DELETE FROM undelivered WHERE task = ?1",
                "DELETE FROM task WHERE id = ?1",
            ] {
                self.connection.prepare_cached(sql)?.execute([row])?;
            }
            if let Some(counted) = self.counted(task.map, "Purged")? {
                counted.counts.total = counted.counts.total.saturating_sub(1);
                if let Some(counter) = counted.counts.done_counter(prior.state) {
                    *counter = counter.saturating_sub(1);
                }
            }
        }
        Ok(())
    }

    fn purge_map(&mut self, map: MapId) -> rusqlite::Result<()> {
        let Some(counted) = self.counted(map, "Purged")? else {
            return Ok(());
        };
        if counted.counts.pending() > 0 {
            tracing::warn!(%map, pending = counted.counts.pending(), "map not deleted: it is not finished");
            return Ok(());
        }
        let in_one_step = counted.counts.total <= STEP;
        let bundles = "SELECT bundle FROM map WHERE id = ?1 AND bundle IS NOT NULL \
                       UNION SELECT bundle FROM earlier_code WHERE map = ?1 AND bundle IS NOT NULL";
        let mut bundles = self.connection.prepare_cached(bundles)?;
        let bundles: Vec<String> = bundles.query_map([map.0], |row| row.get(0))?.collect::<Result<_, _>>()?;
        for sql in ["DELETE FROM map WHERE id = ?1", "DELETE FROM earlier_code WHERE map = ?1"] {
            self.connection.prepare_cached(sql)?.execute([map.0])?;
        }
        remove_unused_bundles(self.connection, &bundles)?;
        self.maps.insert(map, None);
        self.known.untidy = true;
        match in_one_step {
            true => delete_tasks(self.connection, row_range(map)),
            // Without its map no query finds a task; its rows are deleted later.
            false => {
                let sql = "INSERT OR IGNORE INTO purging VALUES (?1)";
                self.connection.prepare_cached(sql)?.execute([map.0])?;
                Ok(())
            }
        }
    }
}

/// Removes those bundles that no map refers to.
fn remove_unused_bundles(connection: &Connection, hashes: &[String]) -> rusqlite::Result<()> {
    let sql = "DELETE FROM bundle WHERE hash = ?1 AND NOT EXISTS (SELECT 1 FROM map WHERE bundle = ?1) \
               AND NOT EXISTS (SELECT 1 FROM earlier_code WHERE bundle = ?1)";
    for hash in hashes {
        connection.prepare_cached(sql)?.execute([hash])?;
    }
    Ok(())
}

fn delete_tasks(connection: &Connection, (first, last): (i64, i64)) -> rusqlite::Result<()> {
    for sql in [
        "DELETE FROM request WHERE task BETWEEN ?1 AND ?2",
        "DELETE FROM attempt WHERE task BETWEEN ?1 AND ?2",
        "DELETE FROM output WHERE task BETWEEN ?1 AND ?2",
        "DELETE FROM cancelling WHERE task BETWEEN ?1 AND ?2",
        "DELETE FROM undelivered WHERE task BETWEEN ?1 AND ?2",
        "DELETE FROM task WHERE id BETWEEN ?1 AND ?2",
    ] {
        connection.prepare_cached(sql)?.execute([first, last])?;
    }
    Ok(())
}

/// One step of the cleanup after a purge: deletes the tasks of purged maps, then returns free pages to the file system.
/// Returns whether work remains.
pub(crate) fn tidy(connection: &Connection) -> rusqlite::Result<bool> {
    let map = connection.query_row("SELECT min(map) FROM purging", [], |row| row.get::<_, Option<u32>>(0))?;
    if let Some(map) = map.map(MapId) {
        let (first, last) = row_range(map);
        let end = "SELECT max(id) FROM (SELECT id FROM task WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3)";
        let end: Option<i64> = connection.query_row(end, params![first, last, STEP as i64], |row| row.get(0))?;
        match end {
            Some(end) => delete_tasks(connection, (first, end))?,
            None => {
                connection.execute("DELETE FROM purging WHERE map = ?1", [map.0])?;
            }
        }
        return Ok(true);
    }
    let free = |connection: &Connection| connection.pragma_query_value(None, "freelist_count", |row| row.get::<_, i64>(0));
    let before = free(connection)?;
    if before == 0 {
        return Ok(false);
    }
    // It frees one page per row that it returns.
    let mut vacuum = connection.prepare(&format!("PRAGMA incremental_vacuum({PAGES})"))?;
    let mut pages = vacuum.query([])?;
    while pages.next()?.is_some() {}
    // A file created by an older version does not shrink.
    let after = free(connection)?;
    Ok(after > 0 && after < before)
}
