//! The way to a controller behind an ssh connection: which cluster is meant, at which address the other host reaches its
//! controller, and a forward for each of its client channels.
use super::error::RemoteError;
use super::find::{self, FoundFile};
use crate::client::ClientError;
use crate::client::address::candidates;
use crate::cluster::ClusterError;
use crate::connection::file::{BroadcastPorts, TunnelKeys};
use crate::connection::{ConnectionFile, PclusterKeys};
use crate::ssh::Ssh;
use crate::ssh::forward::{self, Greeting, Route};
use crate::ssh::probe::Host;
use crate::sys::process::ProcessId;
use std::collections::BTreeMap;
use std::time::Duration;

/// What a client connects to.
pub const CHANNELS: [&str; 7] = ["registration", "control", "mux", "task", "iopub", "notification", "broadcast"];
/// How long a controller may take to greet.
pub const GREETS: Duration = Duration::from_secs(6);

/// Which cluster there is wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub profile: String,
    pub cluster_id: String,
    /// The profile or the id were named for the other host; else the only cluster there will do, too.
    pub exactly: bool,
    pub ipython_dir: Option<String>,
}

/// A way that is open.
#[derive(Debug)]
pub struct Way {
    pub found: FoundFile,
    /// The controller's address as the other host sees it.
    pub address: String,
    pub route: Route,
}

/// The cluster that is wanted, if it runs there.
pub async fn find(ssh: &Ssh, host: &Host, wanted: &Wanted) -> Result<FoundFile, ClusterError> {
    let (running, gone) = find::clusters(ssh, host, wanted.ipython_dir.as_deref()).await?;
    choose(ssh.destination().as_str(), running, gone, wanted)
}

fn choose(to: &str, mut running: Vec<FoundFile>, gone: Vec<FoundFile>, wanted: &Wanted) -> Result<FoundFile, ClusterError> {
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
        }
        .into());
    }
    if !wanted.exactly && running.len() == 1 {
        return Ok(running.remove(0));
    }
    let in_words = |profile: &str, id: &str| match id {
        "" => format!("profile {profile:?}"),
        id => format!("profile {profile:?} with cluster id {id:?}"),
    };
    Err(RemoteError::NoCluster {
        to: to.to_string(),
        wanted: in_words(&wanted.profile, &wanted.cluster_id),
        others: running.iter().map(|f| in_words(&f.profile, &f.cluster_id)).collect(),
        profile: wanted.profile.clone(),
    }
    .into())
}

/// Opens a forward for each channel, to the first address at which the controller greets. `number` keeps the sockets of one
/// connection apart.
pub async fn open(ssh: &Ssh, host: &Host, found: FoundFile, number: u64) -> Result<Way, ClusterError> {
    let addresses = candidates(&found.file, &host.name).map_err(|e| match e {
        ClientError::OnlyThere { location, interface, .. } => ClusterError::Remote(RemoteError::OnlyThere {
            to: ssh.destination().to_string(),
            login: host.name.clone(),
            host: location,
            interface,
        }),
        other => other.into(),
    })?;
    let ports = ports(&found.file);
    let registration = found.file.registration;
    let mut tried = Vec::new();
    for (at, address) in addresses.iter().enumerate() {
        let socket = ssh.forward_local(&format!("{number}-{at}-look"), address, registration).await?;
        if forward::greeting(&socket, GREETS).await != Greeting::Speaks {
            tried.push(format!("{address}:{registration}"));
            continue;
        }
        let mut route = Route::new();
        for (name, port) in &ports {
            let socket = ssh.forward_local(&format!("{number}-{name}"), address, *port).await?;
            route.insert(name.to_string(), socket);
        }
        return Ok(Way {
            address: address.clone(),
            found,
            route,
        });
    }
    Err(RemoteError::Unreachable {
        to: ssh.destination().to_string(),
        tried,
        said: ssh.log_tail(),
        writer: match &found.file.pcluster {
            Some(keys) => keys.process.to_string(),
            None => format!("a controller on {}", found.file.location),
        },
    }
    .into())
}

fn ports(file: &ConnectionFile) -> BTreeMap<&'static str, u16> {
    let broadcast = match &file.broadcast {
        BroadcastPorts::One(port) => Some(*port),
        BroadcastPorts::Leaves(ports) => ports.first().copied(),
    };
    let all = [
        Some(file.registration),
        Some(file.control),
        Some(file.mux),
        Some(file.task),
        Some(file.iopub),
        file.notification,
        broadcast,
    ];
    CHANNELS
        .into_iter()
        .zip(all)
        .filter_map(|(name, port)| Some((name, port?)))
        .collect()
}

/// The connection file for this host: the same keys, the near ends of the channels.
pub fn near_end(way: &Way, destination: &str, local: &BTreeMap<String, u16>) -> ConnectionFile {
    let there = &way.found.file;
    let port = |name: &str| local.get(name).copied().unwrap_or_default();
    ConnectionFile {
        ssh: String::new(),
        interface: "tcp://127.0.0.1".into(),
        location: "127.0.0.1".into(),
        registration: port("registration"),
        control: port("control"),
        mux: port("mux"),
        task: port("task"),
        iopub: port("iopub"),
        notification: there.notification.map(|_| port("notification")),
        broadcast: BroadcastPorts::One(port("broadcast")),
        pcluster: there.pcluster.as_ref().map(|keys| PclusterKeys {
            addresses: vec!["127.0.0.1".into()],
            engine_port: None,
            buffers: None,
            process: ProcessId::own(),
            tunnel: Some(TunnelKeys {
                destination: destination.into(),
                process: keys.process.clone(),
            }),
            ..keys.clone()
        }),
        ..there.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn the_one_that_is_named_else_the_only_one() {
        let named = |p: &str, i: &str| Ok((p.to_string(), i.to_string()));
        assert_eq!(chosen(&[("default", ""), ("hpc", "")], &[], false), named("hpc", ""));
        assert_eq!(chosen(&[("default", "night")], &[], false), named("default", "night"));
        insta::assert_snapshot!(chosen(&[("default", "night")], &[], true).unwrap_err(), @r#"no cluster is running on me@login in profile "hpc"; there run: profile "default" with cluster id "night""#);
        insta::assert_snapshot!(chosen(&[("a", ""), ("b", "")], &[], false).unwrap_err(), @r#"no cluster is running on me@login in profile "hpc"; there run: profile "a", profile "b""#);
        insta::assert_snapshot!(chosen(&[], &[], false).unwrap_err(), @r#"no cluster is running on me@login in profile "hpc""#);
        insta::assert_snapshot!(chosen(&[("a", "")], &[("hpc", "")], false).unwrap_err(), @"the connection file /h/profile_hpc/security/x.json on me@login is of a controller that is gone: process 7 on n7 no longer runs");
    }

    #[test]
    fn the_near_end_has_the_keys_and_other_ports() {
        let way = Way {
            found: found("hpc", ""),
            address: "10.0.0.7".into(),
            route: Route::new(),
        };
        let local = CHANNELS.iter().zip(5001..).map(|(name, port)| (name.to_string(), port)).collect();
        let near = near_end(&way, "me@login", &local);
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
