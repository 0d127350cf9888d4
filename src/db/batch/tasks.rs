//! Task transitions. Each first checks the current state of the task, so that duplicate or late reports change nothing.
use super::maps::row_range;
use super::outputs::Before;
use super::{Batch, Text, some_text};
use crate::db::rows::state_of;
use crate::model::change::{Attempt, UsedRetries};
use crate::model::output::Stream;
use crate::model::task::{Ask, Cause, Outcome, TaskState};
use crate::model::{EngineId, MapId, TaskId, UnixTime};
use bytes::Bytes;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{OptionalExtension, params};

/// A task before a change.
pub(super) struct Prior {
    pub state: TaskState,
    pub run: u32,
    pub attempts: u32,
    pub engine: Option<EngineId>,
}

impl Prior {
    /// The number of attempts after one ended with this outcome. The start of a short attempt is not reported.
    fn attempts_after(&self, engine: Option<EngineId>, outcome: &Outcome) -> u32 {
        let begun_untold = self.state != TaskState::Running && begun(engine, outcome);
        self.attempts + u32::from(begun_untold)
    }
}

/// False for a task cancelled before an engine started it.
fn begun(engine: Option<EngineId>, outcome: &Outcome) -> bool {
    engine.is_some() && (outcome.status != TaskState::Aborted || outcome.ended > outcome.started)
}

