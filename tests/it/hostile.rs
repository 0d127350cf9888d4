//! Secrets are not disclosed; peers without them are rejected, and all others are served.
use super::support::{Cluster, Home, PCLUSTER, shared, skip, wait_until};
use pcluster::testing::wire::content::client::{HELLO, Hello};
use pcluster::testing::wire::{Frames, Session};
use pcluster::testing::{Security, Socket, SocketKind};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const WORK: &str = "import sys, time\n\n\ndef work(x):\n    print('out', x)\n    print('err', x, file=sys.stderr)\n    time.sleep(0.01)\n    if x == 3:\n        raise ValueError('three')\n    return x\n";

fn security(cluster: &Cluster) -> PathBuf {
    cluster.profile().join("security")
}

fn file(cluster: &Cluster, side: &str) -> Value {
    serde_json::from_slice(&fs::read(security(cluster).join(format!("ipcontroller-{side}.json"))).unwrap()).unwrap()
}

/// Every secret text of the cluster: signing keys, CURVE secret keys, and the server keys that a peer must know.
fn secrets(cluster: &Cluster) -> BTreeSet<String> {
    let private: Value = serde_json::from_slice(&fs::read(security(cluster).join("pcluster-controller.json")).unwrap()).unwrap();
    let mut found: BTreeSet<String> = private
        .as_object()
        .unwrap()
        .values()
        .filter_map(|value| value.as_str().map(String::from))
        .collect();
    for side in ["client", "engine"] {
        let file = file(cluster, side);
        found.insert(file["key"].as_str().unwrap().into());
        found.insert(file["curve_serverkey"].as_str().unwrap().into());
    }
    assert!(found.len() >= 6 && found.iter().all(|secret| secret.len() >= 30), "{}", found.len());
    found
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// Processes that the home started and that still run, by its directory in their environment.
fn processes(home: &Home) -> Vec<u32> {
    let mark = format!("IPYTHONDIR={}/ipython", home.path().display());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|variable| variable == mark.as_bytes())
    })
    .collect()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn ports(cluster: &Cluster, side: &str) -> Vec<u16> {
    let file = file(cluster, side);
    let names = [
        "registration",
        "control",
        "mux",
        "task",
        "iopub",
        "notification",
        "hb_ping",
        "hb_pong",
    ];
    let mut found: Vec<u64> = names.iter().filter_map(|name| file[*name].as_u64()).collect();
    found.extend(file["broadcast"].as_u64());
    found.extend(file["broadcast"].as_array().into_iter().flatten().filter_map(Value::as_u64));
    found.extend(file["pcluster"]["engine_port"].as_u64());
    found.into_iter().map(|port| u16::try_from(port).unwrap()).collect()
}

#[test]
fn no_secret_leaves_its_file() {
    // Files are made under the most generous umask.
    let home = Home::new();
    home.file("work.py", WORK);
    let start = format!("umask 000; exec '{PCLUSTER}' start -n 2");
    let output = home.program("sh").args(["-c", &start]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let cluster = Cluster::running_in(home);
    let running = cluster.spawn(&["map", "work.py:work", "--range", "0..60"]);
    let secrets = secrets(&cluster);
    let pids = wait_until("controller, engines, workers and the map's own process", || {
        let pids = processes(&cluster);
        (pids.len() >= 6).then_some(pids)
    });
    for pid in pids {
        for what in ["cmdline", "environ"] {
            let bytes = fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
            for secret in &secrets {
                assert!(!contains(&bytes, secret), "/proc/{pid}/{what} has a secret");
            }
        }
    }
    let ended = running.end();
    for secret in &secrets {
        assert!(!ended.stdout.contains(secret) && !ended.stderr.contains(secret));
    }
    ended.fails(1, &["1 of 60"]);
    // Logs, job output, the database, state and lock files: everything but the three files that are made for it.
    let keepers = ["ipcontroller-client.json", "ipcontroller-engine.json", "pcluster-controller.json"];
    let (mut kept, mut looked) = (0, 0);
    for path in files_below(&cluster.path().join("ipython")) {
        let mode = path.metadata().unwrap().permissions().mode() & 0o777;
        if keepers.contains(&path.file_name().unwrap().to_str().unwrap()) {
            assert_eq!(mode, 0o600, "{}", path.display());
            kept += 1;
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        looked += 1;
        for secret in &secrets {
            assert!(!contains(&bytes, secret), "{} has a secret", path.display());
        }
    }
    assert!(kept == 3 && looked >= 3, "{kept} {looked}");
    // The records are private too.
    for folder in [cluster.profile(), security(&cluster)] {
        let mode = folder.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700, "{}", folder.display());
    }
    cluster.ok(&["stop"]);
}

/// Writes a client file in a separate home, from an engine's file, optionally with other ports.
fn forged(cluster: &Cluster, change: impl Fn(&mut Value)) -> Home {
    let home = Home::new();
    let mut forged = file(cluster, "client");
    change(&mut forged);
    let folder = home.profile().join("security");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("ipcontroller-client.json"), forged.to_string()).unwrap();
    home
}

