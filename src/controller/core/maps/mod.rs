//! The unfinished maps, and what remains of finished ones: whether a task failed.
mod attempts;
mod bundles;
mod in_flight;
mod map;

pub(super) use attempts::{Fault, Retry};
pub(super) use bundles::Bundles;
pub(super) use in_flight::InFlight;
pub(super) use map::{Map, NextTask, Watch};

use crate::model::{EngineUuid, MapId, TaskId};
use std::collections::{BTreeMap, HashMap};

#[derive(Debug, Default)]
pub(super) struct Maps {
    open: BTreeMap<MapId, Map>,
    /// Open maps by the key of their `map_request`.
    keys: HashMap<String, MapId>,
    last_id: u32,
    /// For each map, the maps that wait for it.
    followers: HashMap<MapId, Vec<MapId>>,
    /// Maps that may have gained or lost ready tasks.
    changed: Vec<MapId>,
    /// Finished maps: true if a task failed. One entry per map, not per task.
    finished: HashMap<MapId, bool>,
}

impl Maps {
    pub(super) fn get(&self, id: MapId) -> Option<&Map> {
        self.open.get(&id)
    }
    pub(super) fn is_open(&self, id: MapId) -> bool {
        self.open.contains_key(&id)
    }
    pub(super) fn iter(&self) -> impl Iterator<Item = (MapId, &Map)> {
        self.open.iter().map(|(id, map)| (*id, map))
    }
    pub(super) fn by_key(&self, key: &str) -> Option<MapId> {
        self.keys.get(key).copied()
    }
    /// Maps with tasks that can be sent now.
    pub(super) fn runnable(&self) -> impl Iterator<Item = MapId> {
        self.open.iter().filter(|(_, map)| map.has_ready()).map(|(id, _)| *id)
    }
    /// Maps whose ready tasks, or priority, may have changed since the last call.
    pub(super) fn take_changed(&mut self) -> Vec<MapId> {
        std::mem::take(&mut self.changed)
    }
    fn note_change(&mut self, id: MapId) {
        if self.changed.last() != Some(&id) {
            self.changed.push(id);
        }
    }
    pub(super) fn in_flight(&self, task: TaskId) -> Option<&InFlight> {
        self.open.get(&task.map)?.in_flight(task.index)
    }
    /// The task, if this run of it is with this engine.
    pub(super) fn in_flight_at(&self, task: TaskId, run: u32, engine: &EngineUuid) -> Option<&InFlight> {
        self.in_flight(task).filter(|t| t.is_at(run, engine))
    }
    pub(super) fn in_flight_mut(&mut self, task: TaskId) -> Option<&mut InFlight> {
        self.open.get_mut(&task.map)?.in_flight_mut(task.index)
    }

    /// Changes a map, which may gain or lose ready tasks.
    pub(super) fn change<T>(&mut self, id: MapId, change: impl FnOnce(&mut Map) -> T) -> Option<T> {
        let result = change(self.open.get_mut(&id)?);
        self.note_change(id);
        Some(result)
    }

    /// Returns false if the map is not open.
    pub(super) fn set_priority(&mut self, id: MapId, priority: i32) -> bool {
        self.change(id, |map| map.set_priority(priority)).is_some()
    }

    /// The id of the next map, or submission of an ipyparallel client.
    pub(super) fn new_id(&mut self) -> MapId {
        self.last_id += 1;
        MapId(self.last_id)
    }

    /// Adds a map: a new, a restored or a reopened one.
    pub(super) fn insert(&mut self, id: MapId, map: Map) {
        self.finished.remove(&id);
        self.keys.insert(map.key().to_string(), id);
        if let Some(other) = map.waiting_for() {
            self.followers.entry(other).or_default().push(id);
        }
        self.open.insert(id, map);
        self.note_change(id);
    }

    /// Removes a complete map from memory; its records stay.
    pub(super) fn complete(&mut self, id: MapId) -> Option<Map> {
        let map = self.open.remove(&id)?;
        self.keys.remove(map.key());
        self.note_change(id);
        self.finished.insert(id, map.counts().failed() > 0);
        if let Some(others) = map.waiting_for().and_then(|other| self.followers.get_mut(&other)) {
            others.retain(|other| *other != id);
        }
        Some(map)
    }

    /// The maps that wait for this one.
    pub(super) fn followers(&self, id: MapId) -> Vec<MapId> {
        self.followers.get(&id).cloned().unwrap_or_default()
    }
    /// Releases the maps that waited for this one, and returns them.
    pub(super) fn release_followers(&mut self, id: MapId) -> Vec<MapId> {
        let released = self.followers.remove(&id).unwrap_or_default();
        for follower in &released {
            self.change(*follower, Map::release);
        }
        released
    }

    /// True if a task of this map failed; None if the map is not finished.
    pub(super) fn has_failed(&self, id: MapId) -> Option<bool> {
        self.finished.get(&id).copied()
    }
    pub(super) fn forget(&mut self, id: MapId) {
        self.finished.remove(&id);
    }

    pub(super) fn restore(&mut self, next_id: u32, finished: Vec<(MapId, bool)>) {
        self.last_id = next_id.saturating_sub(1);
        self.finished.extend(finished);
    }

    /// Checks all invariants; for tests and debug builds.
    pub(super) fn check(&self) {
        for (id, map) in &self.open {
            map.check();
            if let Some(other) = map.waiting_for() {
                assert!(self.followers[&other].contains(id), "map {id} waits for {other}");
            }
        }
    }
}