impl Batch<'_> {
    pub(super) fn prior(&mut self, task: TaskId, change: &str) -> rusqlite::Result<Option<Prior>> {
        let found = self.look.query_row([task.row_id()], |row| {
            let state = row.get_ref(0)?.as_str()?;
            Ok(Prior {
                state: state_of(state)?,
                run: row.get(1)?,
                attempts: row.get(2)?,
                engine: row.get::<_, Option<u32>>(3)?.map(EngineId),
            })
        });
        let found = found.optional()?;
        if found.is_none() {
            tracing::warn!(%task, change, "change ignored: unknown task");
        }
        Ok(found)
    }

    pub(super) fn tasks_added(
        &mut self,
        map: MapId,
        first: u32,
        inputs: &[Bytes],
        state: TaskState,
        submitted: UnixTime,
    ) -> rusqlite::Result<()> {
        if self.counted(map, "TasksAdded")?.is_none() {
            return Ok(());
        }
        if u64::from(first) + inputs.len() as u64 > u64::from(u32::MAX) {
            tracing::warn!(%map, first, inputs = inputs.len(), "TasksAdded not recorded: a map has at most 4,294,967,295 tasks");
            return Ok(());
        }
        let mut added = 0;
        self.add.raw_bind_parameter(2, state.as_str())?;
        self.add.raw_bind_parameter(3, submitted.0)?;
        for (row, input) in (TaskId::new(map, first).row_id()..).zip(inputs) {
            self.add.raw_bind_parameter(1, row)?;
            match self.outputs.keep_input(row, input, self.durability)? {
                Some(in_file) => self.add.raw_bind_parameter(4, in_file)?,
                None => self.add.raw_bind_parameter(4, Text(input))?,
            }
            added += self.add.raw_execute()?;
        }
        if let Some(counted) = self.counted(map, "TasksAdded")? {
            counted.counts.total += added as u64;
        }
        Ok(())
    }

    pub(super) fn tasks_assigned(&mut self, map: MapId, first: u32, count: u32, run: u32, engine: EngineId) -> rusqlite::Result<()> {
        let Some(is_client) = self.counted(map, "TasksAssigned")?.map(|c| c.is_client) else {
            return Ok(());
        };
        if count == 0 {
            return Ok(());
        }
        let rows = (
            TaskId::new(map, first).row_id(),
            TaskId::new(map, first).row_id() + i64::from(count) - 1,
        );
        let rows = (rows.0, rows.1.min(row_range(map).1));
        let sql = "UPDATE task SET state = 'assigned', run = ?3, engine = ?4 WHERE id BETWEEN ?1 AND ?2 AND state IN ('ready', 'waiting')";
        let mut left = u64::from(count);
        let mut assigned = self
            .connection
            .prepare_cached(sql)?
            .execute(params![rows.0, rows.1, run, engine.0])? as u64;
        self.count_steps(map, TaskState::Ready, TaskState::Assigned, assigned)?;
        left = left.saturating_sub(assigned);
        // Rare: from one engine to another without a return between.
        for (state, from) in [("assigned", TaskState::Assigned), ("running", TaskState::Running)] {
            if left == 0 {
                break;
            }
            let sql = "UPDATE task SET state = 'assigned', run = ?3, engine = ?4, host = NULL, started = NULL \
                       WHERE id BETWEEN ?1 AND ?2 AND state = ?5 AND run < ?3";
            assigned = self
                .connection
                .prepare_cached(sql)?
                .execute(params![rows.0, rows.1, run, engine.0, state])? as u64;
            self.count_steps(map, from, TaskState::Assigned, assigned)?;
            left = left.saturating_sub(assigned);
        }
        if is_client {
            let uuid = self.uuid(engine)?;
            let sql = "UPDATE request SET engine_uuid = ?3 WHERE task BETWEEN ?1 AND ?2";
            self.connection.prepare_cached(sql)?.execute(params![rows.0, rows.1, uuid])?;
        }
        Ok(())
    }

    pub(super) fn task_begun(&mut self, task: TaskId, run: u32, engine: EngineId, started: UnixTime) -> rusqlite::Result<()> {
        let Some(prior) = self.prior(task, "TaskBegun")? else {
            return Ok(());
        };
        if prior.state.is_done() || run < prior.run || (run == prior.run && prior.state == TaskState::Running) {
            return Ok(());
        }
        let host = self.host(Some(engine))?;
        let sql = "UPDATE task SET state = 'running', run = ?2, attempts = ?3, engine = ?4, host = ?5, started = ?6 WHERE id = ?1";
        let mut write = self.connection.prepare_cached(sql)?;
        write.execute(params![task.row_id(), run, prior.attempts + 1, engine.0, host, started.0])?;
        self.count_step(task.map, prior.state, TaskState::Running)
    }

    pub(super) fn task_cancelling(&mut self, task: TaskId) -> rusqlite::Result<()> {
        let sql = "INSERT OR REPLACE INTO cancelling SELECT id, run FROM task WHERE id = ?1 AND completed IS NULL";
        self.connection.prepare_cached(sql)?.execute([task.row_id()])?;
        Ok(())
    }

    pub(super) fn task_finished(&mut self, task: TaskId, run: u32, engine: Option<EngineId>, outcome: &Outcome) -> rusqlite::Result<()> {
        if !outcome.status.is_done() {
            tracing::warn!(%task, state = %outcome.status, "TaskFinished not recorded: that is not a finished state");
            return Ok(());
        }
        let Some(mut prior) = self.prior(task, "TaskFinished")? else {
            return Ok(());
        };
        if prior.state.is_done() {
            if run <= prior.run {
                return Ok(());
            }
            self.reopen(task, &prior, run)?;
            prior.state = TaskState::Ready;
            prior.engine = None;
        }
        let engine = engine.or(prior.engine);
        let was_begun = prior.state == TaskState::Running || begun(engine, outcome);
        let attempts = prior.attempts_after(engine, outcome);
        let host = self.host(engine)?;
        let [stdout, stderr, value] = self.take_output(task)?;
        let long = self.long_value(task, value, outcome);
        let stdout = self.column(task, run, Stream::Stdout, stdout, &outcome.stdout)?;
        let stderr = self.column(task, run, Stream::Stderr, stderr, &outcome.stderr)?;
        let instead = self.instead(outcome, long.is_some());
        let outcome = instead.as_ref().unwrap_or(outcome);
        let error = outcome.error.as_ref();
        let [value, pickled] = value_columns(outcome, &long);
        self.end.execute(params![
            task.row_id(),
            outcome.status.as_str(),
            run.max(prior.run),
            attempts,
            engine.map(|e| e.0),
            host,
            was_begun.then_some(outcome.started.0),
            outcome.ended.0,
            outcome.exit_code,
            value,
            error.map(|e| &e.ename),
            error.map(|e| &e.evalue),
            outcome.pickled.as_ref().map(|p| &p.python_type),
            stdout,
            stderr,
            error.and_then(|e| some_text(&e.traceback)),
            pickled,
            peak_memory(outcome),
            outcome.cause().as_ref().map(Cause::as_str),
        ])?;
        self.count_step(task.map, prior.state, outcome.status)
    }

    /// The outcome to record instead of one that is too large for a row, or whose long value was not recorded.
    fn instead(&self, outcome: &Outcome, is_long: bool) -> Option<Outcome> {
        let bytes = outcome.bytes() - outcome.stdout.bytes.len() - outcome.stderr.bytes.len();
        let largest = self.known.largest_outcome;
        let missing = outcome.value_size.filter(|_| !is_long);
        (bytes > largest || missing.is_some()).then(|| {
            let (ename, why) = match missing {
                Some(size) => ("ValueLost", format!("the {size} bytes of the value are not on record")),
                None => (
                    "ResultTooLarge",
                    format!("the value has {bytes} bytes; the database keeps at most {largest} of a task"),
                ),
            };
            let status = if outcome.status == TaskState::Ok {
                TaskState::Error
            } else {
                outcome.status
            };
            let mut instead = Outcome::failure(status, ename, why, outcome.started, outcome.ended);
            (instead.exit_code, instead.crashed) = (outcome.exit_code, outcome.crashed);
            (instead.cause, instead.peak_memory) = (outcome.cause.clone(), outcome.peak_memory);
            instead
        })
    }

    pub(super) fn task_returned(&mut self, task: TaskId, run: u32, attempt: Option<&Attempt>) -> rusqlite::Result<()> {
        let Some(mut prior) = self.prior(task, "TaskReturned")? else {
            return Ok(());
        };
        if prior.state.is_done() {
            if run <= prior.run {
                return Ok(());
            }
            self.reopen(task, &prior, run)?;
            prior.state = TaskState::Ready;
        } else if run < prior.run || (run == prior.run && prior.state == TaskState::Ready) {
            return Ok(());
        }
        let (mut attempts, mut crashes, mut failures) = (prior.attempts, 0, 0);
        if attempt.is_none() {
            let [.., value] = self.take_output(task)?;
            self.drop_value(task, value);
        }
        if let Some(Attempt { engine, outcome }) = attempt {
            let before = self.take_output(task)?;
            attempts = prior.attempts_after(Some(*engine), outcome);
            crashes = u32::from(outcome.crashed);
            failures = u32::from(outcome.status.is_failed() && !outcome.crashed);
            self.add_attempt(task, prior.run, *engine, outcome, before)?;
        }
        let sql = "UPDATE task SET state = 'ready', run = ?2, attempts = ?3, crashes = crashes + ?4, failures = failures + ?5, \
                   engine = NULL, host = NULL, started = NULL WHERE id = ?1";
        self.connection
            .prepare_cached(sql)?
            .execute(params![task.row_id(), run, attempts, crashes, failures])?;
        self.count_step(task.map, prior.state, TaskState::Ready)
    }

    fn add_attempt(
        &mut self,
        task: TaskId,
        run: u32,
        engine: EngineId,
        outcome: &Outcome,
        [stdout, stderr, long]: Before,
    ) -> rusqlite::Result<()> {
        let sql = "INSERT INTO attempt (task, run, state, crashed, engine, started, completed, exit_code, host, value, ename, evalue, \
                   type, stdout, stderr, traceback, pickled, peak_memory, cause, code, ask) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, \
                   (SELECT code FROM task WHERE id = ?1), (SELECT ask FROM task WHERE id = ?1))";
        let host = self.host(Some(engine))?;
        let long = self.long_value(task, long, outcome);
        let stdout = self.column(task, run, Stream::Stdout, stdout, &outcome.stdout)?;
        let stderr = self.column(task, run, Stream::Stderr, stderr, &outcome.stderr)?;
        let instead = self.instead(outcome, long.is_some());
        let outcome = instead.as_ref().unwrap_or(outcome);
        let error = outcome.error.as_ref();
        let [value, pickled] = value_columns(outcome, &long);
        self.connection.prepare_cached(sql)?.execute(params![
            task.row_id(),
            run,
            outcome.status.as_str(),
            outcome.crashed,
            engine.0,
            outcome.started.0,
            outcome.ended.0,
            outcome.exit_code,
            host,
            value,
            error.map(|e| &e.ename),
            error.map(|e| &e.evalue),
            outcome.pickled.as_ref().map(|p| &p.python_type),
            stdout,
            stderr,
            error.and_then(|e| some_text(&e.traceback)),
            pickled,
            peak_memory(outcome),
            outcome.cause().as_ref().map(Cause::as_str),
        ])?;
        Ok(())
    }

    pub(super) fn task_asks(&mut self, task: TaskId, ask: &Ask, used: &UsedRetries) -> rusqlite::Result<()> {
        let sql = "UPDATE task SET ask = ?2, failures = ?3, crashes = ?4, memory_retries = ?5, time_retries = ?6 \
                   WHERE id = ?1 AND completed IS NULL";
        let ask = (!ask.is_default()).then(|| serde_json::to_string(ask).unwrap_or_default());
        let values = params![task.row_id(), ask, used.errors, used.crashes, used.memory, used.time];
        self.connection.prepare_cached(sql)?.execute(values).map(drop)
    }

    pub(super) fn task_resubmitted(&mut self, task: TaskId, run: u32) -> rusqlite::Result<()> {
        match self.prior(task, "TaskResubmitted")? {
            Some(prior) if prior.state.is_done() && run > prior.run => self.reopen(task, &prior, run),
            Some(prior) => {
                tracing::debug!(%task, run, state = %prior.state, "TaskResubmitted changes nothing");
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// A finished task's outcome becomes an attempt; the task is ready again.
    fn reopen(&mut self, task: TaskId, prior: &Prior, run: u32) -> rusqlite::Result<()> {
        let keep = "INSERT INTO attempt (task, run, state, crashed, engine, started, completed, exit_code, host, value, ename, evalue, \
                    repr, stdout, stderr, traceback, pickled, type, code, peak_memory, cause, ask) \
                    SELECT id, run, state, state = 'lost', engine, started, completed, exit_code, host, value, ename, evalue, \
                    repr, stdout, stderr, traceback, pickled, type, code, peak_memory, cause, ask FROM task WHERE id = ?1";
        self.connection.prepare_cached(keep)?.execute([task.row_id()])?;
        let clear = "UPDATE task SET state = 'ready', run = ?2, crashes = 0, failures = 0, engine = NULL, host = NULL, started = NULL, \
                     completed = NULL, exit_code = NULL, value = NULL, ename = NULL, evalue = NULL, repr = NULL, stdout = NULL, \
                     stderr = NULL, traceback = NULL, pickled = NULL, type = NULL, peak_memory = NULL, cause = NULL, ask = NULL, \
                     memory_retries = 0, time_retries = 0, \
                     code = COALESCE((SELECT code FROM map WHERE map.id = task.id >> 32), 0) WHERE id = ?1";
        self.connection.prepare_cached(clear)?.execute(params![task.row_id(), run])?;
        self.count_step(task.map, prior.state, TaskState::Ready)
    }
}

/// As SQLite stores it.
fn peak_memory(outcome: &Outcome) -> Option<i64> {
    outcome.peak_memory.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX))
}

/// The columns `value` and `pickled`. `long`: the value is in a file.
fn value_columns<'a>(outcome: &'a Outcome, long: &'a Option<[Option<Vec<u8>>; 2]>) -> [ToSqlOutput<'a>; 2] {
    let [value, pickled] = long
        .as_ref()
        .map_or([None, None], |columns| columns.each_ref().map(Option::as_deref));
    let text = outcome.value.as_ref().map(|value| value.get().as_bytes());
    let bytes = outcome
        .pickled
        .as_ref()
        .filter(|_| long.is_none())
        .map(|pickled| &pickled.bytes[..]);
    [
        value.map(ValueRef::Blob).or(text.map(ValueRef::Text)).unwrap_or(ValueRef::Null),
        pickled.or(bytes).map_or(ValueRef::Null, ValueRef::Blob),
    ]
    .map(ToSqlOutput::Borrowed)
}
