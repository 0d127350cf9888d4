//! The workers of an engine, and the interpreter that forks them.
use super::Driver;
use crate::engine::core::{Event, WorkerKey};
use crate::engine::worker::interpreter::{Interpreter, InterpreterCommand};
use crate::engine::worker::process::{IPYTHON, Worker, WorkerEvent};
use crate::engine::worker::protocol::frame;
use crate::wire::message::to_json;
use bytes::Bytes;
use std::collections::HashMap;
use std::time::Duration;

/// Time limit for exit handlers of workers (such as MPI_Finalize).
const EXIT_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Default)]
pub(super) struct WorkerPool {
    interpreter: Option<Interpreter>,
    spare: Option<Worker>,
    workers: HashMap<WorkerKey, Worker>,
    /// Workers that were asked to exit and are still running.
    walltime: HashMap<u64, Worker>,
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
        self.spare.iter().chain(self.workers.values()).chain(self.walltime.values())
    }

    /// Finds any worker, including those that were asked to exit.
    pub(super) fn any_mut(&mut self, number: u64) -> Option<&mut Worker> {
        let all = self.spare.iter_mut().chain(self.workers.values_mut());
        all.chain(self.walltime.values_mut()).find(|worker| worker.number == number)
    }

    /// Removes a worker that was asked to exit and has ended.
    pub(super) fn has_ended(&mut self, number: u64) {
        self.walltime.remove(&number);
    }

    fn has_interactive(&self) -> bool {
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
        self.walltime.insert(worker.number, worker);
    }

    /// Asks all workers to exit.
    fn close(&mut self) {
        let all = self.workers.drain().map(|(_, worker)| worker).chain(self.spare.take());
        for mut worker in all {
            worker.close();
            self.walltime.insert(worker.number, worker);
        }
    }
}

impl Driver {
    pub(super) fn assign_spare(&mut self, key: WorkerKey) {
        if let Some(mut worker) = self.pool.spare.take() {
            worker.enlarge();
            self.pool.workers.insert(key, worker);
            self.forker.reaper().spare_unmarked(self.pool.has_interactive());
        }
    }

    /// Removes and returns a worker that has ended (None: the spare).
    pub(super) fn remove_worker(&mut self, key: Option<WorkerKey>) -> Option<Worker> {
        let worker = match key {
            Some(key) => self.pool.workers.remove(&key),
            None => self.pool.spare.take(),
        };
        self.forker.reaper().spare_unmarked(self.pool.has_interactive());
        worker
    }

    pub(super) async fn start_worker(&mut self, has_shell: bool) -> Option<Event> {
        match self.fork_worker(has_shell).await {
            Ok(worker) => {
                self.pool.spare = Some(worker);
                if has_shell {
                    self.send_ipython(None, true);
                }
                None
            }
            Err(reason) => {
                tracing::warn!("cannot start a Python worker: {reason}");
                Some(Event::WorkerFailed { reason })
            }
        }
    }

    async fn fork_worker(&mut self, has_shell: bool) -> Result<Worker, String> {
        if self.pool.interpreter.as_ref().is_none_or(Interpreter::has_ended) {
            let command = InterpreterCommand {
                python: self.python.clone(),
                cwd: self.settings.cwd.clone(),
                env: self.settings.env.clone().into_iter().collect(),
                in_job: !self.facts.job.is_empty(),
            };
            self.pool.interpreter = Some(Interpreter::start(&command, &self.forker).await?);
        }
        let interpreter = self.pool.interpreter.as_ref().ok_or("no interpreter")?;
        let worker = Worker::start(interpreter, self.forker.reaper().owner(), has_shell, self.worker_sender.clone())?;
        for pipe in [&worker.stdout, &worker.stderr] {
            let added = self.watch.add(worker.number, pipe);
            added.map_err(|e| format!("cannot watch the output of a worker: {e}"))?;
        }
        Ok(worker)
    }

    /// Sends IPython support to a worker, once.
    pub(super) fn send_ipython(&mut self, key: Option<WorkerKey>, now: bool) {
        let settings = serde_json::json!({ "traits": self.settings.shell, "profile_dir": self.settings.profile_dir, "now": now });
        let Some(worker) = self.pool.get_mut(key) else { return };
        if !std::mem::replace(&mut worker.has_ipython, true) {
            worker.send(vec![frame(b'M', 0, IPYTHON.as_bytes()), frame(b'S', 0, &to_json(&settings))]);
        }
    }

    pub(super) fn send_to_worker(&mut self, key: WorkerKey, frames: impl FnOnce() -> Vec<Bytes>, tokens: usize) {
        if let Some(worker) = self.pool.get_mut(Some(key)) {
            // Tokens first, so that they are available when the frames arrive.
            if tokens > 0 {
                worker.add_tokens(tokens);
            }
            worker.send(frames());
        }
    }

    pub(super) fn queue_for_worker(&mut self, key: WorkerKey, frame: impl FnOnce() -> Bytes) {
        if let Some(worker) = self.pool.get_mut(Some(key)) {
            worker.send_later(frame());
        }
    }

    /// Ends all workers and the processes that they started.
    pub(super) async fn end_workers(&mut self) {
        self.pool.close();
        let until = tokio::time::Instant::now() + EXIT_TIMEOUT;
        while !self.pool.walltime.is_empty() {
            tokio::select! {
                event = self.worker_events.recv() => match event {
                    Some((number, WorkerEvent::Exited(_))) => self.pool.has_ended(number),
                    Some(_) => {}
                    None => break,
                },
                numbers = self.watch.written() => self.mark_written(&numbers),
                () = tokio::time::sleep_until(until) => break,
            }
            self.pump().await;
        }
        // Dropping kills the remaining workers.
        self.pool.walltime.clear();
        self.forker.reaper().end_all().await;
    }
}
