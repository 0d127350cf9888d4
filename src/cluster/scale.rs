//! Removes engines: first those that have not started, then idle ones; a busy engine finishes its task first.
use super::launch;
use super::list::ClusterStatus;
use super::lock::Lock;
use super::{AddOptions, ClusterError, ClusterState, StartProgress, add_engines, allocator, in_thread, jobs};
use crate::client::{Client, StatusReply};
use crate::launchers::{BatchJob, Launched, MemberState, Stage};
use crate::model::EngineId;
use crate::model::engine::EngineStatus;
use crate::profile::ProfileDir;
use crate::profile::config::Config;
use crate::sys::process;
use std::cmp::Reverse;
use std::time::Duration;

/// Selects the engines to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EngineSelection {
    /// This many, those with the least work first.
    Count(u32),
    /// These.
    Ids(Vec<EngineId>),
    All,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    /// Engines asked to leave.
    pub leaving: Vec<EngineId>,
    /// How many of them finish a task first.
    pub busy: usize,
    /// Number of engines cancelled before they started.
    pub cancelled: usize,
    /// Number of remaining engines.
    pub left: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scaled {
    Unchanged { n: u32 },
    Added { n: u32, total: u32 },
    Removed(Removed),
}

/// Scales to the requested number of engines, counting queued ones.
pub(crate) async fn scale(options: AddOptions, progress: &mut dyn FnMut(StartProgress)) -> Result<Scaled, ClusterError> {
    let wanted = options.n as usize;
    allocator::settings::check_fixed(&options.profile, &options.cluster_id)?;
    let now = {
        let snapshot = Snapshot::of(&options.profile, &options.cluster_id).await?;
        snapshot.staying().count() + snapshot.pending().iter().map(|p| p.engines).sum::<usize>()
    };
    match wanted {
        n if n == now => Ok(Scaled::Unchanged { n: options.n }),
        n if n < now => {
            let which = EngineSelection::Count((now - n) as u32);
            let removed = remove_engines(&options.profile, &options.cluster_id, which, true).await?;
            Ok(Scaled::Removed(removed))
        }
        n => {
            let more = (n - now) as u32;
            let total = add_engines(AddOptions { n: more, ..options }, progress).await?;
            Ok(Scaled::Added { n: more, total })
        }
    }
}

/// Removes engines. With `drain`, running tasks finish first; otherwise they run again on other engines. Does not wait.
pub(crate) async fn remove_engines(
    profile: &ProfileDir,
    cluster_id: &str,
    which: EngineSelection,
    drain: bool,
) -> Result<Removed, ClusterError> {
    if !profile.exists() {
        return Err(super::not_running(profile, cluster_id));
    }
    let _lock = Lock::wait(profile, cluster_id).await?;
    let mut snapshot = Snapshot::of(profile, cluster_id).await?;
    let mut removed = Removed::default();
    let mut leaving: Vec<EngineStatus> = match &which {
        EngineSelection::All => {
            removed.cancelled = snapshot.cancel(usize::MAX, profile).await?;
            snapshot.staying().cloned().collect()
        }
        EngineSelection::Ids(ids) => snapshot.status.engines.iter().filter(|e| ids.contains(&e.id)).cloned().collect(),
        EngineSelection::Count(n) => {
            removed.cancelled = snapshot.cancel(*n as usize, profile).await?;
            let mut engines: Vec<EngineStatus> = snapshot.staying().cloned().collect();
            engines.sort_by_key(|engine| (engine.assigned, Reverse(engine.id)));
            engines.truncate((*n as usize).saturating_sub(removed.cancelled));
            engines
        }
    };
    leaving.sort_by_key(|engine| engine.id);
    removed.busy = leaving.iter().filter(|engine| drain && engine.assigned > 0).count();
    removed.leaving = leaving.iter().map(|engine| engine.id).collect();
    if !removed.leaving.is_empty() {
        // Before the engines exit.
        let elsewhere = snapshot.remote_positions(profile, &leaving).await?;
        let before = snapshot.state.clone();
        leaving.iter().for_each(|engine| snapshot.mark(engine));
        snapshot.mark_remote(&elsewhere);
        // Before they are asked to leave: an interrupted caller must leave no engines on record that are gone.
        snapshot.write(profile)?;
        if let Err(error) = snapshot.client.stop_engines(removed.leaving.clone(), drain).await {
            snapshot.state = before;
            snapshot.write(profile)?;
            return Err(error.into());
        }
    }
    let gone = |engine: &&EngineStatus| !removed.leaving.contains(&engine.id);
    removed.left = snapshot.staying().filter(gone).count();
    snapshot.write(profile)?;
    Ok(removed)
}

