//! Recorded batch jobs, and engines that left theirs.
use super::{DbError, Reader};
use crate::model::UnixTime;
use crate::model::job::{Departure, JobRow};

impl Reader {
    /// All jobs in order of submission; none in a file of a version without jobs.
    pub(crate) fn jobs(&self) -> Result<Vec<JobRow>, DbError> {
        self.read("read jobs from", |connection| {
            let is_there = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'job')";
            if !connection.query_row(is_there, [], |row| row.get::<_, bool>(0))? {
                return Ok(Vec::new());
            }
            let sql = "SELECT launcher, id, name, element, engines, replaces, submitted, state, reason, over, since FROM job \
                       ORDER BY submitted, name, element";
            let mut select = connection.prepare_cached(sql)?;
            let found = select.query_map([], |row| {
                Ok(JobRow {
                    launcher: row.get(0)?,
                    job: row.get(1)?,
                    name: row.get(2)?,
                    element: row.get(3)?,
                    engines: row.get(4)?,
                    replaces: row.get(5)?,
                    submitted: UnixTime(row.get(6)?),
                    state: row.get(7)?,
                    reason: row.get(8)?,
                    over: row.get(9)?,
                    out_of_memory: false,
                    since: UnixTime(row.get(10)?),
                })
            })?;
            found.collect()
        })
    }

    /// Engines of batch jobs that left since then.
    pub(crate) fn departures(&self, since: UnixTime) -> Result<Vec<Departure>, DbError> {
        self.read("read engines from", |connection| {
            let sql = "SELECT job, reason, registered, gone, ends FROM engine WHERE job <> '' AND gone >= ?1 ORDER BY gone";
            let mut select = connection.prepare_cached(sql)?;
            let found = select.query_map([since.0], |row| {
                Ok(Departure {
                    job: row.get(0)?,
                    reason: row.get::<_, Option<String>>(1)?.unwrap_or_default().into(),
                    registered: UnixTime(row.get(2)?),
                    gone: UnixTime(row.get(3)?),
                    ends: row.get::<_, Option<f64>>(4)?.map(UnixTime),
                })
            })?;
            found.collect()
        })
    }
}
