//! Stopping a cluster: the controller is asked; what is still there gets SIGTERM, then SIGKILL. And clearing away what a
//! dead one left. Nothing is signalled but processes on record, told by process id and start time.
use super::list::{Condition, Standing};
use super::lock::Lock;
use super::start::in_thread;
use super::{ClusterError, ipyparallel_file, jobs, keep, launch};
use crate::client::Client;
use crate::connection::ConnectionFile;
use crate::launchers::{Ended, LaunchError, Launched, Launcher, Process};
use crate::model::job::JobRow;
use crate::profile::ProfileDir;
use crate::profile::config::Config;
use crate::ssh::tunnel::{self, TunnelState};
use crate::sys::lock::{self, Asked};
use crate::sys::process::ProcessId;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

const CONNECT: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopProgress {
    /// Something that people should know.
    Note(String),
    /// So many processes still run.
    Waiting { processes: usize },
}

/// What it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Stopped {
    /// The controller ran, and did as it was asked.
    pub asked: bool,
    /// The controller was gone already.
    pub was_dead: bool,
    /// How many engine processes ended.
    pub engines: usize,
    pub ended: Ended,
    /// The jobs of a batch system, as they ended.
    pub jobs: Vec<JobRow>,
}

/// What is to become of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Stop,
    /// Only what is dead; with force also what cannot be told of.
    Clean {
        force: bool,
    },
}

/// Ends a cluster and its files; its tasks' records stay. Works also when its controller is gone already. What is not gone in the end
/// is an error that names it, and stays on record.
pub async fn stop(profile: &ProfileDir, cluster_id: &str, progress: &mut dyn FnMut(StopProgress)) -> Result<Stopped, ClusterError> {
    end(profile, cluster_id, Purpose::Stop, progress).await
}

/// Removes what a dead cluster left: engines, files. Refuses a running one. With `force`, one that cannot be seen from here and does
/// not answer, or another controller's than pcluster's, counts as dead; what it may leave behind is named.
pub async fn clean(
    profile: &ProfileDir,
    cluster_id: &str,
    force: bool,
    progress: &mut dyn FnMut(StopProgress),
) -> Result<Stopped, ClusterError> {
    end(profile, cluster_id, Purpose::Clean { force }, progress).await
}

async fn end(
    profile: &ProfileDir,
    cluster_id: &str,
    purpose: Purpose,
    progress: &mut dyn FnMut(StopProgress),
) -> Result<Stopped, ClusterError> {
    if !profile.exists() {
        return Err(super::not_running(profile, cluster_id));
    }
    let _lock = Lock::wait(profile, cluster_id).await?;
    let standing = Standing::of(profile, cluster_id);
    let force = purpose == Purpose::Clean { force: true };
    refuse(&standing, profile, cluster_id, purpose).await?;
    if let Some(trouble) = &standing.trouble {
        progress(StopProgress::Note(trouble.clone()));
    }
    // Stopping must work with a broken configuration too.
    let config = Config::load(profile).unwrap_or_default();
    let (stop_for, kill_after) = (
        Duration::from_millis(config.launcher.stop_ms),
        Duration::from_millis(config.launcher.kill_ms),
    );
    // Nothing is replaced from here on.
    if let Some(state) = &standing.state {
        keep::end(state, kill_after).await?;
    }
    let launches = Launches::of(recorded(&standing), profile, &config);
    let (engines, mut rows) = Launches::of(standing.state.iter().flat_map(|s| s.engines.clone()), profile, &config)
        .count()
        .await?;
    let controller = standing.state.as_ref().and_then(|s| s.controller.as_ref());
    rows.extend(controller.into_iter().flat_map(jobs::submitted_by));

    let asked = match purpose {
        Purpose::Stop => ask_to_end(&standing, stop_for, profile, cluster_id, progress).await?,
        Purpose::Clean { .. } => false,
    };
    if asked {
        wait_for_end(&launches, &standing, stop_for, profile, cluster_id, progress).await?;
    }
    let (ended, remaining, hints) = launches.end(kill_after, force, progress).await?;
    let mut left = ended.left.clone();
    if standing.unseen.is_some() && matches!(lock::ask(&profile.controller_lock(cluster_id)), Asked::Held(_)) {
        left.push(match &standing.controller {
            Some(controller) => format!("the controller ({controller}) still holds its lock"),
            None => "the controller still holds its lock".into(),
        });
    }
    match ended.unseen.join("; ") {
        unseen if unseen.is_empty() => {}
        _ if asked => progress(StopProgress::Note(
            "the controller has told its engines to end; whether they have cannot be seen from here".into(),
        )),
        unseen if force => progress(StopProgress::Note(format!("may still run, and are on record no more: {unseen}"))),
        _ => left.extend(ended.unseen.iter().cloned()),
    }
    if !left.is_empty() {
        keep_on_record(&standing, remaining, profile);
        return Err(ClusterError::Left {
            cluster: super::in_words(profile, cluster_id),
            options: super::options_of(profile, cluster_id),
            left,
            hints,
        });
    }
    remove_files(profile, cluster_id);
    let was_dead = standing.condition != Condition::Running && !asked;
    Ok(Stopped {
        asked,
        was_dead,
        engines,
        ended,
        jobs: jobs::stopped(rows),
    })
}

