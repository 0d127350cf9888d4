//! Unusable files and their errors.
use super::restart::killed;
use super::*;
use crate::db::file::with_suffix;
use crate::db::{DbError, DbErrorKind, schema};
use rusqlite::Connection;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn refused<T>(result: Result<T, DbError>, kind: DbErrorKind, message: &str) -> DbError {
    let error = result.err().expect("it was not refused");
    assert_eq!(error.kind, kind, "{error}");
    assert!(error.to_string().contains(message), "{error}");
    assert!(error.hint().is_some_and(|hint| !hint.is_empty()));
    error
}

/// Both ways in refuse it alike and leave it byte for byte as it was, with no file beside it.
fn untouched(path: &Path, kind: DbErrorKind, message: &str) {
    let before = fs::read(path).unwrap();
    refused(Writer::open(path, Durability::Normal), kind, message);
    refused(Reader::open(path), kind, message);
    assert_eq!(fs::read(path).unwrap(), before);
    for suffix in ["-wal", "-shm", "-journal"] {
        assert!(!with_suffix(path, suffix).exists());
    }
}

fn empty_db(path: &Path) {
    Writer::open(path, Durability::Normal).unwrap().close().unwrap();
}

#[test]
fn the_file_is_private_and_has_our_application_id() {
    let db = Db::new();
    assert_eq!(fs::metadata(db.path()).unwrap().permissions().mode() & 0o777, 0o600);
    let log = fs::metadata(with_suffix(&db.path(), "-wal")).unwrap();
    assert_eq!(log.permissions().mode() & 0o777, 0o600);
    // In the file itself, although later writes are still in the log.
    assert_eq!(&fs::read(db.path()).unwrap()[68..72], b"pclu");
}

#[test]
fn missing_files_and_directories_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.db");
    refused(Reader::open(&path), DbErrorKind::Missing, "there is no database yet");
    fs::write(&path, "").unwrap();
    refused(Reader::open(&path), DbErrorKind::Missing, "there is no database yet");
    empty_db(&path);
    assert!(Reader::open(&path).unwrap().maps(&MapQuery::default()).unwrap().is_empty());
    let path = directory.path().join("none/t.db");
    refused(
        Writer::open(&path, Durability::Normal),
        DbErrorKind::Directory,
        "there is no directory",
    );
    refused(Reader::open(&path), DbErrorKind::Directory, "there is no directory");
}

#[test]
fn foreign_files_are_rejected_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.db");
    fs::write(&path, "a text, and a long one".repeat(100)).unwrap();
    untouched(&path, DbErrorKind::Foreign, "not an SQLite database");
    fs::write(&path, "short").unwrap();
    untouched(&path, DbErrorKind::Foreign, "not an SQLite database");
    fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    untouched(&path, DbErrorKind::Foreign, "of another program");
    refused(
        Writer::open(directory.path(), Durability::Normal),
        DbErrorKind::Foreign,
        "not a regular file",
    );
}

#[test]
fn a_newer_schema_is_rejected_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.db");
    empty_db(&path);
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", schema::VERSION + 1).unwrap();
    connection.close().unwrap();
    untouched(&path, DbErrorKind::NewerSchema, &format!("version {}", schema::VERSION + 1));
}

#[test]
fn a_newer_schema_in_the_log_is_rejected() {
    let db = Db::new();
    let connection = Connection::open(db.path()).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    refused(Reader::open(&db.path()), DbErrorKind::NewerSchema, "version 99");
    refused(Writer::open(&db.path(), Durability::Normal), DbErrorKind::NewerSchema, "version 99");
}

#[test]
fn a_full_disk_loses_nothing_that_was_recorded() {
    let mut db = Db::new();
    db.add_map(1, 1);
    db.writer.limit_pages(Some(60));
    let big = tasks_added(1, 1, 20_000, TaskState::Ready);
    let error = refused(db.writer.apply(std::slice::from_ref(&big)), DbErrorKind::Full, "full");
    assert!(error.hint().unwrap().contains("df -h"));
    assert_eq!(db.counts(1).total, 1);
    db.writer.limit_pages(None);
    db.apply(&[big]);
    assert_eq!(db.counts(1).total, 20_001);
}

#[test]
fn a_damaged_file_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let mut db = Db::new();
    db.add_map(1, 5_000);
    db.writer.close().unwrap();
    let path = directory.path().join("damaged.db");
    let mut bytes = fs::read(db.directory.path().join("t.db")).unwrap();
    let half = bytes.len() / 2;
    bytes[half..].fill(0x5a);
    fs::write(&path, bytes).unwrap();
    let reader = Reader::open(&path).unwrap();
    let error = refused(reader.tasks(&TaskQuery::default()), DbErrorKind::Damaged, "malformed");
    assert!(error.hint().unwrap().contains(".recover"));
    assert!(!reader.check().unwrap().is_empty());
}

