//! A task's life, step by step.
use super::*;
use crate::model::change::{Attempt, Purge};
use crate::model::pickled::Pickled;
use bytes::Bytes;
use rusqlite::Connection;

#[test]
fn a_task_from_input_to_value() {
    let mut db = Db::new();
    db.apply(&[engine(3)]);
    db.add_map(1, 2);
    let waiting = db.task(1, 1);
    assert_eq!(
        (waiting.state, waiting.attempts, waiting.input.unwrap().get()),
        (TaskState::Ready, 0, "[1]")
    );

    db.apply(&[assigned(1, 0, 2, 1, 3)]);
    assert_eq!((db.task(1, 1).state, db.counts(1).assigned), (TaskState::Assigned, 2));

    let output = wrote(task(1, 1), Stream::Stdout, b"half ");
    db.apply(&[begun(1, 1, 1, 3), output]);
    let running = db.task(1, 1);
    assert_eq!(
        (running.state, running.attempts, running.host.as_deref()),
        (TaskState::Running, 1, Some("node3"))
    );
    assert_eq!(
        (running.stdout.as_str(), running.started, running.completed),
        ("half ", Some(UnixTime(2000.0)), None)
    );
    assert_eq!((db.counts(1).running, db.counts(1).assigned), (1, 1));

    let mut outcome = ok("{\"a\":1}");
    outcome.stdout = "done".into();
    outcome.exit_code = Some(0);
    db.apply(&[finished(1, 1, 1, 3, outcome)]);
    let row = db.task(1, 1);
    assert_eq!(
        (row.state, row.attempts, row.engine, row.exit_code),
        (TaskState::Ok, 1, Some(EngineId(3)), Some(0))
    );
    assert_eq!(
        (row.value.unwrap().get(), row.stdout.as_str(), row.stderr.as_str()),
        ("{\"a\":1}", "half done", "")
    );
    assert_eq!((row.completed, row.duration, row.error), (Some(UnixTime(2002.5)), Some(2.5), None));
    let expected = Counts {
        total: 2,
        ok: 1,
        assigned: 1,
        ..Counts::default()
    };
    assert_eq!(db.counts(1), expected);
}

#[test]
fn a_short_task_without_a_start_report_counts_as_one_attempt() {
    let mut db = Db::new();
    db.add_map(1, 2);
    let mut cancelled = failed(TaskState::Aborted, "TaskCancelled", "");
    cancelled.started = cancelled.ended;
    db.apply(&[
        assigned(1, 0, 2, 1, 0),
        finished(1, 0, 1, 0, ok("1")),
        finished(1, 1, 1, 0, cancelled),
    ]);
    assert_eq!(db.task(1, 0).attempts, 1);
    // Cancelled before it began.
    let row = db.task(1, 1);
    assert_eq!((row.attempts, row.started, row.duration), (0, None, None));
}

#[test]
fn duplicate_and_outdated_results_are_ignored() {
    let mut db = Db::new();
    db.add_map(1, 1);
    db.apply(&[assigned(1, 0, 1, 2, 0), finished(1, 0, 2, 0, ok("1"))]);
    for run in [1, 2] {
        db.apply(&[
            finished(1, 0, run, 0, failed(TaskState::Error, "ValueError", "late")),
            begun(1, 0, run, 0),
        ]);
        let row = db.task(1, 0);
        assert_eq!((row.state, row.value.unwrap().get()), (TaskState::Ok, "1"));
        assert_eq!((db.counts(1).ok, db.counts(1).done()), (1, 1));
    }
}

#[test]
fn changes_of_unknown_tasks_are_skipped() {
    let mut db = Db::new();
    db.apply(&[
        tasks_added(9, 0, 3, TaskState::Ready),
        closed(9, 3),
        assigned(9, 0, 3, 1, 0),
        finished(9, 0, 1, 0, ok("1")),
        map_added(1),
        tasks_added(1, 0, 1, TaskState::Ready),
        finished(1, 7, 1, 0, ok("1")),
        Change::RequestFinished {
            msg_id: "unknown".into(),
            reply: Box::new(requests::reply()),
        },
        Change::MapCompleted { map: MapId(9), at: None },
    ]);
    let (rows, matching) = db.reader().tasks(&TaskQuery::default()).unwrap();
    assert_eq!((rows.len(), matching), (1, 1));
    assert_eq!(db.counts(1).total, 1);
}

#[test]
fn a_map_named_before_it_is_added_exists_afterwards() {
    let mut db = Db::new();
    db.apply(&[closed(1, 0), map_added(1), tasks_added(1, 0, 2, TaskState::Ready)]);
    assert_eq!(db.counts(1).total, 2);
}

#[test]
fn duplicate_inputs_are_counted_once() {
    let mut db = Db::new();
    db.apply(&[map_added(1), tasks_added(1, 0, 3, TaskState::Ready)]);
    db.apply(&[map_added(1), tasks_added(1, 1, 3, TaskState::Ready), closed(1, 4)]);
    assert_eq!(db.counts(1).total, 4);
}

