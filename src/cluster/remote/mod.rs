//! Clusters on other hosts, reached over ssh: connect to them ([`connect`]), start them ([`run`]), and copy this program
//! to hosts where it is missing ([`install`]).
//!
//! Parts: [`find`] (the clusters of a host), [`target`] (the selected one, as a tunnel's target), [`error`].
pub(crate) mod connect;
pub(crate) mod error;
pub(crate) mod find;
pub(crate) mod install;
pub(crate) mod run;
pub(crate) mod target;

pub(crate) use connect::{ConnectOptions, Connected, connect, disconnect};
pub(crate) use error::RemoteError;

use super::ClusterError;
use crate::connection::ConnectionFile;
use crate::profile::ProfileDir;
use crate::ssh::tunnel::daemon;
use crate::ssh::tunnel::forward::Forward;
use crate::ssh::tunnel::{TunnelError, TunnelState};
use std::path::Path;
use std::time::Duration;
use target::RemoteCluster;

/// The interval at which a tunnel checks that the controller still exists, without any sign that it does not.
const CHECKS_EVERY: Duration = Duration::from_secs(5);

/// The daemon of the tunnel to a cluster on another host.
pub(crate) async fn serve(file: &Path, mut state: TunnelState, first: bool) -> Result<(), TunnelError> {
    let target = RemoteCluster::of(&state);
    let forward = Forward::bind(target, &mut state, Some(CHECKS_EVERY)).await?;
    daemon::serve(forward, state, file, first).await
}

/// The tunnel of a cluster, if one runs.
pub(crate) fn running(profile: &ProfileDir, cluster_id: &str) -> Option<TunnelState> {
    let state = TunnelState::read(&profile.tunnel_file(cluster_id)).ok().flatten();
    state.filter(|state| state.runs() == Some(true))
}

pub(crate) fn not_connected(profile: &ProfileDir, cluster_id: &str) -> ClusterError {
    RemoteError::NotConnected {
        cluster: super::describe(profile, cluster_id),
        options: super::options_of(profile, cluster_id),
    }
    .into()
}

/// Removes the connection file of a tunnel; any other file is kept.
fn remove_near_end(profile: &ProfileDir, cluster_id: &str, destination: &str) {
    let path = profile.client_file(cluster_id);
    let Ok(file) = ConnectionFile::read(&path) else { return };
    let tunnel = file.pcluster.as_ref().and_then(|keys| keys.tunnel.as_ref());
    // A file of a controller other than pcluster's has no such mark.
    let ours = tunnel.is_some_and(|t| t.destination == destination) || file.pcluster.is_none();
    if ours && let Err(error) = std::fs::remove_file(&path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove the connection file");
    }
}
