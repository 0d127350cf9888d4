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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Failed {
    /// The clock of the nodes at that time; 0 if it was never tried.
    pub at: u64,
    /// The node that was reserved for it.
    pub reserved: Option<usize>,
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
