//! What tasks write: every byte, in rows and in files.
use super::*;
use crate::model::change::{Attempt, Purge};
use crate::model::output::{HEAD, INLINE, Output};
use crate::model::pickled::Pickled;
use std::os::unix::fs::PermissionsExt;

/// Not UTF-8, and different at each place.
fn bytes(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(at) >> 3) as u8).collect()
}

fn running() -> Db {
    let mut db = Db::new();
    db.apply(&[engine(0)]);
    db.add_map(1, 2);
    db.apply(&[assigned(1, 0, 2, 1, 0), begun(1, 0, 1, 0)]);
    db
}

fn with_stdout(mut outcome: Outcome, bytes: impl Into<Bytes>) -> Outcome {
    outcome.stdout = Output::whole(bytes);
    outcome
}

/// All of it, in pieces of an odd length.
fn whole(reader: &Reader, task: TaskId, run: Option<u32>) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let (size, piece) = reader
            .output(task, run, Stream::Stdout, all.len() as u64, 100_003)
            .unwrap()
            .unwrap();
        all.extend_from_slice(&piece);
        if all.len() as u64 >= size {
            return all;
        }
        assert!(!piece.is_empty());
    }
}

fn files(db: &Db) -> Vec<String> {
    let found = std::fs::read_dir(db.directory.path().join("t.db-outputs"));
    let mut names: Vec<String> = found
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn short_outputs_of_any_content_stay_in_their_row() {
    let mut db = running();
    for (index, written) in [&b"text \xc3\xa9\n"[..], &b"\xff\x00\x01bytes"[..]].into_iter().enumerate() {
        db.apply(&[finished(1, index as u32, 1, 0, with_stdout(ok("1"), written.to_vec()))]);
        let row = db.task(1, index as u32);
        assert_eq!((&row.stdout.bytes[..], row.stdout.is_whole()), (written, true));
        assert_eq!(whole(&db.reader(), task(1, index as u32), None), written);
    }
    assert!(files(&db).is_empty());
}

#[test]
fn a_growing_output_is_readable_and_moves_into_a_file() {
    let mut db = running();
    let all = bytes(3 * INLINE + 7);
    let mut seen = 0;
    for piece in all.chunks(70_001) {
        db.apply(&[wrote(task(1, 0), Stream::Stdout, piece)]);
        seen += piece.len();
        let row = db.task(1, 0);
        assert_eq!(row.stdout.size, seen as u64);
        assert!(all.starts_with(&row.stdout.bytes) && row.stdout.bytes.len() >= seen.min(HEAD));
        assert!(whole(&db.reader(), task(1, 0), Some(1)) == all[..seen]);
        assert_eq!(files(&db).len(), usize::from(seen > INLINE));
        let mut written = Vec::new();
        db.reader()
            .unfinished_tasks(MapId(1), &mut |task| written.push(task.written))
            .unwrap();
        assert_eq!(written, [[seen as u64, 0, 0], [0; 3]]);
    }
    db.apply(&[finished(1, 0, 1, 0, with_stdout(ok("1"), b"the rest".to_vec()))]);
    let all = [&all[..], b"the rest"].concat();
    assert!(whole(&db.reader(), task(1, 0), None) == all);
    let path = db.directory.path().join("t.db-outputs").join(&files(&db)[0]);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(
        std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777,
        0o700
    );
    assert!(db.reader().output(task(1, 9), None, Stream::Stdout, 0, 9).unwrap().is_none());
    assert!(db.reader().output(task(1, 0), Some(7), Stream::Stdout, 0, 9).unwrap().is_none());
    assert!(
        db.reader()
            .output(task(1, 0), None, Stream::Stdout, u64::MAX, 9)
            .unwrap()
            .unwrap()
            .1
            .is_empty()
    );
}

#[test]
fn a_part_of_a_failed_commit_is_overwritten() {
    let mut db = running();
    let (first, second) = (bytes(INLINE + 1), b"second".to_vec());
    db.apply(&[wrote(task(1, 0), Stream::Stdout, &first)]);
    // As a controller leaves it that dies between the file and the commit.
    let path = db.directory.path().join("t.db-outputs").join(&files(&db)[0]);
    std::fs::write(&path, [&first[..], b"something else, and longer"].concat()).unwrap();
    drop(std::mem::replace(
        &mut db.writer,
        Writer::open(&db.directory.path().join("other.db"), Durability::Full).unwrap(),
    ));
    db.writer = Writer::open(&db.path(), Durability::Full).unwrap();
    db.apply(&[wrote(task(1, 0), Stream::Stdout, &second), finished(1, 0, 1, 0, ok("1"))]);
    assert!(whole(&db.reader(), task(1, 0), None) == [first, second].concat());
    assert_eq!(std::fs::metadata(&path).unwrap().len(), INLINE as u64 + 7);
}

#[test]
fn each_run_has_its_own_file_and_files_are_removed_with_their_tasks() {
    let mut db = running();
    let (one, two) = (bytes(INLINE + 1), bytes(INLINE + 2));
    let attempt = Some(Attempt {
        engine: EngineId(0),
        outcome: Box::new(with_stdout(failed(TaskState::Error, "E", ""), one.clone())),
    });
    let task = task(1, 0);
    db.apply(&[Change::TaskReturned { task, run: 2, attempt }]);
    // The output of a returned run is removed.
    db.apply(&[
        assigned(1, 0, 1, 2, 0),
        begun(1, 0, 2, 0),
        wrote(task, Stream::Stdout, &bytes(INLINE + 9)),
    ]);
    db.apply(&[Change::TaskReturned {
        task,
        run: 3,
        attempt: None,
    }]);
    db.apply(&[assigned(1, 0, 1, 3, 0), finished(1, 0, 3, 0, with_stdout(ok("1"), two.clone()))]);
    assert!(whole(&db.reader(), task, Some(1)) == one && whole(&db.reader(), task, None) == two);
    assert_eq!(db.reader().attempts(task).unwrap()[0].outcome.stdout.size, one.len() as u64);
    assert_eq!(files(&db).len(), 3);
    // It is swept away at the next start, and other people's files are not.
    let other = db.directory.path().join("t.db-outputs").join("notes");
    std::fs::write(&other, "x").unwrap();
    drop(std::mem::replace(
        &mut db.writer,
        Writer::open(&db.directory.path().join("other.db"), Durability::Normal).unwrap(),
    ));
    db.writer = Writer::open(&db.path(), Durability::Normal).unwrap();
    assert_eq!(files(&db).len(), 3);
    assert!(whole(&db.reader(), task, Some(1)) == one && whole(&db.reader(), task, None) == two);
    db.apply(&[
        finished(1, 1, 1, 0, ok("2")),
        Change::MapCompleted {
            map: MapId(1),
            at: Some(UnixTime(3000.0)),
        },
        Change::Purged {
            what: Purge::Map(MapId(1)),
        },
    ]);
    assert_eq!(files(&db), ["notes"]);
}

#[test]
fn long_inputs_are_in_files_and_out_of_the_way() {
    let mut db = Db::new();
    let long = |letter: &str| Bytes::from(format!("[\"{}\"]", letter.repeat(INLINE)));
    let inputs = vec![long("a"), Bytes::from_static(b"[1]"), long("b"), long("c")];
    let added = Change::TasksAdded {
        map: MapId(1),
        first: 0,
        inputs: inputs.clone(),
        state: TaskState::Ready,
        submitted: UnixTime(1000.0),
    };
    db.apply(&[engine(0), map_added(1), added, closed(1, 4)]);
    let first = TaskId::new(MapId(1), 0).row_id();
    let names = |tasks: &[i64]| -> Vec<String> { tasks.iter().map(|task| format!("{}-input", first + task)).collect() };
    assert_eq!(files(&db), names(&[0, 2, 3]));
    let largest: i64 = rusqlite::Connection::open(db.path())
        .unwrap()
        .query_row("SELECT max(length(input)) FROM task", [], |row| row.get(0))
        .unwrap();
    assert!(largest < 2 * HEAD as i64, "{largest}");
    // They come back exactly, for a restarted controller and for people.
    let mut unfinished = Vec::new();
    let mut take = |task: crate::db::restart::UnfinishedTask| unfinished.push(task.input);
    db.reader().unfinished_tasks(MapId(1), &mut take).unwrap();
    assert!(unfinished == inputs);
    let outcomes = [ok("1"), ok("2"), failed(TaskState::Error, "E", "e"), ok("3")];
    db.apply(&[assigned(1, 0, 4, 1, 0)]);
    for (index, outcome) in (0..).zip(outcomes) {
        db.apply(&[finished(1, index, 1, 0, outcome)]);
    }
    let found = |inputs: bool| -> Vec<Option<Bytes>> {
        let rows = db.reader().finished_from(MapId(1), 0, 10, inputs).unwrap().1;
        rows.iter()
            .map(|row| Some(Bytes::from(row.input.as_ref()?.get().to_string())))
            .collect()
    };
    assert!(found(true).into_iter().eq(inputs.iter().cloned().map(Some)));
    assert!(found(false) == [None, None, Some(inputs[2].clone()), None], "of failed tasks only");
    db.apply(&[
        Change::MapCompleted {
            map: MapId(1),
            at: Some(UnixTime(3000.0)),
        },
        Change::Purged {
            what: Purge::Map(MapId(1)),
        },
    ]);
    assert_eq!(files(&db), [] as [&str; 0]);
}

#[test]
fn a_file_that_cannot_be_written_stops_the_commit_and_is_named() {
    let mut db = running();
    let directory = db.directory.path().join("t.db-outputs");
    std::fs::write(&directory, "in the way").unwrap();
    let changes = [wrote(task(1, 0), Stream::Stdout, &bytes(INLINE + 1)), finished(1, 1, 1, 0, ok("1"))];
    let error = db.writer.apply(&changes).unwrap_err();
    assert!(error.to_string().contains("t.db-outputs/4294967296-1-stdout"), "{error}");
    assert_eq!(db.task(1, 1).state, TaskState::Assigned);
    std::fs::remove_file(&directory).unwrap();
    db.apply(&changes);
    assert!(whole(&db.reader(), task(1, 0), None) == bytes(INLINE + 1));
}

fn long(size: usize, pickled: bool) -> Outcome {
    let mut outcome = ok("[\"readable\"]");
    outcome.value_size = Some(size as u64);
    match pickled {
        true => {
            let (python_type, bytes) = ("numpy.ndarray".into(), Bytes::new());
            outcome.pickled = Some(Pickled { python_type, bytes });
        }
        false => outcome.value = None,
    }
    outcome
}

fn value(reader: &Reader, task: TaskId, run: Option<u32>) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let (size, piece) = reader.output(task, run, Stream::Value, all.len() as u64, 100_003).unwrap().unwrap();
        all.extend_from_slice(&piece);
        if all.len() as u64 >= size {
            return all;
        }
    }
}

