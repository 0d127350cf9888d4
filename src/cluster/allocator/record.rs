//! What is on disk about an elastic cluster: the settings, in the cluster's state file, which every command may change under
//! the cluster's lock; and the journal, which only the keeper writes.
use super::super::ClusterError;
use super::super::elastic::decision::Decision;
use super::super::elastic::observation::Control;
use super::super::elastic::settings::ElasticSettings;
use super::super::elastic::state::ElasticState;
use super::super::elastic::summary::Summary;
use super::super::launch;
use crate::launchers::{ElasticLaunch, EnginesLaunch, Launched, Launcher, Recipe, batch};
use crate::model::UnixTime;
use crate::profile::ProfileDir;
use crate::profile::config::{Config, EngineKind};
use crate::sys::private_file;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::{fs, io};

/// Older decisions are in the keeper's log only.
const MAX_DECISIONS: usize = 1000;

/// Part of the cluster's state file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ElasticCluster {
    pub settings: ElasticSettings,
    /// Letters and digits that begin the tags of this cluster's launches.
    pub seed: String,
    /// The engines' launcher, and how it starts them.
    pub launcher: String,
    pub recipe: Recipe,
    /// One launch is one job: `mpiexec` or `srun` starts all of its engines.
    #[serde(default)]
    pub has_whole_launches: bool,
    /// What users have asked for since the last decision.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<Control>,
}

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

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DecisionRow {
    pub time: UnixTime,
    #[serde(flatten)]
    pub decision: Decision,
}

/// Replaced as a whole: the state of the allocator, and its decisions with their reasons.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Journal {
    /// [`ElasticCluster::seed`].
    pub seed: String,
    pub state: ElasticState,
    /// The newest last.
    pub decisions: Vec<DecisionRow>,
    pub summary: Summary,
}

impl Journal {
    /// Empty if there is none of this cluster.
    pub(crate) fn read(profile: &ProfileDir, cluster_id: &str, seed: &str) -> Result<Journal, ClusterError> {
        let path = profile.elastic_file(cluster_id);
        let parsed = match fs::read(&path) {
            Ok(text) => serde_json::from_slice::<Journal>(&text).map_err(io::Error::from),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Journal::default()),
            Err(e) => Err(e),
        };
        match parsed {
            Ok(journal) if journal.seed == seed => Ok(journal),
            Ok(_) => Ok(Journal {
                seed: seed.into(),
                ..Journal::default()
            }),
            Err(e) => Err(ClusterError::StateUnreadable { path, why: e.to_string() }),
        }
    }

    pub(super) fn add(&mut self, time: UnixTime, decisions: &[Decision]) {
        self.decisions
            .extend(decisions.iter().cloned().map(|decision| DecisionRow { time, decision }));
        let surplus = self.decisions.len().saturating_sub(MAX_DECISIONS);
        self.decisions.drain(..surplus);
    }

    pub(super) fn write(&self, profile: &ProfileDir, cluster_id: &str) -> Result<(), ClusterError> {
        let path = profile.elastic_file(cluster_id);
        let written = serde_json::to_vec(self)
            .map_err(io::Error::from)
            .and_then(|text| private_file::write(&path, &text));
        written.map_err(|e| ClusterError::StateFile {
            doing: "write",
            path,
            why: e.to_string(),
        })
    }
}
