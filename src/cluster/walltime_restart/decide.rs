//! Decides which engines of batch jobs to restart: those whose job ended by walltime (or that left shortly before), node failure or
//! preemption. Pure.
//!
//! Never restarts engines whose job was cancelled, failed or ran out of memory, that were asked to leave, that are still connected to
//! the controller, or that have reached the maximum number of restarts.
use crate::launchers::{BatchJob, JobOutcome, Launched, MemberState};
use crate::model::engine::{EngineState, EngineStatus};
use crate::model::job::Departure;

/// The engines known to the controller.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KnownEngines<'a> {
    pub engines: &'a [EngineStatus],
    pub gone: &'a [Departure],
}

/// A job element whose engines are restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    /// The unique name of the job.
    pub job: String,
    pub element: u32,
    pub why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Walltime,
    NodeLost,
    Preempted,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Why::Walltime => "walltime exceeded",
            Why::NodeLost => "node failed",
            Why::Preempted => "preempted",
        })
    }
}

/// `states`: for each launch, the state of each member.
pub(crate) fn due(launches: &[Launched], states: &[Vec<MemberState>], known: KnownEngines) -> Vec<Due> {
    let mut found = Vec::new();
    for (launched, states) in launches.iter().zip(states) {
        let most = launched.recipe.as_ref().map_or(0, |recipe| recipe.max_restarts);
        let mut states = states.iter().skip(launched.processes.len());
        for job in &launched.jobs {
            for (element, state) in job.elements.iter().zip(&mut states) {
                let may = job.replaces < most && !job.leaving.contains(element);
                if let Some(why) = why(job, *element, state, known).filter(|_| may) {
                    found.push(Due {
                        job: job.name.clone(),
                        element: *element,
                        why,
                    });
                }
            }
        }
    }
    found
}

fn why(job: &BatchJob, element: u32, state: &MemberState, known: KnownEngines) -> Option<Why> {
    let is_heard_of = |engine: &EngineStatus| engine.state != EngineState::Silent && job.is_reported_as(&engine.facts.job, element);
    if !state.has_ended() || known.engines.iter().any(is_heard_of) {
        return None;
    }
    // Job numbers are reused.
    let mut gone = known
        .gone
        .iter()
        .filter(|engine| engine.gone.0 >= job.submitted && job.is_reported_as(&engine.job, element));
    match state.outcome {
        Some(JobOutcome::TimedOut) => Some(Why::Walltime),
        Some(JobOutcome::NodeFailed) => Some(Why::NodeLost),
        Some(JobOutcome::Preempted) => Some(Why::Preempted),
        Some(JobOutcome::Cancelled | JobOutcome::OutOfMemory) => None,
        // It exited by itself, or its system no longer knows: use the reason that its engines reported.
        Some(JobOutcome::Itself) | None => gone.any(Departure::is_walltime_end).then_some(Why::Walltime),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launchers::{Recipe, Stage};
    use crate::model::UnixTime;
    use crate::model::job::LeaveReason;
    use crate::profile::config::EngineKind;

    fn launched(replaces: u32, max_restarts: u32) -> Launched {
        let job = BatchJob {
            id: "18".into(),
            name: "pcluster-x-k3x9".into(),
            array: true,
            size: 3,
            elements: vec![1, 2, 3],
            engines_per_element: 1,
            engines: 3,
            submitted: 1000.0,
            replaces,
            ..BatchJob::default()
        };
        Launched {
            jobs: vec![job],
            recipe: Some(Recipe {
                program: "/opt/pcluster".into(),
                settings: Vec::new(),
                kind: EngineKind::Pcluster,
                python: None,
                ipengine: None,
                cwd: "/".into(),
                log_level: None,
                max_restarts,
            }),
            ..Launched::new("slurm", "h".into())
        }
    }

    fn ended(ending: Option<JobOutcome>) -> MemberState {
        MemberState {
            outcome: ending,
            ..MemberState::ended("")
        }
    }

    fn gone(job: &str, reason: LeaveReason, at: f64) -> Departure {
        Departure {
            job: job.into(),
            reason,
            registered: UnixTime(at - 50.0),
            gone: UnixTime(at),
            ends: None,
        }
    }

    fn engine(job: &str, state: &str) -> EngineStatus {
        let engine = serde_json::json!({"id": 0, "uuid": "a", "state": state, "assigned": 0, "finished": 0, "registered": 1.0, "job": job});
        serde_json::from_value(engine).unwrap()
    }

    /// The elements that are replaced, with why.
    fn replaced(launched: Launched, states: [MemberState; 3], known: KnownEngines) -> Vec<(u32, Why)> {
        let due = due(&[launched], &[states.to_vec()], known);
        due.into_iter().map(|due| (due.element, due.why)).collect()
    }

    #[test]
    fn jobs_lost_to_walltime_nodes_or_preemption_are_replaced_and_no_others() {
        use JobOutcome::*;
        let of = |endings: [Option<JobOutcome>; 3]| replaced(launched(0, 1), endings.map(ended), KnownEngines::default());
        assert_eq!(
            of([Some(TimedOut), Some(NodeFailed), Some(Preempted)]),
            [(1, Why::Walltime), (2, Why::NodeLost), (3, Why::Preempted)]
        );
        assert_eq!(of([Some(Cancelled), Some(OutOfMemory), Some(Itself)]), []);
        assert_eq!(of([None, None, None]), [], "how they ended is unknown");
        for stage in [Stage::Queued, Stage::Running, Stage::Suspended, Stage::Unknown] {
            let states = [(); 3].map(|()| MemberState::new(stage, "", ""));
            assert_eq!(replaced(launched(0, 1), states, KnownEngines::default()), [], "{stage:?}");
        }
    }

    #[test]
    fn a_job_that_exited_is_replaced_if_its_engine_left_for_the_walltime() {
        let engines = [
            gone("18.1", LeaveReason::Walltime, 1050.0),
            gone("18.2", LeaveReason::Unknown("it was asked to stop".into()), 1050.0),
            // Of a previous job that had the same number.
            gone("18.3", LeaveReason::Walltime, 900.0),
        ];
        let known = KnownEngines {
            gone: &engines,
            ..KnownEngines::default()
        };
        let by_itself = [(); 3].map(|()| ended(Some(JobOutcome::Itself)));
        assert_eq!(replaced(launched(0, 1), by_itself, known), [(1, Why::Walltime)]);
        let forgotten = [(); 3].map(|()| ended(None));
        assert_eq!(replaced(launched(0, 1), forgotten, known), [(1, Why::Walltime)]);
    }

    #[test]
    fn replacements_are_limited_and_skip_removed_and_connected_engines() {
        let timed_out = || [(); 3].map(|()| ended(Some(JobOutcome::TimedOut)));
        assert_eq!(replaced(launched(1, 2), timed_out(), KnownEngines::default()).len(), 3);
        assert_eq!(replaced(launched(2, 2), timed_out(), KnownEngines::default()), []);
        assert_eq!(replaced(launched(0, 0), timed_out(), KnownEngines::default()), []);
        let mut some = launched(0, 1);
        some.jobs[0].leaving = vec![2];
        let engines = [engine("18.1", "busy"), engine("18.3", "silent")];
        let known = KnownEngines {
            engines: &engines,
            ..KnownEngines::default()
        };
        assert_eq!(replaced(some, timed_out(), known), [(3, Why::Walltime)]);
        let mut by_hand = launched(0, 1);
        by_hand.recipe = None;
        assert_eq!(replaced(by_hand, timed_out(), KnownEngines::default()), [], "it is not known how");
    }
}
