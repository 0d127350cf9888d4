//! Starts, feeds and ends the workers.
use super::Driver;
use super::pool::EXIT_TIMEOUT;
use crate::engine::core::{Event, WorkerKey};
use crate::engine::worker::interpreter::{Interpreter, InterpreterCommand, StartError};
use crate::engine::worker::process::{IPYTHON, Worker, WorkerEvent};
use crate::engine::worker::protocol::frame;
use crate::wire::message::to_json;
use bytes::Bytes;

impl Driver {
    pub(super) fn assign_spare(&mut self, key: WorkerKey) {
        if let Some(worker) = self.pool.assign_spare(key) {
            worker.enlarge();
            self.forker.reaper().spare_unmarked(self.pool.has_interactive());
        }
    }

    /// Removes and returns a worker that has ended (None: the spare).
    pub(super) fn remove_worker(&mut self, key: Option<WorkerKey>) -> Option<Worker> {
        let worker = self.pool.remove(key);
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
            Err(error) => {
                tracing::warn!("cannot start a Python worker: {error}");
                let reason = error.to_string();
                Some(Event::WorkerFailed { reason })
            }
        }
    }

    async fn fork_worker(&mut self, has_shell: bool) -> Result<Worker, StartError> {
        let interpreter = match self.pool.interpreter.take().filter(|interpreter| !interpreter.has_ended()) {
            Some(interpreter) => interpreter,
            None => {
                let command = InterpreterCommand {
                    python: self.python.clone(),
                    cwd: self.settings.cwd.clone(),
                    env: self.settings.env.clone().into_iter().collect(),
                    in_job: !self.facts.job.is_empty(),
                };
                Interpreter::start(&command, &self.forker).await?
            }
        };
        let interpreter = self.pool.interpreter.insert(interpreter);
        let worker = Worker::start(interpreter, self.forker.reaper().owner(), has_shell, self.worker_sender.clone())?;
        for pipe in [&worker.stdout, &worker.stderr] {
            let added = self.watch.add(worker.number, pipe);
            added.map_err(StartError::Output)?;
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
        while self.pool.has_exiting() {
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
        self.pool.kill_exiting();
        self.forker.reaper().end_all().await;
    }
}
