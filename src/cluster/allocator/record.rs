//! What is on disk about an elastic cluster: the settings, in the cluster's state file, which every command may change under
//! the cluster's lock; and the journal, which only the monitor writes.
use super::super::ClusterError;
use super::super::elastic::decision::Decision;
use super::super::elastic::observation::Control;
use super::super::elastic::settings::ElasticSettings;
use super::super::elastic::state::ElasticState;
use super::super::elastic::summary::Summary;
use crate::launchers::Recipe;
use crate::model::UnixTime;
use crate::profile::ProfileDir;
use crate::sys::private_file;
use serde::{Deserialize, Serialize};
use std::{fs, io};

/// Older decisions are in the monitor's log only.
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
