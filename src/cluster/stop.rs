//! Stopping a cluster: the controller is asked; what is still there gets SIGTERM, then SIGKILL. And clearing away what a
//! dead one left. Nothing is signalled but processes on record, told by process id and start time.
use super::list::{Condition, Standing};
use super::lock::Lock;
use super::remote::TunnelState;
use super::start::in_thread;
use super::{ClusterError, jobs, keep, launch};
use crate::client::Client;
use crate::connection::ConnectionFile;
use crate::connection::ssh::place;
use crate::launchers::ssh::reverse;
use crate::launchers::{Ended, LaunchError, Launched, Launcher, Process};
use crate::model::job::JobRow;
use crate::profile::ProfileDir;
use crate::profile::config::Config;
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

/// Ends a cluster and its files; its tasks' records stay. Works also when its controller is gone already.
pub async fn stop(profile: &ProfileDir, cluster_id: &str, progress: &mut dyn FnMut(StopProgress)) -> Result<Stopped, ClusterError> {
    end(profile, cluster_id, false, progress).await
}

/// Removes what a dead cluster left: engines, files. Refuses a running one. With `force`, one that was started on
/// another host, or by another controller than pcluster's, counts as dead.
pub async fn clean(
    profile: &ProfileDir,
    cluster_id: &str,
    force: bool,
    progress: &mut dyn FnMut(StopProgress),
) -> Result<Stopped, ClusterError> {
    let standing = Standing::of(profile, cluster_id);
    match (standing.condition, standing.controller) {
        (Condition::Running, Some(controller)) => Err(ClusterError::Running {
            cluster: super::in_words(profile, cluster_id),
            options: super::options_of(profile, cluster_id),
            pid: controller.pid,
            host: controller.host,
        }),
        _ => end(profile, cluster_id, force, progress).await,
    }
}

async fn end(profile: &ProfileDir, cluster_id: &str, force: bool, progress: &mut dyn FnMut(StopProgress)) -> Result<Stopped, ClusterError> {
    if !profile.exists() {
        return Err(super::not_running(profile, cluster_id));
    }
    let _lock = Lock::wait(profile, cluster_id).await?;
    let standing = Standing::of(profile, cluster_id);
    match (standing.condition, &standing.controller) {
        (Condition::Stopped, _) => return Err(super::not_running(profile, cluster_id)),
        (Condition::Connected, _) => return Err(super::list::connected(profile, cluster_id)),
        (Condition::Foreign, _) if !force && standing.connection.as_ref().is_some_and(something_listens) => {
            return Err(ClusterError::Foreign {
                cluster: super::in_words(profile, cluster_id),
                options: super::options_of(profile, cluster_id),
                path: profile.client_file(cluster_id),
            });
        }
        _ => {}
    }
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

    let mut asked = false;
    if matches!(standing.condition, Condition::Running | Condition::Elsewhere)
        && let Some(file) = &standing.connection
    {
        match ask(file, stop_for.max(CONNECT)).await {
            Ok(()) => asked = true,
            Err(_) if standing.condition == Condition::Elsewhere && force => {}
            Err(e) => match &standing.controller {
                Some(controller) if standing.condition == Condition::Elsewhere => {
                    return Err(ClusterError::Elsewhere {
                        cluster: super::in_words(profile, cluster_id),
                        options: super::options_of(profile, cluster_id),
                        host: controller.host.clone(),
                        pid: controller.pid,
                    });
                }
                _ => progress(StopProgress::Note(format!(
                    "the controller does not do as it is asked ({e}); its processes are ended"
                ))),
            },
        }
    }
    if asked {
        let deadline = Instant::now() + stop_for;
        let mut last = 0;
        loop {
            let left = launches.count_here().await?;
            // A controller elsewhere is gone when its file is.
            let file = (standing.condition == Condition::Elsewhere || !launches.have_all()) && profile.client_file(cluster_id).exists();
            if (left == 0 && !file) || Instant::now() >= deadline {
                break;
            }
            if left != last {
                progress(StopProgress::Waiting { processes: left });
                last = left;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    let mut ended = Ended::default();
    let mut failures = Vec::new();
    for (launcher, launched) in launches.0 {
        let launcher = launcher?;
        match in_thread(move || launcher.stop(&launched, kill_after)).await? {
            Ok(took) => ended += took,
            // Of a host that is gone for good nothing can be ended any more; and jobs that are known to be another's are forgotten.
            Err(e @ (LaunchError::OverSsh { .. } | LaunchError::JobsLeft { .. })) if force => progress(StopProgress::Note(e.to_string())),
            // The others are ended all the same, and this one stays on record.
            Err(e) => failures.push(e),
        }
    }
    let mut failures = LaunchError::merged(failures).into_iter();
    if let Some(failure) = failures.next() {
        failures.for_each(|failure| progress(StopProgress::Note(failure.to_string())));
        return Err(failure.into());
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

async fn ask(file: &ConnectionFile, patience: Duration) -> Result<(), crate::client::ClientError> {
    let client = Client::connect(file, CONNECT).await?.with_patience(patience);
    client.stop(true).await
}

/// Engines first, then the controller; also one that was started by hand and is in no state file.
fn recorded(standing: &Standing) -> Vec<Launched> {
    let mut launches: Vec<Launched> = standing.state.iter().flat_map(|s| s.launched().cloned()).collect();
    if let Some(controller) = standing.controller.as_ref().filter(|c| c.runs_here()) {
        let known = launches.iter().flat_map(|l| &l.processes).any(|p| p.pid == controller.pid);
        if !known {
            let process = Process {
                pid: controller.pid,
                started: controller.started,
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
                    .filter(|(_, state)| state.is_there())
                    .map(|(m, _)| m.engines as usize);
                there += engines.sum::<usize>();
            }
        }
        Ok((there, rows))
    }

    /// Whether the end of all processes can be seen at once.
    fn have_all(&self) -> bool {
        self.0
            .iter()
            .all(|(launcher, _)| launcher.as_ref().is_ok_and(|l| !l.is_asked_seldom()))
    }

    /// How many members are known to be there, of those that can be seen at once.
    async fn count_here(&self) -> Result<usize, ClusterError> {
        let mut there = 0;
        for (launcher, launched) in self.0.iter().filter(|(l, _)| l.as_ref().is_ok_and(|l| !l.is_asked_seldom())) {
            if let (Ok(launcher), launched) = (launcher, launched.clone()) {
                let launcher = launcher.clone();
                let states = in_thread(move || launcher.states(&launched)).await?;
                there += states.iter().filter(|state| state.is_there()).count();
            }
        }
        Ok(there)
    }
}

/// The connection files, the controller's own, and the state file. What is gone already is no error, and what cannot be removed is stale anyway.
pub(super) fn remove_files(profile: &ProfileDir, cluster_id: &str) {
    remove_tunnel(profile, cluster_id);
    reverse::end_all(profile, cluster_id);
    let files = [
        profile.client_file(cluster_id),
        profile.engine_file(cluster_id),
        profile.controller_file(cluster_id),
        profile.state_file(cluster_id),
        profile.controller_lock(cluster_id),
    ];
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
    if let Ok(Some(tunnel)) = TunnelState::read(profile, cluster_id)
        && !tunnel.runs()
    {
        if let Some(path) = &tunnel.place {
            place::clear(path);
        }
        let _ = std::fs::remove_file(profile.tunnel_file(cluster_id));
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
