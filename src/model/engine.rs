//! What is known of an engine.
use super::{EngineId, EngineUuid, UnixTime};
use serde::{Deserialize, Serialize};

/// What an engine tells of itself when it registers. All fields but `uuid` may be missing (an `ipengine` sends none).
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
    /// `call`, `command`, `apply` …; an `ipengine` has only `apply`.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// The batch system's job that it is in, with the element of an array (`4711.3`); empty outside of one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub job: String,
    /// When that job's time is over, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<UnixTime>,
}

impl EngineFacts {
    /// Whether pcluster's own tasks can run there.
    pub fn is_native(&self) -> bool {
        self.has("call")
    }

    /// Whether it understands messages that hold what others would get in several.
    pub fn takes_joined(&self) -> bool {
        self.has(EngineFacts::JOINED)
    }

    pub const JOINED: &str = "joined";

    /// Whether it can open the files in which the controller keeps large buffers.
    pub fn reads_files(&self) -> bool {
        self.has(EngineFacts::FILES)
    }

    pub const FILES: &str = "files";

    fn has(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|c| c == capability)
    }
}

/// A registered engine as `pcluster engines` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineStatus {
    pub id: EngineId,
    #[serde(flatten)]
    pub facts: EngineFacts,
    /// `idle`, `busy`, `leaving` (told to stop, and finishing a task), `silent` (no heartbeat for a while, lease not yet over),
    /// `unavailable` (its Python does not work: it gets commands only).
    pub state: String,
    /// Why it is `unavailable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Tasks sent there and not finished.
    pub assigned: u32,
    /// Tasks finished there since it registered.
    pub finished: u64,
    pub registered: UnixTime,
}
