//! Why work waits, as the controller explains it from the predicates that decide. Each reason has its text: a client shows
//! also those that it does not know.
use super::open_enum::open_enum;
use super::{EngineId, TaskId, UnixTime};
use serde::{Deserialize, Serialize};
use std::fmt;

open_enum! {
    /// What a reason is about.
    pub enum ReasonKind {
        // Of the task or map, whatever engines there are.
        AfterMap => "after_map",
        MaxRunning => "max_running",
        AfterRequests => "after_requests",
        Inputs => "inputs",
        NoEngines => "no_engines",
        // Of engines.
        Busy => "busy",
        OtherResources => "other_resources",
        TooSmall => "too_small",
        InUse => "in_use",
        Reserved => "reserved",
        /// Another map comes first.
        Behind => "behind",
        EndsTooSoon => "ends_too_soon",
        NoPython => "no_python",
        Silent => "silent",
        Leaving => "leaving",
        Reconnecting => "reconnecting",
        NotNative => "not_native",
        NotTarget => "not_target",
        Excluded => "excluded",
    }
}

/// One reason, with the number of engines that it holds for; 0 if it does not depend on engines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    pub kind: ReasonKind,
    #[serde(default)]
    pub engines: u32,
    /// For people. For engines it follows their number: `have 16G of memory and it asks for 32G`.
    pub text: String,
}

impl Reason {
    /// A reason that does not depend on engines.
    pub fn general(kind: ReasonKind, text: impl Into<String>) -> Reason {
        Reason {
            kind,
            engines: 0,
            text: text.into(),
        }
    }
}

/// Why a task, or the next task of a map, is not with an engine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WaitReasons {
    /// The registered engines, and those of them that can take it now.
    pub engines: u32,
    pub able: u32,
    pub reasons: Vec<Reason>,
    /// When the first of the busy engines is expected to be free, in seconds from now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_free_s: Option<f64>,
    /// What else is to be known, for people.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl WaitReasons {
    /// False if it waits for something else, whatever engines there are.
    pub(crate) fn depends_on_engines(&self) -> bool {
        self.reasons.iter().all(|reason| reason.engines > 0)
    }
}

impl fmt::Display for WaitReasons {
    /// `0 of 12 engines can take it now: 8 busy (next free in about 3 min), 1 ends in 12 min and it needs 30 min`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (general, of_engines): (Vec<&Reason>, Vec<&Reason>) = self.reasons.iter().partition(|reason| reason.engines == 0);
        if !general.is_empty() {
            let texts: Vec<&str> = general.iter().map(|reason| reason.text.as_str()).collect();
            f.write_str(&texts.join("; "))?;
            return self.notes.iter().try_for_each(|note| write!(f, "; {note}"));
        }
        let engines = if self.engines == 1 { "engine" } else { "engines" };
        write!(f, "{} of {} {engines} can take it now", self.able, self.engines)?;
        for (at, reason) in of_engines.iter().enumerate() {
            write!(f, "{}{} {}", if at == 0 { ": " } else { ", " }, reason.engines, reason.text)?;
            if let (ReasonKind::Busy, Some(seconds)) = (&reason.kind, self.next_free_s) {
                write!(f, " (next free in about {})", about(seconds))?;
            }
        }
        self.notes.iter().try_for_each(|note| write!(f, "; {note}"))
    }
}

/// A task that an engine has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placed {
    pub engine: EngineId,
    pub host: String,
    /// Tasks and requests that the engine was sent before it and has not finished.
    pub ahead: u32,
    /// When it began, if the engine has reported that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<UnixTime>,
    /// Why nothing is known about it at present, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsure: Option<String>,
    /// It is being cancelled.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancelled: bool,
}

