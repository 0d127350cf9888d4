//! Starts the engines of one host: probes the host, then starts all with one script.
use super::error::HostError;
use super::{reachability, tunnel};
use crate::connection::ConnectionFile;
use crate::launchers::engine::engine_command;
use crate::launchers::python;
use crate::launchers::{EnginesLaunch, Process};
use crate::model::VERSION;
use crate::model::shell::quoted;
use crate::profile::ProfileDir;
use crate::profile::config::resources::{SshHost, TunnelMode};
use crate::ssh::Ssh;
use crate::ssh::probe::{Host, ProbeRequest};
use crate::ssh::tunnel::{TunnelError, process};
use crate::sys::process::ProcessId;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Home directories of clusters may be slow, and so may a first Python.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Directories of engines whose host does not see the profile, below its home directory.
pub(super) const PRIVATE: &str = ".pcluster/profile_";

/// The engines of one host, each with its number, and how they reach the controller.
#[derive(Debug)]
pub(super) struct HostEngines {
    pub engines: Vec<(u32, Process)>,
    pub route: EngineRoute,
}

/// How the engines of a host reach the controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EngineRoute {
    /// As configured, without a test.
    Given,
    /// Tested, at this address.
    Direct(String),
    /// Through a reverse tunnel, for this reason.
    Tunnel(String),
}

/// Starts the engines with these numbers. An error quotes the host.
pub(super) async fn start(host: &SshHost, mode: TunnelMode, launch: &EnginesLaunch, numbers: &[u32]) -> Result<HostEngines, HostError> {
    let ssh = Ssh::connect_to(&host.host).await?;
    let started = on(&ssh, host, mode, launch, numbers).await;
    ssh.close().await;
    started
}

async fn on(ssh: &Ssh, host: &SshHost, mode: TunnelMode, launch: &EnginesLaunch, numbers: &[u32]) -> Result<HostEngines, HostError> {
    let request = ProbeRequest {
        program: Some(launch.program.to_string_lossy().into_owned()),
        directory: Some(host.directory.clone().unwrap_or_else(|| launch.cwd.to_string_lossy().into_owned())),
        pythons: pythons(host, launch),
    };
    let found = Host::probe(ssh, &request).await?;
    let program = program(&found, &host.host)?;
    let python = python(&found, &host.host)?;
    let directory = match (&found.directory, &host.directory) {
        (Some(directory), _) => directory,
        (None, Some(wanted)) => return Err(HostError::NoDirectory(wanted.clone())),
        (None, None) => &found.home,
    };
    let path = launch.profile.engine_file(&launch.cluster_id);
    let file = ConnectionFile::read(&path)?;
    let route = match mode {
        TunnelMode::Never => EngineRoute::Given,
        TunnelMode::Always => EngineRoute::Tunnel("configured".into()),
        TunnelMode::Auto => match reachability::probe(ssh, program, &found.name, &file).await {
            Ok(address) => EngineRoute::Direct(address),
            Err(why) => EngineRoute::Tunnel(why.to_string()),
        },
    };
    let id = uuid::Uuid::new_v4().simple().to_string();
    let opened = match &route {
        EngineRoute::Tunnel(_) => Some(open_tunnel(launch, &host.host, &id, &file).await?),
        EngineRoute::Given | EngineRoute::Direct(_) => None,
    };
    let undo = EndsTunnel(opened.as_ref().map(|tunnel| tunnel.file.clone()));
    let file = match &opened {
        Some(tunnel) => file.at_loopback(&tunnel.ports),
        None => file,
    };
    let private = match &opened {
        None if has_same_file(ssh, &path, &file).await? => None,
        _ => Some(copy(ssh, &found.home, &id, launch, &file).await?),
    };
    let profile = private.as_deref().map_or_else(|| launch.profile.clone(), ProfileDir::at);
    let remote = EnginesLaunch {
        program: program.into(),
        profile,
        python: Some(python.into()),
        // Engines do not need the launchers' settings.
        settings: launch
            .settings
            .iter()
            .filter(|(key, _)| !key.starts_with("launcher"))
            .cloned()
            .collect(),
        ..launch.clone()
    };
    let script = script(host, &remote, numbers, directory)?;
    let result = match ssh.ask(&script, TIMEOUT).await {
        Ok(text) => started(&text, host, &remote, &found.name, private.as_deref()),
        Err(e) => Err(HostError::LostDuringStart(e)),
    };
    if let (Err(_), Some(private)) = (&result, &private) {
        let remove = format!("rm -rf -- {}", quoted(private.to_string_lossy()));
        let _ = ssh.script(&remove, TIMEOUT).await;
    }
    let mut engines = result?;
    for (_, process) in &mut engines {
        process.tunnel = opened.as_ref().map(|tunnel| tunnel.file.clone());
    }
    undo.keep();
    Ok(HostEngines { engines, route })
}

