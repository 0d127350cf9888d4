//! The order in which work gets engines: tasks of maps and balanced requests of ipyparallel's clients in one queue.
//!
//! The queue's entries are **lanes**: the ready tasks of one owner (a map, or a client's session) that need the same.
//! Lanes come by priority; among equals, those come first whose owner holds fewest processors, then those whose owner has
//! had least of them so far, then those submitted first. So owners share engines equally, whatever their tasks take
//! (max-min fairness now, start-time fair queueing over time).
//!
//! Lanes whose tasks fit the same engines have the same **shape**. If the first of a shape cannot be placed, none can: a
//! round tries one lane for each shape, however many wait.
use super::engines::{Failed, LaneId, Runs};
use crate::model::MapId;
use crate::model::resources::Request;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What decides which engines may take a task.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub runs: Runs,
    pub request: Option<Request>,
    /// How long it may take, in milliseconds.
    pub limit_ms: Option<u64>,
    /// The lane, if its tasks are bound to engines of their own.
    pub bound: Option<LaneId>,
}

/// The place of a lane in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    priority: Reverse<i32>,
    /// Processors that the owner's tasks hold.
    held: u32,
    /// What the owner has had: processors times microseconds.
    service: u64,
    owner: MapId,
    /// Retried tasks first.
    lane: Reverse<u32>,
}

impl Place {
    pub(super) fn lane(&self) -> LaneId {
        LaneId {
            map: self.owner,
            lane: self.lane.0,
        }
    }
}

#[derive(Debug)]
struct ShapeState {
    shape: Shape,
    lanes: BTreeSet<Place>,
    failed: Failed,
}

#[derive(Debug, Default)]
struct Owner {
    priority: i32,
    held: u32,
    service: u64,
    /// Its lanes with ready tasks, with their shape.
    lanes: Vec<(u32, usize)>,
}

