//! Adds engines to a running cluster.
use super::launch::{self, CONNECT_TIMEOUT, EngineSpec, Record, Target, Undo, Watched};
use super::list::{ClusterStatus, Condition};
use super::lock::Lock;
use super::{ClusterError, ClusterState, StartProgress, Wait, in_thread, jobs, walltime_restart};
use crate::client::Client;
use crate::connection::{addresses, discover};
use crate::profile::ProfileDir;
use crate::profile::config::{Config, EngineKind};
use std::path::PathBuf;
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

/// Starts `n` more engines, waits until they have registered, and returns the total number. If that fails, the new engines are
/// stopped.
pub(crate) async fn add_engines(options: AddOptions, progress: &mut dyn FnMut(StartProgress)) -> Result<u32, ClusterError> {
    let (profile, cluster_id) = (&options.profile, options.cluster_id.as_str());
    // Defaults to the settings of the existing engines.
    let known = ClusterState::read(profile, cluster_id).ok().flatten();
    let mut settings = known.as_ref().map(|state| state.engine_settings.clone()).unwrap_or_default();
    settings.extend(options.settings);
    let mut config = Config::load_with(profile, &settings)?;
    let same = known.as_ref().and_then(|state| Some(state.engines.last()?.launcher.clone()));
    if let Some(launcher) = options.launcher.or(same) {
        config.launcher.engines = launcher;
    }
    config.engine.kind = options.engine_kind.unwrap_or(config.engine.kind);
    config.engine.python = options.python.or(config.engine.python);
    let launcher = launch::launcher(&config.launcher.engines, profile, &config)?;
    if !profile.exists() {
        return Err(super::not_running(profile, cluster_id));
    }
    let mut lock = Some(Lock::wait(profile, cluster_id).await?);
    let standing = ClusterStatus::of(profile, cluster_id);
    if !matches!(standing.condition, Condition::Running | Condition::Remote) {
        return Err(super::not_running(profile, cluster_id));
    }
    let spec = EngineSpec {
        settings,
        program: launch::program(&options.program)?,
        cwd: launch::directory(&options.cwd)?,
        log_level: options.log_level,
        config,
    };
    spec.check_room(options.n)?;
    if let Some(warning) = spec.check(launcher.as_ref())? {
        progress(StartProgress::Note(warning));
    }
    // Its supervisor may be restarting it.
    let path = profile.client_file(cluster_id);
    let client_file = in_thread(move || discover::wait(&path, CONNECT_TIMEOUT, || Ok::<_, ClusterError>(()))).await??;
    let client = Client::connect(&client_file, CONNECT_TIMEOUT).await?;
    let capabilities = launcher.capabilities();
    if capabilities.remote
        && !capabilities.provides_tunnel
        && spec.config.controller.engine_ssh.is_none()
        && let Some(keys) = &client_file.pcluster
        && keys.addresses.iter().all(|address| addresses::is_loopback(address))
    {
        return Err(ClusterError::Unreachable {
            launcher: launcher.name().into(),
            ip: keys.addresses.join(", "),
        });
    }
    let before = launch::connected_engines(&client.status().await?);

    // A manually started controller has no state file.
    let mut state = standing.state.unwrap_or_else(|| ClusterState::new(cluster_id, spec.cwd.clone()));
    if state.engines.is_empty() {
        state.engine_kind = spec.config.engine.kind.name().into();
    }
    progress(StartProgress::EnginesStarting { n: options.n });
    let mut record = Record::new(profile, cluster_id);
    let launch = spec.launch(profile, &state, options.n);
    let engines = launch::recorded(launcher.start_engines(&launch)?, launcher.as_ref(), &launch, &spec.config);
    let mut undo = Undo::new(Duration::from_millis(spec.config.launcher.kill_timeout_ms));
    undo.add(&launcher, &engines);
    let notes = engines.notes.iter().chain(&engines.problem);
    notes.for_each(|text| progress(StartProgress::Note(text.clone())));
    state.n += options.n;
    state.next_engine += options.n;
    state.engines.push(engines.clone());
    record.added(&engines);
    walltime_restart::ensure(profile, &mut state, &spec.program)?;
    state.write(profile)?;
    jobs::report(&client, jobs::submitted_by(&engines)).await;
    lock.take_if(|_| capabilities.remote);
    let new = match engines.problem.is_empty() {
        true => options.n as usize,
        false => engines.engines(),
    };
    let expected = before + new;
    let enough = match options.wait {
        Wait::None => 0,
        wait => before + wait.of(new),
    };
    let target = Target {
        all: expected,
        enough,
        at_least: launch::at_least(launcher.as_ref(), new).saturating_add(before).min(enough),
        timeout: Duration::from_millis(spec.config.launcher.engines_timeout_ms),
        total_timeout: options.timeout,
    };
    let new = Watched {
        launcher: launcher.clone(),
        launched: &engines,
    };
    match launch::registered(&client, target, new, None, progress).await {
        Err(mut late @ ClusterError::EnginesLate { .. }) if capabilities.remote => {
            if let ClusterError::EnginesLate { options, .. } = &mut late {
                *options = Some(super::options_of(profile, cluster_id));
            }
            undo.disarm();
            record.disarm();
            launch::release(profile, cluster_id).await;
            return Err(late);
        }
        done => done?,
    };
    undo.disarm();
    record.disarm();
    if lock.is_none() {
        launch::release(profile, cluster_id).await;
    }
    drop(lock);
    Ok(expected as u32)
}
