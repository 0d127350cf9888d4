//! The order in which work gets engines: tasks of maps and balanced requests of ipyparallel's clients in one queue.
//!
//! The queue's entries are **lanes**: the ready tasks of one owner (a map, or a client's session) that need the same.
//! Lanes come by priority; among equals, those come first whose owner holds fewest processors, then those whose owner has
//! had least of them so far, then those submitted first. So owners share engines equally, whatever their tasks take
//! (max-min fairness now, start-time fair queueing over time).
//!
//! Lanes whose tasks fit the same engines have the same **shape**. If the first of a shape gets no engine, none does: a round
//! tries one lane for each shape, however many wait. After it, engines get more tasks of the lanes that they already hold.
use super::engines::{Claim, Failed, LaneId, MIN_TOLERANCE_US, Runs};
use crate::model::MapId;
use crate::model::resources::Request;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

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
    /// False for one that has waited long enough.
    is_late: bool,
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
    /// What it has had since then.
    charged: u64,
    /// What its tasks with engines are expected to have besides.
    ahead: u64,
    /// Its tasks have waited long enough for the nodes reserved for them.
    is_binding: bool,
    /// Since when it waits, or held nothing.
    since: Duration,
    /// Its lanes with ready tasks, with their shape.
    lanes: Vec<(u32, usize)>,
}

impl Owner {
    /// What it has had, and is about to have.
    fn had(&self) -> u64 {
        self.service.saturating_add(self.ahead)
    }

