//! How many engines to add.
use super::decision::{Action, Decision};
use super::settings::{ElasticSettings, EngineShape};
use super::state::{ElasticState, LaunchRecord, ShapeRecord};
use super::summary::{WhyNotMore, span};
use super::tally::Tally;
use super::work::ShapeWork;
use crate::model::UnixTime;

/// Between two submissions of one shape.
const MIN_INTERVAL_S: f64 = 10.0;

/// How many engines the ready work could use: each has enough to do, or there is one.
pub(super) fn useful(work: &ShapeWork, work_per_engine_s: f64) -> u32 {
    let by_time = (work.engine_s / work_per_engine_s).floor() as u64;
    let engines = by_time.max(work.widest.into()).min(work.engines);
    u32::try_from(engines).unwrap_or(u32::MAX)
}

/// The engines to add for the work and for `min`, before limits.
fn missing(shape: &EngineShape, tally: &Tally, work: &ShapeWork, work_per_engine_s: f64) -> u32 {
    let for_work = useful(work, work_per_engine_s).saturating_sub(tally.available);
    // No job has room for the widest unit.
    let for_wide = if work.widest > tally.largest_available.max(1) {
        shape.full_job()
    } else {
        0
    };
    let for_min = shape.min.saturating_sub(tally.staying);
    for_work.max(for_wide).max(for_min)
}

/// Submits jobs, or tells why not.
pub(super) fn up(
    settings: &ElasticSettings,
    shape: &EngineShape,
    state: &mut ElasticState,
    tally: &Tally,
    work: &ShapeWork,
    now: UnixTime,
) -> Result<Decision, WhyNotMore> {
    let clock = state.clock_s;
    let record = state.shapes.entry(shape.name.clone()).or_default();
    if let Some(pause) = &record.paused {
        return Err(WhyNotMore::Paused(pause.why.clone()));
    }
    let missing = missing(shape, tally, work, settings.work_per_engine_s);
    match work.units {
        _ if missing > 0 => {}
        0 => return Err(WhyNotMore::NothingReady),
        ready => {
            return Err(WhyNotMore::EnoughEngines {
                ready,
                work_per_engine_s: settings.work_per_engine_s,
            });
        }
    }
    wait(record, clock)?;
    let (jobs, engines_per_job) = within_limits(settings, shape, state, tally, work, missing)?;
    let launch = state.next_launch;
    state.next_launch += 1;
    if let Some(record) = state.shapes.get_mut(&shape.name) {
        record.submitted_s = Some(clock);
    }
    let submitted = LaunchRecord {
        shape: shape.name.clone(),
        jobs,
        seen: 0,
        engines_per_job,
        cores_per_job: shape.cores(engines_per_job),
        walltime_s: shape.walltime_s,
        submitted_s: clock,
        submitted: now,
        missing: None,
    };
    state.launches.insert(launch, submitted);
    Ok(Decision {
        shape: shape.name.clone(),
        action: Action::Submit {
            launch,
            jobs,
            engines_per_job,
        },
        reason: reason(settings, shape, tally, work),
    })
}

/// Waits after failures, and after the previous submission.
fn wait(record: &ShapeRecord, clock: f64) -> Result<(), WhyNotMore> {
    if let Some(backoff) = record.backoff.as_ref().filter(|backoff| clock < backoff.until_s) {
        return Err(WhyNotMore::Backoff {
            wait_s: backoff.until_s - clock,
            why: backoff.why.clone(),
        });
    }
    let wait_s = record.submitted_s.map_or(0.0, |submitted| submitted + MIN_INTERVAL_S - clock);
    if wait_s > 0.0 { Err(WhyNotMore::Recent { wait_s }) } else { Ok(()) }
}

/// The jobs, and the engines of each, that the limits allow.
fn within_limits(
    settings: &ElasticSettings,
    shape: &EngineShape,
    state: &ElasticState,
    tally: &Tally,
    work: &ShapeWork,
    missing: u32,
) -> Result<(u32, u32), WhyNotMore> {
    let room = shape.max.saturating_sub(tally.present);
    let queue_room = shape.max_queued.saturating_sub(tally.queued_jobs);
    let full = shape.full_job();
    // A wide unit may need all of a job; else a last job may have fewer engines.
    let is_wide = work.widest > 1;
    if room == 0 {
        return Err(WhyNotMore::Max(shape.max));
    }
    if queue_room == 0 {
        let (queued, max) = (tally.queued_jobs, shape.max_queued);
        return Err(WhyNotMore::QueueFull {
            queued,
            max,
            reason: String::new(),
        });
    }
    if is_wide && room < full {
        return Err(WhyNotMore::NoRoomForJob {
            engines_per_job: full,
            room,
        });
    }
    let mut engines = if is_wide { full } else { full.min(missing).min(room) };
    let mut jobs = missing.div_ceil(engines).min(room / engines).min(queue_room);
    if !is_wide {
        jobs = jobs.min(missing / engines);
    }
    if let (Some(budget), Some(walltime)) = (settings.budget_core_h, shape.walltime_s) {
        let left = budget * 3600.0 - state.used_core_s - state.reserved_core_s();
        let affordable = |engines: u32| (left / (walltime * f64::from(shape.cores(engines)))).max(0.0) as u32;
        let is_fixed = is_wide || shape.cores_per_job.is_some();
        while affordable(engines) == 0 && engines > 1 && !is_fixed {
            engines -= 1;
        }
        jobs = jobs.min(affordable(engines));
        if jobs == 0 {
            return Err(WhyNotMore::Budget {
                left_core_h: left.max(0.0) / 3600.0,
                job_core_h: walltime * f64::from(shape.cores(engines)) / 3600.0,
            });
        }
    }
    Ok((jobs, engines))
}

fn reason(settings: &ElasticSettings, shape: &EngineShape, tally: &Tally, work: &ShapeWork) -> String {
    let useful = useful(work, settings.work_per_engine_s);
    match work.units {
        _ if tally.staying < shape.min => format!("the minimum is {}, and {} are present", shape.min, tally.staying),
        ready => format!(
            "{ready} ready ≈ {} on one engine: enough for {useful}, {} available",
            span(work.engine_s),
            tally.available
        ),
    }
}
