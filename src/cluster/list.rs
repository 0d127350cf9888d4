//! What clusters there are, and whether they run. Read from files and the process table; no controller is asked.
use super::{ClusterError, ClusterState};
use crate::connection::{ConnectionError, ConnectionFile, process};
use crate::launchers::{self, Launched, Stage};
use crate::profile::Config;
use crate::profile::ProfileDir;
use crate::profile::dir::check_cluster_id;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// Its controller runs.
    Running,
    /// Its controller is gone, and has left files or engines.
    Stale,
    /// Nothing of it runs; its tasks may be on record.
    Stopped,
    /// It was started on another host, from where nothing can be told here.
    Elsewhere,
    /// Another controller than pcluster's wrote the connection file.
    Foreign,
}

impl std::fmt::Display for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Condition::Running => "running",
            Condition::Stale => "stale",
            Condition::Stopped => "stopped",
            Condition::Elsewhere => "elsewhere",
            Condition::Foreign => "foreign",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClusterSummary {
    pub profile: String,
    pub directory: PathBuf,
    pub cluster_id: String,
    pub state: Condition,
    pub controller: Option<ControllerProcess>,
    /// How many engine processes were started, and how many of them run (none where that cannot be told from here).
    pub engines_started: usize,
    pub engines_alive: Option<usize>,
    pub engine_kind: Option<String>,
    pub launcher: Option<String>,
    /// Seconds since 1970.
    pub started: Option<f64>,
    /// The tasks' records, where there are any.
    pub database: Option<PathBuf>,
    /// What is wrong with its files.
    pub trouble: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ControllerProcess {
    pub pid: u32,
    pub host: String,
    /// Seconds since 1970.
    pub started: f64,
}

impl ControllerProcess {
    pub(super) fn is_here(&self) -> bool {
        self.host == process::host()
    }
    pub(super) fn runs_here(&self) -> bool {
        self.is_here() && process::is_same_process(self.pid, self.started)
    }
}

/// Whether something of the controller runs here, were it only the supervisor that is about to start it again.
pub fn is_supervised(profile: &ProfileDir, cluster_id: &str) -> bool {
    Standing::of(profile, cluster_id).condition == Condition::Running
}

/// All clusters of all profiles.
pub fn list(ipython_dir: Option<&Path>) -> Result<Vec<ClusterSummary>, ClusterError> {
    Ok(ProfileDir::all(ipython_dir)?.iter().flat_map(list_profile).collect())
}

/// All clusters of a profile, the default one first.
pub fn list_profile(profile: &ProfileDir) -> Vec<ClusterSummary> {
    cluster_ids(profile).iter().filter_map(|id| status(profile, id)).collect()
}

/// One cluster; none if there is no trace of it.
pub fn status(profile: &ProfileDir, cluster_id: &str) -> Option<ClusterSummary> {
    let standing = Standing::of(profile, cluster_id);
    let database = Some(profile.database_file(cluster_id)).filter(|path| path.exists());
    if standing.condition == Condition::Stopped && database.is_none() {
        return None;
    }
    let engines: Vec<_> = standing.state.iter().flat_map(|s| &s.engines).collect();
    let config = Config::load(profile).unwrap_or_default();
    let alive = |launched: &&Launched| {
        let states = launchers::by_name(&launched.launcher, profile, &config).ok()?.states(launched);
        let known = states.iter().all(|state| state.stage != Stage::Unknown);
        known.then(|| states.iter().filter(|state| state.is_there()).count())
    };
    Some(ClusterSummary {
        profile: profile.name().into(),
        directory: profile.path().into(),
        cluster_id: cluster_id.into(),
        state: standing.condition,
        engines_started: engines.iter().map(|e| e.engines()).sum(),
        engines_alive: engines.iter().map(alive).sum(),
        engine_kind: standing.state.as_ref().map(|s| s.engine_kind.clone()),
        launcher: engines.first().map(|e| e.launcher.clone()),
        started: standing
            .state
            .as_ref()
            .map(|s| s.started)
            .or(standing.controller.as_ref().map(|c| c.started)),
        controller: standing.controller,
        database,
        trouble: standing.trouble,
    })
}

/// What the files and the process table say of one cluster.
pub(super) struct Standing {
    pub condition: Condition,
    pub state: Option<ClusterState>,
    pub connection: Option<ConnectionFile>,
    /// The controller that runs, else the last one.
    pub controller: Option<ControllerProcess>,
    pub trouble: Option<String>,
}

impl Standing {
    pub fn of(profile: &ProfileDir, cluster_id: &str) -> Standing {
        let mut trouble = None;
        let state = ClusterState::read(profile, cluster_id).unwrap_or_else(|e| {
            trouble = Some(e.to_string());
            None
        });
        let connection = match ConnectionFile::read(&profile.client_file(cluster_id)) {
            Ok(file) => Some(file),
            Err(ConnectionError::Missing { .. }) => None,
            Err(e) => {
                trouble = Some(e.to_string());
                None
            }
        };
        let recorded = state.as_ref().and_then(|s| s.controller.as_ref()).and_then(|launched| {
            let process = launched.processes.first()?;
            Some(ControllerProcess {
                pid: process.pid,
                host: launched.host.clone(),
                started: process.started,
            })
        });
        let published = connection
            .as_ref()
            .and_then(|file| file.pcluster.as_ref())
            .map(|keys| ControllerProcess {
                pid: keys.pid,
                host: keys.host.clone(),
                started: keys.started,
            });
        let foreign = connection.as_ref().is_some_and(|file| file.pcluster.is_none());
        let known: Vec<&ControllerProcess> = published.iter().chain(&recorded).collect();
        let left_over = profile.engine_file(cluster_id).exists() || trouble.is_some() || state.is_some();
        let condition = if known.iter().any(|c| c.runs_here()) {
            Condition::Running
        } else if foreign {
            Condition::Foreign
        } else if known.iter().any(|c| !c.is_here()) {
            Condition::Elsewhere
        } else if !known.is_empty() || left_over {
            Condition::Stale
        } else {
            Condition::Stopped
        };
        let controller = known.iter().find(|c| c.runs_here()).or(known.first()).map(|c| (*c).clone());
        Standing {
            condition,
            state,
            connection,
            controller,
            trouble,
        }
    }
}

/// The ids that any file of the profile names, in order.
fn cluster_ids(profile: &ProfileDir) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    let places = [
        (profile.pid_dir(), "pcluster", ".json"),
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
