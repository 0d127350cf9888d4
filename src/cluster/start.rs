//! Starts a cluster: prepares, launches the controller, adopts or launches engines, and waits until they have registered.
use super::allocator::{self, record::ElasticCluster};
use super::elastic::settings::ElasticSettings;
use super::launch::{self, CONNECT_TIMEOUT, EngineSpec, Target, Undo, Watched};
use super::lock::Lock;
use super::{ClusterError, ClusterState, StartProgress, Wait, adopt, in_thread, jobs, stop, walltime_restart};
use crate::client::Client;
use crate::connection::{ConnectionError, ConnectionFile, addresses, discover};
use crate::launchers::{ControllerLaunch, Launched, Launcher, MemberState, Stage, launched};
use crate::model::engine::EngineStatus;
use crate::profile::ProfileDir;
use crate::profile::config::{Config, EngineKind};
use crate::profile::dir::check_cluster_id;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The poll interval for the state of a controller's job.
const JOB_POLL_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub(crate) struct StartOptions {
    pub profile: ProfileDir,
    pub cluster_id: String,
    /// Number of engines; default: from the configuration, else one per processor.
    pub n: Option<u32>,
    /// `--set`: overrides the profile's configuration, and is overridden by the options below.
    pub settings: Vec<(String, String)>,
    /// The engines' launcher.
    pub launcher: Option<String>,
    /// The controller's launcher.
    pub controller_launcher: Option<String>,
    /// The number of engines to wait for.
    pub wait: Wait,
    /// The total timeout, including time in a queue.
    pub timeout: Option<Duration>,
    pub engine_kind: Option<EngineKind>,
    pub python: Option<String>,
    /// The working directory of controller and engines; default: the current one.
    pub cwd: Option<PathBuf>,
    /// For controller and engines.
    pub log_level: Option<String>,
    /// The pcluster program; default: this one.
    pub program: Option<PathBuf>,
}

impl StartOptions {
    /// Everything as configured in the profile.
    pub(crate) fn new(profile: ProfileDir, cluster_id: &str) -> StartOptions {
        StartOptions {
            profile,
            cluster_id: cluster_id.into(),
            n: None,
            settings: Vec::new(),
            launcher: None,
            controller_launcher: None,
            wait: Wait::All,
            timeout: None,
            engine_kind: None,
            python: None,
            cwd: None,
            log_level: None,
            program: None,
        }
    }

