//! Converts a batch system's report about a job into the states of its elements.
use super::queue::{JobSnapshot, is_ours};
use crate::launchers::batch::{JobId, JobRow, JobStatus};
use crate::launchers::launched::JobOutcome;
use crate::launchers::{BatchJob, MemberState, Stage};

/// A job that was submitted within this time may not appear in the queue yet.
const VISIBILITY_DELAY_S: f64 = 60.0;

/// One state per element. Without an answer it is unknown; an element that was queried and no
/// longer appears has ended.
pub(super) fn element_states(job: &BatchJob, snapshot: &JobSnapshot, now: f64) -> Vec<MemberState> {
    let id = JobId(job.id.clone());
    let mut rows: Vec<&JobRow> = snapshot.rows().iter().filter(|row| row.job == id && is_ours(row, job)).collect();
    rows.extend(snapshot.history().iter().filter(|row| row.job == id && is_ours(row, job)));
    let state = |element: &u32| {
        let own = rows.iter().find(|row| row.element == Some(*element));
        // A system may report an array as a whole until its first element starts.
        match own.or_else(|| rows.iter().find(|row| row.element.is_none())) {
            Some(row) => row_state(row, snapshot.reason(&id)),
            None => match name_conflict(job, snapshot) {
                Some(conflict) => MemberState::unknown(conflict),
                None => missing_state(job, snapshot, now),
            },
        }
    };
    job.elements.iter().map(state).collect()
}

/// A message if the job's number has another name in the system: the job may have been renamed, or
/// the number reused. Since these cases cannot be distinguished, the job is neither cancelled nor
/// treated as gone.
pub(super) fn name_conflict(job: &BatchJob, snapshot: &JobSnapshot) -> Option<String> {
    let is_it = |row: &&JobRow| row.job.0 == job.id && !row.status.is_over();
    let active: Vec<&JobRow> = snapshot.rows().iter().filter(is_it).collect();
    let other = active.iter().find(|row| !is_ours(row, job)).and_then(|row| row.name.as_ref())?;
    let has_own = active.iter().any(|row| is_ours(row, job));
    (!has_own).then(|| format!("job {} is named {other} in the batch system instead of {}", job.id, job.name))
}

fn row_state(row: &JobRow, reason: Option<&str>) -> MemberState {
    let why = row.reason.as_deref().or(reason.filter(|_| row.status.is_waiting()));
    let mut word = row.status.words().to_string();
    if let Some(code) = row.exit_code.filter(|code| *code != 0) {
        word.push_str(&format!(", exit code {code}"));
    }
    if !matches!(row.status, JobStatus::Unknown(_)) && row.status.is_over() && row.word.to_lowercase() != word {
        word.push_str(&format!(" ({})", row.word));
    }
    MemberState {
        outcome: outcome(&row.status),
        ..MemberState::new(stage(&row.status), word, why.unwrap_or_default())
    }
}

fn outcome(status: &JobStatus) -> Option<JobOutcome> {
    match status {
        JobStatus::Completed | JobStatus::Failed => Some(JobOutcome::Itself),
        JobStatus::Cancelled => Some(JobOutcome::Cancelled),
        JobStatus::TimedOut => Some(JobOutcome::TimedOut),
        JobStatus::NodeFailed => Some(JobOutcome::NodeFailed),
        JobStatus::OutOfMemory => Some(JobOutcome::OutOfMemory),
        JobStatus::Preempted => Some(JobOutcome::Preempted),
        _ => None,
    }
}

fn missing_state(job: &BatchJob, snapshot: &JobSnapshot, now: f64) -> MemberState {
    if let Some(failure) = snapshot.failure() {
        return MemberState::unknown(failure.message.clone());
    }
    let is_new = job.submitted + VISIBILITY_DELAY_S > snapshot.at().max(now);
    match snapshot.queried(&JobId(job.id.clone())) {
        _ if is_new => MemberState::submitted(),
        false => MemberState::unknown("the batch system was not queried yet"),
        true => MemberState::ended("gone from the queue"),
    }
}

/// Waiting, starting, running or completing.
fn stage(status: &JobStatus) -> Stage {
    use JobStatus::*;
    match status {
        Queued | Held | Stuck | Starting | Requeued => Stage::Queued,
        Running | Completing => Stage::Running,
        Suspended => Stage::Suspended,
        Unknown(_) => Stage::Unknown,
        Completed | Failed | Cancelled | TimedOut | NodeFailed | OutOfMemory | Preempted => Stage::Ended,
    }
}
