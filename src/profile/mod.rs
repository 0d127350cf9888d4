//! Profiles: where a profile's files are ([`dir`]) and what its `pcluster.yaml` says ([`config`]).
//!
//! A profile is an IPython profile directory, so that `ipyparallel.Client(profile=…)` finds the connection files in it.
//! What runs in a profile is not known here.
pub mod config;
pub mod dir;
mod error;
mod ignored;

pub use config::{Config, ControllerConfig, EngineConfig};
pub use dir::{ProfileDir, ProfileError};
pub use error::ConfigError;

/// A complete `pcluster.yaml`, each key with its default and a comment.
pub const EXAMPLE_CONFIG: &str = include_str!("../../templates/profile/pcluster.yaml");
