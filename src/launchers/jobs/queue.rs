//! The batch system's view of the jobs, cached. Schedulers answer slowly and should not be polled
//! often: one query covers all jobs of the user, at most once per interval, with backoff while
//! queries fail. Other pcluster commands share the answer through a small file.
use super::BatchLauncher;
use crate::launchers::BatchJob;
use crate::launchers::batch::{BatchSystem, JobId, JobRow};
use crate::profile::ProfileDir;
use crate::profile::config::Config;
use crate::sys::clock::unix_now;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Maximum backoff after failed queries.
const MAX_BACKOFF: Duration = Duration::from_secs(300);
/// A job that was just submitted is not queried immediately, since the answer would only be that it
/// exists.
const FIRST_QUERY_DELAY_S: f64 = 1.5;
/// Maximum number of records of ended jobs.
const MAX_HISTORY: usize = 5000;

pub(super) struct QueueCache {
    path: PathBuf,
    interval: Duration,
    cached: Mutex<Option<JobSnapshot>>,
}

/// One snapshot. Times are seconds since 1970.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct JobSnapshot {
    at: f64,
    queried: Vec<JobId>,
    rows: Vec<JobRow>,
    /// Jobs that no longer appear in the queue.
    history: Vec<JobRow>,
    /// The reason why a job waits, by job id.
    reasons: BTreeMap<String, String>,
    failure: Option<QueryError>,
    /// The number of consecutive failures.
    failures: u32,
}

/// A query that failed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct QueryError {
    pub command: String,
    pub message: String,
}

impl JobSnapshot {
    pub(super) fn at(&self) -> f64 {
        self.at
    }
    pub(super) fn rows(&self) -> &[JobRow] {
        &self.rows
    }
    pub(super) fn history(&self) -> &[JobRow] {
        &self.history
    }
    pub(super) fn reason(&self, job: &JobId) -> Option<&str> {
        self.reasons.get(&job.0).map(String::as_str)
    }
    pub(super) fn failure(&self) -> Option<&QueryError> {
        self.failure.as_ref()
    }
    pub(super) fn queried(&self, job: &JobId) -> bool {
        self.queried.contains(job)
    }

    /// Whether the snapshot is still valid at this time, for these jobs.
    fn is_valid(&self, now: f64, max_age: Duration, jobs: &[BatchJob]) -> bool {
        let age = now - self.at;
        // A snapshot from the future (the clock was set back) must not suppress queries.
        if age < -1.0 {
            return false;
        }
        if self.failure.is_some() {
            let pause = max_age.saturating_mul(1 << self.failures.min(10)).min(MAX_BACKOFF.max(max_age));
            return age < pause.as_secs_f64();
        }
        let is_answered = |job: &BatchJob| self.queried.contains(&JobId(job.id.clone())) || now - job.submitted < FIRST_QUERY_DELAY_S;
        age < max_age.as_secs_f64() && jobs.iter().all(is_answered)
    }
}

impl QueueCache {
    pub(super) fn new(system: &dyn BatchSystem, profile: &ProfileDir, config: &Config) -> QueueCache {
        QueueCache {
            path: profile.batch_dir().join(format!("{}.queue.json", system.name())),
            interval: Duration::from_millis(config.launcher.poll_interval_ms),
            cached: Mutex::new(None),
        }
    }

    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// Discards the snapshot, so that the next call queries the system.
    pub(super) fn invalidate(&self) {
        *self.cached.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let _ = std::fs::remove_file(&self.path);
    }

    /// Returns a snapshot no older than `max_age`; queries the system if necessary.
    pub(super) fn get(&self, launcher: &BatchLauncher, jobs: &[BatchJob], max_age: Duration) -> JobSnapshot {
        // One query at a time: concurrent callers share the result.
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs.is_empty() {
            return JobSnapshot::default();
        }
        let now = unix_now();
        if let Some(snapshot) = cached.as_ref().filter(|snapshot| snapshot.is_valid(now, max_age, jobs)) {
            return snapshot.clone();
        }
        let before = self.read().or_else(|| cached.take()).unwrap_or_default();
        if before.is_valid(now, max_age, jobs) {
            return cached.insert(before).clone();
        }
        if jobs.iter().all(|job| now - job.submitted < FIRST_QUERY_DELAY_S) {
            return JobSnapshot {
                history: before.history,
                ..JobSnapshot::default()
            };
        }
        let snapshot = query(launcher, jobs, before, now);
        self.write(&snapshot);
        cached.insert(snapshot).clone()
    }

    fn read(&self) -> Option<JobSnapshot> {
        serde_json::from_slice(&std::fs::read(&self.path).ok()?).ok()
    }

