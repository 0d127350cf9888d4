//! The walltime monitor: a process of a cluster whose engines are batch jobs with `--max-walltime-restarts`. It polls the jobs, reports them to
//! the controller for the records, and submits new jobs for engines whose job ended ([`decide`] chooses them).
//!
//! It outlives the command that started it, and the controller; it exits with the cluster, whose state file it watches. It changes the
//! state only under the cluster's lock, for which other commands wait. The state file records how often each job was restarted.
pub(crate) mod decide;
mod replace;

use super::lock::Lock;
use super::state_file::WalltimeMonitorState;
use super::{ClusterError, ClusterState, allocator, in_thread, jobs, launch};
use crate::client::{Client, JobsRequest};
use crate::connection::ConnectionFile;
use crate::launchers::local::Local;
use crate::launchers::{Launched, Launcher, MemberState};
use crate::model::UnixTime;
use crate::model::job::JobRow;
use crate::profile::ProfileDir;
use crate::profile::config::Config;
use crate::sys::process::{self, ProcessId};
use decide::{Due, KnownEngines, due};
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

const CONNECT: Duration = Duration::from_secs(10);
/// Elements of a job end at slightly different times. Waits until a second poll finds no more, but no longer than this.
const GATHER: Duration = Duration::from_secs(60);
/// The delay before retrying a failed submission, doubled for each further failure,
const MIN_BACKOFF: Duration = Duration::from_secs(30);
/// up to this maximum.
const MAX_BACKOFF: Duration = Duration::from_secs(600);

/// Whether engines may be restarted, or their number changes.
fn is_wanted(state: &ClusterState) -> bool {
    let may = |launched: &Launched| !launched.jobs.is_empty() && launched.recipe.as_ref().is_some_and(|recipe| recipe.max_restarts > 0);
    state.elastic.is_some() || state.engines.iter().any(may)
}

/// Starts the walltime monitor of this cluster if needed and not running, and records it in `state`; returns whether it did.
pub(super) fn ensure(profile: &ProfileDir, state: &mut ClusterState, program: &Path) -> Result<bool, ClusterError> {
    if !is_wanted(state) || state.walltime_monitor.as_ref().is_some_and(WalltimeMonitorState::runs) {
        return Ok(false);
    }
    let mut arguments = vec![
        "walltime-monitor".into(),
        "--supervise".into(),
        "--profile-dir".into(),
        profile.path().into(),
    ];
    arguments.extend(["--cluster-id".into(), state.cluster_id.clone().into()]);
    let log = profile.walltime_monitor_log(&state.cluster_id);
    let process = Local::default().start_process(program.to_path_buf(), arguments, &state.cwd, log)?;
    state.walltime_monitor = Some(WalltimeMonitorState {
        host: process::host(),
        process,
        replaced: state.walltime_monitor.as_ref().map_or(0, |monitor| monitor.replaced),
        problem: None,
    });
    Ok(true)
}

/// Stops the walltime monitor of a cluster, if it has one on this host.
pub(super) async fn end(state: &ClusterState, grace: Duration) -> Result<(), ClusterError> {
    if let Some(launched) = state.walltime_monitor.as_ref().map(WalltimeMonitorState::launched) {
        in_thread(move || Local::default().stop(&launched, grace)).await??;
    }
    Ok(())
}

/// Runs until the cluster is stopped, or SIGTERM or SIGINT.
pub(crate) async fn serve(profile: ProfileDir, cluster_id: &str) -> Result<(), ClusterError> {
    let (Ok(mut terminated), Ok(mut interrupted)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return Err(ClusterError::Internal("cannot install signal handlers".into()));
    };
    let Some(state) = ClusterState::read(&profile, cluster_id)? else {
        return Ok(());
    };
    let allocating = allocator::keep(profile.clone(), cluster_id, state.started);
    let mut monitor = Monitor {
        profile,
        cluster_id: cluster_id.into(),
        started: state.started,
        reported: HashMap::new(),
        due: Vec::new(),
        due_since: Instant::now(),
        not_before: None,
        pause: MIN_BACKOFF,
    };
    let keeping = async {
        loop {
            match monitor.poll().await {
                Ok(Some(pause)) => tokio::time::sleep(pause).await,
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!("{error}");
                    tokio::time::sleep(CONNECT).await;
                }
            }
        }
    };
    tokio::select! {
        () = keeping => tracing::info!("the cluster was stopped"),
        () = allocating => tracing::info!("the cluster was stopped"),
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    Ok(())
}

struct Monitor {
    profile: ProfileDir,
    cluster_id: String,
    /// Start time of the cluster, to detect another one with the same name.
    started: f64,
    /// The state of each element last reported to the controller.
    reported: HashMap<(String, u32), (String, String)>,
    /// The elements found by the last poll.
    due: Vec<Due>,
    due_since: Instant,
    /// The time of the next retry after a failure.
    not_before: Option<Instant>,
    pause: Duration,
}

