//! One test for each rule, in its numbers.
use crate::cluster::elastic::decide::{Outcome, decide};
use crate::cluster::elastic::decision::{Action, Decision};
use crate::cluster::elastic::observation::{Activity, Control, JobName, JobPhase, Observation, ObservedEngine, ObservedJob, Rejection};
use crate::cluster::elastic::settings::{ElasticSettings, EngineShape, InvalidSettings};
use crate::cluster::elastic::state::ElasticState;
use crate::cluster::elastic::summary::{ShapeSummary, Summary, WhyNotFewer, WhyNotMore};
use crate::cluster::elastic::work::{ReadyWork, group};
use crate::launchers::{JobOutcome, MemberState};
use crate::model::node::{Gpu, GpuVendor};
use crate::model::resources::Request;
use crate::model::{EngineId, UnixTime};
use std::collections::BTreeMap;

/// A cluster of one shape, whose jobs do what a test tells them.
struct Cluster {
    settings: ElasticSettings,
    state: ElasticState,
    now: f64,
    jobs: Vec<ObservedJob>,
    work: Vec<ReadyWork>,
    is_answered: bool,
    next_engine: u32,
}

fn units(units: u64, seconds: f64) -> ReadyWork {
    ReadyWork {
        name: "map 1".into(),
        units,
        ended: 10,
        mean_s: seconds,
        ..ReadyWork::default()
    }
}

impl Cluster {
    fn new(min: u32, max: u32) -> Cluster {
        let mut shape = EngineShape::new("cpu", min, max);
        shape.max_queued = 64;
        shape.walltime_s = Some(7200.0);
        let settings = ElasticSettings {
            shapes: vec![shape],
            ..ElasticSettings::default()
        };
        Cluster {
            settings,
            state: ElasticState::default(),
            now: 1.7e9,
            jobs: Vec::new(),
            work: Vec::new(),
            is_answered: true,
            next_engine: 0,
        }
    }

    fn shape(&mut self) -> &mut EngineShape {
        &mut self.settings.shapes[0]
    }

    fn seen(&mut self, seconds: f64) -> Observation {
        self.now += seconds;
        Observation {
            now: UnixTime(self.now),
            elapsed_s: Some(seconds),
            work: Some(self.work.clone()),
            is_answered: self.is_answered,
            jobs: self.jobs.clone(),
            ..Observation::default()
        }
    }

    /// The decisions after this time.
    fn after(&mut self, seconds: f64) -> Vec<Decision> {
        let seen = self.seen(seconds);
        self.decide(&seen).decisions
    }

    fn decide(&mut self, seen: &Observation) -> Outcome {
        decide(&self.settings, &mut self.state, seen)
    }

    fn why_not_more(&mut self) -> WhyNotMore {
        let seen = self.seen(10.0);
        let outcome = decide(&self.settings, &mut self.state.clone(), &seen);
        outcome.summary.shapes[0].why_not_more.clone()
    }

    /// Carries out submissions: the jobs are queued.
    fn queue(&mut self, decisions: &[Decision]) {
        for decision in decisions {
            if let Action::Submit {
                launch,
                jobs,
                engines_per_job,
            } = decision.action
            {
                self.jobs.extend((0..jobs).map(|element| ObservedJob {
                    name: JobName(format!("e{launch}.{element}")),
                    launch,
                    shape: "cpu".into(),
                    engines: engines_per_job,
                    phase: JobPhase::Queued,
                    reason: "Priority".into(),
                    ..ObservedJob::default()
                }));
            }
        }
    }

    /// Submits until this number of engines is queued, then starts them all.
    fn with_running(min: u32, max: u32, engines: u64) -> Cluster {
        let mut cluster = Cluster::new(min, max);
        cluster.work = vec![units(engines, 3600.0)];
        let decisions = cluster.after(10.0);
        cluster.queue(&decisions);
        cluster.work.clear();
        cluster.run_all(Activity::Idle);
        cluster.after(10.0);
        cluster
    }

    fn run_all(&mut self, activity: Activity) {
        for job in &mut self.jobs {
            job.phase = JobPhase::Running;
            job.registered = (0..job.engines)
                .map(|_| {
                    self.next_engine += 1;
                    ObservedEngine {
                        id: EngineId(self.next_engine),
                        activity,
                        finished: 0,
                    }
                })
                .collect();
        }
    }

