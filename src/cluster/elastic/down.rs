//! Which engines to remove: jobs that are queued first, then idle engines, then by draining. Never a busy one. Besides, jobs that
//! are stuck.
use super::decision::{Action, Decision};
use super::failures;
use super::observation::{JobName, JobPhase};
use super::settings::{ElasticSettings, EngineShape};
use super::state::{ElasticState, JobRecord};
use super::summary::span;
use super::tally::{START_S, Tally};
use super::work::ShapeWork;
use crate::model::UnixTime;

/// Work that comes in bursts must not cancel jobs that have waited: a surplus counts after this time.
const SETTLE_S: f64 = 30.0;
/// A job that holds an allocation without engines for this long is cancelled.
const STUCK_S: f64 = 3600.0;

/// Decides what leaves, and marks it.
pub(super) fn down(
    settings: &ElasticSettings,
    shape: &EngineShape,
    state: &mut ElasticState,
    tally: &Tally,
    work: &ShapeWork,
    now: UnixTime,
) -> Vec<Decision> {
    let mut decisions = stuck(shape, state, now);
    decisions.extend(over_limit(settings, shape, state, tally));
    if decisions.is_empty() {
        decisions.extend(make_room(shape, state, tally, work));
    }
    if decisions.is_empty() {
        decisions.extend(surplus(shape, state, tally, work));
        decisions.extend(idle(shape, state, tally, work, now));
    }
    if decisions.is_empty() {
        decisions.extend(consolidate(shape, state, tally, work));
    }
    decisions
}

/// The jobs of a shape that can be asked to leave.
fn candidates<'a>(state: &'a ElasticState, shape: &'a EngineShape) -> impl Iterator<Item = (&'a JobName, &'a JobRecord)> {
    let may = |job: &&JobRecord| match job.phase {
        JobPhase::Queued => job.is_staying(),
        // Engines that are out of sight may be busy.
        JobPhase::Running => job.is_staying() && job.has_registered != job.registered.is_empty(),
        _ => false,
    };
    state.jobs.iter().filter(move |(_, job)| job.shape == shape.name && may(job))
}

fn mark(state: &mut ElasticState, jobs: &[JobName]) {
    let clock = state.clock_s;
    for name in jobs {
        if let Some(job) = state.jobs.get_mut(name) {
            (job.asked_s, job.was_asked) = (Some(clock), true);
        }
    }
}

/// In which order jobs are removed: queued, starting, idle, busy.
fn rank(job: &JobRecord) -> u8 {
    match job.phase {
        JobPhase::Queued => 0,
        _ if !job.has_registered => 1,
        _ if job.busy() == 0 => 2,
        _ => 3,
    }
}

/// Jobs that have held an allocation for long, and whose engines have never registered.
fn stuck(shape: &EngineShape, state: &mut ElasticState, now: UnixTime) -> Vec<Decision> {
    let clock = state.clock_s;
    let is_stuck = |job: &JobRecord| job.phase == JobPhase::Running && !job.has_registered && clock - job.incomplete_s >= STUCK_S;
    let jobs: Vec<JobName> = candidates(state, shape)
        .filter(|(_, job)| is_stuck(job))
        .map(|(name, _)| name.clone())
        .collect();
    if jobs.is_empty() {
        return Vec::new();
    }
    mark(state, &jobs);
    let mut decisions = Vec::new();
    if let Some(record) = state.shapes.get_mut(&shape.name) {
        decisions.extend(jobs.iter().filter_map(|_| failures::count_stuck(record, &shape.name, now)));
    }
    decisions.push(Decision {
        shape: shape.name.clone(),
        reason: format!("{} jobs have held an allocation for 1 h, and no engine has registered", jobs.len()),
        action: Action::CancelUnregistered { jobs },
    });
    decisions
}

/// How jobs of this rank are removed.
fn remove(rank: u8, jobs: Vec<JobName>) -> Action {
    match rank {
        0 => Action::CancelQueued { jobs },
        1 => Action::CancelUnregistered { jobs },
        2 => Action::Retire { jobs },
        _ => Action::Drain { jobs },
    }
}

