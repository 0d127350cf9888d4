//! Requests of ipyparallel clients, as in ipyparallel's hub database.
use super::error::QueryError;
use super::find::{Field, Filter};
use super::large::Large;
use super::outputs::{self, Outputs};
use super::restart::bytes;
use super::schema;
use super::{DbError, Reader};
use crate::model::output::Stream;
use crate::model::{TaskId, UnixTime};
use bytes::Bytes;
use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, Row, params_from_iter};
use serde_json::Value;

/// One request with its reply: the fields of ipyparallel's task record. Texts of JSON stay texts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RequestRecord {
    pub msg_id: String,
    pub task: Option<TaskId>,
    pub header: Option<Bytes>,
    pub metadata: Option<Bytes>,
    pub content: Option<Bytes>,
    pub buffers: Vec<Bytes>,
    pub submitted: Option<UnixTime>,
    pub client_uuid: Option<String>,
    pub engine_uuid: Option<String>,
    pub started: Option<UnixTime>,
    pub completed: Option<UnixTime>,
    /// The id under which it was run again.
    pub resubmitted: Option<String>,
    /// When the reply reached the controller.
    pub received: Option<UnixTime>,
    pub result_header: Option<Bytes>,
    pub result_metadata: Option<Bytes>,
    pub result_content: Option<Bytes>,
    pub result_buffers: Vec<Bytes>,
    pub queue: Option<String>,
    pub execute_input: Option<String>,
    pub execute_result: Option<Bytes>,
    pub error: Option<Bytes>,
    pub stdout: String,
    pub stderr: String,
    pub label: Option<String>,
}

impl RequestRecord {
    /// The record (or of it, `msg_id` and `keys`) as JSON without buffers, as `result_request` and `db_request` are
    /// answered. Dates are ISO 8601, missing values null. Keys that no record has are left out.
    pub(crate) fn to_json(&self, keys: Option<&[String]>) -> serde_json::Map<String, Value> {
        let wanted = |field: &Field| *field == Field::MsgId || keys.is_none_or(|keys| keys.iter().any(|key| key == field.name()));
        let fields = Field::ALL.iter().filter(|field| wanted(field) && !field.is_buffers());
        fields.map(|field| (field.name().to_string(), self.value(*field))).collect()
    }

    /// A field as JSON; null for buffers.
    pub(super) fn value(&self, field: Field) -> Value {
        let json = |text: &Option<Bytes>| text.as_ref().and_then(|t| serde_json::from_slice(t).ok()).unwrap_or(Value::Null);
        let date = |time: &Option<UnixTime>| time.map_or(Value::Null, |time| time.to_iso().into());
        let text = |text: &Option<String>| text.clone().map_or(Value::Null, Value::from);
        match field {
            Field::MsgId => self.msg_id.clone().into(),
            Field::Header => json(&self.header),
            Field::Metadata => json(&self.metadata),
            Field::Content => json(&self.content),
            Field::Submitted => date(&self.submitted),
            Field::ClientUuid => text(&self.client_uuid),
            Field::EngineUuid => text(&self.engine_uuid),
            Field::Started => date(&self.started),
            Field::Completed => date(&self.completed),
            Field::Received => date(&self.received),
            Field::ResultHeader => json(&self.result_header),
            Field::ResultMetadata => json(&self.result_metadata),
            Field::ResultContent => json(&self.result_content),
            Field::Queue => text(&self.queue),
            Field::ExecuteInput => text(&self.execute_input),
            Field::ExecuteResult => json(&self.execute_result),
            Field::Error => json(&self.error),
            Field::Stdout => self.stdout.clone().into(),
            Field::Stderr => self.stderr.clone().into(),
            Field::Label => text(&self.label),
            Field::Resubmitted => text(&self.resubmitted),
            Field::Buffers | Field::ResultBuffers => Value::Null,
        }
    }
}

/// The queues' names as `Request` has them; a name never seen is taken as `task`.
pub(super) fn queue_of(name: &str) -> &'static str {
    ["mux", "broadcast"].into_iter().find(|known| *known == name).unwrap_or("task")
}

impl Reader {
    /// ipyparallel clients' requests with these ids, by submission; unknown ids are left out.
    pub(crate) fn requests(&self, msg_ids: &[String]) -> Result<Vec<RequestRecord>, DbError> {
        let ids = Value::from(msg_ids.to_vec()).to_string();
        self.read("read requests from", |connection| {
            select(
                (connection, &self.large, &self.outputs),
                &Field::ALL,
                "r.msg_id IN (SELECT value FROM json_each(?))",
                vec![ids.into()],
                |_| true,
            )
        })
    }

    /// All requests' ids by time of submission.
    pub(crate) fn request_history(&self) -> Result<Vec<String>, DbError> {
        self.msg_ids("FROM request r JOIN task t ON t.id = r.task ORDER BY t.submitted, t.id")
    }

    fn msg_ids(&self, from: &str) -> Result<Vec<String>, DbError> {
        self.read("read requests from", |connection| {
            let mut select = connection.prepare_cached(&format!("SELECT r.msg_id {from}"))?;
            let found = select.query_map([], |row| row.get(0))?;
            found.collect()
        })
    }

