//! An unfinished map. An unsent task is only a line of its chunk; one in flight has an entry; a finished task takes no memory
//! (it is in the records).
use super::super::event::FoundTask;
use super::super::prefetch::MeanTime;
use super::in_flight::InFlight;
use crate::model::change::UsedRetries;
use crate::model::definition::{MapDefinition, MapOptions, Work};
use crate::model::resources::Request;
use crate::model::task::{Ask, Counts, TaskState};
use crate::model::{EngineId, EngineUuid, MapId};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// The minimum interval between answers to the watches of a map, while more results are to come.
const WATCH_PAUSE: Duration = Duration::from_millis(20);

/// Tasks of at least this many bytes are read by the records' thread.
const LARGE: usize = 64 << 10;

/// Inputs that arrived together, one JSON text per line.
#[derive(Debug)]
struct Chunk {
    /// The index of the line at `at`.
    next: u32,
    lines: Bytes,
    at: usize,
    left: u32,
}

/// A returned task that waits for an engine again.
#[derive(Clone, Debug)]
struct Returned {
    run: u32,
    input: Bytes,
    used: UsedRetries,
    /// The target engine, for a map with targets.
    engine: Option<EngineUuid>,
}

/// Returned tasks that ask for the same.
#[derive(Debug, Default)]
struct Lane {
    ask: Ask,
    returned: BTreeMap<u32, Returned>,
}

/// A task taken out of the queue to be sent.
#[derive(Debug)]
pub(crate) struct NextTask {
    pub index: u32,
    pub run: u32,
    pub input: Bytes,
    pub engine: Option<EngineUuid>,
    used: UsedRetries,
    ask: Ask,
}

impl NextTask {
    /// What it asks for in place of what its map does.
    pub(crate) fn ask(&self) -> Ask {
        self.ask
    }
}

#[derive(Debug)]
pub(crate) struct Watch {
    pub client: Bytes,
    pub parent: Bytes,
    pub from: u32,
    pub limit: u32,
    pub without_inputs: bool,
    pub until: Duration,
    pub done: Option<u64>,
    /// For a watch that is part of a `map_request`: the engines for the answer.
    pub begun: Option<Vec<EngineId>>,
}

#[derive(Debug)]
pub(crate) struct Map {
    definition: Arc<MapDefinition>,
    priority: i32,
    /// What its tasks need of their node; None if an engine is enough.
    request: Option<Request>,
    key: String,
    /// Waits for another map.
    waiting_for: Option<MapId>,
    /// For a map with targets: task i runs on the i-th engine.
    targets: Option<Vec<EngineUuid>>,
    closed: bool,
    /// When the client of an open map last sent a message, since the controller's start.
    last_input: Duration,
    /// It was closed without all its inputs; the rest is missing.
    abandoned: bool,
    counts: Counts,
    chunks: VecDeque<Chunk>,
    /// Lines in all chunks, including dropped ones.
    lines_left: usize,
    /// Returned tasks: first those that ask for what the map does.
    lanes: Vec<Lane>,
    in_flight: HashMap<u32, InFlight>,
    /// Cancelled while still a line of a chunk: skipped when taken.
    dropped: BTreeSet<u32>,
    watches: Vec<Watch>,
    /// When watches were last answered, since the controller's start.
    answered: Duration,
    mean: MeanTime,
    /// A task had a large input or result.
    large: bool,
    /// Engines that received the definition.
    known_by: Vec<EngineUuid>,
}

impl Map {
    pub(crate) fn new(definition: MapDefinition, key: String, targets: Option<Vec<EngineUuid>>) -> Map {
        Map {
            priority: definition.options.priority,
            request: definition.options.request(),
            definition: Arc::new(definition),
            key,
            waiting_for: None,
            targets,
            closed: false,
            last_input: Duration::ZERO,
            abandoned: false,
            counts: Counts::default(),
            chunks: VecDeque::new(),
            lines_left: 0,
            lanes: vec![Lane::default()],
            in_flight: HashMap::new(),
            dropped: BTreeSet::new(),
            watches: Vec::new(),
            answered: Duration::ZERO,
            mean: MeanTime::default(),
            large: false,
            known_by: Vec::new(),
        }
    }

