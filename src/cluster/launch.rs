//! Shared by starting a cluster and adding engines: launches engines, waits for them, and reverts a failed launch.
use super::lock::Lock;
use super::{ClusterError, ClusterState, StartProgress, in_thread};
use crate::client::{Client, StatusReply};
use crate::connection::{ConnectionFile, discover};
use crate::launchers::{self, EnginesLaunch, LaunchError, Launched, Launcher, MemberState, Recipe, Stage, launched};
use crate::profile::ProfileDir;
use crate::profile::config::{Config, EngineKind};
use crate::sys::process::ProcessId;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The timeout for connecting to a controller that has just written its files, or may be on another host.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The poll interval for registered engines.
const POLL_INTERVAL: Duration = Duration::from_millis(40);
/// The time to wait for the controller's answer before checking whether a process died.
const ANSWER: Duration = Duration::from_secs(3);
/// Lines of a log shown in an error.
const LINES: usize = 12;

pub(super) fn launcher(name: &str, profile: &ProfileDir, config: &Config) -> Result<Arc<dyn Launcher>, LaunchError> {
    Ok(Arc::from(launchers::by_name(name, profile, config)?))
}

/// Connects to the running controller, which its supervisor may be restarting.
pub(super) async fn connect(profile: &ProfileDir, cluster_id: &str) -> Result<(ConnectionFile, Client), ClusterError> {
    let path = profile.client_file(cluster_id);
    let file = in_thread(move || discover::wait(&path, CONNECT_TIMEOUT, || Ok::<_, ClusterError>(()))).await??;
    let client = Client::connect(&file, CONNECT_TIMEOUT).await?;
    Ok((file, client))
}

/// This program, unless another is given.
pub(super) fn program(given: &Option<PathBuf>) -> Result<PathBuf, ClusterError> {
    match given {
        Some(program) => Ok(program.clone()),
        None => std::env::current_exe().map_err(ClusterError::NoProgram),
    }
}

pub(super) fn directory(given: &Option<PathBuf>) -> Result<PathBuf, ClusterError> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(ClusterError::NoDirectory);
    given
        .as_deref()
        .map_or_else(|| std::env::current_dir().map_err(ClusterError::NoDirectory), absolute)
}

/// The specification of engines, from the configuration.
pub(super) struct EngineSpec {
    pub config: Config,
    pub settings: Vec<(String, String)>,
    pub program: PathBuf,
    pub cwd: PathBuf,
    pub log_level: Option<String>,
}

impl EngineSpec {
    /// Checks the configured Python. If none is configured, a missing Python is only a warning, which is returned: commands run
    /// without it.
    pub(super) fn check(&self, launcher: &dyn Launcher) -> Result<Option<String>, ClusterError> {
        if launcher.remote_hosts().is_some() {
            // Each host checks its own.
            return Ok(None);
        }
        let engine = &self.config.engine;
        if engine.kind == EngineKind::Ipengine && engine.ipengine.is_some() {
            return Ok(None);
        }
        let python = launchers::python::resolve(engine.python.as_deref());
        let checked = launchers::python::check(&python);
        match (checked, engine.kind) {
            // Ctrl-C ends this command, too.
            (Err(launchers::LaunchError::Interrupted { .. }), _) => Ok(None),
            (Ok(()), EngineKind::Pcluster) => Ok(None),
            (Ok(()), EngineKind::Ipengine) => Ok(launchers::python::check_ipyparallel(&python).map(|()| None)?),
            (Err(e), EngineKind::Pcluster) if engine.python.is_none() => {
                let hint = e.hint().unwrap_or_default();
                Ok(Some(format!("engines can run commands, but not Python functions: {e}; {hint}")))
            }
            (Err(e), _) => Err(e.into()),
        }
    }

    /// Checks that this host has room for this number of additional engines, if they start locally.
    pub(super) fn check_room(&self, n: u32) -> Result<(), ClusterError> {
        let is_here = self.config.launcher.engines == "local";
        if is_here && self.config.launcher.check_limits {
            launchers::capacity::HostLimits::this().check(n)?;
        }
        Ok(())
    }

