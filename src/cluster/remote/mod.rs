//! Clusters on other hosts, reached over ssh: connected to ([`connect`]), started there ([`run`]), with this program copied
//! there where it is missing ([`install`]).
//!
//! Parts: [`find`] (which clusters run there), [`way`] (which cluster is meant, and the forwards to it), [`serve`] (the
//! tunnel's own process), [`state`] (what is known of it), [`error`].
pub mod connect;
pub mod error;
pub mod find;
pub mod install;
pub mod run;
pub mod serve;
pub mod state;
pub mod way;

pub use connect::{ConnectOptions, Connected, connect, disconnect};
pub use error::RemoteError;
pub use serve::serve;
pub use state::{Phase, TunnelState, running};

use super::ClusterError;
use crate::connection::ConnectionFile;
use crate::profile::ProfileDir;
use way::Wanted;

fn not_connected(profile: &ProfileDir, cluster_id: &str) -> ClusterError {
    RemoteError::NotConnected {
        cluster: super::in_words(profile, cluster_id),
        options: super::options_of(profile, cluster_id),
    }
    .into()
}

fn wanted_of(state: &TunnelState, profile: &ProfileDir, cluster_id: &str) -> Wanted {
    Wanted {
        profile: state.remote_profile.clone().unwrap_or_else(|| profile.name().to_string()),
        cluster_id: state.remote_cluster_id.clone().unwrap_or_else(|| cluster_id.to_string()),
        exactly: state.remote_profile.is_some() || state.remote_cluster_id.is_some(),
        ipython_dir: state.remote_ipython_dir.clone(),
    }
}

/// Removes the connection file of a tunnel; another one stays.
fn remove_near_end(profile: &ProfileDir, cluster_id: &str, destination: &str) {
    let path = profile.client_file(cluster_id);
    let Ok(file) = ConnectionFile::read(&path) else { return };
    let tunnel = file.pcluster.as_ref().and_then(|keys| keys.tunnel.as_ref());
    // One that another controller than pcluster's wrote has no such mark.
    let ours = tunnel.is_some_and(|t| t.destination == destination) || file.pcluster.is_none();
    if ours && let Err(error) = std::fs::remove_file(&path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove the connection file");
    }
}