#[test]
fn the_check_of_an_intact_file_is_empty() {
    let mut db = requests::clients();
    db.add_map(2, 100);
    assert_eq!(db.reader().check().unwrap(), [""; 0]);
}

/// On a network file system: one connection, and its readers share it.
#[test]
fn an_exclusive_writer_keeps_others_out_and_serves_its_readers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.db");
    let mut writer = Writer::open_as(&path, Durability::Normal, true).unwrap();
    let reader = writer.reader().unwrap();
    writer.apply(&[map_added(1), tasks_added(1, 0, 2, TaskState::Ready)]).unwrap();
    assert_eq!(reader.tasks(&TaskQuery::default()).unwrap().1, 2);
    assert!(!with_suffix(&path, "-shm").exists());
    refused(Reader::open(&path), DbErrorKind::Locked, "locked");
    refused(Writer::open(&path, Durability::Normal), DbErrorKind::Locked, "locked");
    drop(reader);
    writer.close().unwrap();
    assert_eq!(Reader::open(&path).unwrap().tasks(&TaskQuery::default()).unwrap().1, 2);
}

/// Closing a file drops every lock that the process has on it. Were the writer's dropped by a reader that comes and goes,
/// another process would take itself for the last user and remove the log under the writer.
#[test]
fn closing_a_reader_keeps_the_writers_locks() {
    let mut db = Db::new();
    db.add_map(1, 1);
    drop(db.reader());
    // SQLite's own lock bytes, as another process sees them.
    let script = "import fcntl, struct, sys\n\
                  file = open(sys.argv[1], 'rb+')\n\
                  lock = struct.pack('hhqqi', fcntl.F_WRLCK, 0, 0x40000002, 510, 0)\n\
                  kind = struct.unpack('hhqqi', fcntl.fcntl(file, fcntl.F_GETLK, lock))[0]\n\
                  print('free' if kind == fcntl.F_UNLCK else 'held')";
    let output = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(db.path())
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "held",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs `act` as someone who is not root, for whom permissions hold. (The thread's file system user; the process keeps its own.)
fn as_a_user<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if nix::unistd::geteuid().is_root() {
                nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
            }
            act()
        });
        thread.join().unwrap()
    })
}

#[expect(clippy::disallowed_methods, reason = "no secret: a user's chmod")]
fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_read_only_directory_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("50% #1?.db");
    let mut writer = Writer::open(&path, Durability::Normal).unwrap();
    writer.apply(&[map_added(1), tasks_added(1, 0, 2, TaskState::Ready)]).unwrap();
    writer.close().unwrap();
    set_mode(&path, 0o444);
    set_mode(directory.path(), 0o555);
    as_a_user(|| {
        assert_eq!(Reader::open(&path).unwrap().tasks(&TaskQuery::default()).unwrap().1, 2);
        refused(Writer::open(&path, Durability::Normal), DbErrorKind::ReadOnly, "not writable");
        let new = directory.path().join("new.db");
        refused(Writer::open(&new, Durability::Normal), DbErrorKind::Permission, "Permission denied");
    });
    set_mode(&path, 0o000);
    as_a_user(|| {
        refused(Reader::open(&path), DbErrorKind::Permission, "unable to open");
    });
    set_mode(directory.path(), 0o755);
}

#[test]
fn after_a_kill_a_transaction_is_complete_or_absent() {
    let mut db = Db::new();
    db.add_map(1, 3);
    let directory = tempfile::tempdir().unwrap();
    let copy = killed(&db, directory.path());
    assert_eq!(Reader::open(&copy).unwrap().tasks(&TaskQuery::default()).unwrap().1, 3);
    // Where the log cannot be read, not to look at it would show an old state.
    let directory = tempfile::tempdir().unwrap();
    let copy = killed(&db, directory.path());
    set_mode(&copy, 0o444);
    set_mode(&with_suffix(&copy, "-wal"), 0o444);
    set_mode(directory.path(), 0o555);
    as_a_user(|| match Reader::open(&copy) {
        Ok(reader) => assert_eq!(reader.tasks(&TaskQuery::default()).unwrap().1, 3),
        Err(error) => assert!(matches!(error.kind, DbErrorKind::Permission | DbErrorKind::ReadOnly), "{error}"),
    });
    set_mode(directory.path(), 0o755);
}
