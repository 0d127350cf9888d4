//! The records, on two threads: one writes batches of changes, the other answers queries from committed data.
//!
//! Waking a thread takes longer than committing a few changes, so the caller itself writes a small batch or answers a small query
//! while the thread is idle. Large ones go to the threads, as does everything after them until they are done.
use super::core::event::{FoundMap, FoundRequest, FoundTask};
use super::core::{Event, Expired, Query, QueryKind};
use super::rescue::{self, Copy};
use crate::db::{DbError, FoundValue, Reader, RequestRecord, Writer};
use crate::model::change::{Attempt, Change};
use crate::model::definition::Work;
use crate::model::query::{MapQuery, TaskQuery};
use crate::model::task::{INPUTS_MISSING, TaskRow, TaskState};
use crate::model::{EngineUuid, MapId, TaskId, UnixTime};
use crate::wire::content::client::{self, Selection, ok};
use crate::wire::content::engine::{ValuePart, Values, ValuesRequest};
use crate::wire::content::error::ErrorContent;
use crate::wire::message::to_json;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Between two attempts to write a failed batch.
const RETRY: Duration = Duration::from_secs(1);
/// One of this many failed attempts is logged.
const LOG_EVERY: u32 = 30;
/// A batch is small up to this [`weight`].
const SMALL: usize = 64;
/// Bytes that weigh as much as one change.
const BYTES: usize = 4096;
/// After a commit that took this long,
const SLOW: Duration = Duration::from_millis(20);
/// as on a busy disk or a network file system, batches go to the thread for this long.
const SLOW_FOR: Duration = Duration::from_millis(500);
/// The maximum number of results of a small query.
const FEW: u64 = 8;
/// Bytes of a task's output in one answer.
const MAX_OUTPUT: usize = 1 << 20;
/// Before each cleanup step: batches have priority,
const TIDY_PAUSE: Duration = Duration::from_millis(5);
/// but there is a step at least this often, even under load.
const TIDY_AT_LEAST: Duration = Duration::from_millis(250);

pub(super) struct Records {
    writer: Arc<Mutex<Writer>>,
    /// Reads on the writer's connection, whose page cache holds the last commit.
    reader: Reader,
    /// Queries that the thread has not answered.
    pending_queries: usize,
    slow_until: Option<Instant>,
    changes: Option<std_mpsc::Sender<Vec<Change>>>,
    queries: Option<std_mpsc::Sender<Query>>,
    threads: Vec<std::thread::JoinHandle<()>>,
    copy: Arc<Mutex<Option<Copy>>>,
    /// Dropped to stop the thread that watches the file.
    watched: Option<std_mpsc::Sender<()>>,
}

/// A message from the records' threads.
pub(super) enum DbReply {
    /// The batch is on disk.
    Committed,
    /// The thread's reply to a query.
    FromThread(Box<DbReply>),
    /// For a client.
    Answer {
        query: Box<Query>,
        content: Bytes,
        buffers: Vec<Bytes>,
    },
    /// For the core.
    Event(Box<Event>),
}

impl Records {
    pub(super) fn start(writer: Writer, reader: Reader) -> std::io::Result<(Records, mpsc::UnboundedReceiver<DbReply>)> {
        let (replies, receiver) = mpsc::unbounded_channel();
        let (changes, to_write) = std_mpsc::channel();
        let (queries, to_answer) = std_mpsc::channel();
        let committed = replies.clone();
        let quick = writer.own_reader();
        let writer = Arc::new(Mutex::new(writer));
        let to_share = writer.clone();
        let (watched, until) = std_mpsc::channel();
        let (copy, to_watch) = (Arc::<Mutex<Option<Copy>>>::default(), writer.clone());
        let copied = copy.clone();
        let threads = vec![
            std::thread::Builder::new()
                .name("records-watch".into())
                .spawn(move || rescue::watch(&to_watch, &copied, &until, now))?,
            std::thread::Builder::new()
                .name("records-write".into())
                .spawn(move || write(&to_share, &to_write, &committed))?,
            std::thread::Builder::new()
                .name("records-read".into())
                .spawn(move || answer(&reader, &to_answer, &replies))?,
        ];
        Ok((
            Records {
                writer,
                reader: quick,
                pending_queries: 0,
                slow_until: None,
                changes: Some(changes),
                queries: Some(queries),
                threads,
                copy,
                watched: Some(watched),
            },
            receiver,
        ))
    }