    fn place(&self, owner: MapId, lane: u32) -> Place {
        Place {
            priority: Reverse(self.priority),
            is_late: !self.is_binding,
            held: self.held,
            service: self.had(),
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
    /// Those that have been charged since their place was last changed.
    charged: Vec<MapId>,
    by_held: BTreeSet<(u32, MapId)>,
    /// Owners that wait, by priority and by what they have had.
    by_service: BTreeSet<(i32, u64, MapId)>,
    /// The first lane of each shape.
    heads: BTreeMap<Place, usize>,
    /// The service of the owner that was served last, by priority: those that come (again) begin with it.
    virtual_time: BTreeMap<i32, u64>,
}

impl Queue {
    /// Notes that a lane has ready tasks; `shape` is asked for if it had none.
    pub(super) fn insert(&mut self, lane: LaneId, priority: i32, now: Duration, shape: impl FnOnce() -> Shape) {
        let owner = self.owners.entry(lane.map).or_default();
        if owner.lanes.iter().any(|(known, _)| *known == lane.lane) {
            return;
        }
        if owner.lanes.is_empty() {
            let begins = self.virtual_time.get(&priority).copied().unwrap_or_default();
            owner.service = owner.service.max(begins);
            owner.priority = priority;
            owner.since = now;
        }
        let shape = shape();
        let index = match self.by_shape.get(&shape) {
            Some(index) => *index,
            None => self.add_shape(shape),
        };
        let Some(owner) = self.owners.get_mut(&lane.map) else { return };
        owner.lanes.push((lane.lane, index));
        self.by_service.insert((owner.priority, owner.had(), lane.map));
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
        if owner.lanes.is_empty() {
            owner.is_binding = false;
            self.by_service.remove(&(owner.priority, owner.had(), lane.map));
        }
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

    /// An owner that neither waits nor holds anything starts from the virtual time when it comes back.
    fn forget_unused(&mut self, map: MapId) {
        if self.owners.get(&map).is_some_and(|owner| owner.lanes.is_empty() && owner.held == 0) {
            self.owners.remove(&map);
        }
    }

    /// The lanes of an owner that have ready tasks.
    pub(super) fn lanes_of(&self, owner: MapId) -> impl Iterator<Item = LaneId> {
        let lanes = self.owners.get(&owner).into_iter().flat_map(|owner| &owner.lanes);
        lanes.map(move |(lane, _)| LaneId { map: owner, lane: *lane })
    }

    fn change(&mut self, map: MapId, change: impl FnOnce(&mut Owner)) {
        let Some(owner) = self.owners.get_mut(&map) else { return };
        let waits = self.by_service.remove(&(owner.priority, owner.had(), map));
        let before: Vec<(usize, Place)> = owner.lanes.iter().map(|(lane, index)| (*index, owner.place(map, *lane))).collect();
        change(owner);
        if waits {
            self.by_service.insert((owner.priority, owner.had(), map));
        }
        let after: Vec<Place> = owner.lanes.iter().map(|(lane, _)| owner.place(map, *lane)).collect();
        for ((index, before), after) in before.into_iter().zip(after) {
            if before != after {
                self.remove_place(index, &before);
                self.add_place(index, after);
            }
        }
    }

    /// The processors that an owner's tasks hold now.
    pub(super) fn set_held(&mut self, owner: MapId, held: u32, now: Duration) {
        if held > 0 {
            self.owners.entry(owner).or_default();
        }
        let before = self.owners.get(&owner).map_or(0, |owner| owner.held);
        self.by_held.remove(&(before, owner));
        if held > 0 {
            self.by_held.insert((held, owner));
        }
        self.change(owner, |owner| {
            owner.held = held;
            owner.since = now;
        });
        self.forget_unused(owner);
    }

    /// Notes that tasks of this owner have had processors for some time; [`Queue::apply_charges`] follows.
    pub(super) fn charge(&mut self, owner: MapId, cpus: u32, seconds: f64) {
        let had = (seconds.max(0.0) * 1e6) as u64;
        let had = had.saturating_mul(u64::from(cpus.max(1)));
        if let Some(known) = self.owners.get_mut(&owner) {
            if known.charged == 0 {
                self.charged.push(owner);
            }
            known.charged = known.charged.saturating_add(had);
        }
    }

    /// Moves owners to the places that [`Queue::charge`] gives them.
    pub(super) fn apply_charges(&mut self) {
        for owner in std::mem::take(&mut self.charged) {
            self.change(owner, |owner| {
                owner.service = owner.service.saturating_add(std::mem::take(&mut owner.charged));
            });
        }
    }

    /// Its tasks with engines need `cpus` processors for `seconds` in all.
    pub(super) fn set_ahead(&mut self, owner: MapId, cpus: u32, seconds: f64) {
        let ahead = (seconds.max(0.0) * 1e6) as u64;
        let ahead = ahead.saturating_mul(u64::from(cpus.max(1)));
        if self.owners.get(&owner).is_some_and(|owner| owner.ahead != ahead) {
            self.change(owner, |owner| owner.ahead = ahead);
        }
    }

    /// Notes that an owner's tasks were sent.
    pub(super) fn serve(&mut self, owner: MapId) {
        if let Some(owner) = self.owners.get(&owner) {
            let time = self.virtual_time.entry(owner.priority).or_default();
            *time = (*time).max(owner.had());
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

    /// The next lanes of a shape after this place.
    pub(super) fn following(&self, index: usize, place: Place, count: usize) -> Vec<LaneId> {
        use std::ops::Bound;
        let state = self.shapes.get(index).and_then(Option::as_ref);
        let after = |state: &'_ ShapeState| {
            let places = state.lanes.range((Bound::Excluded(place), Bound::Unbounded));
            places.take(count).map(Place::lane).collect()
        };
        state.map(after).unwrap_or_default()
    }

    /// When the first lane of this shape was last tried in vain.
    pub(super) fn failed(&self, index: usize) -> Failed {
        let state = self.shapes.get(index).and_then(Option::as_ref);
        state.map(|state| state.failed.clone()).unwrap_or_default()
    }
    pub(super) fn set_failed(&mut self, index: usize, failed: Failed) {
        if let Some(state) = self.shapes.get_mut(index).and_then(Option::as_mut) {
            state.failed = failed;
        }
    }

    /// Whether its tasks have waited long enough: it comes before all others of its priority.
    pub(super) fn set_binding(&mut self, owner: MapId, is_binding: bool) {
        self.change(owner, |owner| owner.is_binding = is_binding);
    }

    /// The claim of an owner to engines, for tasks that need `cpus` processors for `takes_s` seconds.
    pub(super) fn claim(&self, owner: MapId, cpus: u32, takes_s: Option<f64>, now: Duration) -> Claim {
        let takes_us = (2e6 * takes_s.unwrap_or_default()) as u64;
        let tolerance = u64::from(cpus).saturating_mul(takes_us.max(MIN_TOLERANCE_US));
        let owner = self.owners.get(&owner);
        owner.map_or_else(Claim::default, |owner| Claim {
            priority: owner.priority,
            held: owner.held,
            service: owner.had(),
            waited_us: match owner.held {
                0 => now.saturating_sub(owner.since).as_micros() as u64,
                _ => 0,
            },
            tolerance,
            is_binding: owner.is_binding,
        })
    }

    /// Whether a lane has waited long enough: its owner has had least of those that wait, and some of them outweighs.
    pub(super) fn may_bind(&self, owner: MapId, claim: &Claim, cpus: u32) -> bool {
        let priority = claim.priority;
        let mut waiting = self
            .by_service
            .range((priority, 0, MapId(0))..=(priority, u64::MAX, MapId(u32::MAX)));
        let least = waiting.next().map(|(_, service, _)| *service).unwrap_or_default();
        let most = waiting.next_back().map_or(least, |(_, service, _)| *service);
        let best_served = Claim {
            priority,
            held: self.max_held(),
            service: most,
            ..Claim::default()
        };
        let is_first = self.owners.get(&owner).is_some_and(|owner| owner.had() <= least);
        is_first && claim.outweighs(cpus, &best_served)
    }

    /// The most processors that any owner holds.
    pub(super) fn max_held(&self) -> u32 {
        self.by_held.last().map_or(0, |(held, _)| *held)
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
        let waiting = self.owners.iter().filter(|(_, owner)| !owner.lanes.is_empty());
        let by_service: BTreeSet<_> = waiting.map(|(map, owner)| (owner.priority, owner.had(), *map)).collect();
        assert_eq!(by_service, self.by_service);
        assert!(self.owners.values().all(|owner| owner.held > 0 || !owner.lanes.is_empty()));
        let lanes: usize = self.shapes.iter().flatten().map(|state| state.lanes.len()).sum();
        assert_eq!(lanes, self.owners.values().map(|owner| owner.lanes.len()).sum::<usize>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

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
            queue.insert(LaneId::first(MapId(map)), priority, NOW, plain);
        }
        let mut order = Vec::new();
        while let Some(map) = first(&queue) {
            order.push(map);
            queue.check();
            queue.remove(LaneId::first(MapId(map)));
        }
        assert_eq!(order, [3, 1, 2, 4]);
        for map in [1, 2] {
            queue.insert(LaneId::first(MapId(map)), 0, NOW, plain);
        }
        queue.set_held(MapId(1), 1, NOW);
        assert_eq!(first(&queue), Some(2));
        queue.set_held(MapId(2), 1, NOW);
        assert_eq!(first(&queue), Some(1));
        queue.charge(MapId(1), 1, 0.5);
        queue.apply_charges();
        assert_eq!(first(&queue), Some(2));
        queue.charge(MapId(2), 4, 0.5);
        queue.apply_charges();
        assert_eq!(first(&queue), Some(1));
        queue.check();
    }

    #[test]
    fn an_owner_that_comes_late_has_no_claim_on_the_past() {
        let mut queue = Queue::default();
        queue.insert(LaneId::first(MapId(1)), 0, NOW, plain);
        queue.charge(MapId(1), 1, 3600.0);
        queue.apply_charges();
        queue.serve(MapId(1));
        queue.insert(LaneId::first(MapId(2)), 0, NOW, plain);
        queue.charge(MapId(2), 1, 0.001);
        queue.apply_charges();
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
            queue.insert(LaneId::first(MapId(map)), 0, NOW, time);
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
