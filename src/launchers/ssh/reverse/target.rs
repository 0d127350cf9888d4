//! Where a reverse tunnel leads: the channels that an engine uses, the controller's address as seen from here, and the connection
//! file of an engine that is at the tunnel's other end.
use super::ReverseError;
use crate::connection::ConnectionFile;
use crate::connection::addresses::is_loopback;
use crate::connection::file::{BroadcastPorts, PclusterKeys};
use crate::profile::config::EngineKind;
use crate::ssh::forward::{Greeting, greeting_at};
use crate::sys::process;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a controller may take to greet.
const GREETS: Duration = Duration::from_secs(6);
/// The one connection of pcluster's own engine.
const NATIVE: &str = "native";

/// What engines of this kind connect to: ours to one port, an `ipengine` to each of its channels.
pub fn channels(kind: EngineKind, file: &ConnectionFile) -> Vec<String> {
    match kind {
        EngineKind::Pcluster => vec![NATIVE.to_string()],
        EngineKind::Ipengine => {
            let all = ports(file).into_keys();
            all.filter(|name| name != NATIVE).collect()
        }
    }
}

/// Every port of an engine file, by name.
pub fn ports(file: &ConnectionFile) -> BTreeMap<String, u16> {
    let mut ports: BTreeMap<String, u16> = BTreeMap::new();
    let single = [
        ("registration", Some(file.registration)),
        ("control", Some(file.control)),
        ("mux", Some(file.mux)),
        ("task", Some(file.task)),
        ("iopub", Some(file.iopub)),
        ("hb_ping", file.hb_ping),
        ("hb_pong", file.hb_pong),
        (NATIVE, file.pcluster.as_ref().and_then(|keys| keys.engine_port)),
    ];
    ports.extend(single.into_iter().filter_map(|(name, port)| Some((name.to_string(), port?))));
    let leaves = match &file.broadcast {
        BroadcastPorts::One(port) => vec![*port],
        BroadcastPorts::Leaves(leaves) => leaves.clone(),
    };
    ports.extend(leaves.iter().enumerate().map(|(at, port)| (format!("broadcast-{at}"), *port)));
    ports
}

/// Addresses at which the controller may be reached from this host, best first.
fn addresses(file: &ConnectionFile) -> Vec<String> {
    let Some(keys) = &file.pcluster else {
        return vec![file.location.clone()];
    };
    let is_here = keys.process.host == process::host();
    let mut addresses: Vec<String> = keys.addresses.iter().filter(|a| is_here || !is_loopback(a)).cloned().collect();
    // Here the loopback is there whatever becomes of the network.
    addresses.sort_by_key(|address| !is_loopback(address));
    addresses
}

/// The first address at which a controller greets.
pub async fn find(file: &ConnectionFile, channels: &[String]) -> Result<String, ReverseError> {
    let ports = ports(file);
    let port = channels.first().and_then(|name| ports.get(name)).copied();
    let port = port.ok_or_else(|| ReverseError::Internal("the engines' connection file has no such channel".into()))?;
    let mut tried = Vec::new();
    for address in addresses(file) {
        match greeting_at(&address, port, GREETS).await {
            Ok(Greeting::Speaks) => return Ok(address),
            Ok(Greeting::Closed) => tried.push(format!("{address}:{port} (it was closed)")),
            Ok(Greeting::Silent) => tried.push(format!("{address}:{port} (it says nothing)")),
            Err(why) => tried.push(format!("{address}:{port} ({why})")),
        }
    }
    Err(ReverseError::NoController { tried })
}

/// The same keys, the ports of the tunnel's other end.
pub fn far_end(file: &ConnectionFile, there: &BTreeMap<String, u16>) -> ConnectionFile {
    let port = |name: &str| there.get(name).copied();
    let leaves: Vec<u16> = (0..).map_while(|at| port(&format!("broadcast-{at}"))).collect();
    ConnectionFile {
        ssh: String::new(),
        interface: "tcp://127.0.0.1".into(),
        location: "127.0.0.1".into(),
        registration: port("registration").unwrap_or_default(),
        control: port("control").unwrap_or_default(),
        mux: port("mux").unwrap_or_default(),
        task: port("task").unwrap_or_default(),
        iopub: port("iopub").unwrap_or_default(),
        hb_ping: port("hb_ping"),
        hb_pong: port("hb_pong"),
        broadcast: BroadcastPorts::Leaves(leaves),
        pcluster: file.pcluster.as_ref().map(|keys| PclusterKeys {
            addresses: vec!["127.0.0.1".into()],
            engine_port: port(NATIVE),
            ..keys.clone()
        }),
        ..file.clone()
    }
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
    fn our_engine_needs_one_port_and_an_ipengine_all_the_others() {
        let file = engine_file();
        assert_eq!(channels(EngineKind::Pcluster, &file), ["native"]);
        let stock = channels(EngineKind::Ipengine, &file);
        assert_eq!((stock.len(), stock.contains(&"broadcast-1".into())), (9, true));
        let there: BTreeMap<String, u16> = stock.into_iter().zip(501..).collect();
        let far = far_end(&file, &there);
        assert_eq!(ports(&far), there);
        assert_eq!(
            (far.key.as_str(), far.location.as_str(), far.broadcast),
            ("secret", "127.0.0.1", BroadcastPorts::Leaves(vec![501, 502]))
        );
        let far = far_end(&file, &BTreeMap::from([(NATIVE.to_string(), 600)]));
        let keys = far.pcluster.unwrap();
        assert_eq!((keys.engine_port, keys.addresses), (Some(600), vec!["127.0.0.1".to_string()]));
    }

    #[test]
    fn the_loopback_is_another_hosts_or_the_best() {
        let mut file = engine_file();
        assert_eq!(addresses(&file), ["10.0.0.7"]);
        file.pcluster.as_mut().unwrap().process.host = process::host();
        assert_eq!(addresses(&file), ["127.0.0.1", "10.0.0.7"]);
    }

    #[tokio::test]
    async fn what_does_not_greet_is_no_controller() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut file = engine_file();
        let keys = file.pcluster.as_mut().unwrap();
        keys.process.host = process::host();
        keys.addresses = vec!["127.0.0.1".into()];
        keys.engine_port = Some(taken.local_addr().unwrap().port());
        drop(taken);
        let error = find(&file, &[NATIVE.to_string()]).await.unwrap_err().to_string();
        assert!(error.contains("127.0.0.1:") && error.contains("refused"), "{error}");
    }
}
