//! Errors of connection files, with suggested actions.
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("no cluster is running in {}: there is no {}", cluster_name(path), path.display())]
    Missing { path: PathBuf },
    #[error("the cluster in {} is gone: {} was written by process {pid} on {host}, which no longer runs", cluster_name(path), path.display())]
    Stale { path: PathBuf, pid: u32, host: String },
    #[error("{} did not appear within {seconds} s", path.display())]
    TimedOut { path: PathBuf, seconds: f64 },
    #[error("cannot read the connection file {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the connection file {} is not JSON: {why}", path.display())]
    NotJson { path: PathBuf, why: String },
    #[error("the connection file {} lacks {}", path.display(), keys.join(", "))]
    MissingKeys { path: PathBuf, keys: Vec<String> },
    #[error("the connection file {} is malformed: {why}", path.display())]
    Malformed { path: PathBuf, why: String },
    #[error("{} was not written by a pcluster controller", path.display())]
    NotPcluster { path: PathBuf },
    #[error("cannot write the connection file {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl ConnectionError {
    /// The file exists but is not a connection file.
    pub fn is_damaged(&self) -> bool {
        matches!(
            self,
            ConnectionError::NotJson { .. } | ConnectionError::MissingKeys { .. } | ConnectionError::Malformed { .. }
        )
    }

    /// A suggested action.
    pub fn hint(&self) -> Option<String> {
        match self {
            ConnectionError::Missing { path } => Some(format!(
                "start one: pcluster start{} -n 4; `pcluster list` shows running clusters",
                options(path)
            )),
            ConnectionError::Stale { path, .. } => Some(format!(
                "remove it: pcluster stop{0}, or start a new cluster: pcluster start{0}",
                options(path)
            )),
            ConnectionError::NotJson { path, .. } | ConnectionError::MissingKeys { path, .. } | ConnectionError::Malformed { path, .. } => {
                Some(format!("write a new one: pcluster stop{0}, then pcluster start{0}", options(path)))
            }
            ConnectionError::NotPcluster { path } => Some(format!(
                "pcluster's commands need a pcluster controller: stop the other one, then pcluster start{}",
                options(path)
            )),
            ConnectionError::TimedOut { .. } | ConnectionError::Read { .. } | ConnectionError::Write { .. } => None,
        }
    }
}

/// The profile and cluster id of a connection file at its usual path.
fn owner(path: &Path) -> Option<(String, String)> {
    let profile = path.parent()?.parent()?.file_name()?.to_str()?.strip_prefix("profile_")?;
    let middle = path.file_name()?.to_str()?.strip_prefix("ipcontroller")?;
    let middle = middle
        .strip_suffix("-client.json")
        .or_else(|| middle.strip_suffix("-engine.json"))?;
    Some((profile.to_string(), middle.strip_prefix('-').unwrap_or_default().to_string()))
}

fn cluster_name(path: &Path) -> String {
    match owner(path) {
        Some((profile, id)) if id.is_empty() => format!("profile {profile:?}"),
        Some((profile, id)) => format!("profile {profile:?} with cluster id {id:?}"),
        None => path.parent().unwrap_or(path).display().to_string(),
    }
}

fn options(path: &Path) -> String {
    let Some((profile, id)) = owner(path) else { return String::new() };
    crate::model::shell::cluster_options(&profile, &id)
}
