//! The state that a controller restores from the file of a previous controller, also after a crash.
use super::batch::row_range;
use super::large::Large;
use super::requests::queue_of;
use super::rows::state_of;
use super::{DbError, Reader, outputs, rows};
use crate::model::change::{Request, UsedRetries};
use crate::model::definition::MapDefinition;
use crate::model::engine::EngineFacts;
use crate::model::output::Written;
use crate::model::task::{Ask, Counts, TaskState};
use crate::model::{EngineId, MapId, TaskId, UnixTime};
use bytes::Bytes;
use rusqlite::{Connection, Row};

/// The small part; tasks are taken map by map with [`Reader::unfinished_tasks`].
#[derive(Debug)]
pub(crate) struct RestartState {
    /// Not used by any map before.
    pub next_map: MapId,
    /// Not used by any engine before.
    pub next_engine: EngineId,
    /// Maps that are not completed, those of ipyparallel clients (`Work::Client`) among them, oldest first.
    pub maps: Vec<OpenMap>,
    /// The recorded retention clock; in a file without it, the time of the newest record.
    pub retention_clock: Option<UnixTime>,
    /// Engines that registered and have not left.
    pub engines: Vec<RegisteredEngine>,
}

#[derive(Debug)]
pub(crate) struct OpenMap {
    pub map: MapId,
    pub definition: MapDefinition,
    /// As recorded by `Change::MapAdded`.
    pub client: String,
    /// All inputs have arrived.
    pub closed: bool,
    pub counts: Counts,
}

#[derive(Debug)]
pub(crate) struct RegisteredEngine {
    pub id: EngineId,
    pub facts: EngineFacts,
    pub registered: UnixTime,
}

#[derive(Debug)]
pub(crate) struct UnfinishedTask {
    pub index: u32,
    /// One of the states that are not done.
    pub state: TaskState,
    pub run: u32,
    /// Its assigned engine.
    pub engine: Option<EngineId>,
    /// The number of attempts started.
    pub attempts: u32,
    pub used: UsedRetries,
    /// What its current attempt asks for in place of its map's request.
    pub ask: Ask,
    /// Its current attempt is the last.
    pub cancelled: bool,
    /// Recorded bytes of its current run's output and value.
    pub written: Written,
    /// JSON text; empty for requests of ipyparallel clients.
    pub input: Bytes,
}

#[derive(Debug)]
pub(crate) struct UnfinishedRequest {
    pub task: TaskId,
    pub run: u32,
    /// The engine it was assigned to.
    pub engine: Option<EngineId>,
    /// As received; `engine` is its last assigned engine, if any.
    pub request: Request,
}

fn retention_clock(connection: &Connection) -> rusqlite::Result<Option<UnixTime>> {
    let sql = "SELECT COALESCE((SELECT CAST(value AS REAL) FROM meta WHERE key = 'retention_clock'), \
               (SELECT max(max(submitted, COALESCE(completed, 0))) FROM map))";
    connection
        .query_row(sql, [], |row| row.get::<_, Option<f64>>(0))
        .map(|clock| clock.map(UnixTime))
}

impl Reader {
    pub(crate) fn restart_state(&self) -> Result<RestartState, DbError> {
        self.read("read the state of the cluster from", |connection| {
            Ok(RestartState {
                next_map: MapId(last_map(connection)? + 1),
                next_engine: connection.query_row("SELECT COALESCE(max(id) + 1, 0) FROM engine", [], |row| row.get(0).map(EngineId))?,
                retention_clock: retention_clock(connection)?,
                maps: open_maps(connection)?,
                engines: registered_engines(connection)?,
            })
        })
    }

    /// Calls `take` with each unfinished task of a map in input order, without holding more than one.
    pub(crate) fn unfinished_tasks(&self, map: MapId, take: &mut dyn FnMut(UnfinishedTask)) -> Result<(), DbError> {
        let sql = "SELECT id, state, run, engine, attempts, crashes, failures, input, \
                   EXISTS (SELECT 1 FROM cancelling c WHERE c.task = task.id AND c.run = task.run), memory_retries, time_retries, ask \
                   FROM task INDEXED BY task_unfinished WHERE id BETWEEN ?1 AND ?2 AND completed IS NULL ORDER BY id";
        self.read("read unfinished tasks from", |connection| {
            let mut select = connection.prepare_cached(sql)?;
            let (first, last) = row_range(map);
            let mut rows = select.query([first, last])?;
            while let Some(row) = rows.next()? {
                let (id, state) = (row.get(0)?, state_of(row.get_ref(1)?.as_str()?)?);
                // Its beginning is on record before its output.
                let written = match state {
                    TaskState::Running => outputs::written(connection, id)?,
                    _ => Written::default(),
                };
                take(UnfinishedTask {
                    written,
                    index: TaskId::from_row_id(id).index,
                    state,
                    run: row.get(2)?,
                    engine: row.get::<_, Option<u32>>(3)?.map(EngineId),
                    attempts: row.get(4)?,
                    used: UsedRetries {
                        errors: row.get(6)?,
                        crashes: row.get(5)?,
                        memory: row.get(9)?,
                        time: row.get(10)?,
                    },
                    ask: rows::ask(row, 11)?.unwrap_or_default(),
                    cancelled: row.get(8)?,
                    input: match self.outputs.long_input(id, row.get_ref(7)?)? {
                        Some(input) => input,
                        None => bytes(row, 7)?,
                    },
                });
            }
            Ok(())
        })
    }

