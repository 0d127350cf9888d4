//! Requests of ipyparallel clients: each is a task of its client's map, with the frames of request and reply.
use super::tasks::Prior;
use super::{Batch, Text, some_text};
use crate::db::buffers;
use crate::db::outputs;
use crate::model::change::{Reply, Request, RequestOutput};
use crate::model::output::{Output, Stream};
use crate::model::task::TaskState;
use crate::model::{EngineId, TaskId};
use bytes::Bytes;
use rusqlite::types::Value;
use rusqlite::{OptionalExtension, params};
use serde::Deserialize;

impl Batch<'_> {
    /// Small ones as one blob in the row, else the name of their file.
    pub(super) fn buffers(&mut self, list: &[Bytes]) -> Value {
        match self.stored.take() {
            Some(name) => Value::Text(name),
            None => buffers::encode(list).map_or(Value::Null, Value::Blob),
        }
    }

    fn request_task(&self, msg_id: &str) -> rusqlite::Result<Option<TaskId>> {
        let mut load = self.connection.prepare_cached("SELECT task FROM request WHERE msg_id = ?1")?;
        load.query_row([msg_id], |row| row.get(0).map(TaskId::from_row_id)).optional()
    }

    fn known_request(&mut self, msg_id: &str, change: &str) -> rusqlite::Result<Option<(TaskId, Prior)>> {
        let Some(task) = self.request_task(msg_id)? else {
            tracing::warn!(msg_id, change, "change ignored: unknown request");
            return Ok(None);
        };
        Ok(self.prior(task, change)?.map(|prior| (task, prior)))
    }

    pub(super) fn request_added(&mut self, task: TaskId, request: &Request) -> rusqlite::Result<()> {
        if self.counted(task.map, "RequestAdded")?.is_none() || self.request_task(&request.msg_id)?.is_some() {
            return Ok(());
        }
        // Addressed to an engine: sent immediately.
        let engine = match &request.engine {
            Some(uuid) => self.id_of(uuid)?,
            None => None,
        };
        let state = engine.map_or(TaskState::Ready, |_| TaskState::Assigned);
        let add = "INSERT OR IGNORE INTO task (id, state, submitted, engine) VALUES (?1, ?2, ?3, ?4)";
        let added = self.connection.prepare_cached(add)?.execute(params![
            task.row_id(),
            state.as_str(),
            request.submitted.0,
            engine.map(|e| e.0)
        ])?;
        if added == 0 {
            tracing::warn!(%task, msg_id = request.msg_id, "RequestAdded not recorded: the task is another request's");
            return Ok(());
        }
        let sql = "INSERT INTO request (task, msg_id, queue, client, engine_uuid, label, header, metadata, content, buffers) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        let buffers = self.buffers(&request.buffers);
        self.connection.prepare_cached(sql)?.execute(params![
            task.row_id(),
            request.msg_id,
            request.queue,
            request.client,
            request.engine.as_ref().map(|uuid| &*uuid.0),
            request.label,
            Text(&request.header),
            Text(&request.metadata),
            Text(&request.content),
            buffers,
        ])?;
        if let Some(counted) = self.counted(task.map, "RequestAdded")? {
            counted.counts.total += 1;
        }
        self.count_step(task.map, TaskState::Ready, state)
    }

    /// Only the first reply counts.
    pub(super) fn request_finished(&mut self, msg_id: &str, reply: &Reply) -> rusqlite::Result<()> {
        if !reply.status.is_done() {
            tracing::warn!(msg_id, state = %reply.status, "RequestFinished not recorded: that is not a finished state");
            return Ok(());
        }
        let Some((task, prior)) = self.known_request(msg_id, "RequestFinished")? else {
            return Ok(());
        };
        let sql = "UPDATE request SET engine_uuid = COALESCE(?2, engine_uuid), received = ?3, result_header = ?4, result_metadata = ?5, \
                   result_content = ?6, result_buffers = ?7 WHERE task = ?1 AND result_header IS NULL";
        let buffers = self.buffers(&reply.buffers);
        let changed = self.connection.prepare_cached(sql)?.execute(params![
            task.row_id(),
            reply.engine.as_ref().map(|(_, uuid)| &*uuid.0),
            reply.received.0,
            Text(&reply.header),
            Text(&reply.metadata),
            Text(&reply.content),
            buffers,
        ])?;
        if changed > 0 && !prior.state.is_done() {
            self.end_request_task(task, &prior, reply)?;
        }
        Ok(())
    }

    fn end_request_task(&mut self, task: TaskId, prior: &Prior, reply: &Reply) -> rusqlite::Result<()> {
        let engine: Option<EngineId> = reply.engine.as_ref().map(|(id, _)| *id).or(prior.engine);
        let begun_untold = prior.state != TaskState::Running && reply.started.is_some();
        let error = match reply.status {
            TaskState::Ok => ReplyError::default(),
            _ => serde_json::from_slice(&reply.content).unwrap_or_default(),
        };
        let host = self.host(engine)?;
        let [stdout, stderr, _] = self.take_output(task)?;
        let empty = Output::default();
        let stdout = self.column(task, prior.run, Stream::Stdout, stdout, &empty)?;
        let stderr = self.column(task, prior.run, Stream::Stderr, stderr, &empty)?;
        let sql = "UPDATE task SET state = ?2, attempts = ?3, engine = ?4, host = ?5, started = COALESCE(?6, started), completed = ?7, \
                   ename = ?8, evalue = ?9, stdout = ?10, stderr = ?11, traceback = ?12 WHERE id = ?1";
        self.connection.prepare_cached(sql)?.execute(params![
            task.row_id(),
            reply.status.as_str(),
            prior.attempts + u32::from(begun_untold),
            engine.map(|e| e.0),
            host,
            reply.started.map(|t| t.0),
            reply.completed.0,
            some_text(&error.ename),
            some_text(&error.evalue),
            stdout,
            stderr,
            some_text(&error.traceback.text()),
        ])?;
        self.count_step(task.map, prior.state, reply.status)
    }

    pub(super) fn request_resubmitted(&mut self, msg_id: &str, new_id: &str) -> rusqlite::Result<()> {
        let sql = "UPDATE request SET resubmitted = ?2 WHERE msg_id = ?1";
        self.connection.prepare_cached(sql)?.execute(params![msg_id, new_id])?;
        Ok(())
    }

    pub(super) fn reply_undelivered(&mut self, task: TaskId) -> rusqlite::Result<()> {
        let sql = "INSERT OR IGNORE INTO undelivered (task) SELECT task FROM request WHERE task = ?1";
        self.connection.prepare_cached(sql)?.execute([task.row_id()])?;
        Ok(())
    }

    pub(super) fn replies_delivered(&mut self, tasks: &[TaskId]) -> rusqlite::Result<()> {
        let mut delete = self.connection.prepare_cached("DELETE FROM undelivered WHERE task = ?1")?;
        tasks.iter().try_for_each(|task| delete.execute([task.row_id()]).map(drop))
    }

    pub(super) fn request_output(&mut self, msg_id: &str, output: &RequestOutput) -> rusqlite::Result<()> {
        let Some((task, prior)) = self.known_request(msg_id, "RequestOutput")? else {
            return Ok(());
        };
        match output {
            RequestOutput::Stream { stderr, text } => {
                let stream = if *stderr { Stream::Stderr } else { Stream::Stdout };
                let bytes = Bytes::copy_from_slice(text.as_bytes());
                match prior.state.is_done() {
                    // Published before the reply, arrived after it.
                    true => self.add_late_output(task, prior.run, stream, bytes),
                    false => self.add_output(task, prior.run, stream, &bytes),
                }
            }
            RequestOutput::Json { kind, content } => self.request_json(task, kind, content),
        }
    }

    fn add_late_output(&mut self, task: TaskId, run: u32, stream: Stream, bytes: Bytes) -> rusqlite::Result<()> {
        let name = stream.as_str();
        let mut load = self.connection.prepare_cached(&format!("SELECT {name} FROM task WHERE id = ?1"))?;
        let before = load.query_row([task.row_id()], |row| Ok(outputs::stored(row.get_ref(0)?)))?;
        drop(load);
        let column = self.column(task, run, stream, Some(before), &Output::whole(bytes))?;
        let sql = format!("UPDATE task SET {name} = ?2 WHERE id = ?1");
        self.connection.prepare_cached(&sql)?.execute(params![task.row_id(), column])?;
        Ok(())
    }

    fn request_json(&mut self, task: TaskId, kind: &str, content: &Bytes) -> rusqlite::Result<()> {
        let sql = match kind {
            "execute_input" => "UPDATE request SET execute_input = ?2 WHERE task = ?1",
            "execute_result" => "UPDATE request SET execute_result = ?2 WHERE task = ?1",
            "error" => "UPDATE request SET error = ?2 WHERE task = ?1",
            other => {
                tracing::warn!(%task, kind = other, "RequestOutput not recorded: of an unknown kind");
                return Ok(());
            }
        };
        self.connection
            .prepare_cached(sql)?
            .execute(params![task.row_id(), Text(content)])?;
        // The text that an interactive result displays.
        if let ("execute_result", Ok(Displayed { data })) = (kind, serde_json::from_slice(content)) {
            let mut write = self.connection.prepare_cached("UPDATE task SET repr = ?2 WHERE id = ?1")?;
            write.execute(params![task.row_id(), data.plain])?;
        }
        Ok(())
    }
}

/// The error in a reply's content, parsed leniently because it may come from an ipengine.
#[derive(Deserialize, Default)]
#[serde(default)]
struct ReplyError {
    ename: String,
    evalue: String,
    traceback: Traceback,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Traceback {
    Text(String),
    Lines(Vec<String>),
    Other(serde::de::IgnoredAny),
}

impl Default for Traceback {
    fn default() -> Self {
        Traceback::Text(String::new())
    }
}

impl Traceback {
    fn text(&self) -> String {
        match self {
            Traceback::Text(text) => text.clone(),
            Traceback::Lines(lines) => lines.join("\n"),
            Traceback::Other(_) => String::new(),
        }
    }
}

#[derive(Deserialize)]
struct Displayed {
    data: Plain,
}
#[derive(Deserialize)]
struct Plain {
    #[serde(rename = "text/plain")]
    plain: String,
}
