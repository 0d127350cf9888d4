//! Stops a cluster: asks the controller, then sends SIGTERM and SIGKILL to what remains. Also cleans up after a dead one.
//! Signals only processes on record, identified by process id and start time.
use super::list::{ClusterStatus, Condition};
use super::lock::Lock;
use super::{ClusterError, in_thread, ipyparallel_file, jobs, launch, walltime_restart};
use crate::client::Client;
use crate::connection::ConnectionFile;
use crate::launchers::{LaunchError, Launched, Launcher, Process, StopReport};
use crate::model::job::JobRow;
use crate::profile::ProfileDir;
use crate::profile::config::Config;
use crate::ssh::tunnel::{self, TunnelState};
use crate::sys::lock::{self, LockState};
use crate::sys::process::ProcessId;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

const CONNECT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StopProgress {
    /// A message for the user.
    Note(String),
    /// This many processes are still running.
    Waiting { processes: usize },
}

/// The result of stopping.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stopped {
    /// The controller was running and stopped on request.
    pub asked: bool,
    /// The controller was already dead.
    pub was_dead: bool,
    /// Number of engine processes that ended.
    pub engines: usize,
    pub ended: StopReport,
    /// The final state of batch jobs.
    pub jobs: Vec<JobRow>,
}

/// The operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Stop,
    /// Only dead clusters; with force also those of unknown state.
    Clean {
        force: bool,
    },
}

/// Stops a cluster and removes its files, but keeps its task records. Works also if its controller is dead. What remains running
/// is listed in an error and stays on record.
pub(crate) async fn stop(profile: &ProfileDir, cluster_id: &str, progress: &mut dyn FnMut(StopProgress)) -> Result<Stopped, ClusterError> {
    end(profile, cluster_id, Purpose::Stop, progress).await
}

/// Removes the engines and files of a dead cluster; fails for a running one. With `force`, a cluster of unknown state, or of another
/// controller than pcluster's, counts as dead; what may still be running is listed.
pub(crate) async fn clean(
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
    let status = ClusterStatus::of(profile, cluster_id);
    let force = purpose == Purpose::Clean { force: true };
    check_allowed(&status, profile, cluster_id, purpose).await?;
    if let Some(problem) = &status.problem {
        progress(StopProgress::Note(problem.clone()));
    }
    // Stopping must work with an invalid configuration.
    let config = Config::load(profile).unwrap_or_default();
    let (stop_for, kill_after) = (
        Duration::from_millis(config.launcher.stop_timeout_ms),
        Duration::from_millis(config.launcher.kill_timeout_ms),
    );
    // Stop restarting engines.
    if let Some(state) = &status.state {
        walltime_restart::end(state, kill_after).await?;
    }
    let launches = Launches::of(recorded(&status), profile, &config);
    let (engines, mut rows) = Launches::of(status.state.iter().flat_map(|s| s.engines.clone()), profile, &config)
        .count()
        .await?;
    let controller = status.state.as_ref().and_then(|s| s.controller.as_ref());
    rows.extend(controller.into_iter().flat_map(jobs::submitted_by));

    let asked = match purpose {
        Purpose::Stop => ask_to_end(&status, stop_for, profile, cluster_id, progress).await?,
        Purpose::Clean { .. } => false,
    };
    if asked {
        wait_for_end(&launches, &status, stop_for, profile, cluster_id, progress).await?;
    }
    let (ended, remaining, hints) = launches.end(kill_after, force, progress).await?;
    let mut left = ended.left.clone();
    if status.unseen.is_some() && matches!(lock::ask(&profile.controller_lock(cluster_id)), LockState::Held(_)) {
        left.push(match &status.controller {
            Some(controller) => format!("the controller ({controller}) still holds its lock"),
            None => "the controller still holds its lock".into(),
        });
    }
    match ended.unseen.join("; ") {
        unseen if unseen.is_empty() => {}
        _ if asked => progress(StopProgress::Note(
            "the controller asked its engines to stop; they are not visible from this host".into(),
        )),
        unseen if force => progress(StopProgress::Note(format!(
            "may still be running, and are no longer on record: {unseen}"
        ))),
        _ => left.extend(ended.unseen.iter().cloned()),
    }
    if !left.is_empty() {
        keep_on_record(&status, remaining, profile);
        return Err(ClusterError::Left {
            cluster: super::describe(profile, cluster_id),
            options: super::options_of(profile, cluster_id),
            left,
            hints,
        });
    }
    remove_files(profile, cluster_id);
    let was_dead = status.condition != Condition::Running && !asked;
    Ok(Stopped {
        asked,
        was_dead,
        engines,
        ended,
        jobs: jobs::stopped(rows),
    })
}

