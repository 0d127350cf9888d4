//! Cancels maps and tasks on request.
use super::Core;
use crate::model::change::Change;
use crate::model::task::TaskState;
use crate::model::{EngineUuid, MapId, TaskId};
use crate::wire::content::client::{Selection, SelectionReply, ok};
use crate::wire::content::engine::{self, Held};
use std::collections::BTreeMap;

impl Core {
    pub(super) fn cancel(&mut self, selection: &Selection) -> SelectionReply {
        let (mut changed, mut unchanged) = (0, 0);
        let mut to_engines = BTreeMap::new();
        for id in &selection.maps {
            let Some(assigned) = self.maps.change(*id, |map| {
                map.close();
                map.all_in_flight().map(|(index, _)| index).collect::<Vec<u32>>()
            }) else {
                unchanged += 1;
                continue;
            };
            for index in &assigned {
                self.cancel_assigned(TaskId::new(*id, *index), &mut to_engines);
            }
            let total = self.maps.get(*id).map_or(0, |map| map.total());
            self.out.record(Change::MapClosed { map: *id, total });
            changed += assigned.len() as u64 + self.abort_unsent(*id, "TaskCancelled", "cancelled");
            self.after_changes(*id);
        }
        for task in &selection.tasks {
            let unassigned = self.maps.change(task.map, |map| map.drop_ready(task.index)).flatten();
            if let Some(run) = unassigned {
                self.finish_unsent(*task, run, TaskState::Aborted, "TaskCancelled", "cancelled");
            } else if !self.cancel_assigned(*task, &mut to_engines) {
                unchanged += 1;
                continue;
            }
            changed += 1;
        }
        for (engine, tasks) in to_engines {
            self.out.send_to_engine(&engine, engine::CANCEL, &engine::Cancel { tasks });
        }
        let mut maps: Vec<MapId> = selection.maps.clone();
        maps.extend(selection.tasks.iter().map(|t| t.map));
        maps.sort();
        maps.dedup();
        SelectionReply {
            status: ok(),
            changed,
            unchanged,
            maps,
        }
    }

    /// Returns false if the task is not assigned to an engine.
    fn cancel_assigned(&mut self, task: TaskId, to_engines: &mut BTreeMap<EngineUuid, Vec<Held>>) -> bool {
        let Some(in_flight) = self.maps.in_flight_mut(task) else {
            return false;
        };
        in_flight.cancel();
        let held = Held {
            map: task.map,
            index: task.index,
            run: in_flight.run(),
        };
        to_engines.entry(in_flight.engine().clone()).or_default().push(held);
        self.out.record(Change::TaskCancelling { task });
        true
    }
}
