//! Ways to start a controller or engines, and to end what was started.
//!
//! Parts: the trait [`Launcher`] and [`by_name`], [`local`] (processes on this host), [`batch`] (what batch systems have in common) and a row for each ([`slurm`], [`sge`], [`pbs`], [`lsf`], [`htcondor`]), [`supervisor`] (brings back what was killed), [`python`] (the interpreter that
//! engines are to use), [`error`]. What a launch started is a [`Launched`], plain data that another process can take up.
//! What a cluster is, and when something is started, is not known here.
pub mod batch;
pub mod error;
pub mod htcondor;
pub mod local;
pub mod lsf;
pub mod pbs;
pub mod python;
pub mod sge;
pub mod slurm;
pub mod supervisor;
pub mod templates;

pub use error::LaunchError;

use crate::profile::ProfileDir;
use crate::profile::config::EngineKind;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// The launchers that there are.
pub const KNOWN: [&str; 1] = ["local"];

/// A way to start processes.
pub trait Launcher: Send + Sync {
    fn name(&self) -> &'static str;
    /// Starts one controller.
    fn start_controller(&self, launch: &ControllerLaunch) -> Result<Launched, LaunchError>;
    /// Starts `launch.n` engines; all, or none with an error. [`python`] has the checks to be made before.
    fn start_engines(&self, launch: &EnginesLaunch) -> Result<Launched, LaunchError>;
    /// Which of the processes run, in their order. None where that cannot be told from here.
    fn alive(&self, launched: &Launched) -> Option<Vec<bool>>;
    /// How a process ended, in words, where this launcher has seen it (`exit code 3`).
    fn ending(&self, process: &Process) -> Option<String>;
    /// Sends a signal to those that run; how many that were.
    fn signal(&self, launched: &Launched, signal: i32) -> Result<usize, LaunchError>;
    /// SIGTERM, and SIGKILL to what is still there after `grace`, with all that these left in their sessions. Waits for
    /// the end; says what it took.
    fn stop(&self, launched: &Launched, grace: Duration) -> Result<Ended, LaunchError>;
    /// One line for people.
    fn describe(&self, launched: &Launched) -> String;
}

/// The launcher of this name.
pub fn by_name(name: &str) -> Result<Box<dyn Launcher>, LaunchError> {
    match name {
        "local" => Ok(Box::new(local::Local::default())),
        _ => Err(LaunchError::UnknownLauncher { name: name.to_string() }),
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

/// What one launch started. Kept in the cluster's state file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launched {
    pub launcher: String,
    /// Where the processes are.
    pub host: String,
    pub processes: Vec<Process>,
    /// What a later pcluster wrote.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// Seconds since 1970, as `connection::process::started_of` says it.
    pub started: f64,
    pub log: PathBuf,
    /// Where in the log this process begins, in bytes.
    #[serde(default)]
    pub log_from: u64,
}

/// What it took to end processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ended {
    /// Got SIGTERM.
    pub terminated: usize,
    /// Got SIGKILL after it.
    pub killed: usize,
}

impl std::ops::AddAssign for Ended {
    fn add_assign(&mut self, other: Ended) {
        self.terminated += other.terminated;
        self.killed += other.killed;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

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