    /// The configuration with all overrides.
    fn config(&self) -> Result<Config, ClusterError> {
        let mut config = Config::load_with(&self.profile, &self.settings)?;
        if let Some(launcher) = &self.launcher {
            config.launcher.engines = launcher.clone();
        }
        if let Some(launcher) = &self.controller_launcher {
            config.launcher.controller = launcher.clone();
        }
        if let Some(kind) = self.engine_kind {
            config.engine.kind = kind;
        }
        if self.python.is_some() {
            config.engine.python = self.python.clone();
        }
        Ok(config)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct StartReport {
    pub profile: ProfileDir,
    pub cluster_id: String,
    pub controller_pid: u32,
    /// `slurm job 4710`, for a controller of a batch system.
    pub controller_job: Option<String>,
    /// Registered engines, and the expected number.
    pub engines: u32,
    pub n: u32,
    /// Engines that cannot run Python, with the reason.
    pub unavailable: Vec<EngineStatus>,
    /// `slurm job 4711`, for engines of a batch system.
    pub job: Option<String>,
    /// If the work decides how many engines there are.
    pub elastic: Option<ElasticSettings>,
    pub client_file: PathBuf,
    pub controller_log: PathBuf,
    pub took: Duration,
}

/// Starts a cluster and returns when the engines have registered. If anything fails, or the future is dropped, everything that
/// was started is stopped.
pub(crate) async fn start(options: StartOptions, progress: &mut dyn FnMut(StartProgress)) -> Result<StartReport, ClusterError> {
    let begin = Instant::now();
    let (profile, cluster_id) = (&options.profile, options.cluster_id.as_str());
    let plan = Plan::prepare(&options, progress)?;
    profile.create()?;
    let mut lock = Some(Lock::wait(profile, cluster_id).await?);
    let leftovers = adopt::check_not_running(profile, cluster_id, progress).await?;
    // Engines of a dead cluster that are still alive are not started again.
    let alive: usize = leftovers.state.iter().flat_map(|state| &state.engines).map(Launched::engines).sum();
    plan.spec.check_room(plan.max_engines().saturating_sub(alive as u32))?;

    let mut state = ClusterState::new(cluster_id, plan.spec.cwd.clone());
    state.engine_kind = plan.spec.config.engine.kind.name().into();
    state.engine_settings = options.settings.clone();
    state.elastic = plan.elastic.clone();
    // Dropped in reverse order: processes first.
    let mut files = Files {
        profile,
        cluster_id,
        before: leftovers.state.clone(),
        started: state.started,
        armed: true,
    };
    let mut undo = Undo::new(plan.kill_timeout());

    let controller = plan.launch_controller(&mut state, &mut undo, progress)?;
    let (client_file, engine_file) = plan.await_controller(&controller, progress).await?;
    let controller_pid = client_file.pcluster.as_ref().map_or(0, |keys| keys.process.pid);
    let client = Client::connect(&client_file, CONNECT_TIMEOUT).await?;
    progress(StartProgress::ControllerReady { pid: controller_pid });

    let adopted = leftovers.adopt(profile, &plan.spec, &engine_file, progress).await?;
    files.before = None;
    leftovers.hand_over(&mut state, adopted, plan.kill_timeout()).await?;
    let alive: usize = state.engines.iter().map(Launched::engines).sum();
    let engines = plan.launch_engines(&mut state, alive, &mut undo, progress)?;
    jobs::report(&client, jobs::submitted(&state)).await;
    // Do not hold the lock while engines wait in a queue: the state file records them.
    lock.take_if(|_| plan.engines.capabilities().remote || plan.elastic.is_some());

    let launched = match engines.problem.is_empty() {
        true => (plan.n as usize).max(alive),
        false => alive + engines.engines(),
    };
    let (new, watched) = (Watched::new(&plan.engines, &engines), Watched::new(&plan.controllers, &controller));
    let (job, controller_job) = (new.job(), watched.job());
    let registered = match plan.await_engines(&client, launched, alive, new, watched, progress).await {
        // Engines in a queue are not a failure.
        Err(mut late @ ClusterError::EnginesLate { .. }) if plan.engines.capabilities().remote => {
            if let ClusterError::EnginesLate { options, .. } = &mut late {
                *options = Some(super::options_of(profile, cluster_id));
            }
            undo.disarm();
            files.armed = false;
            launch::release(profile, cluster_id).await;
            return Err(late);
        }
        done => done?,
    };

    let status = client.status().await.map(|status| status.engines).unwrap_or_default();
    let unavailable = status.into_iter().filter(|engine| engine.reason.is_some()).collect();
    undo.disarm();
    files.armed = false;
    if lock.is_none() {
        launch::release(profile, cluster_id).await;
    }
    drop(lock);
    Ok(StartReport {
        profile: profile.clone(),
        cluster_id: cluster_id.into(),
        controller_pid,
        controller_job,
        engines: registered as u32,
        n: launched as u32,
        unavailable,
        job,
        elastic: plan.elastic.map(|elastic| elastic.settings),
        client_file: profile.client_file(cluster_id),
        controller_log: controller.members().first().map(|m| m.log.clone()).unwrap_or_default(),
        took: begin.elapsed(),
    })
}

/// A validated start.
struct Plan<'a> {
    options: &'a StartOptions,
    spec: EngineSpec,
    controllers: Arc<dyn Launcher>,
    engines: Arc<dyn Launcher>,
    /// The number of engines to start at once: none if the work decides.
    n: u32,
    elastic: Option<ElasticCluster>,
}

impl Plan<'_> {
    /// Checks options, configuration and Python before anything is created.
    fn prepare<'a>(options: &'a StartOptions, progress: &mut dyn FnMut(StartProgress)) -> Result<Plan<'a>, ClusterError> {
        check_cluster_id(&options.cluster_id)?;
        let config = options.config()?;
        let controllers = launch::launcher(&config.launcher.controller, &options.profile, &config)?;
        let engines = launch::launcher(&config.launcher.engines, &options.profile, &config)?;
        let mut settings = options.settings.clone();
        let n = options
            .n
            .or_else(|| engines.remote_hosts()?.capacity())
            .or(config.launcher.n)
            .unwrap_or_else(processors);
        let remote = [(&controllers, &config.launcher.controller), (&engines, &config.launcher.engines)];
        if let Some((_, name)) = remote.into_iter().find(|(launcher, _)| launcher.capabilities().remote) {
            let is_local = !controllers.capabilities().remote;
            let capabilities = engines.capabilities();
            if !(is_local && capabilities.tunnel_only) {
                let has_tunnel = (is_local && capabilities.provides_tunnel) || config.controller.engine_ssh.is_some();
                listen_on_all(&mut settings, name, has_tunnel, &config)?;
            }
        }
        let spec = EngineSpec {
            settings,
            program: launch::program(&options.program)?,
            cwd: launch::directory(&options.cwd)?,
            log_level: options.log_level.clone(),
            config,
        };
        let elastic = match options.n {
            None => allocator::settings::of_config(&spec, engines.as_ref())?,
            Some(_) => None,
        };
        if (n > 0 || elastic.is_some())
            && let Some(warning) = spec.check(engines.as_ref())?
        {
            progress(StartProgress::Note(warning));
        }
        Ok(Plan {
            options,
            spec,
            controllers,
            engines,
            n: if elastic.is_some() { 0 } else { n },
            elastic,
        })
    }

    fn max_engines(&self) -> u32 {
        let shapes = self.elastic.iter().flat_map(|elastic| &elastic.settings.shapes);
        self.n.max(shapes.map(|shape| shape.max).sum())
    }

    fn kill_timeout(&self) -> Duration {
        Duration::from_millis(self.spec.config.launcher.kill_timeout_ms)
    }

    /// Starts the controller and records it.
    fn launch_controller(
        &self,
        state: &mut ClusterState,
        undo: &mut Undo,
        progress: &mut dyn FnMut(StartProgress),
    ) -> Result<Launched, ClusterError> {
        let (profile, cluster_id) = (&self.options.profile, self.options.cluster_id.as_str());
        progress(StartProgress::ControllerStarting);
        if self.controllers.capabilities().remote {
            // For a controller on another host, stale files cannot be detected.
            for path in [profile.client_file(cluster_id), profile.engine_file(cluster_id)] {
                let _ = std::fs::remove_file(path);
            }
        }
        let controller = self.controllers.start_controller(&ControllerLaunch {
            program: self.spec.program.clone(),
            profile: profile.clone(),
            cluster_id: cluster_id.into(),
            settings: self.spec.settings.clone(),
            cwd: self.spec.cwd.clone(),
            log_level: self.options.log_level.clone(),
        })?;
        undo.add(&self.controllers, &controller);
        state.controller = Some(controller.clone());
        state.write(profile)?;
        Ok(controller)
    }

    /// Waits for the client and engine files of the new controller.
    async fn await_controller(
        &self,
        controller: &Launched,
        progress: &mut dyn FnMut(StartProgress),
    ) -> Result<(ConnectionFile, ConnectionFile), ClusterError> {
        let timeout = Duration::from_millis(self.spec.config.launcher.controller_timeout_ms);
        let (profile, cluster_id) = (&self.options.profile, self.options.cluster_id.as_str());
        await_connection_files(profile, cluster_id, &self.controllers, controller, timeout, progress).await
    }

    /// Starts the engines that are missing beside those that are alive, and the walltime monitor, and records them. Not in a thread: started
    /// processes must be in `undo` before the future of the start can be dropped.
    fn launch_engines(
        &self,
        state: &mut ClusterState,
        alive: usize,
        undo: &mut Undo,
        progress: &mut dyn FnMut(StartProgress),
    ) -> Result<Launched, ClusterError> {
        let profile = &self.options.profile;
        let missing = self.n.saturating_sub(alive as u32);
        if missing > 0 {
            progress(StartProgress::EnginesStarting { n: missing });
        }
        let launch = self.spec.launch(profile, state, missing);
        let engines = launch::recorded(
            self.engines.start_engines(&launch)?,
            self.engines.as_ref(),
            &launch,
            &self.spec.config,
        );
        undo.add(&self.engines, &engines);
        let notes = engines.notes.iter().chain(&engines.problem);
        notes.for_each(|text| progress(StartProgress::Note(text.clone())));
        state.n = self.n;
        state.next_engine += missing;
        if missing > 0 {
            state.engines.push(engines.clone());
        }
        if walltime_restart::ensure(profile, state, &self.spec.program)?
            && let Some(monitor) = &state.walltime_monitor
        {
            undo.add(&launch::launcher("local", profile, &self.spec.config)?, &monitor.launched());
        }
        state.write(profile)?;
        Ok(engines)
    }

    /// Waits until enough of the `launched` engines have registered, and returns their number.
    async fn await_engines(
        &self,
        client: &Client,
        launched: usize,
        alive: usize,
        new: Watched<'_>,
        controller: Watched<'_>,
        progress: &mut dyn FnMut(StartProgress),
    ) -> Result<usize, ClusterError> {
        let enough = self.options.wait.of(launched);
        let target = Target {
            all: launched,
            enough,
            at_least: launch::at_least(self.engines.as_ref(), enough),
            timeout: Duration::from_millis(self.spec.config.launcher.engines_timeout_ms),
            total_timeout: self.options.timeout,
        };
        match launch::registered(client, target, new, Some(controller), progress).await {
            // A missing earlier engine must not stop a controller to which others have reconnected.
            Err(ClusterError::EnginesLate {
                registered, n, seconds, ..
            }) if alive > 0 && registered + alive >= n => {
                progress(StartProgress::Note(format!(
                    "{registered} of {n} engines registered within {seconds:.0} s; earlier engines may still reconnect"
                )));
                Ok(registered)
            }
            done => done,
        }
    }
}

