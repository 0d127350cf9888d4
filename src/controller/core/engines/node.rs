//! A node: what it has, and what of it is in use.
use super::cores::CoresInUse;
use super::why_not::{LaneId, Obstacle};
use crate::model::EngineUuid;
use crate::model::cores::CoreSet;
use crate::model::node::{NodeFacts, NumaCores};
use crate::model::resources::{Request, WHOLE_GPU};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    pub(super) name: (String, String),
    pub(super) has: NodeFacts,
    pub(super) engines: BTreeSet<EngineUuid>,
    /// The engines that could begin tasks which get a share.
    pub(super) free: BTreeSet<EngineUuid>,
    pub(super) gained: u64,
    /// Engines that hold tasks and have no allocation.
    pub(super) busy: u32,
    /// Engines that hold tasks with a share which this controller, after a restart, does not know yet.
    pub(super) awaited: BTreeSet<EngineUuid>,
    /// Processors of shares, and the number of shares with more than one.
    pub(super) cpus: u32,
    pub(super) wide: u32,
    /// Processors of pinned tasks.
    pub(super) cores: CoresInUse,
    pub(super) mem_bytes: u64,
    /// In use of each GPU, in thousandths.
    pub(super) gpus: Vec<u32>,
    pub(super) named: BTreeMap<String, u64>,
}

/// An engine's share of its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub lane: LaneId,
    pub(super) request: Request,
    /// Index of each GPU, and what is in use of it.
    pub(super) gpus: Vec<(usize, u32)>,
    pub(super) cores: CoreSet,
}

impl Share {
    pub(super) fn request(&self) -> &Request {
        &self.request
    }
}

impl Node {
    /// How many processors may be in use: tasks that ask for no more than one may be as many as engines.
    pub(super) fn max_cpus(&self, is_wide: bool) -> u32 {
        let engines = self.engines.len() as u32;
        match is_wide || self.wide > 0 {
            true if self.has.cpus > 0 => self.has.cpus,
            _ => self.has.cpus.max(engines),
        }
    }

    pub(super) fn free_cpus(&self, is_wide: bool) -> u32 {
        self.max_cpus(is_wide).saturating_sub(self.cpus.saturating_add(self.busy))
    }

    /// Whether a task that takes these resources leaves what a waiting map needs of them.
    pub(super) fn leaves(&self, taken: &Request, waiting: &Request) -> bool {
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

    /// Whether a waiting task could start sooner if this engine, with its share, ended what it holds and got no more.
    pub(super) fn helps(&self, share: Option<&Share>, waiting: &Request) -> bool {
        match self.obstacle(waiting) {
            // It needs an engine.
            None | Some(Obstacle::Cpus { .. }) => true,
            Some(Obstacle::TooSmall | Obstacle::Awaited) => false,
            Some(Obstacle::Cores { .. }) => share.is_some_and(|share| !share.cores.is_empty()),
            Some(Obstacle::Memory { .. }) => share.is_some_and(|share| share.request.mem_bytes > 0),
            Some(Obstacle::Gpus { .. }) => share.is_some_and(|share| !share.gpus.is_empty()),
            Some(Obstacle::Named { name, .. }) => share.is_some_and(|share| share.request.resources.named.contains_key(&name)),
        }
    }

    /// Why an engine cannot take a task that needs one processor: it holds some already, or one is free.
    pub(super) fn obstacle_to_one_cpu(&self, is_idle: bool) -> Option<Obstacle> {
        if !self.awaited.is_empty() {
            return Some(Obstacle::Awaited);
        }
        // Direct requests may have taken more than there is.
        let used = self.cpus.saturating_add(self.busy).saturating_add(u32::from(is_idle));
        let is_free = self.cpus == 0 || used <= self.max_cpus(false);
        (!is_free).then_some(Obstacle::Cpus { free: 0 })
    }

    /// Why such a task cannot start now. One of the node's engines, which takes no other tasks meanwhile, would run it.
    pub(super) fn obstacle(&self, request: &Request) -> Option<Obstacle> {
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
    pub(super) fn choose_gpus(&self, request: &Request) -> Option<Vec<(usize, u32)>> {
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

    pub(super) fn could_run(&self, request: &Request) -> bool {
        !self.engines.is_empty() && !self.has.is_empty() && request.fits(&self.has, self.engines.len() as u32)
    }

    /// Processors to which such a task would be bound, of those of an engine, near its GPUs. None if there are not enough.
    pub(super) fn choose_cores(&self, request: &Request, gpus: &[(usize, u32)], of_engine: &[NumaCores]) -> Option<CoreSet> {
        if !request.resources.pin {
            return Some(CoreSet::default());
        }
        let near = gpus.iter().filter_map(|(index, _)| self.has.gpus.get(*index)?.numa);
        let near: Vec<u32> = near.collect();
        self.cores.choose(of_engine, &near, request.resources.cpus as usize)
    }

    pub(super) fn take(&mut self, lane: LaneId, request: &Request, of_engine: &[NumaCores]) -> Option<Share> {
        let gpus = self.choose_gpus(request)?;
        let share = Share {
            lane,
            request: request.clone(),
            cores: self.choose_cores(request, &gpus, of_engine)?,
            gpus,
        };
        self.add(&share);
        Some(share)
    }

    pub(super) fn add(&mut self, share: &Share) {
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

    pub(super) fn give_back(&mut self, share: &Share) {
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