/// Fails if there is nothing to do, or if it must not be done.
async fn check_allowed(status: &ClusterStatus, profile: &ProfileDir, cluster_id: &str, purpose: Purpose) -> Result<(), ClusterError> {
    let (cluster, options) = (super::describe(profile, cluster_id), super::options_of(profile, cluster_id));
    let running = |controller: Option<ProcessId>| ClusterError::Running {
        cluster: cluster.clone(),
        options: options.clone(),
        controller,
    };
    let force = purpose == Purpose::Clean { force: true };
    match (status.condition, purpose) {
        (Condition::Stopped, _) => Err(super::not_running(profile, cluster_id)),
        (Condition::Connected, _) => Err(super::list::connected(profile, cluster_id)),
        (Condition::Foreign, _) if !force && status.connection.as_ref().is_some_and(something_listens) => Err(ClusterError::Foreign {
            path: profile.client_file(cluster_id),
            cluster,
            options,
        }),
        (Condition::Running, Purpose::Clean { .. }) => Err(running(status.controller.clone())),
        (Condition::Remote, Purpose::Clean { .. }) => match &status.connection {
            Some(file) if Client::connect(file, CONNECT).await.is_ok() => Err(running(status.controller.clone())),
            _ if force => Ok(()),
            _ => Err(not_visible(status, profile, cluster_id)),
        },
        _ => Ok(()),
    }
}

fn not_visible(status: &ClusterStatus, profile: &ProfileDir, cluster_id: &str) -> ClusterError {
    ClusterError::Elsewhere {
        cluster: super::describe(profile, cluster_id),
        options: super::options_of(profile, cluster_id),
        controller: status.controller.clone().unwrap_or_default(),
        why: status.unseen.clone().unwrap_or_default(),
    }
}

/// Asks the controller to stop; returns whether it accepted. Fails if it cannot be stopped in another route.
async fn ask_to_end(
    status: &ClusterStatus,
    timeout: Duration,
    profile: &ProfileDir,
    cluster_id: &str,
    progress: &mut dyn FnMut(StopProgress),
) -> Result<bool, ClusterError> {
    if !matches!(status.condition, Condition::Running | Condition::Remote) {
        return Ok(false);
    }
    let Some(file) = &status.connection else {
        return match status.unseen {
            Some(_) => Err(not_visible(status, profile, cluster_id)),
            None => Ok(false),
        };
    };
    match ask(file, timeout.max(CONNECT)).await {
        Ok(()) => Ok(true),
        Err(_) if status.unseen.is_some() => Err(not_visible(status, profile, cluster_id)),
        Err(e) => {
            progress(StopProgress::Note(format!(
                "the controller did not stop on request ({e}); terminating its processes"
            )));
            Ok(false)
        }
    }
}

