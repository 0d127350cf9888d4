//! Carries out the decisions of [`super::elastic`] in the walltime monitor, the process that also restarts engines after
//! walltime: it asks the controller what is ready and the launchers about engines, decides, stores state and decisions, and then
//! submits, cancels and retires.
//!
//! Parts: [`record`] (what is on disk), [`settings`], `launches`, `observe`, `act`. Nothing is changed without the cluster's lock; commands wait for it.
//! After a crash, engines that were started but not recorded are found by the tag of their launch.
mod act;
mod launches;
mod observe;
pub(crate) mod record;
pub(crate) mod settings;

use super::elastic::observation::{Observation, Rejection};
use super::elastic::work::ReadyWork;
use super::lock::Lock;
use super::{ClusterError, ClusterState, in_thread};
use crate::client::{Client, StatusReply, WaitingWork};
use crate::connection::ConnectionFile;
use crate::launchers::{FoundEngines, Launched, MemberState, Stage};
use crate::model::UnixTime;
use crate::profile::ProfileDir;
use crate::profile::config::Config;
use act::Step;
use observe::{Owners, SeenMember};
use record::{ElasticCluster, Journal};
use std::time::{Duration, Instant, SystemTime};

const CONNECT: Duration = Duration::from_secs(5);
const REQUEST: Duration = Duration::from_secs(10);
/// How often the controller is asked whether work has arrived, and the state file is checked for what users ask.
const TICK: Duration = Duration::from_secs(1);

/// Decides until the cluster is gone.
pub(super) async fn keep(profile: ProfileDir, cluster_id: &str, started: f64) {
    let mut allocator = Allocator {
        profile,
        cluster_id: cluster_id.into(),
        started,
        client: None,
        modified: None,
        cluster: None,
        decided: None,
        had_work: false,
        owners: Owners::new(),
        rejected: Vec::new(),
        last_error: String::new(),
    };
    loop {
        match allocator.tick().await {
            Ok(true) => allocator.last_error.clear(),
            Ok(false) => return,
            Err(error) => allocator.note_error(&error),
        }
        tokio::time::sleep(TICK).await;
    }
}

struct Allocator {
    profile: ProfileDir,
    cluster_id: String,
    /// Start time of the cluster, to detect another one with the same name.
    started: f64,
    client: Option<Client>,
    /// When the state file was modified that is in `cluster`.
    modified: Option<SystemTime>,
    cluster: Option<ElasticCluster>,
    decided: Option<Instant>,
    had_work: bool,
    owners: Owners,
    /// Submissions that failed since the last decision.
    rejected: Vec<Rejection>,
    last_error: String,
}

/// What was seen before the lock was taken.
struct Seen {
    /// The launches on record.
    launches: Vec<Launched>,
    members: Vec<SeenMember>,
    found: Vec<Launched>,
    is_answered: bool,
    /// At most.
    answer_age_s: f64,
}

impl Allocator {
    /// Decides if it is time; returns false if the cluster is gone.
    async fn tick(&mut self) -> Result<bool, ClusterError> {
        let modified = self.state_modified();
        let has_changed = modified != self.modified;
        if has_changed {
            let state = ClusterState::read(&self.profile, &self.cluster_id)?;
            let Some(state) = state.filter(|state| state.started == self.started) else {
                return Ok(false);
            };
            (self.cluster, self.modified) = (state.elastic, modified);
        }
        let Some(cluster) = self.cluster.clone() else { return Ok(true) };
        let work = self.waiting_work().await;
        let has_arrived = work.as_ref().is_some_and(|work| !work.is_empty()) && !self.had_work;
        let interval = Duration::from_secs_f64(cluster.settings.interval_s);
        let is_due = self.decided.is_none_or(|at| at.elapsed() >= interval);
        if is_due || has_arrived || has_changed {
            self.had_work = work.as_ref().is_some_and(|work| !work.is_empty());
            self.decide(cluster, work).await?;
        }
        Ok(true)
    }

    /// None if the controller does not answer.
    async fn waiting_work(&mut self) -> Option<Vec<WaitingWork>> {
        if self.client.is_none() {
            let file = ConnectionFile::read(&self.profile.client_file(&self.cluster_id)).ok()?;
            let client = Client::connect(&file, CONNECT).await.ok()?;
            self.client = Some(client.with_timeout(REQUEST));
        }
        let answer = self.client.as_ref()?.waiting_work().await;
        if let Err(error) = &answer {
            tracing::debug!("{error}");
            self.client = None;
        }
        answer.ok()
    }