#[test]
fn an_engines_file_cannot_submit() {
    let cluster = Cluster::start(1);
    let (client, engine) = (file(&cluster, "client"), file(&cluster, "engine"));
    for key in ["key", "curve_serverkey"] {
        assert_ne!(client[key], engine[key], "{key} of client and engine");
    }
    let keys = |file: &mut Value| {
        file["key"] = engine["key"].clone();
        file["curve_serverkey"] = engine["curve_serverkey"].clone();
    };
    let homes = [
        // The engine's keys at the clients' ports; only its signing key there; its keys at the engines' ports.
        forged(&cluster, keys),
        forged(&cluster, |file| file["key"] = engine["key"].clone()),
        forged(&cluster, |file| {
            keys(file);
            file["registration"] = engine["registration"].clone();
        }),
        forged(&cluster, |file| {
            keys(file);
            file["registration"] = engine["pcluster"]["engine_port"].clone();
        }),
    ];
    let attempts: Vec<_> = homes
        .iter()
        .map(|home| home.spawn(&["map", "math:sqrt", "--range", "0..3", "--detach"]))
        .collect();
    for attempt in attempts {
        let ended = attempt.end();
        assert_ne!(ended.code, Some(0), "{}", ended.transcript());
    }
    assert_eq!(cluster.json(&["results"])["maps"].as_array().unwrap().len(), 0);
    assert_eq!(cluster.ok(&["map", "math:sqrt", "--range", "4..5"]), "2.0\n");
    cluster.ok(&["stop"]);
}

/// A DEALER at the clients' registration port, with the right CURVE key.
async fn at_registration(file: &Value) -> Socket {
    let server_key = file["curve_serverkey"].as_str().unwrap().to_string();
    let socket = Socket::new(SocketKind::Dealer, Some("suspect"), &Security::Client { server_key }).unwrap();
    let port = u16::try_from(file["registration"].as_u64().unwrap()).unwrap();
    socket.connect("127.0.0.1", port).await.unwrap();
    socket
}

fn hello(session: &mut Session) -> (String, Frames) {
    let content = Hello {
        protocol: pcluster::testing::model::PROTOCOL_VERSION,
        version: "test".into(),
    };
    let message = session.message("2026-11-20T00:00:00Z", HELLO, None, &content);
    (message.header.msg_id.clone(), session.seal(&[], &message))
}

#[test]
fn invalid_signatures_end_a_connection_and_replays_are_rejected() {
    let cluster = shared();
    let file = file(cluster, "client");
    let key = file["key"].as_str().unwrap().as_bytes();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let limit = Duration::from_secs(30);
    runtime.block_on(async {
        let socket = at_registration(&file).await;
        let mut connections = socket.connections();
        let (mut right, mut wrong) = (Session::new(key, "right", "me"), Session::new(b"wrong", "wrong", "me"));
        // Replayed messages are not answered.
        let (_, once) = hello(&mut right);
        let (second, twice) = hello(&mut right);
        for frames in [once.clone(), once, twice] {
            socket.send(frames).unwrap();
        }
        let mut reader = Session::new(key, "reader", "me");
        let mut answered = Vec::new();
        while answered.last() != Some(&second) {
            let frames = tokio::time::timeout(limit, socket.receive()).await.unwrap().unwrap();
            answered.push(reader.open(frames).unwrap().parent().unwrap().msg_id);
        }
        assert_eq!(answered.len(), 2, "{answered:?}");
        // One too many with another key, and the connection ends.
        for _ in 0..16 {
            socket.send(hello(&mut wrong).1).unwrap();
        }
        tokio::time::timeout(limit, connections.next_disconnected())
            .await
            .expect("the connection stands")
            .unwrap();
        socket.close().await;
    });
    assert_eq!(cluster.ok(&["map", "math:sqrt", "--range", "4..5"]), "2.0\n");
}

