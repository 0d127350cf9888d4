//! Shared by the integration tests: a temporary home, commands, clusters, waiting, normalising.
mod cluster;
mod command;
mod home;
mod normalise;
mod skip;
mod wait;

pub use cluster::{Cluster, kill_both, shared, signal, successor_of, wait_for_exit};
pub use command::{Ended, Running};
pub use home::{Home, PCLUSTER};
pub use skip::skip;
pub use wait::wait_until;
