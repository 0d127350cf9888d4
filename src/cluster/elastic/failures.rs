//! Failures of submissions and of jobs: backoff, and pauses that `resume` ends.
use super::decision::{Action, Decision};
use super::observation::{Control, Observation};
use super::settings::ElasticSettings;
use super::state::{Backoff, ElasticState, Pause, ShapeRecord};
use super::track::End;
use crate::model::UnixTime;
use std::collections::BTreeSet;

/// A job that ends within this time without registering is an early failure.
const EARLY_S: f64 = 60.0;
/// These numbers, in a row, pause a shape.
const MAX_EARLY_FAILURES: u32 = 3;
const MAX_REJECTIONS: u32 = 5;
const MAX_UNUSED: u32 = 3;
const MIN_BACKOFF_S: f64 = 30.0;
const MAX_BACKOFF_S: f64 = 600.0;

fn backoff_s(failures: u32) -> f64 {
    (MIN_BACKOFF_S * 2f64.powi(failures.clamp(1, 16) as i32 - 1)).min(MAX_BACKOFF_S)
}

/// One line, so that it can be shown in one.
fn one_line(text: &str) -> String {
    let text: Vec<&str> = text.split_whitespace().collect();
    if text.is_empty() {
        "no reason given".into()
    } else {
        text.join(" ")
    }
}

fn pause(shape: &mut ShapeRecord, name: &str, why: String, since: UnixTime, by_user: bool) -> Decision {
    let why = one_line(&why);
    shape.paused = Some(Pause {
        by_user,
        why: why.clone(),
        since,
    });
    Decision {
        shape: name.into(),
        action: Action::Pause,
        reason: why,
    }
}

/// Pauses and resumes as users ask.
pub(super) fn control(settings: &ElasticSettings, state: &mut ElasticState, seen: &Observation) -> Vec<Decision> {
    let mut decisions = Vec::new();
    for control in &seen.controls {
        let (Control::Pause(only) | Control::Resume(only)) = control;
        let names = settings.shapes.iter().map(|shape| &shape.name);
        for name in names.filter(|name| only.as_ref().is_none_or(|only| only == *name)) {
            let shape = state.shapes.entry(name.clone()).or_default();
            match control {
                Control::Pause(_) => decisions.push(pause(shape, name, "by `pcluster elastic pause`".into(), seen.now, true)),
                Control::Resume(_) => {
                    *shape = ShapeRecord {
                        submitted_s: shape.submitted_s,
                        surplus_since_s: shape.surplus_since_s,
                        ready_since_s: shape.ready_since_s,
                        ..ShapeRecord::default()
                    };
                    decisions.push(Decision {
                        shape: name.clone(),
                        action: Action::Resume,
                        reason: "by `pcluster elastic resume`; all counters of failures are 0".into(),
                    });
                }
            }
        }
    }
    decisions
}

/// Counts jobs that ended without being asked to.
pub(super) fn ended(state: &mut ElasticState, now: UnixTime, ends: Vec<End>) -> Vec<Decision> {
    let (mut decisions, mut counted) = (Vec::new(), BTreeSet::new());
    let clock = state.clock_s;
    for end in ends {
        let Some(shape) = state.shapes.get_mut(&end.shape) else { continue };
        let reason = one_line(&end.reason);
        if end.by_itself && !end.has_registered && end.ran_s <= EARLY_S {
            shape.early_failures += 1;
            if shape.early_failures >= MAX_EARLY_FAILURES && shape.paused.is_none() {
                let why = format!(
                    "{} jobs in a row ended within 60 s, before an engine registered: {reason}",
                    shape.early_failures
                );
                decisions.push(pause(shape, &end.shape, why, now, false));
            }
        }
        // Jobs that end together are one event.
        if !end.has_finished && end.ran_s < MAX_BACKOFF_S && counted.insert(end.shape.clone()) {
            shape.fruitless += 1;
            let what = if end.has_registered {
                "without having finished a task"
            } else {
                "before an engine registered"
            };
            shape.backoff = Some(Backoff {
                until_s: clock + backoff_s(shape.fruitless),
                why: format!("a job ended {what}: {reason}"),
            });
        }
    }
    decisions
}

/// Counts submissions that were rejected.
pub(super) fn rejected(state: &mut ElasticState, seen: &Observation) -> Vec<Decision> {
    let mut decisions = Vec::new();
    for rejection in &seen.rejected {
        if let Some(launch) = state.launches.remove(&rejection.launch) {
            decisions.extend(count_rejection(state, &launch.shape, seen.now, &rejection.text));
        }
    }
    decisions
}

pub(super) fn count_rejection(state: &mut ElasticState, name: &str, now: UnixTime, text: &str) -> Option<Decision> {
    let clock = state.clock_s;
    let shape = state.shapes.entry(name.into()).or_default();
    shape.rejections += 1;
    let why = format!("submission failed: {}", one_line(text));
    shape.backoff = Some(Backoff {
        until_s: clock + backoff_s(shape.rejections),
        why: why.clone(),
    });
    let is_pause = shape.rejections >= MAX_REJECTIONS && shape.paused.is_none();
    is_pause.then(|| pause(shape, name, format!("{} times in a row, {why}", shape.rejections), now, false))
}

/// Counts a job that never registered an engine as an early failure.
pub(super) fn count_stuck(shape: &mut ShapeRecord, name: &str, now: UnixTime) -> Option<Decision> {
    shape.early_failures += 1;
    let why = format!(
        "{} jobs in a row never registered an engine: see their logs, and `pcluster doctor`",
        shape.early_failures
    );
    (shape.early_failures >= MAX_EARLY_FAILURES && shape.paused.is_none()).then(|| pause(shape, name, why, now, false))
}

/// Counts a job that was retired idle although work was ready all the time.
pub(super) fn count_unused(shape: &mut ShapeRecord, name: &str, units: u64, now: UnixTime) -> Option<Decision> {
    shape.unused += 1;
    let why = format!(
        "{} jobs in a row got none of the work that should fit them ({units} ready): see `pcluster explain`",
        shape.unused
    );
    (shape.unused >= MAX_UNUSED && shape.paused.is_none()).then(|| pause(shape, name, why, now, false))
}
