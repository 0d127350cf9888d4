//! Failures in ipyparallel's format (`status: error`, `ename`, `evalue`, `traceback`).
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

/// The fields that every reply has.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    #[serde(default)]
    pub status: String,
}
