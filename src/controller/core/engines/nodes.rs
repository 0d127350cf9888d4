//! Nodes: what their engines share, and what of it is in use.
//!
//! An engine that holds tasks takes one processor of its node. For tasks that ask for more, an engine gets an allocation: it
//! belongs to one map, and lasts for as long as the engine holds tasks of that map. A node with more engines than processors
//! is full with as many tasks as engines, as long as none asks for more than one processor.
use super::Engine;
use super::cores::united;
use super::node::{Node, Share};
use super::why_not::{LaneId, Obstacle, Unit, WhyNot};
use crate::model::EngineUuid;
use crate::model::engine::EngineFacts;
use crate::model::memory::Memory;
use crate::model::node::{Gpu, NodeFacts, NumaCores};
use crate::model::resources::{Allocation, GpuAmount, Request, WHOLE_GPU};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// Index of a node. A node without engines keeps its index.
pub(super) type NodeIndex = usize;

#[derive(Debug, Default)]
pub(crate) struct Nodes {
    nodes: Vec<Node>,
    /// Indices of nodes that have lost their last engine.
    unused: Vec<NodeIndex>,
    /// By host and job.
    by_name: HashMap<(String, String), NodeIndex>,
    /// What waiting lanes need, in their order: lanes after them leave it on one node each.
    reserved: Vec<Reservation>,
    /// The reservations of the last round.
    last_reserved: Vec<Reservation>,
    /// Increases with each gain of a node: with all that may let a task start which could not before.
    clock: u64,
    is_clock_read: bool,
    by_gain: BTreeSet<(u64, NodeIndex)>,
    /// The clock when an engine last joined or changed what it may run.
    changed: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Reservation {
    pub node: NodeIndex,
    pub lane: LaneId,
    pub request: Request,
    priority: i32,
    is_binding: bool,
    /// When its task can start, as far as that is known, and the node's gain at that time.
    pub starts: Option<Duration>,
    gained: u64,
}

impl Reservation {
    /// Whether such a task, of a lane that comes after this one, has to leave it what it needs.
    fn binds(&self, unit: &Unit) -> bool {
        self.is_binding || self.priority > unit.claim.priority
    }
}

/// The maximum number of reservations.
const MAX_RESERVATIONS: usize = 32;

impl Nodes {
    /// Adds an engine to its node. All engines of a node report the same; the last one counts, unless GPUs are in use.
    pub(super) fn join(&mut self, facts: &EngineFacts) -> NodeIndex {
        let name = (facts.host.clone(), facts.job.clone());
        let index = match self.by_name.get(&name) {
            Some(index) => *index,
            None => self.add(name),
        };
        let Some(node) = self.nodes.get_mut(index) else { return index };
        let cores = match node.engines.is_empty() {
            true => facts.node.cores.clone(),
            false => united(&node.has.cores, &facts.node.cores),
        };
        node.engines.insert(facts.uuid.clone());
        node.free.insert(facts.uuid.clone());
        let gpus = match node.gpus.iter().all(|used| *used == 0) {
            true => facts.node.gpus.clone(),
            false => std::mem::take(&mut node.has.gpus),
        };
        node.gpus.resize(gpus.len(), 0);
        node.has = NodeFacts {
            gpus,
            cores,
            ..facts.node.clone()
        };
        self.note_gain(index);
        self.changed = self.clock;
        index
    }

    fn add(&mut self, name: (String, String)) -> NodeIndex {
        let index = self.unused.pop().unwrap_or(self.nodes.len());
        self.by_name.insert(name.clone(), index);
        let node = Node { name, ..Node::default() };
        match self.nodes.get_mut(index) {
            Some(unused) => *unused = node,
            None => self.nodes.push(node),
        }
        index
    }

