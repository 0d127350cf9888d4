//! Detects a database that is deleted or replaced while the controller runs, reports it, and saves its records elsewhere.
use crate::db::{self, Writer};
use crate::model::UnixTime;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// Between two checks of the file.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Between two copies while records are added.
const COPY_INTERVAL: Duration = Duration::from_secs(30);

/// The latest copy.
#[derive(Debug)]
pub(super) struct Copy {
    path: PathBuf,
    changes: i64,
    at: Instant,
}

/// Checks periodically until the sender is dropped.
pub(super) fn watch(writer: &Mutex<Writer>, copy: &Arc<Mutex<Option<Copy>>>, until: &mpsc::Receiver<()>, now: fn() -> UnixTime) {
    while until.recv_timeout(CHECK_INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
        let writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        save(
            &writer,
            &mut copy.lock().unwrap_or_else(PoisonError::into_inner),
            COPY_INTERVAL,
            now,
        );
    }
}

/// Copies the records of a lost database if they changed and the last copy is old enough. Returns true if it is lost.
pub(super) fn save(writer: &Writer, copy: &mut Option<Copy>, pause: Duration, now: fn() -> UnixTime) -> bool {
    if copy.is_none() && !writer.is_lost() {
        return false;
    }
    let changes = writer.total_changes();
    if copy
        .as_ref()
        .is_some_and(|copy| copy.changes == changes || copy.at.elapsed() < pause)
    {
        return true;
    }
    let path = match copy {
        Some(copy) => copy.path.clone(),
        None => copy_path(writer.path(), now()),
    };
    match writer.rescue(&path) {
        Ok(()) => {
            if copy.is_none() {
                let text = format!(
                    "the database {} was deleted or replaced while its controller ran; its records are saved in {}",
                    writer.path().display(),
                    path.display()
                );
                tracing::error!("{text}; hint: stop the cluster, then move that file back");
                db::note_loss(writer.path(), &text);
            }
            let at = Instant::now();
            *copy = Some(Copy { path, changes, at });
        }
        Err(error) => {
            tracing::error!(%error, hint = error.hint(), "the database was deleted or replaced, and its records cannot be saved elsewhere")
        }
    }
    true
}

/// The write-ahead log of a deleted database, if the copy is complete.
pub(super) fn orphaned_files(writer: &Writer, copy: &Option<Copy>) -> Vec<PathBuf> {
    let is_whole = copy.as_ref().is_some_and(|copy| copy.changes == writer.total_changes());
    if !is_whole || writer.path().exists() {
        return Vec::new();
    }
    let beside = |suffix: &str| {
        let mut name = writer.path().as_os_str().to_os_string();
        name.push(suffix);
        PathBuf::from(name)
    };
    vec![beside("-wal"), beside("-shm")]
}

/// Next to the database, or in the temporary directory if the database's directory is gone, too.
fn copy_path(database: &Path, now: UnixTime) -> PathBuf {
    let stamp: String = now.to_iso().chars().filter(char::is_ascii_digit).take(14).collect();
    let name = database.file_name().unwrap_or_default().to_string_lossy();
    let name = format!("{name}.recovered-{stamp}");
    match database.parent().filter(|directory| directory.is_dir()) {
        Some(directory) => directory.join(name),
        None => std::env::temp_dir().join(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Durability;
    use crate::model::change::Change;

    fn add(writer: &mut Writer, second: f64) {
        let at = UnixTime(second);
        writer.apply(&[Change::RetentionClock { at }]).unwrap();
    }

    fn now() -> UnixTime {
        UnixTime(1_763_669_533.0)
    }

    #[test]
    fn the_records_of_a_database_that_is_deleted_or_replaced_are_kept_elsewhere() {
        for replaced in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("pcluster.db");
            let mut writer = Writer::open(&path, Durability::Normal).unwrap();
            add(&mut writer, 1.0);
            let mut copy = None;
            assert!(!save(&writer, &mut copy, COPY_INTERVAL, now));
            std::fs::remove_file(&path).unwrap();
            if replaced {
                std::fs::write(&path, "another").unwrap();
            }
            add(&mut writer, 2.0);
            assert!(save(&writer, &mut copy, COPY_INTERVAL, now));
            let kept = dir.path().join("pcluster.db.recovered-20251120201213");
            let clock = |path: &Path| crate::db::Reader::open(path).unwrap().restart_state().unwrap().retention_clock;
            assert_eq!(clock(&kept), Some(UnixTime(2.0)));
            add(&mut writer, 3.0);
            assert!(save(&writer, &mut copy, COPY_INTERVAL, now));
            assert_eq!(clock(&kept), Some(UnixTime(2.0)), "not at once again");
            assert!(save(&writer, &mut copy, Duration::ZERO, now));
            assert_eq!(clock(&kept), Some(UnixTime(3.0)));
            assert_eq!(
                std::fs::metadata(&kept)
                    .map(|m| std::os::unix::fs::PermissionsExt::mode(&m.permissions()) & 0o777)
                    .unwrap(),
                0o600
            );
            assert!(db::noted_loss(&path, true).unwrap().contains("recovered-20251120201213"));
            assert_eq!(db::noted_loss(&path, true), None);
            writer.close().unwrap();
        }
    }

    #[test]
    fn an_empty_file_with_a_log_is_not_a_new_database() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pcluster.db");
        std::fs::write(dir.path().join("pcluster.db-wal"), "records").unwrap();
        for empty in [false, true] {
            if empty {
                std::fs::write(&path, "").unwrap();
            }
            let error = Writer::open(&path, Durability::Normal).err().unwrap().to_string();
            assert!(error.contains("write-ahead log") && error.contains("pcluster.db-wal"), "{error}");
            assert_eq!(std::fs::read(dir.path().join("pcluster.db-wal")).unwrap(), b"records");
        }
    }
}