    pub(super) fn launch(&self, profile: &ProfileDir, state: &ClusterState, n: u32) -> EnginesLaunch {
        EnginesLaunch {
            program: self.program.clone(),
            profile: profile.clone(),
            cluster_id: state.cluster_id.clone(),
            settings: self.settings.clone(),
            kind: self.config.engine.kind,
            n,
            first: state.next_engine,
            python: self.config.engine.python.clone(),
            ipengine: self.config.engine.ipengine.clone(),
            cwd: self.cwd.clone(),
            log_level: self.log_level.clone(),
            tag: None,
        }
    }
}

/// Adds what is needed to restart the same engines, and the process that waits for them.
pub(super) fn recorded(engines: Launched, launcher: &dyn Launcher, launch: &EnginesLaunch, config: &Config) -> Launched {
    let engines = Launched {
        // Those on remote hosts may have a copy of the file.
        follows: launch.kind == EngineKind::Pcluster && launcher.remote_hosts().is_none(),
        ..engines
    };
    if engines.jobs.is_empty() {
        return engines;
    }
    let mut launch = launch.clone();
    if launch.python.is_none() {
        // A restart may happen in another environment.
        let found = launchers::python::resolve(None);
        launch.python = Path::new(&found).is_absolute().then_some(found);
    }
    Launched {
        recipe: Some(Recipe::of(&launch, config.launcher.max_walltime_restarts)),
        awaited_by: Some(ProcessId::own()),
        ..engines
    }
}

/// Records that this process no longer reverts its launch. If that fails, its exit has the same effect.
pub(super) async fn release(profile: &ProfileDir, cluster_id: &str) {
    let noted = async {
        let _lock = Lock::wait(profile, cluster_id).await?;
        let Some(mut state) = ClusterState::read(profile, cluster_id)? else {
            return Ok(());
        };
        let own = ProcessId::own();
        for launched in &mut state.engines {
            launched.awaited_by.take_if(|by| *by == own);
        }
        state.write(profile)
    };
    let noted: Result<(), ClusterError> = noted.await;
    if let Err(error) = noted {
        tracing::debug!("{error}");
    }
}

/// The minimum number of engines for success if no more can register.
pub(super) fn at_least(launcher: &dyn Launcher, enough: usize) -> usize {
    let least = launcher.remote_hosts().and_then(|hosts| hosts.min_engines());
    least.map_or(enough, |least| enough.min(least as usize))
}

/// The number of engines to wait for, and the timeout.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// The final number of engines.
    pub all: usize,
    /// Stop waiting at this number.
    pub enough: usize,
    /// The minimum for success if no more can register.
    pub at_least: usize,
    /// The timeout after all have been started; time in a queue does not count.
    pub timeout: Duration,
    /// The total timeout.
    pub total_timeout: Option<Duration>,
}