/// Waits until all visible processes have exited, and an invisible controller has removed its file and lock; at most
/// `at_most`.
async fn wait_for_end(
    launches: &Launches,
    status: &ClusterStatus,
    at_most: Duration,
    profile: &ProfileDir,
    cluster_id: &str,
    progress: &mut dyn FnMut(StopProgress),
) -> Result<(), ClusterError> {
    let deadline = Instant::now() + at_most;
    let by_files = status.unseen.is_some() || !launches.have_all();
    let mut last = 0;
    loop {
        let left = launches.count_here().await?;
        let is_held = || matches!(lock::ask(&profile.controller_lock(cluster_id)), LockState::Held(_));
        let file = by_files && (profile.client_file(cluster_id).exists() || is_held());
        if (left == 0 && !file) || Instant::now() >= deadline {
            return Ok(());
        }
        if left != last {
            progress(StopProgress::Waiting { processes: left });
            last = left;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Keeps the remaining processes on record for a later `stop`.
fn keep_on_record(status: &ClusterStatus, remaining: Vec<Launched>, profile: &ProfileDir) {
    let Some(mut state) = status.state.clone() else { return };
    let is_controllers = |launched: &Launched| state.controller.as_ref().is_some_and(|c| c == launched);
    let (controller, engines): (Vec<_>, Vec<_>) = remaining.into_iter().partition(is_controllers);
    state.controller = controller.into_iter().next();
    state.engines = engines;
    if let Err(error) = state.write(profile) {
        tracing::warn!("{error}");
    }
}

async fn ask(file: &ConnectionFile, timeout: Duration) -> Result<(), crate::client::ClientError> {
    let client = Client::connect(file, CONNECT).await?.with_timeout(timeout);
    client.stop(true).await
}

/// Engines first, then the controller, even if it was started manually and is not in the state file.
fn recorded(status: &ClusterStatus) -> Vec<Launched> {
    let mut launches: Vec<Launched> = status.state.iter().flat_map(|s| s.launched().cloned()).collect();
    if let Some(controller) = status.controller.as_ref().filter(|c| c.runs()) {
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

/// Launches with their launchers.
struct Launches(Vec<(LauncherResult, Launched)>);

type LauncherResult = Result<Arc<dyn Launcher>, LaunchError>;

impl Launches {
    fn of(launches: impl IntoIterator<Item = Launched>, profile: &ProfileDir, config: &Config) -> Launches {
        let with = |launched: Launched| (launch::launcher(&launched.launcher, profile, config), launched);
        Launches(launches.into_iter().map(with).collect())
    }

    /// The number of engines known to be running, and the state of the jobs.
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

    /// Stops all; returns the result, the launches that remain or may remain, and hints about them.
    async fn end(
        self,
        grace: Duration,
        force: bool,
        progress: &mut dyn FnMut(StopProgress),
    ) -> Result<(StopReport, Vec<Launched>, Vec<String>), ClusterError> {
        let (mut all, mut remaining, mut hints) = (StopReport::default(), Vec::new(), Vec::new());
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
                // Nothing can be stopped on a lost host, and jobs of another system need not be.
                Err(e @ (LaunchError::OverSsh { .. } | LaunchError::JobsRemain { .. })) if force => {
                    progress(StopProgress::Note(e.to_string()))
                }
                // Continue with the others.
                Err(e) => {
                    all.left.push(e.to_string());
                    hints.extend(e.hint().filter(|hint| !hints.contains(hint)));
                    remaining.push(launched);
                }
            }
        }
        Ok((all, remaining, hints))
    }

    /// Whether the end of all processes is visible immediately.
    fn have_all(&self) -> bool {
        self.0
            .iter()
            .all(|(launcher, _)| launcher.as_ref().is_ok_and(|l| !l.capabilities().has_cached_state))
    }

    /// The number of members known to be running, of those visible immediately.
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

/// Removes the connection files, the controller's file and the state file. Missing files are not an error; the rest becomes stale.
pub(super) fn remove_files(profile: &ProfileDir, cluster_id: &str) {
    remove_tunnel(profile, cluster_id);
    tunnel::process::end_reverse(profile, cluster_id);
    let files = [
        profile.client_file(cluster_id),
        profile.engine_file(cluster_id),
        profile.controller_file(cluster_id),
        profile.state_file(cluster_id),
        profile.problem_file(cluster_id),
        profile.elastic_file(cluster_id),
    ];
    ipyparallel_file::remove(profile, cluster_id);
    // A manually started controller keeps its lock.
    lock::remove_free(&profile.controller_lock(cluster_id));
    for path in files {
        if let Err(e) = std::fs::remove_file(&path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {e}", path.display());
        }
    }
}

/// Removes the files of a dead tunnel.
pub(super) fn remove_tunnel(profile: &ProfileDir, cluster_id: &str) {
    let file = profile.tunnel_file(cluster_id);
    if matches!(TunnelState::read(&file), Ok(Some(tunnel)) if tunnel.runs() != Some(true)) {
        tunnel::process::end(&file);
    }
}

/// Whether anything listens at the address of a connection file; for files without a process id.
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