    /// Returns true if the batch is on disk; otherwise [`DbReply::Committed`] follows. Write nothing else until then.
    pub(super) fn write(&mut self, batch: Vec<Change>) -> bool {
        if self.slow_until.is_none_or(|until| until <= Instant::now())
            && self.is_free()
            && batch.iter().map(weight).sum::<usize>() <= SMALL
            && let Ok(mut writer) = self.writer.try_lock()
        {
            let began = Instant::now();
            // The thread reports the error and retries.
            let done = writer.apply(&batch).is_ok();
            if began.elapsed() > SLOW || !done {
                self.slow_until = Some(Instant::now() + SLOW_FOR);
            }
            if done {
                return true;
            }
        }
        if let Some(changes) = &self.changes {
            // The thread ends only after this sender.
            let _ = changes.send(batch);
        }
        false
    }

    /// Returns the answer if it is available immediately; otherwise the thread sends it, and the caller must call [`Records::query_done`].
    pub(super) fn query(&mut self, query: Query) -> Option<DbReply> {
        if is_small(&query.kind) && self.is_free() {
            return Some(reply_for(&self.reader, query));
        }
        if let Some(queries) = &self.queries {
            self.pending_queries += 1;
            let _ = queries.send(query);
        }
        None
    }

    /// True if no long read uses the writer's connection.
    fn is_free(&self) -> bool {
        self.pending_queries == 0 || self.writer.try_lock().is_ok_and(|writer| !writer.is_exclusive())
    }

    /// The thread has answered a query.
    pub(super) fn query_done(&mut self) {
        self.pending_queries = self.pending_queries.saturating_sub(1);
    }

    /// Waits until everything is written and the file is closed. Returns false if closing failed.
    pub(super) fn close(mut self) -> bool {
        self.changes = None;
        self.queries = None;
        self.watched = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let Records { writer, reader, copy, .. } = self;
        drop(reader);
        let orphaned = {
            let writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            let mut copy = copy.lock().unwrap_or_else(PoisonError::into_inner);
            rescue::save(&writer, &mut copy, Duration::ZERO, now);
            rescue::orphaned_files(&writer, &copy)
        };
        if let Some(writer) = Arc::into_inner(writer)
            && let Err(error) = writer.into_inner().unwrap_or_else(PoisonError::into_inner).close()
        {
            tracing::warn!(%error, "cannot close the database cleanly");
            return false;
        }
        // The copy has their content, and the next database could not be opened next to them.
        orphaned.iter().for_each(|path| drop(std::fs::remove_file(path)));
        true
    }
}

fn now() -> UnixTime {
    super::driver::unix_now()
}

/// The approximate cost of writing a change; a small change costs 1.
fn weight(change: &Change) -> usize {
    let all = |buffers: &[Bytes]| buffers.iter().map(Bytes::len).sum::<usize>();
    let (steps, bytes) = match change {
        Change::TasksAdded { inputs, .. } => (inputs.len(), all(inputs)),
        Change::TasksAssigned { count, .. } => (*count as usize, 0),
        Change::JobsSeen { jobs } => (jobs.len(), 0),
        Change::TaskFinished { outcome: o, .. } => (1, o.bytes()),
        Change::TaskReturned {
            attempt: Some(Attempt { outcome: o, .. }),
            ..
        } => (1, o.bytes()),
        Change::OutputAdded { bytes, .. } => (1, bytes.len()),
        Change::RequestAdded { request, .. } => (1, request.content.len() + all(&request.buffers)),
        Change::RequestFinished { reply, .. } => (1, reply.content.len() + all(&reply.buffers)),
        // These go through all tasks of a map.
        Change::MapReleased { .. } | Change::Purged { .. } => (SMALL + 1, 0),
        _ => (1, 0),
    };
    steps.saturating_add(bytes / BYTES)
}

fn is_small(kind: &QueryKind) -> bool {
    matches!(kind, QueryKind::Watch { most, .. } if *most <= FEW)
}

fn write(writer: &Mutex<Writer>, batches: &std_mpsc::Receiver<Vec<Change>>, replies: &mpsc::UnboundedSender<DbReply>) {
    let mut tidied = Instant::now();
    while let Some(batch) = next(writer, batches, &mut tidied) {
        // Nothing is reported before it is on disk, so a batch is retried until it succeeds: a full disk may be freed.
        let since = Instant::now();
        let mut tries = 0;
        while let Err(error) = writer.lock().unwrap_or_else(PoisonError::into_inner).apply(&batch) {
            if tries % LOG_EVERY == 0 {
                tracing::error!(%error, hint = error.hint(), "cannot write the records; retrying, and sending no replies until then");
            }
            tries += 1;
            std::thread::sleep(RETRY);
            if replies.is_closed() {
                return;
            }
        }
        if tries > 0 {
            tracing::warn!("writing the records succeeded after {:.0} s", since.elapsed().as_secs_f64());
        }
        if replies.send(DbReply::Committed).is_err() {
            return;
        }
    }
}

