//! One connection file in ipyparallel's format (`ipcontroller[-<cluster id>]-{client,engine}.json`
//! in the profile's `security/`), with pcluster's additional keys under `pcluster` (ipyparallel
//! ignores unknown keys).
pub(crate) use super::error::ConnectionError;
use super::{addresses, discover};
use crate::sys::directory_id::DirectoryId;
use crate::sys::private_file;
use crate::sys::process::ProcessId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

/// The channel of pcluster's own engines, which need no other.
pub(crate) const NATIVE: &str = "native";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionFile {
    /// An ssh server through which the controller is reachable, or empty.
    #[serde(default)]
    pub ssh: String,
    /// `tcp://` and the address that the controller listens on.
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
    /// One port in the client file, a list of leaf ports in the engine file.
    pub broadcast: BroadcastPorts,
    /// The HMAC key.
    pub key: String,
    /// Z85, or null without CURVE.
    pub curve_serverkey: Option<String>,
    /// The controller's host: an address or a name.
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

impl ConnectionFile {
    pub fn read(path: &Path) -> Result<ConnectionFile, ConnectionError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(ConnectionError::Missing { path: path.to_path_buf() }),
            Err(source) => {
                return Err(ConnectionError::Read {
                    path: path.to_path_buf(),
                    source,
                });
            }
        };
        match std::str::from_utf8(&text) {
            Ok(text) => ConnectionFile::parse(text, path),
            Err(error) => Err(ConnectionError::NotJson {
                path: path.to_path_buf(),
                why: error.to_string(),
            }),
        }
    }

    /// `path` is used in errors.
    pub fn parse(text: &str, path: &Path) -> Result<ConnectionFile, ConnectionError> {
        let path = || path.to_path_buf();
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| ConnectionError::NotJson {
            path: path(),
            why: e.to_string(),
        })?;
        let Some(object) = value.as_object() else {
            return Err(ConnectionError::Malformed {
                path: path(),
                why: "not a JSON object".into(),
            });
        };
        const REQUIRED_KEYS: [&str; 12] = [
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
        let keys: Vec<String> = REQUIRED_KEYS
            .iter()
            .filter(|k| !object.contains_key(**k))
            .map(|k| k.to_string())
            .collect();
        if !keys.is_empty() {
            return Err(ConnectionError::MissingKeys { path: path(), keys });
        }
        serde_json::from_value(value).map_err(|e| ConnectionError::Malformed {
            path: path(),
            why: e.to_string(),
        })
    }

    /// Removes the file if it is invalid; returns the reason.
    pub fn remove_damaged(path: &Path) -> Option<ConnectionError> {
        let error = ConnectionFile::read(path).err().filter(ConnectionError::is_damaged)?;
        if let Err(why) = fs::remove_file(path) {
            tracing::warn!("cannot remove {}: {why}", path.display());
        }
        Some(error)
    }

    /// Created with mode 0600 in a directory with mode 0700, then renamed into place: no process
    /// ever sees a partial file, and only the owner can read it.
    pub fn write(&self, path: &Path) -> Result<(), ConnectionError> {
        let failed = |source| ConnectionError::Write {
            path: path.to_path_buf(),
            source,
        };
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| failed(e.into()))?;
        text.push(b'\n');
        private_file::write(path, &text).map_err(failed)
    }

    /// Whether the controller that wrote this file is known to have ended. False if it runs on
    /// another host or is not pcluster's, since its state is unknown.
    pub fn is_stale(&self) -> bool {
        self.pcluster.as_ref().is_some_and(|keys| keys.process.is_gone())
    }

    /// The current content of `path` if it describes a running controller of the same cluster at
    /// another address: another program occupied one of its ports when it restarted.
    pub fn moved(&self, path: &Path) -> Option<ConnectionFile> {
        let now = discover::find(path).ok()?;
        (now.is_of_same_cluster(self) && now.endpoints() != self.endpoints()).then_some(now)
    }

    /// Compares the keys, which do not change when a controller restarts.
    pub fn is_of_same_cluster(&self, other: &ConnectionFile) -> bool {
        self.key == other.key && self.curve_serverkey == other.curve_serverkey
    }

    /// Everything that a pcluster client or engine needs to find the controller.
    fn endpoints(&self) -> impl PartialEq + '_ {
        let keys = self.pcluster.as_ref().map(|keys| (&keys.addresses, keys.engine_port));
        (self.registration, &self.ssh, &self.location, keys)
    }

    /// Its ports, by channel. For broadcasts a controller has one port, or one for each leaf of a tree.
    pub fn ports(&self) -> BTreeMap<String, u16> {
        let single = [
            ("registration", Some(self.registration)),
            ("control", Some(self.control)),
            ("mux", Some(self.mux)),
            ("task", Some(self.task)),
            ("iopub", Some(self.iopub)),
            ("notification", self.notification),
            ("hb_ping", self.hb_ping),
            ("hb_pong", self.hb_pong),
            (NATIVE, self.pcluster.as_ref().and_then(|keys| keys.engine_port)),
        ];
        let mut ports: BTreeMap<String, u16> = single.into_iter().filter_map(|(name, port)| Some((name.into(), port?))).collect();
        match &self.broadcast {
            BroadcastPorts::One(port) => drop(ports.insert("broadcast".into(), *port)),
            BroadcastPorts::Leaves(leaves) => {
                ports.extend(leaves.iter().enumerate().map(|(at, port)| (format!("broadcast-{at}"), *port)));
            }
        }
        ports
    }

    /// The same controller at the near end of a tunnel: at these ports of the loopback.
    pub fn at_loopback(&self, ports: &BTreeMap<String, u16>) -> ConnectionFile {
        let port = |name: &str| ports.get(name).copied();
        let leaves = || (0..).map_while(|at| port(&format!("broadcast-{at}"))).collect();
        ConnectionFile {
            ssh: String::new(),
            interface: "tcp://127.0.0.1".into(),
            location: "127.0.0.1".into(),
            registration: port("registration").unwrap_or_default(),
            control: port("control").unwrap_or_default(),
            mux: port("mux").unwrap_or_default(),
            task: port("task").unwrap_or_default(),
            iopub: port("iopub").unwrap_or_default(),
            notification: self.notification.and(port("notification")),
            hb_ping: port("hb_ping"),
            hb_pong: port("hb_pong"),
            broadcast: port("broadcast").map_or_else(|| BroadcastPorts::Leaves(leaves()), BroadcastPorts::One),
            pcluster: self.pcluster.as_ref().map(|keys| PclusterKeys {
                addresses: vec!["127.0.0.1".into()],
                engine_port: port(NATIVE),
                ..keys.clone()
            }),
            ..self.clone()
        }
    }

    /// The part that only the file of a pcluster controller contains; `path` is used in the error.
    pub fn pcluster_keys(&self, path: &Path) -> Result<&PclusterKeys, ConnectionError> {
        self.pcluster
            .as_ref()
            .ok_or_else(|| ConnectionError::NotPcluster { path: path.to_path_buf() })
    }
}

