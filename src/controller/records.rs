//! The records, on two threads of their own: one writes batches of changes, one answers questions out of what is committed.
//!
//! To wake a thread takes longer than to commit a few changes, so a small batch is written, and a small question answered,
//! by who asks, while that thread has nothing to do. Large ones go to the threads, and so does everything after them until they are done.
use super::core::event::{FoundMap, FoundRequest, FoundTask};
use super::core::{Ask, Event, Expired, Query};
use super::rescue::{self, Copy};
use crate::db::{DbError, FoundValue, Reader, RequestRecord, Writer};
use crate::model::change::{Attempt, Change};
use crate::model::definition::Work;
use crate::model::query::{MapQuery, TaskQuery};
use crate::model::task::{INPUTS_MISSING, TaskRow, TaskState};
use crate::model::{EngineUuid, MapId, TaskId, UnixTime};
use crate::wire::content::client::{self as say, Selection, ok};
use crate::wire::content::engine::{ValuePart, Values, ValuesRequest};
use crate::wire::content::error::ErrorContent;
use crate::wire::message::to_json;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Between two tries of a batch that could not be written.
const RETRY: Duration = Duration::from_secs(1);
/// Of these tries, every so many is logged.
const LOG_EACH: u32 = 30;
/// A batch is small up to this [`weight`].
const SMALL: usize = 64;
/// Bytes that weigh as much as one change.
const BYTES: usize = 4096;
/// A commit that took so long,
const SLOW: Duration = Duration::from_millis(20);
/// ... as on a busy disk or a network file system, sends those of so long to the thread.
const SLOW_FOR: Duration = Duration::from_millis(500);
/// Results that a small question can bring.
const FEW: u64 = 8;
/// Bytes of a task's output in one answer.
const MOST_OUTPUT: usize = 1 << 20;
/// Before each step of tidying up: batches come first.
const TIDY_PAUSE: Duration = Duration::from_millis(5);
/// ... but under load, too, there is a step this often.
const TIDY_AT_LEAST: Duration = Duration::from_millis(250);

pub(super) struct Records {
    writer: Arc<Mutex<Writer>>,
    /// Over the writer's connection, whose pages are those of the last commit.
    reader: Reader,
    /// Queries that the thread has not answered.
    asked: usize,
    slow_until: Option<Instant>,
    changes: Option<std_mpsc::Sender<Vec<Change>>>,
    queries: Option<std_mpsc::Sender<Query>>,
    threads: Vec<std::thread::JoinHandle<()>>,
    copy: Arc<Mutex<Option<Copy>>>,
    /// Its end ends the watch over the file.
    watched: Option<std_mpsc::Sender<()>>,
}

/// What the threads say.
pub(super) enum Word {
    /// The batch is on disk.
    Committed,
    /// The thread's word on a query.
    Asked(Box<Word>),
    /// For a client.
    Answer {
        query: Box<Query>,
        content: Bytes,
        buffers: Vec<Bytes>,
    },
    /// For the core.
    Found(Box<Event>),
}

