//! Lists clusters and their state, from files and the process table, without asking controllers.
use super::remote;
use super::state_file::WalltimeMonitorState;
use super::{ClusterError, ClusterState};
use crate::connection::{ConnectionError, ConnectionFile};
use crate::launchers::{self, Launched, MemberState, Stage};
use crate::profile::Config;
use crate::profile::ProfileDir;
use crate::profile::dir::check_cluster_id;
use crate::ssh::tunnel::{Phase, TunnelState};
use crate::sys::lock::{self, LockState};
use crate::sys::process::{self, Presence, ProcessId};
use crate::sys::{network_fs, problem};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Condition {
    /// Its controller is running.
    Running,
    /// Its controller is remote, connected through a tunnel.
    Connected,
    /// Its controller is dead and has left files or engines.
    Stale,
    /// Nothing is running; its tasks may be on record.
    Stopped,
    /// Its processes are not visible: on another host, or in another PID namespace.
    Remote,
    /// A controller other than pcluster's wrote the connection file.
    Foreign,
}

impl std::fmt::Display for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Condition::Running => "running",
            Condition::Connected => "connected",
            Condition::Stale => "stale",
            Condition::Stopped => "stopped",
            Condition::Remote => "remote",
            Condition::Foreign => "foreign",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ClusterSummary {
    pub profile: String,
    pub directory: PathBuf,
    pub cluster_id: String,
    pub state: Condition,
    /// Without a process id if unknown, as for a queued controller.
    pub controller: Option<ProcessId>,
    /// Why its processes are not visible from this host.
    pub unseen: Option<String>,
    /// Number of engine processes started and running (None if unknown).
    pub engines_started: usize,
    pub engines_alive: Option<usize>,
    /// Number of engines in a batch system's queue.
    pub engines_queued: usize,
    pub engines: Vec<LaunchSummary>,
    pub controller_launch: Option<LaunchSummary>,
    pub engine_kind: Option<String>,
    pub launcher: Option<String>,
    /// Seconds since 1970.
    pub started: Option<f64>,
    /// The task records, if any.
    pub database: Option<PathBuf>,
    /// A problem with its files.
    pub problem: Option<String>,
    /// For a connection to a remote cluster.
    pub tunnel: Option<TunnelState>,
    /// The process that restarts engines after walltime.
    pub walltime_monitor: Option<WalltimeMonitorState>,
}

/// One launch and the state of its members. Counts are engines, or 1 for a controller.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct LaunchSummary {
    pub launcher: String,
    pub host: String,
    pub jobs: Vec<JobSummary>,
    /// Excluding leaving engines.
    pub engines: usize,
    pub running: usize,
    pub queued: usize,
    pub suspended: usize,
    /// Ended unexpectedly.
    pub ended: usize,
    pub unknown: usize,
    /// Asked to leave, but still running.
    pub leaving: usize,
    /// `3 queued: Resources`, for members that are not running.
    pub states: String,
    /// The reverse tunnels of its engines.
    pub reverse_tunnels: Vec<ReverseSummary>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ReverseSummary {
    /// The destination for ssh.
    pub to: String,
    /// `up`, `down`, `connecting`, `failed`.
    pub phase: Phase,
    /// The tunnel process, and whether it is running (null if unknown).
    pub pid: Option<u32>,
    pub runs: Option<bool>,
    /// Ports on the remote loopback, by channel.
    pub ports: BTreeMap<String, u16>,
    pub problem: Option<String>,
    pub reconnects: u64,
    /// For display.
    #[serde(skip)]
    pub words: String,
}

impl ReverseSummary {
    /// None for a tunnel that has ended.
    fn of(file: &Path) -> Option<ReverseSummary> {
        let state = TunnelState::read(file).ok()??;
        Some(ReverseSummary {
            words: state.describe(),
            runs: state.runs(),
            pid: state.daemon.as_ref().map(|own| own.pid),
            to: state.destination,
            phase: state.phase,
            ports: state.ports,
            problem: state.problem,
            reconnects: state.reconnects,
        })
    }