    /// A failed write is not an error: the snapshot is only a cache.
    fn write(&self, snapshot: &JobSnapshot) {
        let beside = self.path.with_extension(format!("{}.part", std::process::id()));
        let write = || -> std::io::Result<()> {
            let text = serde_json::to_vec(snapshot)?;
            let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            file.write_all(&text)?;
            std::fs::rename(&beside, &self.path)
        };
        if write().is_err() {
            let _ = std::fs::remove_file(&beside);
        }
    }
}

fn query(launcher: &BatchLauncher, jobs: &[BatchJob], before: JobSnapshot, now: f64) -> JobSnapshot {
    // Queries the dialects and clusters one by one; there is rarely more than one.
    let mut snapshot = JobSnapshot {
        at: now,
        history: before.history,
        ..JobSnapshot::default()
    };
    let mut left: Vec<&BatchJob> = jobs.iter().collect();
    while let Some(first) = left.first() {
        let row = launcher.row(first);
        let (dialect, cluster) = (first.dialect.clone(), cluster_of(row, first));
        let (same, others): (Vec<&BatchJob>, Vec<&BatchJob>) = left
            .iter()
            .partition(|job| job.dialect == dialect && cluster_of(row, job) == cluster);
        left = others;
        let mut ids: Vec<JobId> = same.iter().map(|job| JobId(job.id.clone())).collect();
        // Include the jobs of other users of this file, so that they keep their rows.
        let shared = before.rows.iter().map(|row| row.job.clone());
        ids.extend(shared.filter(|id| before.queried.contains(id) && row.cluster_of(id) == cluster));
        ids.sort();
        ids.dedup();
        let command = row.query_command(&ids, &user());
        let answer = match launcher.run(row, command.clone()) {
            Ok(output) => row.parse_query(&output).map_err(|failure| failure.message),
            Err(error) => Err(error.to_string()),
        };
        match answer {
            Ok(rows) => {
                query_details(launcher, row, &same, &rows, &mut snapshot);
                snapshot.rows.extend(rows);
                snapshot.queried.extend(ids);
            }
            Err(message) => {
                snapshot.failure = Some(QueryError {
                    command: command.to_string(),
                    message,
                });
                snapshot.failures = before.failures + 1;
            }
        }
    }
    snapshot
}

fn cluster_of(row: &dyn BatchSystem, job: &BatchJob) -> String {
    row.cluster_of(&JobId(job.id.clone())).to_string()
}

/// Queries the outcome of jobs that no longer appear, and the reason for waiting jobs without one.
fn query_details(
    launcher: &BatchLauncher,
    system: &'static dyn BatchSystem,
    jobs: &[&BatchJob],
    rows: &[JobRow],
    snapshot: &mut JobSnapshot,
) {
    for job in jobs {
        let id = JobId(job.id.clone());
        let shown = |element: u32| {
            let is_it = |row: &&JobRow| row.job == id && is_ours(row, job) && row.element.is_none_or(|e| e == element);
            rows.iter().chain(&snapshot.history).find(is_it)
        };
        if job.elements.iter().any(|element| shown(*element).is_none())
            && let Some(command) = system.history_command(&id)
            && let Ok(output) = launcher.run(system, command)
        {
            let over = system.parse_history(&output).into_iter().filter(|row| row.status.is_over());
            // Records of another cluster contain the bare job number.
            let is_elsewhere = !system.cluster_of(&id).is_empty();
            let over = over.map(|row| match is_elsewhere {
                true => JobRow { job: id.clone(), ..row },
                false => row,
            });
            snapshot.history.retain(|row| row.job != id);
            snapshot.history.extend(over);
        }
        let waits = rows.iter().find(|row| row.job == id && row.status.is_waiting());
        if waits.is_some_and(|row| row.reason.is_none())
            && let Some(command) = system.reason_command(&id)
            && let Ok(output) = launcher.run(system, command)
            && let Some(reason) = system.parse_reason(&output)
        {
            snapshot.reasons.insert(id.0.clone(), reason);
        }
    }
    let too_many = snapshot.history.len().saturating_sub(MAX_HISTORY);
    snapshot.history.drain(..too_many);
}

/// The user whose jobs are queried.
pub(super) fn user() -> String {
    let of_system = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|u| u.name);
    of_system
        .or_else(|| std::env::var("USER").ok())
        .unwrap_or_else(|| nix::unistd::geteuid().to_string())
}

/// Compares the name, because job numbers are reused.
pub(super) fn is_ours(row: &JobRow, job: &BatchJob) -> bool {
    row.name.as_ref().is_none_or(|name| *name == job.name)
}
