//! Nodes: what their engines share, and what of it is in use.
//!
//! An engine that holds tasks takes one processor of its node. For tasks that ask for more, an engine gets an allocation: it
//! belongs to one map, and lasts for as long as the engine holds tasks of that map. A node with more engines than processors
//! is full with as many tasks as engines, as long as none asks for more than one processor.
use super::Engine;
use super::cores::{CoresInUse, united};
use super::why_not::{Obstacle, WhyNot};
use crate::model::cores::CoreSet;
use crate::model::engine::EngineFacts;
use crate::model::memory::Memory;
use crate::model::node::{Gpu, NodeFacts, NumaCores};
use crate::model::resources::{Allocation, Request, TaskResources, WHOLE_GPU};
use crate::model::{EngineUuid, MapId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Index of a node. A node without engines keeps its index.
pub(super) type NodeIndex = usize;

#[derive(Debug, Default)]
pub(crate) struct Nodes {
    nodes: Vec<Node>,
    /// By host and job.
    by_name: HashMap<(String, String), NodeIndex>,
    /// The earliest map that waits: what it needs, other maps leave it on one node.
    reserved: Option<Reservation>,
    last_reserved: Option<Reservation>,
}

#[derive(Clone, Debug)]
struct Reservation {
    node: NodeIndex,
    map: MapId,
    request: Request,
}

#[derive(Debug, Default)]
pub(super) struct Node {
    host: String,
    has: NodeFacts,
    engines: BTreeSet<EngineUuid>,
    /// Engines that hold tasks and have no allocation.
    busy: u32,
    /// Engines that hold tasks with a share which this controller, after a restart, does not know yet.
    awaited: BTreeSet<EngineUuid>,
    /// Processors of shares, and the number of shares with more than one.
    cpus: u32,
    wide: u32,
    /// Processors of pinned tasks.
    cores: CoresInUse,
    mem_bytes: u64,
    /// In use of each GPU, in thousandths.
    gpus: Vec<u32>,
    named: BTreeMap<String, u64>,
}

/// An engine's share of its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub map: MapId,
    request: Request,
    /// Index of each GPU, and what is in use of it.
    gpus: Vec<(usize, u32)>,
    cores: CoreSet,
}

impl Share {
    pub(super) fn request(&self) -> &Request {
        &self.request
    }
}

impl Node {
    /// How many processors may be in use: tasks that ask for no more than one may be as many as engines.
    fn max_cpus(&self, is_wide: bool) -> u32 {
        let engines = self.engines.len() as u32;
        match is_wide || self.wide > 0 {
            true if self.has.cpus > 0 => self.has.cpus,
            _ => self.has.cpus.max(engines),
        }
    }

    fn free_cpus(&self, is_wide: bool) -> u32 {
        self.max_cpus(is_wide).saturating_sub(self.cpus.saturating_add(self.busy))
    }

    /// Whether a task that takes these resources leaves what a waiting map needs of them.
    fn leaves(&self, taken: &Request, waiting: &Request) -> bool {
        let wide = waiting.resources.cpus > 1;
        let cpus = self.free_cpus(wide) >= taken.resources.cpus.saturating_add(waiting.resources.cpus);
        let free = self.has.mem_bytes.saturating_sub(self.mem_bytes);
        let mem = taken.mem_bytes == 0 || waiting.mem_bytes == 0 || free >= taken.mem_bytes.saturating_add(waiting.mem_bytes);
        let gpus = taken.resources.gpus.is_zero() || waiting.resources.gpus.is_zero();
        let named = taken.resources.named.keys().all(|name| !waiting.resources.named.contains_key(name));
        let cores = !(taken.resources.pin && waiting.resources.pin)
            || self.cores.free(&self.has.cores) >= taken.resources.cpus.saturating_add(waiting.resources.cpus);
        cpus && cores && mem && gpus && named
    }