    fn set(&mut self, job: usize, activity: Activity) {
        self.jobs[job].registered.iter_mut().for_each(|engine| engine.activity = activity);
    }
}

fn submitted(decisions: &[Decision]) -> u32 {
    let engines = decisions.iter().map(|decision| match decision.action {
        Action::Submit { jobs, engines_per_job, .. } => jobs * engines_per_job,
        _ => 0,
    });
    engines.sum()
}

fn names(names: &[&str]) -> Vec<JobName> {
    names.iter().map(|name| JobName((*name).into())).collect()
}

#[test]
fn a_new_engine_has_at_least_ten_minutes_to_do() {
    let for_work = |work: ReadyWork| {
        let mut cluster = Cluster::new(0, 64);
        cluster.work = vec![work];
        submitted(&cluster.after(10.0))
    };
    assert_eq!(for_work(units(340, 60.0)), 34, "340 min of work");
    assert_eq!(for_work(units(10_000, 0.1)), 1, "17 min");
    assert_eq!(for_work(units(5, 60.0)), 1, "little work gets done, too");
    assert_eq!(for_work(units(0, 60.0)), 0);
}

#[test]
fn there_are_never_more_engines_than_units() {
    let mut cluster = Cluster::new(0, 64);
    cluster.work = vec![units(3, 3600.0)];
    let decisions = cluster.after(10.0);
    assert_eq!(submitted(&decisions), 3);
    cluster.queue(&decisions);
    assert_eq!(submitted(&cluster.after(10.0)), 0);
    assert!(matches!(cluster.why_not_more(), WhyNotMore::EnoughEngines { ready: 3, .. }));
}

#[test]
fn a_unit_is_assumed_to_take_a_minute_until_ten_have_ended() {
    let ended = |ended| ReadyWork { ended, ..units(100, 1.0) }.expected_s();
    assert_eq!((ended(0), ended(9), ended(10)), (60.0, 60.0, 1.0));
    let limited = ReadyWork {
        limit_s: Some(5.0),
        ..ReadyWork::default()
    };
    assert_eq!(limited.expected_s(), 5.0, "no more than its limit");
}

#[test]
fn the_maximum_and_the_length_of_the_queue_are_limits() {
    let mut cluster = Cluster::new(0, 6);
    cluster.shape().max_queued = 4;
    cluster.work = vec![units(1000, 600.0)];
    let decisions = cluster.after(10.0);
    assert_eq!(submitted(&decisions), 4);
    cluster.queue(&decisions);
    assert_eq!(submitted(&cluster.after(10.0)), 0);
    assert_eq!(
        cluster.why_not_more().to_string(),
        "4 jobs wait in the queue (Priority), and at most 4 may"
    );
    cluster.run_all(Activity::Busy);
    let decisions = cluster.after(10.0);
    assert_eq!(submitted(&decisions), 2);
    cluster.queue(&decisions);
    cluster.run_all(Activity::Busy);
    assert_eq!(submitted(&cluster.after(10.0)), 0);
    assert_eq!(cluster.why_not_more(), WhyNotMore::Max(6));
}

#[test]
fn a_job_counts_with_its_walltime_until_it_ends() {
    let mut cluster = Cluster::new(0, 64);
    cluster.settings.budget_core_h = Some(10.0);
    cluster.work = vec![units(1000, 600.0)];
    let decisions = cluster.after(10.0);
    assert_eq!(submitted(&decisions), 5, "of 2 h each");
    cluster.queue(&decisions);
    cluster.run_all(Activity::Busy);
    cluster.after(10.0);
    assert_eq!(
        cluster.why_not_more().to_string(),
        "0.0 core-hours of the budget are neither used nor reserved, a job may use 2.0"
    );
    // Two jobs end after an hour: another one of 2 h is affordable.
    for job in &mut cluster.jobs[..2] {
        job.phase = JobPhase::Ended(Some(JobOutcome::NodeFailed));
        job.ran_s = Some(3600.0);
        job.registered[0].finished = 1;
    }
    cluster.after(10.0);
    cluster.jobs[..2].iter_mut().for_each(|job| job.registered.clear());
    let decisions = cluster.after(60.0);
    assert_eq!((submitted(&decisions), cluster.state.used_core_s), (1, 7200.0));
}

