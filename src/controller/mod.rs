//! The controller: hub and schedulers in one process. [`core`] decides; the driver carries out.
//!
//! Parts: [`bootstrap`] (ports, keys, connection files), [`sockets`] (what is listened on), [`records`] (the database thread and the
//! answers out of it), [`rescue`] (a database that is deleted meanwhile), [`driver`] (the loop between them and the core), [`delivered`] (replies that clients have), [`dask`] (a scheduler of Dask's beside it).
mod bootstrap;
pub mod core;
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
pub struct ControllerSettings {
    pub profile: ProfileDir,
    pub cluster_id: String,
    pub config: ControllerConfig,
    /// The ssh server through which clients reach it, for their connection file; mostly empty.
    pub ssh: String,
    /// The one through which engines do.
    pub engine_ssh: String,
    /// The interpreter for Dask's scheduler.
    pub python: String,
    /// Keys, ports and connection files outlive an orderly end, and serve the next controller.
    pub reuse: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error("a controller of this cluster runs already: pid {pid} on {host} (says {file})")]
    Running { pid: u32, host: String, file: String },
    #[error("cannot make ready {what}: {why}")]
    Prepare { what: String, why: String },
    #[error("cannot make ready {what}: {source}")]
    System { what: String, source: std::io::Error },
}

impl ControllerError {
    /// Whether the same start may work later, without anybody changing settings.
    pub fn is_transient(&self) -> bool {
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

/// Listens, writes the connection files, and serves until it is told to stop (`pcluster stop`, SIGTERM, SIGINT); then
/// removes the connection files.
pub async fn run(settings: ControllerSettings) -> Result<(), ControllerError> {
    // On a thread of the runtime, as the sockets' tasks: what one of them hands on is taken up there without waking another.
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
