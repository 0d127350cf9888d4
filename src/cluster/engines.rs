//! Adds engines to a running cluster.
use super::launch::{self, EngineSpec, Record, Target, Undo, Watched};
use super::list::ClusterStatus;
use super::lock::Lock;
use super::{ClusterError, ClusterState, StartProgress, Wait, jobs, walltime_restart};
use crate::connection::{ConnectionFile, addresses};
use crate::launchers::{Launched, Launcher};
use crate::profile::ProfileDir;
use crate::profile::config::{Config, EngineKind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Debug)]
pub(crate) struct AddOptions {
    pub profile: ProfileDir,
    pub cluster_id: String,
    /// Number of engines to add.
    pub n: u32,
    pub settings: Vec<(String, String)>,
    pub launcher: Option<String>,
    pub wait: Wait,
    /// The total timeout, including time in a queue.
    pub timeout: Option<Duration>,
    pub engine_kind: Option<EngineKind>,
    pub python: Option<String>,
    pub cwd: Option<PathBuf>,
    pub log_level: Option<String>,
    pub program: Option<PathBuf>,
}

impl AddOptions {
    /// The defaults are the settings of the existing engines.
    fn spec(&self) -> Result<EngineSpec, ClusterError> {
        let known = ClusterState::read(&self.profile, &self.cluster_id).ok().flatten();
        let mut settings = known.as_ref().map(|state| state.engine_settings.clone()).unwrap_or_default();
        settings.extend(self.settings.iter().cloned());
        let mut config = Config::load_with(&self.profile, &settings)?;
        let same = known.as_ref().and_then(|state| Some(state.engines.last()?.launcher.clone()));
        if let Some(launcher) = self.launcher.clone().or(same) {
            config.launcher.engines = launcher;
        }
        config.engine.kind = self.engine_kind.unwrap_or(config.engine.kind);
        config.engine.python = self.python.clone().or(config.engine.python);
        Ok(EngineSpec {
            settings,
            program: launch::program(&self.program)?,
            cwd: launch::directory(&self.cwd)?,
            log_level: self.log_level.clone(),
            config,
        })
    }
}

/// Starts `n` more engines, waits until they have registered, and returns the total number. If that fails, the new engines are
/// stopped.
pub(crate) async fn add_engines(options: AddOptions, progress: &mut dyn FnMut(StartProgress)) -> Result<u32, ClusterError> {
    let (profile, cluster_id) = (&options.profile, options.cluster_id.as_str());
    let spec = options.spec()?;
    let launcher = launch::launcher(&spec.config.launcher.engines, profile, &spec.config)?;
    if !profile.exists() {
        return Err(super::not_running(profile, cluster_id));
    }
    let mut lock = Some(Lock::wait(profile, cluster_id).await?);
    let cluster = ClusterStatus::running(profile, cluster_id)?;
    spec.check_room(options.n)?;
    if let Some(warning) = spec.check(launcher.as_ref())? {
        progress(StartProgress::Note(warning));
    }
    let (client_file, client) = launch::connect(profile, cluster_id).await?;
    check_reachable(launcher.as_ref(), &client_file, &spec.config)?;
    let before = launch::connected_engines(&client.status().await?);

    // A manually started controller has no state file.
    let mut state = cluster.state.unwrap_or_else(|| ClusterState::new(cluster_id, spec.cwd.clone()));
    let mut record = Record::new(profile, cluster_id);
    let mut undo = Undo::new(Duration::from_millis(spec.config.launcher.kill_timeout_ms));
    let engines = launch_engines(&options, &spec, &launcher, &mut state, &mut record, &mut undo, progress)?;
    jobs::report(&client, jobs::submitted_by(&engines)).await;
    let is_remote = launcher.capabilities().remote;
    lock.take_if(|_| is_remote);
    let new = match engines.problem.is_empty() {
        true => options.n as usize,
        false => engines.engines(),
    };
    let enough = match options.wait {
        Wait::None => 0,
        wait => before + wait.of(new),
    };
    let target = Target {
        all: before + new,
        enough,
        at_least: launch::at_least(launcher.as_ref(), new).saturating_add(before).min(enough),
        timeout: Duration::from_millis(spec.config.launcher.engines_timeout_ms),
        total_timeout: options.timeout,
    };
    let mut registered = launch::registered(&client, target, Watched::new(&launcher, &engines), None, progress).await;
    if let Err(ClusterError::EnginesLate { options, .. }) = &mut registered
        && is_remote
    {
        // Engines in a queue are not a failure.
        *options = Some(super::options_of(profile, cluster_id));
    }
    if matches!(registered, Ok(_) | Err(ClusterError::EnginesLate { options: Some(_), .. })) {
        undo.disarm();
        record.disarm();
        if lock.is_none() {
            launch::release(profile, cluster_id).await;
        }
    }
    registered?;
    Ok(target.all as u32)
}

/// Fails if the engines may run on other hosts, and the controller listens only on its loopback address.
fn check_reachable(launcher: &dyn Launcher, client_file: &ConnectionFile, config: &Config) -> Result<(), ClusterError> {
    let capabilities = launcher.capabilities();
    let has_route = !capabilities.remote || capabilities.provides_tunnel || config.controller.engine_ssh.is_some();
    match &client_file.pcluster {
        Some(keys) if !has_route && keys.addresses.iter().all(|address| addresses::is_loopback(address)) => {
            Err(ClusterError::Unreachable {
                launcher: launcher.name().into(),
                ip: keys.addresses.join(", "),
            })
        }
        _ => Ok(()),
    }
}

/// Starts the engines and records them.
fn launch_engines(
    options: &AddOptions,
    spec: &EngineSpec,
    launcher: &Arc<dyn Launcher>,
    state: &mut ClusterState,
    record: &mut Record<'_>,
    undo: &mut Undo,
    progress: &mut dyn FnMut(StartProgress),
) -> Result<Launched, ClusterError> {
    if state.engines.is_empty() {
        state.engine_kind = spec.config.engine.kind.name().into();
    }
    progress(StartProgress::EnginesStarting { n: options.n });
    let launch = spec.launch(&options.profile, state, options.n);
    let engines = launch::recorded(launcher.start_engines(&launch)?, launcher.as_ref(), &launch, &spec.config);
    undo.add(launcher, &engines);
    let notes = engines.notes.iter().chain(&engines.problem);
    notes.for_each(|text| progress(StartProgress::Note(text.clone())));
    state.n += options.n;
    state.next_engine += options.n;
    state.engines.push(engines.clone());
    record.added(&engines);
    walltime_restart::ensure(&options.profile, state, &spec.program)?;
    state.write(&options.profile)?;
    Ok(engines)
}
