//! The unfinished maps. A task that has not been sent is no more than a line of its chunk; one in flight has an entry;
//! one that is done has nothing here (it is in the records).
use crate::model::definition::{MapDefinition, Work};
use crate::model::output::Written;
use crate::model::task::{Counts, TaskState};
use crate::model::{EngineId, EngineUuid, MapId};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Inputs that came together, one JSON text a line.
#[derive(Debug)]
pub struct Chunk {
    /// The index of the line at `at`.
    next: u32,
    lines: Bytes,
    at: usize,
    left: u32,
}

/// A task that is with an engine.
#[derive(Debug)]
pub struct InFlight {
    pub engine: EngineUuid,
    pub run: u32,
    pub input: Bytes,
    /// Grows with each task sent: an engine begins its tasks in this order.
    pub sent: u64,
    /// The engine has said that it runs.
    pub begun: bool,
    /// Bytes of its output that are on record, or will be with the next commit: stdout, stderr.
    pub written: Written,
    pub tries: Tries,
    /// It is on its way to be cancelled: whatever ends it, it is not tried again.
    pub cancelled: bool,
}

/// A task that came back and waits for an engine again.
#[derive(Clone, Debug)]
pub struct Returned {
    pub run: u32,
    pub input: Bytes,
    pub tries: Tries,
    /// A map with targets: where it must go.
    pub engine: Option<EngineUuid>,
}

/// What has been used of the budgets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tries {
    pub errors: u32,
    pub crashes: u32,
}

/// A task taken out of the queue to be sent.
#[derive(Debug)]
pub struct Taken {
    pub index: u32,
    pub run: u32,
    pub input: Bytes,
    pub tries: Tries,
    pub engine: Option<EngineUuid>,
}

#[derive(Debug)]
pub struct Watch {
    pub client: Bytes,
    pub parent: Bytes,
    pub from: u32,
    pub limit: u32,
    pub until: Duration,
    pub done: Option<u64>,
    /// It came with the map itself: the engines that its answer names.
    pub begun: Option<Vec<EngineId>>,
}

#[derive(Debug)]
pub struct Map {
    pub definition: Arc<MapDefinition>,
    pub key: String,
    /// Waits for another map.
    pub waiting_for: Option<MapId>,
    /// Maps with targets: task i goes to the i-th.
    pub targets: Option<Vec<EngineUuid>>,
    pub closed: bool,
    /// When its client last sent something, while it is open: since the controller's start.
    pub fed: Duration,
    /// Its client was silent for too long: what it had not sent is missing.
    pub abandoned: bool,
    pub counts: Counts,
    chunks: VecDeque<Chunk>,
    /// Lines in all chunks, dropped ones too.
    lines_left: usize,
    pub returned: BTreeMap<u32, Returned>,
    pub in_flight: HashMap<u32, InFlight>,
    /// Cancelled while still a line of a chunk: passed over when their turn comes.
    pub dropped: BTreeSet<u32>,
    pub watches: Vec<Watch>,
    pub answered: Duration,
    /// Mean seconds of a task so far (exponentially weighted); None before the first.
    pub mean_s: Option<f64>,
    /// A task had many bytes.
    pub large: bool,
    /// Engines that were sent the definition.
    pub known_by: Vec<EngineUuid>,
}

impl Map {
    pub fn new(definition: MapDefinition, key: String) -> Map {
        Map {
            definition: Arc::new(definition),
            key,
            waiting_for: None,
            targets: None,
            closed: false,
            fed: Duration::ZERO,
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

    /// Adds inputs behind those that are there.
    pub fn push(&mut self, lines: Bytes, count: u32) {
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

    /// A restored task that never left.
    pub fn push_one(&mut self, index: u32, input: Bytes) {
        self.chunks.push_back(Chunk {
            next: index,
            lines: input,
            at: 0,
            left: 1,
        });
        self.lines_left += 1;
    }

    /// Tasks that could be sent, if the map does not wait for another.
    pub fn ready(&self) -> usize {
        self.unsent() + self.returned.len()
    }

    fn unsent(&self) -> usize {
        self.lines_left - self.dropped.len()
    }

    /// Its tasks need no Python.
    pub fn is_command(&self) -> bool {
        matches!(self.definition.work, Work::Command { .. })
    }

    pub fn has_ready(&self) -> bool {
        self.waiting_for.is_none() && self.ready() > 0
    }

    /// The next task to send: those that came back first, then the inputs in order.
    pub fn take(&mut self) -> Option<Taken> {
        if let Some((index, task)) = self.returned.pop_first() {
            return Some(Taken {
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
                return Some(Taken {
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

    /// Whether the task is known and not done.
    pub fn is_open(&self, index: u32) -> bool {
        self.in_flight.contains_key(&index) || self.returned.contains_key(&index) || self.is_unsent(index)
    }

    pub fn is_unsent(&self, index: u32) -> bool {
        let at = self.chunks.partition_point(|c| c.next + c.left <= index);
        self.chunks.get(at).is_some_and(|c| c.next <= index) && !self.dropped.contains(&index)
    }

    /// Lets go of every unsent task; the indices.
    pub fn drop_unsent(&mut self) -> Vec<u32> {
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

    pub fn is_complete(&self) -> bool {
        self.closed && self.counts.done() >= self.counts.total
    }

    /// Counts a task as done.
    pub fn count(&mut self, state: TaskState) {
        if let Some(counter) = self.counts.done_counter(state) {
            *counter += 1;
        }
    }

    pub fn learn_duration(&mut self, seconds: f64) {
        self.mean_s = Some(match self.mean_s {
            None => seconds,
            // Long ones count at once: a queue behind a long task is worse than an empty one.
            Some(mean) if seconds > mean * 4.0 => (mean + seconds) / 2.0,
            Some(mean) => mean * 0.95 + seconds * 0.05,
        });
    }

    /// Holds the map against itself; for tests and debug builds.
    pub fn check(&self) {
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
