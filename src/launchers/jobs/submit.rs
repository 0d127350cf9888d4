//! Submits a job: writes the script, keeps it, and never submits it twice. If the outcome of a
//! submission is unknown, the job is looked up by name before any retry.
use super::{BatchLauncher, LaunchError};
use crate::launchers::batch::{BatchSystem, JobId, JobKind, JobRequest, SubmitFailure};
use crate::launchers::command::RunError;
use crate::launchers::{BatchJob, templates};
use crate::sys::clock::unix_now;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Delays before each lookup of a job whose submission was not acknowledged.
const LOOKUP_DELAYS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(8)];
/// Maximum number of submission attempts.
const MAX_ATTEMPTS: u32 = 2;
/// How long scripts are kept.
const SCRIPT_RETENTION: Duration = Duration::from_secs(30 * 86_400);
/// Placeholder for an element's number when deriving the pattern of the log paths.
const ELEMENT_PLACEHOLDER: u32 = 987_654_321;

/// A random suffix that identifies this submission among all of this user's.
pub(super) fn unique_suffix() -> String {
    let (mut text, mut number) = (String::new(), uuid::Uuid::new_v4().as_u128());
    while text.len() < 8 {
        let digit = char::from_digit((number % 36) as u32, 36).unwrap_or('0');
        text.push(digit);
        number /= 36;
    }
    text
}

impl BatchLauncher {
    pub(super) fn submit(&self, request: JobRequest) -> Result<BatchJob, LaunchError> {
        let row = self.detect_row();
        // If the system does not answer here, the submission reports it.
        let request = &request.with_site_settings(row, |query| self.run(row, query).ok());
        let script = self.write_script(row, request)?;
        let id = self.submitted(row, request, &script)?;
        Ok(job(row, request, id))
    }

    /// The job of an earlier submission with the same name; an error if the system does not answer.
    pub(super) fn find_submitted(&self, request: JobRequest) -> Result<Option<BatchJob>, ()> {
        let row = self.detect_row();
        let request = &request.with_site_settings(row, |query| self.run(row, query).ok());
        let output = self
            .run(row, row.find_command(&request.name, &super::queue::user()))
            .map_err(drop)?;
        let ids = row.parse_find(&output, &request.name).map_err(drop)?;
        Ok(ids.into_iter().next().map(|id| job(row, request, id)))
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
        remove_old_scripts(&dir);
        for file in &files {
            let mode = if file.executable { 0o700 } else { 0o600 };
            let written = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&file.path);
            written
                .and_then(|mut f| f.write_all(file.text.as_bytes()))
                .map_err(failed(&file.path))?;
        }
        match files.into_iter().next() {
            Some(file) => Ok((file.path, file.text)),
            None => Err(failed(&request.script)(io::Error::other("no template"))),
        }
    }

    fn submitted(&self, row: &dyn BatchSystem, request: &JobRequest, script: &(PathBuf, String)) -> Result<JobId, LaunchError> {
        let command = row.submit_command(&script.0, &script.1, request);
        let failed = |failure: SubmitFailure| LaunchError::Submit {
            system: row.title(),
            message: failure.message,
            command: command.to_string(),
            script: script.0.clone(),
            hint: failure.hint,
            is_uncertain: false,
        };
        let mut attempts = 0;
        loop {
            attempts += 1;
            let failure = match self.run_submission(row, command.clone(), &script.1) {
                Ok(output) => match row.parse_submit(&output) {
                    Ok(id) => return Ok(id),
                    Err(failure) if failure.problem.is_uncertain() => failure,
                    Err(failure) => return Err(failed(failure)),
                },
                Err(RunError::NotFound { program }) => return Err(failed(SubmitFailure::no_command(row.title(), &program))),
                Err(error @ RunError::TimedOut { .. }) => SubmitFailure {
                    problem: crate::launchers::batch::Problem::SchedulerDown,
                    message: error.to_string(),
                    hint: None,
                },
                Err(error) => {
                    return Err(failed(SubmitFailure {
                        problem: crate::launchers::batch::Problem::Other,
                        message: error.to_string(),
                        hint: None,
                    }));
                }
            };
            tracing::warn!("{}: {}; looking up a job named {}", row.title(), failure.message, request.name);
            match self.find(row, &request.name) {
                Lookup::Job(id) => return Ok(id),
                Lookup::None if attempts < MAX_ATTEMPTS => {}
                Lookup::None => return Err(failed(failure)),
                Lookup::Unknown => {
                    let command = row.find_command(&request.name, &super::queue::user());
                    let hint = format!(
                        "the job may have been submitted; when the scheduler answers again, look for a job named {}: {command}",
                        request.name
                    );
                    let mut error = failed(SubmitFailure {
                        hint: Some(hint),
                        ..failure
                    });
                    if let LaunchError::Submit { is_uncertain, .. } = &mut error {
                        *is_uncertain = true;
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Looks up a submission by name. Repeats the lookup, since the job may appear with a delay.
    fn find(&self, row: &dyn BatchSystem, name: &str) -> Lookup {
        let command = row.find_command(name, &super::queue::user());
        let mut found = Lookup::Unknown;
        for pause in LOOKUP_DELAYS {
            std::thread::sleep(pause);
            let Ok(output) = self.run(row, command.clone()) else { continue };
            match row.parse_find(&output, name) {
                Ok(ids) => match ids.into_iter().next() {
                    Some(id) => return Lookup::Job(id),
                    None => found = Lookup::None,
                },
                Err(_) => continue,
            }
        }
        found
    }
}

/// The record of a submission.
fn job(row: &dyn BatchSystem, request: &JobRequest, id: JobId) -> BatchJob {
    let (size, per_element) = match request.is_one_job() {
        true => (1, request.n),
        false => (request.jobs(), request.engines_per_job.max(1)),
    };
    let array = request.kind == JobKind::Engines && !request.is_one_job();
    BatchJob {
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
        ..BatchJob::default()
    }
}

enum Lookup {
    Job(JobId),
    /// The system answered; no such job exists.
    None,
    Unknown,
}

/// The path of the log with `{}` for the element's number.
fn log_pattern(row: &dyn BatchSystem, request: &JobRequest, id: &JobId, array: bool) -> String {
    let path = row.log_path(request, id, array.then_some(ELEMENT_PLACEHOLDER));
    path.to_string_lossy().replace(&ELEMENT_PLACEHOLDER.to_string(), "{}")
}

/// Removes old scripts. Ignores files that cannot be removed.
fn remove_old_scripts(dir: &Path) {
    let is_old = |path: &Path| {
        let modified = fs::metadata(path).and_then(|m| m.modified());
        modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > SCRIPT_RETENTION))
    };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with("pcluster-") && is_old(&path) {
            let _ = fs::remove_file(path);
        }
    }
}
