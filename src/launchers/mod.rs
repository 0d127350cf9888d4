//! Ways to start a controller or engines, and to end what was started.
//!
//! Parts: the trait [`Launcher`], its [`Capabilities`] and [`RemoteHosts`], and [`by_name`], [`launched`] (what a launch started: plain data that another process can take
//! up), [`local`] (processes on this host), [`mpi`] (engines under one `mpiexec`), [`ssh`] (engines on other hosts),
//! [`batch`] (what batch systems have in common), a row for each ([`slurm`], [`sge`], [`pbs`],
//! [`lsf`], [`htcondor`]), [`templates`] and [`jobs`] (the launcher that runs what a row says),
//! [`engine`] (the command that is one engine), [`supervisor`] (brings back what was killed), [`python`] (the interpreter that
//! engines are to use), [`command`] (runs others' programs), [`logs`] (what was written), [`error`].
//! What a cluster is, and when something is started, is not known here.
pub mod batch;
pub mod capacity;
pub mod command;
pub mod engine;
pub mod error;
pub mod htcondor;
pub mod jobs;
pub mod launched;
pub mod local;
pub mod logs;
pub mod lsf;
pub mod mpi;
pub mod pbs;
pub mod python;
pub mod sge;
pub mod slurm;
pub mod ssh;
pub mod supervisor;
pub mod templates;

pub use error::LaunchError;
pub use launched::{Ended, Ending, Job, Launched, MemberState, Process, Recipe, Stage};

use crate::profile::ProfileDir;
use crate::profile::config::{Config, EngineKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The launchers that there are.
pub fn known() -> Vec<&'static str> {
    ["local", mpi::NAME, ssh::NAME].into_iter().chain(batch::SYSTEMS).collect()
}

/// A way to start a controller or engines. Its calls may take seconds (a batch system, another host): never make them from
/// an async task.
pub trait Launcher: Send + Sync {
    fn name(&self) -> &str;
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
    /// What can be done with engines on other hosts that only this launcher reaches; none where it reaches none.
    fn remote_hosts(&self) -> Option<&dyn RemoteHosts> {
        None
    }
    /// Starts one controller.
    fn start_controller(&self, launch: &ControllerLaunch) -> Result<Launched, LaunchError>;
    /// Starts `launch.n` engines; all, or none with an error. [`python`] has the checks to be made before.
    fn start_engines(&self, launch: &EnginesLaunch) -> Result<Launched, LaunchError>;
    /// The state of each member, by place. What cannot be told is [`Stage::Unknown`] with the reason.
    fn states(&self, launched: &Launched) -> Vec<MemberState>;
    /// Ends these members and no other ([`Launched::only`] names some): SIGTERM, and SIGKILL to what is still there after
    /// `grace`, with all that these left; or the batch system is told. Waits for the end where that is soon; says what it took.
    fn stop(&self, launched: &Launched, grace: Duration) -> Result<Ended, LaunchError>;
    /// The last lines of what the member at this place has written, without blank ones; empty if there are none.
    fn log_end(&self, launched: &Launched, place: usize, lines: usize) -> String {
        launched
            .members()
            .get(place)
            .map_or_else(String::new, |m| logs::end(&m.log, m.log_from, lines))
    }
    /// One line for people.
    fn describe(&self, launched: &Launched) -> String;
}

/// What holds of a launcher, as it is configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// What it starts may run on other hosts: the controller must listen where these reach it.
    pub remote: bool,
    /// Its engines may run where they do not reach the controller over the network: it need not listen there.
    pub provides_tunnel: bool,
    /// None of its engines is to reach the controller over the network.
    pub tunnel_only: bool,
    /// Its states may be some seconds old, because whoever reports them is asked seldom.
    pub has_cached_state: bool,
}

/// Engines on hosts that are named one by one (`--host`). Each host has a Python, and may have a copy of the connection file, of its own.
pub trait RemoteHosts: Send + Sync {
    /// How many engines the hosts are for; none if that is not limited.
    fn capacity(&self) -> Option<u32>;
    /// How many engines are enough if no more can be started.
    fn min_engines(&self) -> Option<u32>;
    /// Starts the tunnels of members again that are gone while the members still run; the program is pcluster. What people should know of
    /// it.
    fn restart_tunnels(&self, launched: &Launched, program: &Path) -> Vec<String>;
    /// The last lines of what these members have written on their hosts, by place; or why they cannot be had.
    fn logs(&self, launched: &Launched, places: &[usize], lines: usize) -> Vec<(usize, Result<String, String>)>;
    /// The places of the engines that are these processes: each the name that its host gives itself, and its id there. Those that cannot be
    /// told are left out.
    fn places_of(&self, launched: &Launched, processes: &[(String, u32)]) -> Vec<usize>;
}

/// The launcher of this name, for this profile and its configuration.
pub fn by_name(name: &str, profile: &ProfileDir, config: &Config) -> Result<Box<dyn Launcher>, LaunchError> {
    match name {
        "local" => Ok(Box::new(local::Local::default())),
        mpi::NAME => Ok(Box::new(mpi::Mpi::new(&config.launchers.mpi))),
        ssh::NAME => Ok(Box::new(ssh::OverSsh::new(&config.launchers.ssh))),
        _ => match jobs::by_name(name, profile, config) {
            Some(jobs) => Ok(Box::new(jobs)),
            None => Err(LaunchError::UnknownLauncher { name: name.to_string() }),
        },
    }
}

/// What is to be known to start a controller.
#[derive(Clone, Debug)]
pub struct ControllerLaunch {
    /// The pcluster program.
    pub program: PathBuf,
    pub profile: ProfileDir,
    pub cluster_id: String,
    /// `--set` of the command line.
    pub settings: Vec<(String, String)>,
    pub cwd: PathBuf,
    pub log_level: Option<String>,
}

/// What is to be known to start engines.
#[derive(Clone, Debug)]
pub struct EnginesLaunch {
    pub program: PathBuf,
    pub profile: ProfileDir,
    pub cluster_id: String,
    pub settings: Vec<(String, String)>,
    pub kind: EngineKind,
    pub n: u32,
    /// The number of the first one, for its log file's name.
    pub first: u32,
    /// The interpreter, where it is not left to the engine.
    pub python: Option<String>,
    /// The command of an `ipengine`, where it is not `<python> -m ipyparallel.engine`.
    pub ipengine: Option<String>,
    pub cwd: PathBuf,
    pub log_level: Option<String>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::profile::config::resources::{SshHost, TunnelMode};

    #[test]
    fn each_launcher_says_what_it_can() {
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

    /// Writes a program. Another process does it: one that is open for writing here, or in a process just forked from
    /// here by another test, cannot be run.
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
