//! The end of an attempt: its task is finished or retried.
use super::Core;
use super::maps::{InFlight, Returned, Tries};
use super::outbox::Timer;
use crate::model::change::{Attempt, Change};
use crate::model::output::{Output, Stream, Written};
use crate::model::task::{Outcome, TaskState};
use crate::model::{EngineUuid, MapId, TaskId, UnixTime};
use crate::wire::content::client::{Selection, SelectionReply, ok};
use crate::wire::content::engine::{self, Held, Progress, Results, TaskResult};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::time::Duration;

/// The minimum interval between answers to the watches of a map.
const WATCH_PAUSE: Duration = Duration::from_millis(20);

/// Tasks of at least this many bytes are read by the records' thread.
const LARGE: usize = 64 << 10;

/// The part of an output after the recorded bytes; None if bytes between them are missing.
fn following(output: &Output, written: u64) -> Option<Bytes> {
    let known = usize::try_from(written.checked_sub(output.start)?).ok()?;
    Some(
        output
            .bytes
            .get(known..)
            .map(|rest| output.bytes.slice_ref(rest))
            .unwrap_or_default(),
    )
}

/// Reduces the outcome's output to the unrecorded rest. If bytes are missing, the attempt counts as lost.
fn with_output(mut outcome: Outcome, written: Written, now: UnixTime) -> Outcome {
    let (started, on_record) = (outcome.started, written[Stream::Value as usize]);
    let lost = |what: String| {
        let mut lost = Outcome::failure(TaskState::Lost, "OutputLost", what, started, now);
        lost.crashed = true;
        lost
    };
    if let Some(size) = outcome.value_size.filter(|size| *size != on_record) {
        return lost(format!("{on_record} of {size} bytes of the task's value are recorded"));
    }
    for (stream, output) in outcome.outputs() {
        let written = written[stream as usize];
        let rest = match output.size {
            // The engine reports no further output.
            0 => Some(Bytes::new()),
            size => following(output, written).filter(|_| size >= written),
        };
        let Some(rest) = rest else {
            let what = format!(
                "{written} bytes of the task's {} are recorded, but its engine sent the bytes after the first {} of {}",
                stream.as_str(),
                output.start,
                output.size
            );
            return lost(what);
        };
        *output = Output::rest(written, rest);
    }
    outcome
}

impl Core {
    pub(super) fn results(&mut self, engine: &EngineUuid, results: Results) {
        let sequence = results.sequence;
        let mut maps = BTreeSet::new();
        for result in results.results {
            maps.insert(result.map);
            self.attempt_ended(engine, result);
        }
        for map in maps {
            self.after_changes(map);
        }
        self.engines.acknowledge(engine, sequence, &mut self.out);
    }

    /// Accepts the first result for a task's current run and ignores all others.
    fn attempt_ended(&mut self, engine: &EngineUuid, result: TaskResult) {
        let TaskResult { map, index, run, outcome } = result;
        let task = TaskId::new(map, index);
        let expected = self.maps.get(&map).and_then(|m| m.in_flight.get(&index));
        if !expected.is_some_and(|t| t.run == run && t.engine == *engine) {
            return;
        }
        let Some(in_flight) = self.take_from_engine(task) else { return };
        let outcome = with_output(outcome, in_flight.written, self.out.now().unix);
        self.engines.change(engine, |e| e.finish_task());
        let Some(map) = self.maps.get_mut(&map) else { return };
        map.learn_duration(outcome.ended.since(outcome.started));
        map.large |= outcome.bytes() + in_flight.input.len() > LARGE;
        let options = &map.definition.options;
        let mut tries = in_flight.tries;
        let again = match outcome.status {
            TaskState::Ok | TaskState::Aborted => false,
            _ if in_flight.cancelled || map.targets.is_some() => false,
            _ if outcome.crashed => {
                tries.crashes += 1;
                tries.crashes <= options.max_crashes
            }
            _ => {
                tries.errors += 1;
                tries.errors <= options.retries
            }
        };
        if again {
            self.return_task(task, in_flight, tries, Some(outcome));
        } else {
            self.finish(task, run, Some(engine), outcome);
        }
    }