#[test]
fn a_job_that_ran_while_no_process_decided_is_charged_its_walltime() {
    let end = |elapsed_s| {
        let mut cluster = Cluster::with_running(0, 4, 1);
        cluster.jobs[0].registered.clear();
        cluster.jobs[0].phase = JobPhase::Running;
        let mut seen = cluster.seen(100.0);
        seen.elapsed_s = elapsed_s;
        cluster.decide(&seen);
        cluster.jobs[0].phase = JobPhase::Ended(Some(JobOutcome::Cancelled));
        cluster.after(10.0);
        cluster.state.used_core_s
    };
    // It was seen in the queue for the last time, or submitted, 120 s before.
    assert_eq!((end(Some(100.0)), end(None)), (120.0, 7200.0));
}

#[test]
fn an_old_answer_does_not_prove_that_a_job_has_not_started() {
    let mut cluster = Cluster::new(0, 1);
    cluster.work = vec![units(1, 60.0)];
    let decisions = cluster.after(10.0);
    cluster.queue(&decisions);
    cluster.after(100.0);
    let mut seen = cluster.seen(50.0);
    seen.answer_age_s = 45.0;
    cluster.decide(&seen);
    cluster.jobs[0].phase = JobPhase::Ended(Some(JobOutcome::Cancelled));
    cluster.after(10.0);
    assert_eq!(cluster.state.used_core_s, 55.0);
}

#[test]
fn queued_jobs_leave_first_then_idle_ones_then_busy_ones_when_they_are_done() {
    let mut cluster = Cluster::with_running(0, 64, 3);
    cluster.set(0, Activity::Busy);
    cluster.set(1, Activity::Busy);
    cluster.work = vec![units(10, 3600.0)];
    let decisions = cluster.after(10.0);
    cluster.queue(&decisions[..1]);
    cluster.jobs.truncate(4);
    cluster.after(200.0);
    let removed = |cluster: &Cluster, max| {
        let mut settings = cluster.settings.clone();
        settings.shapes[0].max = max;
        let mut state = cluster.state.clone();
        state.launches.clear();
        let seen = Observation {
            elapsed_s: Some(10.0),
            work: Some(Vec::new()),
            jobs: cluster.jobs.clone(),
            ..Observation::default()
        };
        let decisions = decide(&settings, &mut state, &seen).decisions;
        decisions.into_iter().map(|decision| decision.action).collect::<Vec<_>>()
    };
    let queued = Action::CancelQueued { jobs: names(&["e1.0"]) };
    let idle = Action::Retire { jobs: names(&["e0.2"]) };
    assert_eq!(removed(&cluster, 3), std::slice::from_ref(&queued));
    assert_eq!(removed(&cluster, 2), [queued.clone(), idle.clone()]);
    let busy = Action::Drain { jobs: names(&["e0.0"]) };
    assert_eq!(removed(&cluster, 1), [queued, idle, busy]);
}

#[test]
fn jobs_that_would_find_nothing_to_do_are_cancelled_after_half_a_minute() {
    let mut cluster = Cluster::new(0, 64);
    cluster.work = vec![units(10, 3600.0)];
    let decisions = cluster.after(10.0);
    cluster.queue(&decisions);
    cluster.after(10.0);
    cluster.work = vec![units(8, 3600.0)];
    assert_eq!(cluster.after(10.0), []);
    assert_eq!(cluster.after(20.0), [], "work may come in bursts");
    let decisions = cluster.after(10.0);
    assert!(matches!(&decisions[0].action, Action::CancelQueued { jobs } if jobs.len() == 2));
    assert_eq!(decisions[0].reason, "8 ready and 0 busy do not need 10 engines");
    assert_eq!(cluster.after(10.0), [], "it is asked once");
    assert_eq!(cluster.after(60.0).len(), 0, "a surplus must last again");
    assert_eq!(cluster.after(30.0).len(), 1, "it was not carried out");
}

