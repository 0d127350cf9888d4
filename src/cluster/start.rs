//! Starting a cluster: a controller, its connection files, its engines, until all of these are registered.
use super::launch::{self, EngineWish, Goal, Undo, Watched};
use super::list::{Condition, Standing};
use super::lock::Lock;
use super::{ClusterError, ClusterState, jobs, keep, list, stop};
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

/// How long one tries to reach a controller that has just written its files, or that may be on another host.
const CONNECT: Duration = Duration::from_secs(10);
/// How often one looks what a controller's job is doing.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct StartOptions {
    pub profile: ProfileDir,
    pub cluster_id: String,
    /// How many engines; by default what the configuration says, else one for each processor.
    pub n: Option<u32>,
    /// `--set`; they outrank the profile's configuration, and are outranked by the options below.
    pub settings: Vec<(String, String)>,
    /// What starts the engines.
    pub launcher: Option<String>,
    /// What starts the controller.
    pub controller_launcher: Option<String>,
    /// How many engines are waited for.
    pub wait: Wait,
    /// How long that may take in all, the time in a queue included.
    pub timeout: Option<Duration>,
    pub engine_kind: Option<EngineKind>,
    pub python: Option<String>,
    /// The directory that controller and engines start in; by default this one.
    pub cwd: Option<PathBuf>,
    /// For controller and engines.
    pub log_level: Option<String>,
    /// The pcluster program; by default this one.
    pub program: Option<PathBuf>,
}

