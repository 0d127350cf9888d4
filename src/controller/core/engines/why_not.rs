//! Why an engine cannot take a task now: the one predicate that dispatch obeys and that explanations quote.
use super::nodes::Obstacle;
use super::{Engine, Engines};
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
    pub(super) fn is_in(self, engine: &Engine) -> bool {
        let load = engine.load();
        self.below == 0 || load < self.below || (self.short > 0 && load <= self.short && engine.holds_only_quick())
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

impl Engines {
    /// Why this engine cannot take such a task now; None if it can.
    pub(crate) fn why_not(&self, engine: &Engine, unit: &Unit, now: UnixTime) -> Option<WhyNot> {
        if let Some(why) = engine.why_never(unit.runs) {
            return Some(why);
        }
        if !engine.has_time_for(unit.limit_s, now) {
            return engine.facts().ends.map(|ends| WhyNot::EndsTooSoon { ends });
        }
        let busy = WhyNot::Busy { load: engine.load() };
        match (engine.share(), &unit.request) {
            (Some(share), Some(_)) if share.map == unit.map => (!unit.room.is_in(engine)).then_some(busy),
            (Some(share), _) => Some(WhyNot::Dedicated { map: share.map }),
            (None, Some(_)) if engine.load() > 0 => Some(busy),
            (None, request) => {
                let in_node = self.nodes.why_not(engine.node(), engine.load() == 0, unit.map, request.as_ref());
                in_node.or_else(|| (!unit.room.is_in(engine)).then_some(busy))
            }
        }
    }
}

impl Engine {
    /// Why it takes no work of this kind, whatever it holds.
    fn why_never(&self, runs: Runs) -> Option<WhyNot> {
        if !self.is_connected() {
            return Some(WhyNot::Silent);
        }
        if self.is_leaving() {
            return Some(WhyNot::Leaving);
        }
        match runs {
            Runs::Command | Runs::Python if !self.is_native() => Some(WhyNot::Ipengine),
            Runs::Command => None,
            Runs::Python | Runs::Message => self.unavailable().cloned().map(WhyNot::NoPython),
        }
    }
}