/// A member whose engines have not all registered.
struct UnregisteredMember {
    launch: usize,
    place: usize,
    engines: usize,
    /// None of its engines is registered.
    is_whole: bool,
}

/// The state of a running cluster, from its controller and the batch systems.
struct Snapshot {
    config: Config,
    client: Client,
    status: StatusReply,
    /// None for a controller that was started manually.
    state: Option<ClusterState>,
    /// For each launch.
    states: Vec<Vec<MemberState>>,
}

impl Snapshot {
    async fn of(profile: &ProfileDir, cluster_id: &str) -> Result<Snapshot, ClusterError> {
        let config = Config::load(profile)?;
        let cluster = ClusterStatus::running(profile, cluster_id)?;
        let (_, client) = launch::connect(profile, cluster_id).await?;
        let status = client.status().await?;
        let mut states = Vec::new();
        for launched in cluster.state.iter().flat_map(|s| s.engines.clone()) {
            let launcher = launch::launcher(&launched.launcher, profile, &config)?;
            states.push(in_thread(move || launcher.states(&launched)).await?);
        }
        Ok(Snapshot {
            config,
            client,
            status,
            state: cluster.state,
            states,
        })
    }

    fn write(&mut self, profile: &ProfileDir) -> Result<(), ClusterError> {
        let Some(state) = &mut self.state else { return Ok(()) };
        state.n = state.engines.iter().map(Launched::engines).sum::<usize>() as u32;
        state.write(profile)
    }

    /// Engines that are registered and not leaving.
    fn staying(&self) -> impl Iterator<Item = &EngineStatus> {
        self.status.engines.iter().filter(|engine| engine.state.is_staying())
    }

    /// Job elements whose engines have not all registered.
    fn pending(&self) -> Vec<UnregisteredMember> {
        let mut pending = Vec::new();
        let launches = self.state.iter().flat_map(|s| &s.engines).zip(&self.states).enumerate();
        for (launch, (launched, states)) in launches {
            let elements = launched.jobs.iter().flat_map(|job| job.elements.iter().map(move |e| (job, *e)));
            for (at, (job, element)) in elements.enumerate() {
                let place = launched.processes.len() + at;
                let is_starting = states
                    .get(place)
                    .is_some_and(|state| !state.has_ended() && state.stage != Stage::Unknown);
                if !is_starting || job.leaving.contains(&element) {
                    continue;
                }
                let registered = self.status.engines.iter().filter(|e| is_in(e, job, element)).count();
                let engines = (job.engines_of(element) as usize).saturating_sub(registered);
                if engines > 0 {
                    pending.push(UnregisteredMember {
                        launch,
                        place,
                        engines,
                        is_whole: registered == 0,
                    });
                }
            }
        }
        pending
    }