    /// ipyparallel's `db_request`: a MongoDB-like query over requests, e.g. `{"completed": {"$ne": null}}`. With `keys`,
    /// the other fields are left empty (`msg_id` never is). Fails with [`super::DbErrorKind::Query`] if the query is invalid.
    pub(crate) fn find_records(&self, query: &Value, keys: Option<&[String]>) -> Result<Vec<RequestRecord>, DbError> {
        const OPERATION: &str = "read requests from";
        let bad = |cause: QueryError| self.bad_query(OPERATION, &cause);
        let filter = Filter::parse(query).map_err(bad)?;
        let mut wanted: Vec<Field> = match keys {
            None | Some([]) => Field::ALL.to_vec(),
            Some(keys) => keys.iter().map(|key| Field::parse(key)).collect::<Result<_, _>>().map_err(bad)?,
        };
        wanted.push(Field::MsgId);
        self.read(OPERATION, |connection| {
            let (narrow, values) = filter.narrow();
            // First reads only the tested fields, then the requested fields of the matches.
            let matches = select(
                (connection, &self.large, &self.outputs),
                &filter.fields(),
                &narrow,
                values,
                |record| filter.matches(record),
            )?;
            let rows = Value::from_iter(matches.iter().filter_map(|record| record.task).map(|task| task.row_id()));
            let narrow = "r.task IN (SELECT value FROM json_each(?))";
            select(
                (connection, &self.large, &self.outputs),
                &wanted,
                narrow,
                vec![rows.to_string().into()],
                |_| true,
            )
        })
    }
}

/// Records of which only `fields` are read, that `keep` keeps.
fn select(
    (connection, large, outputs): (&Connection, &Large, &Outputs),
    fields: &[Field],
    narrow: &str,
    values: Vec<SqlValue>,
    mut keep: impl FnMut(&RequestRecord) -> bool,
) -> rusqlite::Result<Vec<RequestRecord>> {
    // A file of before is read as it is.
    let has_resubmitted = schema::version(connection)? >= 5;
    let columns: Vec<String> = Field::ALL
        .iter()
        .map(|f| match f {
            Field::Resubmitted if !has_resubmitted => "NULL".into(),
            f if !fields.contains(f) => "NULL".into(),
            Field::Stdout => outputs::so_far(Stream::Stdout),
            Field::Stderr => outputs::so_far(Stream::Stderr),
            f => f.sql().into(),
        })
        .collect();
    let sql = format!(
        "SELECT r.task, {} FROM request r JOIN task t ON t.id = r.task WHERE {narrow} ORDER BY t.submitted, t.id",
        columns.join(", ")
    );
    let mut select = connection.prepare_cached(&sql)?;
    let mut rows = select.query(params_from_iter(values))?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        let record = record(row, large, outputs)?;
        if keep(&record) {
            records.push(record);
        }
    }
    Ok(records)
}

/// The maximum number of bytes of an output returned as text.
const MAX_TEXT: usize = 64 << 20;

fn text(task: TaskId, stream: Stream, stored: &outputs::Stored, outputs: &Outputs) -> String {
    let bytes = outputs.read(task, stream, stored, 0, MAX_TEXT).unwrap_or_else(|error| {
        tracing::warn!(%task, %error, "the output of a request cannot be read");
        Bytes::new()
    });
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    let more = stored.size() - bytes.len() as u64;
    if more > 0 {
        let stream = stream.as_str();
        text.push_str(&format!("\n[... {more} more bytes: pcluster results {task} --{stream} ...]\n"));
    }
    text
}

/// The columns stand in the order of [`Field::ALL`], after the task.
fn record(row: &Row, large: &Large, outputs: &Outputs) -> rusqlite::Result<RequestRecord> {
    let mut record = RequestRecord {
        task: Some(TaskId::from_row_id(row.get(0)?)),
        ..RequestRecord::default()
    };
    for (column, field) in (1..).zip(Field::ALL) {
        let json = || -> rusqlite::Result<_> { Ok(Some(bytes(row, column)?).filter(|b| !b.is_empty())) };
        let time = || -> rusqlite::Result<_> { Ok(row.get::<_, Option<f64>>(column)?.map(UnixTime)) };
        let list = || large.list(row, column);
        let whole = |stream| -> rusqlite::Result<_> {
            Ok(text(
                TaskId::from_row_id(row.get(0)?),
                stream,
                &outputs::stored(row.get_ref(column)?),
                outputs,
            ))
        };
        match field {
            Field::MsgId => record.msg_id = row.get::<_, Option<String>>(column)?.unwrap_or_default(),
            Field::Header => record.header = json()?,
            Field::Metadata => record.metadata = json()?,
            Field::Content => record.content = json()?,
            Field::Buffers => record.buffers = list()?,
            Field::Submitted => record.submitted = time()?,
            Field::ClientUuid => record.client_uuid = row.get(column)?,
            Field::EngineUuid => record.engine_uuid = row.get(column)?,
            Field::Started => record.started = time()?,
            Field::Completed => record.completed = time()?,
            Field::Resubmitted => record.resubmitted = row.get(column)?,
            Field::Received => record.received = time()?,
            Field::ResultHeader => record.result_header = json()?,
            Field::ResultMetadata => record.result_metadata = json()?,
            Field::ResultContent => record.result_content = json()?,
            Field::ResultBuffers => record.result_buffers = list()?,
            Field::Queue => record.queue = row.get(column)?,
            Field::ExecuteInput => record.execute_input = row.get(column)?,
            Field::ExecuteResult => record.execute_result = json()?,
            Field::Error => record.error = json()?,
            Field::Stdout => record.stdout = whole(Stream::Stdout)?,
            Field::Stderr => record.stderr = whole(Stream::Stderr)?,
            Field::Label => record.label = row.get(column)?,
        }
    }
    Ok(record)
}
