//! Opens the file: checks that it is ours and what file system it is on.
use super::schema::{self, APPLICATION_ID};
use super::{DbError, DbErrorKind, Durability};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The timeout for a lock that another process holds.
const BUSY: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 5_000 });
const OPEN: &str = "open the database";

#[derive(Debug, PartialEq, Eq)]
enum FileKind {
    Missing,
    Ours,
}

/// Inspects the path without changing anything, since the file may belong to another program; and only through SQLite,
/// because closing the file otherwise would drop the locks that this process holds on it (fcntl's rule).
fn inspect(path: &Path) -> Result<FileKind, DbError> {
    let foreign = |what: &str| Err(DbError::new(DbErrorKind::Foreign, OPEN, path, what));
    let log = with_suffix(path, "-wal");
    let has_log = || std::fs::metadata(&log).is_ok_and(|found| found.len() > 0);
    // SQLite would remove the log with what is in it.
    let orphaned = |what: &str| {
        let cause = format!(
            "{what}, but its write-ahead log {} is not; restore the database, or move the log away",
            log.display()
        );
        Err(DbError::new(DbErrorKind::Foreign, OPEN, path, cause))
    };
    match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => return foreign("it is not a regular file"),
        Ok(found) if found.len() == 0 && has_log() => return orphaned("it is empty"),
        Ok(found) if found.len() == 0 => return Ok(FileKind::Missing),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && has_log() => return orphaned("it is missing"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(FileKind::Missing),
        Err(error) => return Err(DbError::io(OPEN, path, &error)),
    }
    let header = connect(&immutable_uri(path), OpenFlags::SQLITE_OPEN_URI)
        .and_then(|connection| Ok((schema::application_id(&connection)?, schema::version(&connection)?)));
    match header {
        Ok((APPLICATION_ID, version)) => schema::check_version(OPEN, path, version).map(|()| FileKind::Ours),
        Ok(_) => foreign("it is an SQLite database of another program"),
        Err(error) => match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase) => foreign("it is not an SQLite database"),
            // During a checkpoint the first page may be newer than the others; opening with locks decides.
            Some(rusqlite::ErrorCode::DatabaseCorrupt) => Ok(FileKind::Ours),
            _ => Err(DbError::sqlite(OPEN, path, &error)),
        },
    }
}

fn check_directory(path: &Path) -> Result<(), DbError> {
    let directory = parent(path);
    let cause = match std::fs::metadata(directory) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => format!("{} is not a directory", directory.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => format!("there is no directory {}", directory.display()),
        Err(error) => return Err(DbError::io(OPEN, path, &error)),
    };
    Err(DbError::new(DbErrorKind::Directory, OPEN, path, cause))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// True if the directory is on a network file system: other hosts would not share the log's shared memory.
#[cfg(target_os = "linux")]
pub(super) fn is_network(path: &Path) -> bool {
    use nix::sys::statfs::statfs;
    // linux/magic.h, and the file systems' own sources for those that are not in it.
    const NETWORK: [u32; 16] = [
        0x6969,      // NFS
        0x517b,      // SMB
        0xff53_4d42, // CIFS
        0xfe53_4d42, // SMB2
        0x0bd0_0bd0, // Lustre
        0x4750_4653, // GPFS
        0x1983_0326, // BeeGFS
        0xaad7_aaea, // PanFS
        0x00c3_6400, // Ceph
        0x5346_414f, // AFS
        0x6b41_4653, // kAFS
        0x7375_7245, // Coda
        0x6573_5546, // FUSE: sshfs, GlusterFS and others
        0x0102_1997, // 9P
        0x7461_636f, // OCFS2
        0x0116_1970, // GFS2
    ];
    // The low 32 bits are the number.
    #[allow(clippy::unnecessary_cast, reason = "the type differs between architectures")]
    statfs(parent(path)).is_ok_and(|found| NETWORK.contains(&(found.filesystem_type().0 as u32)))
}
#[cfg(not(target_os = "linux"))]
pub fn is_network(_path: &Path) -> bool {
    false
}

/// Opens for writing; creates the file, private from birth, where there is none. `exclusive`: keep every other connection
/// out, and the log's index in this process's memory (for network file systems).
pub(super) fn open_for_writing(path: &Path, durability: Durability, exclusive: bool) -> Result<Connection, DbError> {
    check_directory(path)?;
    if inspect(path)? == FileKind::Missing {
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(DbError::io("create the database", path, &error));
            }
            _ => {}
        }
    }
    let sqlite = |error: rusqlite::Error| DbError::sqlite(OPEN, path, &error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(sqlite)?;
    if connection.is_readonly("main").map_err(sqlite)? {
        let cause = "the file is not writable";
        return Err(DbError::new(DbErrorKind::ReadOnly, OPEN, path, cause));
    }
    prepare(&mut connection, path, durability, exclusive)?;
    Ok(connection)
}