async fn open_tunnel(launch: &EnginesLaunch, host: &str, id: &str, file: &ConnectionFile) -> Result<tunnel::Opened, HostError> {
    let opened = tunnel::open(launch, host, id, file).await;
    opened.map_err(|error| match error {
        TunnelError::Reported { .. } => HostError::TunnelReported { host: host.into(), error },
        other => HostError::Tunnel(other),
    })
}

/// Ends the tunnel of engines that were not started, even if the caller no longer waits.
struct EndsTunnel(Option<PathBuf>);

impl EndsTunnel {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for EndsTunnel {
    fn drop(&mut self) {
        if let Some(file) = &self.0 {
            process::end(file);
        }
    }
}

/// Whether the host has the same file at the same path.
async fn has_same_file(ssh: &Ssh, path: &Path, file: &ConnectionFile) -> Result<bool, HostError> {
    let script = format!("cat {} 2>/dev/null", quoted(path.to_string_lossy()));
    let theirs = ssh.ask(&script, TIMEOUT).await?;
    Ok(ConnectionFile::parse(&theirs, path).is_ok_and(|theirs| theirs == *file))
}

/// Interpreters in the order in which they are tried: only the requested one, or that of the local active environment, then
/// `python3`.
fn pythons(host: &SshHost, launch: &EnginesLaunch) -> Vec<String> {
    if let Some(python) = host.python.as_ref().or(launch.python.as_ref()) {
        return vec![python.clone()];
    }
    let mut pythons = vec![python::resolve(None), "python3".to_string()];
    pythons.dedup();
    pythons
}

/// The host's pcluster of this version; `name` is what the user calls the host.
fn program<'a>(found: &'a Host, name: &str) -> Result<&'a str, HostError> {
    let ours = format!("pcluster {VERSION}");
    if let Some((path, _)) = found.programs.iter().find(|(_, version)| *version == ours) {
        return Ok(path);
    }
    let (platform, host) = (found.platform(), name.to_string());
    Err(match found.programs.first() {
        Some((path, version)) => HostError::OtherVersion {
            path: path.clone(),
            platform,
            version: version.clone(),
            host,
        },
        None => HostError::NoPcluster { platform, host },
    })
}

/// The host's first interpreter that is new enough.
fn python<'a>(found: &'a Host, name: &str) -> Result<&'a str, HostError> {
    let is_new_enough = |version: &str| {
        let mut numbers = version.split('.').map_while(|n| n.parse::<u32>().ok());
        matches!((numbers.next(), numbers.next()), (Some(major), Some(minor)) if (major, minor) >= python::MIN_VERSION)
    };
    if let Some((python, _)) = found.pythons.iter().find(|(_, version)| is_new_enough(version)) {
        return Ok(python);
    }
    let (python, version) = found.pythons.last().map_or(("python3", ""), |(p, s)| (p, s));
    Err(HostError::NoPython {
        python: python.into(),
        version: version.into(),
        host: name.into(),
    })
}