impl Monitor {
    /// Polls once; returns the delay until the next poll, or None if the cluster is gone.
    async fn poll(&mut self) -> Result<Option<Duration>, ClusterError> {
        let state = ClusterState::read(&self.profile, &self.cluster_id)?;
        let Some(state) = state.filter(|state| state.started == self.started) else {
            return Ok(None);
        };
        let settings = state
            .engines
            .iter()
            .find_map(|launched| Some(launched.recipe.as_ref()?.settings.clone()));
        let config = Config::load_with(&self.profile, &settings.unwrap_or_default())?;
        let again = Duration::from_millis(config.launcher.poll_interval_ms.max(100));
        let launches: Vec<Launched> = state.engines.into_iter().filter(|launched| !launched.jobs.is_empty()).collect();
        let mut states = Vec::new();
        for launched in launches.clone() {
            let launcher = launch::launcher(&launched.launcher, &self.profile, &config)?;
            states.push(in_thread(move || launcher.states(&launched)).await?);
        }
        let rows = self.unreported(&launches, &states);
        let has_ended = states.iter().flatten().any(MemberState::has_ended);
        if rows.is_empty() && !has_ended {
            return Ok(Some(again));
        }
        // Without a controller, engines cannot join; it may be restarting.
        let Ok(file) = ConnectionFile::read(&self.profile.client_file(&self.cluster_id)) else {
            return Ok(Some(again));
        };
        let client = Client::connect(&file, CONNECT).await?;
        let request = JobsRequest {
            jobs: rows,
            gone_since: launches
                .iter()
                .flat_map(|l| &l.jobs)
                .map(|job| job.submitted)
                .reduce(f64::min)
                .map(UnixTime),
            list: false,
        };
        let reply = client.jobs(&request).await?;
        self.mark_reported(request.jobs);
        let engines = client.status().await?.engines;
        let known = KnownEngines {
            engines: &engines,
            gone: &reply.gone,
        };
        let is_free = |launched: &&Launched| !is_awaited(launched);
        let (launches, states): (Vec<Launched>, Vec<_>) = launches.into_iter().zip(states).filter(|(l, _)| is_free(&l)).unzip();
        self.gathered(due(&launches, &states, known)).await?;
        Ok(Some(again))
    }

    /// Restarts what is due, unless more elements may follow.
    async fn gathered(&mut self, due: Vec<Due>) -> Result<(), ClusterError> {
        if due.is_empty() {
            self.due.clear();
            return Ok(());
        }
        if self.due.is_empty() {
            self.due_since = Instant::now();
        }
        let is_all = due == self.due || self.due_since.elapsed() >= GATHER;
        self.due = due;
        if !is_all || self.not_before.is_some_and(|time| Instant::now() < time) {
            return Ok(());
        }
        // A command that changes the cluster has priority; poll again afterwards.
        let lock = match Lock::take_as_monitor(&self.profile, &self.cluster_id) {
            Err(ClusterError::Busy { .. }) => return Ok(()),
            taken => taken?,
        };
        let (profile, cluster_id, started) = (self.profile.clone(), self.cluster_id.clone(), self.started);
        let due = std::mem::take(&mut self.due);
        // Completes even on SIGTERM: submitted jobs must be on record.
        let done = in_thread(move || replace::replace(&profile, &cluster_id, started, &due, lock)).await?;
        match done {
            Ok(()) => (self.not_before, self.pause) = (None, MIN_BACKOFF),
            Err(error) => {
                tracing::error!("cannot replace engines; retrying in {} s: {error}", self.pause.as_secs());
                self.not_before = Some(Instant::now() + self.pause);
                self.pause = (self.pause * 2).min(MAX_BACKOFF);
            }
        }
        Ok(())
    }

    /// State changes not yet reported to the controller.
    fn unreported(&self, launches: &[Launched], states: &[Vec<MemberState>]) -> Vec<JobRow> {
        let rows = launches
            .iter()
            .zip(states)
            .flat_map(|(launched, states)| jobs::rows(launched, states));
        rows.filter(|row| {
            let reported = self.reported.get(&(row.name.clone(), row.element));
            reported.is_none_or(|(state, reason)| *state != row.state || *reason != row.reason)
        })
        .collect()
    }

    fn mark_reported(&mut self, rows: Vec<JobRow>) {
        let reported = rows.into_iter().map(|row| ((row.name, row.element), (row.state, row.reason)));
        self.reported.extend(reported);
    }
}

/// Whether the command that launched the engines is still waiting for them and may revert the launch.
fn is_awaited(launched: &Launched) -> bool {
    launched.awaited_by.as_ref().is_some_and(ProcessId::runs)
}
