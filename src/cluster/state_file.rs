//! The state file: the processes of a cluster as JSON in the profile's `pid/`, so that another process can stop it.
//!
//! Unknown keys, written by a later version, are preserved.
use super::allocator::record::ElasticCluster;
use super::{ClusterError, ipyparallel_file};
use crate::launchers::local::Local;
use crate::launchers::{Launched, Launcher, MemberState, Process};
use crate::profile::ProfileDir;
use crate::sys::{private_file, process};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::PathBuf;

/// The version of the format; later versions only add keys.
const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClusterState {
    pub version: u32,
    /// The version of the pcluster that wrote it.
    pub pcluster: String,
    pub cluster_id: String,
    /// The host on which `start` ran.
    pub host: String,
    /// Its working directory.
    pub cwd: PathBuf,
    /// Seconds since 1970.
    pub started: f64,
    /// `pcluster` or `ipengine`.
    pub engine_kind: String,
    /// The requested number of engines.
    pub n: u32,
    /// The number of the next engine's log file.
    pub next_engine: u32,
    pub controller: Option<Launched>,
    /// The settings of the first engines, used for further ones too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engine_settings: Vec<(String, String)>,
    /// One for each launch of engines.
    pub engines: Vec<Launched>,
    /// The process that restarts engines after walltime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub walltime_monitor: Option<WalltimeMonitorState>,
    /// Set if the monitor decides how many engines there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elastic: Option<ElasticCluster>,
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

impl ClusterState {
    pub(crate) fn new(cluster_id: &str, cwd: PathBuf) -> ClusterState {
        ClusterState {
            version: VERSION,
            pcluster: crate::model::VERSION.into(),
            cluster_id: cluster_id.into(),
            host: process::host(),
            cwd,
            started: crate::sys::clock::unix_now(),
            engine_kind: "pcluster".into(),
            n: 0,
            next_engine: 0,
            controller: None,
            engine_settings: Vec::new(),
            engines: Vec::new(),
            walltime_monitor: None,
            elastic: None,
            other: Default::default(),
        }
    }

    /// None if there is no such file.
    pub(crate) fn read(profile: &ProfileDir, cluster_id: &str) -> Result<Option<ClusterState>, ClusterError> {
        let path = profile.state_file(cluster_id);
        let failed = |path: PathBuf, why: String| ClusterError::StateUnreadable { path, why };
        match fs::read(&path) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(state) => Ok(Some(state)),
                Err(e) => Err(failed(path, e.to_string())),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed(path, e.to_string())),
        }
    }

    /// Atomically replaces the file, and ipyparallel's; both are private.
    pub(crate) fn write(&self, profile: &ProfileDir) -> Result<(), ClusterError> {
        let path = profile.state_file(&self.cluster_id);
        let written = serde_json::to_vec_pretty(self)
            .map_err(io::Error::from)
            .and_then(|text| private_file::write(&path, &text));
        written.map_err(|e| ClusterError::StateFile {
            doing: "write",
            path,
            why: e.to_string(),
        })?;
        ipyparallel_file::update(profile, self);
        Ok(())
    }

    /// Engines, then the controller: the order of stopping.
    pub(crate) fn launched(&self) -> impl Iterator<Item = &Launched> {
        self.engines.iter().chain(&self.controller)
    }
}

/// The walltime monitor in the cluster's state file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct WalltimeMonitorState {
    /// Its host and supervisor.
    pub host: String,
    pub process: Process,
    /// Number of engines restarted so far.
    #[serde(default)]
    pub replaced: u32,
    /// Why the last restart failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl WalltimeMonitorState {
    /// Whether it is running; assumed if on another host.
    pub(crate) fn runs(&self) -> bool {
        let launched = self.launched();
        self.host != process::host() || !Local::default().states(&launched).iter().all(MemberState::has_ended)
    }

    /// As a launch, for stopping it.
    pub(crate) fn launched(&self) -> Launched {
        Launched {
            processes: vec![self.process.clone()],
            ..Launched::new("local", self.host.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::ProcessId;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    fn profile(dir: &Path) -> ProfileDir {
        let profile = ProfileDir::named("x", Some(dir)).unwrap();
        profile.create().unwrap();
        profile
    }

    #[test]
    fn state_files_round_trip_and_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let profile = profile(dir.path());
        assert_eq!(ClusterState::read(&profile, "night").unwrap(), None);
        let mut state = ClusterState::new("night", "/here".into());
        let process = Process {
            id: ProcessId::own(),
            log: "/log".into(),
            log_from: 3,
            ..Process::default()
        };
        let launched = |processes| Launched {
            processes,
            ..Launched::new("local", "h".into())
        };
        state.controller = Some(launched(vec![process.clone()]));
        state.engines = vec![launched(vec![process.clone(), process])];
        state.write(&profile).unwrap();
        assert_eq!(ClusterState::read(&profile, "night").unwrap(), Some(state));
        assert_eq!(ClusterState::read(&profile, "").unwrap(), None);
        let mode = fs::metadata(profile.state_file("night")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// As version 0.1.0 wrote it, and with what a later one might add.
    #[test]
    fn older_and_newer_files_are_parsed_and_keep_unknown_fields() {
        let dir = tempfile::tempdir().unwrap();
        let profile = profile(dir.path());
        let text = r#"{"version": 2, "pcluster": "0.1.0", "cluster_id": "", "host": "h", "cwd": "/", "started": 1.0, "engine_kind": "pcluster",
            "n": 1, "next_engine": 1, "colour": "blue",
            "controller": {"launcher": "local", "host": "h", "processes": [{"pid": 4, "started": 1.0, "log": "/l"}], "task": "12"},
            "engines": []}"#;
        fs::write(profile.state_file(""), text).unwrap();
        let state = ClusterState::read(&profile, "").unwrap().unwrap();
        assert_eq!(state.controller.as_ref().unwrap().processes[0].id.pid, 4);
        state.write(&profile).unwrap();
        let again: serde_json::Value = serde_json::from_slice(&fs::read(profile.state_file("")).unwrap()).unwrap();
        assert_eq!((&again["colour"], &again["controller"]["task"]), (&"blue".into(), &"12".into()));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let profile = profile(dir.path());
        fs::write(profile.state_file(""), "{").unwrap();
        let error = ClusterState::read(&profile, "").unwrap_err().to_string();
        assert!(
            error.starts_with(&format!(
                "cannot read the cluster's state {}: EOF",
                profile.state_file("").display()
            )),
            "{error}"
        );
    }
}
