//! Connects to a cluster on another host, and disconnects: starts, waits for and ends the tunnel's process.
use super::error::RemoteError;
use super::target::CHANNELS;
use super::{not_connected, remove_near_end};
use crate::client::Client;
use crate::cluster::list::{ClusterStatus, Condition};
use crate::cluster::lock::Lock;
use crate::cluster::{ClusterError, describe, launch, options_of};
use crate::connection::ConnectionFile;
use crate::profile::ProfileDir;
use crate::profile::dir::check_cluster_id;
use crate::ssh::tunnel::{Direction, LeadsTo, TunnelState, process};
use crate::ssh::{Destination, control_dir};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The timeout for an existing tunnel that is currently down.
const COMES_BACK: Duration = Duration::from_secs(60);
/// The timeout of all steps of a first connection together; each step has its own timeout, and reports it.
const FIRST: Duration = Duration::from_secs(180);
const ANSWERS: Duration = Duration::from_secs(15);

#[derive(Clone, Debug)]
pub(crate) struct ConnectOptions {
    pub profile: ProfileDir,
    pub cluster_id: String,
    pub destination: String,
    /// The profile and cluster id on the other host, if they differ.
    pub remote_profile: Option<String>,
    pub remote_cluster_id: Option<String>,
    pub remote_ipython_dir: Option<String>,
    /// The pcluster program; by default this one.
    pub program: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub(crate) struct Connected {
    pub destination: String,
    pub leads_to: Option<LeadsTo>,
    pub client_file: PathBuf,
    pub tunnel_pid: Option<u32>,
    /// It was already connected.
    pub reused: bool,
    /// The number of engines, and the controller's description of itself; none if it is not a pcluster controller.
    pub engines: Option<usize>,
    pub took: Duration,
}

/// Connects, unless already connected; returns when the controller has answered through the tunnel.
pub(crate) async fn connect(options: ConnectOptions) -> Result<Connected, ClusterError> {
    let begun = Instant::now();
    let (profile, cluster_id) = (&options.profile, options.cluster_id.as_str());
    check_cluster_id(cluster_id)?;
    let destination = Destination::parse(&options.destination)?;
    profile.create()?;
    let _lock = Lock::wait(profile, cluster_id).await?;
    let status = ClusterStatus::of(profile, cluster_id);
    let (state, reused) = match (status.condition, TunnelState::read(&profile.tunnel_file(cluster_id)).ok().flatten()) {
        (Condition::Connected, Some(state)) => {
            if state.destination != destination.as_str() {
                return Err(RemoteError::OtherDestination {
                    cluster: describe(profile, cluster_id),
                    options: options_of(profile, cluster_id),
                    destination: state.destination,
                    wanted: destination.to_string(),
                }
                .into());
            }
            (process::wait(&profile.tunnel_file(cluster_id), COMES_BACK, None).await?, true)
        }
        (Condition::Running | Condition::Remote, _) if status.controller.is_some() => {
            return Err(ClusterError::Running {
                cluster: describe(profile, cluster_id),
                options: options_of(profile, cluster_id),
                controller: status.controller,
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
        tunnel_pid: state.daemon.as_ref().map(|own| own.pid),
        reused,
        engines,
        took: begun.elapsed(),
    })
}

/// Starts the tunnel's daemon and waits until it reaches a controller. `left`: the state left by a previous daemon that is gone.
async fn make(options: &ConnectOptions, left: Option<TunnelState>) -> Result<TunnelState, ClusterError> {
    let (profile, cluster_id) = (&options.profile, options.cluster_id.as_str());
    let channels = CHANNELS.iter().map(ToString::to_string).collect();
    let mut state = TunnelState::new(Direction::Forward, &options.destination, profile.path(), cluster_id, channels);
    state.remote_profile = options.remote_profile.clone();
    state.remote_cluster_id = options.remote_cluster_id.clone();
    state.remote_ipython_dir = options.remote_ipython_dir.clone();
    if let Some(left) = left {
        if let Some(path) = &left.control_dir {
            control_dir::clear(path);
        }
        // Clients that are still running find it again.
        state.ports = left.ports;
    }
    let stale = profile.client_file(cluster_id);
    if ConnectionFile::read(&stale).is_ok_and(|file| file.is_stale()) {
        let _ = std::fs::remove_file(stale);
    }
    let program = launch::program(&options.program)?;
    Ok(process::start(&program, &state, &profile.tunnel_file(cluster_id), FIRST).await?)
}

/// Ends the tunnel and removes its local files, also if it is already gone. The cluster itself keeps running.
/// Returns the destination that it was connected to.
pub(crate) async fn disconnect(profile: &ProfileDir, cluster_id: &str) -> Result<TunnelState, ClusterError> {
    if !profile.exists() {
        return Err(not_connected(profile, cluster_id));
    }
    let _lock = Lock::wait(profile, cluster_id).await?;
    let file = profile.tunnel_file(cluster_id);
    let Some(state) = TunnelState::read(&file)? else {
        return Err(not_connected(profile, cluster_id));
    };
    process::end(&file);
    remove_near_end(profile, cluster_id, &state.destination);
    Ok(state)
}