impl StartOptions {
    /// All as the profile's configuration has it.
    pub fn new(profile: ProfileDir, cluster_id: &str) -> StartOptions {
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

    /// The configuration with everything that outranks it.
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

/// How many engines `start` waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    #[default]
    All,
    None,
    Some(u32),
}

impl Wait {
    pub(super) fn of(self, all: usize) -> usize {
        match self {
            Wait::All => all,
            Wait::None => 0,
            Wait::Some(n) => all.min(n as usize),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartProgress {
    /// Something that people should know: leftovers that were cleared away, a warning.
    Note(String),
    ControllerStarting,
    /// In a batch system's queue.
    ControllerWaits {
        job: String,
        /// `1 queued: Resources`; empty where it is known no more than that it was submitted.
        state: String,
    },
    ControllerReady {
        pid: u32,
    },
    EnginesStarting {
        n: u32,
    },
    Engines {
        registered: u32,
        n: u32,
        /// `slurm job 4711`, where a batch system has them.
        job: Option<String>,
        /// `3 queued: Resources`
        left: String,
    },
}

#[derive(Clone, Debug)]
pub struct Started {
    pub profile: ProfileDir,
    pub cluster_id: String,
    pub controller_pid: u32,
    /// `slurm job 4710`, where a batch system has the controller.
    pub controller_job: Option<String>,
    /// How many engines are registered, and how many there are to be.
    pub engines: u32,
    pub n: u32,
    /// Those of them that cannot run Python, with the reason.
    pub unavailable: Vec<EngineStatus>,
    /// `slurm job 4711`, where a batch system has the engines.
    pub job: Option<String>,
    pub client_file: PathBuf,
    pub controller_log: PathBuf,
    pub took: Duration,
}

/// Starts a cluster and returns when all engines are registered. If anything fails, or the future is dropped, what was
/// started is ended again.
pub async fn start(options: StartOptions, progress: &mut dyn FnMut(StartProgress)) -> Result<Started, ClusterError> {
    let begin = Instant::now();
    let (profile, cluster_id) = (&options.profile, options.cluster_id.as_str());
    check_cluster_id(cluster_id)?;
    let config = options.config()?;
    let controllers = launch::launcher(&config.launcher.controller, profile, &config)?;
    let engine_launcher = launch::launcher(&config.launcher.engines, profile, &config)?;
    let mut settings = options.settings.clone();
    let n = options
        .n
        .or_else(|| engine_launcher.remote_hosts()?.capacity())
        .or(config.launcher.n)
        .unwrap_or_else(processors);
    let elsewhere = [
        (&controllers, &config.launcher.controller),
        (&engine_launcher, &config.launcher.engines),
    ];
    if let Some((_, name)) = elsewhere.into_iter().find(|(launcher, _)| launcher.capabilities().remote) {
        let is_local = !controllers.capabilities().remote;
        let engines = engine_launcher.capabilities();
        if !(is_local && engines.tunnel_only) {
            let has_tunnel = (is_local && engines.provides_tunnel) || config.controller.engine_ssh.is_some();
            listen_for_others(&mut settings, name, has_tunnel, &config)?;
        }
    }
    let wish = EngineWish {
        settings,
        program: launch::program(&options.program)?,
        cwd: launch::directory(&options.cwd)?,
        log_level: options.log_level.clone(),
        config,
    };
    if n > 0
        && let Some(warning) = wish.check(engine_launcher.as_ref())?
    {
        progress(StartProgress::Note(warning));
    }
    profile.create()?;
    let mut lock = Some(Lock::wait(profile, cluster_id).await?);
    let leftovers = refuse_running(profile, cluster_id, progress).await?;
    // Engines of a cluster before that live on are not started again.
    let kept = leftovers
        .state
        .iter()
        .flat_map(|state| &state.engines)
        .map(Launched::engines)
        .sum::<usize>();
    wish.check_room(n.saturating_sub(kept as u32))?;

    let mut state = ClusterState::new(cluster_id, wish.cwd.clone());
    state.engine_kind = kind_word(wish.config.engine.kind).into();
    state.engine_settings = options.settings.clone();
    // Dropped in the other order: processes first.
    let mut files = Files {
        profile,
        cluster_id,
        before: leftovers.state.clone(),
        started: state.started,
        armed: true,
    };
    let mut undo = Undo::new(Duration::from_millis(wish.config.launcher.kill_ms));

    progress(StartProgress::ControllerStarting);
    if controllers.capabilities().remote {
        // Of a controller on another host it cannot be seen whether it is the one that wrote them.
        for path in [profile.client_file(cluster_id), profile.engine_file(cluster_id)] {
            let _ = std::fs::remove_file(path);
        }
    }
    let controller = controllers.start_controller(&ControllerLaunch {
        program: wish.program.clone(),
        profile: profile.clone(),
        cluster_id: cluster_id.into(),
        settings: wish.settings.clone(),
        cwd: wish.cwd.clone(),
        log_level: options.log_level.clone(),
    })?;
    undo.add(&controllers, &controller);
    state.controller = Some(controller.clone());
    state.write(profile)?;
    let timeout = Duration::from_millis(wish.config.launcher.controller_timeout_ms);
    let (client_file, engine_file) = serving(profile, cluster_id, &controllers, &controller, timeout, progress).await?;
    let controller_pid = client_file.pcluster.as_ref().map_or(0, |keys| keys.process.pid);
    let client = Client::connect(&client_file, CONNECT).await?;
    progress(StartProgress::ControllerReady { pid: controller_pid });

    // Engines of a controller that came back with its keys and ports find it again; those of another never will.
    let kept = leftovers.settle(profile, &wish, &engine_file, progress).await?;
    files.before = None;
    if let Some(before) = &leftovers.state {
        // The new one has a keeper of its own.
        keep::end(before, Duration::from_millis(wish.config.launcher.kill_ms)).await?;
        if !kept.is_empty() {
            state.next_engine = before.next_engine;
        }
    }
    let alive: usize = kept.iter().map(Launched::engines).sum();
    state.engines = kept;
    let missing = n.saturating_sub(alive as u32);
    if missing > 0 {
        progress(StartProgress::EnginesStarting { n: missing });
    }
    // Not in a thread: what is started must be in `undo` before anybody can stop waiting.
    let launch = wish.launch(profile, &state, missing);
    let engines = launch::recorded(
        engine_launcher.start_engines(&launch)?,
        engine_launcher.as_ref(),
        &launch,
        &wish.config,
    );
    undo.add(&engine_launcher, &engines);
    let said = engines.notes.iter().chain(&engines.trouble);
    said.for_each(|text| progress(StartProgress::Note(text.clone())));
    state.n = n;
    state.next_engine += missing;
    if missing > 0 {
        state.engines.push(engines.clone());
    }
    if keep::ensure(profile, &mut state, &wish.program)?
        && let Some(keeper) = &state.keeper
    {
        undo.add(&launch::launcher("local", profile, &wish.config)?, &keeper.launched());
    }
    state.write(profile)?;
    jobs::tell(&client, jobs::submitted(&state)).await;
    // Others need not wait until a queue lets the engines go: the state file says what there is.
    lock.take_if(|_| engine_launcher.capabilities().remote);
    let expected = match engines.trouble.is_empty() {
        true => (n as usize).max(alive),
        false => alive + engines.engines(),
    };
    let enough = options.wait.of(expected);
    let goal = Goal {
        all: expected,
        enough,
        at_least: launch::at_least(engine_launcher.as_ref(), enough),
        timeout: Duration::from_millis(wish.config.launcher.engines_timeout_ms),
        at_most: options.timeout,
    };
    let new = Watched {
        launcher: engine_launcher.clone(),
        launched: &engines,
    };
    let watched = Watched {
        launcher: controllers,
        launched: &controller,
    };
    let controller_job = watched.job();
    let job = new.job();
    let registered = match launch::registered(&client, goal, new, Some(watched), progress).await {
        // One of before that is silent is no reason to end the controller that the others have found again.
        Err(ClusterError::EnginesLate {
            registered, n, seconds, ..
        }) if alive > 0 && registered + alive >= n => {
            progress(StartProgress::Note(format!(
                "{registered} of {n} engines registered within {seconds:.0} s; those of before may still come back"
            )));
            registered
        }
        // What waits in a queue is no failure.
        Err(mut late @ ClusterError::EnginesLate { .. }) if engine_launcher.capabilities().remote => {
            if let ClusterError::EnginesLate { options, .. } = &mut late {
                *options = Some(super::options_of(profile, cluster_id));
            }
            undo.all_went_well();
            files.armed = false;
            launch::no_longer_awaited(profile, cluster_id).await;
            return Err(late);
        }
        done => done?,
    };

    let status = client.status().await.map(|status| status.engines).unwrap_or_default();
    let unavailable = status.into_iter().filter(|engine| engine.reason.is_some()).collect();
    undo.all_went_well();
    files.armed = false;
    if lock.is_none() {
        launch::no_longer_awaited(profile, cluster_id).await;
    }
    drop(lock);
    Ok(Started {
        profile: profile.clone(),
        cluster_id: cluster_id.into(),
        controller_pid,
        controller_job,
        engines: registered as u32,
        n: expected as u32,
        unavailable,
        job,
        client_file: profile.client_file(cluster_id),
        controller_log: controller.members().first().map(|m| m.log.clone()).unwrap_or_default(),
        took: begin.elapsed(),
    })
}

/// Engines on other hosts do not reach a controller that listens on the loopback, unless a tunnel leads to it.
fn listen_for_others(settings: &mut Vec<(String, String)>, launcher: &str, has_tunnel: bool, config: &Config) -> Result<(), ClusterError> {
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

pub(super) fn kind_word(kind: EngineKind) -> &'static str {
    match kind {
        EngineKind::Pcluster => "pcluster",
        EngineKind::Ipengine => "ipengine",
    }
}

fn processors() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
}

pub(super) async fn in_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ClusterError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| ClusterError::Internal(e.to_string()))
}

/// The state and connection files of a start that did not work. Dropped after the processes have been ended.
struct Files<'a> {
    profile: &'a ProfileDir,
    cluster_id: &'a str,
    /// What was on record before, while engines of then may still run.
    before: Option<ClusterState>,
    /// When this cluster was started.
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

/// Fails if a controller runs under this name. Of one that is gone, says what it left.
async fn refuse_running(
    profile: &ProfileDir,
    cluster_id: &str,
    progress: &mut dyn FnMut(StartProgress),
) -> Result<Leftovers, ClusterError> {
    let standing = Standing::of(profile, cluster_id);
    let cluster = super::in_words(profile, cluster_id);
    let options = super::options_of(profile, cluster_id);
    match (standing.condition, &standing.controller) {
        (Condition::Connected, _) => Err(list::connected(profile, cluster_id)),
        (Condition::Running, controller) => Err(ClusterError::Running {
            cluster,
            options,
            controller: controller.clone(),
        }),
        (Condition::Elsewhere, Some(controller)) => {
            let answers = match &standing.connection {
                Some(file) => Client::connect(file, CONNECT).await.is_ok(),
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
                    why: standing.unseen.unwrap_or_default(),
                }
            })
        }
        (Condition::Foreign, _) => {
            let path = profile.client_file(cluster_id);
            if standing.connection.as_ref().is_some_and(stop::something_listens) {
                return Err(ClusterError::Foreign { cluster, options, path });
            }
            stop::remove_files(profile, cluster_id);
            progress(StartProgress::Note(format!(
                "removed {}: the controller that wrote it is gone",
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
                "the controller{who} of {cluster} is gone without having been stopped; starting a new one"
            )));
            let files = [profile.client_file(cluster_id), profile.engine_file(cluster_id)];
            let damaged: Vec<String> = files
                .iter()
                .filter_map(|path| Some(ConnectionFile::remove_damaged(path)?.to_string()))
                .collect();
            damaged
                .iter()
                .for_each(|what| progress(StartProgress::Note(format!("{what}; a new one is written"))));
            if let Some(trouble) = standing.trouble.as_ref().filter(|trouble| !damaged.contains(trouble)) {
                progress(StartProgress::Note(trouble.clone()));
            }
            Ok(Leftovers {
                engine_file: ConnectionFile::read(&profile.engine_file(cluster_id)).ok(),
                state: standing.state,
            })
        }
        _ => Ok(Leftovers::default()),
    }
}

