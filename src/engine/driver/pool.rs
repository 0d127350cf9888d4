//! The workers of an engine, and the interpreter that forks them.
use crate::engine::core::WorkerKey;
use crate::engine::worker::interpreter::Interpreter;
use crate::engine::worker::process::{Worker, WorkerExit};
use crate::engine::worker::protocol::Record;
use std::collections::HashMap;
use std::time::Duration;

/// Time limit for exit handlers of workers (such as MPI_Finalize).
pub(super) const EXIT_TIMEOUT: Duration = Duration::from_secs(3);

/// A report of a worker, queued until the output before it has been read.
#[derive(Debug)]
pub(super) enum WorkerReport {
    Record(Record),
    OutputSynced,
    Exited(WorkerExit),
}

#[derive(Default)]
pub(super) struct WorkerPool {
    pub interpreter: Option<Interpreter>,
    pub spare: Option<Worker>,
    workers: HashMap<WorkerKey, Worker>,
    /// Workers that were asked to exit and are still running.
    exiting: HashMap<u64, Worker>,
}

impl WorkerPool {
    pub(super) fn has_spare(&self) -> bool {
        self.spare.is_some()
    }

    /// None: the spare.
    pub(super) fn get_mut(&mut self, worker: Option<WorkerKey>) -> Option<&mut Worker> {
        match worker {
            Some(key) => self.workers.get_mut(&key),
            None => self.spare.as_mut(),
        }
    }

    /// Finds the spare (`Some(None)`) or an assigned worker by its number.
    pub(super) fn find(&self, number: u64) -> Option<Option<WorkerKey>> {
        if self.spare.as_ref().is_some_and(|spare| spare.number == number) {
            return Some(None);
        }
        let mut workers = self.workers.iter();
        workers.find(|(_, worker)| worker.number == number).map(|(key, _)| Some(*key))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Worker> {
        self.spare.iter().chain(self.workers.values()).chain(self.exiting.values())
    }

    /// Finds any worker, including those that were asked to exit.
    pub(super) fn any_mut(&mut self, number: u64) -> Option<&mut Worker> {
        let all = self.spare.iter_mut().chain(self.workers.values_mut());
        all.chain(self.exiting.values_mut()).find(|worker| worker.number == number)
    }

    /// The spare becomes this worker.
    pub(super) fn assign_spare(&mut self, key: WorkerKey) -> Option<&mut Worker> {
        let worker = self.spare.take()?;
        Some(self.workers.entry(key).insert_entry(worker).into_mut())
    }

    /// Removes and returns a worker that has ended (None: the spare).
    pub(super) fn remove(&mut self, key: Option<WorkerKey>) -> Option<Worker> {
        match key {
            Some(key) => self.workers.remove(&key),
            None => self.spare.take(),
        }
    }

    /// Whether workers that were asked to exit are still running.
    pub(super) fn has_exiting(&self) -> bool {
        !self.exiting.is_empty()
    }

    /// Kills the workers that are still running.
    pub(super) fn kill_exiting(&mut self) {
        self.exiting.clear();
    }

    /// Removes a worker that was asked to exit and has ended.
    pub(super) fn has_ended(&mut self, number: u64) {
        self.exiting.remove(&number);
    }

    pub(super) fn has_interactive(&self) -> bool {
        self.workers.contains_key(&WorkerKey::Interactive)
    }

    /// Asks a worker to exit; kills it when the time for its exit handlers is over.
    pub(super) fn end(&mut self, key: WorkerKey) {
        let Some(mut worker) = self.workers.remove(&key) else { return };
        worker.close();
        let pid = worker.pid.clone();
        tokio::spawn(async move {
            tokio::time::sleep(EXIT_TIMEOUT).await;
            pid.kill_unless_ended();
        });
        self.exiting.insert(worker.number, worker);
    }

    /// Asks all workers to exit.
    pub(super) fn close(&mut self) {
        let all = self.workers.drain().map(|(_, worker)| worker).chain(self.spare.take());
        for mut worker in all {
            worker.close();
            self.exiting.insert(worker.number, worker);
        }
    }
}