    async fn decide(&mut self, cluster: ElasticCluster, work: Option<Vec<WaitingWork>>) -> Result<(), ClusterError> {
        let status = match &self.client {
            Some(client) if work.is_some() => client.status().await.ok(),
            _ => None,
        };
        let work = work.filter(|_| status.is_some());
        let (profile, cluster_id) = (self.profile.clone(), self.cluster_id.clone());
        let mut owners = std::mem::take(&mut self.owners);
        let asked = cluster.clone();
        let (seen, owners) = in_thread(move || {
            let seen = see(&profile, &cluster_id, &asked, status.as_ref(), &mut owners);
            if let Some(status) = &status {
                owners.retain(|uuid, _| status.engines.iter().any(|engine| engine.facts.uuid == *uuid));
            }
            (seen, owners)
        })
        .await?;
        self.owners = owners;
        let seen = seen?;
        // A command that changes the cluster has priority; this is repeated afterwards.
        let lock = match Lock::take_as_monitor(&self.profile, &self.cluster_id) {
            Err(ClusterError::Busy { .. }) => return Ok(()),
            taken => taken?,
        };
        let state = ClusterState::read(&self.profile, &self.cluster_id)?;
        let Some(mut state) = state.filter(|state| state.started == self.started) else {
            return Ok(());
        };
        if state.elastic.as_ref().map(|elastic| &elastic.seed) != Some(&cluster.seed) || state.engines != seen.launches {
            self.modified = None;
            return Ok(());
        }
        if !seen.found.is_empty() {
            // Decide when their state is known.
            state.next_engine += seen.found.iter().map(|launched| launched.engines() as u32).sum::<u32>();
            state.engines.extend(seen.found);
            return state.write(&self.profile);
        }
        let elapsed_s = self.decided.map(|at| at.elapsed().as_secs_f64());
        self.decided = Some(Instant::now());
        let step = Step {
            profile: self.profile.clone(),
            cluster_id: self.cluster_id.clone(),
            members: seen.members,
            observation: Observation {
                now: UnixTime(crate::sys::clock::unix_now()),
                elapsed_s,
                work: work.map(|work| work.into_iter().map(ready).collect()),
                is_answered: seen.is_answered,
                answer_age_s: seen.answer_age_s,
                jobs: Vec::new(),
                rejected: std::mem::take(&mut self.rejected),
                controls: Vec::new(),
            },
            state,
            lock,
        };
        // Completes even on SIGTERM: what was submitted must be on record.
        let mut carried = in_thread(move || step.run()).await??;
        self.rejected = std::mem::take(&mut carried.rejected);
        if let Some(client) = &self.client {
            carried.ask_to_leave(client).await;
            carried.cancel_unregistered(client).await?;
        }
        let profile = self.profile.clone();
        self.cluster = in_thread(move || carried.finish(&profile)).await??;
        self.modified = self.state_modified();
        Ok(())
    }

    fn state_modified(&self) -> Option<SystemTime> {
        let meta = std::fs::metadata(self.profile.state_file(&self.cluster_id));
        meta.and_then(|meta| meta.modified()).ok()
    }

    /// Logs an error, once.
    fn note_error(&mut self, error: &ClusterError) {
        let text = error.to_string();
        if text != self.last_error {
            tracing::warn!("{text}");
            self.last_error = text;
        }
    }
}

fn ready(work: WaitingWork) -> ReadyWork {
    ReadyWork {
        name: work
            .map
            .map_or_else(|| "requests of ipyparallel's clients".into(), |map| format!("map {map}")),
        request: work.request,
        units: work.units,
        ended: work.ended,
        mean_s: work.mean_s,
        limit_s: work.limit_s,
    }
}

/// Asks the launchers.
fn see(
    profile: &ProfileDir,
    cluster_id: &str,
    cluster: &ElasticCluster,
    status: Option<&StatusReply>,
    owners: &mut Owners,
) -> Result<Seen, ClusterError> {
    let state = ClusterState::read(profile, cluster_id)?;
    let (launches, next_engine) = state.map(|state| (state.engines, state.next_engine)).unwrap_or_default();
    let launcher = cluster.launcher(profile, None)?;
    let states: Vec<Vec<MemberState>> = launches
        .iter()
        .map(|launched| match launched.elastic {
            Some(_) => launcher.states(launched),
            None => Vec::new(),
        })
        .collect();
    let mut is_answered = states.iter().flatten().all(|state| state.stage != Stage::Unknown);
    let members = observe::members(&launches, &states, launcher.as_ref(), status, owners);
    // Submissions that are not on record: this process may have died in between.
    let journal = Journal::read(profile, cluster_id, &cluster.seed)?;
    let is_recorded = |number: u64| {
        launches
            .iter()
            .filter_map(|launched| launched.elastic.as_ref())
            .any(|of| of.launch == number)
    };
    let mut found = Vec::new();
    for (number, record) in journal.state.launches.iter().filter(|(number, _)| !is_recorded(**number)) {
        let launcher = cluster.launcher(profile, Some(record.engines_per_job))?;
        let first = next_engine + found.iter().map(|launched: &Launched| launched.engines() as u32).sum::<u32>();
        for launch in cluster.launches(profile, cluster_id, *number, record.jobs, record.engines_per_job, first) {
            match launcher.find_engines(&launch) {
                FoundEngines::Launched(engines) => found.push(cluster.recorded(*engines, launcher.as_ref(), *number, &record.shape)),
                FoundEngines::None => {}
                FoundEngines::Unknown => is_answered = false,
            }
        }
    }
    Ok(Seen {
        launches,
        members,
        found,
        is_answered,
        answer_age_s: match launcher.capabilities().has_cached_state {
            true => Config::load_with(profile, &cluster.recipe.settings)?.launcher.poll_interval_ms as f64 / 1000.0,
            false => 0.0,
        },
    })
}
