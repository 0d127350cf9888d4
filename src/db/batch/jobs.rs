//! Jobs of a batch system, as they are seen.
use super::Batch;
use crate::model::job::JobRow;
use rusqlite::params;

impl Batch<'_> {
    /// One that is seen as before keeps its `since`.
    pub(super) fn jobs_seen(&mut self, jobs: &[JobRow]) -> rusqlite::Result<()> {
        let sql = "INSERT INTO job (name, element, launcher, id, engines, replaces, submitted, state, reason, over, since) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) \
                   ON CONFLICT (name, element) DO UPDATE SET id = excluded.id, engines = excluded.engines, state = excluded.state, \
                   reason = excluded.reason, over = excluded.over, since = excluded.since \
                   WHERE state <> excluded.state OR reason <> excluded.reason OR over <> excluded.over";
        let mut write = self.connection.prepare_cached(sql)?;
        for job in jobs {
            write.execute(params![
                job.name,
                job.element,
                job.launcher,
                job.job,
                job.engines,
                job.replaces,
                job.submitted.0,
                job.state,
                job.reason,
                job.over,
                job.since.0,
            ])?;
        }
        Ok(())
    }
}