/// Makes the controller listen on all interfaces for engines on other hosts, unless they have a tunnel.
fn listen_on_all(settings: &mut Vec<(String, String)>, launcher: &str, has_tunnel: bool, config: &Config) -> Result<(), ClusterError> {
    let ip = addresses::of_interface(&config.controller.ip);
    if !addresses::is_loopback(&ip) {
        return Ok(());
    }
    if settings.iter().any(|(key, _)| key == "controller.ip") {
        if has_tunnel {
            return Ok(());
        }
        return Err(ClusterError::Unreachable {
            launcher: launcher.into(),
            ip,
        });
    }
    settings.push(("controller.ip".into(), "\"0.0.0.0\"".into()));
    Ok(())
}

fn processors() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
}

/// Removes the state and connection files of a failed start. Dropped after the processes have been stopped.
struct Files<'a> {
    profile: &'a ProfileDir,
    cluster_id: &'a str,
    /// The previous record, while its engines may still be running.
    before: Option<ClusterState>,
    /// Start time of this cluster.
    started: f64,
    armed: bool,
}

impl Drop for Files<'_> {
    fn drop(&mut self) {
        let is_ours = || match ClusterState::read(self.profile, self.cluster_id) {
            Ok(Some(state)) => state.started == self.started,
            _ => true,
        };
        match &self.before {
            _ if !self.armed || !is_ours() => {}
            None => stop::remove_files(self.profile, self.cluster_id),
            Some(before) => {
                if let Err(e) = before.write(self.profile) {
                    tracing::warn!("{e}");
                }
            }
        }
    }
}

