//! Decides once, stores the decisions, and carries them out.
use super::super::elastic::decide::{Outcome, decide};
use super::super::elastic::decision::{Action, Decision};
use super::super::elastic::observation::{JobName, JobPhase, Observation, Rejection};
use super::super::lock::Lock;
use super::super::{ClusterError, ClusterState, in_thread};
use super::observe::{self, SeenMember};
use super::record::{ElasticCluster, Journal};
use crate::client::Client;
use crate::launchers::{LaunchError, Launched, Launcher, Stage};
use crate::model::EngineId;
use crate::profile::ProfileDir;
use std::sync::Arc;
use std::time::Duration;

/// A summary that differs in times only is stored this often.
const SUMMARY_INTERVAL_S: f64 = 60.0;
/// Queued jobs have no processes to wait for.
const GRACE: Duration = Duration::from_secs(1);

pub(super) struct Step {
    pub profile: ProfileDir,
    pub cluster_id: String,
    pub members: Vec<SeenMember>,
    pub observation: Observation,
    pub state: ClusterState,
    pub lock: Lock,
}

/// What has been carried out, except that engines have not been asked to leave.
pub(super) struct Carried {
    pub rejected: Vec<Rejection>,
    members: Vec<SeenMember>,
    /// Members that are asked to leave, by index.
    leaving: Vec<usize>,
    /// Members to cancel if none of their engines has registered.
    unregistered: Vec<usize>,
    launcher: Arc<dyn Launcher>,
    /// Members that are not on record any more.
    gone: Vec<usize>,
    before: ClusterState,
    state: ClusterState,
    _lock: Lock,
}

impl Step {
    pub(super) fn run(mut self) -> Result<Carried, ClusterError> {
        let before = self.state.clone();
        let Some(mut cluster) = self.state.elastic.take() else {
            return Err(ClusterError::Internal("the cluster is not elastic any more".into()));
        };
        let mut journal = Journal::read(&self.profile, &self.cluster_id, &cluster.seed)?;
        self.observation.controls = std::mem::take(&mut cluster.controls);
        self.observation.jobs = self.members.iter().map(|member| member.job.clone()).collect();
        let outcome = decide(&cluster.settings, &mut journal.state, &self.observation);
        self.store(&mut journal, &outcome)?;
        let has_ended = |member: &SeenMember| match member.job.phase {
            JobPhase::Ended(_) => true,
            JobPhase::Missing => journal.state.jobs.get(&member.job.name).is_none_or(|job| job.has_ended),
            _ => false,
        };
        let gone = (0..self.members.len()).filter(|at| has_ended(&self.members[*at])).collect();
        // Those that were asked before have registered more engines since.
        let has_more = |member: &SeenMember| member.job.is_leaving && member.engines.iter().any(|engine| engine.state.is_staying());
        let leaving = (0..self.members.len()).filter(|at| has_more(&self.members[*at])).collect();
        self.state.elastic = Some(cluster.clone());
        let mut carried = Carried {
            rejected: Vec::new(),
            members: self.members,
            leaving,
            unregistered: Vec::new(),
            launcher: cluster.launcher(&self.profile, None)?,
            gone,
            before,
            state: self.state,
            _lock: self.lock,
        };
        for decision in &outcome.decisions {
            carried.carry_out(decision, &cluster, &self.profile)?;
        }
        Ok(carried)
    }

    /// Before anything is carried out.
    fn store(&self, journal: &mut Journal, outcome: &Outcome) -> Result<(), ClusterError> {
        let now = self.observation.now;
        for Decision { shape, action, reason } in &outcome.decisions {
            tracing::info!("shape {shape}: {action:?}: {reason}");
        }
        journal.add(now, &outcome.decisions);
        let has_ended = self.members.iter().any(|member| matches!(member.job.phase, JobPhase::Ended(_)));
        let is_old = now.since(journal.summary.decided) >= SUMMARY_INTERVAL_S;
        let mut timeless = journal.summary.clone();
        timeless.decided = outcome.summary.decided;
        let is_new = timeless != outcome.summary;
        journal.summary = outcome.summary.clone();
        if outcome.must_store || has_ended || is_old || is_new || !outcome.decisions.is_empty() {
            journal.write(&self.profile, &self.cluster_id)?;
        }
        Ok(())
    }
}

impl Carried {
    fn carry_out(&mut self, decision: &Decision, cluster: &ElasticCluster, profile: &ProfileDir) -> Result<(), ClusterError> {
        match &decision.action {
            Action::Submit {
                launch,
                jobs,
                engines_per_job,
            } => self.submit(*launch, *jobs, *engines_per_job, &decision.shape, cluster, profile),
            Action::CancelQueued { jobs } => {
                self.cancel_queued(jobs);
                Ok(())
            }
            Action::CancelUnregistered { jobs } => {
                let members = self.members_of(jobs);
                self.unregistered.extend(members);
                Ok(())
            }
            Action::Retire { jobs } | Action::Drain { jobs } => {
                let members = self.members_of(jobs);
                self.leaving.extend(members);
                Ok(())
            }
            Action::GiveUp { .. } | Action::Pause | Action::Resume => Ok(()),
        }
    }

