//! What comes from the controller, read and made into events.
use super::Driver;
use crate::engine::bundles::{self, Fault};
use crate::engine::core::unit::Method;
use crate::engine::core::{Event, Request, WorkerKey};
use crate::engine::requests;
use crate::engine::worker::protocol::frame;
use crate::model::MapId;
use crate::model::definition::MapDefinition;
use crate::wire::content::engine::*;
use crate::wire::{Frames, Message};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::sync::Arc;

impl Driver {
    /// The answer to another registration is given back.
    pub(super) async fn receive(&mut self, frames: Frames) -> Option<Registered> {
        let (channel, message) = self.link.as_mut()?.open(frames)?;
        match channel {
            Channel::Native => return self.receive_native(message).await,
            Channel::Control => self.receive_control(message).await,
            Channel::Mux | Channel::Task | Channel::Broadcast => match Method::of(message.msg_type()) {
                Some(method) => {
                    let client = message.identities.get(1..).unwrap_or_default().to_vec();
                    let request = Request::new(channel, client, method, message);
                    self.handle(Event::RequestCame(Arc::new(request))).await;
                }
                None => tracing::warn!(msg_type = message.msg_type(), "a request of an unknown type was dropped"),
            },
            Channel::Iopub => {}
        }
        None
    }

    pub(super) async fn receive_native(&mut self, message: Message) -> Option<Registered> {
        let event = match message.msg_type() {
            HEARTBEAT => return None,
            REGISTERED => {
                let registered: Registered = read(&message)?;
                if registered.status != "ok" {
                    tracing::error!("the controller refused to take this engine back: {}", registered.evalue);
                    self.left = true;
                    return None;
                }
                if let Some(link) = &mut self.link {
                    link.id = registered.id.unwrap_or(link.id);
                    link.send_kept();
                }
                self.registered(&registered).await;
                return Some(registered);
            }
            UNKNOWN_ENGINE => Event::Unknown,
            DEFINITION => {
                let Definition { map, definition } = read(&message)?;
                self.defined(map, definition).await;
                return None;
            }
            BUNDLE => {
                let BundleContent { hash, forget } = read(&message)?;
                forget.iter().for_each(|hash| self.bundles.forget(hash));
                let content = message.buffers.into_iter().next().unwrap_or_default();
                self.bundle_came(hash, content).await;
                return None;
            }
            FORGET => Event::Forgotten {
                map: read::<Forget>(&message)?.map,
            },
            TASKS => {
                let (defined, came) = tasks_came(&message)?;
                if let Some((map, definition)) = defined {
                    self.defined(map, definition).await;
                }
                if let Event::TasksCame { map, .. } = &came
                    && let Some(hash) = self.core.bundle_of(*map).map(String::from)
                    && let Err(reason) = self.bundles.check(&hash)
                {
                    self.handle(Event::CodeFailed { hash: Some(hash), reason }).await;
                }
                came
            }
            SETTLED => {
                let Settled { recorded, forget } = read(&message)?;
                for sequence in recorded {
                    self.handle(Event::Recorded { sequence }).await;
                }
                for map in forget {
                    self.handle(Event::Forgotten { map }).await;
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
            VALUES => Event::ValuesCame(read(&message)?, message.buffers),
            OUTPUT_RECORDED => Event::OutputRecorded(read(&message)?),
            RETURN_RECORDED => Event::ReturnRecorded {
                sequence: read::<ReturnRecorded>(&message)?.sequence,
            },
            GIVE_BACK => Event::GiveBackAsked {
                at_most: read::<GiveBack>(&message)?.at_most,
            },
            CANCEL => Event::CancelAsked {
                tasks: read::<Cancel>(&message)?.tasks,
            },
            SHUTDOWN => Event::ShutdownAsked {
                drain: read::<Shutdown>(&message)?.drain,
                reason: "the controller said so".into(),
                grace_ms: None,
            },
            SIGNAL => {
                self.signal_user_code(read::<Signal>(&message)?.signal);
                return None;
            }
            other => {
                tracing::warn!(msg_type = other, "a message of an unknown type was dropped");
                return None;
            }
        };
        self.handle(event).await;
        None
    }

    async fn defined(&mut self, map: MapId, definition: MapDefinition) {
        let mut definition = definition.with_bundle();
        // Of an older version's file.
        if let Some(bundle) = definition.bundle_mut().and_then(|named| named.content.take()) {
            self.bundle_came(bundle.hash.clone(), bundle.content.clone()).await;
        }
        let definition = Arc::new(definition);
        self.handle(Event::Defined { map, definition }).await;
    }

    /// Writes the code of a map, before anything else is done: its tasks are the next to come.
    async fn bundle_came(&mut self, hash: String, content: Bytes) {
        if !self.bundles.is_missing(&hash) {
            return;
        }
        let place = match self.bundles.directory() {
            Ok(directory) if content.len() < bundles::LARGE => bundles::write(&directory, &hash, content),
            Ok(directory) => {
                let name = hash.clone();
                let written = tokio::task::spawn_blocking(move || bundles::write(&directory, &name, content)).await;
                written.unwrap_or_else(|error| Err(Fault::Host(error.to_string())))
            }
            Err(why) => Err(Fault::Host(why)),
        };
        match place {
            Ok(place) => {
                self.bundles.written(hash.clone(), Ok(place));
                self.handle(Event::CodeWritten { hash }).await;
            }
            Err(Fault::Bundle(why)) => self.bundles.written(hash, Err(why)),
            Err(Fault::Host(reason)) => self.handle(Event::CodeFailed { hash: Some(hash), reason }).await,
        }
    }

    /// For the command or the worker that runs something; if none does, for the interactive worker.
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
                self.handle(Event::AbortAsked { msg_ids }).await;
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
                    None => tracing::warn!("a signal_request without a signal that this system knows"),
                }
                "signal_reply"
            }
            "shutdown_request" => "shutdown_reply",
            other => {
                tracing::warn!(msg_type = other, "a control request of an unknown type was dropped");
                return;
            }
        };
        if let Some(link) = &mut self.link {
            requests::control_reply(link, reply, &message);
        }
        if reply == "shutdown_reply" {
            let event = Event::ShutdownAsked {
                drain: false,
                reason: "a client's shutdown_request".into(),
                grace_ms: None,
            };
            self.handle(event).await;
        }
    }
}

fn read<'a, T: Deserialize<'a>>(message: &'a Message) -> Option<T> {
    message
        .content()
        .inspect_err(|e| tracing::warn!(msg_type = message.msg_type(), "a message cannot be read: {e}"))
        .ok()
}

/// The definition, where it comes along, and the tasks. Inputs stay where they are in the message.
fn tasks_came(message: &Message) -> Option<(Option<(MapId, MapDefinition)>, Event)> {
    #[derive(Deserialize)]
    struct TasksHere<'a> {
        map: MapId,
        #[serde(default)]
        definition: Option<MapDefinition>,
        #[serde(borrow)]
        tasks: Vec<TaskHere<'a>>,
    }
    #[derive(Deserialize)]
    struct TaskHere<'a> {
        index: u32,
        run: u32,
        #[serde(borrow)]
        input: &'a RawValue,
    }
    let TasksHere { map, definition, tasks } = read(message)?;
    let input = |raw: &RawValue| message.content_json.slice_ref(raw.get().as_bytes());
    let came = Event::TasksCame {
        map,
        tasks: tasks.into_iter().map(|task| (task.index, task.run, input(task.input))).collect(),
    };
    Some((definition.map(|definition| (map, definition)), came))
}
