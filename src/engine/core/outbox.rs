//! Sends results: short tasks share a message, and each message is kept until the controller has recorded it.
use super::event::{Effect, Now};
use crate::model::task::{Outcome, TaskState};
use crate::wire::content::engine::{Results, TaskResult};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A message is sent when it holds this many results,
const MAX_RESULTS: usize = 512;
/// ... or this many bytes,
const MAX_BYTES: usize = 512 << 10;
/// ... or its oldest result is this old. Less than half of the work that an engine prefetches (`prefetch_ms`), since the
/// controller sends more when half of it has ended.
const MAX_AGE: Duration = Duration::from_millis(20);
/// Upper bound of a message's size beyond the outcome of its only result.
const OVERHEAD: usize = 16 << 10;

#[derive(Debug)]
pub(crate) struct Outbox {
    collecting: Vec<TaskResult>,
    bytes: usize,
    since: Option<Instant>,
    last_sequence: u64,
    /// Messages closed since the last flush.
    closed: Vec<Arc<Results>>,
    unrecorded: VecDeque<Arc<Results>>,
    /// The controller rejects longer messages.
    limit: usize,
    warnings: Vec<String>,
}

impl Default for Outbox {
    fn default() -> Self {
        Outbox {
            collecting: Vec::new(),
            bytes: 0,
            since: None,
            last_sequence: 0,
            closed: Vec::new(),
            unrecorded: VecDeque::new(),
            limit: usize::MAX,
            warnings: Vec::new(),
        }
    }
}

/// The error for a message that cannot be sent: `the result has 17000000 bytes; …`.
pub(crate) fn too_large(what: &str, bytes: usize, limit: usize) -> String {
    format!(
        "{what} has {bytes} bytes; the controller accepts messages of up to {limit} bytes (controller.max_message_mb). \
         Write large data to a file and return its name, or restart the cluster with a larger limit"
    )
}

impl Outbox {
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    pub(crate) fn push(&mut self, now: Now, mut result: TaskResult) {
        let mut bytes = result.outcome.bytes();
        // A byte of text may take six when escaped.
        if bytes.saturating_mul(6) + OVERHEAD > self.limit {
            bytes = encoded(&result.outcome) + result.outcome.pickled.as_ref().map_or(0, |p| p.bytes.len());
            if bytes + OVERHEAD > self.limit {
                let evalue = too_large("the result", bytes, self.limit);
                self.warnings.push(format!("task {}.{}: {evalue}", result.map, result.index));
                result.outcome = too_large_outcome(&result.outcome, evalue);
                bytes = 0;
            }
        }
        if !self.collecting.is_empty() && (self.bytes + bytes > MAX_BYTES || self.collecting.len() >= MAX_RESULTS) {
            self.close();
        }
        self.bytes += bytes;
        self.collecting.push(result);
        self.since.get_or_insert(now.instant);
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.since.map(|since| since + MAX_AGE)
    }

    /// Closes the message if it is full, old, or no more results are expected (`idle`); sends the closed messages.
    pub(crate) fn flush(&mut self, now: Now, idle: bool, registered: bool, effects: &mut Vec<Effect>) {
        effects.extend(self.warnings.drain(..).map(Effect::Warn));
        if let Some(since) = self.since
            && (idle || self.collecting.len() >= MAX_RESULTS || self.bytes >= MAX_BYTES || now.instant >= since + MAX_AGE)
        {
            self.close();
        }
        let closed = self.closed.drain(..);
        if registered {
            effects.extend(closed.map(Effect::SendResults));
        }
    }

    fn close(&mut self) {
        self.last_sequence += 1;
        let results = Arc::new(Results::new(self.last_sequence, std::mem::take(&mut self.collecting)));
        (self.bytes, self.since) = (0, None);
        self.closed.push(results.clone());
        self.unrecorded.push_back(results);
    }

    pub(crate) fn recorded(&mut self, sequence: u64) {
        // Only this one: an earlier message may have been lost with its connection. It is nearly always the first.
        if let Some(at) = self.unrecorded.iter().position(|results| results.sequence == sequence) {
            self.unrecorded.remove(at);
        }
    }

