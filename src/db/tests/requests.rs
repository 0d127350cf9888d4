//! Requests of ipyparallel clients.
use super::*;
use crate::db::{DbErrorKind, RequestRecord};
use crate::model::change::{Purge, Reply, Request, RequestOutput};
use serde_json::json;

pub(super) fn reply() -> Reply {
    Reply {
        status: TaskState::Ok,
        engine: Some((EngineId(0), "uuid-0".into())),
        header: "{\"msg_id\":\"r\"}".into(),
        metadata: "{\"engine_id\":0}".into(),
        content: "{\"status\":\"ok\"}".into(),
        buffers: vec![Bytes::from_static(b"\x80\x04"), Bytes::new()],
        started: Some(UnixTime(2000.0)),
        completed: UnixTime(2001.5),
        received: UnixTime(2001.75),
    }
}

pub(super) fn request(msg_id: &str, queue: &'static str, submitted: f64) -> Request {
    Request {
        msg_id: msg_id.into(),
        queue,
        client: "session".into(),
        header: format!("{{\"msg_id\":\"{msg_id}\",\"msg_type\":\"apply_request\"}}").into(),
        metadata: "{}".into(),
        content: "{\"n\":1.0}".into(),
        buffers: vec![Bytes::from_static(b"code"), Bytes::from_static(&[0, 255])],
        buffer_file: Default::default(),
        engine: (queue == "mux").then(|| "uuid-0".into()),
        submitted: UnixTime(submitted),
        label: None,
    }
}

pub(super) fn added(index: u32, request: Request) -> Change {
    Change::RequestAdded {
        task: task(1, index),
        request: Box::new(request),
    }
}

pub(super) fn replied(msg_id: &str, reply: Reply) -> Change {
    Change::RequestFinished {
        msg_id: msg_id.into(),
        reply: Box::new(reply),
    }
}

fn output(msg_id: &str, output: RequestOutput) -> Change {
    Change::RequestOutput {
        msg_id: msg_id.into(),
        output,
    }
}

fn failure() -> Reply {
    Reply {
        status: TaskState::Error,
        content: json!({"status": "error", "ename": "NameError", "evalue": "x", "traceback": ["a", "b"]})
            .to_string()
            .into(),
        buffers: vec![],
        ..reply()
    }
}

/// A client's.
pub(super) fn session() -> Change {
    Change::MapAdded {
        map: MapId(1),
        definition: Box::new(MapDefinition {
            work: Work::Client { curve_key: None },
            options: MapOptions::default(),
        }),
        client: "session".into(),
        submitted: UnixTime(1000.0),
    }
}

/// Four requests: `a` (mux) ok, `b` (task, label `l`) failed, `c` (task) pending, `d` (mux) sent and pending; `c` is the oldest.
pub(super) fn clients() -> Db {
    let mut db = Db::new();
    let mut labelled = request("b", "task", 1002.0);
    labelled.label = Some("l".into());
    db.apply(&[
        engine(0),
        engine(1),
        session(),
        added(0, request("a", "mux", 1001.0)),
        added(1, labelled),
        added(2, request("c", "task", 1000.5)),
        added(3, request("d", "mux", 1003.0)),
        assigned(1, 1, 1, 1, 1),
        replied("a", reply()),
        replied("b", failure()),
    ]);
    db
}

pub(super) fn one(db: &Db, msg_id: &str) -> RequestRecord {
    db.reader().requests(&[msg_id.to_string(), "unknown".into()]).unwrap().remove(0)
}

#[test]
fn a_request_is_read_back_unchanged() {
    let db = clients();
    let record = one(&db, "a");
    let sent = request("a", "mux", 1001.0);
    assert_eq!(
        (record.header, record.content, record.buffers),
        (Some(sent.header), Some(sent.content), sent.buffers)
    );
    assert_eq!(
        (record.client_uuid.as_deref(), record.engine_uuid.as_deref()),
        (Some("session"), Some("uuid-0"))
    );
    assert_eq!((record.submitted, record.started), (Some(UnixTime(1001.0)), Some(UnixTime(2000.0))));
    assert_eq!(
        (record.completed, record.received),
        (Some(UnixTime(2001.5)), Some(UnixTime(2001.75)))
    );
    assert_eq!(
        (record.result_content, record.result_buffers),
        (Some(reply().content), reply().buffers)
    );
    assert_eq!((record.queue.as_deref(), record.task), (Some("mux"), Some(task(1, 0))));
    // Assigned by the scheduler, though not addressed.
    let pending = one(&db, "c");
    assert_eq!((pending.engine_uuid, pending.completed, pending.result_header), (None, None, None));
}

