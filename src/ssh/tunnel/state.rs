//! The state of a tunnel, as JSON in the profile's `pid/`: written first by the command that starts the daemon, then by the daemon for all
//! readers. It holds no keys. A tunnel whose state file is removed ends.
use super::error::TunnelError;
use crate::profile::ProfileDir;
use crate::sys::process::{self, Presence, ProcessId};
use crate::sys::{clock, private_file};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The version of the file's format; later versions only add fields.
const VERSION: u32 = 1;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    #[default]
    /// Ports of this host are forwarded to a controller that the other host can reach.
    Forward,
    /// Ports of the other host are forwarded to a controller that this host can reach.
    Reverse,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TunnelState {
    pub version: u32,
    pub direction: Direction,
    /// The other host, as passed to ssh.
    pub destination: String,
    /// The profile's directory on this host, and the cluster's id in it.
    pub profile: PathBuf,
    pub cluster_id: String,
    /// The controller's channels that are forwarded.
    pub channels: Vec<String>,
    /// The requested cluster on the other host, if it is not the only one or has another name than the local one.
    #[serde(default)]
    pub remote_profile: Option<String>,
    #[serde(default)]
    pub remote_cluster_id: Option<String>,
    #[serde(default)]
    pub remote_ipython_dir: Option<String>,
    /// The host of the daemon.
    pub host: String,
    /// The process that keeps the daemon running, and the daemon.
    #[serde(default)]
    pub supervisor: Option<ProcessId>,
    #[serde(default)]
    pub daemon: Option<ProcessId>,
    /// The ssh connection's directory, to be removed if the daemon could not.
    #[serde(default)]
    pub control_dir: Option<PathBuf>,
    /// The tunnel's own ports, by channel. They stay the same across reconnects and restarts of the daemon.
    #[serde(default)]
    pub ports: BTreeMap<String, u16>,
    /// The process that serves the connection on the other host: after a network failure it may still run and hold the ports.
    #[serde(default)]
    pub session: Option<ProcessId>,
    pub phase: Phase,
    /// The time of the last change of the phase (seconds since 1970).
    pub since: f64,
    #[serde(default)]
    pub problem: Option<String>,
    #[serde(default)]
    pub hints: Vec<String>,
    /// The problem is that there is no such cluster.
    #[serde(default)]
    pub missing: bool,
    #[serde(default)]
    pub leads_to: Option<LeadsTo>,
    /// The number of reconnects.
    #[serde(default)]
    pub reconnects: u64,
}

/// A controller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct LeadsTo {
    /// Its cluster's profile and id on its own host.
    pub profile: String,
    pub cluster_id: String,
    /// Its process and host, if it has published them.
    pub pid: Option<u32>,
    pub host: Option<String>,
    /// Its address, as seen from the end of the tunnel that connects to it.
    pub address: String,
    /// Its connection file.
    pub path: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    #[default]
    /// Connecting for the first time.
    Connecting,
    /// The tunnel reaches a controller.
    Up,
    /// The ssh connection is lost; reconnecting.
    Down,
    /// The other host answers, and no controller is found.
    Waiting,
    /// It could not be established, and the daemon has ended.
    Failed,
}

impl TunnelState {
    pub(crate) fn new(direction: Direction, destination: &str, profile: &Path, cluster_id: &str, channels: Vec<String>) -> TunnelState {
        TunnelState {
            version: VERSION,
            direction,
            destination: destination.into(),
            profile: profile.into(),
            cluster_id: cluster_id.into(),
            channels,
            host: process::host(),
            since: clock::unix_now(),
            ..TunnelState::default()
        }
    }