    pub(crate) fn is_well(&self) -> bool {
        self.phase == Phase::Up && self.runs != Some(false)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct JobSummary {
    pub id: String,
    pub name: String,
    pub script: PathBuf,
    /// Seconds since 1970.
    pub submitted: f64,
    /// The number of restarts of its engines, and the maximum.
    pub replaces: u32,
    pub max_restarts: u32,
    /// Element number (or 1) and state.
    pub elements: Vec<(u32, String)>,
}

impl LaunchSummary {
    fn of(launched: &Launched, profile: &ProfileDir, config: &Config) -> LaunchSummary {
        let members = launched.members();
        let states = match launchers::by_name(&launched.launcher, profile, config) {
            Ok(launcher) => launcher.states(launched),
            Err(e) => vec![MemberState::unknown(e.to_string()); members.len()],
        };
        let mut summary = LaunchSummary {
            launcher: launched.launcher.clone(),
            host: launched.host.clone(),
            states: launchers::launched::summarize(&members, &states),
            reverse_tunnels: launched.tunnels().iter().filter_map(|file| ReverseSummary::of(file)).collect(),
            ..LaunchSummary::default()
        };
        for (member, state) in members.iter().zip(&states) {
            let engines = member.engines.max(1) as usize;
            if member.leaving {
                summary.leaving += if state.has_ended() { 0 } else { engines };
                continue;
            }
            summary.engines += engines;
            *match state.stage {
                Stage::Running => &mut summary.running,
                Stage::Queued => &mut summary.queued,
                Stage::Suspended => &mut summary.suspended,
                Stage::Ended => &mut summary.ended,
                Stage::Unknown => &mut summary.unknown,
            } += engines;
        }
        let mut states = states.iter().skip(launched.processes.len());
        for job in &launched.jobs {
            let word = |state: &MemberState| state.describe().to_string();
            summary.jobs.push(JobSummary {
                id: job.id.clone(),
                name: job.name.clone(),
                script: job.script.clone(),
                submitted: job.submitted,
                replaces: job.replaces,
                max_restarts: launched.recipe.as_ref().map_or(0, |recipe| recipe.max_restarts),
                elements: job.elements.iter().copied().zip((&mut states).map(word)).collect(),
            });
        }
        summary
    }
}

/// The successor of a dead supervisor, or the process that it supervised.
fn or_successor(process: ProcessId) -> ProcessId {
    if !process.is_gone() {
        return process;
    }
    let left = process::orphans_of(std::slice::from_ref(&process)).into_iter().next();
    left.map_or(process, |left| left.process)
}

/// Whether all processes of a cluster and their children are known to be dead.
fn nothing_runs(state: &ClusterState) -> bool {
    state.launched().all(|launched| {
        let ids: Vec<ProcessId> = launched.processes.iter().map(|process| process.id.clone()).collect();
        let are_seen = launched.jobs.is_empty() && launched.processes.iter().all(|process| process.on.is_none());
        are_seen && ids.iter().all(ProcessId::is_gone) && process::orphans_of(&ids).is_empty()
    })
}

/// Why the state of a process is unknown. `shared`: the file that names it may be shared between hosts.
fn why_unseen(process: &ProcessId, shared: bool) -> Option<String> {
    match process.presence() {
        Presence::Unknown(why) => Some(why.to_string()),
        Presence::Gone if shared && process.is_of_another_boot() => Some(format!(
            "it was started before the last boot of {0}, or on another host with the name {0}",
            process.host
        )),
        Presence::Gone | Presence::Runs => None,
    }
}

/// Why the controller of a cluster does not run at present, although its supervisor does.
pub(crate) fn controller_problem(profile: &ProfileDir, cluster_id: &str) -> Option<String> {
    let problem = problem::read(&profile.problem_file(cluster_id))?;
    Some(format!("the controller is not running: {}", problem.describe()))
}

/// Whether the controller, or a supervisor that will restart it, is running on this host.
pub(crate) fn is_supervised(profile: &ProfileDir, cluster_id: &str) -> bool {
    matches!(
        ClusterStatus::of(profile, cluster_id).condition,
        Condition::Running | Condition::Connected
    )
}

/// All clusters of all profiles.
pub(crate) fn list(ipython_dir: Option<&Path>) -> Result<Vec<ClusterSummary>, ClusterError> {
    Ok(ProfileDir::all(ipython_dir)?.iter().flat_map(list_profile).collect())
}

/// All clusters of a profile, the default one first.
pub(crate) fn list_profile(profile: &ProfileDir) -> Vec<ClusterSummary> {
    cluster_ids(profile).iter().filter_map(|id| status(profile, id)).collect()
}

/// One cluster; None if it has left no files.
pub(crate) fn status(profile: &ProfileDir, cluster_id: &str) -> Option<ClusterSummary> {
    let status = ClusterStatus::of(profile, cluster_id);
    let database = Some(profile.database_file(cluster_id)).filter(|path| path.exists());
    if status.condition == Condition::Stopped && database.is_none() {
        return None;
    }
    let config = Config::load(profile).unwrap_or_default();
    let state = status.state.as_ref();
    let monitor = state.and_then(|s| s.walltime_monitor.clone());
    let engines: Vec<LaunchSummary> = state
        .iter()
        .flat_map(|s| &s.engines)
        .map(|l| LaunchSummary::of(l, profile, &config))
        .collect();
    let controller_launch = state
        .and_then(|s| s.controller.as_ref())
        .map(|l| LaunchSummary::of(l, profile, &config));
    let is_known = engines.iter().all(|launch| launch.unknown == 0);
    Some(ClusterSummary {
        profile: profile.name().into(),
        directory: profile.path().into(),
        cluster_id: cluster_id.into(),
        state: status.condition,
        engines_started: engines.iter().map(|e| e.engines).sum(),
        engines_alive: is_known.then(|| engines.iter().map(|e| e.running).sum()),
        engines_queued: engines.iter().map(|e| e.queued).sum(),
        engine_kind: status.state.as_ref().map(|s| s.engine_kind.clone()),
        launcher: engines.first().map(|e| e.launcher.clone()),
        engines,
        controller_launch,
        started: status
            .state
            .as_ref()
            .map(|s| s.started)
            .or_else(|| Some(crate::sys::clock::unix_now() - status.controller.as_ref()?.age()?.as_secs_f64())),
        controller: status.controller,
        unseen: status.unseen,
        database,
        problem: status
            .problem
            .or_else(|| controller_problem(profile, cluster_id).filter(|_| status.condition == Condition::Running))
            .or_else(|| monitor.as_ref()?.problem.clone()),
        tunnel: status.tunnel,
        walltime_monitor: monitor,
    })
}

/// The state of one cluster, from files and the process table.
pub(super) struct ClusterStatus {
    pub condition: Condition,
    pub state: Option<ClusterState>,
    pub connection: Option<ConnectionFile>,
    /// The running controller, else the last one.
    pub controller: Option<ProcessId>,
    /// Why its processes are not visible from this host.
    pub unseen: Option<String>,
    pub problem: Option<String>,
    /// A running tunnel, or one that left its file.
    pub tunnel: Option<TunnelState>,
}

/// The error for a command on local clusters that was given a connected remote one.
pub(super) fn connected(profile: &ProfileDir, cluster_id: &str) -> ClusterError {
    let destination = remote::running(profile, cluster_id).map(|tunnel| tunnel.destination);
    ClusterError::Remote(remote::RemoteError::Connected {
        cluster: super::describe(profile, cluster_id),
        options: super::options_of(profile, cluster_id),
        destination: destination.unwrap_or_else(|| "another host".into()),
    })
}

impl ClusterStatus {
    /// Fails unless the cluster is running, perhaps on another host.
    pub(super) fn running(profile: &ProfileDir, cluster_id: &str) -> Result<ClusterStatus, ClusterError> {
        let status = ClusterStatus::of(profile, cluster_id);
        match status.condition {
            Condition::Running | Condition::Remote => Ok(status),
            _ => Err(super::not_running(profile, cluster_id)),
        }
    }

    pub(super) fn of(profile: &ProfileDir, cluster_id: &str) -> ClusterStatus {
        let mut problem = None;
        let state = ClusterState::read(profile, cluster_id).unwrap_or_else(|e| {
            problem = Some(e.to_string());
            None
        });
        let connection = match ConnectionFile::read(&profile.client_file(cluster_id)) {
            Ok(file) => Some(file),
            Err(ConnectionError::Missing { .. }) => None,
            Err(e) => {
                problem = Some(e.to_string());
                None
            }
        };
        let recorded = state.as_ref().and_then(|s| s.controller.as_ref()).and_then(|launched| {
            let mut id = launched.processes.first()?.id.clone();
            if id.host.is_empty() {
                id.host.clone_from(&launched.host);
            }
            Some(or_successor(id))
        });
        let published = connection.as_ref().and_then(|file| Some(file.pcluster.as_ref()?.process.clone()));
        let holder = match lock::ask(&profile.controller_lock(cluster_id)) {
            LockState::Held(holder) => Some(holder.map(|holder| holder.process)),
            LockState::Free => None,
            LockState::Unknown(why) => {
                tracing::debug!("cannot determine whether the controller's lock is held: {why}");
                None
            }
        };
        // For a controller in a job: ask the batch system.
        let job = state.as_ref().and_then(|s| s.controller.as_ref()).filter(|l| !l.jobs.is_empty());
        let job_stage = job.and_then(|launched| {
            let config = Config::load(profile).unwrap_or_default();
            let launcher = launchers::by_name(&launched.launcher, profile, &config).ok()?;
            launcher.states(launched).first().map(|state| state.stage)
        });
        let of_job = job.map(|launched| ProcessId {
            host: format!("{} job {}", launched.launcher, launched.jobs[0].id),
            ..ProcessId::default()
        });
        let tunnel = TunnelState::read(&profile.tunnel_file(cluster_id)).unwrap_or_else(|e| {
            problem = Some(e.to_string());
            None
        });
        let foreign = connection.as_ref().is_some_and(|file| file.pcluster.is_none());
        let known: Vec<&ProcessId> = published.iter().chain(&recorded).chain(&of_job).collect();
        let shared = network_fs::may_be_shared(profile.path());
        let locker = holder.as_ref().and_then(Option::as_ref);
        let running = locker.into_iter().chain(known.iter().copied()).find(|process| process.runs());
        let unseen = known.iter().copied().chain(locker).find_map(|process| why_unseen(process, shared));
        let unseen = unseen.filter(|_| running.is_none());
        let ended_in_order = !profile.controller_file(cluster_id).exists() && connection.is_none();
        let is_record_alone = ended_in_order && state.as_ref().is_some_and(nothing_runs);
        let left_over = profile.engine_file(cluster_id).exists() || problem.is_some() || tunnel.is_some();
        let left_over = left_over || !(is_record_alone || state.is_none());
        let condition = if tunnel.as_ref().is_some_and(|tunnel| tunnel.runs() == Some(true)) {
            Condition::Connected
        } else if holder.is_some()
            || known.iter().any(|process| process.runs())
            || matches!(job_stage, Some(Stage::Queued | Stage::Running | Stage::Suspended))
        {
            Condition::Running
        } else if job_stage == Some(Stage::Ended) {
            Condition::Stale
        } else if foreign {
            Condition::Foreign
        } else if unseen.is_some() {
            Condition::Remote
        } else if left_over || !(known.is_empty() || is_record_alone) {
            Condition::Stale
        } else {
            Condition::Stopped
        };
        let leads_to = tunnel.as_ref().filter(|_| condition == Condition::Connected);
        let far = leads_to.map(|t| ProcessId {
            pid: t.leads_to.as_ref().and_then(|l| l.pid).unwrap_or_default(),
            host: t
                .leads_to
                .as_ref()
                .and_then(|l| l.host.clone())
                .unwrap_or_else(|| t.destination.clone()),
            ..ProcessId::default()
        });
        // Prefers the controller process over its supervisor.
        let of_running = known.iter().copied().find(|process| process.runs()).or(running);
        let not_gone = known.iter().copied().find(|process| !process.is_gone());
        let controller = of_running.or(not_gone).or(locker).or(known.first().copied()).cloned();
        let controller = far.or(controller);
        ClusterStatus {
            condition,
            state,
            connection,
            unseen,
            controller,
            problem,
            tunnel,
        }
    }
}

/// The cluster ids of all files in the profile, in order.
fn cluster_ids(profile: &ProfileDir) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    let places = [
        (profile.pid_dir(), "pcluster", ".json"),
        (profile.pid_dir(), "tunnel", ".json"),
        (profile.security_dir(), "ipcontroller", "-client.json"),
        (profile.path().to_path_buf(), "pcluster", ".db"),
    ];
    for (dir, before, after) in places {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let middle = name.to_str().and_then(|n| n.strip_prefix(before)?.strip_suffix(after));
            let id = match middle {
                Some("") => "",
                Some(middle) if middle.starts_with('-') && check_cluster_id(&middle[1..]).is_ok() => &middle[1..],
                _ => continue,
            };
            ids.insert(id.to_string());
        }
    }
    ids
}
