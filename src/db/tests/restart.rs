//! What a controller finds that starts on the file of one that was killed.
use super::*;
use crate::db::file::with_suffix;
use crate::model::change::Attempt;
use std::path::Path;

/// What is on disk now, as it would be after `kill -9`: without the writer's clean end.
pub(super) fn killed(db: &Db, directory: &Path) -> PathBuf {
    let copy = directory.join("killed.db");
    for suffix in ["", "-wal"] {
        std::fs::copy(with_suffix(&db.path(), suffix), with_suffix(&copy, suffix)).unwrap();
    }
    copy
}

#[test]
fn an_empty_database_begins_at_map_1_and_engine_0() {
    let db = Db::new();
    let state = db.reader().restart_state().unwrap();
    assert_eq!((state.next_map, state.next_engine), (MapId(1), EngineId(0)));
    assert!(state.maps.is_empty() && state.engines.is_empty());
}

#[test]
fn open_maps_unfinished_tasks_and_engines_are_restored() {
    let mut db = Db::new();
    let crash = || {
        let mut crash = failed(TaskState::Lost, "EngineLost", "");
        crash.crashed = true;
        crash
    };
    let returned = |index, run, outcome: Outcome| Change::TaskReturned {
        task: task(2, index),
        run,
        attempt: Some(Attempt {
            engine: EngineId(1),
            outcome: Box::new(outcome),
        }),
    };
    db.apply(&[engine(0), engine(1), engine(2)]);
    db.add_map(1, 1);
    db.apply(&[
        finished(1, 0, 1, 0, ok("1")),
        Change::MapCompleted {
            map: MapId(1),
            at: Some(UnixTime(2100.0)),
        },
        map_added(2),
        tasks_added(2, 0, 5, TaskState::Ready),
        assigned(2, 0, 4, 1, 1),
        finished(2, 1, 1, 1, ok("1")),
        begun(2, 2, 1, 1),
        begun(2, 3, 1, 1),
        returned(3, 2, crash()),
        assigned(2, 3, 1, 2, 1),
        returned(3, 3, failed(TaskState::Error, "ValueError", "")),
        Change::EngineGone {
            id: EngineId(1),
            uuid: "uuid-1".into(),
            at: UnixTime(2200.0),
            reason: "lost".into(),
        },
    ]);
    let directory = tempfile::tempdir().unwrap();
    let copy = killed(&db, directory.path());
    let mut writer = Writer::open(&copy, Durability::Full).unwrap();
    let reader = writer.reader().unwrap();

    let state = reader.restart_state().unwrap();
    assert_eq!((state.next_map, state.next_engine), (MapId(3), EngineId(3)));
    assert_eq!(state.engines.iter().map(|e| e.id.0).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(state.engines[1].facts.capabilities, ["call", "command"]);
    assert_eq!(state.engines[1].facts.python, "3.11.7 (/usr/bin/python3)");
    let [map] = state.maps.as_slice() else {
        panic!("{:?}", state.maps);
    };
    assert_eq!(
        (map.map, map.closed, map.client.as_str(), &map.definition),
        (MapId(2), false, "client", &definition().with_bundle())
    );
    assert_eq!((map.counts.total, map.counts.ok, map.counts.running), (5, 1, 1));

    let mut tasks = Vec::new();
    reader.unfinished_tasks(MapId(2), &mut |task| tasks.push(task)).unwrap();
    let brief: Vec<_> = tasks
        .iter()
        .map(|t| {
            (
                t.index,
                t.state,
                t.run,
                t.engine.map(|e| e.0),
                t.attempts,
                t.used.crashes,
                t.used.errors,
            )
        })
        .collect();
    let expected = [
        (0, TaskState::Assigned, 1, Some(1), 0, 0, 0),
        (2, TaskState::Running, 1, Some(1), 1, 0, 0),
        (3, TaskState::Ready, 3, None, 2, 1, 1),
        (4, TaskState::Ready, 0, None, 0, 0, 0),
    ];
    assert_eq!(brief, expected);
    assert_eq!(&tasks[3].input[..], b"[4]");

    // The controller continues.
    writer.apply(&[finished(2, 0, 1, 1, ok("7")), engine(1)]).unwrap();
    assert_eq!(reader.finished_from(MapId(2), 0, 9, true).unwrap().1.len(), 2);
    assert_eq!(reader.restart_state().unwrap().engines.len(), 3);
}

#[test]
fn output_of_a_running_task_survives() {
    let mut db = Db::new();
    db.add_map(1, 1);
    db.apply(&[
        assigned(1, 0, 1, 1, 0),
        begun(1, 0, 1, 0),
        wrote(task(1, 0), crate::model::output::Stream::Stdout, b"before "),
    ]);
    let directory = tempfile::tempdir().unwrap();
    let copy = killed(&db, directory.path());
    let mut writer = Writer::open(&copy, Durability::Normal).unwrap();
    let mut outcome = ok("1");
    outcome.stdout = "after".into();
    writer.apply(&[finished(1, 0, 1, 0, outcome)]).unwrap();
    assert_eq!(
        writer.reader().unwrap().finished_from(MapId(1), 0, 1, true).unwrap().1[0]
            .stdout
            .as_str(),
        "before after"
    );
}

#[test]
fn a_clients_key_may_be_recorded_later() {
    let db = requests::clients();
    let directory = tempfile::tempdir().unwrap();
    let copy = killed(&db, directory.path());
    let mut writer = Writer::open(&copy, Durability::Normal).unwrap();
    let known = Change::ClientKnown {
        map: MapId(1),
        curve_key: "it's \"}".into(),
    };
    writer.apply(&[known]).unwrap();
    let state = writer.reader().unwrap().restart_state().unwrap();
    let curve_key = Some("it's \"}".to_string());
    assert_eq!(state.maps[0].definition.work, Work::Client { curve_key });
}

#[test]
fn unfinished_requests_are_restored_with_their_frames() {
    let db = requests::clients();
    let directory = tempfile::tempdir().unwrap();
    let copy = killed(&db, directory.path());
    let writer = Writer::open(&copy, Durability::Normal).unwrap();
    let reader = writer.reader().unwrap();
    let state = reader.restart_state().unwrap();
    assert_eq!(
        (state.maps.len(), &state.maps[0].definition.work),
        (1, &Work::Client { curve_key: None })
    );
    let mut found = Vec::new();
    reader.unfinished_requests(MapId(1), &mut |request| found.push(request)).unwrap();
    let brief: Vec<_> = found
        .iter()
        .map(|r| (r.request.msg_id.as_str(), r.engine.map(|e| e.0), r.request.queue))
        .collect();
    assert_eq!(brief, [("c", None, "task"), ("d", Some(0), "mux")]);
    let d = &found[1].request;
    assert_eq!(
        (d.engine.as_ref().map(|uuid| uuid.0.as_ref()), d.submitted),
        (Some("uuid-0"), UnixTime(1003.0))
    );
    assert_eq!(
        (&d.content[..], d.buffers.len(), &d.buffers[1][..]),
        (&b"{\"n\":1.0}"[..], 2, &[0u8, 255][..])
    );
}
