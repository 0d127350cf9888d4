//! What the core wants, done.
use super::{Driver, now};
use crate::engine::command::{self, Running, ToRun};
use crate::engine::core::{Effect, Event, Stage, Unit};
use crate::engine::link::unix_now;
use crate::engine::memory;
use crate::engine::requests;
use crate::engine::worker::process::{IPYTHON, Worker, WorkerCommand, WorkerEvent};
use crate::engine::worker::protocol::{frame, parts_frame, tasks_frame};
use crate::model::definition::Work;
use crate::wire::Message;
use crate::wire::content::engine::*;
use crate::wire::message::to_json;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Duration;

/// How long a worker has for its own exit handlers (MPI_Finalize is one) when the engine ends.
const LAST_BREATH: Duration = Duration::from_secs(3);

impl Driver {
    pub(super) async fn handle(&mut self, event: Event) {
        let effects = self.core.handle(now(), event);
        self.act(effects).await;
    }

    pub(super) async fn act(&mut self, effects: Vec<Effect>) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            if let Some(event) = self.act_on(effect).await {
                // Answers come before anything else.
                for effect in self.core.handle(now(), event).into_iter().rev() {
                    effects.push_front(effect);
                }
            }
        }
    }

    pub(super) async fn act_on(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Register { holds } => {
                let register = self.register(holds);
                self.send(REGISTER, &register);
            }
            Effect::SendResults(results) => self.send(RESULTS, &*results),
            Effect::SendProgress(progress) => self.send(PROGRESS, &progress),
            Effect::SendReturned(returned) => self.send(RETURNED, &returned),
            Effect::RequestBegun(request) => requests::busy(self.link.as_mut()?, &request),
            Effect::Stream { request, stderr, text } => requests::stream(self.link.as_mut()?, &request, stderr, &text),
            Effect::Publish {
                request,
                meta,
                content,
                buffers,
            } => requests::publish(self.link.as_mut()?, &request, &meta, content, buffers),
            Effect::Reply { request, started, reply } => {
                let link = self.link.as_mut()?;
                requests::reply(link, &request, started, reply, &self.facts.uuid);
            }
            Effect::Leave { reason, as_another } => {
                tracing::info!("leaving: {reason}");
                self.send(UNREGISTER, &Unregister { reason });
                self.left = true;
                self.as_another = as_another;
            }
            Effect::StartWorker => return self.start_worker().await,
            // With the tasks that follow.
            Effect::Define { map, definition } => {
                let code = definition.work.bundle().map(|named| match self.bundles.place(&named.hash) {
                    Ok(directory) => serde_json::json!({ "directory": directory }),
                    Err(why) => serde_json::json!({ "missing": why }),
                });
                self.tell_worker_later(|| frame(b'D', 0, &to_json(&(map, &*definition, code))));
            }
            Effect::Forget { map } => self.tell_worker_later(|| frame(b'F', 0, &to_json(&map))),
            Effect::GiveTasks { map, first, inputs } => {
                let count = inputs.len();
                self.tell_worker(|| vec![tasks_frame(map.0, first, inputs.iter())], count);
            }
            Effect::GiveRequest { ticket, request } => {
                self.give_ipython(false);
                let id = self.link.as_ref().map(|link| link.id);
                let mut meta = serde_json::json!({ "method": request.method.word(), "engine_uuid": self.facts.uuid, "engine_id": id });
                if let (Some(name), Some(directory)) = (&request.file, &self.buffers) {
                    meta["buffers"] = directory.join(name).to_string_lossy().into();
                }
                let Message {
                    header_json,
                    metadata_json,
                    content_json,
                    buffers,
                    ..
                } = &request.message;
                let mut parts = vec![to_json(&meta), header_json.clone(), metadata_json.clone(), content_json.clone()];
                parts.extend_from_slice(buffers);
                self.tell_worker(|| parts_frame(b'R', ticket, parts), 1);
            }
            Effect::TakeTokens => {
                let count = self.worker.as_mut().map_or(0, Worker::recall);
                return Some(Event::TokensTaken { count });
            }
            Effect::ReadOutput => {
                self.worker.as_mut()?.look();
            }
            Effect::MeasureMemory => {
                let worker = self.worker.as_ref().map(|worker| worker.pid);
                let bytes = self.command.pid().or(worker).map_or(0, memory::of_group);
                return Some(Event::MemoryMeasured { bytes });
            }
            Effect::SignalWorker { signal } => self.worker.as_ref()?.signal(signal_number(signal)),
            Effect::StartCommand { unit, definition } => {
                let Unit::Task { held, input } = unit else { return None };
                let Work::Command { argv } = &definition.work else { return None };
                let mut env = self.settings.env.clone();
                env.insert("PCLUSTER_TASK".into(), format!("{}.{}", held.map, held.index));
                let to_run = ToRun {
                    argv: command::argv(argv, &command::input_words(&input)),
                    options: definition.options.clone(),
                    cwd: self.settings.cwd.clone(),
                    env,
                };
                self.command = Running::default();
                let (forker, running, sender) = (self.forker.clone(), self.command.clone(), self.command_sender.clone());
                tokio::spawn(command::run(to_run, forker, running, sender, unix_now));
            }
            Effect::SignalCommand { signal } => self.command.signal(signal_number(signal)),
        }
        None
    }

    pub(super) fn tell_worker(&mut self, frames: impl FnOnce() -> Vec<Bytes>, tokens: usize) {
        if let Some(worker) = &mut self.worker {
            // First, so that the worker finds them.
            if tokens > 0 {
                worker.allow(tokens);
            }
            worker.send(frames());
        }
    }

    fn tell_worker_later(&mut self, frame: impl FnOnce() -> Bytes) {
        if let Some(worker) = &mut self.worker {
            worker.send_later(frame());
        }
    }

    pub(super) async fn start_worker(&mut self) -> Option<Event> {
        self.workers += 1;
        self.has_ipython = false;
        let command = WorkerCommand {
            python: self.python.clone(),
            cwd: self.settings.cwd.clone(),
            env: self.settings.env.clone().into_iter().collect(),
            greets_late: self.settings.shell_at_start,
            in_job: !self.facts.job.is_empty(),
        };
        match Worker::start(&command, self.workers, &self.forker, self.worker_sender.clone()).await {
            Ok(worker) => {
                self.worker = Some(worker);
                if self.settings.shell_at_start {
                    self.give_ipython(true);
                }
                None
            }
            Err(reason) => {
                tracing::warn!("no Python worker: {reason}");
                self.worker = None;
                Some(Event::WorkerFailed { reason })
            }
        }
    }

    /// Once for each worker.
    fn give_ipython(&mut self, now: bool) {
        if std::mem::replace(&mut self.has_ipython, true) {
            return;
        }
        let told = serde_json::json!({ "traits": self.settings.shell, "profile_dir": self.settings.profile_dir, "now": now });
        let frames = vec![frame(b'M', 0, IPYTHON.as_bytes()), frame(b'S', 0, &to_json(&told))];
        self.tell_worker(|| frames, 0);
    }

    pub(super) async fn end_worker(&mut self) {
        let Some(mut worker) = self.worker.take() else { return };
        worker.close();
        let until = tokio::time::Instant::now() + LAST_BREATH;
        while let Ok(Some((number, event))) = tokio::time::timeout_at(until, self.worker_events.recv()).await {
            if number == worker.number && matches!(event, WorkerEvent::Exited(_)) {
                return;
            }
        }
    }
}

fn signal_number(stage: Stage) -> i32 {
    match stage {
        Stage::Interrupt => nix::libc::SIGINT,
        Stage::Terminate => nix::libc::SIGTERM,
        Stage::Kill => nix::libc::SIGKILL,
    }
}
