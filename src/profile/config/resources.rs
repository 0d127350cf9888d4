//! What a site's batch system is to be asked for: one section for each system, `launchers.<system>`.
use super::amounts::{Memory, Walltime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One section for each launcher that has settings of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LaunchersConfig {
    pub slurm: Resources,
    pub sge: Resources,
    pub pbs: Resources,
    pub lsf: Resources,
    pub htcondor: Resources,
    pub mpi: MpiConfig,
}

impl LaunchersConfig {
    /// The section of a batch system; none for another launcher.
    pub fn of(&self, system: &str) -> Option<&Resources> {
        match system {
            "slurm" => Some(&self.slurm),
            "sge" => Some(&self.sge),
            "pbs" => Some(&self.pbs),
            "lsf" => Some(&self.lsf),
            "htcondor" => Some(&self.htcondor),
            _ => None,
        }
    }
}

/// What is asked for. What is not set is left to the site. Amounts are for one engine; a job that holds several asks for as many times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// Slurm's partition.
    pub queue: Option<String>,
    /// Account or project.
    pub account: Option<String>,
    pub qos: Option<String>,
    pub walltime: Option<Walltime>,
    pub memory: Option<Memory>,
    pub cpus: Option<u32>,
    pub gpus: Option<u32>,
    /// For one job of all engines: over how many nodes.
    pub nodes: Option<u32>,
    /// Features that a node must have, in the system's own words.
    pub constraint: Option<String>,
    /// Grid Engine's parallel environment for jobs of more than one processor.
    pub parallel_environment: Option<String>,
    pub reservation: Option<String>,
    pub mail_user: Option<String>,
    /// When to send mail, in the system's own words.
    pub mail_type: Option<String>,
    /// Further directives, as they stand in a script but without its prefix (`--exclusive`).
    pub directives: Vec<String>,
    /// Environment modules to load.
    pub modules: Vec<String>,
    /// Shell lines before the engine starts.
    pub before: Vec<String>,
    /// Environment variables of the job.
    pub env: BTreeMap<String, String>,
    pub engines_per_job: Option<u32>,
    /// How an engine set becomes jobs.
    pub start: StartMode,
    /// A template instead of pcluster's: a file, looked for in the profile's directory.
    pub template: Option<String>,
}

/// How an engine set becomes jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartMode {
    /// An array of jobs.
    #[default]
    Array,
    /// One job whose engines `srun` starts (Slurm alone).
    Srun,
    /// One job whose engines `mpiexec` starts.
    Mpiexec,
}

/// How `mpiexec` is called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MpiConfig {
    /// The program.
    pub command: String,
    /// Its arguments before the engine's, besides `-n`.
    pub arguments: Vec<String>,
}

impl Default for MpiConfig {
    fn default() -> Self {
        MpiConfig {
            command: "mpiexec".into(),
            arguments: Vec::new(),
        }
    }
}
