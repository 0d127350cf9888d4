//! Why an engine cannot take a task now: the one predicate that dispatch obeys and that explanations quote.
use crate::model::resources::Request;
use crate::model::{MapId, UnixTime};

/// What a task needs of the engine that runs it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unit {
    /// Its map, or the session of an ipyparallel client.
    pub map: MapId,
    pub runs: Runs,
    /// What it needs of its node; None if an engine is enough.
    pub request: Option<Request>,
    /// How long it may take at most, in seconds.
    pub limit_s: Option<f64>,
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
    /// What is free of its node is reserved for this map.
    Reserved {
        map: MapId,
    },
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
