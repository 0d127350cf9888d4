//! From the configuration to the settings of decisions, and what users change later.
use super::super::elastic::observation::Control;
use super::super::elastic::settings::{ElasticSettings, EngineShape, InvalidSettings};
use super::super::launch::EngineSpec;
use super::super::lock::Lock;
use super::super::{ClusterError, ClusterState, walltime_restart};
use super::record::{ElasticCluster, Journal};
use crate::launchers::{Launcher, Recipe, batch, mpi};
use crate::model::node::NodeFacts;
use crate::profile::ProfileDir;
use crate::profile::config::resources::StartMode;
use std::path::Path;

/// None unless the configuration has a maximum number of engines.
pub(in crate::cluster) fn of_config(spec: &EngineSpec, launcher: &dyn Launcher) -> Result<Option<ElasticCluster>, ClusterError> {
    let config = &spec.config;
    let Some(max) = config.elastic.max else { return Ok(None) };
    let name = &config.launcher.engines;
    let mut shape = EngineShape {
        idle_s: config.elastic.idle.seconds,
        max_queued: config.elastic.max_queued,
        ..EngineShape::new(name, config.elastic.min.unwrap_or(0), max)
    };
    let mut has_whole_launches = name == mpi::NAME;
    if let Some(resources) = config.launchers.of(name) {
        shape.engines_per_job = resources.engines_per_job.unwrap_or(1);
        shape.walltime_s = resources.walltime.map(|walltime| walltime.seconds as f64);
        shape.cpus_per_engine = resources.cpus.unwrap_or(1);
        has_whole_launches = resources.start != StartMode::Array;
    } else if launcher.remote_hosts().is_none() {
        // All engines share this host.
        shape.node = NodeFacts {
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
            ..NodeFacts::default()
        };
    }
    let resources = &config.engine.resources;
    shape.node.named = resources.named.clone();
    shape.node.cpus = resources.cpus.unwrap_or(shape.node.cpus);
    if let Some(capacity) = launcher
        .remote_hosts()
        .and_then(|hosts| hosts.capacity())
        .filter(|room| *room < max)
    {
        return Err(ClusterError::TooManyForHosts { max, capacity });
    }
    let settings = ElasticSettings {
        shapes: vec![shape],
        budget_core_h: config.elastic.budget.map(|budget| budget.hours),
        work_per_engine_s: config.elastic.work_per_engine.seconds,
        interval_s: config.elastic.interval.seconds,
    };
    settings.check()?;
    Ok(Some(ElasticCluster {
        settings,
        seed: seed(),
        launcher: name.clone(),
        recipe: recipe(spec),
        has_whole_launches,
        controls: Vec::new(),
    }))
}

fn recipe(spec: &EngineSpec) -> Recipe {
    let python = spec.config.engine.python.clone().or_else(|| {
        // The walltime monitor may run in another environment.
        let found = crate::launchers::python::resolve(None);
        let is_batch = batch::SYSTEMS.contains(&spec.config.launcher.engines.as_str());
        (is_batch && Path::new(&found).is_absolute()).then_some(found)
    });
    let is_own = |(key, _): &&(String, String)| !key.starts_with("elastic.");
    Recipe {
        program: spec.program.clone(),
        settings: spec.settings.iter().filter(is_own).cloned().collect(),
        kind: spec.config.engine.kind,
        python,
        ipengine: spec.config.engine.ipengine.clone(),
        cwd: spec.cwd.clone(),
        log_level: spec.log_level.clone(),
        max_restarts: 0,
    }
}

fn seed() -> String {
    uuid::Uuid::new_v4().simple().to_string().chars().take(8).collect()
}

/// Changes of the limits; None keeps a value.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limits {
    pub min: Option<u32>,
    pub max: Option<u32>,
    pub idle_s: Option<f64>,
    pub max_queued: Option<u32>,
    pub budget_core_h: Option<f64>,
    pub work_per_engine_s: Option<f64>,
}

