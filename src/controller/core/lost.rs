//! Work comes back from an engine: returned unstarted, or lost with the engine. It is queued again, or ends as lost.
use super::Core;
use super::engines::ORPHAN_GRACE;
use super::maps::{Fault, InFlight, Retry};
use super::outbox::Timer;
use crate::model::change::{Attempt, Change};
use crate::model::job::JobRow;
use crate::model::task::{Cause, Outcome, TaskState};
use crate::model::{EngineId, EngineUuid, TaskId};
use crate::wire::content::engine::Returned;
use std::collections::BTreeSet;

impl Core {
    /// Takes back tasks and requests that the engine has not started.
    pub(super) fn work_returned(&mut self, engine: &EngineUuid, returned: &Returned) {
        for (msg_id, run) in returned.requests() {
            let open = self.requests.get(msg_id).filter(|open| open.is_at(engine) && open.is_balanced());
            // A repeated report may have arrived the first time, and the request may have been assigned again since.
            let Some(open) = open.filter(|open| run.is_none_or(|run| run == open.run())) else {
                continue;
            };
            let anywhere = open.is_unconstrained();
            self.engines.change(engine, |e| e.drop_request(msg_id));
            self.requests.withdraw(msg_id, &mut self.out);
            match anywhere {
                true => self.requests.enqueue_first(msg_id),
                false => self.admit(msg_id),
            }
        }
        self.engines.change(engine, |e| e.end_recall());
        for held in &returned.tasks {
            let task = TaskId::new(held.map, held.index);
            if self.maps.in_flight_at(task, held.run, engine).is_none() {
                continue;
            }
            let Some(in_flight) = self.take_from_engine(task) else { continue };
            match in_flight.is_cancelled() {
                true => self.finish_unsent(task, held.run, TaskState::Aborted, "TaskCancelled", "cancelled"),
                false => self.requeue_task(task, in_flight, None),
            }
        }
    }

    fn take_from_engine(&mut self, task: TaskId) -> Option<InFlight> {
        let in_flight = self.maps.change(task.map, |map| map.end(task.index))??;
        self.engines.change(in_flight.engine(), |e| e.drop_task(task));
        Some(in_flight)
    }

    /// Queues a task again, under the next run number. `outcome`: how its attempt failed, if it began.
    pub(super) fn requeue_task(&mut self, task: TaskId, was: InFlight, outcome: Option<Outcome>) {
        let engine = self.engines.get(was.engine()).map(|e| e.id());
        let attempt = engine.zip(outcome).map(|(engine, outcome)| Attempt {
            engine,
            outcome: Box::new(outcome),
        });
        let (ask, used) = (was.ask(), was.used());
        if let Some(run) = self.maps.change(task.map, |map| map.requeue(task.index, was)) {
            self.out.record(Change::TaskReturned { task, run, attempt });
            if !ask.is_default() {
                self.out.record(Change::TaskAsks { task, ask, used });
            }
        }
    }

    /// Handles the work of an engine that left. It may have died of one of its tasks: of one that it is known to have begun, or
    /// else of the one that it was sent first.
    pub(super) fn work_lost(&mut self, engine: &EngineUuid, id: EngineId, why: &str) {
        let Some(left) = self.engines.get(engine) else { return };
        let (tasks, requests): (Vec<_>, Vec<String>) = (left.tasks().collect(), left.requests().cloned().collect());
        let in_flight = |task: &TaskId| self.maps.in_flight(*task);
        let begun = tasks.iter().any(|(task, _)| in_flight(task).is_some_and(|t| t.has_begun()));
        let first = tasks
            .iter()
            .map(|(task, _)| *task)
            .min_by_key(|task| (in_flight(task).map(|t| t.sent()), *task));
        if let Some(suspect) = first.filter(|_| !begun).and_then(|first| self.maps.in_flight_mut(first)) {
            suspect.begin();
        }
        self.tasks_lost(engine, id, tasks, why);
        if !requests.is_empty() {
            // Like ipyparallel's client, wait for replies in transit.
            self.requests.orphan(engine, &requests);
            self.out.set_timer(ORPHAN_GRACE, Timer::Orphaned(engine.clone()));
        }
        for msg_id in requests {
            self.engines.change(engine, |e| e.drop_request(&msg_id));
        }
    }

