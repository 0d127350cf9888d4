//! Counts engines by the reason why they do not take a task, and words the reasons.
use super::super::engines::{Obstacle, WhyNot};
use crate::model::explanation::{Reason, ReasonKind, WaitReasons, about};
use crate::model::memory::Memory;
use crate::model::node::NodeFacts;
use crate::model::resources::{Request, WHOLE_GPU};
use crate::model::{MapId, UnixTime};
use std::collections::BTreeSet;

/// The maximum length in characters of a reason that an engine has given.
const MAX_GIVEN: usize = 100;

/// Engines with the same kind of reason.
#[derive(Default)]
struct Group {
    engines: u32,
    /// The largest amount among them, of what is lacking.
    most: u64,
    maps: BTreeSet<MapId>,
    /// The words of the first engine, where engines give some.
    given: String,
}

/// What a group has in common; in the order of display.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Busy,
    Dedicated,
    InUse(Pool),
    Reserved,
    Behind,
    TooSmall(Pool),
    NoFacts,
    EndsTooSoon,
    NotTarget,
    Follow,
    Excluded,
    NoPython,
    Awaited,
    Silent,
    Leaving,
    Ipengine,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Pool {
    Cpus,
    /// Processors to pin to.
    Cores,
    Memory,
    Gpus,
    Named(String),
}

/// Constraints of a request of an ipyparallel client on its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unsuitable {
    NotTarget,
    /// The requests that it must follow ran on another engine.
    Follow,
    /// It has failed there.
    Excluded,
}

/// Counts engines that do not take a task, by reason.
pub(super) struct Tally {
    request: Option<Request>,
    limit_s: Option<f64>,
    now: UnixTime,
    able: u32,
    next_free_s: Option<f64>,
    groups: std::collections::BTreeMap<Key, Group>,
}

impl Tally {
    pub(super) fn new(request: Option<Request>, limit_s: Option<f64>, now: UnixTime) -> Tally {
        Tally {
            request,
            limit_s,
            now,
            able: 0,
            next_free_s: None,
            groups: Default::default(),
        }
    }

    pub(super) fn now(&self) -> UnixTime {
        self.now
    }

    pub(super) fn add_able(&mut self) {
        self.able += 1;
    }

    /// An engine that will take it when it has finished others, if known with the number of seconds.
    pub(super) fn add_busy(&mut self, free_in_s: Option<f64>) {
        self.group(Key::Busy, 0);
        let soonest = self.next_free_s.into_iter().chain(free_in_s).min_by(f64::total_cmp);
        self.next_free_s = soonest;
    }

    pub(super) fn add_unsuitable(&mut self, why: Unsuitable) {
        let key = match why {
            Unsuitable::NotTarget => Key::NotTarget,
            Unsuitable::Follow => Key::Follow,
            Unsuitable::Excluded => Key::Excluded,
        };
        self.group(key, 0);
    }

    /// `node`: what the engine's node has.
    pub(super) fn add(&mut self, node: impl FnOnce() -> NodeFacts, why: WhyNot) {
        let key = |key, most| (key, most);
        let (key, most) = match why {
            WhyNot::Busy { .. } => key(Key::Busy, 0),
            WhyNot::Silent => key(Key::Silent, 0),
            WhyNot::Leaving => key(Key::Leaving, 0),
            WhyNot::Ipengine => key(Key::Ipengine, 0),
            WhyNot::NoPython(given) => {
                let group = self.group(Key::NoPython, 0);
                if group.given.is_empty() {
                    group.given = shortened(&given);
                }
                return;
            }
            WhyNot::EndsTooSoon { ends } => key(Key::EndsTooSoon, ends.since(self.now) as u64),
            WhyNot::Dedicated { map } => {
                self.group(Key::Dedicated, 0).maps.insert(map);
                return;
            }
            WhyNot::Reserved { map } => {
                self.group(Key::Reserved, 0).maps.insert(map);
                return;
            }
            WhyNot::Wanted { map } => {
                self.group(Key::Behind, 0).maps.insert(map);
                return;
            }
            WhyNot::Node(Obstacle::Awaited) => key(Key::Awaited, 0),
            WhyNot::Node(Obstacle::Cpus { free }) => key(Key::InUse(Pool::Cpus), u64::from(free)),
            WhyNot::Node(Obstacle::Cores { free }) => key(Key::InUse(Pool::Cores), u64::from(free)),
            WhyNot::Node(Obstacle::Memory { free }) => key(Key::InUse(Pool::Memory), free),
            WhyNot::Node(Obstacle::Gpus { free }) => key(Key::InUse(Pool::Gpus), u64::from(free)),
            WhyNot::Node(Obstacle::Named { name, free }) => key(Key::InUse(Pool::Named(name)), free),
            WhyNot::Node(Obstacle::TooSmall) => self.lacking(&node()),
        };
        self.group(key, most);
    }

    fn group(&mut self, key: Key, most: u64) -> &mut Group {
        let group = self.groups.entry(key).or_default();
        group.engines += 1;
        group.most = group.most.max(most);
        group
    }

