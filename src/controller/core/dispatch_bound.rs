//! Tasks that run on an engine of their own and need more of its node than one processor. They come before all that waits for
//! any engine, but never take what is in use: such a task waits until its engine is idle and its node has room.
use super::Core;
use super::engines::{LaneId, Unit, Wanted};
use super::maps::Map;
use crate::model::resources::Request;
use crate::model::task::TaskState;
use crate::model::{EngineUuid, MapId, TaskId};
use std::collections::HashSet;

impl Core {
    /// Sends those that can be sent; lanes of this round leave to the others what they wait for.
    pub(super) fn dispatch_bound_maps(&mut self) {
        for id in self.bound_maps.clone() {
            self.dispatch_bound(id);
        }
    }

    fn dispatch_bound(&mut self, id: MapId) {
        let lane = LaneId::first(id);
        let unit = self.unit_of(lane).filter(|_| self.maps.get(id).is_some_and(|map| map.has_ready()));
        let Some((unit, request)) = unit.and_then(|unit| Some((unit.clone(), unit.request?))) else {
            self.bound_maps.remove(&id);
            return;
        };
        let (mut waiting, mut unable) = (Vec::new(), HashSet::new());
        let targets = self.maps.get(id).and_then(Map::targets).map_or(0, <[EngineUuid]>::len);
        while unable.len() < targets
            && let Some(task) = self.maps.change(id, |map| map.take(0)).flatten()
        {
            match task.engine.clone().filter(|engine| self.engines.get(engine).is_some()) {
                Some(engine) if unable.contains(&engine) => waiting.push(task),
                Some(engine) if self.take_bound_share(&engine, &unit, &request) => self.send_tasks(id, &engine, vec![task]),
                Some(engine) => {
                    waiting.push(task);
                    self.engines.reserve_for(&engine, &unit, &request);
                    self.engines.want(Wanted {
                        unit: unit.clone(),
                        engines: Some(HashSet::from([engine.clone()])),
                    });
                    unable.insert(engine);
                }
                None => {
                    let task_id = TaskId::new(id, task.index);
                    self.finish_unsent(task_id, task.run, TaskState::Lost, "EngineLost", "its target engine left");
                }
            }
        }
        self.maps.change(id, |map| waiting.into_iter().for_each(|task| map.put_back(task)));
    }

    fn take_bound_share(&mut self, engine: &EngineUuid, unit: &Unit, request: &Request) -> bool {
        let now = self.out.now();
        self.engines.take_share(engine, unit, request, now)
    }
}