/// More engines than allowed, after a change of the settings or a requeued job.
fn over_limit(settings: &ElasticSettings, shape: &EngineShape, state: &mut ElasticState, tally: &Tally) -> Vec<Decision> {
    let mut staying = tally.staying;
    let going = state.jobs.values().filter(|job| job.is_going()).map(JobRecord::reserved_core_s);
    let mut reserved = state.used_core_s + state.reserved_core_s() - going.sum::<f64>();
    let budget = settings.budget_core_h.map_or(f64::INFINITY, |budget| budget * 3600.0 + 1.0);
    let mut jobs: Vec<(&JobName, &JobRecord)> = candidates(state, shape).collect();
    jobs.sort_by(|(_, a), (_, b)| {
        let newest = b.not_running_s.total_cmp(&a.not_running_s);
        rank(a).cmp(&rank(b)).then(a.busy().cmp(&b.busy())).then(newest)
    });
    let mut chosen: [Vec<JobName>; 4] = Default::default();
    let mut reason = "";
    let mut certain: u32 = jobs.iter().map(|(_, job)| job.engines).sum();
    for (name, job) in jobs {
        match (staying > shape.max, reserved > budget) {
            // Of the others, it is not known whether they exist.
            (true, _) if certain < staying && certain < shape.min + job.engines => continue,
            (true, _) => reason = "more than the maximum",
            (_, true) => reason = "more than the budget allows",
            _ => break,
        }
        certain -= job.engines;
        staying = staying.saturating_sub(job.engines);
        reserved -= job.reserved_core_s();
        chosen[usize::from(rank(job))].push(name.clone());
    }
    let mut decisions = Vec::new();
    for (rank, jobs) in (0..).zip(chosen).filter(|(_, jobs)| !jobs.is_empty()) {
        mark(state, &jobs);
        decisions.push(Decision {
            shape: shape.name.clone(),
            reason: format!("{reason}: {} of {} at most", tally.staying, shape.max),
            action: remove(rank, jobs),
        });
    }
    decisions
}

/// A job that is too small for the widest unit, if a full one is needed and the maximum leaves no room for it.
fn make_room(shape: &EngineShape, state: &mut ElasticState, tally: &Tally, work: &ShapeWork) -> Option<Decision> {
    let full = shape.full_job();
    let has_room = shape.max.saturating_sub(tally.present.saturating_sub(tally.leaving)) >= full;
    if work.widest <= tally.largest_available.max(1) || has_room {
        return None;
    }
    let smaller = candidates(state, shape).filter(|(_, job)| job.engines < work.widest);
    let (name, job) = smaller.min_by_key(|(name, job)| (rank(job), job.busy(), *name))?;
    let (jobs, rank) = (vec![name.clone()], rank(job));
    mark(state, &jobs);
    Some(Decision {
        shape: shape.name.clone(),
        reason: format!(
            "makes room for a job of {full} engines: a ready unit needs {} of one job",
            work.widest
        ),
        action: remove(rank, jobs),
    })
}

/// Queued jobs that would find nothing to do.
fn surplus(shape: &EngineShape, state: &mut ElasticState, tally: &Tally, work: &ShapeWork) -> Option<Decision> {
    let full = u64::from(shape.full_job());
    let for_work = if work.widest > 1 {
        work.engines.div_ceil(full) * full
    } else {
        work.engines
    };
    let needed = (u64::from(tally.busy) + for_work).max(shape.min.into());
    let clock = state.clock_s;
    let mut staying = u64::from(tally.staying);
    let mut queued: Vec<(&JobName, &JobRecord)> = candidates(state, shape).filter(|(_, job)| job.phase == JobPhase::Queued).collect();
    queued.sort_by_key(|(_, job)| std::cmp::Reverse(job.launch));
    // Others may not exist.
    let mut certain = u64::from(tally.registered_staying) + queued.iter().map(|(_, job)| u64::from(job.engines)).sum::<u64>();
    let mut jobs = Vec::new();
    for (name, job) in queued {
        let engines = u64::from(job.engines);
        if staying >= needed + engines && certain >= engines + u64::from(shape.min) {
            staying -= engines;
            certain -= engines;
            jobs.push(name.clone());
        }
    }
    let record = state.shapes.entry(shape.name.clone()).or_default();
    if jobs.is_empty() {
        record.surplus_since_s = None;
        return None;
    }
    if clock - *record.surplus_since_s.get_or_insert(clock) < SETTLE_S {
        return None;
    }
    mark(state, &jobs);
    Some(Decision {
        shape: shape.name.clone(),
        reason: format!("{} ready and {} busy do not need {} engines", work.units, tally.busy, tally.staying),
        action: Action::CancelQueued { jobs },
    })
}

