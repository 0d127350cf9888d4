//! Why an engine cannot take a task now: the one predicate that dispatch obeys and that explanations quote.
use crate::model::resources::Request;
use crate::model::{EngineUuid, MapId, UnixTime};
use std::collections::HashSet;

/// Tasks of a map that need the same: lane 0 those that need what the map asks for, the others those that need more since an
/// attempt failed. Requests of an ipyparallel client: lane 0 those that may run anywhere, [`LaneId::BOUND`] the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LaneId {
    pub map: MapId,
    pub lane: u32,
}

impl LaneId {
    pub(crate) const BOUND: u32 = u32::MAX;

    pub(crate) fn first(map: MapId) -> LaneId {
        LaneId { map, lane: 0 }
    }
}

/// What a task needs of the engine that runs it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unit {
    pub lane: LaneId,
    pub runs: Runs,
    /// What it needs of its node; None if an engine is enough.
    pub request: Option<Request>,
    /// How long it may take at most, in seconds.
    pub limit_s: Option<f64>,
    /// How long it is known to take, in seconds.
    pub known_s: Option<f64>,
    pub room: Room,
    pub claim: Claim,
}

impl Unit {
    pub(crate) fn cpus(&self) -> u32 {
        self.request.as_ref().map_or(1, |request| request.resources.cpus).max(1)
    }
}

/// The claim of a lane to engines, against others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claim {
    pub priority: i32,
    /// Processors that the tasks of its owner hold.
    pub held: u32,
    /// What its owner has had so far: processors times microseconds.
    pub service: u64,
    /// For how long its owner has held none, in microseconds.
    pub waited_us: u64,
    /// It has waited long enough: all others of its priority leave it what it needs, until one of its tasks is sent.
    pub is_binding: bool,
    /// How much more, in the unit of `service`, others may have had: engines that are left idle for it cost as well.
    pub tolerance: u64,
}

/// The least tolerance, for each processor that a task needs: a map worker that is started and stopped costs as well.
pub(crate) const MIN_TOLERANCE_US: u64 = 2_000_000;
/// After this time without any processor, a lane may keep engines from all others of its priority that hold some.
const PATIENCE_US: u64 = 5_000_000;

impl Claim {
    /// Whether a lane with this claim, which comes first and whose tasks need `cpus` processors, may keep engines from the
    /// other.
    pub(crate) fn outweighs(&self, cpus: u32, other: &Claim) -> bool {
        self.priority > other.priority
            || other.held >= self.held.saturating_add(cpus.saturating_mul(2))
            || other.service >= self.service.saturating_add(self.tolerance)
            || (self.held == 0 && self.waited_us >= PATIENCE_US)
    }
}

/// The kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Runs {
    Command,
    Python,
    /// A request of an ipyparallel client, which an `ipengine` takes as well.
    Message,
}

/// How many tasks an engine may hold to take this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Fewer than this; 0 for any number.
    pub below: u32,
    /// Or at most this many, if all of them are short requests.
    pub short: u32,
}

impl Room {
    /// For an engine that holds `load` tasks; `only_short`: all of them are short requests.
    pub(super) fn admits(self, load: u32, only_short: bool) -> bool {
        self.below == 0 || load < self.below || (only_short && self.short > 0 && load <= self.short)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum WhyNot {
    /// It is disconnected or silent.
    Silent,
    Leaving,
    /// It cannot run Python, for this reason.
    NoPython(String),
    /// It is an `ipengine`, which takes requests of ipyparallel's clients only.
    Ipengine,
    /// Its job ends before the task could.
    EndsTooSoon {
        ends: UnixTime,
    },
    /// It holds as many tasks as it may.
    Busy {
        load: u32,
    },
    /// It holds tasks of a map that has resources for itself.
    Dedicated {
        map: MapId,
    },
    /// Its node has too little free, or at all.
    Node(Obstacle),
    /// What is free of its node is reserved for this map, which comes first.
    Reserved {
        map: MapId,
    },
    /// This map, or session, comes first, and waits for such an engine to become idle.
    Wanted {
        map: MapId,
    },
}

/// A task that waits for an engine: lanes after it must not refill an engine that could take it.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub unit: Unit,
    /// The engines that it may run on; None for all.
    pub engines: Option<HashSet<EngineUuid>>,
}

/// When the first lane of a shape was last tried in vain: only nodes that have gained since are worth another look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Failed {
    /// The clock of the nodes at that time; 0 if it was never tried.
    pub at: u64,
    /// The nodes that were reserved for it.
    pub reserved: Vec<usize>,
    /// The clock of engines that joined or changed, if none of their nodes could ever run it.
    pub hopeless_at: Option<u64>,
}

/// Why a node has no room for a task now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// It never has: it lacks resources altogether.
    TooSmall,
    /// After a restart, an engine with a share has not registered again.
    Awaited,
    Cpus {
        free: u32,
    },
    /// Of those to which tasks can be bound.
    Cores {
        free: u32,
    },
    Memory {
        free: u64,
    },
    Gpus {
        free: u32,
    },
    Named {
        name: String,
        free: u64,
    },
}