    /// Which resource the node does not have enough of, and how much it has.
    fn lacking(&self, has: &NodeFacts) -> (Key, u64) {
        let Some(wants) = self.request.as_ref().filter(|_| !has.is_empty()) else {
            return (Key::NoFacts, 0);
        };
        if has.mem_bytes > 0 && wants.mem_bytes > has.mem_bytes {
            return (Key::TooSmall(Pool::Memory), has.mem_bytes);
        }
        if wants.resources.gpus.thousandths.div_ceil(WHOLE_GPU) as usize > has.gpus.len() {
            return (Key::TooSmall(Pool::Gpus), has.gpus.len() as u64);
        }
        let of = |name: &String| has.named.get(name).copied().unwrap_or_default();
        if let Some((name, _)) = wants.resources.named.iter().find(|(name, count)| **count > of(name)) {
            return (Key::TooSmall(Pool::Named(name.clone())), of(name));
        }
        (Key::TooSmall(Pool::Cpus), u64::from(has.cpus))
    }

    pub(super) fn waiting(self) -> WaitReasons {
        let reasons: Vec<Reason> = self.groups.iter().map(|(key, group)| self.reason(key, group)).collect();
        WaitReasons {
            engines: self.able + reasons.iter().map(|reason| reason.engines).sum::<u32>(),
            able: self.able,
            next_free_s: self.next_free_s,
            reasons,
            notes: Vec::new(),
        }
    }

    fn reason(&self, key: &Key, group: &Group) -> Reason {
        let one = group.engines == 1;
        let (is, has) = if one { ("is", "has") } else { ("are", "have") };
        let up_to = if one { "" } else { "at most " };
        let (kind, text) = match key {
            Key::Busy => (ReasonKind::Busy, "busy".into()),
            Key::Dedicated => (ReasonKind::OtherResources, format!("busy with {}", maps(&group.maps))),
            Key::InUse(pool) => {
                let (free, wants) = self.amounts(pool, group.most, "free");
                (ReasonKind::InUse, format!("{has} {up_to}{free} and it asks for {wants}"))
            }
            Key::Reserved => (ReasonKind::Reserved, format!("reserved for {}", maps(&group.maps))),
            Key::Behind => (ReasonKind::Behind, format!("{is} for {}, which comes first", maps(&group.maps))),
            Key::TooSmall(pool) => {
                let (there, wants) = self.amounts(pool, group.most, "");
                (ReasonKind::TooSmall, format!("{has} {up_to}{there} and it asks for {wants}"))
            }
            Key::NoFacts => (
                ReasonKind::TooSmall,
                format!(
                    "{} no resources and it asks for {}",
                    if one { "reports" } else { "report" },
                    self.wants().unwrap_or_default()
                ),
            ),
            Key::EndsTooSoon => {
                let needs = self.limit_s.map(about).unwrap_or_default();
                let ends = if one { "ends" } else { "end" };
                (
                    ReasonKind::EndsTooSoon,
                    format!("{ends} in {up_to}{} and it needs {needs}", about(group.most as f64)),
                )
            }
            Key::NotTarget => (ReasonKind::NotTarget, format!("{is} not among its targets")),
            Key::Follow => (ReasonKind::NotTarget, "did not run what it has to follow".into()),
            Key::Excluded => (ReasonKind::Excluded, format!("{has} failed it")),
            Key::NoPython => (ReasonKind::NoPython, format!("cannot run Python ({})", group.given)),
            Key::Awaited => (
                ReasonKind::Reconnecting,
                format!("{} for other engines of the node to reconnect", if one { "waits" } else { "wait" }),
            ),
            Key::Silent => (ReasonKind::Silent, "silent".into()),
            Key::Leaving => (ReasonKind::Leaving, "leaving".into()),
            Key::Ipengine => (
                ReasonKind::NotNative,
                format!(
                    "{is} ipengine{} and {} no maps",
                    if one { "" } else { "s" },
                    if one { "takes" } else { "take" }
                ),
            ),
        };
        Reason {
            kind,
            engines: group.engines,
            text,
        }
    }

    fn wants(&self) -> Option<String> {
        self.request.as_ref().map(ToString::to_string)
    }

    /// `16G of memory free`, and what the task asks for: `32G`.
    fn amounts(&self, pool: &Pool, there: u64, free: &str) -> (String, String) {
        let wants = self.request.clone().unwrap_or_default();
        let size = |bytes| Memory { bytes }.rounded();
        let counted = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let (there, wants) = match pool {
            Pool::Cpus => (counted(there, "cpu"), wants.resources.cpus.to_string()),
            Pool::Cores => (format!("{} to pin to", counted(there, "cpu")), wants.resources.cpus.to_string()),
            Pool::Memory => (format!("{} of memory", size(there)), size(wants.mem_bytes)),
            Pool::Gpus => (counted(there, "gpu"), wants.resources.gpus.to_string()),
            Pool::Named(name) => {
                let count = wants.resources.named.get(name).copied().unwrap_or_default();
                (format!("{there} {name}"), count.to_string())
            }
        };
        match free {
            "" => (there, wants),
            _ => (format!("{there} {free}"), wants),
        }
    }
}

/// `map 3`, `maps 3, 4`
fn maps(maps: &BTreeSet<MapId>) -> String {
    let names: Vec<String> = maps.iter().take(super::MAX_MAPS).map(ToString::to_string).collect();
    let more = if maps.len() > names.len() { ", …" } else { "" };
    format!("map{} {}{more}", if maps.len() == 1 { "" } else { "s" }, names.join(", "))
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_GIVEN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_string(),
    }
}