#[test]
fn idle_engines_are_retired_after_five_minutes_down_to_the_minimum() {
    let mut cluster = Cluster::with_running(1, 64, 4);
    cluster.set(0, Activity::Busy);
    cluster.after(10.0);
    assert_eq!(cluster.after(280.0), []);
    // One has done something in between two decisions.
    cluster.jobs[1].registered[0].finished = 1;
    let decisions = cluster.after(10.0);
    assert_eq!(
        decisions[0].action,
        Action::Retire {
            jobs: names(&["e0.2", "e0.3"])
        }
    );
    assert_eq!(decisions[0].reason, "idle for 5 min, the limit is 5 min");
    cluster.jobs.truncate(2);
    cluster.set(0, Activity::Idle);
    cluster.after(10.0);
    assert_eq!(cluster.after(290.0)[0].action, Action::Retire { jobs: names(&["e0.1"]) });
    cluster.jobs.truncate(1);
    assert_eq!(cluster.after(1000.0), []);
    let seen = cluster.seen(10.0);
    assert_eq!(cluster.decide(&seen).summary.shapes[0].why_not_fewer, WhyNotFewer::Min(1));
}

#[test]
fn a_busy_or_silent_engine_is_not_retired() {
    for activity in [Activity::Busy, Activity::Silent] {
        let mut cluster = Cluster::with_running(0, 64, 1);
        cluster.set(0, activity);
        assert_eq!((cluster.after(10.0), cluster.after(4000.0)), (vec![], vec![]), "{activity:?}");
    }
    let mut cluster = Cluster::with_running(0, 64, 1);
    cluster.set(0, Activity::Unusable);
    assert_eq!(cluster.after(400.0).len(), 1);
}

#[test]
fn engines_of_one_job_are_retired_together() {
    let mut cluster = Cluster::new(0, 8);
    cluster.shape().engines_per_job = 4;
    cluster.work = vec![units(8, 3600.0)];
    let decisions = cluster.after(10.0);
    assert!(matches!(
        decisions[0].action,
        Action::Submit {
            jobs: 2,
            engines_per_job: 4,
            ..
        }
    ));
    cluster.queue(&decisions);
    cluster.work.clear();
    cluster.run_all(Activity::Idle);
    cluster.jobs[0].registered[3].activity = Activity::Busy;
    cluster.after(10.0);
    assert_eq!(cluster.after(300.0)[0].action, Action::Retire { jobs: names(&["e0.1"]) });
    cluster.jobs.truncate(1);
    assert_eq!(cluster.after(300.0), []);
    let seen = cluster.seen(10.0);
    let why = cluster.decide(&seen).summary.shapes[0].why_not_fewer.to_string();
    assert_eq!(why, "idle engines share their jobs with 1 busy ones, and whole jobs are retired");
    // A second job that is partly idle: one of them is enough.
    let mut other = cluster.jobs[0].clone();
    other.name = JobName("e9.0".into());
    other.registered.iter_mut().for_each(|engine| engine.id.0 += 100);
    other.registered[2].activity = Activity::Busy;
    cluster.jobs.push(other);
    cluster.after(10.0);
    assert_eq!(cluster.after(300.0)[0].action, Action::Drain { jobs: names(&["e0.0"]) });
}

#[test]
fn the_minimum_is_kept_without_work_and_replaced() {
    let mut cluster = Cluster::new(2, 8);
    let decisions = cluster.after(10.0);
    assert_eq!(decisions[0].reason, "the minimum is 2, and 0 are present");
    assert_eq!(submitted(&decisions), 2);
    cluster.queue(&decisions);
    cluster.run_all(Activity::Idle);
    cluster.after(10.0);
    cluster.jobs[1].phase = JobPhase::Ended(Some(JobOutcome::TimedOut));
    cluster.jobs[1].registered.clear();
    let mut again = cluster.after(1000.0);
    again.extend(cluster.after(40.0));
    assert_eq!(submitted(&again), 1);
}