    fn members_of(&self, jobs: &[JobName]) -> Vec<usize> {
        let is_one = |at: &usize| jobs.contains(&self.members[*at].job.name);
        (0..self.members.len()).filter(is_one).collect()
    }

    fn submit(
        &mut self,
        number: u64,
        jobs: u32,
        engines_per_job: u32,
        shape: &str,
        cluster: &ElasticCluster,
        profile: &ProfileDir,
    ) -> Result<(), ClusterError> {
        let launcher = cluster.launcher(profile, Some(engines_per_job))?;
        let cluster_id = self.state.cluster_id.clone();
        for launch in cluster.launches(profile, &cluster_id, number, jobs, engines_per_job, self.state.next_engine) {
            match launcher.start_engines(&launch) {
                Ok(engines) => {
                    for problem in &engines.problem {
                        tracing::warn!("{problem}");
                    }
                    self.state.next_engine += launch.n;
                    self.state.engines.push(cluster.recorded(engines, launcher.as_ref(), number, shape));
                    self.state.write(profile)?;
                }
                Err(error) => {
                    tracing::warn!("{error}");
                    // An uncertain one is looked up by its name.
                    if !matches!(error, LaunchError::Submit { is_uncertain: true, .. }) {
                        self.rejected.push(Rejection {
                            launch: number,
                            text: error.to_string(),
                        });
                    }
                }
            }
        }
        Ok(())
    }

    fn cancel_queued(&mut self, jobs: &[JobName]) {
        for at in self.members_of(jobs) {
            let part = self.part(at);
            if self.launcher.states(&part).iter().all(|state| state.stage == Stage::Queued) {
                match self.launcher.stop(&part, GRACE) {
                    Ok(_) => self.gone.push(at),
                    Err(error) => tracing::warn!("{error}"),
                }
            }
        }
    }

    fn part(&self, at: usize) -> Launched {
        let SeenMember { launch, place, .. } = self.members[at];
        self.state.engines[launch].only(|other| other == place)
    }

    /// Cancels running members, unless one of their engines has registered meanwhile.
    pub(super) async fn cancel_unregistered(&mut self, client: &Client) -> Result<(), ClusterError> {
        if self.unregistered.is_empty() {
            return Ok(());
        }
        let engines = client.status().await?.engines;
        for at in std::mem::take(&mut self.unregistered) {
            let part = self.part(at);
            let launcher = self.launcher.clone();
            let engines = engines.clone();
            let is_free = in_thread(move || {
                engines
                    .iter()
                    .all(|engine| observe::owner(&part, launcher.as_ref(), engine).is_none())
            })
            .await?;
            if is_free {
                let (part, launcher) = (self.part(at), self.launcher.clone());
                match in_thread(move || launcher.stop(&part, GRACE)).await? {
                    Ok(_) => self.gone.push(at),
                    Err(error) => tracing::warn!("{error}"),
                }
            }
        }
        Ok(())
    }

    /// Asks engines to leave when they have finished their tasks. Those that cannot be asked now are decided about again.
    pub(super) async fn ask_to_leave(&mut self, client: &Client) {
        let of_member = |at: &usize| self.members[*at].engines.iter().map(|engine| engine.id);
        let engines: Vec<EngineId> = self.leaving.iter().flat_map(of_member).collect();
        if engines.is_empty() {
            self.leaving.clear();
            return;
        }
        if let Err(error) = client.stop_engines(engines, true).await {
            tracing::warn!("cannot ask engines to leave: {error}");
            self.leaving.clear();
        }
    }

    /// Records the result.
    pub(super) fn finish(mut self, profile: &ProfileDir) -> Result<Option<ElasticCluster>, ClusterError> {
        for at in &self.leaving {
            let SeenMember {
                launch, place, engines, ..
            } = &self.members[*at];
            if let Some(launched) = self.state.engines.get_mut(*launch).filter(|_| !engines.is_empty()) {
                launched.mark_leaving(*place);
            }
        }
        for (at, launched) in self.state.engines.iter_mut().enumerate() {
            let is_gone = |place: usize| {
                self.gone
                    .iter()
                    .any(|gone| (self.members[*gone].launch, self.members[*gone].place) == (at, place))
            };
            let rest = launched.only(|place| !is_gone(place));
            *launched = rest;
        }
        self.state
            .engines
            .retain(|launched| launched.elastic.is_none() || !launched.is_empty());
        self.state.n = self.state.engines.iter().map(Launched::engines).sum::<usize>() as u32;
        if self.state != self.before {
            self.state.write(profile)?;
        }
        Ok(self.state.elastic)
    }
}
