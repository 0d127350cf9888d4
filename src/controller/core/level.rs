//! Requests tasks back from an engine as soon as another one is idle: a running task has its successor waiting on its engine, but
//! none waits behind another while an engine could run it.
use super::Core;
use super::engines::{LaneId, Unit};
use crate::model::EngineUuid;
use crate::wire::content::engine;

/// A queue that takes less than this is done before its tasks would run elsewhere.
const WORTH_S: f64 = 0.005;
/// The maximum number of idle engines, and of those with the longest queues, that are considered at a time.
const MOST: usize = 8;

impl Core {
    /// Requests half of the longest queues back, one for each idle engine.
    pub(super) fn level_queues(&mut self) {
        if self.engines.idle().next().is_none() || self.engines.with_queue().next().is_none() {
            return;
        }
        let mut idle: Vec<EngineUuid> = self.engines.idle().take(MOST).map(|(uuid, _)| uuid.clone()).collect();
        let full = self.engines.with_queue().take(MOST);
        let full: Vec<(EngineUuid, u32, bool)> = full.map(|(uuid, e)| (uuid.clone(), e.load(), e.is_recalled())).collect();
        let asked = full.iter().filter(|(_, _, is_recalled)| *is_recalled).count();
        idle.truncate(idle.len().saturating_sub(asked));
        for (uuid, load, is_recalled) in full {
            let Some(unit) = self.queued_unit(&uuid, load).filter(|_| !is_recalled) else {
                continue;
            };
            let now = self.out.now();
            let could = |idle: &EngineUuid| {
                self.engines
                    .get(idle)
                    .is_some_and(|e| self.engines.why_not(e, &unit, now).is_none())
            };
            let Some(at) = idle.iter().position(could) else { continue };
            idle.swap_remove(at);
            self.engines.change(&uuid, |e| e.ask_back());
            let at_most = load / 2;
            self.out.send_to_engine(&uuid, engine::GIVE_BACK, &engine::GiveBack { at_most });
        }
    }

    /// What the tasks that wait on this engine need, if they wait long and another engine may run them.
    fn queued_unit(&self, uuid: &EngineUuid, load: u32) -> Option<Unit> {
        let is_balanced = |map| {
            self.maps
                .get(map)
                .is_some_and(|map| map.targets().is_none() && map.request().is_none())
        };
        let map = self.engines.get(uuid)?.unshared_map(is_balanced)?;
        let waits_s = self.maps.get(map)?.mean().seconds()? * f64::from(load - 1);
        (waits_s >= WORTH_S).then(|| self.unit_of(LaneId::first(map)))?
    }
}
