//! What the integration tests share: a home of their own, real commands in it, real clusters, waiting, normalising.
mod cluster;
mod command;
mod home;
mod normalise;
mod wait;

pub use cluster::{Cluster, shared, signal, wait_for_exit};
pub use command::{Ended, Running};
pub use home::{Home, PCLUSTER};
pub use normalise::normalised;
pub use wait::wait_until;