    /// A map of the records; its unfinished tasks follow.
    pub(crate) fn restored(self, closed: bool, abandoned: bool, counts: Counts) -> Map {
        Map {
            closed,
            abandoned,
            counts,
            ..self
        }
    }

    pub(crate) fn wait_for(self, waiting_for: Option<MapId>) -> Map {
        Map { waiting_for, ..self }
    }
    pub(super) fn release(&mut self) {
        self.waiting_for = None;
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }
    pub(crate) fn definition(&self) -> &Arc<MapDefinition> {
        &self.definition
    }
    pub(crate) fn priority(&self) -> i32 {
        self.priority
    }
    pub(super) fn set_priority(&mut self, priority: i32) {
        self.priority = priority;
    }
    pub(crate) fn request(&self) -> Option<&Request> {
        self.request.as_ref()
    }
    /// The processors that each of its tasks needs.
    pub(crate) fn cpus(&self) -> u32 {
        self.request.as_ref().map_or(1, |request| request.resources.cpus)
    }
    pub(crate) fn options(&self) -> &MapOptions {
        &self.definition.options
    }
    /// True if its tasks need no Python.
    pub(crate) fn is_command(&self) -> bool {
        matches!(self.definition.work, Work::Command { .. })
    }
    pub(crate) fn waiting_for(&self) -> Option<MapId> {
        self.waiting_for
    }
    pub(crate) fn targets(&self) -> Option<&[EngineUuid]> {
        self.targets.as_deref()
    }
    /// The engine that has to run this task, if it may run on one only.
    pub(crate) fn target_of(&self, index: u32) -> Option<EngineUuid> {
        self.targets.as_ref()?.get(index as usize).cloned()
    }
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }
    pub(crate) fn mean(&self) -> MeanTime {
        self.mean
    }
    /// True if results may be large.
    pub(crate) fn is_large(&self) -> bool {
        self.large
    }
    pub(crate) fn is_complete(&self) -> bool {
        self.closed && self.counts.done() >= self.counts.total
    }

    // ---- inputs

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned
    }
    pub(crate) fn last_input(&self) -> Duration {
        self.last_input
    }
    pub(crate) fn note_input(&mut self, now: Duration) {
        self.last_input = now;
    }
    /// The number of tasks so far.
    pub(crate) fn total(&self) -> u32 {
        self.counts.total as u32
    }
    /// The state of a new task.
    pub(crate) fn initial_state(&self) -> TaskState {
        match self.waiting_for {
            Some(_) => TaskState::Waiting,
            None => TaskState::Ready,
        }
    }

    /// Appends inputs.
    pub(crate) fn push(&mut self, lines: Bytes, count: u32) {
        if count > 0 {
            self.push_chunk(self.total(), lines, count);
            self.counts.total += u64::from(count);
        }
    }

    fn push_chunk(&mut self, next: u32, lines: Bytes, left: u32) {
        self.chunks.push_back(Chunk { next, lines, at: 0, left });
        self.lines_left += left as usize;
    }

    /// Accepts no more inputs. Returns false if it was closed before.
    pub(crate) fn close(&mut self) -> bool {
        !std::mem::replace(&mut self.closed, true)
    }

    /// Closes the map without the rest of its inputs; an additional task, `input`, represents them. Returns its index.
    pub(crate) fn abandon(&mut self, input: Bytes) -> u32 {
        let index = self.total();
        self.closed = true;
        self.abandoned = true;
        self.push(input, 1);
        self.dropped.insert(index);
        index
    }

    // ---- the queue

    /// The number of tasks that can be sent, unless the map waits for another.
    pub(crate) fn ready(&self) -> usize {
        self.unsent() + self.lanes.iter().map(|lane| lane.returned.len()).sum::<usize>()
    }

    /// The number of lanes: of groups of tasks that ask for the same.
    pub(crate) fn lanes(&self) -> u32 {
        self.lanes.len() as u32
    }
    /// What tasks of this lane ask for instead of what the map does.
    pub(crate) fn ask_of(&self, lane: u32) -> Ask {
        self.lanes.get(lane as usize).map(|lane| lane.ask).unwrap_or_default()
    }
    /// The lane of a task that an engine holds.
    pub(crate) fn lane_of(&self, index: u32) -> u32 {
        let ask = self.in_flight.get(&index).map(|task| task.ask).unwrap_or_default();
        self.lanes.iter().position(|lane| lane.ask == ask).unwrap_or_default() as u32
    }
    /// The lane of a task that waits.
    pub(crate) fn waits_in(&self, index: u32) -> u32 {
        let lane = self.lanes.iter().position(|lane| lane.returned.contains_key(&index));
        lane.unwrap_or_default() as u32
    }
    /// What tasks of this lane need of their node, and how long they may take.
    pub(crate) fn needs_in(&self, lane: u32) -> (Option<Request>, Option<f64>) {
        let ask = self.ask_of(lane);
        (self.options().request_with(&ask), self.options().needed_s_with(&ask))
    }
    /// The tasks of this lane that can be sent now.
    pub(crate) fn ready_in(&self, lane: u32) -> usize {
        if self.waiting_for.is_some() {
            return 0;
        }
        let returned = self.lanes.get(lane as usize).map_or(0, |lane| lane.returned.len());
        let unsent = if lane == 0 { self.unsent() } else { 0 };
        (returned + unsent).min(self.may_start())
    }

    fn unsent(&self) -> usize {
        self.lines_left - self.dropped.len()
    }

    pub(crate) fn has_ready(&self) -> bool {
        self.waiting_for.is_none() && self.ready() > 0
    }

    /// How many more tasks may be with engines.
    pub(crate) fn may_start(&self) -> usize {
        let max = self.definition.options.max_running.map_or(usize::MAX, |max| max as usize);
        max.saturating_sub(self.in_flight.len())
    }

    /// Takes the next task to send: returned tasks first, then inputs in order.
    pub(crate) fn take(&mut self, lane: u32) -> Option<NextTask> {
        let ask = self.ask_of(lane);
        let returned = self.lanes.get_mut(lane as usize)?.returned.pop_first();
        if let Some((index, task)) = returned {
            return Some(NextTask {
                ask,
                index,
                run: task.run,
                input: task.input,
                used: task.used,
                engine: task.engine,
            });
        }
        loop {
            let (index, input) = if lane == 0 { self.take_line()? } else { return None };
            if !self.dropped.remove(&index) {
                let engine = self.target_of(index);
                return Some(NextTask {
                    index,
                    run: 1,
                    input,
                    used: UsedRetries::default(),
                    ask,
                    engine,
                });
            }
        }
    }

    /// Puts back a task that cannot be sent yet.
    pub(crate) fn put_back(&mut self, task: NextTask) {
        let returned = Returned {
            run: task.run,
            input: task.input,
            used: task.used,
            engine: task.engine,
        };
        self.lane_for(task.ask).returned.insert(task.index, returned);
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
    pub(crate) fn is_open(&self, index: u32) -> bool {
        self.in_flight.contains_key(&index) || self.is_returned(index) || self.is_unsent(index)
    }

    fn is_returned(&self, index: u32) -> bool {
        self.lanes.iter().any(|lane| lane.returned.contains_key(&index))
    }

    fn is_unsent(&self, index: u32) -> bool {
        let at = self.chunks.partition_point(|c| c.next + c.left <= index);
        self.chunks.get(at).is_some_and(|c| c.next <= index) && !self.dropped.contains(&index)
    }

    /// Removes an unassigned task; returns its run.
    pub(crate) fn drop_ready(&mut self, index: u32) -> Option<u32> {
        match self.lanes.iter_mut().find_map(|lane| lane.returned.remove(&index)) {
            Some(returned) => Some(returned.run),
            None if self.is_unsent(index) => {
                self.dropped.insert(index);
                Some(1)
            }
            None => None,
        }
    }

    /// Removes all unassigned tasks; returns their indices and runs.
    pub(crate) fn drop_all_ready(&mut self) -> Vec<(u32, u32)> {
        let all = self.chunks.iter().flat_map(|c| c.next..c.next + c.left);
        let mut tasks: Vec<(u32, u32)> = all.filter(|index| !self.dropped.contains(index)).map(|index| (index, 1)).collect();
        self.chunks.clear();
        self.dropped.clear();
        self.lines_left = 0;
        let returned = self.lanes.iter_mut().flat_map(|lane| std::mem::take(&mut lane.returned));
        tasks.extend(returned.map(|(index, task)| (index, task.run)));
        tasks
    }

    /// Queues a finished task again. Returns its new run; None if it is not finished.
    pub(crate) fn rerun(&mut self, task: FoundTask) -> Option<u32> {
        if self.is_open(task.index) {
            return None;
        }
        if let Some(counter) = self.counts.done_counter(task.state) {
            *counter = counter.saturating_sub(1);
        }
        let run = task.run + 1;
        self.queue(task.index, run, task.input, UsedRetries::default(), Ask::default());
        Some(run)
    }

    fn queue(&mut self, index: u32, run: u32, input: Bytes, used: UsedRetries, ask: Ask) {
        let engine = self.target_of(index);
        let returned = Returned { run, input, used, engine };
        self.lane_for(ask).returned.insert(index, returned);
    }

    fn lane_for(&mut self, ask: Ask) -> &mut Lane {
        let at = match self.lanes.iter().position(|lane| lane.ask == ask) {
            Some(at) => at,
            None => {
                self.lanes.push(Lane {
                    ask,
                    returned: BTreeMap::new(),
                });
                self.lanes.len() - 1
            }
        };
        &mut self.lanes[at]
    }

    /// Restores an unfinished task; `engine` may still run it. Returns its new run if it must run again.
    pub(crate) fn restore_task(&mut self, task: FoundTask, engine: Option<&EngineUuid>) -> Option<u32> {
        let (used, ask) = (task.used, task.ask);
        // In-flight tasks have a lane, too.
        self.lane_for(ask);
        let begun = task.state == TaskState::Running;
        match engine {
            _ if !begun && task.state != TaskState::Assigned => match task.run {
                0..=1 => self.push_chunk(task.index, task.input, 1),
                run => self.queue(task.index, run, task.input, used, ask),
            },
            Some(engine) => {
                let in_flight = InFlight {
                    engine: engine.clone(),
                    run: task.run,
                    input: task.input,
                    sent: 0,
                    begun,
                    began: None,
                    written: task.written,
                    used,
                    ask,
                    cancelled: task.cancelled,
                };
                self.in_flight.insert(task.index, in_flight);
            }
            None => {
                // Its engine left without a record of it: start another run.
                let run = task.run + 1;
                self.queue(task.index, run, task.input, used, ask);
                return Some(run);
            }
        }
        None
    }

    // ---- assigned tasks

    pub(crate) fn in_flight(&self, index: u32) -> Option<&InFlight> {
        self.in_flight.get(&index)
    }
    pub(super) fn in_flight_mut(&mut self, index: u32) -> Option<&mut InFlight> {
        self.in_flight.get_mut(&index)
    }
    pub(crate) fn all_in_flight(&self) -> impl ExactSizeIterator<Item = (u32, &InFlight)> {
        self.in_flight.iter().map(|(index, task)| (*index, task))
    }

    /// Assigns a task. `sent` increases with each.
    pub(crate) fn start(&mut self, task: NextTask, engine: EngineUuid, sent: u64) {
        let in_flight = InFlight {
            engine,
            run: task.run,
            input: task.input,
            sent,
            begun: false,
            began: None,
            written: Default::default(),
            used: task.used,
            ask: task.ask,
            cancelled: false,
        };
        self.in_flight.insert(task.index, in_flight);
    }

    /// Takes a task from its engine: to be counted as finished, or requeued.
    pub(crate) fn end(&mut self, index: u32) -> Option<InFlight> {
        self.in_flight.remove(&index)
    }

    /// Queues a task again, under the next run number, so that later messages about this run are ignored. Returns it.
    pub(crate) fn requeue(&mut self, index: u32, task: InFlight) -> u32 {
        let run = task.run + 1;
        let engine = self.targets.is_some().then_some(task.engine);
        let returned = Returned {
            run,
            input: task.input,
            used: task.used,
            engine,
        };
        self.lane_for(task.ask).returned.insert(index, returned);
        run
    }

    /// Counts a finished task.
    pub(crate) fn count(&mut self, state: TaskState) {
        if let Some(counter) = self.counts.done_counter(state) {
            *counter += 1;
        }
    }

    /// Learns from an attempt: its duration, and the size of its outcome.
    pub(crate) fn learn(&mut self, task: &InFlight, seconds: f64, bytes: usize) {
        self.mean.learn(seconds);
        self.large |= bytes + task.input.len() > LARGE;
    }

    /// Notes that an engine received the definition.
    pub(crate) fn note_known_by(&mut self, engine: EngineUuid) {
        self.known_by.push(engine);
    }
    pub(crate) fn into_known_by(self) -> Vec<EngineUuid> {
        self.known_by
    }

    // ---- watches

    /// Adds a watch. A client has one on a map: a repeated request replaces the lost one.
    pub(crate) fn watch(&mut self, watch: Watch) {
        self.watches.retain(|w| w.client != watch.client);
        self.watches.push(watch);
    }

    /// When watches may be answered again; None without watches.
    pub(crate) fn next_answer(&self) -> Option<Duration> {
        let pause = if self.counts.pending() > 0 { WATCH_PAUSE } else { Duration::ZERO };
        (!self.watches.is_empty()).then_some(self.answered + pause)
    }

    /// Takes the watches whose results are available or whose time is up.
    pub(crate) fn take_due_watches(&mut self, now: Duration) -> Vec<Watch> {
        let (complete, done) = (self.is_complete(), self.counts.done());
        let (due, waiting): (Vec<Watch>, Vec<Watch>) = std::mem::take(&mut self.watches).into_iter().partition(|w| {
            let result = w.limit > 0 && w.from < self.total() && !self.is_open(w.from);
            complete || w.until <= now || result || w.done.is_some_and(|wanted| done >= wanted)
        });
        self.watches = waiting;
        if !due.is_empty() {
            self.answered = now;
        }
        due
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
        assert!(self.in_flight.keys().all(|i| !self.is_returned(*i) && !self.is_unsent(*i)));
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
            None,
        )
    }

    #[test]
    fn returned_tasks_are_dispatched_first_then_the_others_in_order() {
        let mut m = map();
        m.push(Bytes::from_static(b"[1]\n[2]\n[3]"), 3);
        m.push(Bytes::from_static(b"[4]\n"), 1);
        m.check();
        assert_eq!(m.ready(), 4);
        let first = m.take(0).unwrap();
        assert_eq!((first.index, first.run, &first.input[..]), (0, 1, &b"[1]"[..]));
        assert_eq!(m.drop_ready(1), Some(1));
        m.counts.aborted += 1;
        let input = first.input.clone();
        m.start(first, "e".into(), 1);
        let was = m.end(0).unwrap();
        assert_eq!((m.requeue(0, was), &input[..]), (2, &b"[1]"[..]));
        m.check();
        let order: Vec<_> = std::iter::from_fn(|| m.take(0)).map(|t| (t.index, t.run, t.input)).collect();
        assert_eq!(order, [(0, 2, "[1]".into()), (2, 1, "[3]".into()), (3, 1, Bytes::from("[4]"))]);
        assert!(!m.has_ready() && m.dropped.is_empty());
    }

    #[test]
    fn answers_wait_for_more_results_only_if_there_are_tasks() {
        let mut m = map();
        m.push(Bytes::from_static(b"1\n2"), 2);
        m.answered = Duration::from_secs(7);
        assert_eq!(m.next_answer(), None);
        m.watch(Watch {
            client: Bytes::new(),
            parent: Bytes::new(),
            from: 0,
            limit: 1,
            without_inputs: false,
            until: Duration::from_secs(9),
            done: None,
            begun: None,
        });
        m.counts.ok = 1;
        assert_eq!(m.next_answer(), Some(Duration::from_secs(7) + WATCH_PAUSE));
        m.counts.ok = 2;
        assert_eq!(
            m.next_answer(),
            Some(Duration::from_secs(7)),
            "a client may wait for this one before it sends more"
        );
    }

    #[test]
    fn a_task_is_open_until_done() {
        let mut m = map();
        m.push(Bytes::from_static(b"1\n2"), 2);
        assert!(m.is_open(0) && m.is_open(1) && !m.is_open(2));
        m.take(0);
        assert!(!m.is_open(0) && m.is_open(1));
    }
}
