//! Finds a connection file, or waits for it.
use super::{ConnectionError, ConnectionFile};
use notify::{RecursiveMode, Watcher};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Poll interval in case no file notification arrives: network file systems send none.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Returns the connection file if it exists and the controller that wrote it still runs (as far as
/// this host can determine).
pub(crate) fn find(path: &Path) -> Result<ConnectionFile, ConnectionError> {
    let file = ConnectionFile::read(path)?;
    match &file.pcluster {
        Some(keys) if file.is_stale() => Err(ConnectionError::Stale {
            path: path.to_path_buf(),
            pid: keys.process.pid,
            host: keys.process.host.clone(),
        }),
        _ => Ok(file),
    }
}

/// Waits for a connection file that is neither stale nor damaged: a starting controller writes a
/// new one. Calls `check` repeatedly; its error ends the wait.
pub(crate) fn wait<E: From<ConnectionError>>(
    path: &Path,
    timeout: Duration,
    mut check: impl FnMut() -> Result<(), E>,
) -> Result<ConnectionFile, E> {
    let deadline = Instant::now() + timeout;
    let (sender, notices) = mpsc::channel();
    let notify_on_change = move |event: notify::Result<notify::Event>| {
        // Ignore read accesses: they may come from this very function.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            let _ = sender.send(());
        }
    };
    let mut watcher = notify::recommended_watcher(notify_on_change).ok();
    // Only an existing directory can be watched; otherwise rely on polling.
    let watched = path
        .parent()
        .zip(watcher.as_mut())
        .map(|(dir, w)| w.watch(dir, RecursiveMode::NonRecursive));
    let watching = matches!(watched, Some(Ok(())));
    loop {
        let damaged = match find(path) {
            Ok(file) => return Ok(file),
            Err(ConnectionError::Missing { .. } | ConnectionError::Stale { .. }) => None,
            Err(other) if other.is_damaged() => Some(other),
            Err(other) => return Err(other.into()),
        };
        check()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let (path, seconds) = (path.to_path_buf(), timeout.as_secs_f64());
            return Err(damaged.unwrap_or(ConnectionError::TimedOut { path, seconds }).into());
        }
        let pause = left.min(POLL_INTERVAL);
        if !watching {
            std::thread::sleep(pause);
            continue;
        }
        match notices.recv_timeout(pause) {
            Ok(()) => while notices.try_recv().is_ok() {},
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(pause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::tests::example;
    use super::*;
    use crate::sys::process::ProcessId;

    fn never_ends() -> Result<(), ConnectionError> {
        Ok(())
    }

    #[test]
    fn a_file_of_an_ended_process_is_stale() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("profile_x/security/ipcontroller-client.json");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut file = example();
        if let Some(keys) = &mut file.pcluster {
            keys.process = ProcessId::of(child.id());
        }
        file.write(&path).unwrap();
        assert_eq!(find(&path).unwrap(), file);
        child.kill().unwrap();
        child.wait().unwrap();
        let error = find(&path).unwrap_err();
        assert!(matches!(error, ConnectionError::Stale { pid, .. } if pid == child.id()), "{error}");
        // The state of a controller on another host cannot be determined.
        if let Some(keys) = &mut file.pcluster {
            keys.process.host = "elsewhere.invalid".into();
        }
        assert!(!file.is_stale());
        // Another process may have reused the pid.
        if let Some(keys) = &mut file.pcluster {
            keys.process = ProcessId {
                ticks: Some(1),
                ..ProcessId::own()
            };
        }
        assert!(file.is_stale());
    }

    #[test]
    fn wait_returns_a_file_that_appears() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("security/ipcontroller-client.json");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| wait(&path, Duration::from_secs(30), never_ends));
            example().write(&path).unwrap();
            assert_eq!(waiter.join().unwrap().unwrap(), example());
        });
    }

    #[test]
    fn wait_ignores_a_damaged_file_and_reports_it_at_the_timeout() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipcontroller-client.json");
        for damage in [&b"{\"s\0h\": 1}"[..], b"\xff\xfe", b"[]", b"", b"{}"] {
            std::fs::write(&path, damage).unwrap();
            let error = wait(&path, Duration::from_millis(20), never_ends).unwrap_err();
            assert!(error.is_damaged(), "{error}");
            let written = || {
                example().write(&path).unwrap();
                never_ends()
            };
            assert_eq!(wait(&path, Duration::from_secs(30), written).unwrap(), example());
            assert!(ConnectionFile::remove_damaged(&path).is_none() && path.exists());
            std::fs::write(&path, damage).unwrap();
            assert!(ConnectionFile::remove_damaged(&path).is_some() && !path.exists());
        }
    }

    #[test]
    fn wait_does_not_spin() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipcontroller-client.json");
        let mut file = example();
        if let Some(keys) = &mut file.pcluster {
            keys.process.ticks = Some(1);
        }
        file.write(&path).unwrap();
        let mut polls = 0;
        let counted = || {
            polls += 1;
            never_ends()
        };
        let error = wait(&path, Duration::from_secs(1), counted).unwrap_err();
        assert!(matches!(error, ConnectionError::TimedOut { .. }), "{error}");
        // About ten polls, plus some notifications of preceding writes.
        assert!((2..=20).contains(&polls), "{polls} polls");
    }

    #[test]
    fn wait_ends_at_the_timeout_or_with_an_error_of_the_check() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipcontroller-client.json");
        let error = wait(&path, Duration::from_millis(20), never_ends).unwrap_err();
        assert!(matches!(error, ConnectionError::TimedOut { .. }), "{error}");
        let gone = || Err(ConnectionError::NotPcluster { path: path.clone() });
        let error = wait(&path, Duration::from_secs(30), gone).unwrap_err();
        assert!(matches!(error, ConnectionError::NotPcluster { .. }), "{error}");
    }
}