    /// Removes a task from its engine.
    pub(super) fn take_from_engine(&mut self, task: TaskId) -> Option<InFlight> {
        let in_flight = self.maps.get_mut(&task.map)?.in_flight.remove(&task.index)?;
        self.engines.change(&in_flight.engine, |e| e.drop_task(task));
        Some(in_flight)
    }

    /// Requeues a task under the next run number, so that later messages about this run are ignored.
    pub(super) fn return_task(&mut self, task: TaskId, was: InFlight, tries: Tries, outcome: Option<Outcome>) {
        let run = was.run + 1;
        let engine_id = self.engines.get(&was.engine).map(|e| e.id());
        let attempt = match (outcome, engine_id) {
            (Some(outcome), Some(engine)) => Some(Attempt {
                engine,
                outcome: Box::new(outcome),
            }),
            _ => None,
        };
        self.out.record(Change::TaskReturned { task, run, attempt });
        if let Some(map) = self.maps.get_mut(&task.map) {
            let engine = map.targets.is_some().then_some(was.engine);
            map.returned.insert(
                task.index,
                Returned {
                    run,
                    input: was.input,
                    tries,
                    engine,
                },
            );
        }
        self.note_runnable(task.map);
    }

    /// Finishes a task.
    pub(super) fn finish(&mut self, task: TaskId, run: u32, engine: Option<&EngineUuid>, outcome: Outcome) {
        let engine = engine.and_then(|uuid| self.engines.get(uuid)).map(|e| e.id());
        self.finished_tasks += 1;
        if let Some(map) = self.maps.get_mut(&task.map) {
            map.count(outcome.status);
        }
        self.out.record(Change::TaskFinished {
            task,
            run,
            engine,
            outcome: Box::new(outcome),
        });
    }

    /// Finishes an unassigned task.
    pub(super) fn finish_unsent(&mut self, task: TaskId, run: u32, status: TaskState, ename: &str, why: &str) {
        let at = self.out.now().unix;
        self.finish(task, run, None, Outcome::failure(status, ename, why, at, at));
        self.after_changes(task.map);
    }

    /// Completes a map if all its tasks are finished, and answers its watches.
    pub(super) fn after_changes(&mut self, id: MapId) {
        self.note_runnable(id);
        let Some(map) = self.maps.get(&id) else { return };
        if map.is_complete() {
            self.complete(id);
            return;
        }
        let due = map.answered + WATCH_PAUSE;
        if map.watches.is_empty() {
            return;
        }
        if due <= self.out.now().since_start {
            self.answer_watches(id);
        } else {
            let after = due - self.out.now().since_start;
            self.out.set_timer(after, Timer::Watches(id));
        }
    }

    /// Removes a complete map from memory; its records stay.
    fn complete(&mut self, id: MapId) {
        self.out.record(Change::MapCompleted {
            map: id,
            at: Some(self.out.now().unix),
        });
        self.answer_watches(id);
        let Some(map) = self.maps.remove(&id) else { return };
        self.keys.remove(&map.key);
        self.runnable.remove(&id);
        let failed = map.counts.failed();
        self.finished.insert(id, failed > 0);
        for engine in map.known_by {
            self.engines.forget_map(engine, id);
        }
        if let Some(others) = map.waiting_for.and_then(|other| self.followers.get_mut(&other)) {
            others.retain(|other| *other != id);
        }
        self.release_followers(id, failed);
    }

    /// Releases or aborts the maps that waited for this one.
    fn release_followers(&mut self, id: MapId, failed: u64) {
        for follower in self.followers.get(&id).cloned().unwrap_or_default() {
            if failed == 0 {
                if let Some(map) = self.maps.get_mut(&follower) {
                    map.waiting_for = None;
                }
                self.out.record(Change::MapReleased { map: follower });
                self.note_runnable(follower);
            } else {
                self.abort_if_hopeless(follower);
            }
        }
        if failed == 0 {
            self.followers.remove(&id);
        }
    }

    /// Aborts the tasks of a map that follows a failed one, including tasks added later.
    pub(super) fn abort_if_hopeless(&mut self, id: MapId) {
        let Some(other) = self.maps.get(&id).and_then(|m| m.waiting_for) else {
            return;
        };
        if self.finished.get(&other) == Some(&true) {
            let why = format!("map {other}, which it follows, has failed tasks; hint: resubmit those, then this map");
            self.abort_unsent(id, "DependencyFailed", &why);
            self.after_changes(id);
        }
    }

