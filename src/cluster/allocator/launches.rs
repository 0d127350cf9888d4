//! How the engines of an elastic cluster are launched, recorded and found again.
use super::super::{ClusterError, launch};
use super::record::ElasticCluster;
use crate::launchers::{ElasticLaunch, EnginesLaunch, Launched, Launcher, batch};
use crate::profile::ProfileDir;
use crate::profile::config::{Config, EngineKind};
use std::sync::Arc;

impl ElasticCluster {
    /// The launcher, for jobs with this many engines each.
    pub(super) fn launcher(&self, profile: &ProfileDir, engines_per_job: Option<u32>) -> Result<Arc<dyn Launcher>, ClusterError> {
        let mut settings = self.recipe.settings.clone();
        if let Some(engines) = engines_per_job.filter(|_| batch::SYSTEMS.contains(&self.launcher.as_str())) {
            settings.push((format!("launchers.{}.engines_per_job", self.launcher), engines.to_string()));
        }
        let mut config = Config::load_with(profile, &settings)?;
        if self.settings.budget_core_h.is_some()
            && let Some(resources) = config.launchers.of(&self.launcher)
        {
            // A job that is requeued would be granted its walltime twice.
            let directives = without_requeue(&self.launcher, &resources.directives);
            let directives = serde_json::to_string(&directives).map_err(|e| ClusterError::Internal(e.to_string()))?;
            settings.push((format!("launchers.{}.directives", self.launcher), directives));
            config = Config::load_with(profile, &settings)?;
        }
        Ok(launch::launcher(&self.launcher, profile, &config)?)
    }

    /// The submissions of a decision.
    pub(super) fn launches(
        &self,
        profile: &ProfileDir,
        cluster_id: &str,
        number: u64,
        jobs: u32,
        engines_per_job: u32,
        first: u32,
    ) -> Vec<EnginesLaunch> {
        let tag = format!("{}e{number}", self.seed);
        let launch = |n: u32, first: u32, tag: String| EnginesLaunch {
            tag: Some(tag),
            ..self.recipe.launch(profile, cluster_id, n, first)
        };
        match self.has_whole_launches {
            true => (0..jobs)
                .map(|at| launch(engines_per_job, first + at * engines_per_job, format!("{tag}x{at}")))
                .collect(),
            false => vec![launch(jobs.saturating_mul(engines_per_job), first, tag)],
        }
    }

    /// A launch as it is recorded.
    pub(super) fn recorded(&self, engines: Launched, launcher: &dyn Launcher, launch: u64, shape: &str) -> Launched {
        Launched {
            follows: self.recipe.kind == EngineKind::Pcluster && launcher.remote_hosts().is_none(),
            elastic: Some(ElasticLaunch {
                launch,
                shape: shape.into(),
            }),
            ..engines
        }
    }
}

/// The directives, and one that keeps the system from running a job again. HTCondor has none.
fn without_requeue(system: &str, directives: &[String]) -> Vec<String> {
    let flag = match system {
        "slurm" => Some("--no-requeue"),
        "sge" | "pbs" => Some("-r n"),
        "lsf" => Some("-rn"),
        _ => None,
    };
    let own = flag.filter(|flag| !directives.iter().any(|line| line == flag));
    directives.iter().cloned().chain(own.map(String::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_with_a_budget_are_not_requeued() {
        let given = ["--exclusive".to_string()];
        assert_eq!(without_requeue("slurm", &given), ["--exclusive", "--no-requeue"]);
        assert_eq!(without_requeue("pbs", &["-r n".into()]), ["-r n"]);
        assert_eq!(without_requeue("htcondor", &given), given);
    }
}
