//! ipyparallel's hub requests and notifications: the messages of its client and of `ipengine` on
//! the registration port.
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const CONNECTION: &str = "connection_request";
#[derive(Debug, Serialize)]
pub struct ConnectionReply {
    pub status: String,
    /// Engine id (as text, like all JSON keys) to uuid.
    pub engines: BTreeMap<String, String>,
}

pub const REGISTRATION: &str = "registration_request";
#[derive(Debug, Deserialize)]
pub struct Registration {
    pub uuid: String,
    #[serde(default)]
    pub id: Option<u32>,
}

pub const UNREGISTRATION: &str = "unregistration_request";
#[derive(Debug, Deserialize)]
pub struct Unregistration {
    pub id: u32,
}

pub const REGISTRATION_NOTIFICATION: &str = "registration_notification";
pub const UNREGISTRATION_NOTIFICATION: &str = "unregistration_notification";
pub const SHUTDOWN_NOTIFICATION: &str = "shutdown_notification";
#[derive(Debug, Serialize, Deserialize)]
pub struct EngineNotification {
    pub id: u32,
    pub uuid: String,
}

pub const BECOME_DASK: &str = "become_dask_request";
pub const STOP_DASK: &str = "stop_distributed_request";
#[derive(Debug, Deserialize, Default)]
#[serde(default)]
pub struct BecomeDask {
    /// Arguments of Dask's `Scheduler`, by name.
    pub scheduler_args: serde_json::Value,
}

/// Engines given by number or uuid; none or null means all.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum HubTarget {
    Id(u32),
    Uuid(String),
}
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum HubTargets {
    One(HubTarget),
    Many(Vec<HubTarget>),
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
pub struct TargetsRequest {
    pub targets: Option<HubTargets>,
    pub verbose: bool,
}

#[derive(Debug, Deserialize)]
pub struct ResultRequest {
    pub msg_ids: Vec<String>,
    #[serde(default)]
    pub status_only: bool,
}