    pub(super) fn leave(&mut self, index: NodeIndex, engine: &EngineUuid) {
        let Some(node) = self.nodes.get_mut(index) else { return };
        node.engines.remove(engine);
        node.free.remove(engine);
        node.awaited.remove(engine);
        if !node.engines.is_empty() {
            return self.note_gain(index);
        }
        let node = std::mem::take(node);
        self.by_gain.remove(&(node.gained, index));
        self.by_name.remove(&node.name);
        self.reserved.retain(|reservation| reservation.node != index);
        self.unused.push(index);
    }

    /// Notes that this node has more to give.
    pub(super) fn note_gain(&mut self, index: NodeIndex) {
        let Some(node) = self.nodes.get_mut(index) else { return };
        if node.gained == self.clock && !self.is_clock_read && self.clock > 0 {
            return;
        }
        self.by_gain.remove(&(node.gained, index));
        self.clock += 1;
        self.is_clock_read = false;
        node.gained = self.clock;
        self.by_gain.insert((self.clock, index));
    }

    /// Notes that an engine of this node may run other work than before.
    pub(super) fn note_change(&mut self, index: NodeIndex) {
        self.note_gain(index);
        self.changed = self.clock;
    }

    pub(super) fn read_clock(&mut self) -> u64 {
        self.is_clock_read = true;
        self.clock
    }
    pub(super) fn changed(&self) -> u64 {
        self.changed
    }

    /// Nodes that have gained since then, and those that are or were reserved.
    pub(super) fn worth_a_look(&self, since: u64) -> impl Iterator<Item = NodeIndex> {
        let gained = self.by_gain.range((since.saturating_add(1), 0)..).map(|(_, index)| *index);
        let reserved = self.reserved.iter().map(|reservation| reservation.node);
        let others = reserved.chain(self.last_reserved.iter().map(|reservation| reservation.node));
        gained.chain(others.filter(move |index| self.nodes.get(*index).is_some_and(|node| node.gained <= since)))
    }

    pub(super) fn engines(&self, index: NodeIndex) -> impl Iterator<Item = &EngineUuid> {
        self.nodes.get(index).into_iter().flat_map(|node| &node.engines)
    }
    /// The engines that could begin tasks which get a share.
    pub(super) fn free_engines(&self, index: NodeIndex) -> impl Iterator<Item = &EngineUuid> {
        self.nodes.get(index).into_iter().flat_map(|node| &node.free)
    }
    pub(super) fn set_free(&mut self, index: NodeIndex, engine: &EngineUuid, is_free: bool) {
        let Some(node) = self.nodes.get_mut(index) else { return };
        match is_free {
            true => drop(node.free.insert(engine.clone())),
            false => drop(node.free.remove(engine)),
        }
        if is_free {
            self.note_gain(index);
        }
    }

    pub(super) fn set_busy(&mut self, index: NodeIndex, is_busy: bool) {
        let Some(node) = self.nodes.get_mut(index) else { return };
        node.busy = if is_busy { node.busy + 1 } else { node.busy.saturating_sub(1) };
        if !is_busy {
            self.note_gain(index);
        }
    }

    /// Whether idle engines of this node cannot begin tasks that need one processor.
    pub(super) fn is_blocking(&self, index: NodeIndex) -> bool {
        self.obstacle_to_one_cpu(index, true).is_some()
    }

    pub(super) fn take(&mut self, index: NodeIndex, lane: LaneId, request: &Request, of_engine: &[NumaCores]) -> Option<Share> {
        let node = self.nodes.get_mut(index).filter(|node| node.obstacle(request).is_none())?;
        node.take(lane, request, of_engine)
    }

    /// An engine may be bound to a part of its node's processors: whether it lacks free ones for a task to be pinned.
    pub(super) fn lacks_cores(&self, engine: &Engine, request: &Request) -> Option<WhyNot> {
        let cores = &engine.facts().node.cores;
        let free = self.nodes.get(engine.node()).map_or(0, |node| node.cores.free(cores));
        let is_enough = !request.resources.pin || request.resources.cpus <= free;
        (!is_enough).then_some(WhyNot::Node(Obstacle::Cores { free }))
    }

