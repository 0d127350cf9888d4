//! Parses the human-readable output of `qstat -f`. The JSON of OpenPBS is invalid if a job's
//! environment contains a quote.
use crate::launchers::batch::table::status_in;
use crate::launchers::batch::{JobRow, JobStatus, JobTarget};

/// `19.pbs1`, `19[].pbs1`, `19[3].pbs1`, `5`.
pub(super) fn is_id(text: &str) -> bool {
    let rest = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let rest = match rest.strip_prefix('[') {
        Some(inside) => match inside.split_once(']') {
            Some((index, rest)) if index.bytes().all(|b| b.is_ascii_digit()) => rest,
            _ => return false,
        },
        None => rest,
    };
    let host = |c: char| c.is_ascii_alphanumeric() || "-._@:".contains(c);
    text.starts_with(|c: char| c.is_ascii_digit()) && (rest.is_empty() || (rest.starts_with('.') && rest.chars().all(host)))
}

/// Splits `19[3].pbs1` into the array `19[].pbs1` and 3.
fn split(id: &str) -> (String, Option<u32>) {
    let parts = id.split_once('[').and_then(|(job, rest)| Some((job, rest.split_once(']')?)));
    match parts {
        Some((job, (index, host))) if !index.is_empty() => (format!("{job}[]{host}"), index.parse().ok()),
        _ => (id.to_string(), None),
    }
}

/// The inverse of `split`.
pub(super) fn target(target: &JobTarget) -> String {
    match target.element {
        Some(element) => target.job.0.replace("[]", &format!("[{element}]")),
        None => target.job.0.clone(),
    }
}

/// One row per job; none for an array whose jobs are listed.
pub(super) fn rows(text: &str) -> Vec<JobRow> {
    let mut rows: Vec<JobRow> = Vec::new();
    for block in blocks(text) {
        rows.extend(row(&block));
    }
    let arrays: Vec<_> = rows.iter().filter(|row| row.element.is_some()).map(|row| row.job.clone()).collect();
    rows.retain(|row| row.element.is_some() || !arrays.contains(&row.job));
    rows
}

/// A job's lines, unfolded: a continuation line begins with a tab.
fn blocks(text: &str) -> Vec<Vec<String>> {
    let mut blocks: Vec<Vec<String>> = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("Job Id:") {
            blocks.push(vec![line.trim().to_string()]);
        } else if let Some(block) = blocks.last_mut() {
            match (line.strip_prefix('\t'), block.last_mut()) {
                // Only slurm-wlm-torque begins every line with a tab.
                (Some(rest), Some(last)) if !rest.contains(" = ") => last.push_str(rest),
                _ => block.push(line.trim_start().to_string()),
            }
        }
    }
    blocks
}

fn row(block: &[String]) -> Option<JobRow> {
    let id = block.first()?.strip_prefix("Job Id:")?.trim();
    if !is_id(id) {
        return None;
    }
    let value = |key: &str| {
        let lines = block.iter().skip(1);
        lines
            .filter_map(|line| line.split_once(" = "))
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value.trim_end().to_string())
    };
    let word = value("job_state").unwrap_or_default();
    let exit_code = value("Exit_status").or(value("exit_status")).and_then(|code| code.parse().ok());
    let (job, element) = split(id);
    let comment = value("comment");
    // Torque names the jobs of an array `name-1`, `name-2`.
    let name = value("Job_Name").map(|name| match element.and_then(|element| name.strip_suffix(&format!("-{element}"))) {
        Some(whole) => whole.to_string(),
        None => name,
    });
    let row = JobRow::new(job, element, status(&word, exit_code, value("substate").as_deref()), word.as_str());
    Some(
        JobRow {
            exit_code,
            host: value("exec_host").map(|hosts| hosts.split(['/', '+']).next().unwrap_or_default().to_string()),
            name,
            ..row
        }
        .with_reason(comment),
    )
}

/// qstat(1B).
pub(super) const STATES: &[(&str, JobStatus)] = &[
    ("Q W T M", JobStatus::Queued),
    ("H", JobStatus::Held),
    ("R B", JobStatus::Running),
    ("S U", JobStatus::Suspended),
    ("E", JobStatus::Completing),
    ("C F X", JobStatus::Completed),
];

/// `substate` and negative exit codes are those of the OpenPBS server's `job.h`: substate 91 means terminated by a user, exit code
/// -29 by walltime, -27 by memory.
fn status(word: &str, exit_code: Option<i32>, substate: Option<&str>) -> JobStatus {
    match (status_in(STATES, word), exit_code, substate) {
        (JobStatus::Completed, Some(-29), _) => JobStatus::TimedOut,
        (JobStatus::Completed, Some(-26 | -27), _) => JobStatus::OutOfMemory,
        // 256 plus SIGTERM or SIGKILL: `qdel`, or a limit.
        (JobStatus::Completed, _, Some("91")) | (JobStatus::Completed, Some(265 | 271), _) => JobStatus::Cancelled,
        (JobStatus::Completed, Some(code), _) if code != 0 => JobStatus::Failed,
        (JobStatus::Completed, None, Some("93")) => JobStatus::Failed,
        // Without a code, the outcome of a job that has ended is not reported.
        (status, ..) => status,
    }
}
