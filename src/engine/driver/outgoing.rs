//! Executes the effects that the core requests.
use super::{Driver, now};
use crate::engine::command::{self, CommandSpec, RunningCommand};
use crate::engine::core::{Effect, Event, Request, StopStep, Unit, WorkerKey};
use crate::engine::link::unix_now;
use crate::engine::memory;
use crate::engine::requests;
use crate::engine::worker::process::Worker;
use crate::engine::worker::protocol::{frame, parts_frame, tasks_frame};
use crate::model::definition::{MapDefinition, Work};
use crate::wire::Message;
use crate::wire::content::engine::*;
use crate::wire::message::to_json;
use std::collections::VecDeque;

impl Driver {
    pub(super) async fn handle(&mut self, event: Event) {
        let effects = self.core.handle(now(), event);
        self.act(effects).await;
    }

    pub(super) async fn act(&mut self, effects: Vec<Effect>) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            if let Some(event) = self.act_on(effect).await {
                // Handle the effects of an answer first.
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
            Effect::SendResults(results) => {
                if let Some(link) = &mut self.link {
                    link.send_with_buffers(RESULTS, &*results, results.buffers());
                }
            }
            Effect::SendProgress(progress, bytes) => self.link.as_mut()?.send_with_buffers(PROGRESS, &progress, bytes),
            Effect::SendValuesRequest(request) => self.send(VALUES_REQUEST, &request),
            Effect::StoreValues {
                held,
                is_first,
                bytes,
                is_last,
            } => match self.bundles.store_values(&file_of(held), is_first, &bytes) {
                Ok(_) if !is_last => {}
                written => {
                    let file = written
                        .map(|path| path.to_string_lossy().into_owned())
                        .map_err(|error| error.to_string());
                    return Some(Event::ValuesStored { held, file });
                }
            },
            Effect::DeleteValues { held } => self.bundles.delete_values(&file_of(held)),
            Effect::SendReturned(returned) => self.send(RETURNED, &returned),
            Effect::ReportAvailability { reason } => {
                match &reason {
                    Some(reason) => tracing::warn!("this engine cannot run Python functions: {reason}"),
                    None => tracing::info!("this engine can run Python functions"),
                }
                self.send(AVAILABILITY, &Availability { reason });
            }
            Effect::RequestStarted(request) => requests::busy(self.link.as_mut()?, &request),
            Effect::Stream { request, stderr, text } => requests::stream(self.link.as_mut()?, &request, stderr, &text),
            Effect::Publish { parent, published } => requests::publish(self.link.as_mut()?, parent.as_ref(), published),
            Effect::Reply { request, started, reply } => {
                let link = self.link.as_mut()?;
                requests::reply(link, &request, started, reply, &self.facts.uuid);
            }
            Effect::Leave { reason, as_new_engine } => {
                tracing::info!("leaving: {reason}");
                self.send(UNREGISTER, &Unregister { reason });
                self.left = true;
                self.as_new_engine = as_new_engine;
            }
            Effect::RetryCodeStorage => {
                let probed = self.bundles.probe().map_err(|error| error.to_string());
                return Some(probed.map_or_else(|reason| Event::CodeFailed { hash: None, reason }, |()| Event::CodeUsable));
            }
            Effect::Warn(text) => tracing::warn!("{text}"),
            Effect::StartWorker { has_shell } => return self.start_worker(has_shell).await,
            Effect::AssignSpare { worker } => self.assign_spare(worker),
            Effect::EndWorker { worker } => self.pool.end(worker),
            // Sent together with the tasks that follow.
            Effect::Define { worker, map, definition } => {
                let code = definition.bundle().map(|named| match self.bundles.path(&named.hash) {
                    Ok(directory) => serde_json::json!({ "directory": directory }),
                    Err(why) => serde_json::json!({ "missing": why.to_string() }),
                });
                self.queue_for_worker(worker, || frame(b'D', 0, &to_json(&(map, &*definition, code))));
            }
            Effect::Forget { worker, map } => self.queue_for_worker(worker, || frame(b'F', 0, &to_json(&map))),
            Effect::DispatchTasks {
                worker,
                map,
                first,
                inputs,
            } => {
                let count = inputs.len();
                self.send_to_worker(worker, || tasks_frame(map.0, first, &inputs), count);
            }
            Effect::DispatchRequest { ticket, request } => self.dispatch_request(ticket, &request),
            Effect::TakeBackTokens { worker } => {
                let count = self.pool.get_mut(Some(worker)).map_or(0, Worker::recall);
                return Some(Event::TokensTakenBack { count });
            }
            Effect::ReadOutput { worker } => {
                let worker = self.pool.get_mut(Some(worker))?;
                worker.is_requested = true;
                worker.sync_output();
            }
            Effect::MeasureMemory { worker, limit } => {
                let pid = match worker {
                    Some(_) => self.pool.get_mut(worker).map(|worker| worker.pid.get()),
                    None => self.command.pid(),
                };
                let bytes = pid.map_or(0, |pid| memory::of_group(pid, limit));
                return Some(Event::MemoryMeasured { bytes });
            }
            Effect::SignalWorker { worker, signal } => self.pool.get_mut(worker)?.signal(signal_number(signal)),
            Effect::StartCommand { unit, definition } => self.start_command(unit, &definition),
            Effect::SignalCommand { signal } => self.command.signal(signal_number(signal)),
        }
        None
    }

    fn dispatch_request(&mut self, ticket: u32, request: &Request) {
        self.send_ipython(Some(WorkerKey::Interactive), false);
        let id = self.link.as_ref().map(|link| link.id);
        let mut meta = serde_json::json!({ "method": request.method.name(), "engine_uuid": self.facts.uuid, "engine_id": id });
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
        self.send_to_worker(WorkerKey::Interactive, || parts_frame(b'R', ticket, parts), 1);
    }

    fn start_command(&mut self, unit: Unit, definition: &MapDefinition) {
        let (Unit::Task { held, input, .. }, Work::Command { argv }) = (unit, &definition.work) else {
            return;
        };
        let mut env = self.settings.env.clone();
        env.insert("PCLUSTER_TASK".into(), format!("{}.{}", held.map, held.index));
        let to_run = CommandSpec {
            argv: command::argv(argv, &command::input_words(&input)),
            options: definition.options.clone(),
            cwd: self.settings.cwd.clone(),
            env,
        };
        self.command = RunningCommand::default();
        let (forker, running, sender) = (self.forker.clone(), self.command.clone(), self.command_sender.clone());
        tokio::spawn(command::run(to_run, forker, running, sender, unix_now));
    }
}

/// Name of the file of the values that a task folds.
fn file_of(held: Held) -> String {
    format!("values-{}-{}-{}", held.map, held.index, held.run)
}

fn signal_number(stage: StopStep) -> i32 {
    match stage {
        StopStep::Interrupt => nix::libc::SIGINT,
        StopStep::Terminate => nix::libc::SIGTERM,
        StopStep::Kill => nix::libc::SIGKILL,
    }
}
