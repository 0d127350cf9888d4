//! A cluster on another host, as the target of a tunnel: selects the cluster, locates its controller, and writes the connection file for this
//! host.
use super::error::RemoteError;
use super::find::{self, FoundFile};
use crate::client::ClientError;
use crate::client::address::candidates;
use crate::connection::ConnectionFile;
use crate::connection::file::TunnelKeys;
use crate::profile::ProfileDir;
use crate::ssh::Ssh;
use crate::ssh::probe::Host;
use crate::ssh::tunnel::{Endpoint, LeadsTo, Target, TunnelError, TunnelState};
use crate::sys::process::ProcessId;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The channels that a client connects to.
pub(crate) const CHANNELS: [&str; 7] = ["registration", "control", "mux", "task", "iopub", "notification", "broadcast"];

/// The requested cluster on the other host.
#[derive(Clone, Debug, Default)]
struct Wanted {
    profile: String,
    cluster_id: String,
    /// The profile or the id were given for the other host; else its only cluster is accepted, too.
    exactly: bool,
    ipython_dir: Option<String>,
}

/// The remote cluster of a local profile and cluster id.
pub(crate) struct RemoteCluster {
    profile: ProfileDir,
    cluster_id: String,
    destination: String,
    wanted: Wanted,
    /// The host at the other end of an ssh connection, with the control directory of that connection.
    host: Option<(PathBuf, Host)>,
    found: Option<FoundFile>,
}

impl RemoteCluster {
    pub(crate) fn of(state: &TunnelState) -> RemoteCluster {
        let profile = ProfileDir::at(&state.profile);
        let (remote_profile, remote_id) = state.remote_names();
        RemoteCluster {
            wanted: Wanted {
                profile: remote_profile.unwrap_or(profile.name()).to_string(),
                cluster_id: remote_id.unwrap_or(&state.cluster_id).to_string(),
                exactly: remote_profile.is_some() || remote_id.is_some(),
                ipython_dir: state.remote_ipython_dir.clone(),
            },
            profile,
            cluster_id: state.cluster_id.clone(),
            destination: state.destination.clone(),
            host: None,
            found: None,
        }
    }

    /// Several hosts may share one name: probed once for each connection.
    async fn host(&mut self, ssh: &Ssh) -> Result<Host, TunnelError> {
        match &self.host {
            Some((connection, host)) if connection == ssh.control_dir() => Ok(host.clone()),
            _ => {
                let host = Host::probe(ssh, &Default::default()).await?;
                self.host = Some((ssh.control_dir().to_path_buf(), host.clone()));
                Ok(host)
            }
        }
    }
}

impl Target for RemoteCluster {
    async fn locate(&mut self, ssh: &Ssh) -> Result<Endpoint, TunnelError> {
        let host = self.host(ssh).await?;
        let to = ssh.destination().as_str();
        let (running, gone) = find::clusters(ssh, &host, self.wanted.ipython_dir.as_deref()).await?;
        let found = choose(to, running, gone, &self.wanted)?;
        let addresses = candidates(&found.file, &host.name).map_err(|e| match e {
            ClientError::OnlyThere { location, interface, .. } => TunnelError::from(RemoteError::LocalOnly {
                to: to.to_string(),
                login: host.name.clone(),
                host: location,
                interface,
            }),
            other => TunnelError::Reported {
                what: other.to_string(),
                hints: other.hints(),
                missing: false,
            },
        })?;
        let keys = found.file.pcluster.as_ref();
        let writer = match keys {
            Some(keys) => keys.process.to_string(),
            None => format!("a controller on {}", found.file.location),
        };
        let endpoint = Endpoint {
            leads_to: LeadsTo {
                profile: found.profile.clone(),
                cluster_id: found.cluster_id.clone(),
                pid: keys.map(|keys| keys.process.pid),
                host: keys.map(|keys| keys.process.host.clone()),
                address: String::new(),
                path: found.path.clone(),
            },
            addresses,
            ports: found.file.ports(),
            hints: vec![
                format!("the connection file was written by {writer}: does it still run? On {to}: pcluster list"),
                format!("a firewall between {to} and the controller's host, or AllowTcpForwarding in {to}'s sshd_config, may block it"),
            ],
        };
        self.found = Some(found);
        Ok(endpoint)
    }

    /// From now on, only that cluster is looked for.
    fn established(&mut self, leads_to: &LeadsTo, local: &BTreeMap<String, u16>) -> Result<(), TunnelError> {
        self.wanted.profile.clone_from(&leads_to.profile);
        self.wanted.cluster_id.clone_from(&leads_to.cluster_id);
        self.wanted.exactly = true;
        let Some(found) = &self.found else { return Ok(()) };
        let file = near_end(&found.file, &self.destination, local);
        let path = self.profile.client_file(&self.cluster_id);
        if ConnectionFile::read(&path).is_ok_and(|written| written == file) {
            return Ok(());
        }
        file.write(&path).map_err(|e| TunnelError::Reported {
            what: e.to_string(),
            hints: e.hint().into_iter().collect(),
            missing: false,
        })
    }

    /// Removes the connection file, so that no client takes the cluster for reachable.
    fn lost(&mut self) {
        super::remove_near_end(&self.profile, &self.cluster_id, &self.destination);
    }
}

