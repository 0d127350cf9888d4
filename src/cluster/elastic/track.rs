//! Follows jobs and engines from one observation to the next.
//!
//! A job counts as present until its end is proven, or its system has failed to list it for some time while none of its engines
//! was registered. How long it ran is rounded up, so that a budget is never exceeded.
use super::decision::{Action, Decision};
use super::failures;
use super::observation::{Activity, JobName, JobPhase, Observation, ObservedJob};
use super::settings::ElasticSettings;
use super::state::{Absence, ElasticState, EngineRecord, JobRecord, LaunchRecord};
use crate::launchers::JobOutcome;
use std::collections::BTreeMap;

/// What was missing in all answers for this long is gone.
const MISSING_S: f64 = 120.0;
/// Jobs are listed within this time after their submission.
const LISTED_S: f64 = 480.0;
/// A decision that was not carried out by then is made again.
const ASK_AGAIN_S: f64 = 60.0;

/// The end of a job that was not asked to end.
pub(super) struct End {
    pub shape: String,
    /// Upper limit of how long it held its allocation.
    pub ran_s: f64,
    pub has_registered: bool,
    pub has_finished: bool,
    /// It ended by itself, as far as is known.
    pub by_itself: bool,
    pub reason: String,
}

/// Updates the state; returns what was decided on the way.
pub(super) fn track(settings: &ElasticSettings, state: &mut ElasticState, seen: &Observation) -> Vec<Decision> {
    state.clock_s += seen.elapsed_s.unwrap_or(0.0).max(0.0);
    let mut decisions = failures::control(settings, state, seen);
    let mut ends = Vec::new();
    for job in &seen.jobs {
        ends.extend(observe(settings, state, seen, job));
    }
    let listed: std::collections::BTreeSet<&JobName> = seen.jobs.iter().map(|job| &job.name).collect();
    state.jobs.retain(|name, record| listed.contains(name) || !record.has_ended);
    let missing: Vec<ObservedJob> = state
        .jobs
        .iter()
        .filter(|(name, _)| !listed.contains(name))
        .map(|(name, record)| absent(name, record, seen.is_answered))
        .collect();
    for job in &missing {
        ends.extend(observe(settings, state, seen, job));
    }
    // While the controller is away, engines cannot register.
    if seen.work.is_some() {
        decisions.extend(failures::ended(state, seen.now, ends));
    }
    decisions.extend(failures::rejected(state, seen));
    decisions.extend(give_up(state, seen));
    decisions
}

fn absent(name: &JobName, record: &JobRecord, is_answered: bool) -> ObservedJob {
    ObservedJob {
        name: name.clone(),
        launch: record.launch,
        shape: record.shape.clone(),
        engines: record.engines,
        phase: if is_answered { JobPhase::Missing } else { JobPhase::Unknown },
        ..ObservedJob::default()
    }
}

fn observe(settings: &ElasticSettings, state: &mut ElasticState, seen: &Observation, job: &ObservedJob) -> Option<End> {
    let clock = state.clock_s;
    if !state.jobs.contains_key(&job.name) {
        let record = appear(settings, state, job)?;
        state.jobs.insert(job.name.clone(), record);
    }
    let record = state.jobs.get_mut(&job.name).filter(|record| !record.has_ended)?;
    let shape = state.shapes.entry(record.shape.clone()).or_default();
    let before = record.finished;
    // Without the controller, nothing is known of engines.
    let is_followed = seen.work.is_some();
    if is_followed {
        follow_engines(record, job, clock);
    }
    let is_connected = !record.registered.is_empty();
    if record.finished > before {
        (shape.fruitless, shape.unused) = (0, 0);
    }
    if !record.has_registered && (job.has_registered || is_connected) {
        record.has_registered = true;
        shape.early_failures = 0;
    }
    if let Some(node) = job.node.as_ref().filter(|_| is_connected && shape.node.is_none()) {
        shape.node = Some((record.engines, node.clone()));
    }
    record.is_leaving = job.is_leaving;
    if !job.is_leaving && record.asked_s.is_some_and(|asked| clock - asked >= ASK_AGAIN_S) {
        record.asked_s = None;
    }
    let phase = match job.phase {
        // Engines that are registered prove that it runs.
        JobPhase::Submitted | JobPhase::Queued | JobPhase::Missing | JobPhase::Unknown if is_connected => JobPhase::Running,
        phase => phase,
    };
    record.phase = match phase {
        JobPhase::Ended(_) => JobPhase::Ended(None),
        phase => phase,
    };
    if seen.elapsed_s.is_none() && !matches!(phase, JobPhase::Queued) {
        record.is_charged_fully = true;
    }
    match phase {
        JobPhase::Queued => {
            if record.is_running {
                record.earlier_s += record.run_s(clock);
                (record.is_running, record.is_charged_fully, record.has_registered) = (false, false, false);
            }
            record.not_running_s = record.not_running_s.max(clock - seen.answer_age_s.max(0.0));
            record.missing = None;
        }
        JobPhase::Running | JobPhase::Suspended => {
            if !record.is_running {
                (record.is_running, record.incomplete_s) = (true, clock);
            }
            record.missing = None;
        }
        JobPhase::Submitted | JobPhase::Unknown => {}
        JobPhase::Missing => {
            // While the controller is away, engines could not prove that it runs.
            if seen.is_answered && is_followed {
                let missing = Absence::note(&mut record.missing, clock);
                if missing.total_s >= MISSING_S {
                    return end(&mut state.used_core_s, record, job, clock, missing.since_s, None);
                }
            }
        }
        // Until its engines are no longer registered, it is not gone for the controller.
        JobPhase::Ended(_) if is_connected => {}
        JobPhase::Ended(outcome) => return end(&mut state.used_core_s, record, job, clock, clock, outcome),
    }
    None
}