const GREETING_NULL: [u8; 64] = {
    let mut greeting = [0u8; 64];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12] = b'N';
    greeting[13] = b'U';
    greeting[14] = b'L';
    greeting[15] = b'L';
    greeting
};

#[test]
fn the_log_explains_why_a_peer_without_curve_is_rejected() {
    let cluster = Cluster::start(0);
    let port = u16::try_from(file(&cluster, "client")["registration"].as_u64().unwrap()).unwrap();
    // As libzmq does: the first ten bytes; then it reads the greeting, and closes without the name of its mechanism.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(&GREETING_NULL[..10]).unwrap();
    stream.read_exact(&mut [0; 64]).unwrap();
    let peer = stream.local_addr().unwrap();
    drop(stream);
    let line = wait_until("the line in the controller's log", || {
        let log = fs::read_to_string(cluster.profile().join("log/controller.log")).unwrap();
        log.lines().find(|line| line.contains("no handshake with")).map(String::from)
    });
    assert!(
        line.contains(&format!("no handshake with {peer}: it closed the connection")),
        "{line}"
    );
    assert!(line.contains("--no-curve"), "{line}");

    // One that announces its mechanism; at another port, since a port has one line a minute.
    let port = u16::try_from(file(&cluster, "client")["mux"].as_u64().unwrap()).unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(&GREETING_NULL).unwrap();
    let peer = stream.local_addr().unwrap();
    wait_until("the second line", || {
        let log = fs::read_to_string(cluster.profile().join("log/controller.log")).unwrap();
        let output = format!("no handshake with {peer}: its security mechanism is NULL, the cluster's is CURVE");
        log.contains(&output).then_some(())
    });
    cluster.ok(&["stop"]);
}

/// Opens connections until stopped: silent ones, unencrypted ones, ones that announce endless frames, and ones that send malformed data.
fn flood(ports: &[u16], stop: &AtomicBool, opened: &AtomicUsize) {
    let mut silent: Vec<TcpStream> = Vec::new();
    let mut round = 0usize;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let Ok(mut stream) = TcpStream::connect_timeout(&([127, 0, 0, 1], ports[round % ports.len()]).into(), Duration::from_millis(200))
        else {
            continue;
        };
        opened.fetch_add(1, Ordering::Relaxed);
        let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
        match round / ports.len() % 4 {
            0 => {
                silent.push(stream);
                if silent.len() > 400 {
                    silent.drain(..200);
                }
            }
            1 => {
                let _ = stream.write_all(&GREETING_NULL);
                let _ = stream.write_all(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x06DEALER");
                let _ = stream.write_all(&[0, 5, b'h', b'e', b'l', b'l', b'o']);
            }
            2 => {
                let mut greeting = GREETING_NULL;
                greeting[12..17].copy_from_slice(b"CURVE");
                let _ = stream.write_all(&greeting);
                // A long command of 2^62 bytes.
                let _ = stream.write_all(&[6, 0x40, 0, 0, 0, 0, 0, 0, 0]);
                let _ = stream.write_all(&[7; 4096]);
            }
            _ => {
                let malformed: Vec<u8> = (0..4096usize).map(|i| (i * round % 251) as u8).collect();
                let _ = stream.write_all(&malformed);
            }
        }
    }
}

