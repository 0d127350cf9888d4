//! The schema version of a file, and the migration of older ones.
use super::{DbError, DbErrorKind};
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;

/// `pclu`, in the file's header: `file` and `PRAGMA application_id` show it.
pub(super) const APPLICATION_ID: i32 = 0x7063_6c75;

/// Step n brings version n to n + 1. Append only, so that every old file stays readable.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_tasks.sql"),
    include_str!("migrations/0002_cancelling.sql"),
    include_str!("migrations/0003_purging.sql"),
    include_str!("migrations/0004_jobs.sql"),
    include_str!("migrations/0005_resubmitted.sql"),
    include_str!("migrations/0006_undelivered.sql"),
    include_str!("migrations/0007_batch_jobs.sql"),
    include_str!("migrations/0008_exact_values.sql"),
    include_str!("migrations/0009_bundles.sql"),
    include_str!("migrations/0010_outputs.sql"),
    include_str!("migrations/0011_long_values.sql"),
    include_str!("migrations/0012_nodes.sql"),
    include_str!("migrations/0013_table_names.sql"),
    include_str!("migrations/0014_attempts.sql"),
    include_str!("migrations/0015_large_inputs.sql"),
];

/// Views are not migrated: each migration ends by creating the current ones.
const VIEWS: &str = include_str!("views.sql");

/// The version that this program writes, in `PRAGMA user_version`.
pub(super) const VERSION: i32 = MIGRATIONS.len() as i32;

pub(super) fn check_version(operation: &'static str, path: &Path, version: i32) -> Result<(), DbError> {
    if version <= VERSION {
        return Ok(());
    }
    let cause = format!(
        "its tables have version {version}, this pcluster {} knows up to {VERSION}",
        crate::model::VERSION
    );
    Err(DbError::new(DbErrorKind::NewerSchema, operation, path, cause))
}

pub(super) fn application_id(connection: &Connection) -> rusqlite::Result<i32> {
    connection.pragma_query_value(None, "application_id", |row| row.get(0))
}

pub(super) fn version(connection: &Connection) -> rusqlite::Result<i32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Runs the missing migrations in one transaction.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let from = version(&transaction)?;
    if from < VERSION {
        transaction.execute_batch("DROP VIEW IF EXISTS maps; DROP VIEW IF EXISTS tasks;")?;
        for step in MIGRATIONS.iter().skip(from.max(0) as usize) {
            transaction.execute_batch(step)?;
        }
        transaction.execute_batch(VIEWS)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
        transaction.execute(
            "INSERT OR IGNORE INTO meta VALUES ('created_by', 'pcluster ' || ?1)",
            [crate::model::VERSION],
        )?;
    }
    transaction.commit()
}