/// Copies what engines read into a private profile on the host.
async fn copy(ssh: &Ssh, home: &str, id: &str, launch: &EnginesLaunch, file: &ConnectionFile) -> Result<PathBuf, HostError> {
    let directory = PathBuf::from(format!("{home}/{PRIVATE}{id}"));
    let file = serde_json::to_vec_pretty(file)?;
    let profile = ProfileDir::at(&directory);
    let path = |path: PathBuf| path.to_string_lossy().into_owned();
    let put = async {
        if let Ok(config) = std::fs::read(launch.profile.config_file()) {
            ssh.put(&config, &path(profile.config_file()), false, TIMEOUT).await?;
        }
        ssh.put(&file, &path(profile.engine_file(&launch.cluster_id)), false, TIMEOUT).await
    };
    match put.await {
        Ok(()) => Ok(directory),
        Err(e) => {
            let remove = format!("rm -rf -- {}", quoted(directory.to_string_lossy()));
            let _ = ssh.script(&remove, TIMEOUT).await;
            Err(e.into())
        }
    }
}

/// The script that starts the engines. In a shell without job control `setsid` becomes what it starts: `$!` is the engine's.
fn script(host: &SshHost, remote: &EnginesLaunch, numbers: &[u32], directory: &str) -> Result<String, crate::launchers::LaunchError> {
    let (program, arguments) = engine_command(remote)?;
    let mut command = quoted(program.to_string_lossy());
    for argument in arguments {
        command.push_str(&format!(" {}", quoted(argument.to_string_lossy())));
    }
    let mut script = format!("umask 077\ncd {} || exit 1\n", quoted(directory));
    for (name, value) in &host.env {
        script.push_str(&format!("export {name}={}\n", quoted(value)));
    }
    let logs = remote.profile.log_dir();
    script.push_str(&format!("mkdir -p {} || exit 1\n", quoted(logs.to_string_lossy())));
    script.push_str(ProcessId::ABOUT);
    for number in numbers {
        let log = remote.profile.engine_log(&remote.cluster_id, *number);
        script.push_str(&format!(
            "l={}\n: >>\"$l\" || exit 1\nb=$(wc -c <\"$l\")\nsetsid {command} </dev/null >>\"$l\" 2>&1 &\np=$!\ns=\n\
             {{ read -r s </proc/$p/stat; }} 2>/dev/null\necho \"engine {number} $p $((b)) $s\"\n",
            quoted(log.to_string_lossy())
        ));
    }
    Ok(script)
}

/// The engines that the script started.
fn started(
    text: &str,
    host: &SshHost,
    remote: &EnginesLaunch,
    node: &str,
    private: Option<&Path>,
) -> Result<Vec<(u32, Process)>, HostError> {
    let mut all = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("engine ")) {
        let mut words = line.splitn(4, ' ');
        let mut next = || words.next().unwrap_or_default();
        let (number, pid, from, stat) = (next(), next(), next(), next());
        let (Ok(number), Ok(pid)) = (number.parse(), pid.parse()) else {
            return Err(HostError::BadReport(line.into()));
        };
        let process = Process {
            // Without a start time if it has already ended: then it matches no process.
            id: ProcessId::from_script(text, stat).unwrap_or_else(|| ProcessId::ended_from_script(text, pid)),
            log: remote.profile.engine_log(&remote.cluster_id, number),
            log_from: from.parse().unwrap_or_default(),
            on: Some(host.host.clone()),
            node: Some(node.to_string()),
            directory: private.map(Path::to_path_buf),
            ..Process::default()
        };
        all.push((number, process));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_programs_of_a_host_are_named() {
        let found = Host::parse(&format!(
            "name=n\nsystem=Linux\nmachine=s390x\nhome=/h\nprogram=/a=pcluster 0.0.1\npython=/v/bin/python=sh: 1: /v/bin/python: not found\npython=python3=3.11.2\nprogram=/b=pcluster {VERSION}\n"
        ));
        assert_eq!((program(&found, "n").unwrap(), python(&found, "n").unwrap()), ("/b", "python3"));
        let found = Host::parse("system=Linux\nmachine=s390x\nprogram=/a=cannot execute: Exec format error\npython=python3=3.6.8\n");
        let why = program(&found, "me@n").unwrap_err().to_string();
        assert!(
            why.contains("s390x") && why.contains("Exec format error") && why.ends_with("pcluster install me@n"),
            "{why}"
        );
        assert!(python(&found, "n").unwrap_err().to_string().contains("3.6.8"));
        assert!(
            program(&Host::default(), "n")
                .unwrap_err()
                .to_string()
                .starts_with("pcluster is not installed on the host")
        );
    }
}
