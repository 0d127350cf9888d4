//! Decodes messages of the controller and converts them into events.
use super::Driver;
use crate::engine::bundles::{self, StoreError};
use crate::engine::code_directory::CodeDirectory;
use crate::engine::core::unit::Method;
use crate::engine::core::{Event, Request, WorkerKey};
use crate::engine::node::Surroundings;
use crate::engine::requests;
use crate::engine::worker::protocol::frame;
use crate::model::MapId;
use crate::model::definition::MapDefinition;
use crate::model::resources::Allocation;
use crate::model::task::Ask;
use crate::wire::content::engine::*;
use crate::wire::{Frames, Message};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::path::Path;
use std::sync::Arc;

/// Writes a file for tasks into a directory of this engine, which is created if needed; returns its path.
fn write_file(directory: &mut Option<CodeDirectory>, name: &str, text: &str) -> Option<String> {
    let mut create = || -> std::io::Result<String> {
        let directory = match directory {
            Some(directory) => directory,
            None => directory.insert(CodeDirectory::create()?),
        };
        let path = directory.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    };
    create()
        .inspect_err(|error| tracing::warn!("cannot write {name} for tasks: {error}"))
        .ok()
}

impl Driver {
    /// Handles a message; returns the answer to a repeated registration.
    pub(super) async fn receive(&mut self, frames: Frames) -> Option<Registered> {
        let (channel, message) = self.link.as_mut()?.open(frames)?;
        match channel {
            Channel::Native => return self.receive_native(message).await,
            Channel::Control => self.receive_control(message).await,
            Channel::Mux | Channel::Task | Channel::Broadcast => match Method::of(message.msg_type()) {
                Some(method) => {
                    let client = message.identities.get(1..).unwrap_or_default().to_vec();
                    let request = Request::new(channel, client, method, message);
                    self.handle(Event::RequestReceived(Arc::new(request))).await;
                }
                None => tracing::warn!(msg_type = message.msg_type(), "dropped a request of unknown type"),
            },
            Channel::Iopub => {}
        }
        None
    }

    async fn allocated(&mut self, map: MapId, allocation: Allocation) {
        let env = self.environment_of(&allocation);
        self.handle(Event::Allocated { map, allocation, env }).await;
    }

    fn environment_of(&mut self, allocation: &Allocation) -> Vec<(&'static str, String)> {
        let set = &self.settings.env;
        let variable = |name: &str| set.get(name).cloned().or_else(|| std::env::var(name).ok());
        let surroundings = Surroundings {
            root: Path::new("/"),
            variable: &variable,
            host: &self.facts.host,
            affinity: None,
        };
        let files = &mut self.host_files;
        let mut write = |name: &str, text: &str| write_file(files, name, text);
        surroundings.of_allocation(allocation, &mut write)
    }

    pub(super) async fn receive_native(&mut self, message: Message) -> Option<Registered> {
        let event = match message.msg_type() {
            HEARTBEAT => return None,
            REGISTERED => {
                let registered: Registered = read(&message)?;
                if registered.status != "ok" {
                    tracing::error!("the controller rejected this engine: {}", registered.evalue);
                    self.left = true;
                    return None;
                }
                if let Some(link) = &mut self.link {
                    link.id = registered.id.unwrap_or(link.id);
                    link.resend_unrecorded();
                }
                self.registered(&registered).await;
                return Some(registered);
            }
            UNKNOWN_ENGINE => Event::EngineUnknown,
            DEFINITION => {
                let Definition { map, definition } = read(&message)?;
                self.defined(map, definition).await;
                return None;
            }
            BUNDLE => {
                let BundleContent { hash, forget } = read(&message)?;
                forget.iter().for_each(|hash| self.bundles.forget(hash));
                let content = message.buffers.into_iter().next().unwrap_or_default();
                self.receive_bundle(hash, content).await;
                return None;
            }
            FORGET => Event::MapForgotten {
                map: read::<Forget>(&message)?.map,
            },
            TASKS => {
                let DecodedTasks {
                    definition,
                    allocation,
                    received,
                } = decode_tasks(&message)?;
                if let Some((map, definition)) = definition {
                    self.defined(map, definition).await;
                }
                if let Some((map, allocation)) = allocation {
                    self.allocated(map, allocation).await;
                }
                if let Event::TasksReceived { map, .. } = &received
                    && let Some(hash) = self.core.bundle_of(*map).map(String::from)
                    && let Err(error) = self.bundles.check(&hash)
                {
                    let reason = error.to_string();
                    self.handle(Event::CodeFailed { hash: Some(hash), reason }).await;
                }
                received
            }
            SETTLED => {
                let Settled { recorded, forget } = read(&message)?;
                for sequence in recorded {
                    self.handle(Event::Recorded { sequence }).await;
                }
                for map in forget {
                    self.handle(Event::MapForgotten { map }).await;
                }
                return None;
            }
            RECORDED => Event::Recorded {
                sequence: read::<Recorded>(&message)?.sequence,
            },
            REPLIES_RECORDED => {
                let msg_ids = read::<RepliesRecorded>(&message)?.msg_ids;
                self.link.as_mut()?.recorded(&msg_ids);
                return None;
            }
            VALUES => Event::ValuesReceived(read(&message)?, message.buffers),
            OUTPUT_RECORDED => Event::OutputRecorded(read(&message)?),
            RETURN_RECORDED => Event::ReturnRecorded {
                sequence: read::<ReturnRecorded>(&message)?.sequence,
            },
            GIVE_BACK => Event::ReturnRequested {
                max_count: read::<GiveBack>(&message)?.at_most,
            },
            CANCEL => Event::CancelRequested {
                tasks: read::<Cancel>(&message)?.tasks,
            },
            SHUTDOWN => Event::ShutdownRequested {
                drain: read::<Shutdown>(&message)?.drain,
                reason: "requested by the controller".into(),
                grace_period_ms: None,
            },
            SIGNAL => {
                self.signal_user_code(read::<Signal>(&message)?.signal);
                return None;
            }
            other => {
                tracing::warn!(msg_type = other, "dropped a message of unknown type");
                return None;
            }
        };
        self.handle(event).await;
        None
    }

