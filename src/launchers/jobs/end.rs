//! Ends a launch's jobs: cancels this cluster's jobs, then polls the system until they are gone.
//! Reports jobs that remain or do not appear to belong to this cluster.
use super::{BatchLauncher, states};
use crate::launchers::batch::{BatchSystem, CommandLine, JobId, JobRow, JobStatus, JobTarget, ranges};
use crate::launchers::{LaunchError, Launched, StopReport};
use crate::sys::clock::unix_now;
use std::time::{Duration, Instant};

/// An answer newer than this is recent enough to decide what to cancel.
const MAX_SNAPSHOT_AGE: Duration = Duration::from_secs(2);
/// Delays between the first polls for the end of the jobs, and between all later ones.
const POLL_INTERVALS: [Duration; 3] = [Duration::from_millis(300), Duration::from_millis(700), Duration::from_secs(1)];
const LAST_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// What to cancel of one job.
#[derive(Clone)]
struct CancelTarget {
    row: &'static dyn BatchSystem,
    /// The job's name.
    name: String,
    target: JobTarget,
    /// The number of array elements that this covers.
    count: usize,
}

/// The jobs of a launch that still exist.
#[derive(Default)]
struct FoundJobs {
    /// Jobs under their recorded name.
    own: Vec<CancelTarget>,
    /// Recorded jobs whose number has another name in the system, as messages.
    name_conflicts: Vec<String>,
}

impl BatchLauncher {
    /// Cancels the jobs of a launch that still exist, waits until they are gone, and fails with
    /// those that remain.
    pub(super) fn end(&self, launched: &Launched) -> Result<StopReport, LaunchError> {
        let found = self.find_jobs(launched)?;
        let mut ended = StopReport::default();
        let (mut left, mut failure) = (found.name_conflicts, None);
        for group in groups(found.own) {
            let Some(first) = group.first() else { continue };
            let targets: Vec<JobTarget> = group.iter().map(|target| target.target.clone()).collect();
            let command = first.row.cancel_command(&targets);
            if let Err(error) = self.run_action("cancel the jobs", first.row, &command) {
                // Cancel the others nevertheless.
                failure.get_or_insert(error);
                continue;
            }
            ended.cancelled += group.iter().map(|target| target.count).sum::<usize>();
            left.extend(self.wait_until_gone(launched, &group)?);
        }
        self.queue.invalidate();
        match failure {
            Some(failure) => Err(failure),
            None if left.is_empty() => Ok(ended),
            None => Err(LaunchError::JobsRemain {
                system: self.system.title(),
                jobs: left,
            }),
        }
    }

    /// Finds the jobs of a launch that exist under their recorded name, with the elements that have
    /// not ended. A job that the system no longer knows needs no cancellation, and its number may
    /// have been reused.
    fn find_jobs(&self, launched: &Launched) -> Result<FoundJobs, LaunchError> {
        let mut found = FoundJobs::default();
        let snapshot = self.queue.get(self, &launched.jobs, MAX_SNAPSHOT_AGE);
        if let Some(failure) = snapshot.failure() {
            return Err(self.failed("query the jobs", &failure.command, failure.message.clone()));
        }
        for job in &launched.jobs {
            let row = self.row(job);
            let id = JobId(job.id.clone());
            let states = states::element_states(job, &snapshot, unix_now());
            let elements = job.elements.iter().zip(&states);
            let left: Vec<u32> = elements.filter(|(_, s)| !s.has_ended()).map(|(element, _)| *element).collect();
            if left.is_empty() {
                continue;
            }
            let whole = JobTarget {
                job: id.clone(),
                element: None,
            };
            if let Some(conflict) = states::name_conflict(job, &snapshot) {
                let cancel = row.cancel_command(&[whole]);
                found
                    .name_conflicts
                    .push(format!("{conflict}; not cancelled. If it belongs to this cluster: {cancel}"));
                continue;
            }
            let target = |target: JobTarget, count: usize| CancelTarget {
                row,
                name: job.name.clone(),
                target,
                count,
            };
            if job.is_whole() {
                found.own.push(target(whole, left.len()));
                continue;
            }
            let each = |element: u32| JobTarget {
                job: id.clone(),
                element: Some(element),
            };
            found.own.extend(left.into_iter().map(|element| target(each(element), 1)));
        }
        Ok(found)
    }