    /// Aborts all unassigned tasks of a map and returns their number.
    pub(super) fn abort_unsent(&mut self, id: MapId, ename: &str, why: &str) -> u64 {
        let Some(map) = self.maps.get_mut(&id) else { return 0 };
        let mut tasks: Vec<(u32, u32)> = map.drop_unsent().into_iter().map(|index| (index, 1)).collect();
        tasks.extend(std::mem::take(&mut map.returned).into_iter().map(|(index, t)| (index, t.run)));
        let at = self.out.now().unix;
        for (index, run) in &tasks {
            let outcome = Outcome::failure(TaskState::Aborted, ename, why, at, at);
            self.finish(TaskId::new(id, *index), *run, None, outcome);
        }
        self.note_runnable(id);
        tasks.len() as u64
    }

    pub(super) fn progress(&mut self, engine: &EngineUuid, progress: Progress, buffers: &[Bytes]) {
        let Held { map, index, run } = progress.task;
        let task = TaskId::new(map, index);
        let in_flight = self.maps.get_mut(&map).and_then(|m| m.in_flight.get_mut(&index));
        let Some(in_flight) = in_flight.filter(|t| t.run == run && t.engine == *engine) else {
            // The run is outdated: the engine can drop its output.
            if !progress.parts.is_empty() {
                self.send_output_recorded(engine, progress.task, [u64::MAX; 3]);
            }
            return;
        };
        let first = !std::mem::replace(&mut in_flight.begun, true);
        let Some(id) = self.engines.get(engine).map(|e| e.id()) else {
            return;
        };
        if first {
            let started = super::untrusted::time(UnixTime(progress.started), self.out.now());
            self.out.record(Change::TaskBegun {
                task,
                run,
                engine: id,
                started,
            });
        }
        let mut added = Vec::new();
        if let Some(in_flight) = self.maps.get_mut(&map).and_then(|m| m.in_flight.get_mut(&index)) {
            for (part, bytes) in progress.parts.iter().zip(buffers) {
                let written = &mut in_flight.written[part.stream as usize];
                let rest = Output::rest(part.start, bytes.clone());
                if let Some(bytes) = following(&rest, *written).filter(|bytes| !bytes.is_empty()) {
                    *written = rest.size;
                    added.push((part.stream, bytes));
                }
            }
        }
        for (stream, bytes) in added {
            self.out.record(Change::OutputAdded { task, stream, bytes });
        }
        if !progress.parts.is_empty() {
            let in_flight = self.maps.get(&map).and_then(|m| m.in_flight.get(&index));
            let written = in_flight.map(|t| t.written).unwrap_or_default();
            self.send_output_recorded(engine, progress.task, written);
        }
    }

    fn send_output_recorded(&mut self, engine: &EngineUuid, task: Held, [stdout, stderr, value]: Written) {
        let recorded = engine::OutputRecorded {
            task,
            stdout,
            stderr,
            value,
        };
        self.out.send_to_engine(engine, engine::OUTPUT_RECORDED, &recorded);
    }

    /// Unbegun tasks come back.
    pub(super) fn returned(&mut self, engine: &EngineUuid, tasks: &[Held]) {
        self.engines.change(engine, |e| e.end_recall());
        for held in tasks {
            let task = TaskId::new(held.map, held.index);
            let expected = self.maps.get(&held.map).and_then(|m| m.in_flight.get(&held.index));
            if !expected.is_some_and(|t| t.run == held.run && t.engine == *engine) {
                continue;
            }
            let Some(in_flight) = self.take_from_engine(task) else { continue };
            if in_flight.cancelled {
                self.finish_unsent(task, in_flight.run, TaskState::Aborted, "TaskCancelled", "cancelled");
                continue;
            }
            let tries = in_flight.tries;
            self.return_task(task, in_flight, tries, None);
        }
    }

