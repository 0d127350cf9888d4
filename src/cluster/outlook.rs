//! What is known about engines that have not registered: jobs that wait in a batch system, and processes and jobs that ended.
use super::ClusterState;
use crate::launchers::launched::Detail;
use crate::launchers::{self, BatchJob, Launched, MemberState, Stage};
use crate::model::job::is_job;
use crate::profile::{Config, ProfileDir};
use serde::Serialize;

/// Jobs, or local processes, in the same state for the same reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Absent {
    pub launcher: String,
    pub stage: Stage,
    /// The batch system's own word, or how a process ended; may be empty.
    pub state: String,
    pub reason: String,
    /// Elements of jobs, or processes, and their engines.
    pub jobs: u32,
    pub engines: u32,
    #[serde(skip)]
    is_job: bool,
    /// The batch system has not reported it yet.
    #[serde(skip)]
    is_submitted: bool,
}

impl std::fmt::Display for Absent {
    /// `4 jobs are queued in slurm (QOSMaxCpuPerUserLimit)`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let noun = if self.is_job { "job" } else { "process" };
        let (plural, is, has) = match (self.jobs, self.is_job) {
            (1, _) => ("", "is", "has"),
            (_, true) => ("s", "are", "have"),
            (_, false) => ("es", "are", "have"),
        };
        let Absent { launcher, jobs, .. } = self;
        let detail = match (self.reason.is_empty(), self.stage) {
            (true, Stage::Ended) => &self.state,
            _ => &self.reason,
        };
        let why = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
        match self.stage {
            Stage::Queued if self.is_submitted => write!(f, "{jobs} {noun}{plural} {has} been submitted to {launcher}"),
            Stage::Queued => write!(f, "{jobs} {noun}{plural} {is} queued in {launcher}{why}"),
            Stage::Suspended => write!(f, "{jobs} {noun}{plural} {is} suspended in {launcher}{why}"),
            Stage::Ended => write!(f, "{jobs} {noun}{plural} of {launcher} {has} ended{why}"),
            Stage::Running => write!(f, "{jobs} {noun}{plural} {is} running in {launcher}"),
            Stage::Unknown => {
                let what = if self.is_job { "asked" } else { "seen" };
                write!(f, "the state of {jobs} {noun}{plural} of {launcher} cannot be {what}{why}")
            }
        }
    }
}

#[cfg(test)]
impl Absent {
    pub(crate) fn queued(launcher: &str, jobs: u32, reason: &str) -> Absent {
        Absent {
            launcher: launcher.into(),
            stage: Stage::Queued,
            state: "queued".into(),
            reason: reason.into(),
            jobs,
            engines: jobs,
            is_job: true,
            is_submitted: false,
        }
    }
}

/// Engines of the cluster that do not run, as far as this host can ask. May take seconds: batch systems are asked.
pub(crate) fn absent(profile: &ProfileDir, cluster_id: &str) -> Vec<Absent> {
    let Ok(Some(state)) = ClusterState::read(profile, cluster_id) else {
        return Vec::new();
    };
    let config = Config::load(profile).unwrap_or_default();
    let mut all: Vec<Absent> = Vec::new();
    for launched in &state.engines {
        let states = states(launched, profile, &config);
        for (index, (member, state)) in launched.members().iter().zip(&states).enumerate() {
            if member.leaving || state.stage == Stage::Running {
                continue;
            }
            let found = Absent {
                launcher: launched.launcher.clone(),
                stage: state.stage,
                state: state.word().into(),
                reason: state.reason.clone(),
                jobs: 0,
                engines: 0,
                is_job: index >= launched.processes.len(),
                is_submitted: state.detail == Detail::Submitted,
            };
            let is_same = |other: &Absent| {
                let (jobs, engines) = (other.jobs, other.engines);
                *other
                    == Absent {
                        jobs,
                        engines,
                        ..found.clone()
                    }
            };
            let at = all.iter().position(is_same).unwrap_or(all.len());
            if at == all.len() {
                all.push(found);
            }
            let entry = &mut all[at];
            entry.jobs += 1;
            entry.engines += member.engines;
        }
    }
    all
}

fn states(launched: &Launched, profile: &ProfileDir, config: &Config) -> Vec<MemberState> {
    match launchers::by_name(&launched.launcher, profile, config) {
        Ok(launcher) => launcher.states(launched),
        Err(error) => vec![MemberState::unknown(error.to_string()); launched.len()],
    }
}

/// One element of a job of this cluster, as its batch system reports it now.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct JobElement {
    pub launcher: String,
    /// `4711.3`
    pub job: String,
    pub name: String,
    pub element: u32,
    pub engines: u32,
    /// Seconds since 1970.
    pub submitted: f64,
    pub stage: Stage,
    pub state: String,
    pub reason: String,
    /// Whether these engines belong to the cluster, or the controller is in the job.
    pub is_controller: bool,
}

/// The elements of the cluster's jobs that `asked` names.
pub(crate) fn elements(profile: &ProfileDir, cluster_id: &str, asked: &str) -> Vec<JobElement> {
    let Ok(Some(state)) = ClusterState::read(profile, cluster_id) else {
        return Vec::new();
    };
    let config = Config::load(profile).unwrap_or_default();
    let mut found = Vec::new();
    for launched in state.launched() {
        let is_asked = |job: &BatchJob, element: &u32| is_job(&job.element_name(*element), asked);
        if !launched
            .jobs
            .iter()
            .any(|job| job.elements.iter().any(|element| is_asked(job, element)))
        {
            continue;
        }
        let states = states(launched, profile, &config);
        let mut states = states.iter().skip(launched.processes.len());
        for job in &launched.jobs {
            for (element, state) in job.elements.iter().zip(&mut states).filter(|(element, _)| is_asked(job, element)) {
                found.push(JobElement {
                    launcher: launched.launcher.clone(),
                    job: job.element_name(*element),
                    name: job.name.clone(),
                    element: *element,
                    engines: job.engines_of(*element),
                    submitted: job.submitted,
                    stage: state.stage,
                    state: state.describe().into(),
                    reason: state.reason.clone(),
                    is_controller: job.engines == 0,
                });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_one_phrase() {
        let absent = |stage, jobs, state: &str, reason: &str, is_job| {
            let absent = Absent {
                launcher: "slurm".into(),
                stage,
                state: state.into(),
                reason: reason.into(),
                jobs,
                engines: jobs,
                is_job,
                is_submitted: false,
            };
            absent.to_string()
        };
        assert_eq!(
            absent(Stage::Queued, 4, "queued", "QOSMaxCpuPerUserLimit", true),
            "4 jobs are queued in slurm (QOSMaxCpuPerUserLimit)"
        );
        assert_eq!(absent(Stage::Queued, 1, "queued", "", true), "1 job is queued in slurm");
        assert_eq!(
            absent(Stage::Unknown, 2, "", "squeue: not found", true),
            "the state of 2 jobs of slurm cannot be asked (squeue: not found)"
        );
        assert_eq!(
            absent(Stage::Ended, 2, "exit code 3", "", false),
            "2 processes of slurm have ended (exit code 3)"
        );
    }
}