#[test]
fn what_cannot_be_asked_counts_as_present_and_what_is_missing_does_for_two_minutes() {
    let mut cluster = Cluster::new(0, 2);
    cluster.work = vec![units(100, 3600.0)];
    let decisions = cluster.after(10.0);
    cluster.queue(&decisions);
    cluster.after(10.0);
    cluster.jobs.iter_mut().for_each(|job| job.phase = JobPhase::Unknown);
    for _ in 0..100 {
        assert_eq!(cluster.after(60.0), []);
    }
    assert_eq!(cluster.state.jobs.len(), 2);
    // The same if they are not even listed.
    cluster.jobs.clear();
    cluster.is_answered = false;
    for _ in 0..100 {
        assert_eq!(cluster.after(60.0), []);
    }
    cluster.is_answered = true;
    assert_eq!((cluster.after(60.0), cluster.after(60.0)), (vec![], vec![]));
    assert_eq!(submitted(&cluster.after(60.0)), 2);
}

#[test]
fn engines_prove_that_a_job_exists_which_its_system_does_not_list() {
    let mut cluster = Cluster::with_running(0, 1, 1);
    cluster.set(0, Activity::Busy);
    cluster.work = vec![units(100, 3600.0)];
    cluster.jobs[0].phase = JobPhase::Missing;
    for _ in 0..20 {
        assert_eq!(cluster.after(30.0), []);
    }
    assert_eq!(cluster.why_not_more(), WhyNotMore::Max(1));
}

/// Rejects each submission; returns the time from each rejection to the next submission.
fn rejections(cluster: &mut Cluster) -> (Vec<f64>, Vec<Decision>) {
    let (mut waits, mut waited) = (Vec::new(), 0.0);
    let mut decisions = cluster.after(10.0);
    for _ in 0..200 {
        let mut seen = cluster.seen(10.0);
        if let Some(Action::Submit { launch, .. }) = decisions.first().map(|decision| &decision.action) {
            waits.push(waited);
            waited = 0.0;
            seen.rejected = vec![Rejection {
                launch: *launch,
                text: "sbatch: error: invalid\npartition".into(),
            }];
        } else {
            waited += 10.0;
        }
        decisions = cluster.decide(&seen).decisions;
        if decisions.iter().any(|decision| decision.action == Action::Pause) {
            break;
        }
    }
    (waits, decisions)
}

#[test]
fn failed_submissions_back_off_from_30_s_and_five_pause_until_resume() {
    let mut cluster = Cluster::new(0, 1);
    cluster.work = vec![units(100, 60.0)];
    let (waits, decisions) = rejections(&mut cluster);
    assert_eq!(waits, [0.0, 30.0, 60.0, 120.0, 240.0]);
    assert_eq!(
        decisions[0].reason,
        "5 times in a row, submission failed: sbatch: error: invalid partition"
    );
    assert_eq!(cluster.after(100_000.0), []);
    assert!(matches!(cluster.why_not_more(), WhyNotMore::Paused(why) if why.ends_with("invalid partition")));
    // As if nothing had happened.
    let mut seen = cluster.seen(10.0);
    seen.controls = vec![Control::Resume(None)];
    let decisions = cluster.decide(&seen).decisions;
    assert_eq!((&decisions[0].action, submitted(&decisions)), (&Action::Resume, 1));
    let rejected = Rejection {
        launch: 5,
        text: String::new(),
    };
    let mut seen = cluster.seen(10.0);
    seen.rejected = vec![rejected];
    cluster.decide(&seen);
    assert!(
        matches!(cluster.why_not_more(), WhyNotMore::Backoff { wait_s: 20.0, .. }),
        "the first again"
    );
}

#[test]
fn backoff_ends_at_ten_minutes() {
    let mut cluster = Cluster::new(0, 1);
    cluster.work = vec![units(100, 60.0)];
    cluster.state.shapes.entry("cpu".into()).or_default().rejections = 100;
    let decisions = cluster.after(10.0);
    let mut seen = cluster.seen(10.0);
    assert_eq!(submitted(&decisions), 1);
    seen.rejected = vec![Rejection {
        launch: 0,
        text: "no".into(),
    }];
    cluster.decide(&seen);
    let backoff = cluster.state.shapes["cpu"].backoff.clone().unwrap();
    assert_eq!(backoff.until_s - cluster.state.clock_s, 600.0);
}

