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
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
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
    #[serde(deserialize_with = "if_known")]
    pub decisions: Vec<DecisionRow>,
    #[serde(deserialize_with = "if_known")]
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

/// What another version wrote and this one does not know is only for display.
fn if_known<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(from: D) -> Result<T, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::elastic::decision::Action;

    #[test]
    fn a_journal_round_trips_and_that_of_another_version_keeps_its_state() {
        let dir = tempfile::tempdir().unwrap();
        let profile = ProfileDir::named("x", Some(dir.path())).unwrap();
        profile.create().unwrap();
        let mut journal = Journal::read(&profile, "", "k3x9").unwrap();
        journal.state.next_launch = 7;
        let decision = Decision {
            shape: "slurm".into(),
            action: Action::Pause,
            reason: "by a user".into(),
        };
        (0..MAX_DECISIONS + 5).for_each(|at| journal.add(UnixTime(at as f64), std::slice::from_ref(&decision)));
        assert_eq!((journal.decisions.len(), journal.decisions[0].time), (MAX_DECISIONS, UnixTime(5.0)));
        journal.write(&profile, "").unwrap();
        assert_eq!(Journal::read(&profile, "", "k3x9").unwrap(), journal);
        assert_eq!(Journal::read(&profile, "", "other").unwrap().state, ElasticState::default());

        let mut value = serde_json::to_value(&journal).unwrap();
        value["decisions"][0]["action"] = serde_json::json!({"action": "hibernate"});
        value["summary"] = serde_json::json!({"shapes": [{"colour": "blue"}]});
        fs::write(profile.elastic_file(""), value.to_string()).unwrap();
        let later = Journal::read(&profile, "", "k3x9").unwrap();
        assert_eq!((later.state, later.decisions.len()), (journal.state, 0));
    }
}