    /// The node gives nothing until this engine has reported its share, or left.
    pub(super) fn await_share(&mut self, index: NodeIndex, engine: &EngineUuid) {
        if let Some(node) = self.nodes.get_mut(index) {
            node.awaited.insert(engine.clone());
        }
    }

    pub(super) fn end_wait(&mut self, index: NodeIndex, engine: &EngineUuid) {
        if self.nodes.get_mut(index).is_some_and(|node| node.awaited.remove(engine)) {
            self.note_gain(index);
        }
    }

    /// Notes the share that an engine has had since before this controller started.
    pub(super) fn take_again(&mut self, index: NodeIndex, lane: LaneId, request: &Request, allocation: &Allocation) -> Option<Share> {
        let node = self.nodes.get_mut(index)?;
        let named = |gpu: &Gpu| {
            node.has
                .gpus
                .iter()
                .position(|known| known.name == gpu.name && known.vendor == gpu.vendor)
        };
        let each = request.resources.gpus.thousandths.min(WHOLE_GPU);
        let gpus = allocation.gpus.iter().filter_map(named).map(|index| (index, each));
        let share = Share {
            lane,
            request: request.clone(),
            gpus: gpus.collect(),
            cores: allocation.cores.clone(),
        };
        node.add(&share);
        Some(share)
    }

    pub(super) fn give_back(&mut self, index: NodeIndex, share: &Share) {
        if let Some(node) = self.nodes.get_mut(index) {
            node.give_back(share);
            self.note_gain(index);
        }
    }

    pub(super) fn obstacle(&self, index: NodeIndex, request: &Request) -> Option<Obstacle> {
        self.nodes
            .get(index)
            .map_or(Some(Obstacle::TooSmall), |node| node.obstacle(request))
    }
    /// Why an engine there, idle or not, cannot take a task that needs one processor.
    pub(super) fn obstacle_to_one_cpu(&self, index: NodeIndex, is_idle: bool) -> Option<Obstacle> {
        self.nodes.get(index)?.obstacle_to_one_cpu(is_idle)
    }

    // ---- reservations

    /// Those on this node that come before such a task, and bind it.
    fn reserved_before(&self, index: NodeIndex, unit: &Unit) -> impl Iterator<Item = &Reservation> {
        let before = self.reserved.iter().take_while(move |reservation| reservation.lane != unit.lane);
        before.filter(move |reservation| reservation.node == index && reservation.binds(unit))
    }

    /// Reservations that come before such a task, and that it would delay if it took these resources.
    pub(super) fn delayed_reservations(&self, index: NodeIndex, taken: &Request, unit: &Unit) -> impl Iterator<Item = &Reservation> {
        let before = self.reserved_before(index, unit);
        before.filter(move |reservation| self.nodes.get(index).is_some_and(|node| !node.leaves(taken, &reservation.request)))
    }

    /// The lane before such a task that could start sooner if this engine got no more tasks.
    pub(super) fn keeps_from_refill(&self, index: NodeIndex, share: Option<&Share>, unit: &Unit) -> Option<WhyNot> {
        let node = self.nodes.get(index)?;
        let mut before = self.reserved_before(index, unit);
        let holder = before.find(|reservation| node.helps(share, &reservation.request))?;
        Some(WhyNot::Reserved { map: holder.lane.map })
    }

    /// Whether a lane with a higher priority has reserved this node, and could start sooner if this engine got no more tasks.
    pub(super) fn is_reserved_above(&self, priority: i32, index: NodeIndex, share: Option<&Share>) -> bool {
        let here = self
            .reserved
            .iter()
            .filter(|reserved| reserved.node == index && reserved.priority > priority);
        let node = self.nodes.get(index);
        node.is_some_and(|node| here.into_iter().any(|reserved| node.helps(share, &reserved.request)))
    }

