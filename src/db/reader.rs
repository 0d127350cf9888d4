//! The reader: reads concurrently with a running controller, or from the file of a stopped one.
use super::error::QueryError;
use super::large::Large;
use super::outputs::{self, Outputs, Stored};
use super::rows::{self, MAP_COLUMNS};
use super::transaction::{in_transaction, lock};
use super::{DbError, DbErrorKind, file, schema, tasks};
use crate::model::definition::MapDefinition;
use crate::model::output::Stream;
use crate::model::query::{MapQuery, TaskQuery};
use crate::model::task::{AttemptRow, Counts, MapRow, TaskRow};
use crate::model::{MapId, TaskId};
use bytes::Bytes;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, ToSql, params, params_from_iter};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The approximate number of bytes of results in one answer.
const MAX_BYTES: usize = 16 << 20;

pub(crate) struct Reader {
    connection: Arc<Mutex<Connection>>,
    path: PathBuf,
    /// The schema version: an old file is read without migration.
    version: i32,
    pub(super) large: Large,
    pub(super) outputs: Outputs,
}

impl Reader {
    /// Opens the file for reading, even in a read-only directory.
    pub(crate) fn open(path: &Path) -> Result<Reader, DbError> {
        let connection = file::open_for_reading(path)?;
        let version = schema::version(&connection).map_err(|error| DbError::sqlite("open", path, &error))?;
        Ok(Reader {
            version,
            ..Reader::over(Arc::new(Mutex::new(connection)), path)
        })
    }

    /// Over a writer's connection, between its commits.
    pub(super) fn over(connection: Arc<Mutex<Connection>>, path: &Path) -> Reader {
        Reader {
            connection,
            version: schema::VERSION,
            path: path.to_path_buf(),
            large: Large::beside(path),
            outputs: Outputs::beside(path),
        }
    }

    pub(super) fn version(&self) -> i32 {
        self.version
    }

    /// Runs `read` in one transaction, on a consistent state of the file.
    pub(super) fn read<T>(&self, operation: &'static str, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, DbError> {
        let connection = lock(&self.connection);
        let result = in_transaction(&connection, "BEGIN", read);
        result.map_err(|error| DbError::sqlite(operation, &self.path, &error))
    }

    pub(super) fn bad_query(&self, operation: &'static str, cause: &dyn std::error::Error) -> DbError {
        DbError::new(DbErrorKind::Query, operation, &self.path, cause.to_string())
    }