    /// Why an engine cannot take a task that needs one processor: it holds some already, or one is free.
    fn obstacle_to_one_cpu(&self, is_idle: bool) -> Option<Obstacle> {
        if !self.awaited.is_empty() {
            return Some(Obstacle::Awaited);
        }
        // Direct requests may have taken more than there is.
        let used = self.cpus.saturating_add(self.busy).saturating_add(u32::from(is_idle));
        let is_free = self.cpus == 0 || used <= self.max_cpus(false);
        (!is_free).then_some(Obstacle::Cpus { free: 0 })
    }

    /// Why such a task cannot start now. One of the node's engines, which takes no other tasks meanwhile, would run it.
    fn obstacle(&self, request: &Request) -> Option<Obstacle> {
        if !self.could_run(request) {
            return Some(Obstacle::TooSmall);
        }
        if !self.awaited.is_empty() {
            return Some(Obstacle::Awaited);
        }
        let free = self.free_cpus(request.resources.cpus > 1);
        if request.resources.cpus > free {
            return Some(Obstacle::Cpus { free });
        }
        let free = self.cores.free(&self.has.cores);
        if request.resources.pin && request.resources.cpus > free {
            return Some(Obstacle::Cores { free });
        }
        let free = self.has.mem_bytes.saturating_sub(self.mem_bytes);
        if request.mem_bytes > free && self.has.mem_bytes > 0 {
            return Some(Obstacle::Memory { free });
        }
        if self.choose_gpus(request).is_none() {
            let free = self.gpus.iter().filter(|used| **used == 0).count() as u32;
            return Some(Obstacle::Gpus { free });
        }
        request.resources.named.iter().find_map(|(name, count)| {
            let has = self.has.named.get(name).copied().unwrap_or_default();
            let free = has.saturating_sub(self.named.get(name).copied().unwrap_or_default());
            (*count > free).then(|| Obstacle::Named { name: name.clone(), free })
        })
    }

    /// Whole GPUs are unused ones; a fraction goes to the fullest GPU on which it fits.
    fn choose_gpus(&self, request: &Request) -> Option<Vec<(usize, u32)>> {
        let wanted = request.resources.gpus.thousandths;
        if wanted.is_multiple_of(WHOLE_GPU) {
            let count = (wanted / WHOLE_GPU) as usize;
            let unused = self.gpus.iter().enumerate().filter(|(_, used)| **used == 0);
            let chosen: Vec<(usize, u32)> = unused.map(|(index, _)| (index, WHOLE_GPU)).take(count).collect();
            return (chosen.len() == count).then_some(chosen);
        }
        let fits = self
            .gpus
            .iter()
            .enumerate()
            .filter(|(_, used)| used.saturating_add(wanted) <= WHOLE_GPU);
        fits.max_by_key(|(index, used)| (**used, std::cmp::Reverse(*index)))
            .map(|(index, _)| vec![(index, wanted)])
    }

    fn could_run(&self, request: &Request) -> bool {
        !self.engines.is_empty() && !self.has.is_empty() && request.fits(&self.has, self.engines.len() as u32)
    }

    /// Processors to which such a task would be bound, of those of an engine, near its GPUs. None if there are not enough.
    fn choose_cores(&self, request: &Request, gpus: &[(usize, u32)], of_engine: &[NumaCores]) -> Option<CoreSet> {
        if !request.resources.pin {
            return Some(CoreSet::default());
        }
        let near = gpus.iter().filter_map(|(index, _)| self.has.gpus.get(*index)?.numa);
        let near: Vec<u32> = near.collect();
        self.cores.choose(of_engine, &near, request.resources.cpus as usize)
    }

    fn take(&mut self, map: MapId, request: &Request, of_engine: &[NumaCores]) -> Option<Share> {
        let gpus = self.choose_gpus(request)?;
        let share = Share {
            map,
            request: request.clone(),
            cores: self.choose_cores(request, &gpus, of_engine)?,
            gpus,
        };
        self.add(&share);
        Some(share)
    }