#[test]
fn a_long_value_is_a_file_that_its_row_names() {
    let mut db = running();
    let (json, pickle) = ([b"\"", &vec![b'j'; 2 * INLINE][..], b"\""].concat(), bytes(INLINE + 5));
    for (index, all) in [&json, &pickle].into_iter().enumerate() {
        let index = index as u32;
        db.apply(&[begun(1, index, 1, 0)]);
        for part in all.chunks(INLINE) {
            db.apply(&[wrote(task(1, index), Stream::Value, part)]);
            let mut written = Vec::new();
            db.reader()
                .unfinished_tasks(MapId(1), &mut |task| written.push((task.index, task.written[2])))
                .unwrap();
            assert!(written.iter().any(|(of, bytes)| *of == index && *bytes > 0), "{written:?}");
        }
        db.apply(&[finished(1, index, 1, 0, long(all.len(), index == 1))]);
        let row = db.task(1, index);
        assert_eq!((row.state, row.value_size), (TaskState::Ok, Some(all.len() as u64)));
        assert!(value(&db.reader(), task(1, index), None) == *all);
    }
    let [first, second] = [db.task(1, 0), db.task(1, 1)];
    assert!(first.value.is_none() && first.pickled.is_none());
    assert_eq!(second.value.as_ref().unwrap().get(), "[\"readable\"]");
    assert_eq!(second.pickled.as_ref().unwrap().python_type, "numpy.ndarray");
    let mut filled = first.clone();
    filled.set_value(json.clone()).unwrap();
    assert!(filled.value_size.is_none() && filled.value.unwrap().get().as_bytes() == json);
    assert_eq!(files(&db), ["4294967296-1-value", "4294967297-1-value"]);
    // Neither is in the database; the view names the files.
    let view = rusqlite::Connection::open(db.path()).unwrap();
    let in_row = |sql: &str| view.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert!(in_row("SELECT sum(length(value) + length(COALESCE(pickled, ''))) FROM task") < 2 * HEAD as i64 + 100);
    assert_eq!(in_row("SELECT count(*) FROM tasks WHERE value = '(see pcluster results)'"), 1);

    // What is run again keeps the value of the run before, until it is purged.
    db.apply(&[
        Change::TaskResubmitted { task: task(1, 1), run: 2 },
        assigned(1, 1, 1, 2, 0),
        finished(1, 1, 2, 0, ok("2")),
    ]);
    assert!(value(&db.reader(), task(1, 1), Some(1)) == pickle);
    assert_eq!(
        db.reader().attempts(task(1, 1)).unwrap()[0].outcome.value_size,
        Some(pickle.len() as u64)
    );
    let reopen = |db: &mut Db| {
        let other = Writer::open(&db.directory.path().join("other.db"), Durability::Normal).unwrap();
        drop(std::mem::replace(&mut db.writer, other));
        db.writer = Writer::open(&db.path(), Durability::Normal).unwrap();
    };
    reopen(&mut db);
    assert_eq!(files(&db).len(), 2);
    let completed = Change::MapCompleted {
        map: MapId(1),
        at: Some(UnixTime(3000.0)),
    };
    let what = Purge::Map(MapId(1));
    db.apply(&[completed, Change::Purged { what }]);
    assert!(files(&db).is_empty());
}

