//! Reverse tunnels: forward ports of a remote host to the controller, for engines that cannot reach it directly.
use crate::connection::ConnectionFile;
use crate::connection::addresses::is_loopback;
use crate::connection::file::NATIVE;
use crate::launchers::EnginesLaunch;
use crate::profile::ProfileDir;
use crate::profile::config::EngineKind;
use crate::ssh::Ssh;
use crate::ssh::tunnel::reverse::Reverse;
use crate::ssh::tunnel::{Direction, Endpoint, LeadsTo, Target, TunnelError, TunnelState, daemon};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The timeout for all steps of the first connection; each step has a timeout and an error of its own.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// An established tunnel.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Its state file; needed to end it.
    pub file: PathBuf,
    /// The ports on the remote host's loopback, by channel.
    pub ports: BTreeMap<String, u16>,
}

/// Starts a process that maintains a tunnel from `host` to this cluster's controller, and waits until it is established. `id` is
/// unique.
pub(crate) async fn open(launch: &EnginesLaunch, host: &str, id: &str, engine_file: &ConnectionFile) -> Result<Opened, TunnelError> {
    let file = launch.profile.reverse_file(id);
    let channels = channels(launch.kind, engine_file);
    let state = TunnelState::new(Direction::Reverse, host, launch.profile.path(), &launch.cluster_id, channels);
    let state = crate::ssh::tunnel::process::start(&launch.program, &state, &file, START_TIMEOUT).await?;
    Ok(Opened { file, ports: state.ports })
}

/// The daemon of a reverse tunnel.
pub(crate) async fn serve(file: &Path, state: TunnelState, first: bool) -> Result<(), TunnelError> {
    let target = LocalController {
        profile: ProfileDir::at(&state.profile),
        cluster_id: state.cluster_id.clone(),
    };
    daemon::serve(Reverse::new(target), state, file, first).await
}

/// The controller of a cluster of this host, by the connection file for its engines.
struct LocalController {
    profile: ProfileDir,
    cluster_id: String,
}

impl Target for LocalController {
    async fn locate(&mut self, _: &Ssh) -> Result<Endpoint, TunnelError> {
        let path = self.profile.engine_file(&self.cluster_id);
        let file = ConnectionFile::read(&path).map_err(|e| TunnelError::Reported {
            what: e.to_string(),
            hints: e.hint().into_iter().collect(),
            missing: true,
        })?;
        let keys = file.pcluster.as_ref();
        Ok(Endpoint {
            leads_to: LeadsTo {
                profile: self.profile.name().to_string(),
                cluster_id: self.cluster_id.clone(),
                pid: keys.map(|keys| keys.process.pid),
                host: keys.map(|keys| keys.process.host.clone()),
                address: String::new(),
                path: path.to_string_lossy().into_owned(),
            },
            addresses: addresses(&file),
            ports: file.ports(),
            hints: Vec::new(),
        })
    }
}

/// What engines of this kind connect to: ours to one port, an `ipengine` to each of its channels.
pub(crate) fn channels(kind: EngineKind, file: &ConnectionFile) -> Vec<String> {
    match kind {
        EngineKind::Pcluster => vec![NATIVE.to_string()],
        EngineKind::Ipengine => {
            let all = file.ports().into_keys();
            all.filter(|name| name != NATIVE).collect()
        }
    }
}

/// Addresses at which the controller may be reached from this host, best first.
fn addresses(file: &ConnectionFile) -> Vec<String> {
    let Some(keys) = &file.pcluster else {
        return vec![file.location.clone()];
    };
    let is_here = keys.process.host == crate::sys::process::host();
    let mut addresses: Vec<String> = keys.addresses.iter().filter(|a| is_here || !is_loopback(a)).cloned().collect();
    // The local loopback works whatever happens to the network.
    addresses.sort_by_key(|address| !is_loopback(address));
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine_file() -> ConnectionFile {
        let file = serde_json::json!({
            "ssh": "", "interface": "tcp://0.0.0.0", "registration": 1, "control": 2, "mux": 3, "task": 4, "iopub": 5, "hb_ping": 6,
            "hb_pong": 7, "broadcast": [8, 9], "key": "secret", "curve_serverkey": "server", "location": "10.0.0.7", "pack": "json",
            "unpack": "json", "signature_scheme": "hmac-sha256",
            "pcluster": {"version": "0.1.0", "protocol": 1, "cluster_id": "", "addresses": ["10.0.0.7", "127.0.0.1"], "engine_port": 10,
                         "pid": 7, "host": "n7", "started": 1.0},
        });
        serde_json::from_value(file).unwrap()
    }

    #[test]
    fn a_native_engine_uses_one_port_and_an_ipengine_all_others() {
        let file = engine_file();
        assert_eq!(channels(EngineKind::Pcluster, &file), ["native"]);
        let stock = channels(EngineKind::Ipengine, &file);
        assert_eq!((stock.len(), stock.contains(&"broadcast-1".into())), (9, true));
    }

    #[test]
    fn a_local_loopback_ranks_first_and_a_remote_one_is_omitted() {
        let mut file = engine_file();
        assert_eq!(addresses(&file), ["10.0.0.7"]);
        file.pcluster.as_mut().unwrap().process.host = crate::sys::process::host();
        assert_eq!(addresses(&file), ["127.0.0.1", "10.0.0.7"]);
    }
}