    /// When such a task could start, if engines end then what they hold: with their share, or one processor.
    pub(super) fn start_on<'a>(
        &self,
        index: NodeIndex,
        request: &Request,
        ends: impl Iterator<Item = (Option<Duration>, Option<&'a Share>, bool)>,
    ) -> Option<Duration> {
        let mut node = self.nodes.get(index)?.clone();
        for (end, share, uses_one_cpu) in ends {
            let end = end?;
            node.busy -= u32::from(uses_one_cpu).min(node.busy);
            share.into_iter().for_each(|share| node.give_back(share));
            if node.obstacle(request).is_none() {
                return Some(end);
            }
        }
        None
    }

    /// Begins a round of dispatching: lanes that have to wait reserve nodes.
    pub(super) fn begin_round(&mut self) {
        self.last_reserved.clear();
        self.last_reserved.append(&mut self.reserved);
    }

    /// The node that such a task waits for: one of `last` if it could run there, else the one without reservation that has most
    /// processors free; none of `reserved`. Only nodes with an engine that `could` take it.
    pub(super) fn choose_to_reserve(
        &self,
        request: &Request,
        last: &mut Vec<NodeIndex>,
        reserved: &[NodeIndex],
        could: impl Fn(&EngineUuid) -> bool,
    ) -> Option<NodeIndex> {
        if !self.may_reserve() {
            return None;
        }
        let is_able = |index: &NodeIndex| {
            let node = self.nodes.get(*index);
            node.is_some_and(|node| node.could_run(request) && node.engines.iter().any(&could))
        };
        while !last.is_empty() {
            let node = last.remove(0);
            if is_able(&node) {
                return Some(node);
            }
        }
        let is_reserved = |index: NodeIndex| self.reserved.iter().any(|reservation| reservation.node == index);
        let rank = |index: &NodeIndex| {
            let free = self.nodes.get(*index).map(|node| node.free_cpus(true));
            (!is_reserved(*index), free, std::cmp::Reverse(*index))
        };
        let others = (0..self.nodes.len()).filter(|index| !reserved.contains(index));
        others.filter(is_able).max_by_key(rank)
    }

    pub(super) fn has_reservations(&self) -> bool {
        !self.reserved.is_empty()
    }
    pub(super) fn reserved_priorities(&self) -> impl Iterator<Item = i32> {
        self.reserved.iter().map(|reserved| reserved.priority)
    }
    pub(super) fn may_reserve(&self) -> bool {
        self.reserved.len() < MAX_RESERVATIONS
    }

    /// When such a task could start on a node, as found in the last round, if nothing has ended there since.
    pub(super) fn known_start(&self, node: NodeIndex, unit: &Unit) -> Option<Option<Duration>> {
        let gained = self.nodes.get(node)?.gained;
        let last = self.last_reserved.iter().find(|last| last.node == node && last.lane == unit.lane);
        last.filter(|last| last.gained == gained).map(|last| last.starts)
    }

    pub(super) fn reserve(&mut self, node: NodeIndex, unit: &Unit, request: &Request, starts: Option<Duration>) {
        self.reserved.push(Reservation {
            starts,
            gained: self.nodes.get(node).map_or(0, |node| node.gained),
            node,
            lane: unit.lane,
            priority: unit.claim.priority,
            is_binding: unit.claim.is_binding,
            request: request.clone(),
        });
    }

    /// What the tasks of this share may use.
    pub(super) fn allocation(&self, index: NodeIndex, share: &Share) -> Allocation {
        let gpus = self.nodes.get(index).map_or(&[][..], |node| &node.has.gpus);
        Allocation {
            cpus: share.request.resources.cpus,
            gpus: share.gpus.iter().filter_map(|(gpu, _)| gpus.get(*gpu).cloned()).collect(),
            cores: share.cores.clone(),
        }
    }

    /// The memory of the largest node that could run such a task, however much of it the task asked for; None if unknown.
    pub(crate) fn max_memory(&self, request: &Request) -> Option<u64> {
        let any = Request {
            mem_bytes: 0,
            ..request.clone()
        };
        let able = self.nodes.iter().filter(|node| node.could_run(&any));
        able.map(|node| node.has.mem_bytes).max().filter(|_| {
            let unknown = |node: &Node| node.has.mem_bytes == 0 && node.could_run(&any);
            !self.nodes.iter().any(unknown)
        })
    }

