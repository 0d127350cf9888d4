//! One connection file, as ipyparallel writes it (`ipcontroller[-<cluster id>]-{client,engine}.json` in the profile's
//! `security/`), with the keys that pcluster adds under `pcluster` (ipyparallel ignores keys it does not know).
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionFile {
    /// An ssh server through which the controller can be reached, or empty.
    #[serde(default)]
    pub ssh: String,
    /// `tcp://` and the address the controller listens on.
    pub interface: String,
    pub registration: u16,
    pub control: u16,
    pub mux: u16,
    pub task: u16,
    pub iopub: u16,
    /// Client file only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notification: Option<u16>,
    /// Client file only: `leastload`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_scheme: Option<String>,
    /// Engine file only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hb_ping: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hb_pong: Option<u16>,
    /// One port in the client file, a list of leaves in the engine file.
    pub broadcast: BroadcastPorts,
    /// The HMAC key.
    pub key: String,
    /// Z85, or null without CURVE.
    pub curve_serverkey: Option<String>,
    /// The controller's host: its address or name.
    pub location: String,
    pub pack: String,
    pub unpack: String,
    pub signature_scheme: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcluster: Option<PclusterKeys>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BroadcastPorts {
    One(u16),
    Leaves(Vec<u16>),
}

/// What pcluster adds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PclusterKeys {
    pub version: String,
    pub protocol: u32,
    pub cluster_id: String,
    /// Every address the controller can be reached at, best first; our engines try each.
    pub addresses: Vec<String>,
    /// Engine file only: the one port that our own engine uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_port: Option<u16>,
    /// The controller process, to tell a stale file by.
    pub pid: u32,
    pub host: String,
    /// When that process started (seconds since 1970).
    pub started: f64,
}