fn prepare(connection: &mut Connection, path: &Path, durability: Durability, exclusive: bool) -> Result<(), DbError> {
    let sqlite = |error: rusqlite::Error| DbError::sqlite(OPEN, path, &error);
    connection.busy_timeout(BUSY).map_err(sqlite)?;
    if exclusive {
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(sqlite)?;
    }
    schema::check_version(OPEN, path, schema::version(connection).map_err(sqlite)?)?;
    // Takes effect only in a new file.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(sqlite)?;
    // Tables are created before the log is enabled, so that the application id is in the file itself.
    schema::migrate(connection).map_err(sqlite)?;
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(sqlite)?;
    if mode != "wal" {
        tracing::warn!(path = %path.display(), mode, "the file system allows no write-ahead log: commits are slower");
    }
    let synchronous = match durability {
        Durability::Normal => "NORMAL",
        Durability::Full => "FULL",
    };
    for (name, value) in [("synchronous", synchronous), ("temp_store", "MEMORY")] {
        connection.pragma_update(None, name, value).map_err(sqlite)?;
    }
    // Pages of log (4 KiB) before it is written back, KiB of cache, bytes that the log keeps on disk.
    for (name, value) in [
        ("wal_autocheckpoint", 4_000),
        ("cache_size", -16_384),
        ("journal_size_limit", 67_108_864),
    ] {
        connection.pragma_update(None, name, value).map_err(sqlite)?;
    }
    plan_once(connection).map_err(sqlite)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Without this SQLite makes a new plan, and parses the statement again, for every value that a range is compared with.
fn plan_once(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

/// Opens for reading, beside a writer (of this process too) or on a stopped cluster's file.
pub(super) fn open_for_reading(path: &Path) -> Result<Connection, DbError> {
    check_directory(path)?;
    if inspect(path)? == FileKind::Missing {
        return Err(DbError::new(DbErrorKind::Missing, OPEN, path, "there is no database yet"));
    }
    let first = match connect(path.as_os_str().as_bytes(), OpenFlags::empty()) {
        Ok(connection) => return finish_reading(connection, path),
        Err(error) => DbError::sqlite(OPEN, path, &error),
    };
    // Where the log's index cannot be made (a directory that is read-only) the file alone is enough, if there is no log.
    let log_is_empty = std::fs::metadata(with_suffix(path, "-wal")).map_or(true, |found| found.size() == 0);
    let may_be = matches!(first.kind, DbErrorKind::ReadOnly | DbErrorKind::Permission) && log_is_empty;
    match may_be.then(|| connect(&immutable_uri(path), OpenFlags::SQLITE_OPEN_URI)) {
        Some(Ok(connection)) => finish_reading(connection, path),
        _ => Err(first),
    }
}

fn connect(name: &[u8], flags: OpenFlags) -> rusqlite::Result<Connection> {
    let name = Path::new(std::ffi::OsStr::from_bytes(name));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | flags;
    let connection = Connection::open_with_flags(name, flags)?;
    connection.busy_timeout(BUSY)?;
    // Opening does not read the file yet.
    connection.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(()))?;
    Ok(connection)
}

fn finish_reading(connection: Connection, path: &Path) -> Result<Connection, DbError> {
    let sqlite = |error: rusqlite::Error| DbError::sqlite(OPEN, path, &error);
    let version = schema::version(&connection).map_err(sqlite)?;
    schema::check_version(OPEN, path, version)?;
    if version == 0 {
        return Err(DbError::new(DbErrorKind::Missing, OPEN, path, "its tables were never made"));
    }
    plan_once(&connection).map_err(sqlite)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// The note that the database was deleted or replaced under a running controller, and where its records are.
fn note_of_loss(database: &Path) -> PathBuf {
    with_suffix(database, "-lost.txt")
}

pub(crate) fn note_loss(database: &Path, text: &str) {
    if let Err(error) = std::fs::write(note_of_loss(database), text) {
        tracing::warn!(%error, "cannot write the note about the lost database");
    }
}

/// Returns the note of [`note_loss`]; with `remove` also removes it.
pub(crate) fn noted_loss(database: &Path, remove: bool) -> Option<String> {
    let path = note_of_loss(database);
    let text = std::fs::read_to_string(&path).ok()?;
    if remove {
        let _ = std::fs::remove_file(path);
    }
    Some(text)
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// `file:…?immutable=1`: SQLite then takes no locks and makes no files.
fn immutable_uri(path: &Path) -> Vec<u8> {
    // After `//` stands a host, none here; a relative path must not look like one.
    let mut uri = if path.is_absolute() {
        b"file://".to_vec()
    } else {
        b"file:".to_vec()
    };
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'%' | b'?' | b'#' => uri.extend(format!("%{byte:02x}").bytes()),
            _ => uri.push(byte),
        }
    }
    uri.extend(b"?immutable=1");
    uri
}