    /// Returns maps, newest last.
    pub(crate) fn maps(&self, query: &MapQuery) -> Result<Vec<MapRow>, DbError> {
        let mut wheres = vec!["1"];
        let mut values: Vec<Value> = Vec::new();
        if !query.maps.is_empty() {
            wheres.push("id IN (SELECT value FROM json_each(?))");
            values.push(serde_json::Value::from_iter(query.maps.iter().map(|map| map.0)).to_string().into());
        }
        if let Some(since) = query.since {
            wheres.push("submitted >= ?");
            values.push(since.0.into());
        }
        if let Some(label) = &query.label {
            wheres.push("label = ?");
            values.push(label.clone().into());
        }
        values.push(query.limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX)).into());
        let sql = format!(
            "SELECT {MAP_COLUMNS} FROM map WHERE {} ORDER BY id DESC LIMIT ?",
            wheres.join(" AND ")
        );
        self.read("read maps from", |connection| {
            let mut select = connection.prepare_cached(&sql)?;
            let mut maps = select
                .query_map(params_from_iter(values), rows::map_row)?
                .collect::<Result<Vec<_>, _>>()?;
            maps.reverse();
            Ok(maps)
        })
    }

    /// The tasks, and the number of matches without `limit` and `offset`.
    pub(crate) fn tasks(&self, query: &TaskQuery) -> Result<(Vec<TaskRow>, u64), DbError> {
        const OPERATION: &str = "read tasks from";
        let bad = |cause: QueryError| self.bad_query(OPERATION, &cause);
        let select = tasks::rows(query, self.version).map_err(bad)?;
        let count = tasks::count(query, self.version).map_err(bad)?;
        self.read(OPERATION, |connection| {
            let mut statement = connection.prepare_cached(&select.text)?;
            let found = statement.query_map(params_from_iter(select.values), |row| rows::task_row(row, &self.outputs))?;
            let found = found.collect::<Result<Vec<_>, _>>()?;
            let matching = if query.limit.is_none() && query.offset == 0 {
                found.len() as u64
            } else if tasks::is_counted(query) {
                counted(connection, query)?
            } else {
                connection.query_row(&count.text, params_from_iter(count.values), |row| row.get::<_, i64>(0))? as u64
            };
            Ok((found, matching))
        })
    }

    /// A map's counters (zero if it does not exist), and its finished tasks in input order from `from` on, up to the first
    /// unfinished one: at most `limit` tasks and about 16 MiB, but at least one task.
    pub(crate) fn finished_from(&self, map: MapId, from: u32, limit: u32, inputs: bool) -> Result<(Counts, Vec<TaskRow>), DbError> {
        let input = if inputs {
            "t.input"
        } else {
            "CASE t.state WHEN 'ok' THEN NULL ELSE t.input END"
        };
        self.read("read results from", |connection| {
            const ABOUT: &str = "SELECT total, ok, error, aborted, timeout, lost, running, assigned, label, kind FROM map WHERE id = ?1";
            let mut about = connection.prepare_cached(ABOUT)?;
            let about = about.query_row([map.0], |row| {
                Ok((rows::counts(row, 0)?, row.get::<_, Option<String>>(8)?, row.get::<_, String>(9)?))
            });
            let Some((counts, label, kind)) = about.optional()? else {
                return Ok(Default::default());
            };
            if limit == 0 {
                return Ok((counts, Vec::new()));
            }
            let (msg_id, join) = match kind == crate::model::definition::CLIENT_KIND {
                true => ("r.msg_id", "LEFT JOIN request r ON r.task = t.id"),
                false => ("NULL", ""),
            };
            let columns = rows::task_columns(self.version, false, input, msg_id, "?4");
            let sql = format!("SELECT {columns} FROM task t {join} WHERE t.id BETWEEN ?1 AND ?2 ORDER BY t.id LIMIT ?3");
            let mut select = connection.prepare_cached(&sql)?;
            let first = TaskId::new(map, from).row_id();
            let last = TaskId::new(map, u32::MAX).row_id();
            let mut cursor = select.query(params![first, last, limit, label])?;
            let (mut found, mut bytes) = (Vec::new(), 0);
            while let Some(row) = cursor.next()? {
                // Check the size before reading everything.
                if row.get_ref(7)?.as_f64_or_null()?.is_none() || row.get::<_, i64>(0)? != first + found.len() as i64 {
                    break;
                }
                let row = rows::task_row(row, &self.outputs)?;
                bytes += rows::size(&row);
                if bytes > MAX_BYTES && !found.is_empty() {
                    break;
                }
                found.push(row);
            }
            Ok((counts, found))
        })
    }

    /// The total size of a task's output or exact value, of its current run or an earlier one, and up to `limit` bytes of it
    /// from `start` on. None if there is no such task or attempt.
    pub(crate) fn output(
        &self,
        task: TaskId,
        run: Option<u32>,
        stream: Stream,
        start: u64,
        limit: usize,
    ) -> Result<Option<(u64, Bytes)>, DbError> {
        self.read("read the output of a task from", |connection| {
            let Some(found) = stored(connection, task, run, stream)? else {
                return Ok(None);
            };
            let bytes = self.outputs.read(task, stream, &found, start, limit)?;
            Ok(Some((found.size(), bytes)))
        })
    }

    /// The size of such an output and its file; None if it has no file of its own.
    pub(crate) fn output_file(&self, task: TaskId, run: Option<u32>, stream: Stream) -> Result<Option<(u64, PathBuf)>, DbError> {
        self.read("read the output of a task from", |connection| {
            let found = stored(connection, task, run, stream)?;
            Ok(found.and_then(|found| Some((found.size(), self.outputs.file(task, stream, &found)?))))
        })
    }

    /// Superseded attempts, oldest first.
    pub(crate) fn attempts(&self, task: TaskId) -> Result<Vec<AttemptRow>, DbError> {
        self.read("read attempts from", |connection| {
            let sql = format!(
                "SELECT {} FROM attempt WHERE task = ?1 ORDER BY id",
                rows::attempt_columns(self.version)
            );
            let mut select = connection.prepare_cached(&sql)?;
            let found = select.query_map([task.row_id()], rows::attempt_row)?;
            found.collect()
        })
    }

    pub(crate) fn map_definition(&self, map: MapId) -> Result<Option<MapDefinition>, DbError> {
        self.read("read a map from", |connection| {
            let mut select = connection.prepare_cached("SELECT definition FROM map WHERE id = ?1")?;
            select.query_row([map.0], |row| rows::definition(row, 0)).optional()
        })
    }

    /// The problems found by SQLite's quick check; empty if none. Reads the whole file.
    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<Vec<String>, DbError> {
        self.read("check", |connection| {
            let mut select = connection.prepare("PRAGMA quick_check(20)")?;
            let found = select.query_map([], |row| row.get(0))?;
            let found: Vec<String> = found.collect::<Result<_, _>>()?;
            Ok(if found == ["ok"] { Vec::new() } else { found })
        })
    }

    /// The newest map that was submitted in this client's name.
    pub(crate) fn map_of_client(&self, client: &str) -> Result<Option<MapId>, DbError> {
        self.read("read a map from", |connection| {
            let mut select = connection.prepare_cached("SELECT id FROM map WHERE client = ?1 ORDER BY id DESC LIMIT 1")?;
            select.query_row([client], |row| row.get(0).map(MapId)).optional()
        })
    }
}

/// The number of matching tasks, from the maps' counters.
fn counted(connection: &Connection, query: &TaskQuery) -> rusqlite::Result<u64> {
    let sql = "SELECT total, ok, error, aborted, timeout, lost, running, assigned FROM map \
               WHERE ?1 IS NULL OR id IN (SELECT value FROM json_each(?1))";
    let maps = (!query.maps.is_empty()).then(|| serde_json::Value::from_iter(query.maps.iter().map(|map| map.0)).to_string());
    let mut select = connection.prepare_cached(sql)?;
    let counts = select.query_map([maps], |row| rows::counts(row, 0))?;
    counts
        .map(|counts| counts.map(|counts| tasks::counted(&query.states, &counts)))
        .sum()
}

fn stored(connection: &Connection, task: TaskId, run: Option<u32>, stream: Stream) -> rusqlite::Result<Option<Stored>> {
    let stored = |sql: &str| -> rusqlite::Result<Option<Stored>> {
        let mut select = connection.prepare_cached(sql)?;
        let params: [&dyn ToSql; 2] = [&task.row_id(), &run];
        select.query_row(params, |row| Ok(outputs::stored(row.get_ref(0)?))).optional()
    };
    let current = format!(
        "SELECT {} FROM task t WHERE id = ?1 AND (?2 IS NULL OR run = ?2)",
        outputs::so_far(stream)
    );
    match stored(&current)? {
        None if run.is_some() => stored(&format!(
            "SELECT {} FROM attempt t WHERE task = ?1 AND run = ?2 ORDER BY id DESC LIMIT 1",
            outputs::finished(stream)
        )),
        found => Ok(found),
    }
}
