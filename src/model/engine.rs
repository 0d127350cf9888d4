//! Engines as they are known to the controller and its clients.
use super::node::NodeFacts;
use super::open_enum::open_enum;
use super::resources::Request;
use super::{EngineId, EngineUuid, UnixTime};
use serde::{Deserialize, Serialize};

/// An engine's description of itself at registration. All fields but `uuid` may be missing (an
/// `ipengine` sends none).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineFacts {
    pub uuid: EngineUuid,
    #[serde(default)]
    pub host: String,
    #[serde(default)]
    pub pid: u32,
    /// pcluster's version, or empty.
    #[serde(default)]
    pub version: String,
    /// The Python of its worker, e.g. `3.11.7 (/usr/bin/python3)`, or empty.
    #[serde(default)]
    pub python: String,
    /// `call`, `command`, `apply` …; an `ipengine` supports only `apply`.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// The batch job that contains the engine, with the element of an array (`4711.3`); empty
    /// outside a batch system.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub job: String,
    /// The end of that job's time limit, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<UnixTime>,
    /// What its node has, shared by the engines of this host and job.
    #[serde(default, skip_serializing_if = "NodeFacts::is_empty")]
    pub node: NodeFacts,
}

impl EngineFacts {
    /// Whether the engine can run pcluster's own tasks.
    pub fn is_native(&self) -> bool {
        self.has("call")
    }

    /// Whether it understands messages that combine several others.
    pub fn supports_joined(&self) -> bool {
        self.has(EngineFacts::JOINED)
    }

    pub const JOINED: &str = "joined";

    /// Whether it can open the files in which the controller stores large buffers.
    pub fn supports_files(&self) -> bool {
        self.has(EngineFacts::FILES)
    }

    pub const FILES: &str = "files";

    /// Whether it accepts inputs in buffers of a message.
    pub fn supports_input_buffers(&self) -> bool {
        self.has(EngineFacts::INPUT_BUFFERS)
    }

    pub const INPUT_BUFFERS: &str = "input_buffers";

    fn has(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|c| c == capability)
    }
}

open_enum! {
    pub enum EngineState {
        Idle => "idle",
        Busy => "busy",
        /// Requested to stop, finishing a task.
        Leaving => "leaving",
        /// Heartbeats are missing, but the lease has not expired.
        Silent => "silent",
        /// Its Python does not work: it receives commands only.
        Unavailable => "unavailable",
    }
}

impl EngineState {
    /// Whether it is connected and not about to leave.
    pub(crate) fn is_staying(&self) -> bool {
        !matches!(self, EngineState::Silent | EngineState::Leaving)
    }
}

/// A registered engine as displayed by `pcluster engines`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineStatus {
    pub id: EngineId,
    #[serde(flatten)]
    pub facts: EngineFacts,
    pub state: EngineState,
    /// Why it is `unavailable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Tasks sent to it and not finished.
    pub assigned: u32,
    /// Tasks finished on it since it registered.
    pub finished: u64,
    pub registered: UnixTime,
    /// What its tasks use of the node, if they asked for more than one processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<Request>,
}

/// An engine as recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineRow {
    pub id: EngineId,
    #[serde(flatten)]
    pub facts: EngineFacts,
    pub registered: UnixTime,
    /// When it left, and why; neither if it has not, or the controller ended first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<UnixTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