    /// The tasks of an engine that has gone, which may have died of one of them: of one that it is known to have begun, or
    /// else of the one that it was sent first.
    pub(super) fn tasks_of_gone(&mut self, engine: &EngineUuid, id: crate::model::EngineId, tasks: Vec<(TaskId, u32)>, why: &str) {
        let in_flight = |task: &TaskId| self.maps.get(&task.map).and_then(|m| m.in_flight.get(&task.index));
        let begun = tasks.iter().any(|(task, _)| in_flight(task).is_some_and(|t| t.begun));
        let first = tasks
            .iter()
            .map(|(task, _)| *task)
            .min_by_key(|task| (in_flight(task).map(|t| t.sent), *task));
        if let Some(first) = first.filter(|_| !begun)
            && let Some(suspect) = self.maps.get_mut(&first.map).and_then(|m| m.in_flight.get_mut(&first.index))
        {
            suspect.begun = true;
        }
        self.tasks_lost(engine, id, tasks, why);
    }

    /// Handles tasks that the engine will not finish.
    pub(super) fn tasks_lost(&mut self, engine: &EngineUuid, id: crate::model::EngineId, tasks: Vec<(TaskId, u32)>, why: &str) {
        let mut maps = BTreeSet::new();
        for (task, run) in tasks {
            let Some(in_flight) = self.take_from_engine(task) else { continue };
            maps.insert(task.map);
            let at = self.out.now().unix;
            let mut tries = in_flight.tries;
            // A task that was not started cannot have been the cause.
            tries.crashes += u32::from(in_flight.begun);
            let Some(map) = self.maps.get(&task.map) else { continue };
            let may_again = map.targets.is_none() && !in_flight.cancelled && tries.crashes <= map.definition.options.max_crashes;
            let status = if in_flight.cancelled { TaskState::Aborted } else { TaskState::Lost };
            let mut outcome = Outcome::failure(status, "EngineLost", format!("engine {id} left: {why}"), at, at);
            outcome.crashed = true;
            if may_again {
                let attempt = in_flight.begun.then_some(outcome);
                self.return_task(task, in_flight, tries, attempt);
            } else {
                self.finish(task, run, Some(engine), outcome);
            }
        }
        for map in maps {
            self.after_changes(map);
        }
    }

    pub(super) fn cancel(&mut self, selection: &Selection) -> SelectionReply {
        let (mut changed, mut unchanged) = (0, 0);
        let mut to_engines: std::collections::BTreeMap<EngineUuid, Vec<Held>> = Default::default();
        for id in &selection.maps {
            let Some(map) = self.maps.get_mut(id) else {
                unchanged += 1;
                continue;
            };
            map.closed = true;
            let total = map.counts.total as u32;
            let mut cancelling = Vec::new();
            for (index, task) in &mut map.in_flight {
                task.cancelled = true;
                cancelling.push(TaskId::new(*id, *index));
                let held = Held {
                    map: *id,
                    index: *index,
                    run: task.run,
                };
                to_engines.entry(task.engine.clone()).or_default().push(held);
                changed += 1;
            }
            for task in cancelling {
                self.out.record(Change::TaskCancelling { task });
            }
            self.out.record(Change::MapClosed { map: *id, total });
            changed += self.abort_unsent(*id, "TaskCancelled", "cancelled");
            self.after_changes(*id);
        }
        for task in &selection.tasks {
            let Some(map) = self.maps.get_mut(&task.map) else {
                unchanged += 1;
                continue;
            };
            if let Some(in_flight) = map.in_flight.get_mut(&task.index) {
                in_flight.cancelled = true;
                let held = Held {
                    map: task.map,
                    index: task.index,
                    run: in_flight.run,
                };
                to_engines.entry(in_flight.engine.clone()).or_default().push(held);
                self.out.record(Change::TaskCancelling { task: *task });
            } else if let Some(returned) = map.returned.remove(&task.index) {
                self.finish_unsent(*task, returned.run, TaskState::Aborted, "TaskCancelled", "cancelled");
            } else if map.is_unsent(task.index) {
                map.dropped.insert(task.index);
                self.finish_unsent(*task, 1, TaskState::Aborted, "TaskCancelled", "cancelled");
            } else {
                unchanged += 1;
                continue;
            }
            changed += 1;
        }
        for (engine, tasks) in to_engines {
            self.out.send_to_engine(&engine, engine::CANCEL, &engine::Cancel { tasks });
        }
        let mut maps: Vec<MapId> = selection.maps.clone();
        maps.extend(selection.tasks.iter().map(|t| t.map));
        maps.sort();
        maps.dedup();
        SelectionReply {
            status: ok(),
            changed,
            unchanged,
            maps,
        }
    }
}