#[test]
fn a_failed_attempt_is_recorded_and_the_task_retried() {
    let mut db = Db::new();
    db.apply(&[engine(0), engine(1)]);
    db.add_map(1, 1);
    let mut crash = failed(TaskState::Lost, "WorkerDied", "killed by signal 9");
    crash.crashed = true;
    crash.stdout = "and more".into();
    db.apply(&[
        assigned(1, 0, 1, 1, 0),
        begun(1, 0, 1, 0),
        wrote(task(1, 0), Stream::Stdout, b"some "),
        wrote(task(1, 0), Stream::Stderr, b"bad"),
        Change::TaskReturned {
            task: task(1, 0),
            run: 2,
            attempt: Some(Attempt {
                engine: EngineId(0),
                outcome: Box::new(crash),
            }),
        },
    ]);
    let row = db.task(1, 0);
    assert_eq!(
        (row.state, row.attempts, row.engine, row.stdout.as_str()),
        (TaskState::Ready, 1, None, "")
    );
    assert_eq!((db.counts(1).running, db.counts(1).pending()), (0, 1));
    let attempts = db.reader().attempts(task(1, 0)).unwrap();
    assert_eq!(attempts.len(), 1);
    let one = &attempts[0];
    assert_eq!((one.run, one.engine, one.host.as_deref()), (1, Some(EngineId(0)), Some("node0")));
    assert_eq!(
        (one.outcome.stdout.as_str(), one.outcome.stderr.as_str(), one.outcome.crashed),
        ("some and more", "bad", true)
    );

    db.apply(&[assigned(1, 0, 1, 2, 1), finished(1, 0, 2, 1, ok("5"))]);
    let row = db.task(1, 0);
    assert_eq!((row.state, row.attempts, row.stdout.as_str()), (TaskState::Ok, 2, ""));
}

#[test]
fn a_task_returned_unstarted_has_no_attempt() {
    let mut db = Db::new();
    db.add_map(1, 3);
    db.apply(&[assigned(1, 0, 3, 1, 0)]);
    let back = Change::TaskReturned {
        task: task(1, 2),
        run: 2,
        attempt: None,
    };
    db.apply(std::slice::from_ref(&back));
    db.apply(&[back]);
    let row = db.task(1, 2);
    assert_eq!((row.state, row.attempts, db.counts(1).assigned), (TaskState::Ready, 0, 2));
    assert!(db.reader().attempts(task(1, 2)).unwrap().is_empty());
}

#[test]
fn a_task_moved_between_engines_is_counted_once() {
    let mut db = Db::new();
    db.add_map(1, 2);
    db.apply(&[assigned(1, 0, 2, 1, 0), begun(1, 1, 1, 0), assigned(1, 0, 2, 2, 1)]);
    assert_eq!((db.counts(1).assigned, db.counts(1).running), (2, 0));
    assert_eq!(db.task(1, 1).engine, Some(EngineId(1)));
}

#[test]
fn resubmission_keeps_the_old_outcome_as_an_attempt() {
    let mut db = Db::new();
    db.apply(&[engine(0)]);
    db.add_map(1, 2);
    let complete = |at| Change::MapCompleted { map: MapId(1), at };
    db.apply(&[
        assigned(1, 0, 2, 1, 0),
        finished(1, 0, 1, 0, ok("1")),
        finished(1, 1, 1, 0, failed(TaskState::Error, "ValueError", "no")),
        complete(Some(UnixTime(3000.0))),
    ]);
    assert_eq!((db.counts(1).ok, db.counts(1).error), (1, 1));
    let again = Change::TaskResubmitted { task: task(1, 1), run: 2 };
    db.apply(&[again.clone(), complete(None)]);
    // A repeated report changes nothing.
    db.apply(&[again]);
    let row = db.task(1, 1);
    assert_eq!((row.state, row.error, row.attempts), (TaskState::Ready, None, 1));
    assert_eq!((db.counts(1).ok, db.counts(1).error, db.counts(1).pending()), (1, 0, 1));
    let attempts = db.reader().attempts(task(1, 1)).unwrap();
    assert_eq!(attempts.len(), 1);
    assert_eq!(
        (
            attempts[0].outcome.status,
            attempts[0].outcome.error.as_ref().unwrap().ename.as_str()
        ),
        (TaskState::Error, "ValueError")
    );
    assert_eq!(db.reader().maps(&MapQuery::default()).unwrap()[0].completed, None);

    db.apply(&[assigned(1, 1, 1, 2, 0), finished(1, 1, 2, 0, ok("2"))]);
    assert_eq!((db.task(1, 1).attempts, db.counts(1).ok), (2, 2));
}

