//! The entry point.
use super::decision::Decision;
use super::observation::Observation;
use super::settings::ElasticSettings;
use super::state::ElasticState;
use super::summary::Summary;

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
    state.clock_s += seen.elapsed_s.unwrap_or(0.0).max(0.0);
    Outcome {
        summary: Summary {
            decided: seen.now,
            next_s: settings.interval_s,
            budget_core_h: settings.budget_core_h,
            ..Summary::default()
        },
        ..Outcome::default()
    }
}