/// One job after the other ends in this way; the decisions after the last one.
fn ends(count: u32, outcome: Option<JobOutcome>, ran_s: f64) -> (Cluster, Vec<Decision>) {
    let mut cluster = Cluster::new(0, 1);
    cluster.work = vec![units(1, 60.0)];
    let mut decisions = Vec::new();
    for _ in 0..count {
        decisions = cluster.after(700.0);
        cluster.queue(&decisions);
        cluster.after(10.0);
        cluster.jobs[0].phase = JobPhase::Ended(outcome);
        cluster.jobs[0].reason = "exit code 127: pcluster: not found".into();
        cluster.jobs[0].ran_s = Some(ran_s);
        decisions = cluster.after(10.0);
        cluster.jobs.clear();
    }
    (cluster, decisions)
}

#[test]
fn three_jobs_in_a_row_that_end_within_a_minute_pause() {
    let (_, decisions) = ends(2, Some(JobOutcome::Itself), 5.0);
    assert_eq!(decisions, []);
    let (_, decisions) = ends(3, Some(JobOutcome::Itself), 60.0);
    assert_eq!(
        decisions[0].reason,
        "3 jobs in a row ended within 60 s, before an engine registered: exit code 127: pcluster: not found"
    );
    assert_eq!(ends(3, Some(JobOutcome::Itself), 61.0).1, []);
    for outcome in [JobOutcome::Cancelled, JobOutcome::NodeFailed, JobOutcome::Preempted] {
        assert_eq!(ends(4, Some(outcome), 5.0).1, [], "{outcome:?}");
    }
    let (mut cluster, _) = ends(2, Some(JobOutcome::Itself), 5.0);
    let decisions = cluster.after(700.0);
    cluster.queue(&decisions);
    cluster.run_all(Activity::Busy);
    cluster.after(10.0);
    assert_eq!(cluster.state.shapes["cpu"].early_failures, 0, "an engine registered");
}

#[test]
fn a_job_without_engines_for_an_hour_is_cancelled() {
    let mut cluster = Cluster::new(0, 1);
    cluster.work = vec![units(1, 60.0)];
    let decisions = cluster.after(10.0);
    cluster.queue(&decisions);
    cluster.jobs[0].phase = JobPhase::Running;
    cluster.after(10.0);
    assert_eq!(cluster.after(3590.0), []);
    assert_eq!(cluster.after(10.0)[0].action, Action::CancelUnregistered { jobs: names(&["e0.0"]) });
}

#[test]
fn engines_that_get_none_of_the_ready_work_pause_the_shape() {
    let mut cluster = Cluster::new(0, 1);
    cluster.work = vec![units(1, 60.0)];
    let (mut decisions, mut retired) = (cluster.after(10.0), Vec::new());
    for _ in 0..3 {
        cluster.jobs.clear();
        cluster.queue(&decisions);
        cluster.run_all(Activity::Idle);
        cluster.after(10.0);
        retired = cluster.after(400.0);
        cluster.jobs[0].registered.clear();
        cluster.jobs[0].phase = JobPhase::Ended(None);
        decisions = cluster.after(10.0);
    }
    assert!(retired[1].reason.starts_with("3 jobs in a row got none of the work"), "{retired:?}");
}

#[test]
fn after_a_restart_a_submission_is_expected_and_not_repeated() {
    let mut cluster = Cluster::new(0, 4);
    cluster.work = vec![units(100, 3600.0)];
    let decisions = cluster.after(10.0);
    let stored = serde_json::to_string(&cluster.state).unwrap();
    cluster.state = serde_json::from_str(&stored).unwrap();
    let mut seen = cluster.seen(3600.0);
    seen.elapsed_s = None;
    assert_eq!(cluster.decide(&seen).decisions, []);
    // Its jobs are found by name.
    cluster.queue(&decisions);
    assert_eq!(cluster.after(10.0), []);
    assert_eq!((cluster.state.jobs.len(), cluster.state.launches.len()), (4, 0));
    // Of another one nothing is ever seen.
    cluster.shape().max = 8;
    assert_eq!(submitted(&cluster.after(10.0)), 4);
    for _ in 0..12 {
        assert_eq!(cluster.after(50.0), []);
    }
    let decisions = cluster.after(50.0);
    assert_eq!(decisions[0].action, Action::GiveUp { launch: 1 });
    assert_eq!(decisions[0].reason, "4 of 4 jobs of submission 1 did not appear within 10 min");
}

