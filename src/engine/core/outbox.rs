//! Results on their way: short tasks share a message, and each message is kept until the controller has it on disk.
use super::event::{Effect, Now};
use crate::wire::content::engine::{Results, TaskResult};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A message is sent when it holds so many results,
const MOST: usize = 512;
/// ... or so many bytes,
const MOST_BYTES: usize = 512 << 10;
/// ... or its oldest result is so old and it holds some,
const OLD: Duration = Duration::from_millis(2);
const SOME: usize = 8;
/// ... or it is so old. Less than the work that an engine has ahead (`prefetch_ms`).
const OLDEST: Duration = Duration::from_millis(10);

#[derive(Debug, Default)]
pub struct Outbox {
    collecting: Vec<TaskResult>,
    bytes: usize,
    since: Option<Instant>,
    last_sequence: u64,
    unrecorded: VecDeque<Arc<Results>>,
}

impl Outbox {
    pub fn push(&mut self, now: Now, result: TaskResult) {
        let outcome = &result.outcome;
        self.bytes += outcome.stdout.len()
            + outcome.stderr.len()
            + outcome.value.as_ref().map_or(0, |v| v.get().len())
            + outcome.pickled.as_ref().map_or(0, |p| p.bytes.len());
        self.collecting.push(result);
        self.since.get_or_insert(now.instant);
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.since.map(|since| since + self.patience())
    }

    fn patience(&self) -> Duration {
        if self.collecting.len() >= SOME { OLD } else { OLDEST }
    }

    /// Closes the message if it is full or old, or `idle` says that no more is to come.
    pub fn flush(&mut self, now: Now, idle: bool, registered: bool, effects: &mut Vec<Effect>) {
        let Some(since) = self.since else { return };
        let due = idle || self.collecting.len() >= MOST || self.bytes >= MOST_BYTES || now.instant >= since + self.patience();
        if !due {
            return;
        }
        self.last_sequence += 1;
        let results = Arc::new(Results {
            sequence: self.last_sequence,
            results: std::mem::take(&mut self.collecting),
        });
        (self.bytes, self.since) = (0, None);
        self.unrecorded.push_back(results.clone());
        if registered {
            effects.push(Effect::SendResults(results));
        }
    }

    pub fn recorded(&mut self, sequence: u64) {
        // That one alone: an earlier message may have been lost with the connection on which it went out. Nearly always
        // it is the first.
        if let Some(at) = self.unrecorded.iter().position(|results| results.sequence == sequence) {
            self.unrecorded.remove(at);
        }
    }

    /// After a registration: everything that may be lost, again.
    pub fn resend(&self, effects: &mut Vec<Effect>) {
        effects.extend(self.unrecorded.iter().cloned().map(Effect::SendResults));
    }

    pub fn is_empty(&self) -> bool {
        self.collecting.is_empty() && self.unrecorded.is_empty()
    }
}
