//! Large buffers of messages: files beside the database.
use super::requests::{added, replied, reply, request};
use super::*;
use crate::model::buffer_file::{BufferFile, MIN_FILE_BYTES};
use crate::model::change::{Purge, Reply, Request};
use std::os::unix::fs::PermissionsExt;

fn array(byte: u8) -> Vec<Bytes> {
    vec![Bytes::from_static(b"code"), Bytes::from(vec![byte; MIN_FILE_BYTES]), Bytes::new()]
}

fn carrying(msg_id: &str, byte: u8) -> Request {
    Request {
        buffers: array(byte),
        buffer_file: BufferFile::unwritten(&array(byte)),
        ..request(msg_id, "mux", 1001.0)
    }
}

/// Two requests with the same array, answered with another.
fn pushed() -> Db {
    let mut db = Db::new();
    let back = Reply {
        buffers: array(2),
        ..reply()
    };
    db.apply(&[
        engine(0),
        requests::session(),
        added(0, carrying("a", 1)),
        added(1, carrying("b", 1)),
        replied("a", back),
    ]);
    db
}

fn files(db: &Db) -> Vec<PathBuf> {
    let folder = db.directory.path().join("t.db-buffers");
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .collect()
}

#[test]
fn large_buffers_round_trip_and_duplicates_are_stored_once() {
    let mut db = pushed();
    let record = requests::one(&db, "a");
    assert_eq!((record.buffers, record.result_buffers), (array(1), array(2)));
    let mut unfinished = Vec::new();
    db.reader()
        .unfinished_requests(MapId(1), &mut |found| unfinished.push(found.request))
        .unwrap();
    assert_eq!(unfinished.len(), 1);
    assert_eq!(unfinished[0].buffers, array(1));
    let name = unfinished[0].buffer_file.name().unwrap().to_string();
    assert!(db.directory.path().join("t.db-buffers").join(&name).exists());
    // A second record of the same buffers gets the same name.
    let again = carrying("c", 1);
    let kept = again.buffer_file.clone();
    db.apply(&[added(2, again)]);
    assert_eq!(kept.name(), Some(name.as_str()));
    assert_eq!(files(&db).len(), 2);
    let size = std::fs::metadata(db.path()).unwrap().len() + std::fs::metadata(db.directory.path().join("t.db-wal")).unwrap().len();
    assert!(size < MIN_FILE_BYTES as u64, "they are not in the database, which has {size} bytes");
    for file in files(&db) {
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            std::fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }
}

#[test]
fn a_file_is_removed_with_the_last_request_that_names_it() {
    let mut db = pushed();
    db.apply(&[replied("b", reply())]);
    let purge = |id: &str| Change::Purged {
        what: Purge::Requests(vec![id.into()]),
    };
    db.apply(&[purge("a")]);
    assert_eq!(files(&db).len(), 1);
    assert_eq!(requests::one(&db, "b").buffers, array(1));
    db.apply(&[purge("b")]);
    assert!(files(&db).is_empty());
}

#[test]
fn unreferenced_files_are_removed_and_unknown_ones_kept() {
    let db = pushed();
    let folder = db.directory.path().join("t.db-buffers");
    for name in ["0".repeat(64), "0".repeat(64) + ".part", "notes.txt".into()] {
        std::fs::write(folder.join(name), "x").unwrap();
    }
    let path = db.path();
    let Db { directory, writer } = db;
    writer.close().unwrap();
    let writer = Writer::open(&path, Durability::Full).unwrap();
    let db = Db { directory, writer };
    assert_eq!(files(&db).len(), 3);
    assert!(folder.join("notes.txt").exists());
    // A file that was removed is no error.
    files(&db).iter().for_each(|file| std::fs::remove_file(file).unwrap());
    assert!(requests::one(&db, "a").buffers.is_empty());
}

#[test]
fn a_file_that_cannot_be_written_is_an_error_and_nothing_is_recorded() {
    let mut db = Db::new();
    std::fs::write(db.directory.path().join("t.db-buffers"), "in the way").unwrap();
    let changes = [engine(0), requests::session(), added(0, carrying("a", 1))];
    let error = db.writer.apply(&changes).unwrap_err().to_string();
    assert!(error.contains("large buffers") && error.contains("t.db-buffers"), "{error}");
    assert!(db.reader().request_history().unwrap().is_empty());
    std::fs::remove_file(db.directory.path().join("t.db-buffers")).unwrap();
    db.apply(&changes);
    assert_eq!(requests::one(&db, "a").buffers, array(1));
}