#[test]
fn without_the_controller_nothing_is_decided() {
    let mut cluster = Cluster::with_running(0, 64, 2);
    let mut seen = cluster.seen(4000.0);
    seen.work = None;
    let outcome = cluster.decide(&seen);
    assert_eq!(outcome.decisions, []);
    assert_eq!(outcome.summary.shapes[0].why_not_more, WhyNotMore::NoController);
}

#[test]
fn nothing_is_stored_when_nothing_happens() {
    let mut cluster = Cluster::with_running(2, 64, 2);
    let seen = cluster.seen(10.0);
    assert!(!cluster.decide(&seen).must_store);
    cluster.set(0, Activity::Busy);
    let seen = cluster.seen(10.0);
    assert!(cluster.decide(&seen).must_store);
}

fn gpu_request(gpus: &str, cpus: u32) -> Request {
    let mut request = Request::default();
    request.resources.gpus = gpus.parse().unwrap();
    request.resources.cpus = cpus;
    request
}

#[test]
fn work_counts_for_the_cheapest_shape_that_can_run_it() {
    let mut cpu = EngineShape::new("cpu", 0, 64);
    (cpu.engines_per_job, cpu.walltime_s) = (4, Some(3600.0));
    let mut gpu = EngineShape::new("gpu", 0, 8);
    (gpu.engines_per_job, gpu.cost) = (4, 10.0);
    let card = |name: &str| Gpu {
        vendor: GpuVendor::Nvidia,
        name: name.into(),
        model: String::new(),
        numa: None,
    };
    gpu.node.gpus = vec![card("0"), card("1")];
    let settings = ElasticSettings {
        shapes: vec![gpu, cpu],
        ..ElasticSettings::default()
    };
    let work = |request: Request, limit_s| ReadyWork {
        request,
        limit_s,
        ..units(10, 60.0)
    };
    let (counted, unfit) = group(
        &settings,
        &BTreeMap::new(),
        &[
            work(gpu_request("0", 1), None),
            work(gpu_request("0", 2), None),
            work(gpu_request("1", 1), None),
            work(gpu_request("0.25", 1), None),
            // Longer than a job of the cheap shape.
            work(gpu_request("0", 1), Some(3600.0)),
            work(gpu_request("3", 1), None),
            work(gpu_request("0", 8), None),
        ],
    );
    // A unit with 2 of 4 cpus takes the share of 2 engines; so does one with 1 of 2 GPUs.
    assert_eq!((counted[1].units, counted[1].engines, counted[1].widest), (20, 30, 2));
    assert_eq!(counted[1].engine_s, 1800.0);
    assert_eq!((counted[0].units, counted[0].engines, counted[0].widest), (30, 40, 2));
    let why: Vec<&str> = unfit.iter().map(|unfit| &*unfit.why).collect();
    assert_eq!(
        why,
        [
            "cpu: a job has 4 cpus, a unit needs 1 cpu, 3 gpus; gpu: a job has 4 cpus, 2 gpus, a unit needs 1 cpu, 3 gpus",
            "cpu: a job has 4 cpus, a unit needs 8 cpus; gpu: a job has 4 cpus, 2 gpus, a unit needs 8 cpus"
        ]
    );
}

#[test]
fn a_unit_that_needs_a_whole_job_gets_one() {
    let mut cluster = Cluster::new(0, 5);
    cluster.shape().engines_per_job = 4;
    cluster.work = vec![units(1, 60.0)];
    let decisions = cluster.after(10.0);
    assert_eq!(submitted(&decisions), 1, "not more than units");
    cluster.queue(&decisions);
    cluster.run_all(Activity::Busy);
    cluster.work[0].request.resources.cpus = 4;
    let decisions = cluster.after(10.0);
    assert!(matches!(
        decisions[0].action,
        Action::Submit {
            jobs: 1,
            engines_per_job: 4,
            ..
        }
    ));
    // The small one has to leave if there is no room.
    cluster.state.launches.clear();
    cluster.shape().max = 4;
    let decisions = cluster.after(10.0);
    assert_eq!(decisions[0].action, Action::Drain { jobs: names(&["e0.0"]) });
}

