//! What starting a cluster and adding engines to one share: engines started and waited for, and all undone that was
//! started in vain.
use super::start::StartProgress;
use super::{ClusterError, ClusterState, logs};
use crate::client::{Client, StatusReply};
use crate::launchers::{self, EnginesLaunch, LaunchError, Launched, Launcher, Process};
use crate::profile::ProfileDir;
use crate::profile::config::{Config, EngineKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the controller is asked who has registered.
const ASK_EVERY: Duration = Duration::from_millis(40);
/// An answer that takes longer is not waited for before one looks whether anything has died.
const ANSWER: Duration = Duration::from_secs(3);
/// How much of a log an error shows.
const LINES: usize = 12;

pub(super) fn launcher(name: &str) -> Result<Arc<dyn Launcher>, LaunchError> {
    Ok(Arc::from(launchers::by_name(name)?))
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
    pub fn check(&self) -> Result<Option<String>, ClusterError> {
        let engine = &self.config.engine;
        if engine.kind == EngineKind::Ipengine && engine.ipengine.is_some() {
            return Ok(None);
        }
        let python = launchers::python::resolve(engine.python.as_deref());
        let checked = launchers::python::check(&python);
        match (checked, engine.kind) {
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

/// Waits until `expected` engines in all are registered. Of the engines in `new`, one that ends before is an error, as is the end of
/// the controller.
pub(super) async fn registered(
    client: &Client,
    expected: usize,
    new: &Watched<'_>,
    controller: Option<&Watched<'_>>,
    timeout: Duration,
    progress: &mut dyn FnMut(StartProgress),
) -> Result<(), ClusterError> {
    let deadline = Instant::now() + timeout;
    let n = expected as u32;
    let mut last = None;
    loop {
        let answer = tokio::time::timeout(ANSWER, client.status()).await;
        let registered = match answer {
            Ok(status) => heard_of(&status?),
            Err(_) => last.unwrap_or(0),
        };
        if last != Some(registered) {
            last = Some(registered);
            progress(StartProgress::Engines {
                registered: registered as u32,
                n,
            });
        }
        if registered >= expected {
            return Ok(());
        }
        if let Some(controller) = controller
            && let Some((_, process)) = controller.first_ended()
        {
            return Err(controller_ended(&*controller.launcher, process));
        }
        if let Some((ended, process)) = new.first_ended() {
            return Err(ClusterError::EnginesEnded {
                ended,
                n: new.launched.processes.len(),
                ending: ending(&*new.launcher, process),
                log: process.log.clone(),
                tail: logs::tail(process, LINES),
            });
        }
        if Instant::now() >= deadline {
            // A log to begin with; which engine is missing is not known.
            let (log, tail) = match new.launched.processes.last() {
                Some(process) => (process.log.clone(), logs::tail(process, LINES)),
                None => Default::default(),
            };
            let seconds = timeout.as_secs_f64();
            return Err(ClusterError::EnginesLate {
                registered,
                n: expected,
                seconds,
                log,
                tail,
            });
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// How many engines are there. A controller that came back lists those of before too, which may be gone.
pub(super) fn heard_of(status: &StatusReply) -> usize {
    status.engines.iter().filter(|engine| engine.state != "silent").count()
}

/// Processes with who can tell of them.
pub(super) struct Watched<'a> {
    pub launcher: Arc<dyn Launcher>,
    pub launched: &'a Launched,
}

impl Watched<'_> {
    /// How many have ended, and the first of them.
    fn first_ended(&self) -> Option<(usize, &Process)> {
        let alive = self.launcher.alive(self.launched)?;
        let mut ended = self
            .launched
            .processes
            .iter()
            .zip(alive)
            .filter(|(_, alive)| !alive)
            .map(|(process, _)| process);
        let first = ended.next()?;
        Some((1 + ended.count(), first))
    }
}

pub(super) fn controller_ended(launcher: &dyn Launcher, process: &Process) -> ClusterError {
    ClusterError::ControllerEnded {
        ending: ending(launcher, process),
        log: process.log.clone(),
        tail: logs::tail(process, LINES),
    }
}

pub(super) fn controller_silent(process: &Process, timeout: Duration) -> ClusterError {
    ClusterError::ControllerSilent {
        seconds: timeout.as_secs_f64(),
        log: process.log.clone(),
        tail: logs::tail(process, LINES),
    }
}

fn ending(launcher: &dyn Launcher, process: &Process) -> String {
    launcher
        .ending(process)
        .unwrap_or_else(|| format!("process {} is gone", process.pid))
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