    /// None if there is no such tunnel on record.
    pub(crate) fn read(path: &Path) -> Result<Option<TunnelState>, TunnelError> {
        let failed = |why: String| TunnelError::State {
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

    pub(crate) fn write(&self, path: &Path) -> Result<(), TunnelError> {
        let written = serde_json::to_vec_pretty(self)
            .map_err(io::Error::from)
            .and_then(|text| private_file::write(path, &text));
        written.map_err(|e| TunnelError::State {
            doing: "write",
            path: path.into(),
            why: e.to_string(),
        })
    }

    /// Whether any of its processes is running; none if that cannot be determined on this host.
    pub(crate) fn runs(&self) -> Option<bool> {
        if self.host != process::host() {
            return None;
        }
        let is_unknown = |own: &ProcessId| matches!(own.presence(), Presence::Unknown(_));
        match self.processes().any(ProcessId::runs) {
            true => Some(true),
            false => (!self.processes().any(is_unknown)).then_some(false),
        }
    }

    /// The supervisor first.
    pub(crate) fn processes(&self) -> impl Iterator<Item = &ProcessId> {
        self.supervisor.iter().chain(&self.daemon)
    }

    /// Profile and cluster id on the other host: of the cluster that was found, else of the one that was asked for.
    pub(crate) fn remote_names(&self) -> (Option<&str>, Option<&str>) {
        match &self.leads_to {
            Some(found) => (Some(&found.profile), Some(&found.cluster_id)),
            None => (self.remote_profile.as_deref(), self.remote_cluster_id.as_deref()),
        }
    }

    /// The log of its daemon.
    pub(crate) fn log(&self) -> PathBuf {
        let profile = ProfileDir::at(&self.profile);
        match self.direction {
            Direction::Forward => profile.tunnel_log(&self.cluster_id),
            Direction::Reverse => profile.reverse_log(&self.cluster_id, &self.destination),
        }
    }

    /// A one-line description for people.
    pub(crate) fn describe(&self) -> String {
        let to = &self.destination;
        let problem = self.problem.as_ref().and_then(|p| p.lines().next());
        let problem = problem.map(|p| format!(": {p}")).unwrap_or_default();
        let (tunnel, connection) = match self.direction {
            Direction::Forward => ("tunnel", "connection"),
            Direction::Reverse => ("reverse tunnel", "reverse tunnel"),
        };
        if self.runs() == Some(false) {
            return format!("the process of the {tunnel} to {to} is gone{problem}");
        }
        match self.phase {
            Phase::Connecting => format!("the {tunnel} to {to} is being established"),
            Phase::Up => format!("the {tunnel} to {to} is up"),
            Phase::Down => format!("the {connection} to {to} is lost; reconnecting{problem}"),
            Phase::Waiting => format!("the {tunnel} to {to} is up, but no cluster is reached there{problem}"),
            Phase::Failed => format!("the {tunnel} to {to} could not be established{problem}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnel_states_round_trip_and_are_described() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid/tunnel.json");
        assert_eq!(TunnelState::read(&file).unwrap(), None);
        let mut state = TunnelState::new(Direction::Reverse, "node1", dir.path(), "night", vec!["native".into()]);
        assert_eq!(state.runs(), Some(false), "no process is on record");
        state.daemon = Some(ProcessId::own());
        state.problem = Some("the cable\nis cut".into());
        state.phase = Phase::Down;
        state.write(&file).unwrap();
        let state = TunnelState::read(&file).unwrap().unwrap();
        assert_eq!(state.runs(), Some(true));
        assert_eq!(state.describe(), "the reverse tunnel to node1 is lost; reconnecting: the cable");
        assert_eq!(state.log(), dir.path().join("log/tunnel-night-to-node1.log"));
        let forward = TunnelState {
            direction: Direction::Forward,
            ..state.clone()
        };
        assert_eq!(forward.describe(), "the connection to node1 is lost; reconnecting: the cable");
        let elsewhere = TunnelState {
            host: "elsewhere.invalid".into(),
            ..state
        };
        assert_eq!(elsewhere.runs(), None);
        std::fs::write(&file, "{}").unwrap();
        assert!(TunnelState::read(&file).unwrap_err().to_string().contains("tunnel.json"));
    }

    #[test]
    fn remote_names_are_those_of_the_found_cluster() {
        let mut state = TunnelState::new(Direction::Forward, "login", Path::new("/p"), "", Vec::new());
        assert_eq!(state.remote_names(), (None, None));
        state.remote_profile = Some("hpc".into());
        assert_eq!(state.remote_names(), (Some("hpc"), None));
        state.leads_to = Some(LeadsTo {
            profile: "hpc".into(),
            cluster_id: "night".into(),
            ..LeadsTo::default()
        });
        assert_eq!(state.remote_names(), (Some("hpc"), Some("night")));
    }
}
