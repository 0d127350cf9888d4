//! Connecting to a cluster elsewhere, and disconnecting: the tunnel's process is started, waited for, and ended.
use super::error::RemoteError;
use super::state::{LeadsTo, Phase, TunnelState};
use super::{not_connected, remove_near_end};
use crate::client::Client;
use crate::cluster::list::{ClusterStatus, Condition};
use crate::cluster::lock::Lock;
use crate::cluster::{ClusterError, in_words, launch, options_of};
use crate::connection::process::ProcessId;
use crate::connection::ssh::{Destination, place};
use crate::connection::{ConnectionFile, process};
use crate::profile::ProfileDir;
use crate::profile::dir::check_cluster_id;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(25);
/// How long one waits for a tunnel that is down at the moment.
const COMES_BACK: Duration = Duration::from_secs(60);
/// All steps of a first connection together; each has a limit of its own, and says so.
const FIRST: Duration = Duration::from_secs(180);
const ANSWERS: Duration = Duration::from_secs(15);

#[derive(Clone, Debug)]
pub struct ConnectOptions {
    pub profile: ProfileDir,
    pub cluster_id: String,
    pub destination: String,
    /// Where they are called otherwise there.
    pub remote_profile: Option<String>,
    pub remote_cluster_id: Option<String>,
    pub remote_ipython_dir: Option<String>,
    /// The pcluster program; by default this one.
    pub program: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct Connected {
    pub destination: String,
    pub leads_to: Option<LeadsTo>,
    pub client_file: PathBuf,
    pub tunnel_pid: Option<u32>,
    /// It was there already.
    pub reused: bool,
    /// How many engines the cluster has, and what its controller says of itself; none of one that is not pcluster's.
    pub engines: Option<usize>,
    pub took: Duration,
}

/// Connects, or finds that it is connected already; returns when the controller has answered through the tunnel.
pub async fn connect(options: ConnectOptions) -> Result<Connected, ClusterError> {
    let begun = Instant::now();
    let (profile, cluster_id) = (&options.profile, options.cluster_id.as_str());
    check_cluster_id(cluster_id)?;
    let destination = Destination::parse(&options.destination)?;
    profile.create()?;
    let _lock = Lock::wait(profile, cluster_id).await?;
    let standing = ClusterStatus::of(profile, cluster_id);
    let (state, reused) = match (standing.condition, TunnelState::read(profile, cluster_id).ok().flatten()) {
        (Condition::Connected, Some(state)) => {
            if state.destination != destination.as_str() {
                return Err(RemoteError::OtherDestination {
                    cluster: in_words(profile, cluster_id),
                    options: options_of(profile, cluster_id),
                    destination: state.destination,
                    wanted: destination.to_string(),
                }
                .into());
            }
            (wait(&options, COMES_BACK, None).await?, true)
        }
        (Condition::Running | Condition::Remote, _) if standing.controller.is_some() => {
            return Err(ClusterError::Running {
                cluster: in_words(profile, cluster_id),
                options: options_of(profile, cluster_id),
                controller: standing.controller,
            });
        }
        (_, left) => (make(&options, left).await?, false),
    };
    let client_file = profile.client_file(cluster_id);
    let file = ConnectionFile::read(&client_file)?;
    let engines = match &file.pcluster {
        Some(_) => {
            let client = Client::connect(&file, ANSWERS).await?;
            Some(client.with_timeout(ANSWERS).status().await?.engines.len())
        }
        None => None,
    };
    Ok(Connected {
        destination: state.destination.clone(),
        leads_to: state.leads_to.clone(),
        client_file,
        tunnel_pid: state.tunnel.as_ref().map(|own| own.pid),
        reused,
        engines,
        took: begun.elapsed(),
    })
}

/// Starts the tunnel's process and waits until it leads somewhere. `left`: what one that is gone has left.
async fn make(options: &ConnectOptions, left: Option<TunnelState>) -> Result<TunnelState, ClusterError> {
    let (profile, cluster_id) = (&options.profile, options.cluster_id.as_str());
    let mut state = TunnelState::new(&options.destination);
    state.remote_profile = options.remote_profile.clone();
    state.remote_cluster_id = options.remote_cluster_id.clone();
    state.remote_ipython_dir = options.remote_ipython_dir.clone();
    if let Some(left) = left {
        if let Some(path) = &left.place {
            place::clear(path);
        }
        // Clients that are still there find it again.
        state.ports = left.ports;
    }
    let stale = profile.client_file(cluster_id);
    if ConnectionFile::read(&stale).is_ok_and(|file| file.is_stale()) {
        let _ = std::fs::remove_file(stale);
    }
    state.write(profile, cluster_id)?;
    let undo = &mut Undo {
        options,
        child: None,
        armed: true,
    };
    undo.child = Some(start_process(options)?);
    let state = wait(options, FIRST, Some(&mut *undo)).await?;
    undo.armed = false;
    Ok(state)
}

/// In a session of its own (it sees to that itself), so that neither Ctrl-C nor the terminal's end reaches it.
fn start_process(options: &ConnectOptions) -> Result<std::process::Child, ClusterError> {
    let program = launch::program(&options.program)?;
    let path = options.profile.tunnel_log(&options.cluster_id);
    let failed = |why: std::io::Error| ClusterError::StateFile {
        doing: "log",
        path: path.clone(),
        why: why.to_string(),
    };
    let log = File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    let mut command = Command::new(program);
    command.arg("tunnel").arg("--supervise").arg("--first");
    command
        .arg("--profile-dir")
        .arg(options.profile.path())
        .arg("--cluster-id")
        .arg(&options.cluster_id);
    // Its own directory would otherwise be one that cannot be unmounted.
    command.current_dir("/").stdin(Stdio::null());
    command.stdout(log.try_clone().map_err(failed)?).stderr(log);
    command.spawn().map_err(ClusterError::NoProgram)
}

/// Ends a tunnel that did not become one, also when nobody waits any more (Ctrl-C).
struct Undo<'a> {
    options: &'a ConnectOptions,
    child: Option<std::process::Child>,
    armed: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (profile, cluster_id) = (&self.options.profile, self.options.cluster_id.as_str());
        let own = self.child.as_ref().map(|child| ProcessId::of(child.id()));
        let state = TunnelState::read(profile, cluster_id).ok().flatten();
        let others = state.iter().flat_map(|s| s.processes().cloned());
        let processes: Vec<ProcessId> = own.into_iter().chain(others).collect();
        process::end(&processes, &mut self.child);
        clear_away(profile, cluster_id, state.as_ref());
    }
}