/// Engines of a controller that is gone.
#[derive(Default)]
struct Leftovers {
    engine_file: Option<ConnectionFile>,
    state: Option<ClusterState>,
}

impl Leftovers {
    /// Keeps those that run, if the new controller is where the old one was or they find it elsewhere; else ends them.
    async fn settle(
        &self,
        profile: &ProfileDir,
        wish: &EngineWish,
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
            let launcher = launch::launcher(&launched.launcher, profile, &wish.config)?;
            let (asked, whole) = (launcher.clone(), launched.clone());
            let states = in_thread(move || asked.states(&whole)).await?;
            // What cannot be told of may still run.
            let launched = launched.only(|place| states.get(place).is_some_and(|state| !state.has_ended()));
            if launched.is_empty() {
                continue;
            }
            let n = launched.engines();
            let (engines, stay) = match n {
                1 => ("engine", "still runs and is kept"),
                _ => ("engines", "still run and are kept"),
            };
            if same_keys && (same_place || launched.follows) {
                progress(StartProgress::Note(format!("{n} {engines} of before {stay}")));
                let restarted = launcher.remote_hosts().map(|hosts| hosts.restart_tunnels(&launched, &wish.program));
                let notes = restarted.into_iter().flatten();
                notes.for_each(|text| progress(StartProgress::Note(text)));
                kept.push(launched);
                continue;
            }
            in_thread(move || launcher.stop(&launched, Duration::from_secs(5))).await??;
            progress(StartProgress::Note(format!("stopped {n} {engines} of before")));
        }
        Ok(kept)
    }
}

