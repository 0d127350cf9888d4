//! The controller: hub and schedulers in one process. [`core`] makes the decisions; the driver carries them out.
//!
//! Parts: [`bootstrap`] (ports, keys, connection files), [`sockets`] (listening sockets), [`records`] (the database threads),
//! [`answers`] (to queries), [`rescue`] (a database deleted at run time), [`driver`] (the loop between them and the core), [`delivered`] (replies delivered to clients), [`dask`] (Dask's scheduler as a child process).
mod answers;
mod bootstrap;
mod clock;
pub(crate) mod core;
mod dask;
mod delivered;
mod driver;
mod records;
mod rescue;
mod sockets;

use crate::connection::ConnectionError;
use crate::db::{DbError, DbErrorKind};
use crate::profile::ProfileDir;
use crate::profile::config::ControllerConfig;
use crate::sys::problem;
use crate::transport::TransportError;

#[derive(Clone, Debug)]
pub(crate) struct ControllerSettings {
    pub profile: ProfileDir,
    pub cluster_id: String,
    pub config: ControllerConfig,
    /// The ssh server through which clients connect, for their connection file; usually empty.
    pub ssh: String,
    /// The ssh server through which engines connect.
    pub engine_ssh: String,
    /// The interpreter for Dask's scheduler.
    pub python: String,
    /// Keeps keys, ports and connection files after a clean shutdown, for the next controller.
    pub reuse: bool,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ControllerError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error("a controller of this cluster is already running: pid {pid} on {host} (according to {file})")]
    Running { pid: u32, host: String, file: String },
    #[error("failed to initialize {what}: {why}")]
    Prepare { what: String, why: String },
    #[error("failed to initialize {what}: {source}")]
    System { what: String, source: std::io::Error },
}

impl ControllerError {
    /// True if the same start may succeed later without a change of settings.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            ControllerError::Transport(error) => error.is_transient(),
            ControllerError::Db(error) => matches!(
                error.kind,
                DbErrorKind::Full | DbErrorKind::Disk | DbErrorKind::Locked | DbErrorKind::Exhausted
            ),
            ControllerError::Connection(ConnectionError::Read { source, .. } | ConnectionError::Write { source, .. })
            | ControllerError::System { source, .. } => problem::is_transient(source),
            ControllerError::Connection(_) | ControllerError::Running { .. } | ControllerError::Prepare { .. } => false,
        }
    }
}

/// Listens, writes the connection files, and serves until it is stopped (`pcluster stop`, SIGTERM, SIGINT); then
/// removes the connection files.
pub(crate) async fn run(settings: ControllerSettings) -> Result<(), ControllerError> {
    // Runs on a runtime thread, like the sockets' tasks, so that a received message does not wake another thread.
    match tokio::spawn(driver::run(settings)).await {
        Ok(ended) => ended,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(ControllerError::Prepare {
                what: "the controller's task".into(),
                why: error.to_string(),
            }),
        },
    }
}
