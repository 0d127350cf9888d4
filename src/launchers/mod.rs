//! Launchers: they start a controller or engines, and end what they started.
//!
//! Modules: the trait [`Launcher`], its [`Capabilities`] and [`RemoteHosts`], and [`by_name`];
//! [`launched`] (the result of a launch: plain data that any process can use), [`local`] (processes
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
pub(crate) mod launched;
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

pub(crate) use error::LaunchError;
pub(crate) use launched::{BatchJob, JobOutcome, Launched, MemberState, Process, Recipe, Stage, StopReport};

use crate::profile::ProfileDir;
use crate::profile::config::{Config, EngineKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The names of all launchers.
pub(crate) fn known() -> Vec<&'static str> {
    ["local", mpi::NAME, ssh::NAME].into_iter().chain(batch::SYSTEMS).collect()
}

/// Starts a controller or engines. Calls may take seconds (a batch system, a remote host): never
/// make them from an async task.
pub(crate) trait Launcher: Send + Sync {
    fn name(&self) -> &str;
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
    /// Operations on hosts that only this launcher can reach; none if it has no such hosts.
    fn remote_hosts(&self) -> Option<&dyn RemoteHosts> {
        None
    }
    /// Starts one controller.
    fn start_controller(&self, launch: &ControllerLaunch) -> Result<Launched, LaunchError>;
    /// Starts `launch.n` engines: all of them, or none and returns an error. [`python`] has checks
    /// to make before.
    fn start_engines(&self, launch: &EnginesLaunch) -> Result<Launched, LaunchError>;
    /// The state of each member, by index. If it cannot be determined, [`Stage::Unknown`] with the
    /// reason.
    fn states(&self, launched: &Launched) -> Vec<MemberState>;
    /// Ends only these members ([`Launched::only`] selects some): sends SIGTERM, then SIGKILL after
    /// `grace`, also to their remaining children; or cancels the jobs. Waits for the end if it is
    /// near; reports the actions taken.
    fn stop(&self, launched: &Launched, grace: Duration) -> Result<StopReport, LaunchError>;
    /// The last lines of this member's output, without blank ones; empty if there are none.
    fn log_tail(&self, launched: &Launched, index: usize, lines: usize) -> String {
        launched
            .members()
            .get(index)
            .map_or_else(String::new, |m| logs::tail(&m.log, m.log_from, lines))
    }
    /// A one-line description for display.
    fn describe(&self, launched: &Launched) -> String;
}

/// The properties of a launcher as configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// Its processes may run on other hosts: the controller must listen on an address that they can
    /// reach.
    pub remote: bool,
    /// It can tunnel connections for engines that cannot reach the controller: the controller need
    /// not listen on the network.
    pub provides_tunnel: bool,
    /// All of its engines use a tunnel; none connects to the controller directly.
    pub tunnel_only: bool,
    /// States may be some seconds old, because the system is polled rarely.
    pub has_cached_state: bool,
}

/// Engines on explicitly named hosts (`--host`). Each host has its own Python, and may have its own
/// copy of the connection file.
pub(crate) trait RemoteHosts: Send + Sync {
    /// The number of engines that fit on the hosts; none if unlimited.
    fn capacity(&self) -> Option<u32>;
    /// The minimum number of engines for a start to succeed.
    fn min_engines(&self) -> Option<u32>;
    /// Restarts tunnels that ended while their members still run. `program` is pcluster. Returns
    /// messages for the user.
    fn restart_tunnels(&self, launched: &Launched, program: &Path) -> Vec<String>;
    /// The last lines of these members' logs on their hosts, by index, or the reason why they are
    /// not available.
    fn logs(&self, launched: &Launched, indices: &[usize], lines: usize) -> Vec<(usize, Result<String, String>)>;
    /// The indices of the engines with these process ids; each is given as the host's own name and
    /// the pid on that host. Omits processes that cannot be matched.
    fn indices_of(&self, launched: &Launched, processes: &[(String, u32)]) -> Vec<usize>;
}

/// The launcher of this name, for this profile and its configuration.
pub(crate) fn by_name(name: &str, profile: &ProfileDir, config: &Config) -> Result<Box<dyn Launcher>, LaunchError> {
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

/// The parameters for starting a controller.
#[derive(Clone, Debug)]
pub(crate) struct ControllerLaunch {
    /// The pcluster program.
    pub program: PathBuf,
    pub profile: ProfileDir,
    pub cluster_id: String,
    /// The `--set` options of the command line.
    pub settings: Vec<(String, String)>,
    pub cwd: PathBuf,
    pub log_level: Option<String>,
}

/// The parameters for starting engines.
#[derive(Clone, Debug)]
pub(crate) struct EnginesLaunch {
    pub program: PathBuf,
    pub profile: ProfileDir,
    pub cluster_id: String,
    pub settings: Vec<(String, String)>,
    pub kind: EngineKind,
    pub n: u32,
    /// The number of the first engine, for the name of its log file.
    pub first: u32,
    /// The interpreter, unless the engine selects it.
    pub python: Option<String>,
    /// The command of an `ipengine`, unless it is `<python> -m ipyparallel.engine`.
    pub ipengine: Option<String>,
    pub cwd: PathBuf,
    pub log_level: Option<String>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::profile::config::resources::{SshHost, TunnelMode};

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