/// Fails where there is nothing to do, or where it must not be done.
async fn refuse(standing: &Standing, profile: &ProfileDir, cluster_id: &str, purpose: Purpose) -> Result<(), ClusterError> {
    let (cluster, options) = (super::in_words(profile, cluster_id), super::options_of(profile, cluster_id));
    let running = |controller: Option<ProcessId>| ClusterError::Running {
        cluster: cluster.clone(),
        options: options.clone(),
        controller,
    };
    let force = purpose == Purpose::Clean { force: true };
    match (standing.condition, purpose) {
        (Condition::Stopped, _) => Err(super::not_running(profile, cluster_id)),
        (Condition::Connected, _) => Err(super::list::connected(profile, cluster_id)),
        (Condition::Foreign, _) if !force && standing.connection.as_ref().is_some_and(something_listens) => Err(ClusterError::Foreign {
            path: profile.client_file(cluster_id),
            cluster,
            options,
        }),
        (Condition::Running, Purpose::Clean { .. }) => Err(running(standing.controller.clone())),
        (Condition::Elsewhere, Purpose::Clean { .. }) => match &standing.connection {
            Some(file) if Client::connect(file, CONNECT).await.is_ok() => Err(running(standing.controller.clone())),
            _ if force => Ok(()),
            _ => Err(not_seen(standing, profile, cluster_id)),
        },
        _ => Ok(()),
    }
}

fn not_seen(standing: &Standing, profile: &ProfileDir, cluster_id: &str) -> ClusterError {
    ClusterError::Elsewhere {
        cluster: super::in_words(profile, cluster_id),
        options: super::options_of(profile, cluster_id),
        controller: standing.controller.clone().unwrap_or_default(),
        why: standing.unseen.clone().unwrap_or_default(),
    }
}

/// Whether the controller does as it is asked. Where it cannot be ended otherwise, that it does not is an error.
async fn ask_to_end(
    standing: &Standing,
    patience: Duration,
    profile: &ProfileDir,
    cluster_id: &str,
    progress: &mut dyn FnMut(StopProgress),
) -> Result<bool, ClusterError> {
    if !matches!(standing.condition, Condition::Running | Condition::Elsewhere) {
        return Ok(false);
    }
    let Some(file) = &standing.connection else {
        return match standing.unseen {
            Some(_) => Err(not_seen(standing, profile, cluster_id)),
            None => Ok(false),
        };
    };
    match ask(file, patience.max(CONNECT)).await {
        Ok(()) => Ok(true),
        Err(_) if standing.unseen.is_some() => Err(not_seen(standing, profile, cluster_id)),
        Err(e) => {
            progress(StopProgress::Note(format!(
                "the controller does not do as it is asked ({e}); its processes are ended"
            )));
            Ok(false)
        }
    }
}