    /// Waits for the jobs of one group to end. Describes those that remain after the system's
    /// timeout.
    fn wait_until_gone(&self, launched: &Launched, group: &[CancelTarget]) -> Result<Vec<String>, LaunchError> {
        let Some(first) = group.first() else { return Ok(Vec::new()) };
        let row = first.row;
        let mut jobs: Vec<JobId> = group.iter().map(|target| target.target.job.clone()).collect();
        jobs.dedup();
        let command = row.query_command(&jobs, &super::queue::user());
        let kill_wait = Duration::from_secs(u64::from(row.kill_wait().term_s.unwrap_or_default()));
        let begun = Instant::now();
        let mut intervals = POLL_INTERVALS.iter();
        loop {
            let answer = self.run(row, command.clone());
            let rows = match answer.map(|output| row.parse_query(&output)) {
                Ok(Ok(rows)) => Ok(rows),
                Ok(Err(failure)) => Err(failure.message),
                Err(error) => Err(error.to_string()),
            };
            let over = |timeout: Duration| begun.elapsed() >= timeout;
            match rows {
                Ok(rows) => {
                    let left: Vec<&JobRow> = rows.iter().filter(|row| group.iter().any(|t| still_exists(row, t))).collect();
                    let runs = left.iter().any(|row| !row.status.is_waiting());
                    if left.is_empty() || over(self.cancel_timeout + if runs { kill_wait } else { Duration::ZERO }) {
                        return Ok(describe_rows(launched, &left));
                    }
                }
                Err(message) if over(self.cancel_timeout) => {
                    return Err(self.failed("check whether the jobs are gone", &command.to_string(), message));
                }
                Err(_) => {}
            }
            std::thread::sleep(intervals.next().copied().unwrap_or(LAST_POLL_INTERVAL));
        }
    }

    /// Runs a command that returns nothing but success or failure.
    fn run_action(&self, action: &'static str, row: &dyn BatchSystem, command: &CommandLine) -> Result<(), LaunchError> {
        let failed = |message: String| self.failed(action, &command.to_string(), message);
        let output = self.run(row, command.clone()).map_err(|e| failed(e.to_string()))?;
        row.parse_cancel(&output).map_err(|e| failed(e.message))
    }

    fn failed(&self, action: &'static str, command: &str, message: String) -> LaunchError {
        LaunchError::Batch {
            system: self.system.title(),
            action,
            command: command.into(),
            message,
        }
    }
}

/// Groups targets that one command can cancel: the same dialect and the same cluster.
fn groups(targets: Vec<CancelTarget>) -> Vec<Vec<CancelTarget>> {
    let mut groups: Vec<Vec<CancelTarget>> = Vec::new();
    for target in targets {
        let is_like = |other: &CancelTarget| {
            other.row.dialect() == target.row.dialect()
                && other.row.cluster_of(&other.target.job) == target.row.cluster_of(&target.target.job)
        };
        match groups.iter_mut().find(|group| group.first().is_some_and(is_like)) {
            Some(group) => group.push(target),
            None => groups.push(vec![target]),
        }
    }
    groups
}

/// Whether this row is a cancelled job that still exists and is not completing.
fn still_exists(row: &JobRow, target: &CancelTarget) -> bool {
    let is_it =
        row.job == target.target.job && (target.target.element.is_none() || row.element.is_none_or(|e| Some(e) == target.target.element));
    let is_named = row.name.as_ref().is_none_or(|name| *name == target.name);
    is_it && is_named && !row.status.is_over() && row.status != JobStatus::Completing
}

/// `job 18, elements 3-5: queued (Resources)`, one line per group of equal states.
fn describe_rows(launched: &Launched, rows: &[&JobRow]) -> Vec<String> {
    let mut alike: Vec<(&JobRow, Vec<u32>)> = Vec::new();
    for row in rows {
        let is_like = |other: &JobRow| (&other.job, &other.status, &other.reason) == (&row.job, &row.status, &row.reason);
        match alike.iter_mut().find(|(other, _)| is_like(other)) {
            Some((_, elements)) => elements.extend(row.element),
            None => alike.push((row, row.element.into_iter().collect())),
        }
    }
    let describe = |(row, mut elements): (&JobRow, Vec<u32>)| {
        let is_array = launched.jobs.iter().any(|job| job.id == row.job.0 && job.array);
        elements.sort_unstable();
        let which = match elements.as_slice() {
            [one] if is_array => format!(", element {one}"),
            [_, _, ..] => format!(", elements {}", ranges::collapse(&elements)),
            _ => String::new(),
        };
        let reason = row.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
        format!("job {}{which}: {}{reason}", row.job, row.status)
    };
    alike.into_iter().map(describe).collect()
}
