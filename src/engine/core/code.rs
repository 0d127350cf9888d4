//! The code of maps, where this host cannot store it: the engine's fault. Tasks go back uncharged, the engine is unavailable, and
//! tries again.
use super::Core;
use super::event::{Effect, Now};
use super::unit::worker_of;
use super::workers::retry_delay;
use crate::model::MapId;
use std::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Code {
    failure: Option<Failure>,
    /// How often in a row, and the bundle whose arrival ends the row.
    failures: u32,
    hash: String,
}

#[derive(Debug)]
struct Failure {
    reason: String,
    /// None while it is being tried.
    retry_at: Option<Instant>,
}

impl Code {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.failure.as_ref()?.retry_at
    }

    pub(super) fn why_unusable(&self) -> Option<&str> {
        self.failure.as_ref().map(|failure| failure.reason.as_str())
    }
}

impl Core {
    /// The bundle that a map needs.
    pub fn bundle_of(&self, map: MapId) -> Option<&str> {
        Some(&self.maps.get(&map)?.definition.bundle()?.hash)
    }

    /// This bundle is not on this host; without one: nothing can be stored yet.
    pub(super) fn code_failed(&mut self, now: Now, hash: Option<String>, reason: String) {
        if let Some(hash) = hash {
            for state in self.maps.values_mut() {
                // Where it was is no longer true.
                state.in_worker &= state.definition.bundle().is_none_or(|named| named.hash != hash);
            }
            self.code.hash = hash;
        }
        let retry_at = self.code.deadline().unwrap_or_else(|| {
            let delay = retry_delay(self.code.failures);
            self.code.failures += 1;
            now.instant + delay
        });
        self.code.failure = Some(Failure {
            reason: format!("the code of maps cannot be stored: {reason}"),
            retry_at: Some(retry_at),
        });
    }

    pub(super) fn code_written(&mut self, hash: &str) {
        if self.code.hash == hash {
            self.code.failures = 0;
        }
    }

    /// Something can be stored again. What has not been comes again: a controller that takes an engine back sends it all anew.
    pub(super) fn code_usable(&mut self, effects: &mut Vec<Effect>) {
        if self.code.failure.take().is_some() {
            effects.push(Effect::Register { holds: self.holds() });
        }
    }

    pub(super) fn check_code(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.registered
            && self.leaving.is_none()
            && let Some(failure) = &mut self.code.failure
            && failure.retry_at.is_some_and(|at| now.instant >= at)
        {
            failure.retry_at = None;
            effects.push(Effect::TryToStoreCode);
        }
    }

    /// Tasks whose code is not here run elsewhere. What can run nowhere else fails with the reason.
    pub(super) fn give_up_code(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Some(reason) = self.code.why_unusable().map(String::from) else {
            return;
        };
        let (mut back, mut failed) = (Vec::new(), Vec::new());
        for unit in std::mem::take(&mut self.queue) {
            let map = unit.held().map(|held| held.map);
            let definition = map.and_then(|map| Some((map, &self.maps.get(&map)?.definition)));
            match definition {
                Some((map, definition)) if definition.bundle().is_some() && worker_of(map, definition).is_some() => {
                    match definition.options.targets.is_some() {
                        true => failed.push(unit),
                        false => back.push(unit),
                    }
                }
                _ => self.queue.push_back(unit),
            }
        }
        for unit in failed {
            self.fail(now, unit, "CodeUnavailable", reason.clone(), effects);
        }
        if !back.is_empty() {
            self.send_back(back, effects);
        }
    }
}
