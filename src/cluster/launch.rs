//! What starting a cluster and adding engines to one share: engines started and waited for, and all undone that was
//! started in vain.
use super::lock::Lock;
use super::start::StartProgress;
use super::{ClusterError, ClusterState};
use crate::client::{Client, StatusReply};
use crate::launchers::{self, EnginesLaunch, LaunchError, Launched, Launcher, MemberState, Recipe, Stage, launched};
use crate::profile::ProfileDir;
use crate::profile::config::{Config, EngineKind};
use crate::sys::process::ProcessId;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the controller is asked who has registered.
const ASK_EVERY: Duration = Duration::from_millis(40);
/// An answer that takes longer is not waited for before one looks whether anything has died.
const ANSWER: Duration = Duration::from_secs(3);
/// How much of a log an error shows.
const LINES: usize = 12;

pub(super) fn launcher(name: &str, profile: &ProfileDir, config: &Config) -> Result<Arc<dyn Launcher>, LaunchError> {
    Ok(Arc::from(launchers::by_name(name, profile, config)?))
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

/// What engines are to be, from the configuration.
pub(super) struct EngineWish {
    pub config: Config,
    pub settings: Vec<(String, String)>,
    pub program: PathBuf,
    pub cwd: PathBuf,
    pub log_level: Option<String>,
}

impl EngineWish {
    /// Whether the Python that is asked for will do. Without one that is asked for, a missing one is no obstacle:
    /// commands run without. Says what is to be warned of.
    pub fn check(&self, launcher: &dyn Launcher) -> Result<Option<String>, ClusterError> {
        if launcher.remote_hosts().is_some() {
            // Each host is asked for its own.
            return Ok(None);
        }
        let engine = &self.config.engine;
        if engine.kind == EngineKind::Ipengine && engine.ipengine.is_some() {
            return Ok(None);
        }
        let python = launchers::python::resolve(engine.python.as_deref());
        let checked = launchers::python::check(&python);
        match (checked, engine.kind) {
            // By Ctrl-C, which ends this command, too.
            (Err(launchers::LaunchError::Interrupted { .. }), _) => Ok(None),
            (Ok(()), EngineKind::Pcluster) => Ok(None),
            (Ok(()), EngineKind::Ipengine) => Ok(launchers::python::check_ipyparallel(&python).map(|()| None)?),
            (Err(e), EngineKind::Pcluster) if engine.python.is_none() => {
                let hint = e.hint().unwrap_or_default();
                Ok(Some(format!("the engines will run commands, but no Python functions: {e}; {hint}")))
            }
            (Err(e), _) => Err(e.into()),
        }
    }

    pub fn launch(&self, profile: &ProfileDir, state: &ClusterState, n: u32) -> EnginesLaunch {
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
        }
    }
}

/// With what is to be known to start the same again, where that may be needed; and whose it is until its engines have come.
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
        // Who starts them again may do so from another environment.
        let found = launchers::python::resolve(None);
        launch.python = Path::new(&found).is_absolute().then_some(found);
    }
    Launched {
        recipe: Some(Recipe::of(&launch, config.launcher.max_walltime_restarts)),
        awaited_by: Some(ProcessId::own()),
        ..engines
    }
}

/// This process does not take back any more what it has launched. If it cannot be noted, it is when the process ends.
pub(super) async fn no_longer_awaited(profile: &ProfileDir, cluster_id: &str) {
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

/// With how many engines one is content if no more come.
pub(super) fn at_least(launcher: &dyn Launcher, enough: usize) -> usize {
    let least = launcher.remote_hosts().and_then(|hosts| hosts.min_engines());
    least.map_or(enough, |least| enough.min(least as usize))
}

/// How many engines are waited for, and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goal {
    /// How many there are to be in the end.
    pub all: usize,
    /// With so many one is content.
    pub enough: usize,
    /// With so many too, when no more are to come.
    pub at_least: usize,
    /// How long it may take from when they have all been started; the time in a queue does not count.
    pub timeout: Duration,
    /// How long it may take in all.
    pub at_most: Option<Duration>,
}

