//! One connection file, as ipyparallel writes it (`ipcontroller[-<cluster id>]-{client,engine}.json` in the profile's
//! `security/`), with the keys that pcluster adds under `pcluster` (ipyparallel ignores keys it does not know).
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

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

#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("no cluster is running: there is no connection file {}", path.display())]
    Missing { path: PathBuf },
    #[error("cannot read the connection file {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the connection file {} is not JSON: {why}", path.display())]
    NotJson { path: PathBuf, why: String },
    #[error("the connection file {} lacks {}", path.display(), keys.join(", "))]
    Lacks { path: PathBuf, keys: Vec<String> },
    #[error("the connection file {} cannot be understood: {why}", path.display())]
    Malformed { path: PathBuf, why: String },
    #[error("cannot write the connection file {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl ConnectionFile {
    pub fn read(path: &Path) -> Result<ConnectionFile, ConnectionError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(ConnectionError::Missing { path: path.to_path_buf() }),
            Err(source) => {
                return Err(ConnectionError::Read {
                    path: path.to_path_buf(),
                    source,
                });
            }
        };
        ConnectionFile::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<ConnectionFile, ConnectionError> {
        let path = || path.to_path_buf();
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| ConnectionError::NotJson {
            path: path(),
            why: e.to_string(),
        })?;
        let Some(object) = value.as_object() else {
            return Err(ConnectionError::Malformed {
                path: path(),
                why: "it is not a JSON object".into(),
            });
        };
        const NEEDED: [&str; 12] = [
            "interface",
            "registration",
            "control",
            "mux",
            "task",
            "iopub",
            "broadcast",
            "key",
            "location",
            "pack",
            "unpack",
            "signature_scheme",
        ];
        let keys: Vec<String> = NEEDED.iter().filter(|k| !object.contains_key(**k)).map(|k| k.to_string()).collect();
        if !keys.is_empty() {
            return Err(ConnectionError::Lacks { path: path(), keys });
        }
        serde_json::from_value(value).map_err(|e| ConnectionError::Malformed {
            path: path(),
            why: e.to_string(),
        })
    }

    /// Born private (0600, in a directory that is made 0700 where it is missing), then renamed into place: nobody ever
    /// sees half a file, and nobody but the owner any of it.
    pub fn write(&self, path: &Path) -> Result<(), ConnectionError> {
        self.write_private(path).map_err(|source| ConnectionError::Write {
            path: path.to_path_buf(),
            source,
        })
    }

    fn write_private(&self, path: &Path) -> io::Result<()> {
        let dir = path.parent().ok_or_else(|| io::Error::other("it has no directory"))?;
        if !dir.is_dir() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = dir.join(format!(".{name}.{}.new", std::process::id()));
        let _ = fs::remove_file(&temporary);
        let written = (|| {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            // A strange umask may have taken bits of the owner's.
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }
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