/// The unfinished part of a map.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OpenMap {
    /// Tasks without an engine, and tasks with engines.
    pub ready: u64,
    pub with_engines: u64,
    /// How long the longest task has been running, in seconds, as far as engines have reported it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_s: Option<f64>,
    /// The mean duration of its tasks so far, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_s: Option<f64>,
    /// All inputs have arrived.
    pub closed: bool,
}

/// What a registered engine does, and why it takes nothing more.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineWork {
    /// Its tasks in the order in which they were sent: the first probably runs.
    pub tasks: Vec<TaskId>,
    /// When the running task began, if the engine has reported that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub began: Option<UnixTime>,
    /// What its node has free, in words; empty if unknown.
    pub node_free: String,
    /// Why it takes no task of maps that wait: a sentence for each reason, with the maps.
    pub refuses: Vec<Refused>,
}

/// Why an engine does not take tasks of these maps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// The maps, at most ten of them; none for requests of ipyparallel clients.
    pub maps: Vec<super::MapId>,
    pub kind: ReasonKind,
    pub text: String,
}

/// A rounded duration: `40 s`, `3 min`, `2 h 5 min`, `3 d`.
pub(crate) fn about(seconds: f64) -> String {
    let seconds = if seconds.is_finite() { seconds.clamp(0.0, 1e9) } else { 0.0 };
    let whole = seconds.ceil() as u64;
    match whole {
        0..=1 => "1 s".into(),
        s if s <= 90 => format!("{s} s"),
        s if s < 90 * 60 => format!("{} min", (s + 30) / 60),
        s if s < 48 * 3600 => {
            let minutes = (s + 30) / 60;
            match minutes % 60 {
                0 => format!("{} h", minutes / 60),
                rest => format!("{} h {rest} min", minutes / 60),
            }
        }
        s => format!("{} d", (s + 43_200) / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(kind: ReasonKind, engines: u32, text: &str) -> Reason {
        Reason {
            kind,
            engines,
            text: text.into(),
        }
    }

    #[test]
    fn reasons_are_one_line() {
        let waiting = WaitReasons {
            engines: 12,
            able: 0,
            reasons: vec![
                reason(ReasonKind::Busy, 8, "busy"),
                reason(ReasonKind::TooSmall, 3, "have 16G of memory and it asks for 32G"),
                reason(ReasonKind::EndsTooSoon, 1, "ends in 12 min and it needs 30 min"),
            ],
            next_free_s: Some(170.0),
            notes: vec!["it fails after 90 s without an engine".into()],
        };
        assert_eq!(
            waiting.to_string(),
            "0 of 12 engines can take it now: 8 busy (next free in about 3 min), 3 have 16G of memory and it asks for 32G, \
             1 ends in 12 min and it needs 30 min; it fails after 90 s without an engine"
        );
        let held = WaitReasons {
            reasons: vec![
                Reason::general(ReasonKind::AfterMap, "it starts after map 3"),
                reason(ReasonKind::Busy, 8, "busy"),
            ],
            ..waiting
        };
        assert_eq!(held.to_string(), "it starts after map 3; it fails after 90 s without an engine");
    }

    #[test]
    fn unknown_reasons_of_a_later_version_are_shown() {
        let text = r#"{"engines":1,"able":0,"reasons":[{"kind":"haunted","engines":1,"text":"is haunted"}],"more":1}"#;
        let waiting: WaitReasons = serde_json::from_str(text).unwrap();
        assert_eq!(waiting.reasons[0].kind, ReasonKind::Unknown("haunted".into()));
        assert_eq!(waiting.to_string(), "0 of 1 engine can take it now: 1 is haunted");
    }

    #[test]
    fn durations_are_rounded() {
        let all = [0.0, 0.2, 40.0, 89.5, 170.0, 5400.0, 7500.0, 200_000.0, f64::NAN].map(about);
        assert_eq!(
            all,
            ["1 s", "1 s", "40 s", "90 s", "3 min", "1 h 30 min", "2 h 5 min", "2 d", "1 s"]
        );
    }
}
