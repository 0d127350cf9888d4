//! Progress and results of map tasks: a task is finished or retried, and with its last task a map is complete.
use super::Core;
use super::maps::{Fault, InFlight, Map, Retry};
use super::outbox::Timer;
use crate::model::change::Change;
use crate::model::output::{Output, Stream, Written};
use crate::model::resources::Request;
use crate::model::task::{Outcome, TaskState};
use crate::model::{EngineUuid, MapId, TaskId, UnixTime};
use crate::wire::content::engine::{self, Held, Progress, Results, TaskResult};
use bytes::Bytes;
use std::collections::BTreeSet;

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
            size => output.following(written).filter(|_| size >= written),
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
        let mut maps = BTreeSet::new();
        for result in results.results {
            maps.insert(result.map);
            self.attempt_ended(engine, result);
        }
        for map in maps {
            self.after_changes(map);
        }
        self.engines.acknowledge(engine, results.sequence, &mut self.out);
    }

    /// Accepts the first result for a task's current run and ignores all others.
    fn attempt_ended(&mut self, engine: &EngineUuid, result: TaskResult) {
        let TaskResult { map, index, run, outcome } = result;
        let task = TaskId::new(map, index);
        if self.maps.in_flight_at(task, run, engine).is_none() {
            return;
        }
        let now = self.out.now().unix;
        let since_start = self.out.now().since_start;
        let taken = outcome.ended.since(outcome.started);
        let cpus = self.maps.get(map).map_or(1, Map::cpus);
        self.queue.charge(map, cpus, taken);
        let expected_s = self.maps.get(map).and_then(|map| map.options().time_s.or(Some(taken)));
        self.engines.change(engine, |e| {
            e.finish_task(task);
            e.restart_pace(map, expected_s, since_start);
        });
        let ended = self.maps.change(map, |map| {
            let mut in_flight = map.end(index)?;
            let outcome = with_output(outcome, in_flight.written(), now);
            // One that was stopped says nothing about the others.
            if outcome.status != TaskState::Aborted {
                map.learn(&in_flight, taken, outcome.bytes());
            }
            let max_memory = |request: &Request| self.engines.nodes().max_memory(request);
            let retry = match Fault::of(&outcome, map.options()) {
                Some(fault) => map.retry(&mut in_flight, fault, max_memory),
                None => Retry::Never,
            };
            Some((in_flight, outcome, retry))
        });
        if let Some((in_flight, outcome, retry)) = ended.flatten() {
            self.end_attempt(task, in_flight, (run, engine), outcome, retry);
        }
    }

    /// Repeats a task whose attempt has ended, or finishes it.
    pub(super) fn end_attempt(&mut self, task: TaskId, was: InFlight, (run, engine): (u32, &EngineUuid), outcome: Outcome, retry: Retry) {
        match retry {
            Retry::Again => self.requeue_task(task, was, Some(outcome)),
            Retry::Never => self.finish(task, run, Some(engine), outcome),
            Retry::Exhausted(why) => {
                let mut outcome = outcome;
                if let Some(error) = &mut outcome.error {
                    error.evalue = format!("{}; not retried: {why}", error.evalue);
                }
                self.finish(task, run, Some(engine), outcome);
            }
        }
    }

    /// Finishes a task.
    pub(super) fn finish(&mut self, task: TaskId, run: u32, engine: Option<&EngineUuid>, outcome: Outcome) {
        let engine = engine.and_then(|uuid| self.engines.get(uuid)).map(|e| e.id());
        self.finished_tasks += 1;
        self.maps.change(task.map, |map| map.count(outcome.status));
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
        let Some(map) = self.maps.get(id) else { return };
        if map.is_complete() {
            return self.complete(id);
        }
        let Some(due) = map.next_answer() else { return };
        match due.saturating_sub(self.out.now().since_start) {
            left if left.is_zero() => self.answer_watches(id),
            left => self.out.set_timer(left, Timer::Watches(id)),
        }
    }

    /// Removes a complete map from memory; its records stay.
    fn complete(&mut self, id: MapId) {
        self.out.record(Change::MapCompleted {
            map: id,
            at: Some(self.out.now().unix),
        });
        self.answer_watches(id);
        let Some(map) = self.maps.complete(id) else { return };
        let has_failed = map.counts().failed() > 0;
        for engine in map.into_known_by() {
            self.engines.forget_map(engine, id);
        }
        if has_failed {
            for follower in self.maps.followers(id) {
                self.abort_if_hopeless(follower);
            }
        } else {
            for follower in self.maps.release_followers(id) {
                self.out.record(Change::MapReleased { map: follower });
            }
        }
    }

    /// Aborts the tasks of a map that follows a failed one, including tasks added later.
    pub(super) fn abort_if_hopeless(&mut self, id: MapId) {
        let Some(other) = self.maps.get(id).and_then(|m| m.waiting_for()) else {
            return;
        };
        if self.maps.has_failed(other) == Some(true) {
            let why = format!("map {other}, which it follows, has failed tasks; hint: resubmit those, then this map");
            self.abort_unsent(id, "DependencyFailed", &why);
            self.after_changes(id);
        }
    }

    /// Aborts all unassigned tasks of a map and returns their number.
    pub(super) fn abort_unsent(&mut self, id: MapId, ename: &str, why: &str) -> u64 {
        let tasks = self.maps.change(id, |map| map.drop_all_ready()).unwrap_or_default();
        let at = self.out.now().unix;
        for (index, run) in &tasks {
            let outcome = Outcome::failure(TaskState::Aborted, ename, why, at, at);
            self.finish(TaskId::new(id, *index), *run, None, outcome);
        }
        tasks.len() as u64
    }

    pub(super) fn progress(&mut self, engine: &EngineUuid, progress: Progress, buffers: &[Bytes]) {
        let Held { map, index, run } = progress.task;
        let task = TaskId::new(map, index);
        let in_flight = self.maps.in_flight_mut(task).filter(|t| t.is_at(run, engine));
        let (Some(in_flight), Some(id)) = (in_flight, self.engines.get(engine).map(|e| e.id())) else {
            // The run is outdated: the engine can drop its output.
            if !progress.parts.is_empty() {
                self.send_output_recorded(engine, progress.task, [u64::MAX; 3]);
            }
            return;
        };
        let started = super::untrusted::time(UnixTime(progress.started), self.out.now());
        in_flight.note_start(started);
        if in_flight.begin() {
            self.out.record(Change::TaskBegun {
                task,
                run,
                engine: id,
                started,
            });
        }
        for (part, bytes) in progress.parts.iter().zip(buffers) {
            if let Some(bytes) = in_flight.write(part.stream, part.start, bytes) {
                let stream = part.stream;
                self.out.record(Change::OutputAdded { task, stream, bytes });
            }
        }
        if !progress.parts.is_empty() {
            let written = in_flight.written();
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
}
