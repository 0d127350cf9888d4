//! Database errors, with hints for the user.
use crate::model::query::Column;
use crate::model::shell;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DbErrorKind {
    /// The file does not exist (or is empty).
    Missing,
    /// The directory for the file is missing or is not one.
    Directory,
    /// The file system refuses: permissions.
    Permission,
    /// Another process holds the file.
    Locked,
    /// No space left for it.
    Full,
    /// SQLite finds the file inconsistent.
    Damaged,
    /// The disk or the network file system fails.
    Disk,
    /// Descriptors or memory.
    Exhausted,
    /// The file or its directory cannot be written.
    ReadOnly,
    /// Not a database of pcluster.
    Foreign,
    /// Written by a newer pcluster.
    NewerSchema,
    /// The query is invalid (a column compared with the wrong type, an unknown operator).
    Query,
    /// Any other error of SQLite or the system.
    Other,
}

/// `cannot <operation> <path>: <cause>`, with a hint in [`DbError::hint`].
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}: {cause}", path.display())]
pub(crate) struct DbError {
    pub kind: DbErrorKind,
    /// `open`, `read tasks from`, `write to` …
    pub operation: &'static str,
    pub path: PathBuf,
    pub cause: String,
}

/// A file that could not be read or written, inside an error of SQLite.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", path.display())]
pub(super) struct FileError {
    pub path: PathBuf,
    pub error: std::io::Error,
}

/// Why a query is invalid.
#[derive(Debug, thiserror::Error)]
pub(super) enum QueryError {
    #[error("a query is an object of fields, not {0}")]
    NoObject(serde_json::Value),
    #[error("unknown field {0:?} (fields: {1})")]
    UnknownField(String, String),
    #[error("unknown operator {0:?} (operators: {1})")]
    UnknownOperator(String, String),
    #[error("{0} cannot be searched")]
    Unsearchable(&'static str),
    #[error("{operator} of {field} takes {expected}, not {value}")]
    Operand {
        operator: &'static str,
        field: &'static str,
        expected: String,
        value: serde_json::Value,
    },
    #[error("{0} is a number, {1:?} is none")]
    NoNumber(Column, String),
}

impl DbError {
    pub(crate) fn new(kind: DbErrorKind, operation: &'static str, path: &Path, cause: impl Into<String>) -> DbError {
        DbError {
            kind,
            operation,
            path: path.to_path_buf(),
            cause: cause.into(),
        }
    }

    pub(super) fn sqlite(operation: &'static str, path: &Path, error: &rusqlite::Error) -> DbError {
        if let rusqlite::Error::ToSqlConversionFailure(cause) = error
            && let Some(FileError { path, error }) = cause.downcast_ref()
        {
            return DbError::io("write or read the output of a task in", path, error);
        }
        DbError::new(kind_of(error), operation, path, error.to_string())
    }

    pub(super) fn io(operation: &'static str, path: &Path, error: &std::io::Error) -> DbError {
        use nix::libc::{EIO, EMFILE, ENFILE};
        use std::io::ErrorKind::*;
        let kind = match error.kind() {
            NotFound => DbErrorKind::Missing,
            PermissionDenied => DbErrorKind::Permission,
            ReadOnlyFilesystem => DbErrorKind::ReadOnly,
            StorageFull | QuotaExceeded => DbErrorKind::Full,
            NotADirectory | IsADirectory => DbErrorKind::Directory,
            OutOfMemory => DbErrorKind::Exhausted,
            _ if matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) => DbErrorKind::Exhausted,
            _ if error.raw_os_error() == Some(EIO) => DbErrorKind::Disk,
            _ => DbErrorKind::Other,
        };
        DbError::new(kind, operation, path, error.to_string())
    }

    /// A hint for the user, if any.
    pub(crate) fn hint(&self) -> Option<String> {
        let path = shell::quoted(self.path.display());
        let directory = shell::quoted(self.path.parent().unwrap_or(&self.path).display());
        match self.kind {
            DbErrorKind::Missing => Some("no records yet: the file is created when the cluster is first started".into()),
            DbErrorKind::Directory => Some(format!("create the directory {directory}")),
            DbErrorKind::Permission => Some(format!("the file and its directory must be yours: see `ls -ld {directory} {path}`")),
            DbErrorKind::Locked => Some(format!(
                "another process uses the file: a running controller answers for it, else find the process with `fuser {path}`"
            )),
            DbErrorKind::Full => Some(format!(
                "free some space (see `df -h {directory}` and your quota); recorded tasks are not lost"
            )),
            DbErrorKind::Damaged => Some(format!(
                "look at `sqlite3 {path} 'PRAGMA quick_check'`; save what can be read with `sqlite3 {path} .recover | sqlite3 saved.db`, \
                 then move {path} and its -wal and -shm files away"
            )),
            DbErrorKind::Disk => Some(format!(
                "the file system failed: see `df -h {directory}` and the system's log; what was recorded before is not lost"
            )),
            DbErrorKind::Exhausted => Some("end other programs, or raise the limits (ulimit -n, ulimit -v)".into()),
            DbErrorKind::ReadOnly => Some(format!("make {directory} and the files in it writable, or copy them elsewhere")),
            DbErrorKind::Foreign => Some("the file was left as it is: move it away, or use another profile or cluster id".into()),
            DbErrorKind::NewerSchema => Some("use the pcluster that wrote it, or a newer one".into()),
            DbErrorKind::Query | DbErrorKind::Other => None,
        }
    }
}

fn kind_of(error: &rusqlite::Error) -> DbErrorKind {
    use rusqlite::ErrorCode::*;
    match error.sqlite_error_code() {
        Some(DatabaseBusy | DatabaseLocked | FileLockingProtocolFailed) => DbErrorKind::Locked,
        Some(DiskFull) => DbErrorKind::Full,
        Some(OutOfMemory) => DbErrorKind::Exhausted,
        Some(DatabaseCorrupt | NotADatabase) => DbErrorKind::Damaged,
        Some(SystemIoFailure) => DbErrorKind::Disk,
        Some(ReadOnly) => DbErrorKind::ReadOnly,
        Some(CannotOpen | PermissionDenied | AuthorizationForStatementDenied) => DbErrorKind::Permission,
        _ => DbErrorKind::Other,
    }
}