#[test]
fn waiting_tasks_are_released_together() {
    let mut db = Db::new();
    db.apply(&[
        map_added(1),
        tasks_added(1, 0, 3, TaskState::Waiting),
        map_added(2),
        tasks_added(2, 0, 1, TaskState::Waiting),
    ]);
    db.apply(&[Change::MapReleased { map: MapId(1) }]);
    assert_eq!((db.task(1, 2).state, db.task(2, 0).state), (TaskState::Ready, TaskState::Waiting));
}

#[test]
fn a_purged_maps_number_is_not_reused() {
    let mut db = Db::new();
    db.add_map(1, 1);
    db.add_map(2, 1);
    let purge = Change::Purged {
        what: Purge::Map(MapId(2)),
    };
    db.apply(std::slice::from_ref(&purge));
    // Not while it has work to do.
    assert_eq!(db.counts(2).total, 1);
    db.apply(&[finished(2, 0, 1, 0, ok("1")), purge]);
    let reader = db.reader();
    assert_eq!(reader.maps(&MapQuery::default()).unwrap().len(), 1);
    assert_eq!(reader.tasks(&TaskQuery::default()).unwrap().1, 1);
    assert_eq!(reader.restart_state().unwrap().next_map, MapId(3));
}

#[test]
fn a_value_without_json_is_returned_pickled() {
    let mut db = Db::new();
    db.add_map(1, 1);
    let mut outcome = ok("[1,2]");
    let pickled = Pickled {
        python_type: "tuple".into(),
        bytes: Bytes::from_static(b"\x80\x05K\x01K\x02\x86\x94.\x00\xff"),
    };
    outcome.pickled = Some(pickled.clone());
    db.apply(&[finished(1, 0, 1, 0, outcome)]);
    let row = db.task(1, 0);
    assert_eq!((row.value.unwrap().get(), row.pickled.as_ref()), ("[1,2]", Some(&pickled)));
    let kind: String = Connection::open(db.path())
        .unwrap()
        .query_row("SELECT typeof(pickled) FROM task", [], |row| row.get(0))
        .unwrap();
    assert_eq!(kind, "blob");
    // A task that is run again has another value, and the first stays with its attempt.
    db.apply(&[Change::TaskResubmitted { task: task(1, 0), run: 2 }, finished(1, 0, 2, 0, ok("5"))]);
    assert_eq!(db.task(1, 0).pickled, None);
    assert_eq!(
        db.reader().attempts(task(1, 0)).unwrap()[0].outcome.pickled.as_ref(),
        Some(&pickled)
    );
}

#[test]
fn a_failed_batch_is_rolled_back() {
    let mut db = Db::new();
    db.add_map(1, 1);
    let other = rusqlite::Connection::open(db.path()).unwrap();
    other
        .execute_batch("CREATE TRIGGER refuse BEFORE UPDATE ON task BEGIN SELECT RAISE(ABORT, 'no'); END")
        .unwrap();
    let changes = [engine(5), tasks_added(1, 1, 4, TaskState::Ready), finished(1, 0, 1, 5, ok("1"))];
    assert!(db.writer.apply(&changes).is_err());
    assert_eq!(db.counts(1).total, 1);
    other.execute_batch("DROP TRIGGER refuse").unwrap();
    db.apply(&changes);
    assert_eq!((db.counts(1).total, db.counts(1).ok), (5, 1));
    assert_eq!(db.task(1, 0).host.as_deref(), Some("node5"));
}

#[test]
fn a_result_too_large_for_a_row_fails_only_its_task() {
    let mut db = Db::new();
    db.add_map(1, 4);
    db.writer.limit_rows(100_000);
    let mut large = ok("1");
    large.value = Some(RawValue::from_string(format!("\"{}\"", "x".repeat(119_999))).unwrap());
    large.stdout = "y".repeat(60_000).into();
    let input = Change::TasksAdded {
        map: MapId(1),
        first: 9,
        inputs: vec![Bytes::from(vec![b'1'; 200_000])],
        state: TaskState::Ready,
        submitted: UnixTime(1.0),
    };
    let returned = Change::TaskReturned {
        task: task(1, 2),
        run: 1,
        attempt: Some(Attempt {
            engine: EngineId(0),
            outcome: Box::new(large.clone()),
        }),
    };
    db.apply(&[finished(1, 0, 1, 0, large), input, returned, finished(1, 1, 1, 0, ok("1"))]);
    let row = db.task(1, 0);
    let error = row.error.unwrap();
    assert_eq!(
        (row.state, error.ename.as_str(), row.stdout.as_str()),
        (TaskState::Error, "ResultTooLarge", "y".repeat(60_000).as_str())
    );
    assert!(error.evalue.contains("120001 bytes"), "{}", error.evalue);
    assert_eq!(
        db.reader().attempts(task(1, 2)).unwrap()[0].outcome.error.as_ref().unwrap().ename,
        "ResultTooLarge"
    );
    assert_eq!((db.counts(1).total, db.counts(1).ok, db.counts(1).error), (4, 1, 1));
}