/// pcluster's additional keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PclusterKeys {
    pub version: String,
    pub protocol: u32,
    pub cluster_id: String,
    /// Every address at which the controller is reachable, best first; pcluster's engines try each.
    pub addresses: Vec<String>,
    /// Engine file only: the single port that pcluster's engines use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_port: Option<u16>,
    /// Engine file only: the directory in which the controller stores large buffers. The controller
    /// need not send them to an engine that can read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffers: Option<DirectoryId>,
    /// The controller's process, used to detect a stale file.
    #[serde(flatten)]
    pub process: ProcessId,
    /// Set if this is the local end of a tunnel: then the process is the tunnel's, which runs on
    /// this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<TunnelKeys>,
}

/// The remote end of a tunnel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TunnelKeys {
    /// The host as passed to ssh.
    pub destination: String,
    /// The controller's process on that host.
    #[serde(flatten)]
    pub process: ProcessId,
}

impl PclusterKeys {
    /// Describes a controller that is this process and listens on `ip`.
    pub fn of_this_process(cluster_id: &str, ip: &str, engine_port: Option<u16>) -> PclusterKeys {
        PclusterKeys {
            version: crate::model::VERSION.into(),
            protocol: crate::model::PROTOCOL_VERSION,
            cluster_id: cluster_id.into(),
            addresses: addresses::reachable(ip),
            engine_port,
            buffers: None,
            process: ProcessId::own(),
            tunnel: None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    pub(crate) fn example() -> ConnectionFile {
        ConnectionFile {
            ssh: String::new(),
            interface: "tcp://127.0.0.1".into(),
            registration: 4001,
            control: 4002,
            mux: 4003,
            task: 4004,
            iopub: 4005,
            notification: Some(4006),
            task_scheme: Some("leastload".into()),
            hb_ping: None,
            hb_pong: None,
            broadcast: BroadcastPorts::One(4007),
            key: "0000-1111".into(),
            curve_serverkey: None,
            location: "127.0.0.1".into(),
            pack: "json".into(),
            unpack: "json".into(),
            signature_scheme: "hmac-sha256".into(),
            pcluster: Some(PclusterKeys::of_this_process("", "127.0.0.1", None)),
        }
    }

    #[test]
    fn files_round_trip_and_are_private_with_any_umask() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("profile_x/security/ipcontroller-client.json");
        let before = nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        let written = example().write(&path).and_then(|()| example().write(&path));
        nix::sys::stat::umask(before);
        written.unwrap();
        assert_eq!(ConnectionFile::read(&path).unwrap(), example());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        let left: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn a_moved_controller_is_distinguished_from_an_unchanged_one_and_from_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipcontroller-client.json");
        let before = example();
        assert_eq!(before.moved(&path), None, "the file does not exist");
        before.write(&path).unwrap();
        assert_eq!(before.moved(&path), None, "the address is unchanged");
        let mut after = example();
        after.registration += 1;
        after.write(&path).unwrap();
        assert_eq!(before.moved(&path), Some(after.clone()));
        for change in [
            |file: &mut ConnectionFile| file.key.push('x'),
            |file: &mut ConnectionFile| file.curve_serverkey = Some("another".into()),
            |file: &mut ConnectionFile| file.pcluster.as_mut().unwrap().process.ticks = Some(1),
        ] {
            let mut other = after.clone();
            change(&mut other);
            other.write(&path).unwrap();
            assert_eq!(before.moved(&path), None, "another cluster, or a controller that has ended");
        }
    }

    #[test]
    fn a_reader_never_sees_a_partial_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipcontroller-client.json");
        let mut long = example();
        long.key = "k".repeat(100_000);
        example().write(&path).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for i in 0..100 {
                    if i % 2 == 0 { long.write(&path) } else { example().write(&path) }.unwrap();
                }
            });
            let mut reads = 0;
            while !writer.is_finished() || reads == 0 {
                let file = ConnectionFile::read(&path).unwrap();
                assert!(file == long || file == example());
                reads += 1;
            }
        });
    }

    #[test]
    fn a_directory_that_is_not_writable_is_an_error_with_the_path() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = example().write(&dir.path().join("file/x.json")).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot write the connection file") && error.contains("file/x.json"),
            "{error}"
        );
    }

    /// The files that ipyparallel 9.2's ipcontroller writes for clients and for engines.
    #[test]
    fn files_of_ipyparallels_controller_are_parsed() {
        let client = r#"{"ssh": "", "interface": "tcp://127.0.0.1", "registration": 1, "control": 2, "mux": 3, "task": 4,
            "task_scheme": "leastload", "iopub": 5, "notification": 6, "broadcast": 7, "key": "abc", "curve_serverkey": null,
            "location": "host", "pack": "json", "unpack": "json", "signature_scheme": "hmac-sha256"}"#;
        let engine = r#"{"ssh": "login.node", "interface": "tcp://*", "registration": 1, "control": 2, "mux": 3, "task": 4,
            "iopub": 5, "hb_ping": 6, "hb_pong": 7, "broadcast": [8, 9], "key": "abc", "curve_serverkey": null,
            "location": "host", "pack": "json", "unpack": "json", "signature_scheme": "hmac-sha256"}"#;
        let path = Path::new("/h/profile_x/security/ipcontroller-client.json");
        let client = ConnectionFile::parse(client, path).unwrap();
        assert_eq!(client.broadcast, BroadcastPorts::One(7));
        assert!(!client.is_stale());
        let error = client.pcluster_keys(path).unwrap_err();
        insta::assert_snapshot!(format!("{error}\nhint: {}", error.hint().unwrap()), @r#"
        /h/profile_x/security/ipcontroller-client.json was not written by a pcluster controller
        hint: pcluster's commands need a pcluster controller: stop the other one, then pcluster start --profile x
        "#);
        let engine = ConnectionFile::parse(engine, path).unwrap();
        assert_eq!(engine.broadcast, BroadcastPorts::Leaves(vec![8, 9]));
        assert_eq!(engine.ssh, "login.node");
    }

    #[test]
    fn a_tunnels_end_has_the_keys_and_other_ports() {
        let client = example();
        assert_eq!(client.ports().get("broadcast"), Some(&4007));
        let mut engine = ConnectionFile {
            notification: None,
            hb_ping: Some(61),
            hb_pong: Some(62),
            broadcast: BroadcastPorts::Leaves(vec![8, 9]),
            ..example()
        };
        engine.pcluster.as_mut().unwrap().engine_port = Some(10);
        for (file, count) in [(client, 7), (engine.clone(), 10)] {
            let ports: BTreeMap<String, u16> = file.ports().into_keys().zip(501..).collect();
            let end = file.at_loopback(&ports);
            assert_eq!((end.ports(), ports.len()), (ports, count));
            assert_eq!(
                (end.key.as_str(), end.location.as_str(), end.ssh.as_str()),
                (file.key.as_str(), "127.0.0.1", "")
            );
            assert_eq!(end.pcluster.unwrap().addresses, ["127.0.0.1"]);
        }
        // Our engine needs one port only.
        let end = engine.at_loopback(&BTreeMap::from([(NATIVE.to_string(), 600)]));
        assert_eq!(
            (end.pcluster.unwrap().engine_port, end.broadcast),
            (Some(600), BroadcastPorts::Leaves(Vec::new()))
        );
    }

    #[test]
    fn errors_describe_what_is_wrong_with_a_file() {
        let path = Path::new("/h/profile_x/security/ipcontroller-night-engine.json");
        let error = |text: &str| {
            let e = ConnectionFile::parse(text, path).unwrap_err();
            format!("{e}\nhint: {}", e.hint().unwrap_or_default())
        };
        insta::assert_snapshot!(error("{"), @r#"
        the connection file /h/profile_x/security/ipcontroller-night-engine.json is not JSON: EOF while parsing an object at line 1 column 1
        hint: write a new one: pcluster stop --profile x --cluster-id night, then pcluster start --profile x --cluster-id night
        "#);
        insta::assert_snapshot!(error("[]"), @r#"
        the connection file /h/profile_x/security/ipcontroller-night-engine.json is malformed: not a JSON object
        hint: write a new one: pcluster stop --profile x --cluster-id night, then pcluster start --profile x --cluster-id night
        "#);
        insta::assert_snapshot!(error(r#"{"interface": "", "registration": 1, "control": 1, "mux": 1, "task": 1, "iopub": 1, "broadcast": 1}"#), @r#"
        the connection file /h/profile_x/security/ipcontroller-night-engine.json lacks key, location, pack, unpack, signature_scheme
        hint: write a new one: pcluster stop --profile x --cluster-id night, then pcluster start --profile x --cluster-id night
        "#);
        let mut bad = serde_json::to_value(example()).unwrap();
        bad["mux"] = "many".into();
        insta::assert_snapshot!(error(&bad.to_string()), @r#"
        the connection file /h/profile_x/security/ipcontroller-night-engine.json is malformed: invalid type: string "many", expected u16
        hint: write a new one: pcluster stop --profile x --cluster-id night, then pcluster start --profile x --cluster-id night
        "#);
        let missing = ConnectionFile::read(path).unwrap_err();
        insta::assert_snapshot!(format!("{missing}\nhint: {}", missing.hint().unwrap()), @r#"
        no cluster is running in profile "x" with cluster id "night": there is no /h/profile_x/security/ipcontroller-night-engine.json
        hint: start one: pcluster start --profile x --cluster-id night -n 4; `pcluster list` shows running clusters
        "#);
    }
}