    fn add(&mut self, share: &Share) {
        // What a reconnected engine reports is not checked against what the node has.
        self.cpus = self.cpus.saturating_add(share.request.resources.cpus);
        self.wide += u32::from(share.request.resources.cpus > 1);
        self.cores.add(&share.cores);
        self.mem_bytes = self.mem_bytes.saturating_add(share.request.mem_bytes);
        for (index, used) in &share.gpus {
            if let Some(in_use) = self.gpus.get_mut(*index) {
                *in_use = in_use.saturating_add(*used);
            }
        }
        for (name, count) in &share.request.resources.named {
            let in_use = self.named.entry(name.clone()).or_default();
            *in_use = in_use.saturating_add(*count);
        }
    }

    fn give_back(&mut self, share: &Share) {
        self.cpus = self.cpus.saturating_sub(share.request.resources.cpus);
        self.wide = self.wide.saturating_sub(u32::from(share.request.resources.cpus > 1));
        self.cores.remove(&share.cores);
        self.mem_bytes = self.mem_bytes.saturating_sub(share.request.mem_bytes);
        for (index, used) in &share.gpus {
            if let Some(in_use) = self.gpus.get_mut(*index) {
                *in_use = in_use.saturating_sub(*used);
            }
        }
        for (name, count) in &share.request.resources.named {
            if let Some(in_use) = self.named.get_mut(name) {
                *in_use = in_use.saturating_sub(*count);
            }
        }
    }
}

impl Nodes {
    /// Adds an engine to its node. All engines of a node report the same; the last one counts, unless GPUs are in use.
    pub(super) fn join(&mut self, facts: &EngineFacts) -> NodeIndex {
        let name = (facts.host.clone(), facts.job.clone());
        let nodes = &mut self.nodes;
        let index = *self.by_name.entry(name).or_insert_with(|| {
            nodes.push(Node {
                host: facts.host.clone(),
                ..Node::default()
            });
            nodes.len() - 1
        });
        let node = &mut self.nodes[index];
        let cores = match node.engines.is_empty() {
            true => facts.node.cores.clone(),
            false => united(&node.has.cores, &facts.node.cores),
        };
        node.engines.insert(facts.uuid.clone());
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
        index
    }

    pub(super) fn leave(&mut self, index: NodeIndex, engine: &EngineUuid) {
        if let Some(node) = self.nodes.get_mut(index) {
            node.engines.remove(engine);
            node.awaited.remove(engine);
        }
    }

    pub(super) fn set_busy(&mut self, index: NodeIndex, is_busy: bool) {
        if let Some(node) = self.nodes.get_mut(index) {
            node.busy = if is_busy { node.busy + 1 } else { node.busy.saturating_sub(1) };
        }
    }

    pub(super) fn take(&mut self, index: NodeIndex, map: MapId, request: &Request, of_engine: &[NumaCores]) -> Option<Share> {
        let node = self.nodes.get_mut(index).filter(|node| node.obstacle(request).is_none())?;
        node.take(map, request, of_engine)
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
        if let Some(node) = self.nodes.get_mut(index) {
            node.awaited.remove(engine);
        }
    }