impl Records {
    pub(super) fn start(writer: Writer, reader: Reader) -> std::io::Result<(Records, mpsc::UnboundedReceiver<Word>)> {
        let (words, heard) = mpsc::unbounded_channel();
        let (changes, to_write) = std_mpsc::channel();
        let (queries, to_answer) = std_mpsc::channel();
        let committed = words.clone();
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
                .spawn(move || answer(&reader, &to_answer, &words))?,
        ];
        Ok((
            Records {
                writer,
                reader: quick,
                asked: 0,
                slow_until: None,
                changes: Some(changes),
                queries: Some(queries),
                threads,
                copy,
                watched: Some(watched),
            },
            heard,
        ))
    }

    /// True when the batch is on disk; else [`Word::Committed`] will say so. Nothing else may be written meanwhile.
    pub(super) fn write(&mut self, batch: Vec<Change>) -> bool {
        if self.slow_until.is_none_or(|until| until <= Instant::now())
            && self.is_free()
            && batch.iter().map(weight).sum::<usize>() <= SMALL
            && let Ok(mut writer) = self.writer.try_lock()
        {
            let began = Instant::now();
            // The thread says what is wrong, and tries again.
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

    /// The answer, if it can be had at once; else the thread will say it, and [`Records::answered`] is to be called.
    pub(super) fn ask(&mut self, query: Query) -> Option<Word> {
        if is_small(&query.ask) && self.is_free() {
            return Some(word_for(&self.reader, query));
        }
        if let Some(queries) = &self.queries {
            self.asked += 1;
            let _ = queries.send(query);
        }
        None
    }

    /// Nobody reads long on the writer's connection.
    fn is_free(&self) -> bool {
        self.asked == 0 || self.writer.try_lock().is_ok_and(|writer| !writer.is_exclusive())
    }

    /// The thread has answered a query.
    pub(super) fn answered(&mut self) {
        self.asked = self.asked.saturating_sub(1);
    }

    /// Waits until everything is written and the file is closed. False: not in order.
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
            tracing::warn!(%error, "the database was not closed in order");
            return false;
        }
        // What is in them is in the copy, and the next database would not be opened beside them.
        orphaned.iter().for_each(|path| drop(std::fs::remove_file(path)));
        true
    }
}

fn now() -> UnixTime {
    super::driver::unix_now()
}

/// About how much work a change is to write, a small change being one.
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

fn is_small(ask: &Ask) -> bool {
    matches!(ask, Ask::Watch { most, .. } if *most <= FEW)
}

fn write(writer: &Mutex<Writer>, batches: &std_mpsc::Receiver<Vec<Change>>, words: &mpsc::UnboundedSender<Word>) {
    let mut tidied = Instant::now();
    while let Some(batch) = next(writer, batches, &mut tidied) {
        // Nobody is told of what is not on disk, so a batch is tried until it is: a full disk may be emptied.
        let since = Instant::now();
        let mut tries = 0;
        while let Err(error) = writer.lock().unwrap_or_else(PoisonError::into_inner).apply(&batch) {
            if tries % LOG_EACH == 0 {
                tracing::error!(%error, hint = error.hint(), "the records cannot be written; nothing goes on until they can");
            }
            tries += 1;
            std::thread::sleep(RETRY);
            if words.is_closed() {
                return;
            }
        }
        if tries > 0 {
            tracing::warn!("the records can be written again, after {:.0} s", since.elapsed().as_secs_f64());
        }
        if words.send(Word::Committed).is_err() {
            return;
        }
    }
}

/// The next batch. While there is none, and now and then in between, what follows a purge is done a step at a time.
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
            tracing::warn!(%error, "the records are not tidied up now");
            pause = RETRY;
        }
    }
    batches.recv().ok()
}

fn answer(reader: &Reader, queries: &std_mpsc::Receiver<Query>, words: &mpsc::UnboundedSender<Word>) {
    while let Ok(query) = queries.recv() {
        let word = Word::Asked(Box::new(word_for(reader, query)));
        if words.send(word).is_err() {
            return;
        }
    }
}