impl Limits {
    pub(crate) fn apply(&self, settings: &mut ElasticSettings) -> Result<(), InvalidSettings> {
        for shape in &mut settings.shapes {
            shape.min = self.min.unwrap_or(shape.min);
            shape.max = self.max.unwrap_or(shape.max);
            shape.idle_s = self.idle_s.unwrap_or(shape.idle_s);
            shape.max_queued = self.max_queued.unwrap_or(shape.max_queued);
        }
        settings.budget_core_h = self.budget_core_h.or(settings.budget_core_h);
        settings.work_per_engine_s = self.work_per_engine_s.unwrap_or(settings.work_per_engine_s);
        settings.check()
    }
}

/// The settings and the journal of a running cluster.
pub(crate) fn show(profile: &ProfileDir, cluster_id: &str) -> Result<(ElasticCluster, Journal), ClusterError> {
    let state = ClusterState::read(profile, cluster_id)?;
    let cluster = state
        .and_then(|state| state.elastic)
        .ok_or_else(|| not_elastic(profile, cluster_id))?;
    let journal = Journal::read(profile, cluster_id, &cluster.seed)?;
    Ok((cluster, journal))
}

/// Whether the process that decides is running.
pub(crate) fn is_deciding(profile: &ProfileDir, cluster_id: &str) -> bool {
    let state = ClusterState::read(profile, cluster_id).ok().flatten();
    state.and_then(|state| state.walltime_monitor).is_some_and(|monitor| monitor.runs())
}

/// Takes effect at the next decision, which follows at once.
pub(crate) async fn set(profile: &ProfileDir, cluster_id: &str, limits: &Limits) -> Result<ElasticSettings, ClusterError> {
    let changed = change(profile, cluster_id, |cluster| Ok(limits.apply(&mut cluster.settings)?)).await?;
    Ok(changed.settings)
}

pub(crate) async fn ask(profile: &ProfileDir, cluster_id: &str, control: Control) -> Result<(), ClusterError> {
    let add = |cluster: &mut ElasticCluster| {
        cluster.controls.push(control);
        Ok(())
    };
    change(profile, cluster_id, add).await.map(drop)
}

/// The engines stay, in a fixed number.
pub(crate) async fn off(profile: &ProfileDir, cluster_id: &str) -> Result<(), ClusterError> {
    let _lock = Lock::wait(profile, cluster_id).await?;
    let Some(mut state) = ClusterState::read(profile, cluster_id)?.filter(|state| state.elastic.is_some()) else {
        return Err(not_elastic(profile, cluster_id));
    };
    state.elastic = None;
    state.engines.iter_mut().for_each(|launched| launched.elastic = None);
    state.write(profile)
}

async fn change(
    profile: &ProfileDir,
    cluster_id: &str,
    change: impl FnOnce(&mut ElasticCluster) -> Result<(), ClusterError>,
) -> Result<ElasticCluster, ClusterError> {
    let _lock = Lock::wait(profile, cluster_id).await?;
    let Some(mut state) = ClusterState::read(profile, cluster_id)? else {
        return Err(not_elastic(profile, cluster_id));
    };
    let Some(cluster) = &mut state.elastic else {
        return Err(not_elastic(profile, cluster_id));
    };
    change(cluster)?;
    let changed = cluster.clone();
    // It may have been killed.
    walltime_restart::ensure(profile, &mut state, &changed.recipe.program)?;
    state.write(profile)?;
    Ok(changed)
}

fn not_elastic(profile: &ProfileDir, cluster_id: &str) -> ClusterError {
    if matches!(ClusterState::read(profile, cluster_id), Ok(None)) {
        return super::super::not_running(profile, cluster_id);
    }
    ClusterError::NotElastic {
        cluster: super::super::describe(profile, cluster_id),
        options: super::super::options_of(profile, cluster_id),
    }
}

/// Fails if the work decides how many engines there are.
pub(crate) fn check_fixed(profile: &ProfileDir, cluster_id: &str) -> Result<(), ClusterError> {
    match ClusterState::read(profile, cluster_id) {
        Ok(Some(state)) if state.elastic.is_some() => Err(ClusterError::IsElastic {
            cluster: super::super::describe(profile, cluster_id),
            options: super::super::options_of(profile, cluster_id),
        }),
        _ => Ok(()),
    }
}