/// Waits for the next batch. Meanwhile, and periodically under load, runs one cleanup step after a purge at a time.
fn next(writer: &Mutex<Writer>, batches: &std_mpsc::Receiver<Vec<Change>>, tidied: &mut Instant) -> Option<Vec<Change>> {
    let mut pause = TIDY_PAUSE;
    let writer = || writer.lock().unwrap_or_else(PoisonError::into_inner);
    while writer().is_untidy() {
        if tidied.elapsed() < TIDY_AT_LEAST {
            match batches.recv_timeout(pause) {
                Ok(batch) => return Some(batch),
                Err(std_mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(std_mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
        *tidied = Instant::now();
        if let Err(error) = writer().tidy() {
            tracing::warn!(%error, "cleanup of the records postponed");
            pause = RETRY;
        }
    }
    batches.recv().ok()
}

fn answer(reader: &Reader, queries: &std_mpsc::Receiver<Query>, replies: &mpsc::UnboundedSender<DbReply>) {
    while let Ok(query) = queries.recv() {
        let reply = DbReply::FromThread(Box::new(reply_for(reader, query)));
        if replies.send(reply).is_err() {
            return;
        }
    }
}

fn reply_for(reader: &Reader, query: Query) -> DbReply {
    match respond(reader, &query) {
        Ok(Response::Content(content, buffers)) => DbReply::Answer {
            query: Box::new(query),
            content,
            buffers,
        },
        Ok(Response::Event(event)) => DbReply::Event(event),
        Err(error) => {
            let mut content = ErrorContent::new("DatabaseError", error.to_string());
            content.hint = error.hint();
            DbReply::Answer {
                query: Box::new(query),
                content: to_json(&content),
                buffers: vec![],
            }
        }
    }
}

enum Response {
    Content(Bytes, Vec<Bytes>),
    Event(Box<Event>),
}

fn respond(reader: &Reader, query: &Query) -> Result<Response, DbError> {
    let content = match &query.kind {
        QueryKind::Watch {
            map,
            from,
            limit,
            complete,
            engines,
            most: _,
            begun,
        } => {
            let (counts, results) = reader.finished_from(*map, *from, *limit)?;
            let buffers = client::row_buffers(&results);
            let reply = client::WatchReply {
                status: ok(),
                counts,
                complete: *complete,
                engines: *engines,
                results,
            };
            let content = match begun {
                None => to_json(&reply),
                Some(engines) => to_json(&client::MapReply {
                    status: ok(),
                    map: *map,
                    engines: engines.clone(),
                    update: Some(reply),
                }),
            };
            return Ok(Response::Content(content, buffers));
        }
        QueryKind::MapOf { key, request, bundle } => {
            let (request, map) = (request.clone(), reader.map_of_client(key)?);
            let bundle = bundle.as_ref().map(|hash| reader.bundle(hash)).transpose()?.flatten();
            return Ok(Response::Event(Box::new(Event::MapFound { request, map, bundle })));
        }
        QueryKind::Maps { maps, since, label, limit } => {
            let query = MapQuery {
                maps: maps.clone(),
                since: *since,
                label: label.clone(),
                limit: *limit,
            };
            to_json(&client::MapsReply {
                status: ok(),
                maps: reader.maps(&query)?,
            })
        }
        QueryKind::Tasks { query } => {
            let (tasks, matching) = reader.tasks(query)?;
            let buffers = client::row_buffers(&tasks);
            let reply = client::TasksReply {
                status: ok(),
                tasks,
                matching,
            };
            return Ok(Response::Content(to_json(&reply), buffers));
        }
        QueryKind::Jobs { list, gone_since } => to_json(&client::JobsReply {
            status: ok(),
            jobs: if *list { reader.jobs()? } else { Vec::new() },
            gone: gone_since.map_or(Ok(Vec::new()), |since| reader.departures(since))?,
        }),
        QueryKind::Details { task, files } => {
            let (definition, earlier) = (reader.map_definition(task.map)?, reader.attempts(*task)?);
            let bundle = definition.as_ref().filter(|_| *files).and_then(|definition| definition.bundle());
            let files = bundle.map(|named| reader.file_hashes(named)).transpose()?.unwrap_or_default();
            to_json(&client::DetailsReply {
                status: ok(),
                definition,
                earlier,
                files,
            })
        }
        QueryKind::Output(output) => {
            let limit = (output.limit as usize).min(MAX_OUTPUT);
            let Some((size, bytes)) = reader.output(output.task, output.run, output.stream, output.start, limit)? else {
                let content = ErrorContent::new("NoSuchTask", format!("no task {}, or no such run of it", output.task));
                return Ok(Response::Content(to_json(&content), vec![]));
            };
            let reply = client::OutputReply { status: ok(), size };
            return Ok(Response::Content(to_json(&reply), vec![bytes]));
        }
        QueryKind::Values { engine, request } => return Ok(values(reader, engine.clone(), request)),
        QueryKind::Resubmit { selection, definition } => {
            return Ok(Response::Event(Box::new(Event::ResubmitFound {
                client: query.client.clone(),
                parent: query.parent.clone(),
                request: query.request.clone(),
                selection: selection.clone(),
                definition: definition.clone(),
                maps: finished_tasks(reader, selection)?,
            })));
        }
        QueryKind::Expired { before } => {
            // No client waits for this query, and the next check follows.
            let found = reader.expired(*before).unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot find expired records");
                Default::default()
            });
            let (maps, requests, empty) = (found.maps, found.requests, found.empty);
            return Ok(Response::Event(Box::new(Event::ExpiredFound(Expired { maps, requests, empty }))));
        }
        QueryKind::Results {
            msg_ids,
            pending,
            status_only,
        } => return results(reader, msg_ids, pending, *status_only),
        QueryKind::History => to_json(&json!({"status": "ok", "history": reader.request_history()?})),
        QueryKind::Records { query } => return records(reader, query),
        QueryKind::ResubmitRequests { msg_ids } => {
            let found: Vec<FoundRequest> = reader.requests(msg_ids)?.into_iter().map(found_request).collect();
            let known: HashSet<&String> = found.iter().map(|f| &f.msg_id).collect();
            let missing = msg_ids.iter().filter(|id| !known.contains(id)).cloned().collect();
            return Ok(Response::Event(Box::new(Event::RequestsFound {
                client: query.client.clone(),
                parent: query.parent.clone(),
                request: query.request.clone(),
                found,
                missing,
            })));
        }
    };
    Ok(Response::Content(content, vec![]))
}

/// Values for a task of `--reduce`. The engine waits for an answer, so errors are answered, too.
fn values(reader: &Reader, engine: EngineUuid, request: &ValuesRequest) -> Response {
    let (found, error) = match reader.values(&request.of, request.start, MAX_OUTPUT) {
        Ok(found) => found,
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let part = |value: &FoundValue| ValuePart {
        size: value.size,
        pickled: value.pickled,
    };
    let values = Values {
        task: request.task,
        first: request
            .of
            .first()
            .copied()
            .unwrap_or(TaskId::new(request.task.map, request.task.index)),
        start: request.start,
        values: found.iter().map(part).collect(),
        error,
    };
    let buffers = found.into_iter().map(|value| value.bytes).collect();
    Response::Event(Box::new(Event::ValuesFound { engine, values, buffers }))
}

/// The finished tasks of a selection, by map.
fn finished_tasks(reader: &Reader, selection: &Selection) -> Result<Vec<FoundMap>, DbError> {
    let states: Vec<TaskState> = TaskState::ALL
        .into_iter()
        .filter(|s| s.is_failed() || (s.is_done() && !selection.failed_only))
        .collect();
    let mut by_map: BTreeMap<MapId, BTreeMap<TaskId, TaskRow>> = BTreeMap::new();
    let mut add = |query: TaskQuery| -> Result<(), DbError> {
        for row in reader.tasks(&query)?.0 {
            by_map.entry(row.task.map).or_default().insert(row.task, row);
        }
        Ok(())
    };
    if !selection.maps.is_empty() {
        add(TaskQuery {
            maps: selection.maps.clone(),
            states: states.clone(),
            brief: true,
            ..TaskQuery::default()
        })?;
    }
    if !selection.tasks.is_empty() {
        add(TaskQuery {
            tasks: selection.tasks.clone(),
            states,
            brief: true,
            ..TaskQuery::default()
        })?;
    }
    let mut found = Vec::new();
    for (map, tasks) in by_map {
        let Some(definition) = reader.map_definition(map)? else { continue };
        let definition = reader.with_bundle(definition)?;
        let Some(row) = reader
            .maps(&MapQuery {
                maps: vec![map],
                ..MapQuery::default()
            })?
            .pop()
        else {
            continue;
        };
        // A task that represents missing inputs cannot run.
        let is_input = |row: &TaskRow| row.error.as_ref().is_none_or(|error| error.ename != INPUTS_MISSING);
        let tasks = tasks
            .into_values()
            .filter(is_input)
            .map(|row| FoundTask {
                index: row.task.index,
                run: row.run,
                attempts: row.attempts,
                state: row.state,
                engine: None,
                errors: 0,
                crashes: 0,
                cancelled: false,
                written: Default::default(),
                input: row
                    .input
                    .map(|i| Bytes::from(Box::<str>::from(i).into_string()))
                    .unwrap_or(Bytes::from_static(b"null")),
            })
            .collect();
        let is_client = matches!(definition.work, Work::Client { .. });
        let key = if is_client { String::new() } else { format!("reopened {map}") };
        found.push(FoundMap {
            map,
            definition,
            key,
            closed: row.closed,
            abandoned: false,
            counts: row.counts,
            tasks,
        });
    }
    Ok(found)
}

fn found_request(record: RequestRecord) -> FoundRequest {
    FoundRequest {
        msg_id: record.msg_id,
        header: record.header.unwrap_or_default(),
        metadata: record.metadata.unwrap_or_default(),
        content: record.content.unwrap_or_default(),
        buffers: record.buffers,
    }
}

/// ipyparallel's `result_reply`: pending and completed ids, and the records of the completed ones with their buffers
/// in the same order.
fn results(reader: &Reader, msg_ids: &[String], pending: &[String], status_only: bool) -> Result<Response, DbError> {
    let mut ids: Vec<String> = msg_ids.to_vec();
    ids.sort();
    ids.dedup();
    let records: BTreeMap<String, RequestRecord> = reader.requests(&ids)?.into_iter().map(|r| (r.msg_id.clone(), r)).collect();
    let (mut still, mut completed, mut bodies, mut buffers) = (Vec::new(), Vec::new(), Map::new(), Vec::new());
    for id in ids {
        match records.get(&id) {
            _ if pending.contains(&id) => still.push(id),
            Some(record) if record.completed.is_some() => {
                if !status_only {
                    bodies.insert(id.clone(), result_body(record));
                    buffers.extend(record.result_buffers.iter().cloned());
                }
                completed.push(id);
            }
            Some(_) => still.push(id),
            None => {
                let content = ErrorContent::new("KeyError", format!("'No such message: {id}'"));
                return Ok(Response::Content(to_json(&content), vec![]));
            }
        }
    }
    let mut content = Map::new();
    content.insert("status".into(), "ok".into());
    content.insert("pending".into(), still.into());
    content.insert("completed".into(), completed.into());
    content.append(&mut bodies);
    Ok(Response::Content(to_json(&content), buffers))
}

fn result_body(record: &RequestRecord) -> Value {
    let mut all = record.to_json(None);
    let mut take = |key: &str| all.remove(key).unwrap_or(Value::Null);
    let io: Map<String, Value> = ["execute_input", "execute_result", "error", "stdout", "stderr"]
        .into_iter()
        .map(|k| (k.into(), take(k)))
        .collect();
    let mut body = Map::new();
    for key in [
        "header",
        "metadata",
        "result_metadata",
        "result_header",
        "result_content",
        "received",
    ] {
        body.insert(key.into(), take(key));
    }
    body.insert("io".into(), io.into());
    body.into()
}

/// ipyparallel's `db_reply`.
fn records(reader: &Reader, content: &Bytes) -> Result<Response, DbError> {
    let request: Value = serde_json::from_slice(content).unwrap_or_default();
    let empty = json!({});
    let query = request.get("query").unwrap_or(&empty);
    let keys: Option<Vec<String>> = request
        .get("keys")
        .and_then(Value::as_array)
        .map(|keys| keys.iter().filter_map(Value::as_str).map(str::to_string).collect());
    let found = reader.find_records(query, keys.as_deref())?;
    let wants = |key: &str| keys.as_ref().is_some_and(|keys| keys.iter().any(|k| k == key));
    let mut buffers = Vec::new();
    let (mut lens, mut result_lens, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    for record in found {
        let mut row = record.to_json(keys.as_deref());
        row.remove("buffers");
        row.remove("result_buffers");
        rows.push(Value::from(row));
        if wants("buffers") {
            lens.push(record.buffers.len());
            buffers.extend(record.buffers);
        }
        if wants("result_buffers") {
            result_lens.push(record.result_buffers.len());
            buffers.extend(record.result_buffers);
        }
    }
    let reply = json!({
        "status": "ok",
        "records": rows,
        "buffer_lens": wants("buffers").then_some(lens),
        "result_buffer_lens": wants("result_buffers").then_some(result_lens),
    });
    Ok(Response::Content(to_json(&reply), buffers))
}