    /// Sends all messages that may have been lost again, after a registration.
    pub(crate) fn resend(&mut self, effects: &mut Vec<Effect>) {
        self.closed.clear();
        effects.extend(self.unrecorded.iter().cloned().map(Effect::SendResults));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.collecting.is_empty() && self.unrecorded.is_empty()
    }
}

/// Size of the outcome in a message: its JSON and its buffer.
fn encoded(outcome: &Outcome) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    let _ = serde_json::to_writer(&mut count, outcome);
    count.0 + outcome.pickled.as_ref().map_or(0, |pickled| pickled.bytes.len())
}

/// Replaces an outcome that cannot be sent. It is final: a retry would produce the same.
fn too_large_outcome(outcome: &Outcome, evalue: String) -> Outcome {
    let status = if outcome.status == TaskState::Ok {
        TaskState::Error
    } else {
        outcome.status
    };
    let mut replacement = Outcome::failure(status, "ResultTooLarge", evalue, outcome.started, outcome.ended);
    (replacement.exit_code, replacement.crashed) = (outcome.exit_code, outcome.crashed);
    (replacement.stdout, replacement.stderr) = (outcome.stdout.clone(), outcome.stderr.clone());
    replacement
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{MapId, UnixTime};
    use serde_json::value::RawValue;

    fn result(index: u32, value: &str, stdout: &str) -> TaskResult {
        let mut outcome = Outcome::failure(TaskState::Ok, "", "", UnixTime(1.0), UnixTime(2.0));
        outcome.error = None;
        outcome.value = Some(RawValue::from_string(value.to_string()).unwrap());
        outcome.stdout = stdout.into();
        TaskResult {
            map: MapId(1),
            index,
            run: 1,
            outcome,
        }
    }

    fn sent(outbox: &mut Outbox) -> (Vec<Arc<Results>>, usize) {
        let now = Now {
            instant: Instant::now(),
            unix: UnixTime(1.0),
        };
        let mut effects = Vec::new();
        outbox.flush(now, true, true, &mut effects);
        let warnings = effects.iter().filter(|effect| matches!(effect, Effect::Warn(_))).count();
        let sent = effects.into_iter().filter_map(|effect| match effect {
            Effect::SendResults(results) => Some(results),
            _ => None,
        });
        (sent.collect(), warnings)
    }

    #[test]
    fn a_result_larger_than_the_message_limit_is_replaced_by_an_error() {
        let now = Now {
            instant: Instant::now(),
            unix: UnixTime(1.0),
        };
        let mut outbox = Outbox::default();
        outbox.set_limit(1 << 20);
        outbox.push(now, result(0, "1", ""));
        outbox.push(now, result(1, &format!("\"{}\"", "x".repeat(1 << 20)), ""));
        // Its output is short, even with every byte escaped.
        outbox.push(now, result(2, &format!("\"{}\"", "y".repeat(3 << 20)), &"\u{1}".repeat(200 << 10)));
        outbox.push(now, result(3, &format!("\"{}\"", "x".repeat(900 << 10)), ""));
        outbox.push(now, result(4, "4", ""));
        let (messages, warnings) = sent(&mut outbox);
        assert_eq!(warnings, 2);
        let of = |index: u32| messages.iter().flat_map(|m| &m.results).find(|r| r.index == index).unwrap();
        for index in [1, 2] {
            let outcome = &of(index).outcome;
            assert_eq!(outcome.error.as_ref().unwrap().ename, "ResultTooLarge");
            assert_eq!(outcome.status, TaskState::Error);
            assert!(outcome.value.is_none() && outcome.stdout.size == if index == 2 { 200 << 10 } else { 0 });
        }
        assert!(of(3).outcome.value.is_some() && of(4).outcome.value.is_some());
        for message in &messages {
            assert!(serde_json::to_vec(&**message).unwrap().len() < 1 << 20);
        }
        let sequences: Vec<u64> = messages.iter().map(|m| m.sequence).collect();
        assert_eq!(sequences, (1..=messages.len() as u64).collect::<Vec<_>>());
    }
}
