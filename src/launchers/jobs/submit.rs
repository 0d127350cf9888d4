//! Submits a job: writes the script, keeps it, and never submits it twice. If the outcome of a
//! submission is unknown, the job is looked up by name before any retry.
use super::{Jobs, LaunchError};
use crate::launchers::batch::{BatchSystem, JobId, JobKind, JobRequest, SubmitFailure};
use crate::launchers::command::RunError;
use crate::launchers::{Job, templates};
use crate::sys::clock::unix_now;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Delays before each lookup of a job whose submission was not acknowledged.
const LOOKS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(8)];
/// Maximum number of submission attempts.
const TRIES: u32 = 2;
/// How long scripts are kept.
const KEEP: Duration = Duration::from_secs(30 * 86_400);
/// Placeholder for an element's number when deriving the pattern of the log paths.
const SOME_ELEMENT: u32 = 987_654_321;

/// A random suffix that identifies this submission among all of this user's.
pub fn unique() -> String {
    let (mut text, mut number) = (String::new(), uuid::Uuid::new_v4().as_u128());
    while text.len() < 8 {
        let digit = char::from_digit((number % 36) as u32, 36).unwrap_or('0');
        text.push(digit);
        number /= 36;
    }
    text
}

impl Jobs {
    pub(super) fn submit(&self, request: JobRequest) -> Result<Job, LaunchError> {
        let row = self.row_here();
        // If the system does not answer here, the submission reports it.
        let request = &request.at_site(row, |question| self.run(row, question).ok());
        let script = self.write_script(row, request)?;
        let id = self.submitted(row, request, &script)?;
        let (size, per_element) = match request.is_one_job() {
            true => (1, request.n),
            false => (request.jobs(), request.engines_per_job.max(1)),
        };
        let array = request.kind == JobKind::Engines && !request.is_one_job();
        Ok(Job {
            name: request.name.clone(),
            dialect: row.dialect().into(),
            script: request.script.clone(),
            array,
            size,
            elements: (1..=size).collect(),
            engines_per_element: per_element,
            engines: if request.kind == JobKind::Engines { request.n } else { 0 },
            log: log_pattern(row, request, &id, array),
            submitted: unix_now(),
            id: id.0,
            ..Job::default()
        })
    }

    /// Writes the files; returns the path and the text of the file to submit.
    fn write_script(&self, row: &dyn BatchSystem, request: &JobRequest) -> Result<(PathBuf, String), LaunchError> {
        let files = templates::scripts(&self.profile, row, request, None)?;
        let dir = self.profile.batch_dir();
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| LaunchError::Script { path, source }
        };
        for dir in [&dir, &request.log_dir] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed(dir))?;
        }
        clear_old(&dir);
        for file in &files {
            let mode = if file.executable { 0o700 } else { 0o600 };
            let written = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&file.path);
            written
                .and_then(|mut f| f.write_all(file.text.as_bytes()))
                .map_err(failed(&file.path))?;
        }
        match files.into_iter().next() {
            Some(file) => Ok((file.path, file.text)),
            None => Err(failed(&request.script)(io::Error::other("there is no template"))),
        }
    }

    fn submitted(&self, row: &dyn BatchSystem, request: &JobRequest, script: &(PathBuf, String)) -> Result<JobId, LaunchError> {
        let command = row.submit_command(&script.0, &script.1, request);
        let failed = |failure: SubmitFailure| LaunchError::Submit {
            system: row.title(),
            said: failure.said,
            command: command.to_string(),
            script: script.0.clone(),
            hint: failure.hint,
        };
        let mut tries = 0;
        loop {
            tries += 1;
            let failure = match self.run_submission(row, command.clone(), &script.1) {
                Ok(output) => match row.parse_submit(&output) {
                    Ok(id) => return Ok(id),
                    Err(failure) if failure.problem.is_uncertain() => failure,
                    Err(failure) => return Err(failed(failure)),
                },
                Err(RunError::NotFound { program }) => return Err(failed(SubmitFailure::no_command(row.title(), &program))),
                Err(error @ RunError::TimedOut { .. }) => SubmitFailure {
                    problem: crate::launchers::batch::Problem::SchedulerDown,
                    said: error.to_string(),
                    hint: None,
                },
                Err(error) => {
                    return Err(failed(SubmitFailure {
                        problem: crate::launchers::batch::Problem::Other,
                        said: error.to_string(),
                        hint: None,
                    }));
                }
            };
            tracing::warn!("{}: {}; looking for a job named {}", row.title(), failure.said, request.name);
            match self.find(row, &request.name) {
                Found::Job(id) => return Ok(id),
                Found::None if tries < TRIES => {}
                Found::None => return Err(failed(failure)),
                Found::CannotTell => {
                    let command = row.find_command(&request.name, &super::queue::user());
                    let hint = format!(
                        "whether it was submitted could not be found out; when the scheduler answers again, look for a job named {}: {command}",
                        request.name
                    );
                    return Err(failed(SubmitFailure {
                        hint: Some(hint),
                        ..failure
                    }));
                }
            }
        }
    }

    /// Looks up a submission by name. Repeats the lookup, since the job may appear with a delay.
    fn find(&self, row: &dyn BatchSystem, name: &str) -> Found {
        let command = row.find_command(name, &super::queue::user());
        let mut found = Found::CannotTell;
        for pause in LOOKS {
            std::thread::sleep(pause);
            let Ok(output) = self.run(row, command.clone()) else { continue };
            match row.parse_find(&output, name) {
                Ok(ids) => match ids.into_iter().next() {
                    Some(id) => return Found::Job(id),
                    None => found = Found::None,
                },
                Err(_) => continue,
            }
        }
        found
    }
}

enum Found {
    Job(JobId),
    /// The system answered; no such job exists.
    None,
    CannotTell,
}

/// The path of the log with `{}` for the element's number.
fn log_pattern(row: &dyn BatchSystem, request: &JobRequest, id: &JobId, array: bool) -> String {
    let path = row.log_path(request, id, array.then_some(SOME_ELEMENT));
    path.to_string_lossy().replace(&SOME_ELEMENT.to_string(), "{}")
}

/// Removes old scripts. Ignores files that cannot be removed.
fn clear_old(dir: &Path) {
    let is_old = |path: &Path| {
        let modified = fs::metadata(path).and_then(|m| m.modified());
        modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > KEEP))
    };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with("pcluster-") && is_old(&path) {
            let _ = fs::remove_file(path);
        }
    }
}