/// Waits for the new controller to write its files; time in a queue does not count.
async fn await_connection_files(
    profile: &ProfileDir,
    cluster_id: &str,
    launcher: &Arc<dyn Launcher>,
    controller: &Launched,
    timeout: Duration,
    progress: &mut dyn FnMut(StartProgress),
) -> Result<(ConnectionFile, ConnectionFile), ClusterError> {
    if !launcher.capabilities().has_cached_state {
        return connection_files(profile, cluster_id, launcher, controller, timeout).await;
    }
    let members = controller.members();
    let mut deadline = Instant::now() + timeout;
    loop {
        let late = match connection_files(profile, cluster_id, launcher, controller, JOB_POLL_INTERVAL).await {
            Err(error @ ClusterError::ControllerSilent { .. }) => error,
            done => return done,
        };
        let (asked, launched) = (launcher.clone(), controller.clone());
        let states = in_thread(move || asked.states(&launched)).await?;
        progress(StartProgress::ControllerWaits {
            job: launcher.describe(controller),
            state: launched::summarize(&members, &states),
        });
        if states.iter().any(|state| state.stage != Stage::Running) {
            deadline = Instant::now() + timeout;
        } else if Instant::now() >= deadline {
            return Err(late);
        }
    }
}

/// Waits for the client and engine files of the new controller.
async fn connection_files(
    profile: &ProfileDir,
    cluster_id: &str,
    launcher: &Arc<dyn Launcher>,
    controller: &Launched,
    timeout: Duration,
) -> Result<(ConnectionFile, ConnectionFile), ClusterError> {
    let cancelled = Arc::new(AtomicBool::new(false));
    let _cancel = CancelOnDrop(cancelled.clone());
    let paths = [profile.client_file(cluster_id), profile.engine_file(cluster_id)];
    let (launcher, controller) = (launcher.clone(), controller.clone());
    in_thread(move || {
        let watched = Watched {
            launcher,
            launched: &controller,
        };
        let wait = |path: &Path| {
            let go_on = || {
                let states = watched.launcher.states(watched.launched);
                match states.iter().position(MemberState::has_ended) {
                    Some(place) => Err(launch::controller_ended(&watched, place, states[place].word())),
                    None if cancelled.load(Ordering::Relaxed) => Err(ClusterError::Internal("cancelled".into())),
                    None => Ok(()),
                }
            };
            discover::wait(path, timeout, go_on).map_err(|e| match e {
                ClusterError::Connection(ConnectionError::TimedOut { .. }) => launch::controller_silent(&watched, timeout),
                other => other,
            })
        };
        let [client, engine] = &paths;
        Ok((wait(client)?, wait(engine)?))
    })
    .await?
}

/// Stops the waiting thread when its future is dropped.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