/// Waits until enough engines have registered, and returns their number. Fails if the controller exits, or if too few of
/// the members in `new` are still running.
pub(super) async fn registered(
    client: &Client,
    target: Target,
    new: Watched<'_>,
    controller: Option<Watched<'_>>,
    progress: &mut dyn FnMut(StartProgress),
) -> Result<usize, ClusterError> {
    let begin = Instant::now();
    let mut deadline = begin + target.timeout;
    let members = new.launched.members();
    let (mut new, mut controller) = (Watcher::new(new), controller.map(Watcher::new));
    let mut enough = target.enough;
    let mut last: Option<(usize, String)> = None;
    loop {
        let answer = tokio::time::timeout(ANSWER, client.status()).await;
        let registered = match answer {
            Ok(status) => connected_engines(&status?),
            Err(_) => last.as_ref().map_or(0, |(registered, _)| *registered),
        };
        let left = launched::summarize(&members, &new.states);
        if last.as_ref().is_none_or(|(r, l)| (*r, l) != (registered, &left)) {
            progress(StartProgress::Engines {
                registered: registered as u32,
                n: target.all as u32,
                job: new.watched.job(),
                left: left.clone(),
            });
            last = Some((registered, left.clone()));
        }
        if registered >= enough {
            return Ok(registered);
        }
        if let Some(controller) = &mut controller
            && let Some((_, place)) = controller.first_ended().await?
        {
            return Err(controller_ended(&controller.watched, place, controller.word(place)));
        }
        if let Some((_, place)) = new.first_ended().await? {
            let of_ended = members.iter().zip(&new.states).filter(|(_, state)| state.has_ended());
            let ended: usize = of_ended.map(|(member, _)| member.engines as usize).sum();
            let coming = target.all.saturating_sub(ended);
            if coming < target.at_least {
                return Err(ClusterError::EnginesEnded {
                    ended,
                    n: new.watched.launched.engines(),
                    ending: new.watched.ending(place, new.word(place)),
                    log: new.watched.log(place),
                    tail: new.watched.tail(place),
                });
            }
            if coming < enough {
                let (ending, tail) = (new.watched.ending(place, new.word(place)), new.watched.tail(place));
                progress(StartProgress::Note(format!("{ended} engines exited; {ending}: {tail}")));
                enough = coming;
            }
        }
        // If a batch system does not answer, the engines may still be queued; hosts have no queue.
        let is_queue = !new.watched.launched.jobs.is_empty();
        if new.states.iter().any(|state| match state.stage {
            Stage::Queued | Stage::Suspended => true,
            Stage::Unknown => is_queue,
            Stage::Running | Stage::Ended => false,
        }) {
            deadline = Instant::now() + target.timeout;
        }
        if Instant::now() >= target.total_timeout.map_or(deadline, |time| deadline.min(begin + time)) {
            if registered >= target.at_least {
                return Ok(registered);
            }
            // Any log is a start; which engine is missing is unknown.
            let place = new.states.iter().rposition(|state| state.stage == Stage::Running);
            let place = place.unwrap_or(members.len().saturating_sub(1));
            return Err(ClusterError::EnginesLate {
                registered,
                n: target.all,
                seconds: begin.elapsed().as_secs_f64(),
                left,
                options: None,
                log: new.watched.log(place),
                tail: new.watched.tail(place),
            });
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The number of connected engines. A restarted controller also lists earlier engines, which may be dead.
pub(super) fn connected_engines(status: &StatusReply) -> usize {
    status.engines.iter().filter(|engine| engine.state.is_staying()).count()
}

/// A launch and its launcher.
#[derive(Clone)]
pub(super) struct Watched<'a> {
    pub launcher: Arc<dyn Launcher>,
    pub launched: &'a Launched,
}

impl<'a> Watched<'a> {
    pub(super) fn new(launcher: &Arc<dyn Launcher>, launched: &'a Launched) -> Watched<'a> {
        Watched {
            launcher: launcher.clone(),
            launched,
        }
    }
    /// `slurm job 4711`; None without a batch system.
    pub(super) fn job(&self) -> Option<String> {
        (!self.launched.jobs.is_empty()).then(|| self.launcher.describe(self.launched))
    }
    /// How the member at this position ended.
    fn ending(&self, place: usize, word: &str) -> String {
        let name = self.launched.members().get(place).map(|m| m.name.clone()).unwrap_or_default();
        match (word, self.launched.jobs.is_empty()) {
            ("", _) => format!("{name} exited"),
            (word, true) => word.to_string(),
            (word, false) => format!("{name}: {word}"),
        }
    }
    fn log(&self, place: usize) -> PathBuf {
        self.launched.members().get(place).map(|m| m.log.clone()).unwrap_or_default()
    }
    fn tail(&self, place: usize) -> String {
        self.launcher.log_tail(self.launched, place, LINES)
    }
}

/// Polls the states of members without blocking.
struct Watcher<'a> {
    watched: Watched<'a>,
    asked: Option<tokio::task::JoinHandle<Vec<MemberState>>>,
    states: Vec<MemberState>,
}

impl<'a> Watcher<'a> {
    fn new(watched: Watched<'a>) -> Watcher<'a> {
        Watcher {
            watched,
            asked: None,
            states: Vec::new(),
        }
    }

    /// The number of ended members, and the position of the first.
    async fn first_ended(&mut self) -> Result<Option<(usize, usize)>, ClusterError> {
        if let Some(answer) = self.asked.take_if(|asked| asked.is_finished()) {
            self.states = answer.await.map_err(|e| ClusterError::Internal(e.to_string()))?;
        }
        if self.asked.is_none() {
            let (launcher, launched) = (self.watched.launcher.clone(), self.watched.launched.clone());
            self.asked = Some(tokio::task::spawn_blocking(move || launcher.states(&launched)));
        }
        let mut ended = self.states.iter().enumerate().filter(|(_, state)| state.has_ended());
        let first = ended.next().map(|(place, _)| place);
        Ok(first.map(|place| (1 + ended.count(), place)))
    }

    fn word(&self, place: usize) -> &str {
        self.states.get(place).map_or("", MemberState::word)
    }
}

pub(super) fn controller_ended(controller: &Watched<'_>, place: usize, word: &str) -> ClusterError {
    ClusterError::ControllerEnded {
        ending: controller.ending(place, word),
        log: controller.log(place),
        tail: controller.tail(place),
    }
}

pub(super) fn controller_silent(controller: &Watched<'_>, timeout: Duration) -> ClusterError {
    ClusterError::ControllerSilent {
        seconds: timeout.as_secs_f64(),
        log: controller.log(0),
        tail: controller.tail(0),
    }
}

/// Removes engines from the record on drop unless disarmed, also if the future is dropped (Ctrl-C). Must be created before the
/// [`Undo`] that stops them, so that it is dropped after that.
pub(super) struct Record<'a> {
    profile: &'a ProfileDir,
    cluster_id: &'a str,
    added: Option<Launched>,
}

impl<'a> Record<'a> {
    pub(super) fn new(profile: &'a ProfileDir, cluster_id: &'a str) -> Record<'a> {
        Record {
            profile,
            cluster_id,
            added: None,
        }
    }
    /// The engines are now on record.
    pub(super) fn added(&mut self, launched: &Launched) {
        self.added = Some(launched.clone());
    }
    pub(super) fn disarm(mut self) {
        self.added = None;
    }

    fn revert(&self, added: &Launched) -> Result<(), ClusterError> {
        let Some(mut state) = ClusterState::read(self.profile, self.cluster_id)? else {
            return Ok(());
        };
        let before = state.engines.len();
        state
            .engines
            .retain(|launched| launched.jobs != added.jobs || launched.processes != added.processes);
        if state.engines.len() < before {
            state.n = state.n.saturating_sub(added.engines() as u32);
            state.write(self.profile)?;
        }
        Ok(())
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        let Some(added) = self.added.take() else { return };
        if let Err(error) = self.revert(&added) {
            tracing::warn!("{error}");
        }
    }
}

/// Stops everything that was started on drop unless disarmed, also if the future is dropped (Ctrl-C).
pub(super) struct Undo {
    started: Vec<(Arc<dyn Launcher>, Launched)>,
    grace: Duration,
    armed: bool,
}

impl Undo {
    pub(super) fn new(grace: Duration) -> Undo {
        Undo {
            started: Vec::new(),
            grace,
            armed: true,
        }
    }
    pub(super) fn add(&mut self, launcher: &Arc<dyn Launcher>, launched: &Launched) {
        self.started.push((launcher.clone(), launched.clone()));
    }
    pub(super) fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        // In reverse order. Errors are only logged; the original error is reported.
        for (launcher, launched) in self.started.iter().rev() {
            if let Err(e) = launcher.stop(launched, self.grace) {
                tracing::warn!("cannot stop {}: {e}", launcher.describe(launched));
            }
        }
    }
}
