//! Ways to start a controller or engines, and to end what was started.
//!
//! Parts: the trait [`Launcher`] and [`by_name`], [`launched`] (what a launch started: plain data that another process can take
//! up), [`local`] (processes on this host), [`mpi`] (engines under one `mpiexec`), [`ssh`] (engines on other hosts),
//! [`batch`] (what batch systems have in common), a row for each ([`slurm`], [`sge`], [`pbs`],
//! [`lsf`], [`htcondor`]), [`templates`] and [`jobs`] (the launcher that runs what a row says),
//! [`engine`] (the command that is one engine), [`supervisor`] (brings back what was killed), [`python`] (the interpreter that
//! engines are to use), [`command`] (runs others' programs), [`logs`] (what was written), [`error`].
//! What a cluster is, and when something is started, is not known here.
pub mod batch;
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
pub use launched::{Ended, Ending, Job, Launched, Member, MemberState, Process, Recipe, Stage};

use crate::profile::ProfileDir;
use crate::profile::config::{Config, EngineKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Seconds since 1970.
fn now() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0.0, |d| d.as_micros() as f64 / 1e6)
}

/// The launchers that there are.
pub fn known() -> Vec<&'static str> {
    ["local", mpi::NAME, ssh::NAME].into_iter().chain(batch::SYSTEMS).collect()
}

/// A way to start a controller or engines. Its calls may take seconds (a batch system, another host): never make them from
/// an async task.
pub trait Launcher: Send + Sync {
    fn name(&self) -> &str;
    /// Whether what it starts may run on other hosts: then the controller must listen where these reach it.
    fn is_elsewhere(&self) -> bool {
        false
    }
    /// Whether engines may be started where they do not reach a controller over the network: it need not listen there.
    fn provides_tunnel(&self) -> bool {
        false
    }
    /// Whether no engine is to reach the controller over the network.
    fn tunnel_only(&self) -> bool {
        false
    }
    /// Whether its states may be as old as some seconds, because who tells them is asked seldom.
    fn has_cached_state(&self) -> bool {
        false
    }
    /// Starts one controller.
    fn start_controller(&self, launch: &ControllerLaunch) -> Result<Launched, LaunchError>;
    /// Starts `launch.n` engines; all, or none with an error. [`python`] has the checks to be made before.
    fn start_engines(&self, launch: &EnginesLaunch) -> Result<Launched, LaunchError>;
    /// The state of each member, by place. What cannot be told is [`Stage::Unknown`] with the reason.
    fn states(&self, launched: &Launched) -> Vec<MemberState>;
    /// Sends a signal to those that run; how many that were.
    fn signal(&self, launched: &Launched, signal: i32) -> Result<usize, LaunchError>;
    /// Ends these members and no other ([`Launched::only`] names some): SIGTERM, and SIGKILL to what is still there after
    /// `grace`, with all that these left; or the batch system is told. Waits for the end where that is soon; says what it took.
    fn stop(&self, launched: &Launched, grace: Duration) -> Result<Ended, LaunchError>;
    /// Brings back what carries messages to members that still run, and has gone; the program is pcluster. What people should know of it.
    fn restart_tunnels(&self, _: &Launched, _program: &Path) -> Vec<String> {
        Vec::new()
    }
    /// The last lines of what the member at this place has written, without blank ones; empty if there are none.
    fn log_end(&self, launched: &Launched, place: usize, lines: usize) -> String {
        launched
            .members()
            .get(place)
            .map_or_else(String::new, |m| logs::end(&m.log, m.log_from, lines))
    }
    /// The last lines of what these members have written on other hosts, by place; or why they cannot be had.
    fn logs_elsewhere(&self, _: &Launched, _places: &[usize], _lines: usize) -> Vec<(usize, Result<String, String>)> {
        Vec::new()
    }
    /// The places of the engines that are these processes: each the name that its host gives itself, and its id there. Only of
    /// processes on other hosts; those that cannot be told are left out.
    fn places_of(&self, _: &Launched, _processes: &[(String, u32)]) -> Vec<usize> {
        Vec::new()
    }
    /// One line for people.
    fn describe(&self, launched: &Launched) -> String;
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
    use super::Path;

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
