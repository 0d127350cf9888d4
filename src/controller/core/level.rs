//! Requests tasks back from an engine as soon as another one is idle: a running task has its successor waiting on its engine, but
//! none waits behind another while an engine could run it.
use super::Core;
use super::engines::{Engine, LaneId, Unit};
use crate::model::{EngineUuid, MapId};
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
            let Some(units) = self.queued_units(&uuid, load).filter(|_| !is_recalled) else {
                continue;
            };
            let now = self.out.now();
            let takes = |engine: &Engine| units.iter().all(|unit| self.engines.why_not(engine, unit, now).is_none());
            let could = |idle: &EngineUuid| self.engines.get(idle).is_some_and(takes);
            let Some(at) = idle.iter().position(could) else { continue };
            idle.swap_remove(at);
            self.engines.change(&uuid, |e| e.ask_back());
            let at_most = load / 2;
            self.out.send_to_engine(&uuid, engine::GIVE_BACK, &engine::GiveBack { at_most });
        }
    }

    /// What the tasks on this engine need, of each of their maps, if they wait long and other engines may run them. Which of the
    /// maps' tasks it returns is not known: those that no other engine could take would come back to it.
    fn queued_units(&self, uuid: &EngineUuid, load: u32) -> Option<Vec<Unit>> {
        let engine = self.engines.get(uuid)?;
        let mut each_s = 0.0f64;
        let unit = |(id, _): (MapId, u32)| {
            let map = self.maps.get(id);
            let map = map.filter(|map| map.targets().is_none() && map.request().is_none())?;
            each_s = each_s.max(map.mean().seconds()?);
            self.unit_of(LaneId::first(id))
        };
        let units = engine.holders().map(unit).collect::<Option<Vec<Unit>>>()?;
        (each_s * f64::from(load - 1) >= WORTH_S).then_some(units)
    }
}