fn choose(to: &str, mut running: Vec<FoundFile>, gone: Vec<FoundFile>, wanted: &Wanted) -> Result<FoundFile, RemoteError> {
    let meant = |f: &FoundFile| f.profile == wanted.profile && f.cluster_id == wanted.cluster_id;
    if let Some(at) = running.iter().position(meant) {
        return Ok(running.swap_remove(at));
    }
    if let Some(stale) = gone.iter().find(|f| meant(f))
        && let Some(keys) = &stale.file.pcluster
    {
        return Err(RemoteError::Gone {
            to: to.to_string(),
            path: stale.path.clone(),
            pid: keys.process.pid,
            host: keys.process.host.clone(),
        });
    }
    if !wanted.exactly && running.len() == 1 {
        return Ok(running.remove(0));
    }
    let name = |profile: &str, id: &str| match id {
        "" => format!("profile {profile:?}"),
        id => format!("profile {profile:?} with cluster id {id:?}"),
    };
    Err(RemoteError::NoCluster {
        to: to.to_string(),
        wanted: name(&wanted.profile, &wanted.cluster_id),
        others: running.iter().map(|f| name(&f.profile, &f.cluster_id)).collect(),
        profile: wanted.profile.clone(),
    })
}

/// The connection file for this host: the same keys, with the local ports of the channels.
fn near_end(remote: &ConnectionFile, destination: &str, local: &BTreeMap<String, u16>) -> ConnectionFile {
    let mut file = remote.at_loopback(local);
    if let Some(keys) = &mut file.pcluster {
        keys.buffers = None;
        keys.tunnel = Some(TunnelKeys {
            destination: destination.into(),
            process: std::mem::replace(&mut keys.process, ProcessId::own()),
        });
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::file::BroadcastPorts;

    fn found(profile: &str, id: &str) -> FoundFile {
        let file = serde_json::json!({
            "ssh": "", "interface": "tcp://0.0.0.0", "registration": 1, "control": 2, "mux": 3, "task": 4, "iopub": 5, "notification": 6,
            "broadcast": 7, "key": "secret", "curve_serverkey": "server", "location": "10.0.0.7", "pack": "json", "unpack": "json",
            "signature_scheme": "hmac-sha256", "task_scheme": "lru",
            "pcluster": {"version": "0.1.0", "protocol": 1, "cluster_id": id, "addresses": ["10.0.0.7"], "pid": 7, "host": "n7", "started": 1.0},
        });
        FoundFile {
            path: format!("/h/profile_{profile}/security/x.json"),
            profile: profile.into(),
            cluster_id: id.into(),
            file: serde_json::from_value(file).unwrap(),
        }
    }

    fn chosen(running: &[(&str, &str)], gone: &[(&str, &str)], exactly: bool) -> Result<(String, String), String> {
        let wanted = Wanted {
            profile: "hpc".into(),
            exactly,
            ..Wanted::default()
        };
        let of = |all: &[(&str, &str)]| all.iter().map(|(p, i)| found(p, i)).collect();
        match choose("me@login", of(running), of(gone), &wanted) {
            Ok(found) => Ok((found.profile, found.cluster_id)),
            Err(e) => Err(e.to_string()),
        }
    }

    #[test]
    fn the_named_cluster_or_the_only_one_is_chosen() {
        let named = |p: &str, i: &str| Ok((p.to_string(), i.to_string()));
        assert_eq!(chosen(&[("default", ""), ("hpc", "")], &[], false), named("hpc", ""));
        assert_eq!(chosen(&[("default", "night")], &[], false), named("default", "night"));
        insta::assert_snapshot!(chosen(&[("default", "night")], &[], true).unwrap_err(), @r#"no cluster is running on me@login in profile "hpc"; running: profile "default" with cluster id "night""#);
        insta::assert_snapshot!(chosen(&[("a", ""), ("b", "")], &[], false).unwrap_err(), @r#"no cluster is running on me@login in profile "hpc"; running: profile "a", profile "b""#);
        insta::assert_snapshot!(chosen(&[], &[], false).unwrap_err(), @r#"no cluster is running on me@login in profile "hpc""#);
        insta::assert_snapshot!(chosen(&[("a", "")], &[("hpc", "")], false).unwrap_err(), @"the connection file /h/profile_hpc/security/x.json on me@login is of a controller that is gone: process 7 on n7 no longer runs");
    }

    #[test]
    fn the_local_end_has_the_same_keys_and_other_ports() {
        let local = CHANNELS.iter().zip(5001..).map(|(name, port)| (name.to_string(), port)).collect();
        let near = near_end(&found("hpc", "").file, "me@login", &local);
        let keys = near.pcluster.clone().unwrap();
        assert_eq!(keys.process, ProcessId::own());
        assert_eq!(
            keys.tunnel.map(|t| (t.destination, t.process.host)),
            Some(("me@login".into(), "n7".into()))
        );
        assert_eq!(
            (near.registration, near.notification, near.broadcast.clone()),
            (5001, Some(5006), BroadcastPorts::One(5007))
        );
        assert_eq!((near.key.as_str(), near.task_scheme.as_deref()), ("secret", Some("lru")));
        assert_eq!(candidates(&near, &crate::sys::process::host()).unwrap(), ["127.0.0.1"]);
    }
}
