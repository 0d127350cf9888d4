//! Answers to queries, from the records.
use super::core::event::{Expired, FoundMap, FoundRequest, FoundTask};
use super::core::{Event, Query, QueryKind};
use crate::db::{DbError, FoundValue, Reader, RequestRecord};
use crate::model::definition::Work;
use crate::model::query::{MapQuery, TaskQuery};
use crate::model::task::{INPUTS_MISSING, TaskRow, TaskState};
use crate::model::{EngineId, EngineUuid, MapId, TaskId};
use crate::wire::content::client::{self, Selection, ok};
use crate::wire::content::engine::{ValuePart, Values, ValuesRequest};
use crate::wire::content::error::ErrorContent;
use crate::wire::message::to_json;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of a task's output in one answer.
const MAX_OUTPUT: usize = 1 << 20;

pub(super) enum Response {
    /// For a client.
    Content(Bytes, Vec<Bytes>),
    /// For the core.
    Event(Box<Event>),
}

fn content<T: Serialize>(content: &T) -> Response {
    Response::Content(to_json(content), Vec::new())
}

fn event(event: Event) -> Response {
    Response::Event(Box::new(event))
}

pub(super) fn respond(reader: &Reader, query: &Query) -> Result<Response, DbError> {
    Ok(match &query.kind {
        QueryKind::Watch {
            map,
            from,
            limit,
            without_inputs,
            complete,
            engines,
            most: _,
            begun,
        } => {
            let (counts, results) = reader.finished_from(*map, *from, *limit, !without_inputs)?;
            let reply = client::WatchReply {
                status: ok(),
                counts,
                complete: *complete,
                engines: *engines,
                results,
            };
            watch(*map, reply, begun.clone())
        }
        QueryKind::MapOf { key, request, bundle } => {
            let (request, map) = (request.clone(), reader.map_of_client(key)?);
            let bundle = bundle.as_ref().map(|hash| reader.bundle(hash)).transpose()?.flatten();
            event(Event::MapFound { request, map, bundle })
        }
        QueryKind::Maps { maps, since, label, limit } => {
            let query = MapQuery {
                maps: maps.clone(),
                since: *since,
                label: label.clone(),
                limit: *limit,
            };
            let (status, maps) = (ok(), reader.maps(&query)?);
            content(&client::MapsReply { status, maps })
        }
        QueryKind::Tasks { query } => {
            let (tasks, matching) = reader.tasks(query)?;
            let buffers = client::row_buffers(&tasks);
            let status = ok();
            let reply = client::TasksReply { status, tasks, matching };
            Response::Content(to_json(&reply), buffers)
        }
        QueryKind::Jobs { list, gone_since } => content(&client::JobsReply {
            status: ok(),
            jobs: if *list { reader.jobs()? } else { Vec::new() },
            gone: gone_since.map_or(Ok(Vec::new()), |since| reader.departures(since))?,
        }),
        QueryKind::Explain { engines, reply } => {
            let found = engines.as_ref().map(|query| reader.engines(query)).transpose()?;
            content(&client::ExplainReply {
                engines: found.unwrap_or_default(),
                ..(**reply).clone()
            })
        }
        QueryKind::Details { task, files } => details(reader, *task, *files)?,
        QueryKind::Output(request) => output(reader, request)?,
        QueryKind::Values { engine, request } => values(reader, engine.clone(), request),
        QueryKind::Resubmit { selection, definition } => event(Event::ResubmitFound {
            client: query.client.clone(),
            parent: query.parent.clone(),
            request: query.request.clone(),
            selection: selection.clone(),
            definition: definition.clone(),
            maps: finished_tasks(reader, selection)?,
        }),
        QueryKind::Expired { before } => {
            // No client waits for this query, and the next check follows.
            let found = reader.expired(*before).unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot find expired records");
                Default::default()
            });
            let (maps, requests, empty) = (found.maps, found.requests, found.empty);
            event(Event::ExpiredFound(Expired { maps, requests, empty }))
        }
        QueryKind::Results {
            msg_ids,
            pending,
            status_only,
        } => results(reader, msg_ids, pending, *status_only)?,
        QueryKind::History => content(&json!({"status": "ok", "history": reader.request_history()?})),
        QueryKind::Records { query } => records(reader, query)?,
        QueryKind::ResubmitRequests { msg_ids } => {
            let found: Vec<FoundRequest> = reader.requests(msg_ids)?.into_iter().map(found_request).collect();
            let known: HashSet<&String> = found.iter().map(|f| &f.msg_id).collect();
            let missing = msg_ids.iter().filter(|id| !known.contains(id)).cloned().collect();
            event(Event::RequestsFound {
                client: query.client.clone(),
                parent: query.parent.clone(),
                request: query.request.clone(),
                found,
                missing,
            })
        }
    })
}

/// Answers a watch; with `begun`, the map's engines, the `map_request` that it is part of.
fn watch(map: MapId, reply: client::WatchReply, begun: Option<Vec<EngineId>>) -> Response {
    let buffers = client::row_buffers(&reply.results);
    let content = match begun {
        None => to_json(&reply),
        Some(engines) => to_json(&client::MapReply {
            status: ok(),
            map,
            engines,
            update: Some(reply),
        }),
    };
    Response::Content(content, buffers)
}

fn details(reader: &Reader, task: TaskId, files: bool) -> Result<Response, DbError> {
    let (definition, earlier) = (reader.map_definition(task.map)?, reader.attempts(task)?);
    let bundle = definition.as_ref().filter(|_| files).and_then(|definition| definition.bundle());
    let files = bundle.map(|named| reader.file_hashes(named)).transpose()?.unwrap_or_default();
    Ok(content(&client::DetailsReply {
        status: ok(),
        definition,
        earlier,
        files,
    }))
}

fn output(reader: &Reader, output: &client::OutputRequest) -> Result<Response, DbError> {
    if output.as_file
        && let Some((size, path)) = reader.output_file(output.task, output.run, output.stream)?
        && let Some(file) = recorded_file(&path)
    {
        let (status, file) = (ok(), Some(file));
        return Ok(content(&client::OutputReply { status, size, file }));
    }
    let limit = (output.limit as usize).min(MAX_OUTPUT);
    let found = reader.output(output.task, output.run, output.stream, output.start, limit)?;
    let Some((size, bytes)) = found else {
        let none = format!("no task {}, or no such run of it", output.task);
        return Ok(content(&ErrorContent::new("NoSuchTask", none)));
    };
    let (status, file) = (ok(), None);
    let reply = client::OutputReply { status, size, file };
    Ok(Response::Content(to_json(&reply), vec![bytes]))
}

fn recorded_file(path: &Path) -> Option<client::RecordedFile> {
    let facts = std::fs::metadata(path).ok()?;
    Some(client::RecordedFile {
        path: path.canonicalize().ok()?.to_str()?.into(),
        device: facts.dev(),
        inode: facts.ino(),
        modified_ns: facts.mtime().wrapping_mul(1_000_000_000).wrapping_add(facts.mtime_nsec()),
    })
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
    event(Event::ValuesFound { engine, values, buffers })
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
                used: Default::default(),
                ask: Default::default(),
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
                let none = format!("'No such message: {id}'");
                return Ok(content(&ErrorContent::new("KeyError", none)));
            }
        }
    }
    let mut reply = Map::new();
    reply.insert("status".into(), "ok".into());
    reply.insert("pending".into(), still.into());
    reply.insert("completed".into(), completed.into());
    reply.append(&mut bodies);
    Ok(Response::Content(to_json(&reply), buffers))
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
