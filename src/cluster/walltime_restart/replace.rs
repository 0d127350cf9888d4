//! Submits new jobs in place of ended ones.
use super::decide::Due;
use crate::cluster::lock::Lock;
use crate::cluster::{ClusterError, ClusterState, launch};
use crate::profile::ProfileDir;
use crate::profile::config::Config;

/// Submits one job per launch for the engines that are due, and replaces the old elements in the state file. Skips engines that another
/// command has removed in the meantime.
pub(super) fn replace(profile: &ProfileDir, cluster_id: &str, started: f64, due: &[Due], _lock: Lock) -> Result<(), ClusterError> {
    let Some(mut state) = ClusterState::read(profile, cluster_id)?.filter(|state| state.started == started) else {
        return Ok(());
    };
    let mut failed = None;
    // Newly added launches are not due.
    for at in 0..state.engines.len() {
        if let Err(error) = of_launch(profile, &mut state, at, due) {
            failed = Some(error);
        }
    }
    let problem = failed.as_ref().map(|error| format!("cannot replace engines: {error}"));
    state.engines.retain(|launched| !launched.is_empty());
    if let Some(monitor) = &mut state.walltime_monitor {
        monitor.problem = problem;
    }
    state.write(profile)?;
    failed.map_or(Ok(()), Err)
}

fn of_launch(profile: &ProfileDir, state: &mut ClusterState, at: usize, due: &[Due]) -> Result<(), ClusterError> {
    let old = state.engines[at].clone();
    let Some(recipe) = &old.recipe else { return Ok(()) };
    let (mut n, mut replaces, mut places, mut words) = (0, 0, Vec::new(), Vec::new());
    let mut place = old.processes.len();
    for job in &old.jobs {
        for element in &job.elements {
            let is_it = |due: &&Due| due.job == job.name && due.element == *element && !job.leaving.contains(element);
            if let Some(found) = due.iter().find(is_it) {
                n += job.engines_of(*element);
                replaces = replaces.max(job.replaces + 1);
                places.push(place);
                words.push(format!("{}: {}", job.element_name(*element), found.why));
            }
            place += 1;
        }
    }
    if n == 0 {
        return Ok(());
    }
    let config = Config::load_with(profile, &recipe.settings)?;
    let launcher = launch::launcher(&old.launcher, profile, &config)?;
    let mut new = launcher.start_engines(&recipe.launch(profile, &state.cluster_id, n, state.next_engine))?;
    new.jobs.iter_mut().for_each(|job| job.replaces = replaces);
    (new.recipe, new.follows) = (old.recipe.clone(), old.follows);
    tracing::info!(
        "restarted {n} engines in {} (restart {replaces} of {}); {} job {}",
        launcher.describe(&new),
        recipe.max_restarts,
        old.launcher,
        words.join("; ")
    );
    state.next_engine += n;
    state.engines[at] = old.only(|place| !places.contains(&place));
    state.engines.push(new);
    if let Some(monitor) = &mut state.walltime_monitor {
        monitor.replaced += n;
    }
    state.write(profile)
}
