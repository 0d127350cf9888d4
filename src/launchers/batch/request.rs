//! What a job is to be, in no batch system's words.
use crate::profile::config::resources::{Resources, StartMode};
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    Controller,
    Engines,
}

impl JobKind {
    pub fn word(self) -> &'static str {
        match self {
            JobKind::Controller => "controller",
            JobKind::Engines => "engines",
        }
    }
}

/// One submission: a controller, or an engine set.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRequest {
    pub kind: JobKind,
    /// The job's name, by which it can be found again. [`job_name`] makes one that every system takes.
    pub name: String,
    /// For the script's comment.
    pub profile: String,
    pub cluster_id: String,
    /// How many engines; 1 for a controller.
    pub n: u32,
    /// How many of them one job holds, on one node; at least 1.
    pub engines_per_job: u32,
    /// The program of one engine (or of the controller), and its arguments.
    pub argv: Vec<String>,
    pub cwd: PathBuf,
    /// Where the script will be; its companions lie beside it.
    pub script: PathBuf,
    /// Where the jobs' output goes, and how those files' names begin (`engines-<cluster id>`).
    pub log_dir: PathBuf,
    pub log_stem: String,
    /// Environment variables of the job. They override those of [`Resources::env`]. Never a secret.
    pub env: Vec<(String, String)>,
    pub resources: Resources,
    /// What runs understands SIGUSR2 as its batch system's warning: pcluster's own engine.
    pub hears_warnings: bool,
    /// So long after SIGTERM, or after SIGUSR1 or SIGUSR2, the system sends SIGKILL, in seconds; see [`super::KillWait`].
    pub after_term_s: Option<u32>,
    pub after_user_s: Option<u32>,
    /// How `mpiexec` is called, for [`StartMode::Mpiexec`].
    pub mpiexec: Vec<String>,
    /// Resources that the site counts once for each job; the others are counted for each slot. Grid Engine's matter.
    pub counted_by_job: Vec<String>,
}

impl JobRequest {
    /// How many jobs (array elements) the submission is.
    pub fn jobs(&self) -> u32 {
        match self.is_one_job() {
            true => 1,
            false => self.n.div_ceil(self.engines_per_job.max(1)),
        }
    }

    /// How many engines the fullest job holds.
    pub fn engines_in_a_job(&self) -> u32 {
        self.engines_per_job.clamp(1, self.n.max(1))
    }

    /// Whether all engines are started inside of one job, by `srun` or `mpiexec`.
    pub fn is_one_job(&self) -> bool {
        self.kind == JobKind::Engines && self.resources.start != StartMode::Array
    }
}

/// `pcluster-<profile>-<cluster id>-<unique>`: letters, digits, `-` and `_` only, a letter first, at most 64 characters: what every
/// batch system takes and prints in full somewhere. `unique` is kept whole.
pub fn job_name(profile: &str, cluster_id: &str, unique: &str) -> String {
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
    fn names_are_plain_and_short_whatever_the_profile_is_called() {
        assert_eq!(job_name("mycluster", "", "k3x9"), "pcluster-mycluster-k3x9");
        assert_eq!(job_name("a b/ü", "7", "k3x9"), "pcluster-a_b__-7-k3x9");
        let long = job_name(&"p".repeat(200), &"c".repeat(200), "k3x9");
        assert!(long.len() <= 64 && long.ends_with("-k3x9"), "{long}");
    }
}