/// Until the tunnel leads somewhere.
async fn wait(options: &ConnectOptions, patience: Duration, mut undo: Option<&mut Undo<'_>>) -> Result<TunnelState, ClusterError> {
    let (profile, cluster_id) = (&options.profile, options.cluster_id.as_str());
    let log = profile.tunnel_log(cluster_id);
    let begun = Instant::now();
    loop {
        // Asked before the state is read: what it has written last is then read.
        let child = undo.as_mut().and_then(|undo| undo.child.as_mut());
        let ended = child.is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))));
        let state = TunnelState::read(profile, cluster_id)?;
        let problem = |state: &Option<TunnelState>| state.as_ref().and_then(|s| s.problem.clone()).unwrap_or_default();
        match &state {
            Some(state) if state.phase == Phase::Up && state.runs() => return Ok(state.clone()),
            Some(state) if state.phase == Phase::Failed => {
                return Err(ClusterError::Told {
                    what: problem(&Some(state.clone())),
                    hints: state.hints.clone(),
                    missing: state.missing,
                });
            }
            _ if ended => {
                let tail = std::fs::read_to_string(&log).unwrap_or_default();
                let lines: Vec<&str> = tail.lines().collect();
                let said = lines[lines.len().saturating_sub(6)..].join("\n");
                return Err(RemoteError::Ended { said, log }.into());
            }
            _ => {}
        }
        if begun.elapsed() > patience {
            return Err(RemoteError::Late {
                to: options.destination.clone(),
                seconds: patience.as_secs(),
                said: problem(&state),
                log,
            }
            .into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Ends the tunnel and removes what it has made here; also one that is gone already. The cluster itself is left alone.
/// What it was connected to.
pub async fn disconnect(profile: &ProfileDir, cluster_id: &str) -> Result<TunnelState, ClusterError> {
    if !profile.exists() {
        return Err(not_connected(profile, cluster_id));
    }
    let _lock = Lock::wait(profile, cluster_id).await?;
    let Some(state) = TunnelState::read(profile, cluster_id)? else {
        return Err(not_connected(profile, cluster_id));
    };
    if state.host == process::host() {
        let processes: Vec<ProcessId> = state.processes().cloned().collect();
        process::end(&processes, &mut None);
    }
    // It may have written once more.
    let last = TunnelState::read(profile, cluster_id).ok().flatten();
    clear_away(profile, cluster_id, Some(last.as_ref().unwrap_or(&state)));
    Ok(state)
}

fn clear_away(profile: &ProfileDir, cluster_id: &str, state: Option<&TunnelState>) {
    if let Some(state) = state {
        if let Some(path) = &state.place {
            place::clear(path);
        }
        remove_near_end(profile, cluster_id, &state.destination);
    }
    let _ = std::fs::remove_file(profile.tunnel_file(cluster_id));
}