impl Owner {
    fn place(&self, owner: MapId, lane: u32) -> Place {
        Place {
            priority: Reverse(self.priority),
            held: self.held,
            service: self.service,
            owner,
            lane: Reverse(lane),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    owners: HashMap<MapId, Owner>,
    shapes: Vec<Option<ShapeState>>,
    free_shapes: Vec<usize>,
    by_shape: HashMap<Shape, usize>,
    /// The first lane of each shape.
    heads: BTreeMap<Place, usize>,
    /// The service of the owner that was served last, by priority: those that come (again) begin with it.
    virtual_time: BTreeMap<i32, u64>,
}

impl Queue {
    /// Notes that a lane has ready tasks; `shape` is asked for if it had none.
    pub(super) fn insert(&mut self, lane: LaneId, priority: i32, shape: impl FnOnce() -> Shape) {
        let owner = self.owners.entry(lane.map).or_default();
        if owner.lanes.iter().any(|(known, _)| *known == lane.lane) {
            return;
        }
        if owner.lanes.is_empty() {
            let begins = self.virtual_time.get(&priority).copied().unwrap_or_default();
            owner.service = owner.service.max(begins);
            owner.priority = priority;
        }
        let shape = shape();
        let index = match self.by_shape.get(&shape) {
            Some(index) => *index,
            None => self.add_shape(shape),
        };
        let Some(owner) = self.owners.get_mut(&lane.map) else { return };
        owner.lanes.push((lane.lane, index));
        let place = owner.place(lane.map, lane.lane);
        self.add_place(index, place);
    }

    fn add_shape(&mut self, shape: Shape) -> usize {
        let index = self.free_shapes.pop().unwrap_or(self.shapes.len());
        self.by_shape.insert(shape.clone(), index);
        let state = ShapeState {
            shape,
            lanes: BTreeSet::new(),
            failed: Failed::default(),
        };
        match self.shapes.get_mut(index) {
            Some(free) => *free = Some(state),
            None => self.shapes.push(Some(state)),
        }
        index
    }

    fn add_place(&mut self, index: usize, place: Place) {
        let Some(state) = self.shapes.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        let head = state.lanes.first().copied();
        state.lanes.insert(place);
        if head.is_none_or(|head| place < head) {
            head.map(|head| self.heads.remove(&head));
            self.heads.insert(place, index);
        }
    }

    fn remove_place(&mut self, index: usize, place: &Place) {
        let Some(state) = self.shapes.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        state.lanes.remove(place);
        if self.heads.remove(place).is_some()
            && let Some(next) = state.lanes.first()
        {
            self.heads.insert(*next, index);
        }
    }

    /// A lane has no ready tasks any more, or may not start any.
    pub(super) fn remove(&mut self, lane: LaneId) {
        let Some(owner) = self.owners.get_mut(&lane.map) else { return };
        let Some(at) = owner.lanes.iter().position(|(known, _)| *known == lane.lane) else {
            return;
        };
        let (_, index) = owner.lanes.swap_remove(at);
        let place = owner.place(lane.map, lane.lane);
        self.remove_place(index, &place);
        if let Some(state) = self
            .shapes
            .get_mut(index)
            .and_then(|state| state.take_if(|state| state.lanes.is_empty()))
        {
            self.by_shape.remove(&state.shape);
            self.free_shapes.push(index);
        }
        self.forget_unused(lane.map);
    }

    /// An owner has no ready tasks any more.
    pub(super) fn remove_all(&mut self, owner: MapId) {
        let lanes = self.owners.get(&owner).into_iter().flat_map(|owner| &owner.lanes);
        for lane in lanes.map(|(lane, _)| *lane).collect::<Vec<_>>() {
            self.remove(LaneId { map: owner, lane });
        }
    }

    /// An owner that neither waits nor holds anything begins anew when it comes back.
    fn forget_unused(&mut self, map: MapId) {
        if self.owners.get(&map).is_some_and(|owner| owner.lanes.is_empty() && owner.held == 0) {
            self.owners.remove(&map);
        }
    }

    fn change(&mut self, map: MapId, change: impl FnOnce(&mut Owner)) {
        let Some(owner) = self.owners.get_mut(&map) else { return };
        let before: Vec<(usize, Place)> = owner.lanes.iter().map(|(lane, index)| (*index, owner.place(map, *lane))).collect();
        change(owner);
        let after: Vec<Place> = owner.lanes.iter().map(|(lane, _)| owner.place(map, *lane)).collect();
        for ((index, before), after) in before.into_iter().zip(after) {
            if before != after {
                self.remove_place(index, &before);
                self.add_place(index, after);
            }
        }
    }

    /// The processors that an owner's tasks hold now.
    pub(super) fn set_held(&mut self, owner: MapId, held: u32) {
        if held > 0 {
            self.owners.entry(owner).or_default();
        }
        self.change(owner, |owner| owner.held = held);
        self.forget_unused(owner);
    }

    /// Notes that tasks of this owner have had processors for some time.
    pub(super) fn charge(&mut self, owner: MapId, cpus: u32, seconds: f64) {
        let had = (seconds.max(0.0) * 1e6) as u64;
        let had = had.saturating_mul(u64::from(cpus.max(1)));
        self.change(owner, |owner| owner.service = owner.service.saturating_add(had));
    }

    /// Notes that an owner's tasks were sent.
    pub(super) fn serve(&mut self, owner: MapId) {
        if let Some(owner) = self.owners.get(&owner) {
            let time = self.virtual_time.entry(owner.priority).or_default();
            *time = (*time).max(owner.service);
        }
    }

    /// Changes the priority of an owner.
    pub(super) fn set_priority(&mut self, owner: MapId, priority: i32) {
        let begins = self.virtual_time.get(&priority).copied().unwrap_or_default();
        self.change(owner, |owner| {
            if owner.priority != priority {
                owner.priority = priority;
                owner.service = begins;
            }
        });
    }

    /// The first lane after this place, of those that are the first of their shape.
    pub(super) fn next(&self, after: Option<Place>) -> Option<(Place, usize)> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.heads
            .range((from, Bound::Unbounded))
            .next()
            .map(|(place, shape)| (*place, *shape))
    }

    /// When the first lane of this shape was last tried in vain.
    pub(super) fn failed(&self, index: usize) -> Failed {
        let state = self.shapes.get(index).and_then(Option::as_ref);
        state.map(|state| state.failed).unwrap_or_default()
    }
    pub(super) fn set_failed(&mut self, index: usize, failed: Failed) {
        if let Some(state) = self.shapes.get_mut(index).and_then(Option::as_mut) {
            state.failed = failed;
        }
    }

    /// Checks the invariants; for tests and debug builds.
    pub(super) fn check(&self) {
        let mut heads = BTreeMap::new();
        for (index, state) in self.shapes.iter().enumerate() {
            let Some(state) = state else { continue };
            assert_eq!(self.by_shape.get(&state.shape), Some(&index));
            assert!(!state.lanes.is_empty(), "{:?} has no lanes", state.shape);
            heads.extend(state.lanes.first().map(|first| (*first, index)));
        }
        assert_eq!(heads, self.heads);
        for (map, owner) in &self.owners {
            for (lane, index) in &owner.lanes {
                let state = self.shapes.get(*index).and_then(Option::as_ref);
                assert!(
                    state.is_some_and(|state| state.lanes.contains(&owner.place(*map, *lane))),
                    "lane {lane} of {map}"
                );
            }
        }
        assert!(self.owners.values().all(|owner| owner.held > 0 || !owner.lanes.is_empty()));
        let lanes: usize = self.shapes.iter().flatten().map(|state| state.lanes.len()).sum();
        assert_eq!(lanes, self.owners.values().map(|owner| owner.lanes.len()).sum::<usize>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Shape {
        Shape {
            runs: Runs::Python,
            request: None,
            limit_ms: None,
            bound: None,
        }
    }

    fn first(queue: &Queue) -> Option<u32> {
        queue.next(None).map(|(place, _)| place.lane().map.0)
    }

    #[test]
    fn lanes_come_by_priority_then_by_what_their_owner_holds_then_by_what_it_had() {
        let mut queue = Queue::default();
        for (map, priority) in [(1, 0), (2, 0), (3, 5), (4, -1)] {
            queue.insert(LaneId::first(MapId(map)), priority, plain);
        }
        let mut order = Vec::new();
        while let Some(map) = first(&queue) {
            order.push(map);
            queue.check();
            queue.remove(LaneId::first(MapId(map)));
        }
        assert_eq!(order, [3, 1, 2, 4]);
        for map in [1, 2] {
            queue.insert(LaneId::first(MapId(map)), 0, plain);
        }
        queue.set_held(MapId(1), 1);
        assert_eq!(first(&queue), Some(2));
        queue.set_held(MapId(2), 1);
        assert_eq!(first(&queue), Some(1));
        queue.charge(MapId(1), 1, 0.5);
        assert_eq!(first(&queue), Some(2));
        queue.charge(MapId(2), 4, 0.5);
        assert_eq!(first(&queue), Some(1));
        queue.check();
    }

    #[test]
    fn an_owner_that_comes_late_has_no_claim_on_the_past() {
        let mut queue = Queue::default();
        queue.insert(LaneId::first(MapId(1)), 0, plain);
        queue.charge(MapId(1), 1, 3600.0);
        queue.serve(MapId(1));
        queue.insert(LaneId::first(MapId(2)), 0, plain);
        queue.charge(MapId(2), 1, 0.001);
        assert_eq!(first(&queue), Some(1), "the second one has had a turn since it came");
    }

    #[test]
    fn one_lane_of_each_shape_is_tried() {
        let mut queue = Queue::default();
        for map in 1..1000 {
            let time = || Shape {
                limit_ms: Some(u64::from(map % 3)),
                ..plain()
            };
            queue.insert(LaneId::first(MapId(map)), 0, time);
        }
        queue.check();
        let mut tried = Vec::new();
        let mut after = None;
        while let Some((place, _)) = queue.next(after) {
            tried.push(place.lane().map.0);
            after = Some(place);
        }
        assert_eq!(tried, [1, 2, 3]);
        (1..1000).for_each(|map| queue.remove(LaneId::first(MapId(map))));
        queue.check();
        assert_eq!(queue.next(None), None);
    }
}
