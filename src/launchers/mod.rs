//! Launchers: they start a controller or engines, and end what they started.
//!
//! Modules: `launcher` (the trait [`Launcher`], its [`Capabilities`] and [`RemoteHosts`]), `launch`
//! (its parameters), [`launched`] (the result of a launch: plain data that any process can use), [`local`] (processes
//! on this host), [`mpi`] (engines under one `mpiexec`), [`ssh`] (engines on other hosts),
//! [`batch`] (code shared by batch systems), one row per system ([`slurm`], [`sge`], [`pbs`],
//! [`lsf`], [`htcondor`]), [`templates`] and [`jobs`] (the launcher that uses a row), [`engine`]
//! (the command line of an engine), [`supervisor`] (restarts processes that were killed),
//! [`python`] (the engines' interpreter), [`command`] (runs external programs), [`logs`] (reads log
//! files), [`error`]. Clusters, and when to start something, are the concern of other modules.
pub(crate) mod batch;
pub(crate) mod capacity;
pub(crate) mod command;
pub(crate) mod engine;
pub(crate) mod error;
pub(crate) mod htcondor;
pub(crate) mod jobs;
mod launch;
pub(crate) mod launched;
mod launcher;
pub(crate) mod local;
pub(crate) mod logs;
pub(crate) mod lsf;
pub(crate) mod mpi;
pub(crate) mod pbs;
pub(crate) mod python;
pub(crate) mod sge;
pub(crate) mod slurm;
pub(crate) mod ssh;
pub(crate) mod supervisor;
pub(crate) mod templates;

pub(crate) use error::{LaunchError, LogError};
pub(crate) use launch::{ControllerLaunch, EnginesLaunch};
pub(crate) use launched::{BatchJob, ElasticLaunch, JobOutcome, Launched, MemberState, Process, Recipe, Stage, StopReport};
pub(crate) use launcher::{Capabilities, FoundEngines, Launcher, RemoteHosts};

use crate::profile::ProfileDir;
use crate::profile::config::Config;

/// The names of all launchers.
fn known() -> Vec<&'static str> {
    ["local", mpi::NAME, ssh::NAME].into_iter().chain(batch::SYSTEMS).collect()
}

/// The launcher of this name, for this profile and its configuration.
pub(crate) fn by_name(name: &str, profile: &ProfileDir, config: &Config) -> Result<Box<dyn Launcher>, LaunchError> {
    match name {
        "local" => Ok(Box::new(local::Local::default())),
        mpi::NAME => Ok(Box::new(mpi::Mpi::new(&config.launchers.mpi))),
        ssh::NAME => Ok(Box::new(ssh::OverSsh::new(&config.launchers.ssh))),
        _ => match jobs::by_name(name, profile, config) {
            Some(jobs) => Ok(Box::new(jobs)),
            None => Err(LaunchError::UnknownLauncher {
                name: name.to_string(),
                known: known(),
            }),
        },
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::profile::config::resources::{SshHost, TunnelMode};
    use std::path::Path;

    #[test]
    fn each_launcher_reports_its_capabilities() {
        let dir = tempfile::tempdir().unwrap();
        let profile = ProfileDir::at(dir.path());
        let mut config = Config::default();
        config.launchers.ssh.hosts = ["node1:4", "node2:8"].map(|text| SshHost::parse(text).unwrap()).into();
        config.launchers.ssh.min_engines = Some(3);
        for name in known() {
            let launcher = by_name(name, &profile, &config).unwrap();
            let capabilities = launcher.capabilities();
            let is_batch = batch::SYSTEMS.contains(&name);
            assert_eq!(launcher.name(), name);
            assert_eq!(capabilities.has_cached_state, is_batch || name == ssh::NAME, "{name}");
            assert_eq!(capabilities.provides_tunnel, name == ssh::NAME, "{name}");
            let hosts = launcher.remote_hosts().map(|hosts| (hosts.capacity(), hosts.min_engines()));
            assert_eq!(hosts, (name == ssh::NAME).then_some((Some(12), Some(3))), "{name}");
        }
        let tunnel_only = |config: &Config| by_name(ssh::NAME, &profile, config).unwrap().capabilities().tunnel_only;
        assert!(!tunnel_only(&config));
        config.launchers.ssh.tunnel = TunnelMode::Always;
        assert!(tunnel_only(&config));
    }

    /// Writes a program from another process: a file that this process, or a test's fork of it, has
    /// open for writing cannot be executed.
    pub(crate) fn write_program(path: &Path, script: &str) {
        let code = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\"";
        let status = std::process::Command::new("/bin/sh")
            .args(["-c", code])
            .arg(path)
            .arg(script)
            .status()
            .unwrap();
        assert!(status.success());
    }
}