/// Whole jobs whose engines have all been idle for long enough.
fn idle(shape: &EngineShape, state: &mut ElasticState, tally: &Tally, work: &ShapeWork, now: UnixTime) -> Vec<Decision> {
    let clock = state.clock_s;
    let is_complete = |job: &JobRecord| job.registered.len() as u32 >= job.engines || clock - job.incomplete_s > START_S;
    let mut jobs: Vec<(f64, &JobName, &JobRecord)> = candidates(state, shape)
        .filter(|(_, job)| job.phase == JobPhase::Running && is_complete(job))
        .filter_map(|(name, job)| Some((job.idle_s(clock)?, name, job)))
        .filter(|(idle, ..)| *idle >= shape.idle_s)
        .collect();
    jobs.sort_by(|(a, ..), (b, ..)| b.total_cmp(a));
    let (mut staying, mut unused) = (tally.registered_staying, 0);
    let mut chosen = Vec::new();
    let mut longest: f64 = 0.0;
    let since = state.shapes.get(&shape.name).and_then(|record| record.ready_since_s);
    let had_work = work.units > 0 && since.is_some_and(|since| clock - since >= shape.idle_s);
    for (idle, name, job) in jobs {
        let engines = job.registered.len() as u32;
        if staying < shape.min + engines {
            continue;
        }
        staying -= engines;
        longest = longest.max(idle);
        unused += u32::from(had_work && job.finished == 0);
        chosen.push(name.clone());
    }
    if chosen.is_empty() {
        return Vec::new();
    }
    mark(state, &chosen);
    let mut decisions = vec![Decision {
        shape: shape.name.clone(),
        reason: format!("idle for {}, the limit is {}", span(longest), span(shape.idle_s)),
        action: Action::Retire { jobs: chosen },
    }];
    if let Some(record) = state.shapes.get_mut(&shape.name) {
        decisions.extend((0..unused).filter_map(|_| failures::count_unused(record, &shape.name, work.units, now)));
    }
    decisions
}

/// Of jobs that are partly idle for long, the one with the fewest busy engines, if the others have room for its work.
fn consolidate(shape: &EngineShape, state: &mut ElasticState, tally: &Tally, work: &ShapeWork) -> Option<Decision> {
    let clock = state.clock_s;
    let idle = |job: &JobRecord| {
        let times = job.registered.values().filter_map(|engine| engine.idle_since_s);
        let idle = times.filter(|since| clock - since >= shape.idle_s).count() as u32;
        (idle > 0 && idle + job.busy() == job.registered.len() as u32).then_some(idle)
    };
    let partly: Vec<(&JobName, &JobRecord, u32)> = candidates(state, shape)
        .filter(|(_, job)| job.phase == JobPhase::Running && job.busy() > 0)
        .filter_map(|(name, job)| Some((name, job, idle(job)?)))
        .collect();
    let (name, job, own) = partly.iter().min_by_key(|(name, job, _)| (job.busy(), *name))?;
    let room = partly.iter().map(|(.., idle)| idle).sum::<u32>() - own;
    let engines = job.registered.len() as u32;
    if work.units > 0 || room < job.busy() || tally.registered_staying < shape.min + engines {
        return None;
    }
    let decision = Decision {
        shape: shape.name.clone(),
        reason: format!(
            "{own} of its {engines} engines have been idle for {}, and other jobs have room for the rest",
            span(shape.idle_s)
        ),
        action: Action::Drain {
            jobs: vec![(*name).clone()],
        },
    };
    let jobs = [(*name).clone()];
    mark(state, &jobs);
    Some(decision)
}
