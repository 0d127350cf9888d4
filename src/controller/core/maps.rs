//! The unfinished maps. An unsent task is only a line of its chunk; one in flight has an entry; a finished task takes no
//! memory (it is in the records).
use crate::model::definition::{MapDefinition, Work};
use crate::model::output::Written;
use crate::model::task::{Counts, TaskState};
use crate::model::{EngineId, EngineUuid, MapId};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Inputs that arrived together, one JSON text per line.
#[derive(Debug)]
pub(super) struct Chunk {
    /// The index of the line at `at`.
    next: u32,
    lines: Bytes,
    at: usize,
    left: u32,
}

/// A task assigned to an engine.
#[derive(Debug)]
pub(super) struct InFlight {
    pub engine: EngineUuid,
    pub run: u32,
    pub input: Bytes,
    /// Increases with each task sent: an engine starts its tasks in this order.
    pub sent: u64,
    /// The engine has reported its start.
    pub begun: bool,
    /// Bytes of its output recorded with the next commit or before: stdout, stderr, value.
    pub written: Written,
    pub tries: Tries,
    /// It is being cancelled: however it ends, it is not retried.
    pub cancelled: bool,
}

/// A returned task that waits for an engine again.
#[derive(Clone, Debug)]
pub(super) struct Returned {
    pub run: u32,
    pub input: Bytes,
    pub tries: Tries,
    /// The target engine, for a map with targets.
    pub engine: Option<EngineUuid>,
}

/// Failed attempts by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tries {
    pub errors: u32,
    pub crashes: u32,
}

/// A task taken out of the queue to be sent.
#[derive(Debug)]
pub(super) struct NextTask {
    pub index: u32,
    pub run: u32,
    pub input: Bytes,
    pub tries: Tries,
    pub engine: Option<EngineUuid>,
}

#[derive(Debug)]
pub(super) struct Watch {
    pub client: Bytes,
    pub parent: Bytes,
    pub from: u32,
    pub limit: u32,
    pub until: Duration,
    pub done: Option<u64>,
    /// For a watch that is part of a `map_request`: the engines for the answer.
    pub begun: Option<Vec<EngineId>>,
}

#[derive(Debug)]
pub(super) struct Map {
    pub definition: Arc<MapDefinition>,
    pub key: String,
    /// Waits for another map.
    pub waiting_for: Option<MapId>,
    /// For a map with targets: task i runs on the i-th engine.
    pub targets: Option<Vec<EngineUuid>>,
    pub closed: bool,
    /// When the client of an open map last sent a message, since the controller's start.
    pub last_input: Duration,
    /// It was closed without all its inputs; the rest is missing.
    pub abandoned: bool,
    pub counts: Counts,
    chunks: VecDeque<Chunk>,
    /// Lines in all chunks, including dropped ones.
    lines_left: usize,
    pub returned: BTreeMap<u32, Returned>,
    pub in_flight: HashMap<u32, InFlight>,
    /// Cancelled while still a line of a chunk: skipped when taken.
    pub dropped: BTreeSet<u32>,
    pub watches: Vec<Watch>,
    pub answered: Duration,
    /// Mean seconds of a task so far (exponentially weighted); None before the first.
    pub mean_s: Option<f64>,
    /// A task had a large input or result.
    pub large: bool,
    /// Engines that received the definition.
    pub known_by: Vec<EngineUuid>,
}

impl Map {
    pub(super) fn new(definition: MapDefinition, key: String) -> Map {
        Map {
            definition: Arc::new(definition),
            key,
            waiting_for: None,
            targets: None,
            closed: false,
            last_input: Duration::ZERO,
            abandoned: false,
            counts: Counts::default(),
            chunks: VecDeque::new(),
            lines_left: 0,
            returned: BTreeMap::new(),
            in_flight: HashMap::new(),
            dropped: BTreeSet::new(),
            watches: Vec::new(),
            answered: Duration::ZERO,
            mean_s: None,
            large: false,
            known_by: Vec::new(),
        }
    }

    /// Appends inputs.
    pub(super) fn push(&mut self, lines: Bytes, count: u32) {
        if count > 0 {
            let next = self.counts.total as u32;
            self.chunks.push_back(Chunk {
                next,
                lines,
                at: 0,
                left: count,
            });
            self.counts.total += u64::from(count);
            self.lines_left += count as usize;
        }
    }

    /// Appends a restored task that was never sent.
    pub(super) fn push_one(&mut self, index: u32, input: Bytes) {
        self.chunks.push_back(Chunk {
            next: index,
            lines: input,
            at: 0,
            left: 1,
        });
        self.lines_left += 1;
    }

    /// The number of tasks that can be sent, unless the map waits for another.
    pub(super) fn ready(&self) -> usize {
        self.unsent() + self.returned.len()
    }

    fn unsent(&self) -> usize {
        self.lines_left - self.dropped.len()
    }

    /// True if its tasks need no Python.
    pub(super) fn is_command(&self) -> bool {
        matches!(self.definition.work, Work::Command { .. })
    }

    pub(super) fn has_ready(&self) -> bool {
        self.waiting_for.is_none() && self.ready() > 0
    }

