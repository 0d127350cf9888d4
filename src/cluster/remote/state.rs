//! What is known of a tunnel, as JSON in the profile's `pid/`: by `connect` for the tunnel's process, by that process for
//! all who want to know. It holds no keys.
use crate::cluster::ClusterError;
use crate::profile::ProfileDir;
use crate::sys::private_file;
use crate::sys::process::{self, ProcessId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

/// Of the file's form; a later one only adds.
const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TunnelState {
    pub version: u32,
    /// As it is given to ssh.
    pub destination: String,
    /// Which cluster there; none where it is the only one or is called as here.
    #[serde(default)]
    pub remote_profile: Option<String>,
    #[serde(default)]
    pub remote_cluster_id: Option<String>,
    #[serde(default)]
    pub remote_ipython_dir: Option<String>,
    /// This host.
    pub host: String,
    /// The process that keeps the tunnel running, and the tunnel.
    #[serde(default)]
    pub supervisor: Option<ProcessId>,
    #[serde(default)]
    pub tunnel: Option<ProcessId>,
    /// The ssh connection's directory, to be cleared when the tunnel could not.
    #[serde(default)]
    pub place: Option<PathBuf>,
    /// The ports here, by channel. Kept from one process to the next.
    #[serde(default)]
    pub ports: BTreeMap<String, u16>,
    pub phase: Phase,
    /// Since when (seconds since 1970).
    pub since: f64,
    #[serde(default)]
    pub problem: Option<String>,
    #[serde(default)]
    pub hints: Vec<String>,
    /// The problem is that there is no such cluster.
    #[serde(default)]
    pub missing: bool,
    /// The cluster that it leads to: its profile and id there.
    #[serde(default)]
    pub leads_to: Option<LeadsTo>,
    /// How often it was connected anew.
    #[serde(default)]
    pub reconnects: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeadsTo {
    pub profile: String,
    pub cluster_id: String,
    /// The controller's process and host, where it says so.
    pub pid: Option<u32>,
    pub host: Option<String>,
    /// Its address as seen from the other end of the ssh connection.
    pub address: String,
    /// The connection file there.
    pub path: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// For the first time.
    Connecting,
    /// It leads to a controller.
    Up,
    /// The ssh connection is lost; it is made again.
    Down,
    /// The other host is there, and no cluster runs on it.
    Waiting,
    /// It could not be made, and the process has ended.
    Failed,
}

impl TunnelState {
    pub fn new(destination: &str) -> TunnelState {
        TunnelState {
            version: VERSION,
            destination: destination.into(),
            remote_profile: None,
            remote_cluster_id: None,
            remote_ipython_dir: None,
            host: process::host(),
            supervisor: None,
            tunnel: None,
            place: None,
            ports: BTreeMap::new(),
            phase: Phase::Connecting,
            since: crate::sys::clock::unix_now(),
            problem: None,
            hints: Vec::new(),
            missing: false,
            leads_to: None,
            reconnects: 0,
        }
    }

    /// None if there is no tunnel on record.
    pub fn read(profile: &ProfileDir, cluster_id: &str) -> Result<Option<TunnelState>, ClusterError> {
        let path = profile.tunnel_file(cluster_id);
        let failed = |path: PathBuf, why: String| ClusterError::StateFile { doing: "read", path, why };
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| failed(path, e.to_string())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed(path, e.to_string())),
        }
    }

    pub fn write(&self, profile: &ProfileDir, cluster_id: &str) -> Result<(), ClusterError> {
        let path = profile.tunnel_file(cluster_id);
        let written = serde_json::to_vec_pretty(self)
            .map_err(io::Error::from)
            .and_then(|text| private_file::write(&path, &text));
        written.map_err(|e| ClusterError::StateFile {
            doing: "write",
            path,
            why: e.to_string(),
        })
    }

    /// Whether anything of it runs on this host.
    pub fn runs(&self) -> bool {
        self.host == process::host() && self.processes().any(|own| own.runs())
    }

    /// The supervisor first.
    pub fn processes(&self) -> impl Iterator<Item = &ProcessId> {
        self.supervisor.iter().chain(&self.tunnel)
    }

    /// In a few words, for people.
    pub fn in_words(&self) -> String {
        let problem = self
            .problem
            .as_ref()
            .map(|p| format!(": {}", p.lines().next().unwrap_or_default()))
            .unwrap_or_default();
        match self.phase {
            Phase::Connecting => format!("the tunnel to {} is being made", self.destination),
            Phase::Up => format!("the tunnel to {} is up", self.destination),
            Phase::Down => format!("the connection to {} is lost and is being made again{problem}", self.destination),
            Phase::Waiting => format!("the tunnel to {} is up, but no cluster is reached there{problem}", self.destination),
            Phase::Failed => format!("the tunnel to {} could not be made{problem}", self.destination),
        }
    }
}

/// The tunnel of a cluster, if one runs.
pub fn running(profile: &ProfileDir, cluster_id: &str) -> Option<TunnelState> {
    TunnelState::read(profile, cluster_id).ok().flatten().filter(TunnelState::runs)
}