/// The record of a job that is seen for the first time. None for one that is over, unless it was expected.
fn appear(settings: &ElasticSettings, state: &mut ElasticState, job: &ObservedJob) -> Option<JobRecord> {
    let clock = state.clock_s;
    let launch = state.launches.get_mut(&job.launch);
    if launch.is_none() && matches!(job.phase, JobPhase::Ended(_) | JobPhase::Missing) {
        return None;
    }
    state.shapes.entry(job.shape.clone()).or_default().rejections = 0;
    let mut record = JobRecord {
        launch: job.launch,
        shape: job.shape.clone(),
        engines: job.engines,
        not_running_s: clock,
        incomplete_s: clock,
        is_charged_fully: false,
        ..JobRecord::default()
    };
    match launch {
        Some(launch) => {
            (record.cores, record.walltime_s) = (launch.cores_per_job, launch.walltime_s);
            record.not_running_s = launch.submitted_s;
            launch.seen += 1;
            if launch.unseen() == 0 {
                state.launches.remove(&job.launch);
            }
        }
        None => {
            let shape = settings.shape(&job.shape);
            record.cores = shape.map_or(job.engines, |shape| shape.cores(job.engines));
            record.walltime_s = shape.and_then(|shape| shape.walltime_s);
            record.is_charged_fully = job.phase != JobPhase::Queued;
        }
    }
    Some(record)
}

fn follow_engines(record: &mut JobRecord, job: &ObservedJob, clock: f64) {
    let mut registered = BTreeMap::new();
    for engine in &job.registered {
        let old = record.registered.get(&engine.id);
        let is_idle = matches!(engine.activity, Activity::Idle | Activity::Unusable);
        let has_changed = old.is_none_or(|old| old.finished != engine.finished || old.idle_since_s.is_some() != is_idle);
        let since = old.filter(|_| !has_changed);
        record.finished += engine.finished.saturating_sub(old.map_or(0, |old| old.finished));
        let new = EngineRecord {
            finished: engine.finished,
            changed_s: since.map_or(clock, |old| old.changed_s),
            idle_since_s: is_idle.then(|| since.and_then(|old| old.idle_since_s).unwrap_or(clock)),
            is_unusable: matches!(engine.activity, Activity::Silent | Activity::Unusable),
        };
        registered.insert(engine.id, new);
    }
    if registered.len() < record.registered.len() {
        record.incomplete_s = clock;
    }
    record.registered = registered;
}

/// `ended`: when it was first seen to have ended.
fn end(used: &mut f64, record: &mut JobRecord, job: &ObservedJob, clock: f64, ended: f64, outcome: Option<JobOutcome>) -> Option<End> {
    *used += record.used_core_s(clock, job.ran_s);
    record.has_ended = true;
    record.registered.clear();
    let by_itself = matches!(outcome, None | Some(JobOutcome::Itself | JobOutcome::OutOfMemory));
    (!record.was_asked && !job.is_leaving).then(|| End {
        shape: record.shape.clone(),
        ran_s: job.ran_s.unwrap_or(ended - record.not_running_s),
        has_registered: record.has_registered,
        has_finished: record.finished > 0,
        by_itself,
        reason: job.reason.clone(),
    })
}

/// Gives up submissions of which jobs have not appeared.
fn give_up(state: &mut ElasticState, seen: &Observation) -> Vec<Decision> {
    let clock = state.clock_s;
    let mut lost: Vec<(u64, LaunchRecord)> = Vec::new();
    for (number, launch) in &mut state.launches {
        let answered = clock - seen.answer_age_s;
        if seen.is_answered
            && answered >= launch.submitted_s + LISTED_S
            && Absence::note(&mut launch.missing, answered).total_s >= MISSING_S
        {
            lost.push((*number, launch.clone()));
        }
    }
    let mut decisions = Vec::new();
    for (number, launch) in lost {
        state.launches.remove(&number);
        let unseen = launch.unseen();
        let reason = format!(
            "{unseen} of {} jobs of submission {number} did not appear within 10 min",
            launch.jobs
        );
        decisions.push(Decision {
            shape: launch.shape.clone(),
            action: Action::GiveUp { launch: number },
            reason: reason.clone(),
        });
        if launch.seen == 0 {
            decisions.extend(failures::count_rejection(state, &launch.shape, seen.now, &reason));
        }
    }
    decisions
}