    /// Takes the next task to send: returned tasks first, then inputs in order.
    pub(super) fn take(&mut self) -> Option<NextTask> {
        if let Some((index, task)) = self.returned.pop_first() {
            return Some(NextTask {
                index,
                run: task.run,
                input: task.input,
                tries: task.tries,
                engine: task.engine,
            });
        }
        loop {
            let (index, input) = self.take_line()?;
            if !self.dropped.remove(&index) {
                let engine = self.targets.as_ref().and_then(|t| t.get(index as usize).cloned());
                return Some(NextTask {
                    index,
                    run: 1,
                    input,
                    tries: Tries::default(),
                    engine,
                });
            }
        }
    }

    fn take_line(&mut self) -> Option<(u32, Bytes)> {
        let chunk = self.chunks.front_mut()?;
        let rest = &chunk.lines[chunk.at..];
        let length = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
        // A slice keeps its whole chunk in memory; chunks are small and their tasks leave together.
        let input = chunk.lines.slice(chunk.at..chunk.at + length);
        let index = chunk.next;
        chunk.at = (chunk.at + length + 1).min(chunk.lines.len());
        chunk.next += 1;
        chunk.left -= 1;
        self.lines_left -= 1;
        if chunk.left == 0 {
            self.chunks.pop_front();
        }
        Some((index, input))
    }

    /// True if the task exists and is not finished.
    pub(super) fn is_open(&self, index: u32) -> bool {
        self.in_flight.contains_key(&index) || self.returned.contains_key(&index) || self.is_unsent(index)
    }

    pub(super) fn is_unsent(&self, index: u32) -> bool {
        let at = self.chunks.partition_point(|c| c.next + c.left <= index);
        self.chunks.get(at).is_some_and(|c| c.next <= index) && !self.dropped.contains(&index)
    }

    /// Drops all unsent tasks and returns their indices.
    pub(super) fn drop_unsent(&mut self) -> Vec<u32> {
        let indices = self.unsent_indices();
        self.chunks.clear();
        self.dropped.clear();
        self.lines_left = 0;
        indices
    }

    /// The indices of unsent tasks.
    fn unsent_indices(&self) -> Vec<u32> {
        let all = self.chunks.iter().flat_map(|c| c.next..c.next + c.left);
        all.filter(|index| !self.dropped.contains(index)).collect()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.closed && self.counts.done() >= self.counts.total
    }

    /// Counts a finished task.
    pub(super) fn count(&mut self, state: TaskState) {
        if let Some(counter) = self.counts.done_counter(state) {
            *counter += 1;
        }
    }

    pub(super) fn learn_duration(&mut self, seconds: f64) {
        self.mean_s = Some(match self.mean_s {
            None => seconds,
            // Weigh long ones immediately: a queue behind a long task is worse than an empty queue.
            Some(mean) if seconds > mean * 4.0 => (mean + seconds) / 2.0,
            Some(mean) => mean * 0.95 + seconds * 0.05,
        });
    }

    /// Checks the invariants of the map; for tests and debug builds.
    pub(super) fn check(&self) {
        let open = self.in_flight.len() + self.ready();
        assert_eq!(open as u64 + self.counts.done(), self.counts.total, "each task is in one place");
        assert!(
            self.chunks
                .iter()
                .zip(self.chunks.iter().skip(1))
                .all(|(a, b)| a.next + a.left <= b.next),
            "chunks in order"
        );
        assert!(self.in_flight.keys().all(|i| !self.returned.contains_key(i) && !self.is_unsent(*i)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::definition::MapOptions;

    fn map() -> Map {
        Map::new(
            MapDefinition {
                work: Work::Push,
                options: MapOptions::default(),
            },
            "k".into(),
        )
    }

    #[test]
    fn tasks_leave_in_order_and_the_returned_first() {
        let mut m = map();
        m.push(Bytes::from_static(b"[1]\n[2]\n[3]"), 3);
        m.push(Bytes::from_static(b"[4]\n"), 1);
        m.check();
        assert_eq!(m.ready(), 4);
        let first = m.take().unwrap();
        assert_eq!((first.index, first.run, &first.input[..]), (0, 1, &b"[1]"[..]));
        m.dropped.insert(1);
        m.counts.aborted += 1;
        m.returned.insert(
            0,
            Returned {
                run: 2,
                input: first.input,
                tries: Tries::default(),
                engine: None,
            },
        );
        m.check();
        let order: Vec<_> = std::iter::from_fn(|| m.take()).map(|t| (t.index, t.run, t.input)).collect();
        assert_eq!(order, [(0, 2, "[1]".into()), (2, 1, "[3]".into()), (3, 1, Bytes::from("[4]"))]);
        assert!(!m.has_ready() && m.dropped.is_empty());
    }

    #[test]
    fn a_task_is_open_until_done() {
        let mut m = map();
        m.push(Bytes::from_static(b"1\n2"), 2);
        assert!(m.is_open(0) && m.is_open(1) && !m.is_open(2));
        m.take();
        assert!(!m.is_open(0) && m.is_open(1));
    }
}
