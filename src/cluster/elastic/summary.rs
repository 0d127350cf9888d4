//! What is shown of the last decision: a line for `status`, and why there are not more or fewer engines.
use super::work::Unfit;
use crate::model::UnixTime;
use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Summary {
    pub decided: UnixTime,
    pub next_s: f64,
    /// Granted so far.
    pub used_core_h: f64,
    /// What queued and running jobs may still use.
    pub reserved_core_h: f64,
    pub budget_core_h: Option<f64>,
    pub shapes: Vec<ShapeSummary>,
    /// Ready work that no shape can run.
    pub unfit: Vec<Unfit>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ShapeSummary {
    pub name: String,
    pub min: u32,
    pub max: u32,
    /// Engines that are registered.
    pub engines: u32,
    pub busy: u32,
    /// Engines of jobs that run, but are not registered.
    pub starting: u32,
    pub unknown: u32,
    pub leaving: u32,
    pub wants: u32,
    pub ready: u64,
    /// What the ready work takes with the engines that are registered.
    pub ready_s: f64,
    pub queued_jobs: u32,
    /// The scheduler's word for the first job that waits; may be empty.
    pub queue_reason: String,
    pub expected_start: Option<UnixTime>,
    pub why_not_more: WhyNotMore,
    pub why_not_fewer: WhyNotFewer,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WhyNotMore {
    NoController,
    Paused(String),
    NothingReady,
    /// The engines that run, start or wait suffice.
    EnoughEngines {
        ready: u64,
        work_per_engine_s: f64,
    },
    Max(u32),
    Budget {
        left_core_h: f64,
        job_core_h: f64,
    },
    QueueFull {
        queued: u32,
        max: u32,
        reason: String,
    },
    Backoff {
        wait_s: f64,
        why: String,
    },
    /// There is room for less than one job.
    NoRoomForJob {
        engines_per_job: u32,
        room: u32,
    },
    /// The previous submission is too recent.
    Recent {
        wait_s: f64,
    },
    /// Submitted now.
    Submitted(u32),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WhyNotFewer {
    NoController,
    NoEngines,
    Min(u32),
    Needed {
        busy: u32,
        ready: u64,
    },
    /// The next one is retired when it has been idle for long enough.
    RecentlyIdle {
        idle_s: f64,
        limit_s: f64,
    },
    /// An idle engine shares its job with busy ones.
    SharedJob {
        busy: u32,
    },
    Unknown(u32),
    /// Nothing is ready for engines that start or wait; they are given some time.
    Starting(u32),
    Reduced(u32),
}

impl Summary {
    /// `12 of 0–64 · 340 ready ≈ 41 min · wants 24 · …`, one line per shape. `clock` formats a time of day.
    pub(crate) fn lines(&self, now: UnixTime, clock: impl Fn(UnixTime) -> String) -> Vec<String> {
        let several = self.shapes.len() > 1;
        let line = |shape: &ShapeSummary| {
            let name = if several { format!("{}: ", shape.name) } else { String::new() };
            let mut parts = vec![format!("{name}{} of {}–{}", shape.engines, shape.min, shape.max)];
            if shape.ready > 0 {
                parts.push(format!("{} ready ≈ {}", shape.ready, span(shape.ready_s)));
            }
            parts.push(format!("wants {}", shape.wants));
            if shape.queued_jobs > 0 {
                let expected = shape.expected_start.map(|time| format!("expected {}", clock(time)));
                let words = Some(shape.queue_reason.clone()).filter(|reason| !reason.is_empty());
                let why: Vec<String> = words.into_iter().chain(expected).collect();
                let why = if why.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", why.join(", "))
                };
                parts.push(format!("{} queued{why}", shape.queued_jobs));
            }
            let counts = [(shape.starting, "starting"), (shape.unknown, "unknown"), (shape.leaving, "leaving")];
            parts.extend(counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")));
            if let WhyNotMore::Paused(why) = &shape.why_not_more {
                parts.push(format!("paused: {why}"));
            }
            let next = (self.next_s - now.since(self.decided)).max(0.0);
            parts.push(format!("next decision in {next:.0} s"));
            match self.budget_core_h {
                Some(budget) => parts.push(format!("{:.1} of {budget} core-h", self.used_core_h)),
                None if self.used_core_h >= 0.05 => parts.push(format!("{:.1} core-h", self.used_core_h)),
                None => {}
            }
            parts.join(" · ")
        };
        self.shapes.iter().map(line).collect()
    }
}

/// `45 s`, `41 min`, `5 h 40 min`.
pub(super) fn span(seconds: f64) -> String {
    let whole = if seconds.is_finite() { seconds.max(0.0).round() as u64 } else { 0 };
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min", (whole + 30) / 60),
        _ if whole % 3600 < 60 => format!("{} h", whole / 3600),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

impl fmt::Display for WhyNotMore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WhyNotMore::NoController => f.write_str("the controller cannot be asked what is ready"),
            WhyNotMore::Paused(why) => write!(f, "paused: {why}"),
            WhyNotMore::NothingReady => f.write_str("no work is ready that this shape can run"),
            WhyNotMore::EnoughEngines { ready, work_per_engine_s } => write!(
                f,
                "the engines that run, start or wait suffice for {ready} ready: another one would have less than {} to do",
                span(*work_per_engine_s)
            ),
            WhyNotMore::Max(max) => write!(f, "the maximum is {max}"),
            WhyNotMore::Budget { left_core_h, job_core_h } => write!(
                f,
                "{left_core_h:.1} core-hours of the budget are neither used nor reserved, a job may use {job_core_h:.1}"
            ),
            WhyNotMore::QueueFull { queued, max, reason } => {
                let why = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
                write!(f, "{queued} jobs wait in the queue{why}, and at most {max} may")
            }
            WhyNotMore::Backoff { wait_s, why } => write!(f, "the next submission is in {}: {why}", span(*wait_s)),
            WhyNotMore::NoRoomForJob { engines_per_job, room } => {
                write!(f, "a job has {engines_per_job} engines, and only {room} more are allowed")
            }
            WhyNotMore::Recent { wait_s } => write!(f, "jobs were just submitted; the next decision about more is in {}", span(*wait_s)),
            WhyNotMore::Submitted(engines) => write!(f, "{engines} more are being submitted"),
        }
    }
}

impl fmt::Display for WhyNotFewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WhyNotFewer::NoController => f.write_str("the controller cannot be asked which engines are busy"),
            WhyNotFewer::NoEngines => f.write_str("there are none"),
            WhyNotFewer::Min(min) => write!(f, "the minimum is {min}"),
            WhyNotFewer::Needed { busy, ready } => write!(f, "{busy} are busy, and {ready} are ready"),
            WhyNotFewer::RecentlyIdle { idle_s, limit_s } => {
                write!(f, "idle for {} at most; they are retired after {}", span(*idle_s), span(*limit_s))
            }
            WhyNotFewer::SharedJob { busy } => write!(f, "idle engines share their jobs with {busy} busy ones, and whole jobs are retired"),
            WhyNotFewer::Unknown(engines) => write!(f, "the state of the jobs of {engines} engines is unknown"),
            WhyNotFewer::Starting(engines) => write!(
                f,
                "nothing is ready, but {engines} are starting or queued; they are given some time"
            ),
            WhyNotFewer::Reduced(engines) => write!(f, "{engines} are leaving"),
        }
    }
}