/// Until all processes are gone that can be seen, and a controller that cannot be has removed its file and lock; no longer than
/// `at_most`.
async fn wait_for_end(
    launches: &Launches,
    standing: &Standing,
    at_most: Duration,
    profile: &ProfileDir,
    cluster_id: &str,
    progress: &mut dyn FnMut(StopProgress),
) -> Result<(), ClusterError> {
    let deadline = Instant::now() + at_most;
    let by_files = standing.unseen.is_some() || !launches.have_all();
    let mut last = 0;
    loop {
        let left = launches.count_here().await?;
        let is_held = || matches!(lock::ask(&profile.controller_lock(cluster_id)), Asked::Held(_));
        let file = by_files && (profile.client_file(cluster_id).exists() || is_held());
        if (left == 0 && !file) || Instant::now() >= deadline {
            return Ok(());
        }
        if left != last {
            progress(StopProgress::Waiting { processes: left });
            last = left;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What is not gone can be ended by a later `stop`.
fn keep_on_record(standing: &Standing, remaining: Vec<Launched>, profile: &ProfileDir) {
    let Some(mut state) = standing.state.clone() else { return };
    let is_controllers = |launched: &Launched| state.controller.as_ref().is_some_and(|c| c == launched);
    let (controller, engines): (Vec<_>, Vec<_>) = remaining.into_iter().partition(is_controllers);
    state.controller = controller.into_iter().next();
    state.engines = engines;
    if let Err(error) = state.write(profile) {
        tracing::warn!("{error}");
    }
}

async fn ask(file: &ConnectionFile, patience: Duration) -> Result<(), crate::client::ClientError> {
    let client = Client::connect(file, CONNECT).await?.with_patience(patience);
    client.stop(true).await
}

/// Engines first, then the controller; also one that was started by hand and is in no state file.
fn recorded(standing: &Standing) -> Vec<Launched> {
    let mut launches: Vec<Launched> = standing.state.iter().flat_map(|s| s.launched().cloned()).collect();
    if let Some(controller) = standing.controller.as_ref().filter(|c| c.runs()) {
        let known = launches.iter().flat_map(|l| &l.processes).any(|p| p.id == *controller);
        if !known {
            let process = Process {
                id: controller.clone(),
                ..Process::default()
            };
            launches.push(Launched {
                processes: vec![process],
                ..Launched::new("local", controller.host.clone())
            });
        }
    }
    launches
}

/// Launches, each with who can tell of it and end it.
struct Launches(Vec<(WhoTells, Launched)>);

type WhoTells = Result<Arc<dyn Launcher>, LaunchError>;

impl Launches {
    fn of(launches: impl IntoIterator<Item = Launched>, profile: &ProfileDir, config: &Config) -> Launches {
        let with = |launched: Launched| (launch::launcher(&launched.launcher, profile, config), launched);
        Launches(launches.into_iter().map(with).collect())
    }

    /// How many engines are known to be there, and how the jobs are.
    async fn count(&self) -> Result<(usize, Vec<JobRow>), ClusterError> {
        let (mut there, mut rows) = (0, Vec::new());
        for (launcher, launched) in &self.0 {
            if let (Ok(launcher), launched) = (launcher, launched.clone()) {
                let (launcher, members, whole) = (launcher.clone(), launched.members(), launched.clone());
                let states = in_thread(move || launcher.states(&whole)).await?;
                rows.extend(jobs::rows(&launched, &states));
                let engines = members
                    .iter()
                    .zip(states)
                    .filter(|(_, state)| state.is_alive())
                    .map(|(m, _)| m.engines as usize);
                there += engines.sum::<usize>();
            }
        }
        Ok((there, rows))
    }

    /// Ends all; what that took, the launches of which something is left, or may be, and what to do about them.
    async fn end(
        self,
        grace: Duration,
        force: bool,
        progress: &mut dyn FnMut(StopProgress),
    ) -> Result<(Ended, Vec<Launched>, Vec<String>), ClusterError> {
        let (mut all, mut remaining, mut hints) = (Ended::default(), Vec::new(), Vec::new());
        for (launcher, launched) in self.0 {
            let took = match launcher {
                Ok(launcher) => {
                    let launched = launched.clone();
                    in_thread(move || launcher.stop(&launched, grace)).await?
                }
                Err(error) => Err(error),
            };
            match took {
                Ok(took) => {
                    if !took.left.is_empty() || !took.unseen.is_empty() {
                        remaining.push(launched);
                    }
                    all += took;
                }
                // Of a host that is gone for good nothing can be ended any more, and of jobs that are known to be another's nothing need be.
                Err(e @ (LaunchError::OverSsh { .. } | LaunchError::JobsRemain { .. })) if force => {
                    progress(StopProgress::Note(e.to_string()))
                }
                // The others are ended all the same.
                Err(e) => {
                    all.left.push(e.to_string());
                    hints.extend(e.hint().filter(|hint| !hints.contains(hint)));
                    remaining.push(launched);
                }
            }
        }
        Ok((all, remaining, hints))
    }

    /// Whether the end of all processes can be seen at once.
    fn have_all(&self) -> bool {
        self.0
            .iter()
            .all(|(launcher, _)| launcher.as_ref().is_ok_and(|l| !l.capabilities().has_cached_state))
    }

    /// How many members are known to be there, of those that can be seen at once.
    async fn count_here(&self) -> Result<usize, ClusterError> {
        let mut there = 0;
        for (launcher, launched) in self
            .0
            .iter()
            .filter(|(l, _)| l.as_ref().is_ok_and(|l| !l.capabilities().has_cached_state))
        {
            if let (Ok(launcher), launched) = (launcher, launched.clone()) {
                let launcher = launcher.clone();
                let states = in_thread(move || launcher.states(&launched)).await?;
                there += states.iter().filter(|state| state.is_alive()).count();
            }
        }
        Ok(there)
    }
}

/// The connection files, the controller's own, and the state file. What is gone already is no error, and what cannot be removed is stale anyway.
pub(super) fn remove_files(profile: &ProfileDir, cluster_id: &str) {
    remove_tunnel(profile, cluster_id);
    tunnel::process::end_reverse(profile, cluster_id);
    let files = [
        profile.client_file(cluster_id),
        profile.engine_file(cluster_id),
        profile.controller_file(cluster_id),
        profile.state_file(cluster_id),
    ];
    ipyparallel_file::remove(profile, cluster_id);
    // A controller that has just been started by hand keeps its own.
    lock::remove_free(&profile.controller_lock(cluster_id));
    for path in files {
        if let Err(e) = std::fs::remove_file(&path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {e}", path.display());
        }
    }
}

/// What a tunnel left that is gone.
pub(super) fn remove_tunnel(profile: &ProfileDir, cluster_id: &str) {
    let file = profile.tunnel_file(cluster_id);
    if matches!(TunnelState::read(&file), Ok(Some(tunnel)) if tunnel.runs() != Some(true)) {
        tunnel::process::end(&file);
    }
}

/// Whether anything listens where a connection file says; for files of controllers that do not say their process.
pub(super) fn something_listens(file: &ConnectionFile) -> bool {
    let interface = file.interface.strip_prefix("tcp://").unwrap_or(&file.interface);
    let host = if matches!(interface, "*" | "0.0.0.0" | "") {
        file.location.as_str()
    } else {
        interface
    };
    let Ok(addresses) = (host, file.registration).to_socket_addrs() else {
        return false;
    };
    addresses
        .into_iter()
        .any(|address| TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok())
}
