//! Profiles: the layout of their files ([`dir`]) and their `pcluster.yaml` ([`config`]).
//!
//! A profile is an IPython profile directory, so that `ipyparallel.Client(profile=…)` finds the connection files in it.
//! Knows nothing of running processes.
pub(crate) mod config;
pub(crate) mod dir;
mod error;
mod ignored;

pub use config::{Config, ControllerConfig};
pub(crate) use dir::{ProfileDir, ProfileError};
pub(crate) use error::ConfigError;

/// A complete `pcluster.yaml`: each key with its default and a comment.
pub(crate) const EXAMPLE_CONFIG: &str = include_str!("../../templates/profile/pcluster.yaml");
