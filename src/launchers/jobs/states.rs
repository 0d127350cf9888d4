//! Converts a batch system's report about a job into the states of its elements.
use super::queue::Known;
use super::stage;
use crate::launchers::batch::{JobId, JobRow, JobStatus};
use crate::launchers::launched::Ending;
use crate::launchers::{Job, MemberState};

/// A job that was submitted within this time may not appear in the queue yet.
const NOT_SHOWN_YET_S: f64 = 60.0;

/// One state per element. Without an answer it is unknown; an element that was queried and no
/// longer appears has ended.
pub fn of_job(job: &Job, known: &Known, now: f64) -> Vec<MemberState> {
    let id = JobId(job.id.clone());
    let mut rows: Vec<&JobRow> = known.rows().iter().filter(|row| row.job == id && is_ours(row, job)).collect();
    rows.extend(known.history().iter().filter(|row| row.job == id && is_ours(row, job)));
    let state = |element: &u32| {
        let own = rows.iter().find(|row| row.element == Some(*element));
        // A system may report an array as a whole until its first element starts.
        match own.or_else(|| rows.iter().find(|row| row.element.is_none())) {
            Some(row) => of_row(row, known.reason(&id)),
            None => match stranger(job, known) {
                Some(stranger) => MemberState::unknown(stranger),
                None => of_missing(job, known, now),
            },
        }
    };
    job.elements.iter().map(state).collect()
}

/// A message if the job's number has another name in the system: the job may have been renamed, or
/// the number reused. Since these cases cannot be distinguished, the job is neither cancelled nor
/// treated as gone.
pub fn stranger(job: &Job, known: &Known) -> Option<String> {
    let is_it = |row: &&JobRow| row.job.0 == job.id && !row.status.is_over();
    let there: Vec<&JobRow> = known.rows().iter().filter(is_it).collect();
    let other = there.iter().find(|row| !is_ours(row, job)).and_then(|row| row.name.as_ref())?;
    let is_there = there.iter().any(|row| is_ours(row, job));
    (!is_there).then(|| format!("job {} is named {other} in the batch system, and not {}", job.id, job.name))
}

/// Compares the name, because job numbers are reused.
pub fn is_ours(row: &JobRow, job: &Job) -> bool {
    row.name.as_ref().is_none_or(|name| *name == job.name)
}

fn of_row(row: &JobRow, reason: Option<&str>) -> MemberState {
    let why = row.reason.as_deref().or(reason.filter(|_| row.status.is_waiting()));
    let mut word = row.status.words().to_string();
    if let Some(code) = row.exit_code.filter(|code| *code != 0) {
        word.push_str(&format!(", exit code {code}"));
    }
    if !matches!(row.status, JobStatus::Unknown(_)) && row.status.is_over() && row.word.to_lowercase() != word {
        word.push_str(&format!(" ({})", row.word));
    }
    MemberState {
        ending: ending(&row.status),
        ..MemberState::new(stage(&row.status), word, why.unwrap_or_default())
    }
}

fn ending(status: &JobStatus) -> Option<Ending> {
    match status {
        JobStatus::Completed | JobStatus::Failed => Some(Ending::Itself),
        JobStatus::Cancelled => Some(Ending::Cancelled),
        JobStatus::TimedOut => Some(Ending::TimedOut),
        JobStatus::NodeFailed => Some(Ending::NodeFailed),
        JobStatus::OutOfMemory => Some(Ending::OutOfMemory),
        JobStatus::Preempted => Some(Ending::Preempted),
        _ => None,
    }
}

fn of_missing(job: &Job, known: &Known, now: f64) -> MemberState {
    if let Some(failure) = known.failure() {
        return MemberState::unknown(failure.said.clone());
    }
    let is_new = job.submitted + NOT_SHOWN_YET_S > known.at().max(now);
    match known.asked(&JobId(job.id.clone())) {
        _ if is_new => MemberState::submitted(),
        false => MemberState::unknown("the batch system was not asked yet"),
        true => MemberState::ended("gone from the queue"),
    }
}