/// Waits until enough engines are registered; how many that are. Of the members in `new`, one whose end leaves too few is an
/// error, as is the end of the controller.
pub(super) async fn registered(
    client: &Client,
    goal: Goal,
    new: Watched<'_>,
    controller: Option<Watched<'_>>,
    progress: &mut dyn FnMut(StartProgress),
) -> Result<usize, ClusterError> {
    let begin = Instant::now();
    let mut deadline = begin + goal.timeout;
    let members = new.launched.members();
    let (mut new, mut controller) = (Watcher::new(new), controller.map(Watcher::new));
    let mut enough = goal.enough;
    let mut last: Option<(usize, String)> = None;
    loop {
        let answer = tokio::time::timeout(ANSWER, client.status()).await;
        let registered = match answer {
            Ok(status) => heard_of(&status?),
            Err(_) => last.as_ref().map_or(0, |(registered, _)| *registered),
        };
        let left = launched::in_words(&members, &new.states);
        if last.as_ref().is_none_or(|(r, l)| (*r, l) != (registered, &left)) {
            progress(StartProgress::Engines {
                registered: registered as u32,
                n: goal.all as u32,
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
            let coming = goal.all.saturating_sub(ended);
            if coming < goal.at_least {
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
                progress(StartProgress::Note(format!("{ended} of the engines have ended; {ending}: {tail}")));
                enough = coming;
            }
        }
        // A batch system that does not answer may still have them in its queue; a host that does not answer has no queue.
        let is_queue = !new.watched.launched.jobs.is_empty();
        if new.states.iter().any(|state| match state.stage {
            Stage::Queued | Stage::Suspended => true,
            Stage::Unknown => is_queue,
            Stage::Running | Stage::Ended => false,
        }) {
            deadline = Instant::now() + goal.timeout;
        }
        if Instant::now() >= goal.at_most.map_or(deadline, |time| deadline.min(begin + time)) {
            if registered >= goal.at_least {
                return Ok(registered);
            }
            // A log to begin with; which engine is missing is not known.
            let place = new.states.iter().rposition(|state| state.stage == Stage::Running);
            let place = place.unwrap_or(members.len().saturating_sub(1));
            return Err(ClusterError::EnginesLate {
                registered,
                n: goal.all,
                seconds: begin.elapsed().as_secs_f64(),
                left,
                options: None,
                log: new.watched.log(place),
                tail: new.watched.tail(place),
            });
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// How many engines are there. A controller that came back lists those of before too, which may be gone.
pub(super) fn heard_of(status: &StatusReply) -> usize {
    status
        .engines
        .iter()
        .filter(|engine| !matches!(engine.state.as_str(), "silent" | "leaving"))
        .count()
}

/// What was launched, with who can tell of it.
#[derive(Clone)]
pub(super) struct Watched<'a> {
    pub launcher: Arc<dyn Launcher>,
    pub launched: &'a Launched,
}

impl Watched<'_> {
    /// `slurm job 4711`; none where no batch system has it.
    pub fn job(&self) -> Option<String> {
        (!self.launched.jobs.is_empty()).then(|| self.launcher.describe(self.launched))
    }
    /// How the member at this place ended, in words.
    fn ending(&self, place: usize, word: &str) -> String {
        let name = self.launched.members().get(place).map(|m| m.name.clone()).unwrap_or_default();
        match (word, self.launched.jobs.is_empty()) {
            ("", _) => format!("{name} is gone"),
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

/// Asks for the members' states, without ever waiting for the answer.
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

    /// How many members have ended, and the place of the first of them.
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
        self.states.get(place).map_or("", |state| &state.word)
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

/// Takes engines off the record again that are ended, unless all went well: also when the caller stops waiting (Ctrl-C). To be made
/// before the [`Undo`] that ends them, so that it is dropped after that.
pub(super) struct Record<'a> {
    profile: &'a ProfileDir,
    cluster_id: &'a str,
    added: Option<Launched>,
}

impl<'a> Record<'a> {
    pub fn new(profile: &'a ProfileDir, cluster_id: &'a str) -> Record<'a> {
        Record {
            profile,
            cluster_id,
            added: None,
        }
    }
    /// From here on they are on record.
    pub fn added(&mut self, launched: &Launched) {
        self.added = Some(launched.clone());
    }
    pub fn all_went_well(mut self) {
        self.added = None;
    }

    fn take_back(&self, added: &Launched) -> Result<(), ClusterError> {
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
        if let Err(error) = self.take_back(&added) {
            tracing::warn!("{error}");
        }
    }
}

/// Ends what was started, unless all went well: also when the caller stops waiting (Ctrl-C).
pub(super) struct Undo {
    started: Vec<(Arc<dyn Launcher>, Launched)>,
    grace: Duration,
    armed: bool,
}

impl Undo {
    pub fn new(grace: Duration) -> Undo {
        Undo {
            started: Vec::new(),
            grace,
            armed: true,
        }
    }
    pub fn add(&mut self, launcher: &Arc<dyn Launcher>, launched: &Launched) {
        self.started.push((launcher.clone(), launched.clone()));
    }
    pub fn all_went_well(mut self) {
        self.armed = false;
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        // Last started, first ended. An error here has nobody to hear it; the one that led here is told.
        for (launcher, launched) in self.started.iter().rev() {
            if let Err(e) = launcher.stop(launched, self.grace) {
                tracing::warn!("cannot end {}: {e}", launcher.describe(launched));
            }
        }
    }
}
