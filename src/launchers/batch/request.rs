//! A job to submit, independent of the batch system.
use crate::profile::config::resources::{Resources, StartMode};
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobKind {
    Controller,
    Engines,
}

impl JobKind {
    pub(crate) fn word(self) -> &'static str {
        match self {
            JobKind::Controller => "controller",
            JobKind::Engines => "engines",
        }
    }
}

/// One submission: a controller, or a set of engines.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct JobRequest {
    pub kind: JobKind,
    /// The job's name, used to find it again. [`job_name`] makes one that every system accepts.
    pub name: String,
    /// For the comment in the script.
    pub profile: String,
    pub cluster_id: String,
    /// The number of engines; 1 for a controller.
    pub n: u32,
    /// The number of engines per job, on one node; at least 1.
    pub engines_per_job: u32,
    /// The command line of one engine (or of the controller).
    pub argv: Vec<String>,
    pub cwd: PathBuf,
    /// The path of the script; further files are placed next to it.
    pub script: PathBuf,
    /// The directory of the job's output files, and the prefix of their names (`engines-<cluster
    /// id>`).
    pub log_dir: PathBuf,
    pub log_stem: String,
    /// Environment variables of the job. They override those of [`Resources::env`]. Never a secret.
    pub env: Vec<(String, String)>,
    pub resources: Resources,
    /// The process handles SIGUSR2 as the batch system's warning: pcluster's own engine.
    pub handles_sigusr2: bool,
    /// The delay in seconds between SIGTERM (or SIGUSR1, SIGUSR2) and SIGKILL; see
    /// [`super::KillWait`].
    pub after_term_s: Option<u32>,
    pub after_user_s: Option<u32>,
    /// The `mpiexec` command, for [`StartMode::Mpiexec`].
    pub mpiexec: Vec<String>,
    /// Resources that the site counts per job; the others are counted per slot. Grid Engine only.
    pub per_job_resources: Vec<String>,
}

impl JobRequest {
    /// The number of jobs (array elements) in the submission.
    pub(crate) fn jobs(&self) -> u32 {
        match self.is_one_job() {
            true => 1,
            false => self.n.div_ceil(self.engines_per_job.max(1)),
        }
    }

    /// The number of engines in a full job.
    pub(crate) fn engines_in_a_job(&self) -> u32 {
        self.engines_per_job.clamp(1, self.n.max(1))
    }

    /// Whether the submission is an array of jobs.
    pub(crate) fn is_array(&self) -> bool {
        self.kind == JobKind::Engines && !self.is_one_job()
    }

    /// Whether `srun` or `mpiexec` starts all engines inside one job.
    pub(crate) fn is_one_job(&self) -> bool {
        self.kind == JobKind::Engines && self.resources.start != StartMode::Array
    }
}

/// `pcluster-<profile>-<cluster id>-<unique>`: letters, digits, `-` and `_` only, starting with a
/// letter, at most 64 characters. Every batch system accepts such a name and prints it in full in
/// some output. `unique` is never truncated.
pub(crate) fn job_name(profile: &str, cluster_id: &str, unique: &str) -> String {
    let plain = |text: &str| -> String {
        let fits = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' };
        text.chars().map(fits).take(24).collect()
    };
    let mut name = format!("pcluster-{}", plain(profile));
    if !cluster_id.is_empty() {
        name.push('-');
        name.push_str(&plain(cluster_id));
    }
    name.truncate(64 - 1 - unique.len().min(32));
    format!("{name}-{unique}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_names_are_plain_and_short_for_any_profile_name() {
        assert_eq!(job_name("mycluster", "", "k3x9"), "pcluster-mycluster-k3x9");
        assert_eq!(job_name("a b/ü", "7", "k3x9"), "pcluster-a_b__-7-k3x9");
        let long = job_name(&"p".repeat(200), &"c".repeat(200), "k3x9");
        assert!(long.len() <= 64 && long.ends_with("-k3x9"), "{long}");
    }
}