    /// Remembers jobs that the batch system ended because they used too much memory: their engines are about to be lost.
    pub(super) fn note_jobs(&mut self, jobs: &[JobRow]) {
        for job in jobs.iter().filter(|job| job.out_of_memory) {
            let engines = self.engines.iter().filter(|(_, e)| job.is_of_engine(&e.facts().job));
            for uuid in engines.map(|(uuid, _)| uuid.clone()).collect::<Vec<_>>() {
                self.engines.change(&uuid, |e| e.note_out_of_memory());
            }
        }
    }

    /// Handles tasks that the engine will not finish.
    pub(super) fn tasks_lost(&mut self, engine: &EngineUuid, id: EngineId, tasks: Vec<(TaskId, u32)>, why: &str) {
        let mut maps = BTreeSet::new();
        let at = self.out.now().unix;
        let had_too_little = self.engines.get(engine).is_some_and(|e| e.is_out_of_memory());
        for (task, run) in tasks {
            let Some(mut in_flight) = self.take_from_engine(task) else {
                continue;
            };
            maps.insert(task.map);
            let Some(map) = self.maps.get(task.map) else { continue };
            let left = format!("engine {id} left: {why}");
            let (status, ename, evalue) = match in_flight.is_cancelled() {
                true => (TaskState::Aborted, "TaskCancelled", format!("cancelled; {left}")),
                false => (TaskState::Lost, "EngineLost", left),
            };
            let mut outcome = Outcome::failure(status, ename, evalue, in_flight.began().unwrap_or(at), at);
            outcome.crashed = true;
            // A task that was not started cannot have been the cause.
            outcome.cause = Some(match had_too_little && in_flight.has_begun() {
                true => Cause::MemoryJob,
                false => Cause::EngineLost,
            });
            let fault = match in_flight.has_begun() {
                true => Fault::of(&outcome, map.options()).unwrap_or(Fault::Crash),
                false => Fault::Engine,
            };
            let retry = map.retry(&mut in_flight, fault, |request| self.engines.nodes().max_memory(request));
            match retry {
                Retry::Again if !in_flight.has_begun() => self.requeue_task(task, in_flight, None),
                retry => self.end_attempt(task, in_flight, (run, engine), outcome, retry),
            }
        }
        for map in maps {
            self.after_changes(map);
        }
    }

    /// Ends the requests of an engine that left, or queues them again.
    pub(super) fn orphaned(&mut self, engine: &EngineUuid) {
        for (place, msg_id) in self.requests.take_orphans(engine).into_iter().enumerate() {
            let Some(open) = self.requests.get(&msg_id) else { continue };
            let why = format!("Engine {engine} died while running task {msg_id}");
            if !open.is_balanced() {
                self.fail_direct(&msg_id, engine, &why);
            } else if open.sent() > 0 && place > 0 {
                // It was queued behind the request that may have crashed the engine.
                self.rerun_request(&msg_id);
            } else {
                self.request_lost(&msg_id, &why);
            }
        }
    }

    /// Uses a retry of a request whose engine is gone, if one is left, else fails it.
    pub(super) fn request_lost(&mut self, msg_id: &str, why: &str) {
        match self.requests.get_mut(msg_id).is_some_and(|open| open.use_retry()) {
            true => self.rerun_request(msg_id),
            false => self.fail_request(msg_id, "EngineError", why),
        }
    }

    fn rerun_request(&mut self, msg_id: &str) {
        self.requests.withdraw(msg_id, &mut self.out);
        self.admit(msg_id);
    }
}