#[test]
fn requests_are_tasks_too() {
    let db = clients();
    let (a, b, c, d) = (db.task(1, 0), db.task(1, 1), db.task(1, 2), db.task(1, 3));
    assert_eq!(
        (a.state, a.engine, a.host.as_deref(), a.msg_id.as_deref()),
        (TaskState::Ok, Some(EngineId(0)), Some("node0"), Some("a"))
    );
    assert_eq!((a.duration, a.attempts, a.input.is_none()), (Some(1.5), 1, true));
    let error = b.error.unwrap();
    assert_eq!(
        (b.state, error.ename.as_str(), error.traceback.as_str()),
        (TaskState::Error, "NameError", "a\nb")
    );
    assert_eq!(
        (b.label.as_deref(), c.state, d.state),
        (Some("l"), TaskState::Ready, TaskState::Assigned)
    );
    let expected = Counts {
        total: 4,
        ok: 1,
        error: 1,
        assigned: 1,
        ..Counts::default()
    };
    assert_eq!(db.counts(1), expected);
}

#[test]
fn duplicate_changes_are_recorded_once() {
    let mut db = clients();
    db.apply(&[
        added(0, request("a", "mux", 9.0)),
        added(9, request("a", "mux", 9.0)),
        replied("a", failure()),
    ]);
    assert_eq!((db.counts(1).total, db.counts(1).ok), (4, 1));
    assert_eq!(one(&db, "a").result_content, Some(reply().content));
}