#[test]
fn engines_of_several_small_jobs_are_no_help_for_a_wide_unit() {
    let mut cluster = Cluster::new(0, 6);
    cluster.shape().engines_per_job = 4;
    for count in 1..3 {
        cluster.work = vec![units(count, 3600.0)];
        let decisions = cluster.after(10.0);
        cluster.queue(&decisions);
        cluster.run_all(Activity::Busy);
    }
    assert_eq!(cluster.jobs.len(), 2);
    cluster.run_all(Activity::Idle);
    cluster.work = vec![units(1, 60.0)];
    cluster.work[0].request.resources.cpus = 2;
    assert_eq!(submitted(&cluster.after(10.0)), 4);
}

#[test]
fn the_status_line_says_what_there_is_and_what_is_wanted() {
    let mut summary = Summary {
        decided: UnixTime(100.0),
        next_s: 10.0,
        used_core_h: 31.46,
        reserved_core_h: 24.0,
        budget_core_h: Some(500.0),
        shapes: vec![ShapeSummary {
            name: "cpu".into(),
            min: 0,
            max: 64,
            engines: 12,
            busy: 12,
            starting: 0,
            unknown: 0,
            leaving: 0,
            wants: 24,
            ready: 340,
            ready_s: 2460.0,
            queued_jobs: 4,
            queue_reason: "Priority".into(),
            expected_start: Some(UnixTime(1000.0)),
            why_not_more: WhyNotMore::Max(64),
            why_not_fewer: WhyNotFewer::Min(0),
        }],
        unfit: Vec::new(),
    };
    let line = |summary: &Summary| summary.lines(UnixTime(102.0), |_| "14:20".into()).remove(0);
    assert_eq!(
        line(&summary),
        "12 of 0–64 · 340 ready ≈ 41 min · wants 24 · 4 queued (Priority, expected 14:20) · next decision in 8 s · 31.5 of 500 core-h"
    );
    let shape = &mut summary.shapes[0];
    (shape.ready, shape.queued_jobs, shape.starting, shape.unknown) = (0, 0, 3, 2);
    shape.why_not_more = WhyNotMore::Paused("by `pcluster elastic pause`".into());
    summary.budget_core_h = None;
    assert_eq!(
        line(&summary),
        "12 of 0–64 · wants 24 · 3 starting · 2 unknown · paused: by `pcluster elastic pause` · next decision in 8 s · 31.5 core-h"
    );
}

#[test]
fn the_end_of_a_batch_job_is_certain_only_if_its_system_tells_how() {
    let gone = MemberState::ended("gone from the queue");
    assert_eq!(JobPhase::of(&gone, true), JobPhase::Missing);
    assert_eq!(JobPhase::of(&gone, false), JobPhase::Ended(None));
    let failed = MemberState {
        outcome: Some(JobOutcome::Itself),
        ..gone
    };
    assert_eq!(JobPhase::of(&failed, true), JobPhase::Ended(Some(JobOutcome::Itself)));
    assert_eq!(JobPhase::of(&MemberState::submitted(), true), JobPhase::Submitted);
    assert_eq!(JobPhase::of(&MemberState::unknown("?"), true), JobPhase::Unknown);
}

#[test]
fn settings_that_cannot_work_are_rejected() {
    let check = |change: fn(&mut ElasticSettings)| {
        let mut settings = Cluster::new(0, 4).settings;
        change(&mut settings);
        settings.check()
    };
    assert_eq!(check(|_| {}), Ok(()));
    assert_eq!(check(|s| s.shapes[0].max = 0), Err(InvalidSettings::NoMax("cpu".into())));
    assert_eq!(
        check(|s| s.shapes[0].min = 5),
        Err(InvalidSettings::MinAboveMax("cpu".into(), 5, 4))
    );
    assert_eq!(
        check(|s| s.shapes.push(s.shapes[0].clone())),
        Err(InvalidSettings::SameName("cpu".into()))
    );
    assert!(check(|s| s.work_per_engine_s = 0.0).is_err());
    let unlimited = |s: &mut ElasticSettings| (s.budget_core_h, s.shapes[0].walltime_s) = (Some(1.0), None);
    assert_eq!(check(unlimited), Err(InvalidSettings::BudgetWithoutWalltime("cpu".into())));
}