    async fn defined(&mut self, map: MapId, definition: MapDefinition) {
        let mut definition = definition.with_bundle();
        // Definitions of an older version's file contain the bundle.
        if let Some(bundle) = definition.bundle_mut().and_then(|named| named.content.take()) {
            self.receive_bundle(bundle.hash.clone(), bundle.content.clone()).await;
        }
        let definition = Arc::new(definition);
        self.handle(Event::Defined { map, definition }).await;
    }

    /// Writes the code of a map before processing further messages: its tasks are next.
    async fn receive_bundle(&mut self, hash: String, content: Bytes) {
        if !self.bundles.is_missing(&hash) {
            return;
        }
        let written = match self.bundles.directory() {
            Ok(directory) if content.len() < bundles::LARGE => bundles::write(&directory, &hash, content),
            Ok(directory) => {
                let name = hash.clone();
                let joined = tokio::task::spawn_blocking(move || bundles::write(&directory, &name, content)).await;
                joined.unwrap_or_else(|error| Err(StoreError::Host(error.to_string())))
            }
            Err(error) => Err(error),
        };
        match written {
            Ok(path) => {
                self.bundles.record(hash.clone(), Ok(path));
                self.handle(Event::CodeWritten { hash }).await;
            }
            Err(error @ StoreError::Bundle(_)) => self.bundles.record(hash, Err(error)),
            Err(error) => {
                let reason = error.to_string();
                self.handle(Event::CodeFailed { hash: Some(hash), reason }).await;
            }
        }
    }

    /// Signals the running command or worker, or the interactive worker if the engine is idle.
    pub(super) fn signal_user_code(&mut self, signal: i32) {
        self.command.signal(signal);
        let worker = self.core.running_worker().unwrap_or(WorkerKey::Interactive);
        if let Some(worker) = self.pool.get_mut(Some(worker)) {
            worker.signal(signal);
        }
    }

    pub(super) async fn receive_control(&mut self, message: Message) {
        let reply = match message.msg_type() {
            "abort_request" => {
                let msg_ids = requests::abort_ids(&message);
                self.handle(Event::AbortRequested { msg_ids }).await;
                "abort_reply"
            }
            "clear_request" => {
                if let Some(worker) = self.pool.get_mut(Some(WorkerKey::Interactive)) {
                    worker.send(vec![frame(b'C', 0, b"")]);
                }
                "clear_reply"
            }
            "signal_request" => {
                match requests::signal_number(&message) {
                    Some(signal) => self.signal_user_code(signal),
                    None => tracing::warn!("dropped a signal_request without a known signal"),
                }
                "signal_reply"
            }
            "shutdown_request" => "shutdown_reply",
            other => {
                tracing::warn!(msg_type = other, "dropped a control request of unknown type");
                return;
            }
        };
        if let Some(link) = &mut self.link {
            requests::control_reply(link, reply, &message);
        }
        if reply == "shutdown_reply" {
            let event = Event::ShutdownRequested {
                drain: false,
                reason: "shutdown_request of a client".into(),
                grace_period_ms: None,
            };
            self.handle(event).await;
        }
    }
}

fn read<'a, T: Deserialize<'a>>(message: &'a Message) -> Option<T> {
    message
        .content()
        .inspect_err(|e| tracing::warn!(msg_type = message.msg_type(), "dropped an invalid message: {e}"))
        .ok()
}

/// Decodes the definition, if present, and the tasks. Inputs share the message's memory.
struct DecodedTasks {
    definition: Option<(MapId, MapDefinition)>,
    allocation: Option<(MapId, Allocation)>,
    received: Event,
}

fn decode_tasks(message: &Message) -> Option<DecodedTasks> {
    #[derive(Deserialize)]
    struct RawTasks<'a> {
        map: MapId,
        #[serde(default)]
        definition: Option<MapDefinition>,
        #[serde(default)]
        allocation: Option<Allocation>,
        #[serde(borrow)]
        tasks: Vec<RawTask<'a>>,
    }
    #[derive(Deserialize)]
    struct RawTask<'a> {
        index: u32,
        run: u32,
        #[serde(borrow)]
        input: &'a RawValue,
        #[serde(default)]
        mem_bytes: Option<u64>,
        #[serde(default)]
        limit_ms: Option<u64>,
        #[serde(default)]
        in_buffer: bool,
    }
    let RawTasks {
        map,
        definition,
        allocation,
        tasks,
    } = read(message)?;
    let ask = |task: &RawTask| Ask {
        mem_bytes: task.mem_bytes,
        limit_ms: task.limit_ms,
    };
    let mut buffers = message.buffers.iter().cloned();
    let mut input = |task: &RawTask| match task.in_buffer {
        true => buffers.next(),
        false => Some(message.content_json.slice_ref(task.input.get().as_bytes())),
    };
    let tasks: Option<Vec<_>> = tasks
        .iter()
        .map(|task| Some((task.index, task.run, input(task)?, ask(task))))
        .collect();
    let Some(tasks) = tasks else {
        tracing::warn!(%map, "dropped tasks without the buffers of their inputs");
        return None;
    };
    let received = Event::TasksReceived { map, tasks };
    Some(DecodedTasks {
        definition: definition.map(|definition| (map, definition)),
        allocation: allocation.map(|allocation| (map, allocation)),
        received,
    })
}