/// Resident memory of a process in MiB.
fn memory(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn a_flood_does_not_block_other_clients() {
    let cluster = Cluster::start(2);
    cluster.file("work.py", WORK);
    let ports: Vec<u16> = ["client", "engine"].iter().flat_map(|side| ports(&cluster, side)).collect();
    assert!(ports.len() >= 15, "{ports:?}");
    let (stop, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let flooders: Vec<_> = (0..2)
        .map(|_| {
            let (ports, stop, opened) = (ports.clone(), stop.clone(), opened.clone());
            std::thread::spawn(move || flood(&ports, &stop, &opened))
        })
        .collect();
    wait_until("the flood", || (opened.load(Ordering::Relaxed) > 500).then_some(()));
    // One that is in already, and one that comes in the middle of it.
    let running = cluster.spawn(&["map", "work.py:work", "--range", "4..300"]);
    let other = cluster.ok(&["map", "math:sqrt", "--range", "4..5"]);
    let expected: String = (4..300).map(|n| format!("{n}\n")).collect();
    assert_eq!(running.end().ok(), expected);
    assert_eq!(other, "2.0\n");
    stop.store(true, Ordering::Relaxed);
    for flooder in flooders {
        flooder.join().unwrap();
    }
    assert_eq!(cluster.engine_pids().len(), 2);
    let memory = memory(cluster.controller_pid());
    // Some kilobytes for each connection of all these would be far more.
    assert!(memory < 450, "{memory} MiB after {} connections", opened.load(Ordering::Relaxed));
    cluster.ok(&["stop"]);
}

/// The attempts of the other user, in one script that prints everything it can read.
const NOSY: &str = r#"
for path in "$1" "$1"/* "$1"/security/* "$1"/log/*; do
    cat "$path" >/dev/null 2>&1 && echo "read $path"
    ls "$path" >/dev/null 2>&1 && echo "listed $path"
done
for pid in $2; do
    cat /proc/$pid/environ >/dev/null 2>&1 && echo "environment of $pid"
    ls /proc/$pid/fd >/dev/null 2>&1 && echo "files of $pid"
    kill -0 $pid 2>/dev/null && echo "signal to $pid"
done
id -u
"#;

#[test]
#[allow(
    clippy::disallowed_methods,
    reason = "what is opened to all here holds no secret: the way to the profile, and the program"
)]
fn another_user_of_the_host_has_no_access() {
    if !nix::unistd::geteuid().is_root() {
        skip("only root can act as a second user");
        return;
    }
    let home = Home::new();
    // The parent directories are accessible to all; the profile itself must be protected.
    for folder in [home.path().to_path_buf(), home.path().join("ipython")] {
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let cluster = Cluster::start_in(home, 1, &[]);
    let as_nobody = |program: &str| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", program])
            .current_dir("/");
        command
    };
    let pids: Vec<String> = processes(&cluster).iter().map(u32::to_string).collect();
    assert!(pids.len() >= 3, "{pids:?}");
    let mut nosy = as_nobody("sh");
    nosy.args(["-c", NOSY, "nosy"]).arg(cluster.profile()).arg(pids.join(" "));
    let output = nosy.output().unwrap();
    let output = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output, "65534\n", "what another user reached: {output}");

    // TCP knows no users, so the ports are tried from here, as far as one gets without keys: the greeting, and not a byte more.
    for side in ["client", "engine"] {
        for port in ports(&cluster, side) {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(&GREETING_NULL).unwrap();
            let _ = stream.write_all(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x06DEALER\0\x05hello");
            let (began, mut answer) = (Instant::now(), Vec::new());
            let _ = stream.read_to_end(&mut answer);
            assert!(began.elapsed() < Duration::from_secs(15), "{side} port {port} keeps a stranger");
            assert!(
                answer.len() <= 64 + 40,
                "{side} port {port} sent {} bytes to a stranger",
                answer.len()
            );
            assert!(!contains(&answer, "READY"), "{side} port {port} let a stranger in");
        }
    }
    // And pcluster itself, as that user, with the paths of the files.
    let outer = cluster.path().to_path_buf();
    let binary = outer.join("pcluster");
    fs::copy(PCLUSTER, &binary).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = as_nobody(binary.to_str().unwrap());
    command.args(["status"]).env("IPYTHONDIR", outer.join("ipython")).env("HOME", "/");
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    cluster.ok(&["stop"]);
}
