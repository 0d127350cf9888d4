//! How many tasks an engine may hold: as many short ones as fill `prefetch_ms`, so that it never waits for the network, and tasks
//! share messages and commits. Long ones: one, and its successor; very long ones: one each.
//!
//! The durations of earlier tasks of a map predict the next one. A request of an ipyparallel client names no function, but the
//! pickled function is hashed: earlier requests with the same one predict the next.
use crate::profile::config::ControllerConfig;
use crate::wire::Message;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Functions whose mean duration is kept.
const MAX_FUNCTIONS: usize = 1024;
/// Leading bytes of a pickled function that are hashed.
const HASHED_BYTES: usize = 4096;
/// At least this many seconds of work go into one message, even if other engines are idle.
const MESSAGE_S: f64 = 1e-3;
/// A task is expected to take at most the mean times this.
const AT_MOST: f64 = 2.0;
/// Up to this duration, a task has its successor waiting.
const SUCCESSOR_S: f64 = 1.0;
/// The overhead of a task in seconds.
const TASK_S: f64 = 5e-6;

/// The mean duration of similar tasks so far, in seconds (exponentially weighted); unknown before the first.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct MeanTime(Option<f64>);

impl MeanTime {
    pub(super) fn learn(&mut self, seconds: f64) {
        let seconds = seconds.max(0.0);
        self.0 = Some(match self.0 {
            None => seconds,
            // Weigh long ones immediately: a queue behind a long task is worse than an empty queue.
            Some(mean) if seconds > mean * 4.0 => (mean + seconds) / 2.0,
            Some(mean) => mean * 0.95 + seconds * 0.05,
        });
    }

    pub(super) fn seconds(self) -> Option<f64> {
        self.0
    }

    /// What such a task most probably takes at most.
    pub(super) fn at_most(self) -> Option<f64> {
        self.0.map(|mean| mean * AT_MOST)
    }

    /// The number of tasks that justify a message of their own.
    pub(super) fn min_batch(self) -> u32 {
        self.0.map_or(1, |mean| (MESSAGE_S / (mean + TASK_S)) as u32).max(1)
    }
}

/// The mean durations of requests by function.
#[derive(Debug, Default)]
pub(super) struct Functions(HashMap<u64, MeanTime>);

impl Functions {
    pub(super) fn mean(&self, function: u64) -> MeanTime {
        self.0.get(&function).copied().unwrap_or_default()
    }

    pub(super) fn learn(&mut self, function: u64, seconds: f64) {
        if self.0.len() >= MAX_FUNCTIONS && !self.0.contains_key(&function) {
            self.0.clear();
        }
        self.0.entry(function).or_default().learn(seconds);
    }
}

/// A hash of the function that an `apply_request` calls; None for other requests.
pub(super) fn function_of(message: &Message) -> Option<u64> {
    let pickled = message.buffers.first().filter(|_| message.msg_type() == "apply_request")?;
    let mut hasher = DefaultHasher::new();
    pickled.len().hash(&mut hasher);
    pickled.get(..HASHED_BYTES).unwrap_or(pickled).hash(&mut hasher);
    Some(hasher.finish())
}

#[derive(Debug)]
pub(super) struct Prefetch {
    window_s: f64,
    max: u32,
}

impl Prefetch {
    pub(super) fn new(config: &ControllerConfig) -> Prefetch {
        Prefetch {
            window_s: config.prefetch_ms as f64 / 1000.0,
            max: config.max_prefetch.max(1),
        }
    }

    /// The number of such tasks that an engine may hold; `unknown`, if their duration is not known yet.
    pub(super) fn depth(&self, mean: MeanTime, unknown: u32) -> u32 {
        let fit = |mean: f64| (self.window_s / mean.max(1e-6)) as u32;
        mean.0.map_or(unknown, |mean| fit(mean).clamp(1, self.max))
    }

    /// The same for tasks of a map: the running one has its successor on the engine, which otherwise waits for a round trip and two
    /// commits. Not for long ones, where this does not matter: maps with a higher priority wait for the successor, too.
    pub(super) fn depth_with_successor(&self, mean: MeanTime, unknown: u32) -> u32 {
        let depth = self.depth(mean, unknown);
        match mean.0 {
            Some(mean) if mean <= SUCCESSOR_S => depth.max(2).min(self.max),
            _ => depth,
        }
    }

    /// The number of tasks to send to an engine with this load. It is refilled at half, so that tasks share messages.
    pub(super) fn room(depth: u32, load: u32) -> u32 {
        match load > depth / 2 {
            true => 0,
            false => depth.saturating_sub(load),
        }
    }
}