    /// Whether this node could run such a task if it ran nothing else.
    pub(super) fn could_run_on(&self, index: NodeIndex, request: &Request) -> bool {
        self.nodes.get(index).is_some_and(|node| node.could_run(request))
    }

    /// What is free of a node: `0 of 4 cpus, 8G of 16G, 1 of 2 gpus, 0 of 1 licence`; empty if nothing is known about it.
    pub(super) fn free(&self, index: NodeIndex) -> String {
        let Some(node) = self.nodes.get(index) else { return String::new() };
        let size = |bytes| Memory { bytes }.rounded();
        let mut parts = Vec::new();
        if node.has.cpus > 0 {
            let used = node.cpus.saturating_add(node.busy);
            parts.push(format!("{} of {} cpus", node.has.cpus.saturating_sub(used), node.has.cpus));
        }
        if node.has.mem_bytes > 0 {
            let free = node.has.mem_bytes.saturating_sub(node.mem_bytes);
            parts.push(format!("{} of {}", size(free), size(node.has.mem_bytes)));
        }
        if !node.gpus.is_empty() {
            let thousandths = node.gpus.iter().map(|used| WHOLE_GPU.saturating_sub(*used)).sum();
            parts.push(format!("{} of {} gpus", GpuAmount { thousandths }, node.gpus.len()));
        }
        parts.extend(node.has.named.iter().map(|(name, has)| {
            let used = node.named.get(name).copied().unwrap_or_default();
            format!("{} of {has} {name}", has.saturating_sub(used))
        }));
        parts.join(", ")
    }

    pub(super) fn has(&self, index: NodeIndex) -> Option<&NodeFacts> {
        self.nodes.get(index).map(|node| &node.has)
    }

    /// Whether any node could ever run such a task; true without engines.
    pub(crate) fn could_run(&self, request: &Request) -> bool {
        let mut nodes = self.nodes.iter().filter(|node| !node.engines.is_empty()).peekable();
        nodes.peek().is_none() || nodes.any(|node| node.could_run(request))
    }

    /// Whether any node has a resource with this name.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.nodes.iter().any(|node| node.has.named.contains_key(name))
    }

    /// The node with most processors, then memory: its host and what it has.
    pub(crate) fn largest(&self) -> Option<(&str, &NodeFacts)> {
        let named = self.nodes.iter().map(|node| (node.name.0.as_str(), node));
        let largest = named
            .filter(|(_, node)| !node.engines.is_empty() && !node.has.is_empty())
            .max_by_key(|(host, node)| (node.has.gpus.len(), node.has.cpus, node.has.mem_bytes, std::cmp::Reverse(*host)));
        largest.map(|(host, node)| (host, &node.has))
    }

    /// Checks that the sums are those of the engines; for tests and debug builds.
    pub(super) fn check<'a>(&self, engines: impl Iterator<Item = &'a Engine>) {
        let mut sums: Vec<Node> = self
            .nodes
            .iter()
            .map(|node| Node {
                gpus: vec![0; node.gpus.len()],
                ..Node::default()
            })
            .collect();
        for engine in engines {
            let sum = &mut sums[engine.node()];
            let is_free = self.nodes[engine.node()].free.contains(&engine.facts().uuid);
            assert_eq!(is_free, engine.is_free_for_share());
            sum.busy += u32::from(engine.uses_one_cpu());
            if let Some(share) = engine.share() {
                sum.add(share);
            }
        }
        for (node, sum) in self.nodes.iter().zip(sums) {
            assert_eq!(
                (node.busy, node.cpus, node.mem_bytes, &node.gpus, &node.cores),
                (sum.busy, sum.cpus, sum.mem_bytes, &sum.gpus, &sum.cores)
            );
            assert!(node.gpus.iter().all(|used| *used <= WHOLE_GPU), "{node:?}");
            for (name, used) in &node.named {
                assert_eq!(*used, sum.named.get(name).copied().unwrap_or_default());
            }
        }
    }
}