fn word_for(reader: &Reader, query: Query) -> Word {
    match respond(reader, &query) {
        Ok(Response::Content(content, buffers)) => Word::Answer {
            query: Box::new(query),
            content,
            buffers,
        },
        Ok(Response::Event(event)) => Word::Found(event),
        Err(error) => {
            let mut content = ErrorContent::new("DatabaseError", error.to_string());
            content.hint = error.hint();
            Word::Answer {
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
    let content = match &query.ask {
        Ask::Watch {
            map,
            from,
            limit,
            complete,
            engines,
            most: _,
            begun,
        } => {
            let (counts, results) = reader.finished_from(*map, *from, *limit)?;
            let buffers = say::row_buffers(&results);
            let reply = say::WatchReply {
                status: ok(),
                counts,
                complete: *complete,
                engines: *engines,
                results,
            };
            let content = match begun {
                None => to_json(&reply),
                Some(engines) => to_json(&say::MapReply {
                    status: ok(),
                    map: *map,
                    engines: engines.clone(),
                    update: Some(reply),
                }),
            };
            return Ok(Response::Content(content, buffers));
        }
        Ask::MapOf { key, request, bundle } => {
            let (request, map) = (request.clone(), reader.map_of_client(key)?);
            let bundle = bundle.as_ref().map(|hash| reader.bundle(hash)).transpose()?.flatten();
            return Ok(Response::Event(Box::new(Event::MapFound { request, map, bundle })));
        }
        Ask::Maps { maps, since, label, limit } => {
            let query = MapQuery {
                maps: maps.clone(),
                since: *since,
                label: label.clone(),
                limit: *limit,
            };
            to_json(&say::MapsReply {
                status: ok(),
                maps: reader.maps(&query)?,
            })
        }
        Ask::Tasks { query } => {
            let (tasks, matching) = reader.tasks(query)?;
            let buffers = say::row_buffers(&tasks);
            let reply = say::TasksReply {
                status: ok(),
                tasks,
                matching,
            };
            return Ok(Response::Content(to_json(&reply), buffers));
        }
        Ask::Jobs { list, gone_since } => to_json(&say::JobsReply {
            status: ok(),
            jobs: if *list { reader.jobs()? } else { Vec::new() },
            gone: gone_since.map_or(Ok(Vec::new()), |since| reader.departures(since))?,
        }),
        Ask::Details { task, files } => {
            let (definition, earlier) = (reader.map_definition(task.map)?, reader.attempts(*task)?);
            let bundle = definition.as_ref().filter(|_| *files).and_then(|definition| definition.bundle());
            let files = bundle.map(|named| reader.file_hashes(named)).transpose()?.unwrap_or_default();
            to_json(&say::DetailsReply {
                status: ok(),
                definition,
                earlier,
                files,
            })
        }
        Ask::Output(asked) => {
            let limit = (asked.limit as usize).min(MOST_OUTPUT);
            let Some((size, bytes)) = reader.output(asked.task, asked.run, asked.stream, asked.start, limit)? else {
                let content = ErrorContent::new("NoSuchTask", format!("there is no task {}, or no such run of it", asked.task));
                return Ok(Response::Content(to_json(&content), vec![]));
            };
            let reply = say::OutputReply { status: ok(), size };
            return Ok(Response::Content(to_json(&reply), vec![bytes]));
        }
        Ask::Values { engine, request } => return Ok(values(reader, engine.clone(), request)),
        Ask::Resubmit { selection, definition } => {
            return Ok(Response::Event(Box::new(Event::ResubmitFound {
                client: query.client.clone(),
                parent: query.parent.clone(),
                request: query.request.clone(),
                selection: selection.clone(),
                definition: definition.clone(),
                maps: finished_tasks(reader, selection)?,
            })));
        }
        Ask::Expired { before } => {
            // Nobody waits for an error: another look follows.
            let found = reader.expired(*before).unwrap_or_else(|error| {
                tracing::warn!(%error, "what is to be forgotten cannot be told");
                Default::default()
            });
            let (maps, requests, empty) = (found.maps, found.requests, found.empty);
            return Ok(Response::Event(Box::new(Event::ExpiredFound(Expired { maps, requests, empty }))));
        }
        Ask::Results {
            msg_ids,
            pending,
            status_only,
        } => return results(reader, msg_ids, pending, *status_only),
        Ask::History => to_json(&json!({"status": "ok", "history": reader.request_history()?})),
        Ask::Records { query } => return records(reader, query),
        Ask::ResubmitRequests { msg_ids } => {
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

/// For a task of `--reduce`. The engine waits for an answer, whatever it is.
fn values(reader: &Reader, engine: EngineUuid, request: &ValuesRequest) -> Response {
    let (found, error) = match reader.values(&request.of, request.start, MOST_OUTPUT) {
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
        // One that stands for inputs that never came cannot run.
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

/// ipyparallel's `result_reply`: what is pending, what is complete, and the records of the complete ones with their buffers
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