/// Waits for a controller just started to write its files; time in a queue does not count.
async fn serving(
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
        let late = match connection_files(profile, cluster_id, launcher, controller, LOOK_AGAIN).await {
            Err(error @ ClusterError::ControllerSilent { .. }) => error,
            done => return done,
        };
        let (asked, launched) = (launcher.clone(), controller.clone());
        let states = in_thread(move || asked.states(&launched)).await?;
        progress(StartProgress::ControllerWaits {
            job: launcher.describe(controller),
            state: launched::in_words(&members, &states),
        });
        if states.iter().any(|state| state.stage != Stage::Running) {
            deadline = Instant::now() + timeout;
        } else if Instant::now() >= deadline {
            return Err(late);
        }
    }
}

/// Waits for the files of a controller just started: the client's and the engines'.
async fn connection_files(
    profile: &ProfileDir,
    cluster_id: &str,
    launcher: &Arc<dyn Launcher>,
    controller: &Launched,
    timeout: Duration,
) -> Result<(ConnectionFile, ConnectionFile), ClusterError> {
    let given_up = Arc::new(AtomicBool::new(false));
    let _gives_up = GivesUp(given_up.clone());
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
                    Some(place) => Err(launch::controller_ended(&watched, place, &states[place].word)),
                    None if given_up.load(Ordering::Relaxed) => Err(ClusterError::Internal("given up".into())),
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

/// Ends the waiting thread when its future is dropped.
struct GivesUp(Arc<AtomicBool>);

impl Drop for GivesUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
