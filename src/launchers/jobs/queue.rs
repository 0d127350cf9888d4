//! The batch system's view of the jobs, cached. Schedulers answer slowly and should not be polled
//! often: one query covers all jobs of the user, at most once per interval, with backoff while
//! queries fail. Other pcluster commands share the answer through a small file.
use super::Jobs;
use super::states::is_ours;
use crate::launchers::Job;
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
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// A job that was just submitted is not queried immediately, since the answer would only be that it
/// exists.
const FIRST_LOOK_S: f64 = 1.5;
/// Maximum number of records of ended jobs.
const MOST_HISTORY: usize = 5000;

pub struct Queue {
    path: PathBuf,
    interval: Duration,
    kept: Mutex<Option<Known>>,
}

/// One snapshot. Times are seconds since 1970.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Known {
    at: f64,
    asked: Vec<JobId>,
    rows: Vec<JobRow>,
    /// Jobs that no longer appear in the queue.
    history: Vec<JobRow>,
    /// The reason why a job waits, by job id.
    reasons: BTreeMap<String, String>,
    failure: Option<Failure>,
    /// The number of consecutive failures.
    failures: u32,
}

/// A query that failed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    pub command: String,
    pub said: String,
}

impl Known {
    pub fn at(&self) -> f64 {
        self.at
    }
    pub fn rows(&self) -> &[JobRow] {
        &self.rows
    }
    pub fn history(&self) -> &[JobRow] {
        &self.history
    }
    pub fn reason(&self, job: &JobId) -> Option<&str> {
        self.reasons.get(&job.0).map(String::as_str)
    }
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }
    pub fn asked(&self, job: &JobId) -> bool {
        self.asked.contains(job)
    }

    /// Whether the snapshot is still valid at this time, for these jobs.
    fn counts(&self, now: f64, newer_than: Duration, jobs: &[Job]) -> bool {
        let age = now - self.at;
        // A snapshot from the future (the clock was set back) must not suppress queries.
        if age < -1.0 {
            return false;
        }
        if self.failure.is_some() {
            let pause = newer_than
                .saturating_mul(1 << self.failures.min(10))
                .min(LONGEST_PAUSE.max(newer_than));
            return age < pause.as_secs_f64();
        }
        let is_answered = |job: &Job| self.asked.contains(&JobId(job.id.clone())) || now - job.submitted < FIRST_LOOK_S;
        age < newer_than.as_secs_f64() && jobs.iter().all(is_answered)
    }
}

impl Queue {
    pub fn new(system: &dyn BatchSystem, profile: &ProfileDir, config: &Config) -> Queue {
        Queue {
            path: profile.batch_dir().join(format!("{}.queue.json", system.name())),
            interval: Duration::from_millis(config.launcher.poll_ms),
            kept: Mutex::new(None),
        }
    }

    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Discards the snapshot, so that the next call queries the system.
    pub fn forget(&self) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let _ = std::fs::remove_file(&self.path);
    }

    /// Returns a snapshot no older than `newer_than`; queries the system if necessary.
    pub fn ask(&self, launcher: &Jobs, jobs: &[Job], newer_than: Duration) -> Known {
        // One query at a time: concurrent callers share the result.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs.is_empty() {
            return Known::default();
        }
        let now = unix_now();
        if let Some(known) = kept.as_ref().filter(|known| known.counts(now, newer_than, jobs)) {
            return known.clone();
        }
        let before = self.read().or_else(|| kept.take()).unwrap_or_default();
        if before.counts(now, newer_than, jobs) {
            return kept.insert(before).clone();
        }
        if jobs.iter().all(|job| now - job.submitted < FIRST_LOOK_S) {
            return Known {
                history: before.history,
                ..Known::default()
            };
        }
        let known = question(launcher, jobs, before, now);
        self.write(&known);
        kept.insert(known).clone()
    }

    fn read(&self) -> Option<Known> {
        serde_json::from_slice(&std::fs::read(&self.path).ok()?).ok()
    }

    /// A failed write is not an error: the snapshot is only a cache.
    fn write(&self, known: &Known) {
        let beside = self.path.with_extension(format!("{}.part", std::process::id()));
        let write = || -> std::io::Result<()> {
            let text = serde_json::to_vec(known)?;
            let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            file.write_all(&text)?;
            std::fs::rename(&beside, &self.path)
        };
        if write().is_err() {
            let _ = std::fs::remove_file(&beside);
        }
    }
}

fn question(launcher: &Jobs, jobs: &[Job], before: Known, now: f64) -> Known {
    // Queries the dialects and clusters one by one; there is rarely more than one.
    let mut known = Known {
        at: now,
        history: before.history,
        ..Known::default()
    };
    let mut left: Vec<&Job> = jobs.iter().collect();
    while let Some(first) = left.first() {
        let row = launcher.row(first);
        let (dialect, cluster) = (first.dialect.clone(), cluster_of(row, first));
        let (same, others): (Vec<&Job>, Vec<&Job>) = left
            .iter()
            .partition(|job| job.dialect == dialect && cluster_of(row, job) == cluster);
        left = others;
        let mut ids: Vec<JobId> = same.iter().map(|job| JobId(job.id.clone())).collect();
        // Include the jobs of other users of this file, so that they keep their rows.
        let shared = before.rows.iter().map(|row| row.job.clone());
        ids.extend(shared.filter(|id| before.asked.contains(id) && row.cluster_of(id) == cluster));
        ids.sort();
        ids.dedup();
        let command = row.query_command(&ids, &user());
        let answer = match launcher.run(row, command.clone()) {
            Ok(output) => row.parse_query(&output).map_err(|failure| failure.said),
            Err(error) => Err(error.to_string()),
        };
        match answer {
            Ok(rows) => {
                further(launcher, row, &same, &rows, &mut known);
                known.rows.extend(rows);
                known.asked.extend(ids);
            }
            Err(said) => {
                known.failure = Some(Failure {
                    command: command.to_string(),
                    said,
                });
                known.failures = before.failures + 1;
            }
        }
    }
    known
}

fn cluster_of(row: &dyn BatchSystem, job: &Job) -> String {
    row.cluster_of(&JobId(job.id.clone())).to_string()
}

/// Queries the outcome of jobs that no longer appear, and the reason for waiting jobs without one.
fn further(launcher: &Jobs, system: &'static dyn BatchSystem, jobs: &[&Job], rows: &[JobRow], known: &mut Known) {
    for job in jobs {
        let id = JobId(job.id.clone());
        let shown = |element: u32| {
            let is_it = |row: &&JobRow| row.job == id && is_ours(row, job) && row.element.is_none_or(|e| e == element);
            rows.iter().chain(&known.history).find(is_it)
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
            known.history.retain(|row| row.job != id);
            known.history.extend(over);
        }
        let waits = rows.iter().find(|row| row.job == id && row.status.is_waiting());
        if waits.is_some_and(|row| row.reason.is_none())
            && let Some(command) = system.reason_command(&id)
            && let Ok(output) = launcher.run(system, command)
            && let Some(reason) = system.parse_reason(&output)
        {
            known.reasons.insert(id.0.clone(), reason);
        }
    }
    let too_many = known.history.len().saturating_sub(MOST_HISTORY);
    known.history.drain(..too_many);
}

/// The user whose jobs are queried.
pub(super) fn user() -> String {
    let of_system = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|u| u.name);
    of_system
        .or_else(|| std::env::var("USER").ok())
        .unwrap_or_else(|| nix::unistd::geteuid().to_string())
}
