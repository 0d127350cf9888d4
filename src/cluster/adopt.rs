//! What a dead cluster of the same name left for a start: its files are removed, and its running engines adopted or stopped.
use super::launch::{self, CONNECT_TIMEOUT, EngineSpec};
use super::list::{self, ClusterStatus, Condition};
use super::{ClusterError, ClusterState, StartProgress, in_thread, stop, walltime_restart};
use crate::client::Client;
use crate::connection::ConnectionFile;
use crate::launchers::Launched;
use crate::profile::ProfileDir;
use std::time::Duration;

/// Fails if a controller with this name is running. Returns what a dead one left.
pub(super) async fn check_not_running(
    profile: &ProfileDir,
    cluster_id: &str,
    progress: &mut dyn FnMut(StartProgress),
) -> Result<Leftovers, ClusterError> {
    let status = ClusterStatus::of(profile, cluster_id);
    let cluster = super::describe(profile, cluster_id);
    let options = super::options_of(profile, cluster_id);
    match (status.condition, &status.controller) {
        (Condition::Connected, _) => Err(list::connected(profile, cluster_id)),
        (Condition::Running, controller) => Err(ClusterError::Running {
            cluster,
            options,
            controller: controller.clone(),
        }),
        (Condition::Remote, Some(controller)) => {
            let answers = match &status.connection {
                Some(file) => Client::connect(file, CONNECT_TIMEOUT).await.is_ok(),
                None => false,
            };
            Err(if answers {
                ClusterError::Running {
                    cluster,
                    options,
                    controller: Some(controller.clone()),
                }
            } else {
                ClusterError::Elsewhere {
                    cluster,
                    options,
                    controller: controller.clone(),
                    why: status.unseen.unwrap_or_default(),
                }
            })
        }
        (Condition::Foreign, _) => {
            let path = profile.client_file(cluster_id);
            if status.connection.as_ref().is_some_and(stop::something_listens) {
                return Err(ClusterError::Foreign { cluster, options, path });
            }
            stop::remove_files(profile, cluster_id);
            progress(StartProgress::Note(format!(
                "removed {}: the controller that wrote it is dead",
                path.display()
            )));
            Ok(Leftovers::default())
        }
        (Condition::Stale, controller) => {
            stop::remove_tunnel(profile, cluster_id);
            let who = controller.as_ref().map(|c| match c.is_on_this_host() {
                true => format!(" (process {})", c.pid),
                false => format!(" ({c})"),
            });
            let who = who.unwrap_or_default();
            progress(StartProgress::Note(format!(
                "the controller{who} of {cluster} died without being stopped; starting a new one"
            )));
            let files = [profile.client_file(cluster_id), profile.engine_file(cluster_id)];
            let damaged: Vec<String> = files
                .iter()
                .filter_map(|path| Some(ConnectionFile::remove_damaged(path)?.to_string()))
                .collect();
            damaged
                .iter()
                .for_each(|what| progress(StartProgress::Note(format!("{what}; writing a new one"))));
            if let Some(problem) = status.problem.as_ref().filter(|problem| !damaged.contains(problem)) {
                progress(StartProgress::Note(problem.clone()));
            }
            Ok(Leftovers {
                engine_file: ConnectionFile::read(&profile.engine_file(cluster_id)).ok(),
                state: status.state,
            })
        }
        _ => Ok(Leftovers::default()),
    }
}

/// The allocator goes on with the engines, and with what it knows about them.
fn keep_decisions(state: &mut ClusterState, before: &ClusterState) -> bool {
    match (&mut state.elastic, &before.elastic) {
        (Some(now), Some(before)) if now.launcher == before.launcher => {
            now.seed.clone_from(&before.seed);
            true
        }
        _ => false,
    }
}

/// The engines of a dead controller.
#[derive(Default)]
pub(super) struct Leftovers {
    engine_file: Option<ConnectionFile>,
    pub state: Option<ClusterState>,
}

impl Leftovers {
    /// Records the adopted engines, and stops the walltime monitor of the dead cluster: the new cluster has its own.
    pub(super) async fn hand_over(
        &self,
        state: &mut ClusterState,
        adopted: Vec<Launched>,
        kill_timeout: Duration,
    ) -> Result<(), ClusterError> {
        let mut keeps_decisions = false;
        if let Some(before) = &self.state {
            walltime_restart::end(before, kill_timeout).await?;
            if !adopted.is_empty() {
                state.next_engine = before.next_engine;
            }
            keeps_decisions = keep_decisions(state, before);
        }
        state.engines = adopted;
        if !keeps_decisions {
            state.engines.iter_mut().for_each(|launched| launched.elastic = None);
        }
        Ok(())
    }

    /// Keeps running engines if they can reconnect to the new controller; else stops them.
    pub(super) async fn adopt(
        &self,
        profile: &ProfileDir,
        spec: &EngineSpec,
        now: &ConnectionFile,
        progress: &mut dyn FnMut(StartProgress),
    ) -> Result<Vec<Launched>, ClusterError> {
        let place = |file: &ConnectionFile| {
            let port = file.pcluster.as_ref().and_then(|keys| keys.engine_port);
            (file.registration, file.location.clone(), port)
        };
        let same_keys = self.engine_file.as_ref().is_some_and(|before| before.is_of_same_cluster(now));
        let same_place = self.engine_file.as_ref().is_some_and(|before| place(before) == place(now));
        let mut kept = Vec::new();
        for launched in self.state.iter().flat_map(|s| s.engines.clone()) {
            let launcher = launch::launcher(&launched.launcher, profile, &spec.config)?;
            let (asked, whole) = (launcher.clone(), launched.clone());
            let states = in_thread(move || asked.states(&whole)).await?;
            // Members of unknown state may still be running.
            let launched = launched.only(|place| states.get(place).is_some_and(|state| !state.has_ended()));
            if launched.is_empty() {
                continue;
            }
            let n = launched.engines();
            let (engines, stay) = match n {
                1 => ("engine", "is still running and is kept"),
                _ => ("engines", "are still running and are kept"),
            };
            if same_keys && (same_place || launched.follows) {
                progress(StartProgress::Note(format!("{n} earlier {engines} {stay}")));
                let restarted = launcher.remote_hosts().map(|hosts| hosts.restart_tunnels(&launched, &spec.program));
                let notes = restarted.into_iter().flatten();
                notes.for_each(|text| progress(StartProgress::Note(text)));
                kept.push(launched);
                continue;
            }
            in_thread(move || launcher.stop(&launched, Duration::from_secs(5))).await??;
            progress(StartProgress::Note(format!("stopped {n} earlier {engines}")));
        }
        Ok(kept)
    }
}
