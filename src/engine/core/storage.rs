//! Handles code and values of maps that this host cannot store. That is the engine's fault: it returns the tasks without counting an
//! attempt, reports that it is unavailable, and retries.
use super::Core;
use super::event::{Effect, Now};
use super::unit::worker_of;
use crate::model::MapId;

impl Core {
    /// The bundle that a map needs.
    pub fn bundle_of(&self, map: MapId) -> Option<&str> {
        Some(&self.maps.get(&map)?.definition.bundle()?.hash)
    }

    /// This bundle is not on this host; None: no bundle can be stored yet.
    pub(super) fn code_failed(&mut self, now: Now, hash: Option<String>, reason: String) {
        if let Some(hash) = &hash {
            for state in self.maps.values_mut() {
                // The worker's path to it is no longer valid.
                state.in_worker &= state.definition.bundle().is_none_or(|named| named.hash != *hash);
            }
        }
        let reason = format!("the code of maps cannot be stored: {reason}");
        self.code.failed(now, hash, reason);
    }

    /// Code can be stored again. Registering makes the controller send everything that is missing again.
    pub(super) fn code_usable(&mut self, effects: &mut Vec<Effect>) {
        if self.code.recovered() {
            effects.push(Effect::Register { holds: self.holds() });
        }
    }

    pub(super) fn check_code(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.registered && self.leaving.is_none() && self.code.is_retry_due(now) {
            effects.push(Effect::RetryCodeStorage);
        }
    }

    /// Returns tasks whose code is not available, to run on other engines. Tasks that only this engine may run fail with the reason.
    pub(super) fn reject_code_units(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Some(reason) = self.code.why_unusable().map(String::from) else {
            return;
        };
        let (mut returned, mut failed) = (Vec::new(), Vec::new());
        for unit in std::mem::take(&mut self.queue) {
            let map = unit.held().map(|held| held.map);
            let definition = map.and_then(|map| Some((map, &self.maps.get(&map)?.definition)));
            match definition {
                Some((map, definition)) if definition.bundle().is_some() && worker_of(map, definition).is_some() => {
                    match definition.options.targets.is_some() {
                        true => failed.push(unit),
                        false => returned.push(unit),
                    }
                }
                _ => self.queue.push_back(unit),
            }
        }
        for unit in failed {
            self.fail(now, unit, "CodeUnavailable", reason.clone(), effects);
        }
        if !returned.is_empty() {
            self.return_units(returned, effects);
        }
    }
}