#[test]
fn output_before_and_after_the_reply() {
    let mut db = clients();
    let stream = |stderr, text: &str| RequestOutput::Stream { stderr, text: text.into() };
    let json = |kind, content: &'static str| RequestOutput::Json {
        kind,
        content: content.into(),
    };
    db.apply(&[
        output("c", stream(false, "one ")),
        output("c", stream(true, "warn")),
        output("c", json("execute_input", "1 + 1")),
        output("c", json("execute_result", r#"{"data": {"text/plain": "2"}}"#)),
        output("a", stream(false, "late")),
        output("b", json("error", r#"{"ename": "NameError"}"#)),
    ]);
    assert_eq!((one(&db, "c").stdout.as_str(), db.task(1, 2).stdout.as_str()), ("one ", "one "));
    db.apply(&[replied("c", reply()), output("c", stream(false, "two"))]);
    let record = one(&db, "c");
    assert_eq!((record.stdout.as_str(), record.stderr.as_str()), ("one two", "warn"));
    assert_eq!(record.execute_input.as_deref(), Some("1 + 1"));
    assert_eq!(record.to_json(None)["execute_result"], json!({"data": {"text/plain": "2"}}));
    assert_eq!(db.task(1, 2).repr.as_deref(), Some("2"));
    assert_eq!((one(&db, "a").stdout.as_str(), one(&db, "b").error.is_some()), ("late", true));
}

#[test]
fn history_and_pending_requests_are_in_order_of_submission() {
    let db = clients();
    let reader = db.reader();
    assert_eq!(reader.request_history().unwrap(), ["c", "a", "b", "d"]);
}

#[test]
fn a_resubmitted_request_names_its_new_id() {
    let mut db = clients();
    db.apply(&[Change::RequestResubmitted {
        msg_id: "b".into(),
        new_id: "b2".into(),
    }]);
    assert_eq!(one(&db, "b").to_json(None)["resubmitted"], json!("b2"));
    assert_eq!(one(&db, "c").to_json(None)["resubmitted"], json!(null));
}

#[test]
fn records_as_json() {
    let db = clients();
    let all = one(&db, "b").to_json(None);
    assert_eq!(all["submitted"], json!("1970-01-01T00:16:42.000000Z"));
    assert_eq!(all["result_content"]["ename"], json!("NameError"));
    assert_eq!(
        (&all["received"], &all["resubmitted"]),
        (&json!("1970-01-01T00:33:21.750000Z"), &json!(null))
    );
    assert!(!all.contains_key("buffers"));
    let keys = ["completed".to_string(), "nonsense".into(), "result_buffers".into()];
    let some = one(&db, "c").to_json(Some(&keys));
    assert_eq!(serde_json::Value::Object(some), json!({"msg_id": "c", "completed": null}));
}

#[test]
fn queries_match_like_in_ipyparallels_hub() {
    let db = clients();
    let reader = db.reader();
    for (query, expected) in [
        (json!({}), "c a b d"),
        (json!({"msg_id": "a"}), "a"),
        (json!({"msg_id": {"$in": ["d", "a", "x"]}}), "a d"),
        // Python's `in`, as in ipyparallel's own databases: part of a text.
        (json!({"msg_id": {"$in": "xdax"}}), "a d"),
        (json!({"msg_id": {"$nin": "xdax"}, "queue": {"$glob": "m?x*"}}), ""),
        (json!({"msg_id": {"$nin": ["d", "a"]}}), "c b"),
        (json!({"completed": null}), "c d"),
        (json!({"completed": {"$ne": null}}), "a b"),
        (json!({"completed": {"$exists": true}}), "a b"),
        (json!({"started": {"$exists": false}}), "c d"),
        (json!({"submitted": {"$lt": "1970-01-01T00:16:42Z"}}), "c a"),
        (json!({"submitted": {"$gte": "1970-01-01T00:16:42"}}), "b d"),
        (
            json!({"submitted": {"$gt": "1970-01-01T00:16:41.000000Z", "$lte": "1970-01-01T00:16:42+00:00"}}),
            "b",
        ),
        (json!({"submitted": "1970-01-01T00:16:43+00:00"}), "d"),
        (json!({"completed": {"$lt": "2030-01-01T00:00:00Z"}}), "a b"),
        (json!({"engine_uuid": "uuid-0"}), "a b d"),
        (json!({"engine_uuid": "uuid-0", "completed": {"$ne": null}}), "a b"),
        (json!({"engine_uuid": {"$ne": "uuid-0"}}), "c"),
        (json!({"client_uuid": "session", "queue": "task"}), "c b"),
        (json!({"client_uuid": "other"}), ""),
        (json!({"label": "l"}), "b"),
        (json!({"queue": {"$glob": "m?x*"}}), "a d"),
        (json!({"queue": {"$all": ["mux, task", ["mux"]]}}), "a d"),
        (json!({"content": {"$eq": {"n": 1.0}}, "queue": "mux"}), "a d"),
        (json!({"stdout": {"$mod": [2, 0]}}), ""),
        (json!({"error": {"$eq": null}, "msg_id": "a"}), "a"),
        (json!({"msg_id": {}}), "c a b d"),
    ] {
        let keys = ["submitted".to_string()];
        let found = reader.find_records(&query, Some(&keys)).unwrap();
        let ids: Vec<_> = found.iter().map(|record| record.msg_id.as_str()).collect();
        assert_eq!(ids.join(" "), expected, "{query}");
        assert!(found.iter().all(|record| record.submitted.is_some() && record.header.is_none()));
    }
    let whole = reader.find_records(&json!({"msg_id": "a"}), None).unwrap();
    assert_eq!(whole, reader.requests(&["a".into()]).unwrap());
}

#[test]
fn invalid_queries_are_rejected() {
    let db = clients();
    let reader = db.reader();
    for (query, message) in [
        (json!([]), "an object of fields"),
        (json!({"size": 1}), "unknown field \"size\""),
        (json!({"header": {"msg_id": "a"}}), "unknown operator"),
        (json!({"msg_id": {"$in": 7}}), "takes a list"),
        (json!({"msg_id": {"$mod": [0, 1]}}), "not 0"),
        (json!({"msg_id": {"$glob": 3}}), "takes a pattern"),
        (json!({"buffers": null}), "cannot be searched"),
    ] {
        let error = reader.find_records(&query, None).unwrap_err();
        assert_eq!(error.kind, DbErrorKind::Query);
        assert!(error.to_string().contains(message), "{query}: {error}");
    }
    let keys = ["msg_id; DROP TABLE task".to_string()];
    assert_eq!(reader.find_records(&json!({}), Some(&keys)).unwrap_err().kind, DbErrorKind::Query);
}

#[test]
fn finished_requests_are_purged_and_pending_ones_kept() {
    let history = |db: &Db| db.reader().request_history().unwrap().join(" ");
    let purge = |what| [Change::Purged { what }];
    let mut db = clients();
    db.apply(&purge(Purge::Requests(vec!["a".into(), "c".into(), "x".into()])));
    assert_eq!((history(&db).as_str(), db.counts(1).total, db.counts(1).ok), ("c b d", 3, 0));
    let mut db = clients();
    db.apply(&purge(Purge::RequestsOfEngine("uuid-0".into())));
    assert_eq!(history(&db), "c d");
    let mut db = clients();
    db.apply(&purge(Purge::AllRequests));
    assert_eq!((history(&db).as_str(), db.counts(1).pending(), db.counts(1).done()), ("c d", 2, 0));
}
