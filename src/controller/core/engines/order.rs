//! The order in which engines are offered tasks: idle ones first, then by load; of equal ones, the one that has waited longest.
//!
//! Idle engines are listed by node: a node without a free processor takes all of its idle engines out of the order in one
//! step, and an obstacle in the node is found once for all of them.
use super::nodes::NodeIndex;
use crate::model::EngineUuid;
use std::collections::BTreeSet;

/// Where an engine stands: its node, its load, and the turn of its last assignment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub node: NodeIndex,
    pub load: u32,
    pub turn: u64,
}

#[derive(Debug, Default)]
pub(super) struct Order {
    /// Idle engines of each node, by turn.
    idle: Vec<Idle>,
    /// Nodes that can begin a task on an idle engine, by the turn of the first one.
    nodes: BTreeSet<(u64, NodeIndex)>,
    loaded: BTreeSet<(u32, u64, EngineUuid)>,
    count: usize,
}

#[derive(Debug, Default)]
struct Idle {
    engines: BTreeSet<(u64, EngineUuid)>,
    is_blocked: bool,
}

impl Idle {
    /// The turn of its first engine, if it can begin a task.
    fn first(&self) -> Option<u64> {
        self.engines.first().filter(|_| !self.is_blocked).map(|(turn, _)| *turn)
    }
}

impl Order {
    pub(super) fn insert(&mut self, place: Place, uuid: &EngineUuid) {
        let mut is_new = false;
        match place.load {
            0 => self.change_idle(place.node, |idle| is_new = idle.engines.insert((place.turn, uuid.clone()))),
            load => is_new = self.loaded.insert((load, place.turn, uuid.clone())),
        }
        self.count += usize::from(is_new);
    }

    pub(super) fn remove(&mut self, place: Place, uuid: &EngineUuid) {
        let mut was_there = false;
        match place.load {
            0 => self.change_idle(place.node, |idle| was_there = idle.engines.remove(&(place.turn, uuid.clone()))),
            load => was_there = self.loaded.remove(&(load, place.turn, uuid.clone())),
        }
        self.count -= usize::from(was_there);
    }

    /// Whether the idle engines of this node have no processor to begin a task with.
    pub(super) fn set_blocked(&mut self, node: NodeIndex, is_blocked: bool) {
        if self.idle.get(node).is_some_and(|idle| idle.is_blocked) != is_blocked {
            self.change_idle(node, |idle| idle.is_blocked = is_blocked);
        }
    }

    fn change_idle(&mut self, node: NodeIndex, change: impl FnOnce(&mut Idle)) {
        if node >= self.idle.len() {
            self.idle.resize_with(node + 1, Idle::default);
        }
        let Some(idle) = self.idle.get_mut(node) else { return };
        let before = idle.first();
        change(idle);
        let after = idle.first();
        if before != after {
            before.map(|turn| self.nodes.remove(&(turn, node)));
            after.map(|turn| self.nodes.insert((turn, node)));
        }
    }

    /// All engines here, also those on nodes that are blocked.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The nodes with idle engines that can begin a task.
    pub(super) fn idle_nodes(&self) -> impl Iterator<Item = (NodeIndex, impl Iterator<Item = &EngineUuid>)> {
        let engines = |node: NodeIndex| self.idle.get(node).into_iter().flat_map(|idle| &idle.engines);
        self.nodes
            .iter()
            .map(move |(_, node)| (*node, engines(*node).map(|(_, uuid)| uuid)))
    }

    /// Engines that hold tasks, least loaded first.
    pub(super) fn loaded(&self) -> impl DoubleEndedIterator<Item = &EngineUuid> {
        self.loaded.iter().map(|(_, _, uuid)| uuid)
    }

    /// Whether it is listed there; for checks.
    pub(super) fn contains(&self, place: Place, uuid: &EngineUuid) -> bool {
        match place.load {
            0 => self
                .idle
                .get(place.node)
                .is_some_and(|idle| idle.engines.contains(&(place.turn, uuid.clone()))),
            load => self.loaded.contains(&(load, place.turn, uuid.clone())),
        }
    }

    pub(super) fn check(&self, is_blocked: impl Fn(NodeIndex) -> bool) {
        let listed = self.idle.iter().enumerate();
        let firsts = listed.clone().filter_map(|(node, idle)| Some((idle.first()?, node)));
        assert_eq!(firsts.collect::<BTreeSet<_>>(), self.nodes);
        let idle: usize = listed.clone().map(|(_, idle)| idle.engines.len()).sum();
        assert_eq!(self.count, idle + self.loaded.len());
        for (node, idle) in listed.filter(|(_, idle)| !idle.engines.is_empty()) {
            assert_eq!(idle.is_blocked, is_blocked(node), "node {node}");
        }
    }
}
