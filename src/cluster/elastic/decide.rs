//! The entry point: follows what was seen, then decides for each shape.
use super::decision::Decision;
use super::down::down;
use super::observation::{JobPhase, Observation, ObservedJob};
use super::settings::{ElasticSettings, EngineShape};
use super::state::ElasticState;
use super::summary::{ShapeSummary, Summary, WhyNotFewer, WhyNotMore};
use super::tally::Tally;
use super::track::track;
use super::up::{up, useful};
use super::work::{ShapeWork, group};

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// In the order in which to carry them out.
    pub decisions: Vec<Decision>,
    pub summary: Summary,
    /// The state has changed by more than the time: store it before the decisions are carried out.
    pub must_store: bool,
}

/// Decides once. The settings are valid ([`ElasticSettings::check`]).
pub(crate) fn decide(settings: &ElasticSettings, state: &mut ElasticState, seen: &Observation) -> Outcome {
    let before = state.clone();
    let mut decisions = track(settings, state, seen);
    let nodes = settings.shapes.iter().filter_map(|shape| {
        let (engines, node) = state.shapes.get(&shape.name)?.node.as_ref()?;
        (*engines == shape.full_job()).then_some((shape.name.as_str(), node))
    });
    let (work, unfit) = group(settings, &nodes.collect(), seen.work.as_deref().unwrap_or_default());
    let mut order: Vec<(&EngineShape, ShapeWork)> = settings.shapes.iter().zip(work).collect();
    order.sort_by(|(a, _), (b, _)| a.cost.total_cmp(&b.cost));
    let mut shapes = Vec::new();
    for (shape, work) in order {
        let (made, summary) = of_shape(settings, shape, state, &work, seen);
        decisions.extend(made);
        shapes.push(summary);
    }
    shapes.sort_by_key(|shape| settings.shapes.iter().position(|own| own.name == shape.name));
    let clock = state.clock_s;
    let running = state.jobs.values().filter(|job| !job.has_ended && job.is_running);
    let running: f64 = running.map(|job| job.used_core_s(clock, None)).sum();
    let must_store = before
        != ElasticState {
            clock_s: before.clock_s,
            ..state.clone()
        };
    Outcome {
        decisions,
        summary: Summary {
            decided: seen.now,
            next_s: settings.interval_s,
            used_core_h: (state.used_core_s + running) / 3600.0,
            reserved_core_h: (state.reserved_core_s() - running).max(0.0) / 3600.0,
            budget_core_h: settings.budget_core_h,
            shapes,
            unfit,
        },
        must_store,
    }
}

fn of_shape(
    settings: &ElasticSettings,
    shape: &EngineShape,
    state: &mut ElasticState,
    work: &ShapeWork,
    seen: &Observation,
) -> (Vec<Decision>, ShapeSummary) {
    let tally = Tally::of(state, &shape.name, settings.work_per_engine_s);
    let clock = state.clock_s;
    let record = state.shapes.entry(shape.name.clone()).or_default();
    if work.units == 0 {
        record.ready_since_s = None;
    } else {
        record.ready_since_s.get_or_insert(clock);
    }
    let mut decisions = Vec::new();
    let mut why_not_more = WhyNotMore::NoController;
    if seen.work.is_some() {
        decisions = down(settings, shape, state, &tally, work, seen.now);
        why_not_more = match decisions.is_empty() {
            false => reduced(shape, &tally, work, settings),
            true => match up(settings, shape, state, &tally, work, seen.now) {
                Ok(decision) => {
                    let more = Tally::of(state, &shape.name, settings.work_per_engine_s).present - tally.present;
                    decisions.push(decision);
                    WhyNotMore::Submitted(more)
                }
                Err(why) => why,
            },
        };
    }
    let after = Tally::of(state, &shape.name, settings.work_per_engine_s);
    let waiting: Vec<&ObservedJob> = seen
        .jobs
        .iter()
        .filter(|job| job.shape == shape.name && matches!(job.phase, JobPhase::Queued | JobPhase::Submitted))
        .collect();
    let queue_reason = waiting.iter().map(|job| job.reason.trim()).find(|reason| !reason.is_empty());
    if let WhyNotMore::QueueFull { reason, .. } = &mut why_not_more {
        *reason = queue_reason.unwrap_or_default().into();
    }
    let expected = waiting.iter().filter_map(|job| job.expected_start);
    let wants = tally
        .occupied
        .saturating_add(useful(work, settings.work_per_engine_s))
        .max(tally.busy)
        .max(shape.min)
        .min(shape.max);
    let summary = ShapeSummary {
        name: shape.name.clone(),
        min: shape.min,
        max: shape.max,
        engines: after.registered,
        busy: after.busy,
        starting: after.starting,
        unknown: after.unknown,
        leaving: after.leaving,
        wants,
        ready: work.units,
        ready_s: work.engine_s / f64::from(after.registered.max(1)),
        queued_jobs: after.queued_jobs,
        queue_reason: queue_reason.unwrap_or_default().into(),
        expected_start: expected.min_by(|a, b| a.0.total_cmp(&b.0)),
        why_not_more,
        why_not_fewer: why_not_fewer(shape, state, seen, &after, work),
    };
    (decisions, summary)
}

/// Why there are not more while some are removed.
fn reduced(shape: &EngineShape, tally: &Tally, work: &ShapeWork, settings: &ElasticSettings) -> WhyNotMore {
    match work.units {
        _ if tally.staying > shape.max => WhyNotMore::Max(shape.max),
        0 => WhyNotMore::NothingReady,
        ready => WhyNotMore::EnoughEngines {
            ready,
            work_per_engine_s: settings.work_per_engine_s,
        },
    }
}

fn why_not_fewer(shape: &EngineShape, state: &ElasticState, seen: &Observation, tally: &Tally, work: &ShapeWork) -> WhyNotFewer {
    let jobs = || state.jobs.values().filter(|job| job.shape == shape.name && job.is_staying());
    let idle = jobs().filter_map(|job| job.idle_s(state.clock_s)).reduce(f64::max);
    let shared: u32 = jobs()
        .filter(|job| job.busy() < job.registered.len() as u32)
        .map(|job| job.busy())
        .sum();
    match tally {
        _ if seen.work.is_none() => WhyNotFewer::NoController,
        Tally { present: 0, .. } => WhyNotFewer::NoEngines,
        Tally { staying: 0, leaving, .. } => WhyNotFewer::Reduced(*leaving),
        Tally { staying, .. } if *staying <= shape.min => WhyNotFewer::Min(shape.min),
        _ if idle.is_some_and(|idle| idle >= shape.idle_s) => WhyNotFewer::Min(shape.min),
        _ if idle.is_some() => WhyNotFewer::RecentlyIdle {
            idle_s: idle.unwrap_or_default(),
            limit_s: shape.idle_s,
        },
        _ if shared > 0 && work.units == 0 => WhyNotFewer::SharedJob { busy: shared },
        Tally { busy: 0, unknown, .. } if *unknown > 0 && work.units == 0 => WhyNotFewer::Unknown(*unknown),
        Tally { busy: 0, staying, .. } if work.units == 0 => WhyNotFewer::Starting(*staying),
        Tally { busy, .. } => WhyNotFewer::Needed {
            busy: *busy,
            ready: work.units,
        },
    }
}