#[test]
fn the_file_of_a_superseded_value_is_removed() {
    let mut db = running();
    let (part, task) = (bytes(INLINE), task(1, 0));
    // Cancelled in the middle.
    db.apply(&[wrote(task, Stream::Value, &part)]);
    db.apply(&[finished(1, 0, 1, 0, failed(TaskState::Aborted, "TaskCancelled", ""))]);
    assert!(files(&db).is_empty() && db.task(1, 0).value_size.is_none());
    // Given back, and ended by the loss of its engine, to run again.
    let task = super::task(1, 1);
    for (run, attempt) in [(2, None), (3, Some(failed(TaskState::Lost, "EngineLost", "")))] {
        db.apply(&[begun(1, 1, run - 1, 0), wrote(task, Stream::Value, &part)]);
        assert_eq!(files(&db).len(), 1);
        let attempt = attempt.map(|outcome| Attempt {
            engine: EngineId(0),
            outcome: Box::new(outcome),
        });
        db.apply(&[Change::TaskReturned { task, run, attempt }, assigned(1, 1, 1, run, 0)]);
        assert!(files(&db).is_empty());
    }
    // And one of which not all has come is an error.
    db.apply(&[begun(1, 1, 3, 0), wrote(task, Stream::Value, &part)]);
    db.apply(&[finished(1, 1, 3, 0, long(part.len() + 1, true))]);
    let row = db.task(1, 1);
    assert_eq!((row.state, row.error.unwrap().ename.as_str()), (TaskState::Error, "ValueLost"));
    assert!(files(&db).is_empty());
}

