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
        let config = Config::load_with(profile, &settings)?;
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
