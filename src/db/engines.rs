//! Recorded engines, also those that have left.
use super::{DbError, Reader};
use crate::model::engine::{EngineFacts, EngineRow};
use crate::model::job::is_job;
use crate::model::query::EngineQuery;
use crate::model::{EngineId, UnixTime};
use rusqlite::{Row, params_from_iter};

/// The first versions of the file that record the job of an engine, and what its node has.
const JOBS_SINCE: i32 = 4;
const NODES_SINCE: i32 = 12;

impl Reader {
    /// The engines in the order of their registration.
    pub(crate) fn engines(&self, query: &EngineQuery) -> Result<Vec<EngineRow>, DbError> {
        let (condition, values) = match query {
            EngineQuery::OfTask(task) => (
                "id IN (SELECT engine FROM attempt WHERE task = ?1 UNION SELECT engine FROM task WHERE id = ?1)",
                vec![task.row_id()],
            ),
            EngineQuery::Id(id) => ("id = ?1", vec![i64::from(id.0)]),
            EngineQuery::OfJob(_) if self.version() < JOBS_SINCE => return Ok(Vec::new()),
            EngineQuery::OfJob(_) => ("job <> ''", Vec::new()),
        };
        let job = if self.version() < JOBS_SINCE { "'', NULL" } else { "job, ends" };
        let node = if self.version() < NODES_SINCE { "NULL" } else { "node" };
        let sql = format!(
            "SELECT uuid, id, host, pid, version, python, capabilities, registered, gone, reason, {job}, {node} FROM engine \
             WHERE {condition} ORDER BY registered"
        );
        let mut found = self.read("read engines from", |connection| {
            let mut select = connection.prepare_cached(&sql)?;
            let found = select.query_map(params_from_iter(values), engine_row)?;
            found.collect::<Result<Vec<_>, _>>()
        })?;
        if let EngineQuery::OfJob(asked) = query {
            found.retain(|engine| is_job(&engine.facts.job, asked));
        }
        Ok(found)
    }
}

fn engine_row(row: &Row) -> rusqlite::Result<EngineRow> {
    // An unreadable list of a later version is no reason to show nothing.
    let json = |column| -> rusqlite::Result<String> { Ok(row.get::<_, Option<String>>(column)?.unwrap_or_default()) };
    Ok(EngineRow {
        id: EngineId(row.get(1)?),
        facts: EngineFacts {
            uuid: row.get::<_, String>(0)?.as_str().into(),
            host: row.get(2)?,
            pid: row.get(3)?,
            version: row.get(4)?,
            python: row.get(5)?,
            capabilities: serde_json::from_str(&json(6)?).unwrap_or_default(),
            job: row.get(10)?,
            ends: row.get::<_, Option<f64>>(11)?.map(UnixTime),
            node: serde_json::from_str(&json(12)?).unwrap_or_default(),
        },
        registered: UnixTime(row.get(7)?),
        gone: row.get::<_, Option<f64>>(8)?.map(UnixTime),
        reason: row.get(9)?,
    })
}