    /// Cancels job elements without registered engines, the last first, up to `at_most` engines; returns the number of engines.
    async fn cancel(&mut self, at_most: usize, profile: &ProfileDir) -> Result<usize, ClusterError> {
        let mut left = at_most;
        let mut chosen: Vec<UnregisteredMember> = Vec::new();
        for pending in self.pending().into_iter().rev().filter(|p| p.is_whole) {
            if pending.engines <= left {
                left -= pending.engines;
                chosen.push(pending);
            }
        }
        let Some(state) = &mut self.state else { return Ok(0) };
        for (at, launched) in state.engines.iter_mut().enumerate() {
            let is_chosen = |place: usize| chosen.iter().any(|p| p.launch == at && p.place == place);
            let part = launched.only(is_chosen);
            if part.is_empty() {
                continue;
            }
            let launcher = launch::launcher(&launched.launcher, profile, &self.config)?;
            let grace = Duration::from_millis(self.config.launcher.kill_timeout_ms);
            let rows = jobs::rows(&part, &vec![MemberState::submitted(); part.len()]);
            in_thread(move || launcher.stop(&part, grace)).await??;
            jobs::report(&self.client, jobs::stopped(rows)).await;
            *launched = launched.only(|place| !is_chosen(place));
        }
        state.engines.retain(|launched| !launched.is_empty());
        state.write(profile)?;
        Ok(chosen.iter().map(|p| p.engines).sum())
    }

    /// Finds the processes of engines on other hosts: launch and position.
    async fn remote_positions(&self, profile: &ProfileDir, engines: &[EngineStatus]) -> Result<Vec<(usize, usize)>, ClusterError> {
        let processes: Vec<(String, u32)> = engines.iter().map(|e| (e.facts.host.clone(), e.facts.pid)).collect();
        let mut found = Vec::new();
        for (at, launched) in self.state.iter().flat_map(|s| s.engines.clone()).enumerate() {
            let launcher = launch::launcher(&launched.launcher, profile, &self.config)?;
            let processes = processes.clone();
            let indices_of = move || Some(launcher.remote_hosts()?.indices_of(&launched, &processes));
            let places = in_thread(indices_of).await?.unwrap_or_default();
            found.extend(places.into_iter().map(|place| (at, place)));
        }
        Ok(found)
    }

    fn mark_remote(&mut self, places: &[(usize, usize)]) {
        let launches = self.state.iter_mut().flat_map(|state| &mut state.engines).enumerate();
        for (at, launched) in launches {
            let of_it = |place: usize| places.contains(&(at, place));
            let processes = launched.processes.iter_mut().enumerate();
            processes
                .filter(|(place, _)| of_it(*place))
                .for_each(|(_, process)| process.leaving = true);
        }
    }

    /// Marks this engine as leaving.
    fn mark(&mut self, engine: &EngineStatus) {
        let Some(state) = &mut self.state else { return };
        for launched in &mut state.engines {
            for job in &mut launched.jobs {
                let of_it = job.elements.iter().copied().find(|element| is_in(engine, job, *element));
                // The other engines of an element stay.
                if let Some(element) = of_it.filter(|e| job.engines_of(*e) == 1) {
                    job.leaving.push(element);
                }
            }
            if launched.host == engine.facts.host && launched.host == process::host() {
                // Its supervisor, or an earlier one, leads its session.
                let session = process::session_of(engine.facts.pid);
                let is_it = |pid: u32| pid == engine.facts.pid || Some(pid) == session;
                launched
                    .processes
                    .iter_mut()
                    .filter(|p| is_it(p.id.pid))
                    .for_each(|p| p.leaving = true);
            }
        }
    }
}

fn is_in(engine: &EngineStatus, job: &BatchJob, element: u32) -> bool {
    job.is_reported_as(&engine.facts.job, element)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_is_matched_to_its_job() {
        let engine = |job: &str| -> EngineStatus {
            let json =
                serde_json::json!({"id": 0, "uuid": "a", "state": "idle", "assigned": 0, "finished": 0, "registered": 1.0, "job": job});
            serde_json::from_value(json).unwrap()
        };
        let job = |id: &str| BatchJob {
            id: id.into(),
            array: true,
            ..BatchJob::default()
        };
        assert!(is_in(&engine("18.3"), &job("18"), 3));
        assert!(!is_in(&engine("18.3"), &job("18"), 4));
        assert!(!is_in(&engine("118.3"), &job("18"), 3));
        assert!(is_in(&engine("19[3].pbs1.3"), &job("19[].pbs1"), 3));
        assert!(is_in(&engine("4.pbs1"), &job("4.pbs1"), 1));
        assert!(!is_in(&engine(""), &job(""), 1));
    }
}
