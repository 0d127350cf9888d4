//! Failures in ipyparallel's format (`status: error`, `ename`, `evalue`, `traceback`).
use crate::model::open_enum::open_enum;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ErrorContent {
    pub status: String,
    pub ename: String,
    pub evalue: String,
    #[serde(default)]
    pub traceback: Vec<String>,
    /// pcluster's own extension: a suggested action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_info: Option<serde_json::Value>,
}

impl ErrorContent {
    pub fn new(ename: &str, evalue: impl Into<String>) -> Self {
        let evalue = evalue.into();
        ErrorContent {
            status: "error".into(),
            ename: ename.into(),
            traceback: vec![format!("{ename}: {evalue}")],
            evalue,
            hint: None,
            engine_info: None,
        }
    }
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

open_enum! {
    /// The names of errors that a client distinguishes.
    pub enum Refusal {
        NoSuchMap => "NoSuchMap",
        NoSuchTask => "NoSuchTask",
        NoSuchEngine => "NoSuchEngine",
        /// The controller does not have the map's bundle: the client must send it.
        UnknownBundle => "UnknownBundle",
        /// The controller, of an earlier version, does not know the request: ipyparallel's name for it.
        UnknownRequest => "KeyError",
    }
}

impl Refusal {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Refusal::NoSuchMap | Refusal::NoSuchTask | Refusal::NoSuchEngine)
    }
}

/// The fields that every reply has.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    #[serde(default)]
    pub status: String,
}
