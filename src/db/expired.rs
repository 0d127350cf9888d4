//! Finds expired records for the controller to delete.
use super::batch::row_range;
use super::{DbError, Reader};
use crate::model::definition::CLIENT_KIND;
use crate::model::{MapId, UnixTime};
use rusqlite::params;

/// Maximum number of tasks in one result, unless a single map has more.
const MAX_TASKS: u32 = 1000;
/// Maximum number of requests in one result.
const MAX_REQUESTS: usize = 200;
/// The number of oldest requests checked in each submission.
const SCAN_LIMIT: i64 = 1000;

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Expired {
    pub maps: Vec<MapId>,
    /// Message ids.
    pub requests: Vec<String>,
    /// Submissions of ipyparallel clients without any request.
    pub empty: Vec<MapId>,
}

impl Reader {
    /// Returns the oldest records that finished before this time; at least some, if any exist.
    pub(crate) fn expired(&self, before: UnixTime) -> Result<Expired, DbError> {
        self.read("find expired records in", |connection| {
            let mut expired = Expired::default();
            let mut select = connection.prepare_cached("SELECT id, total FROM map WHERE completed < ?1 ORDER BY completed, id LIMIT ?2")?;
            let mut rows = select.query(params![before.0, MAX_TASKS])?;
            let mut tasks = 0;
            while let Some(row) = rows.next()? {
                tasks += row.get::<_, u32>(1)?;
                if tasks > MAX_TASKS && !expired.maps.is_empty() {
                    break;
                }
                expired.maps.push(MapId(row.get(0)?));
            }
            let mut select = connection.prepare_cached("SELECT id, total FROM map WHERE kind = ?1 AND submitted < ?2 ORDER BY id")?;
            let sessions: Vec<(u32, u32)> = select
                .query_map(params![CLIENT_KIND, before.0], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<Result<_, _>>()?;
            let sql = "SELECT r.msg_id FROM (SELECT id, completed FROM task WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3) t \
                       JOIN request r ON r.task = t.id WHERE t.completed < ?4 ORDER BY t.id LIMIT ?5";
            let mut select = connection.prepare_cached(sql)?;
            for (map, total) in sessions {
                let map = MapId(map);
                let room = MAX_REQUESTS - expired.requests.len();
                if total == 0 {
                    expired.empty.push(map);
                } else if room > 0 {
                    let (first, last) = row_range(map);
                    let found = select.query_map(params![first, last, SCAN_LIMIT, before.0, room as i64], |row| row.get(0))?;
                    for msg_id in found {
                        expired.requests.push(msg_id?);
                    }
                }
            }
            Ok(expired)
        })
    }
}
