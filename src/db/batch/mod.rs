//! Applies one transaction's changes. Map counters are cached and written once at the end.
//!
//! Parts: `maps` (maps and their counters), `tasks` (a task's steps), `outputs` (what it writes), `requests` (of ipyparallel clients), `engines`, `jobs`, `purge`.
mod engines;
mod jobs;
mod maps;
mod outputs;
mod purge;
mod requests;
mod tasks;

use super::Durability;
use super::outputs::Outputs;
use crate::model::change::Change;
use crate::model::output::Stream;
use crate::model::task::Counts;
use crate::model::{MapId, TaskId};
pub(super) use engines::WriterState;
pub(super) use maps::row_range;
pub(super) use purge::tidy;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, ToSql};
use std::borrow::Cow;
use std::collections::HashMap;

const ADD: &str = "INSERT OR IGNORE INTO task (id, state, submitted, input) VALUES (?1, ?2, ?3, ?4)";
const LOOK: &str = "SELECT state, run, attempts, engine FROM task WHERE id = ?1";
const END: &str = "UPDATE task SET state = ?2, run = ?3, attempts = ?4, engine = ?5, host = ?6, started = ?7, completed = ?8, \
                       exit_code = ?9, value = ?10, ename = ?11, evalue = ?12, type = ?13, stdout = ?14, stderr = ?15, \
                       traceback = ?16, pickled = ?17, peak_memory = ?18, cause = ?19 WHERE id = ?1";

/// A map in this batch.
struct Counted {
    counts: Counts,
    /// As recorded in the database.
    written: Counts,
    /// Its tasks are requests of an ipyparallel client.
    is_client: bool,
}

pub(super) struct Batch<'a> {
    connection: &'a Connection,
    known: &'a mut WriterState,
    outputs: &'a Outputs,
    durability: Durability,
    /// Files that are unused once this is committed.
    dropped: Vec<(TaskId, u32, Stream)>,
    /// Counters of the maps used in this batch; None: there is no such map.
    maps: HashMap<MapId, Option<Counted>>,
    /// The file of the change's buffers, if they are not in the row.
    stored: Option<String>,
    /// The statements that run once per task: looked up once per batch.
    add: CachedStatement<'a>,
    look: CachedStatement<'a>,
    end: CachedStatement<'a>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(
        connection: &'a Connection,
        known: &'a mut WriterState,
        (outputs, durability): (&'a Outputs, Durability),
    ) -> rusqlite::Result<Batch<'a>> {
        Ok(Batch {
            connection,
            known,
            outputs,
            durability,
            dropped: Vec::new(),
            maps: HashMap::new(),
            stored: None,
            add: connection.prepare_cached(ADD)?,
            look: connection.prepare_cached(LOOK)?,
            end: connection.prepare_cached(END)?,
        })
    }

    /// A change larger than SQLite's row limit is logged and skipped: a retry would fail too.
    pub(super) fn apply(&mut self, change: &Change, stored: Option<String>) -> rusqlite::Result<()> {
        self.stored = stored;
        match self.apply_one(change) {
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::TooBig) => {
                tracing::error!(%error, "change ignored: it exceeds the maximum row size");
                Ok(())
            }
            done => done,
        }
    }

    fn apply_one(&mut self, change: &Change) -> rusqlite::Result<()> {
        match change {
            Change::MapAdded {
                map,
                definition,
                client,
                submitted,
            } => self.map_added(*map, definition, client, *submitted),
            Change::TasksAdded {
                map,
                first,
                inputs,
                state,
                submitted,
            } => self.tasks_added(*map, *first, inputs, *state, *submitted),
            Change::CodeReplaced { map, definition } => self.code_replaced(*map, definition),
            Change::MapClosed { map, total } => self.map_closed(*map, *total),
            Change::MapPriority { map, priority } => self.map_priority(*map, *priority),
            Change::MapReleased { map } => self.map_released(*map),
            Change::ClientKnown { map, curve_key } => self.client_known(*map, curve_key),
            Change::TaskCancelling { task } => self.task_cancelling(*task),
            Change::TasksAssigned {
                map,
                first,
                count,
                run,
                engine,
            } => self.tasks_assigned(*map, *first, *count, *run, *engine),
            Change::TaskBegun {
                task,
                run,
                engine,
                started,
            } => self.task_begun(*task, *run, *engine, *started),
            Change::OutputAdded { task, stream, bytes } => self.output_added(*task, *stream, bytes),
            Change::TaskFinished {
                task,
                run,
                engine,
                outcome,
            } => self.task_finished(*task, *run, *engine, outcome),
            Change::TaskReturned { task, run, attempt } => self.task_returned(*task, *run, attempt.as_ref()),
            Change::TaskAsks { task, ask, used } => self.task_asks(*task, ask, used),
            Change::TaskResubmitted { task, run } => self.task_resubmitted(*task, *run),
            Change::MapCompleted { map, at } => self.map_completed(*map, *at),
            Change::EngineRegistered { id, facts, at } => self.engine_registered(*id, facts, *at),
            Change::EngineGone { uuid, at, reason, .. } => self.engine_gone(uuid, *at, reason),
            Change::JobsSeen { jobs } => self.jobs_seen(jobs),
            Change::RetentionClock { at } => self.retention_clock(*at),
            Change::RequestAdded { task, request } => self.request_added(*task, request),
            Change::RequestFinished { msg_id, reply } => self.request_finished(msg_id, reply),
            Change::RequestResubmitted { msg_id, new_id } => self.request_resubmitted(msg_id, new_id),
            Change::ReplyUndelivered { task } => self.reply_undelivered(*task),
            Change::RepliesDelivered { tasks } => self.replies_delivered(tasks),
            Change::RequestOutput { msg_id, output } => self.request_output(msg_id, output),
            Change::Purged { what } => self.purged(what),
        }
    }

    fn retention_clock(&mut self, at: crate::model::UnixTime) -> rusqlite::Result<()> {
        let sql = "INSERT INTO meta (key, value) VALUES ('retention_clock', ?1) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        self.connection.prepare_cached(sql)?.execute([at.0.to_string()]).map(drop)
    }

    /// Writes the counters. Returns the files to delete after the commit.
    pub(super) fn finish(mut self) -> rusqlite::Result<Vec<(TaskId, u32, Stream)>> {
        self.write_counters()?;
        Ok(std::mem::take(&mut self.dropped))
    }
}

/// Bytes that should be UTF-8, bound as text.
struct Text<'a>(&'a [u8]);

impl ToSql for Text<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match String::from_utf8_lossy(self.0) {
            Cow::Borrowed(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
            Cow::Owned(text) => text.into(),
        })
    }
}

/// NULL for an empty text, the most frequent output.
fn some_text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}
