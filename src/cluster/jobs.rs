//! Records of a cluster's batch jobs.
use super::ClusterState;
use crate::client::{Client, JobsRequest};
use crate::launchers::launched::{Detail, JobOutcome};
use crate::launchers::{Launched, MemberState, Stage};
use crate::model::UnixTime;
use crate::model::job::JobRow;

/// A row for each element of the launch's jobs.
pub(crate) fn rows(launched: &Launched, states: &[MemberState]) -> Vec<JobRow> {
    let now = UnixTime(crate::sys::clock::unix_now());
    let mut states = states.iter().skip(launched.processes.len());
    let mut rows = Vec::new();
    for job in &launched.jobs {
        for (element, state) in job.elements.iter().zip(&mut states) {
            if state.stage == Stage::Unknown && state.detail == Detail::None {
                continue; // the system did not answer
            }
            rows.push(JobRow {
                launcher: launched.launcher.clone(),
                job: job.id.clone(),
                name: job.name.clone(),
                element: *element,
                engines: job.engines_of(*element),
                replaces: job.replaces,
                submitted: UnixTime(job.submitted),
                state: state.describe().into(),
                reason: state.reason.clone(),
                over: state.has_ended(),
                out_of_memory: state.outcome == Some(JobOutcome::OutOfMemory),
                since: now,
            });
        }
    }
    rows
}

/// The same after pcluster has stopped the jobs that were still active.
pub(super) fn stopped(rows: Vec<JobRow>) -> Vec<JobRow> {
    let since = UnixTime(crate::sys::clock::unix_now());
    let stopped = |row: JobRow| match row.over {
        true => row,
        false => JobRow {
            state: "stopped".into(),
            reason: "by pcluster".into(),
            over: true,
            since,
            ..row
        },
    };
    rows.into_iter().map(stopped).collect()
}

/// The rows of a new launch.
pub(super) fn submitted_by(launched: &Launched) -> Vec<JobRow> {
    rows(launched, &vec![MemberState::submitted(); launched.len()])
}

/// The same for the cluster's latest engines and its controller.
pub(super) fn submitted(state: &ClusterState) -> Vec<JobRow> {
    let latest = state.engines.last().into_iter().chain(&state.controller);
    latest.flat_map(submitted_by).collect()
}

/// Reports jobs to the controller; errors are only logged.
pub(super) async fn report(client: &Client, rows: Vec<JobRow>) {
    if rows.is_empty() {
        return;
    }
    let request = JobsRequest {
        jobs: rows,
        ..JobsRequest::default()
    };
    if let Err(error) = client.jobs(&request).await {
        tracing::warn!("cannot report the jobs to the controller: {error}");
    }
}