    /// The index after that of the map's last recorded task.
    pub(crate) fn next_index(&self, map: MapId) -> Result<u32, DbError> {
        self.read("read tasks from", |connection| {
            let (first, last) = row_range(map);
            let sql = "SELECT max(id) FROM task WHERE id BETWEEN ?1 AND ?2";
            let highest: Option<i64> = connection.query_row(sql, [first, last], |row| row.get(0))?;
            Ok(highest.map_or(0, |id| TaskId::from_row_id(id).index + 1))
        })
    }

    /// Message ids of a client's finished requests whose replies are undelivered, in order of arrival.
    pub(crate) fn undelivered_replies(&self, map: MapId) -> Result<Vec<String>, DbError> {
        let sql = "SELECT r.msg_id FROM undelivered u JOIN request r ON r.task = u.task WHERE u.task BETWEEN ?1 AND ?2 \
                   AND r.result_header IS NOT NULL ORDER BY u.task";
        self.read("read undelivered replies from", |connection| {
            let (first, last) = row_range(map);
            let mut select = connection.prepare_cached(sql)?;
            select.query_map([first, last], |row| row.get(0))?.collect()
        })
    }

    /// Calls `take` with each unfinished request of a client's map in order of arrival, without holding more than one.
    pub(crate) fn unfinished_requests(&self, map: MapId, take: &mut dyn FnMut(UnfinishedRequest)) -> Result<(), DbError> {
        let sql = "SELECT t.id, t.run, t.engine, r.msg_id, r.queue, r.client, r.header, r.metadata, r.content, r.buffers, \
                   r.engine_uuid, t.submitted, r.label \
                   FROM task t INDEXED BY task_unfinished CROSS JOIN request r ON r.task = t.id \
                   WHERE t.id BETWEEN ?1 AND ?2 AND t.completed IS NULL ORDER BY t.id";
        self.read("read unfinished requests from", |connection| {
            let mut select = connection.prepare_cached(sql)?;
            let (first, last) = row_range(map);
            let mut rows = select.query([first, last])?;
            while let Some(row) = rows.next()? {
                take(UnfinishedRequest {
                    task: TaskId::from_row_id(row.get(0)?),
                    run: row.get(1)?,
                    engine: row.get::<_, Option<u32>>(2)?.map(EngineId),
                    request: Request {
                        msg_id: row.get(3)?,
                        queue: queue_of(row.get_ref(4)?.as_str()?),
                        client: row.get(5)?,
                        header: bytes(row, 6)?,
                        metadata: bytes(row, 7)?,
                        content: bytes(row, 8)?,
                        buffers: self.large.list(row, 9)?,
                        buffer_file: Large::kept(row, 9)?,
                        engine: row.get::<_, Option<String>>(10)?.map(|uuid| uuid.as_str().into()),
                        submitted: UnixTime(row.get(11)?),
                        label: row.get(12)?,
                    },
                });
            }
            Ok(())
        })
    }
}

/// A text or blob; empty for NULL.
pub(crate) fn bytes(row: &Row, column: usize) -> rusqlite::Result<Bytes> {
    Ok(Bytes::copy_from_slice(row.get_ref(column)?.as_bytes_or_null()?.unwrap_or_default()))
}

/// The highest map id ever used, including purged maps.
fn last_map(connection: &Connection) -> rusqlite::Result<u32> {
    let sql = "SELECT max(COALESCE((SELECT max(seq) FROM sqlite_sequence WHERE name = 'map'), 0), COALESCE((SELECT max(id) FROM map), 0))";
    connection.query_row(sql, [], |row| row.get(0))
}

fn open_maps(connection: &Connection) -> rusqlite::Result<Vec<OpenMap>> {
    let sql = "SELECT id, definition, client, closed, total, ok, error, aborted, timeout, lost, running, assigned \
               FROM map INDEXED BY map_open WHERE completed IS NULL ORDER BY id";
    let mut select = connection.prepare_cached(sql)?;
    let maps = select.query_map([], |row| {
        Ok(OpenMap {
            map: MapId(row.get(0)?),
            definition: rows::definition(row, 1)?,
            client: row.get(2)?,
            closed: row.get(3)?,
            counts: rows::counts(row, 4)?,
        })
    })?;
    maps.collect()
}

fn registered_engines(connection: &Connection) -> rusqlite::Result<Vec<RegisteredEngine>> {
    // A file that is only read is not migrated.
    let known = "SELECT count(*) FROM pragma_table_info('engine') WHERE name IN ('ends', 'node')";
    let job = match connection.query_row(known, [], |row| row.get::<_, u32>(0))? {
        0 => "'', NULL, NULL",
        1 => "job, ends, NULL",
        _ => "job, ends, node",
    };
    let sql =
        format!("SELECT id, uuid, host, pid, version, python, capabilities, registered, {job} FROM engine WHERE gone IS NULL ORDER BY id");
    let mut select = connection.prepare_cached(&sql)?;
    let engines = select.query_map([], |row| {
        let node: Option<String> = row.get(10)?;
        Ok(RegisteredEngine {
            id: EngineId(row.get(0)?),
            facts: EngineFacts {
                uuid: row.get_ref(1)?.as_str()?.into(),
                host: row.get(2)?,
                pid: row.get(3)?,
                version: row.get(4)?,
                python: row.get(5)?,
                capabilities: serde_json::from_str(row.get_ref(6)?.as_str()?).unwrap_or_default(),
                job: row.get(8)?,
                ends: row.get::<_, Option<f64>>(9)?.map(UnixTime),
                node: node.and_then(|node| serde_json::from_str(&node).ok()).unwrap_or_default(),
            },
            registered: UnixTime(row.get(7)?),
        })
    })?;
    engines.collect()
}
