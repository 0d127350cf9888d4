//! What is known of one reverse tunnel, as JSON in the profile's `pid/`: by the launcher for the tunnel's process, by that process
//! for all who want to know. It holds no keys. Where it is gone, the tunnel is to end.
use super::ReverseError;
use crate::profile::ProfileDir;
use crate::sys::private_file;
use crate::sys::process::{self, Presence, ProcessId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Of the file's form; a later one only adds.
const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReverseState {
    pub version: u32,
    /// The host of the engines, as it is given to ssh.
    pub to: String,
    /// The profile's directory, and the cluster's id in it.
    pub profile: PathBuf,
    pub cluster_id: String,
    /// Those of its channels that are led to.
    pub channels: Vec<String>,
    /// The host that the tunnel's process is on.
    pub host: String,
    /// The process that keeps the tunnel running, and the tunnel.
    #[serde(default)]
    pub supervisor: Option<ProcessId>,
    #[serde(default)]
    pub tunnel: Option<ProcessId>,
    /// The ssh connection's directory, to be cleared when the tunnel could not.
    #[serde(default)]
    pub place: Option<PathBuf>,
    /// The ports of the other host's loopback, by channel. They stay: the engines know no others.
    #[serde(default)]
    pub ports: BTreeMap<String, u16>,
    /// What serves the connection there: after a cut it may live on and hold the ports.
    #[serde(default)]
    pub session: Option<ProcessId>,
    /// The controller's address as seen from here.
    #[serde(default)]
    pub leads_to: Option<String>,
    pub phase: Phase,
    /// Since when (seconds since 1970).
    pub since: f64,
    #[serde(default)]
    pub problem: Option<String>,
    /// How often it was connected anew.
    #[serde(default)]
    pub reconnects: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// For the first time.
    Connecting,
    Up,
    /// The ssh connection is lost; it is made again.
    Down,
    /// It could not be made, and the process has ended.
    Failed,
}

impl ReverseState {
    pub fn new(to: &str, profile: &ProfileDir, cluster_id: &str, channels: Vec<String>) -> ReverseState {
        ReverseState {
            version: VERSION,
            to: to.into(),
            profile: profile.path().to_path_buf(),
            cluster_id: cluster_id.into(),
            channels,
            host: process::host(),
            supervisor: None,
            tunnel: None,
            place: None,
            ports: BTreeMap::new(),
            session: None,
            leads_to: None,
            phase: Phase::Connecting,
            since: 0.0,
            problem: None,
            reconnects: 0,
        }
    }

    /// None if there is no such tunnel on record.
    pub fn read(path: &Path) -> Result<Option<ReverseState>, ReverseError> {
        let failed = |why: String| ReverseError::State {
            doing: "read",
            path: path.into(),
            why,
        };
        match std::fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| failed(e.to_string())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed(e.to_string())),
        }
    }

    pub fn write(&self, path: &Path) -> Result<(), ReverseError> {
        let written = serde_json::to_vec_pretty(self)
            .map_err(io::Error::from)
            .and_then(|text| private_file::write(path, &text));
        written.map_err(|e| ReverseError::State {
            doing: "write",
            path: path.into(),
            why: e.to_string(),
        })
    }

    /// Whether anything of it runs; of one of another host that cannot be told.
    pub fn runs(&self) -> Option<bool> {
        let seen = self.host == process::host() && self.processes().all(|own| !matches!(own.presence(), Presence::Unknown(_)));
        seen.then(|| self.processes().any(|own| own.runs()))
    }

    /// The supervisor first.
    pub fn processes(&self) -> impl Iterator<Item = &ProcessId> {
        self.supervisor.iter().chain(&self.tunnel)
    }

    /// In a few words, for people.
    pub fn in_words(&self) -> String {
        let to = &self.to;
        let problem = self.problem.as_ref().and_then(|p| p.lines().next());
        let problem = problem.map(|p| format!(": {p}")).unwrap_or_default();
        if self.runs() == Some(false) {
            return format!("the process of the reverse tunnel to {to} is gone{problem}");
        }
        match self.phase {
            Phase::Connecting => format!("the reverse tunnel to {to} is being made"),
            Phase::Up => format!("the reverse tunnel to {to} is up"),
            Phase::Down => format!("the reverse tunnel to {to} is lost and is being made again{problem}"),
            Phase::Failed => format!("the reverse tunnel to {to} could not be made{problem}"),
        }
    }
}
