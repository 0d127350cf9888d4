//! What is purged goes bit by bit, and the file gets smaller.
use super::requests::{added, replied, reply, request};
use super::*;
use crate::db::expired::Expired;
use crate::model::change::Purge;
use std::fs;

fn purged(what: Purge) -> Change {
    Change::Purged { what }
}

/// Finished tasks, each with an output of some length, and the map's end.
fn finish_all(db: &mut Db, map: u32, tasks: u32, at: f64) {
    let outcome = |index| {
        let mut outcome = ok(&index_text(index));
        outcome.stdout = "x".repeat(1000).into();
        outcome
    };
    let mut changes: Vec<Change> = (0..tasks).map(|i| finished(map, i, 1, 0, outcome(i))).collect();
    changes.push(Change::MapCompleted {
        map: MapId(map),
        at: Some(UnixTime(at)),
    });
    db.apply(&changes);
}

fn index_text(index: u32) -> String {
    index.to_string()
}

fn rows(db: &Db, table: &str) -> i64 {
    let connection = rusqlite::Connection::open(db.path()).unwrap();
    connection
        .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))
        .unwrap()
}

#[test]
fn a_purged_map_disappears_at_once_and_its_rows_in_steps() {
    let mut db = Db::new();
    db.add_map(1, 4000);
    finish_all(&mut db, 1, 4000, 3000.0);
    db.add_map(2, 10);
    assert!(!db.writer.is_untidy());
    db.apply(&[purged(Purge::Map(MapId(1)))]);
    // It is no longer visible; its rows still exist.
    assert_eq!(db.reader().maps(&MapQuery::default()).unwrap().len(), 1);
    assert_eq!(db.reader().tasks(&TaskQuery::default()).unwrap().1, 10);
    assert_eq!(rows(&db, "task"), 4010);
    db.writer.tidy().unwrap();
    assert_eq!(rows(&db, "task"), 3010);
    // The controller dies in between.
    let path = db.path();
    let large = {
        let Db { directory, writer } = db;
        writer.close().unwrap();
        db = Db {
            writer: Writer::open(&path, Durability::Normal).unwrap(),
            directory,
        };
        fs::metadata(&path).unwrap().len()
    };
    assert!(db.writer.is_untidy());
    let mut steps = 0;
    while db.writer.is_untidy() {
        db.writer.tidy().unwrap();
        steps += 1;
    }
    assert!(steps > 4, "{steps}");
    assert_eq!((rows(&db, "task"), rows(&db, "purging")), (10, 0));
    assert_eq!(db.reader().restart_state().unwrap().next_map, MapId(3));
    let Db {
        directory: _directory,
        writer,
    } = db;
    writer.close().unwrap();
    let small = fs::metadata(&path).unwrap().len();
    assert!(large > 4_000_000 && small < 200_000, "{large} {small}");
}

#[test]
fn the_file_of_an_older_version_shrinks_when_its_cluster_stops() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("v1.db");
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/db/v1.db"), &path).unwrap();
    let mut writer = Writer::open(&path, Durability::Normal).unwrap();
    let mut changes = vec![map_added(4), tasks_added(4, 0, 3000, TaskState::Ready)];
    let mut long = ok("1");
    long.stdout = "x".repeat(1000).into();
    changes.extend((0..3000).map(|i| finished(4, i, 1, 0, long.clone())));
    writer.apply(&changes).unwrap();
    writer.apply(&[purged(Purge::Map(MapId(4)))]).unwrap();
    // While it is used, its pages stay.
    while writer.is_untidy() {
        writer.tidy().unwrap();
    }
    writer.close().unwrap();
    let large = fs::metadata(&path).unwrap().len();
    let mut writer = Writer::open(&path, Durability::Normal).unwrap();
    writer.compact().unwrap();
    writer.close().unwrap();
    let small = fs::metadata(&path).unwrap().len();
    assert!(large > 3_000_000 && small < 200_000, "{large} {small}");
    assert_eq!(Reader::open(&path).unwrap().tasks(&TaskQuery::default()).unwrap().1, 8);
}

#[test]
fn expired_records_are_found_oldest_first_in_portions() {
    let mut db = Db::new();
    for (map, tasks, at) in [(1, 0, 0.0), (2, 600, 5000.0), (3, 700, 4000.0), (4, 1, 9000.0), (5, 1, 0.0)] {
        db.add_map(map, tasks.max(1));
        if at > 0.0 {
            finish_all(&mut db, map, tasks, at);
        }
    }
    let expired = |db: &Db, before| db.reader().expired(UnixTime(before)).unwrap();
    assert_eq!(expired(&db, 4000.0), Expired::default());
    assert_eq!(expired(&db, 5000.0).maps, [MapId(3)]);
    // Together they are too much for one step.
    assert_eq!(expired(&db, 6000.0).maps, [MapId(3)]);
    db.apply(&[purged(Purge::Map(MapId(3)))]);
    assert_eq!(expired(&db, 1e9).maps, [MapId(2), MapId(4)]);
}

#[test]
fn expired_requests_and_empty_submissions_are_found() {
    let mut db = Db::new();
    let mut session = definition();
    session.work = Work::Client { curve_key: None };
    for map in [1, 2] {
        db.apply(&[Change::MapAdded {
            map: MapId(map),
            definition: Box::new(session.clone()),
            client: format!("session {map}"),
            submitted: UnixTime(1000.0),
        }]);
    }
    let late = || {
        let mut late = reply();
        late.completed = UnixTime(7000.0);
        late
    };
    db.apply(&[
        engine(0),
        added(0, request("a", "mux", 1.0)),
        added(1, request("b", "task", 2.0)),
        added(2, request("c", "task", 3.0)),
    ]);
    db.apply(&[replied("a", reply()), replied("c", late())]);
    let expired = |db: &Db, before| db.reader().expired(UnixTime(before)).unwrap();
    let nothing = expired(&db, 900.0);
    assert_eq!(nothing, Expired::default());
    let found = expired(&db, 3000.0);
    assert_eq!((found.requests, found.empty), (vec!["a".to_string()], vec![MapId(2)]));
    assert_eq!(expired(&db, 8000.0).requests, ["a", "c"]);
    // A submission that has got a request meanwhile is not empty any more.
    db.apply(&[purged(Purge::EmptySession(MapId(1))), purged(Purge::EmptySession(MapId(2)))]);
    assert_eq!((db.counts(1).total, expired(&db, 3000.0).empty.len()), (3, 0));
}