    /// Notes the share that an engine has had since before this controller started.
    pub(super) fn take_again(&mut self, index: NodeIndex, map: MapId, request: &Request, allocation: &Allocation) -> Option<Share> {
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
            map,
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
        }
    }

    /// Whether an engine of this node may take tasks that need one processor each: it holds some already, or one is free.
    pub(super) fn admits(&self, index: NodeIndex, is_idle: bool, map: Option<MapId>) -> bool {
        let Some(node) = self.nodes.get(index) else { return true };
        let taken = || {
            let mut taken = Request::default();
            taken.resources.cpus = u32::from(is_idle);
            taken
        };
        node.obstacle_to_one_cpu(is_idle).is_none() && (self.reserved.is_none() || self.leaves_reserved(index, map, &taken()))
    }

    /// Why this node gives nothing to such a task of one of its engines, which is idle or not.
    pub(super) fn why_not(&self, index: NodeIndex, is_idle: bool, map: MapId, request: Option<&Request>) -> Option<WhyNot> {
        let node = self.nodes.get(index)?;
        let one_cpu = || Request {
            resources: TaskResources {
                cpus: u32::from(is_idle),
                ..TaskResources::default()
            },
            mem_bytes: 0,
        };
        let taken = match request {
            Some(request) => request.clone(),
            None => one_cpu(),
        };
        let obstacle = match request {
            Some(request) => node.obstacle(request),
            None => node.obstacle_to_one_cpu(is_idle),
        };
        let reserved = || {
            let holder = self.reserved.as_ref().map(|r| r.map)?;
            (!self.leaves_reserved(index, Some(map), &taken)).then_some(WhyNot::Reserved { map: holder })
        };
        obstacle.map(WhyNot::Node).or_else(reserved)
    }

    /// Whether tasks of this map leave enough for the map that has a reservation there.
    pub(super) fn leaves_reserved(&self, index: NodeIndex, map: Option<MapId>, taken: &Request) -> bool {
        let Some(reservation) = self.reserved.as_ref().filter(|r| r.node == index && map != Some(r.map)) else {
            return true;
        };
        self.nodes.get(index).is_none_or(|node| node.leaves(taken, &reservation.request))
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

    /// Nodes with room for such a task, and their engines.
    pub(super) fn with_room(&self, request: &Request) -> impl Iterator<Item = (NodeIndex, &BTreeSet<EngineUuid>)> {
        let nodes = self.nodes.iter().enumerate();
        let roomy = nodes.filter(|(_, node)| !node.engines.is_empty() && node.obstacle(request).is_none());
        roomy.map(|(index, node)| (index, &node.engines))
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
            let unused = node.gpus.iter().filter(|used| **used == 0).count();
            parts.push(format!("{unused} of {} gpus", node.gpus.len()));
        }
        parts.extend(node.has.named.iter().map(|(name, has)| {
            let used = node.named.get(name).copied().unwrap_or_default();
            format!("{} of {has} {name}", has.saturating_sub(used))
        }));
        parts.join(", ")
    }

    /// Begins a round of dispatching: the earliest map that has to wait reserves a node.
    pub(super) fn begin_round(&mut self) {
        self.last_reserved = self.reserved.take();
    }

    /// Reserves a node for a map that waits, unless an earlier map has a reservation: the same as in the last round, else the
    /// one with most processors free.
    pub(super) fn reserve(&mut self, map: MapId, request: &Request, may: impl Fn(&EngineUuid) -> bool) {
        if self.reserved.is_some() {
            return;
        }
        let could = |index: NodeIndex| {
            let node = self.nodes.get(index);
            node.is_some_and(|node| node.could_run(request) && node.engines.iter().any(&may))
        };
        let last = self.last_reserved.as_ref().filter(|last| last.map == map && could(last.node));
        let free = |index: &NodeIndex| self.nodes[*index].free_cpus(true);
        let best = || {
            (0..self.nodes.len())
                .filter(|index| could(*index))
                .max_by_key(|index| (free(index), std::cmp::Reverse(*index)))
        };
        let node = last.map(|last| last.node).or_else(best);
        self.reserved = node.map(|node| Reservation {
            node,
            map,
            request: request.clone(),
        });
    }

    pub(super) fn has(&self, index: NodeIndex) -> Option<&NodeFacts> {
        self.nodes.get(index).map(|node| &node.has)
    }

    /// Whether any node could ever run such a task; true without engines.
    pub(crate) fn could_run(&self, request: &Request) -> bool {
        let mut nodes = self.nodes.iter().filter(|node| !node.engines.is_empty()).peekable();
        nodes.peek().is_none() || nodes.any(|node| node.could_run(request))
    }

    /// The node with most processors, then memory: its host and what it has.
    pub(crate) fn largest(&self) -> Option<(&str, &NodeFacts)> {
        let named = self.nodes.iter().map(|node| (node.host.as_str(), node));
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