#[test]
fn values_are_read_in_order_in_parts_and_missing_ones_are_named() {
    let mut db = Db::new();
    db.apply(&[engine(0)]);
    db.add_map(1, 6);
    db.apply(&[assigned(1, 0, 6, 1, 0)]);
    let (long_value, mut pickled) = (bytes(INLINE + 9), ok("\"a set\""));
    let (python_type, short) = ("set".to_string(), Bytes::from_static(b"\x80\x05short"));
    pickled.pickled = Some(Pickled {
        python_type,
        bytes: short.clone(),
    });
    let mut without_value = ok("null");
    without_value.value = None;
    db.apply(&[
        finished(1, 0, 1, 0, ok("[1]")),
        finished(1, 1, 1, 0, pickled),
        begun(1, 2, 1, 0),
        wrote(task(1, 2), Stream::Value, &long_value),
        finished(1, 2, 1, 0, long(long_value.len(), true)),
        finished(1, 3, 1, 0, without_value),
        finished(1, 4, 1, 0, failed(TaskState::Error, "E", "")),
    ]);
    let of = |indices: &[u32]| -> Vec<TaskId> { indices.iter().map(|index| task(1, *index)).collect() };
    let expected: [(&[u8], bool); 5] = [
        (b"[1]", false),
        (&short, true),
        (&long_value, true),
        (b"null", false),
        (b"[1]", false),
    ];
    let (reader, tasks) = (db.reader(), of(&[0, 1, 2, 3, 0]));
    for limit in [1, 7, 100_000, 1 << 20] {
        let (mut done, mut start, mut whole) = (0, 0, Vec::new());
        while done < tasks.len() {
            let (found, error) = reader.values(&tasks[done..], start, limit).unwrap();
            assert!(error.is_none() && !found.is_empty(), "{error:?}");
            for part in found {
                assert_eq!((part.size, part.pickled), (expected[done].0.len() as u64, expected[done].1));
                whole.extend_from_slice(&part.bytes);
                start = whole.len() as u64;
                if start == part.size {
                    assert!(whole == expected[done].0);
                    (done, start) = (done + 1, 0);
                    whole.clear();
                }
            }
            if limit < 100 && start > 100 {
                break; // The rest of the long one is the same.
            }
        }
    }
    let why = |indices: &[u32]| reader.values(&of(indices), 0, 1 << 20).unwrap();
    assert_eq!(why(&[0, 4]).0.len(), 1);
    assert_eq!(why(&[0, 4]).1.unwrap(), "task 1.4 has no value: it is error");
    assert_eq!(why(&[5]).1.unwrap(), "task 1.5 has no value: it is assigned");
    let purged = "the value of task 1.6 is not on record any more: it was purged";
    assert_eq!(why(&[6]).1.unwrap(), purged);
}
