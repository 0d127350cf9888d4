//! Forgetting: only what is finished.
use super::Batch;
use super::maps::row_range;
use crate::model::change::Purge;
use crate::model::{MapId, TaskId};
use rusqlite::{ToSql, params};

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
        }
    }

    fn purge_requests(&mut self, select: &str, params: &[&dyn ToSql]) -> rusqlite::Result<()> {
        let mut find = self.connection.prepare_cached(select)?;
        let found: Vec<i64> = find.query_map(params, |row| row.get(0))?.collect::<Result<_, _>>()?;
        for row in found {
            let task = TaskId::from_row_id(row);
            let Some(prior) = self.prior(task, "Purged")? else { continue };
            for sql in [
                "DELETE FROM request WHERE task = ?1",
                "DELETE FROM attempt WHERE task = ?1",
                "DELETE FROM output WHERE task = ?1",
                "DELETE FROM cancelling WHERE task = ?1",
                "DELETE FROM task WHERE id = ?1",
            ] {
                self.connection.prepare_cached(sql)?.execute([row])?;
            }
            if let Some(counted) = self.counted(task.map, "Purged")? {
                counted.counts.total = counted.counts.total.saturating_sub(1);
                if let Some(counter) = counted.counts.of_done(prior.state) {
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
            tracing::warn!(%map, pending = counted.counts.pending(), "the map is not forgotten: it is not finished");
            return Ok(());
        }
        let (first, last) = row_range(map);
        for sql in [
            "DELETE FROM request WHERE task BETWEEN ?1 AND ?2",
            "DELETE FROM attempt WHERE task BETWEEN ?1 AND ?2",
            "DELETE FROM output WHERE task BETWEEN ?1 AND ?2",
            "DELETE FROM cancelling WHERE task BETWEEN ?1 AND ?2",
            "DELETE FROM task WHERE id BETWEEN ?1 AND ?2",
        ] {
            self.connection.prepare_cached(sql)?.execute(params![first, last])?;
        }
        self.connection.prepare_cached("DELETE FROM map WHERE id = ?1")?.execute([map.0])?;
        self.maps.insert(map, None);
        Ok(())
    }
}
