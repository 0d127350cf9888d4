//! Between the core and the world: sockets, the worker's process, commands, signals, clocks.
use super::command::{self, CommandEvent, Running, ToRun};
use super::core::unit::{Method, WorkerResult};
use super::core::{Core, Effect, Event, Now, Request, Stage, Unit};
use super::forker::Forker;
use super::link::{Link, unix_now};
use super::requests;
use super::worker::process::{IPYTHON, Worker, WorkerCommand, WorkerEvent};
use super::worker::protocol::{Record, frame, parts, parts_frame, tasks_frame};
use super::{EngineError, EngineSettings};
use crate::model::definition::Work;
use crate::model::engine::EngineFacts;
use crate::model::{EngineUuid, PROTOCOL_VERSION, UnixTime};
use crate::wire::content::engine::*;
use crate::wire::message::to_json;
use crate::wire::{Frames, Message};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender, channel, unbounded_channel};

/// A worker that is not ready after so long does not hold up the registration.
const READY_FOR_REGISTRATION: Duration = Duration::from_secs(30);
/// Messages taken from the socket in one go.
const AT_ONCE: usize = 64;
/// How long a worker has for its own exit handlers when the engine ends.
const LAST_BREATH: Duration = Duration::from_secs(1);

pub struct Driver {
    settings: EngineSettings,
    python: String,
    core: Core,
    forker: Forker,
    worker: Option<Worker>,
    workers: u64,
    has_ipython: bool,
    worker_events: UnboundedReceiver<(u64, WorkerEvent)>,
    worker_sender: UnboundedSender<(u64, WorkerEvent)>,
    command: Running,
    command_events: Receiver<CommandEvent>,
    command_sender: tokio::sync::mpsc::Sender<CommandEvent>,
    facts: EngineFacts,
    link: Option<Link>,
    left: bool,
    terminate: SignalStream,
    interrupt: SignalStream,
}

fn now() -> Now {
    Now {
        instant: Instant::now(),
        unix: unix_now(),
    }
}

impl Driver {
    pub fn new(settings: EngineSettings) -> Result<Driver, EngineError> {
        let python = super::settings::interpreter(settings.python.as_deref());
        let system = |what: &str| {
            let what = what.to_string();
            move |e: std::io::Error| EngineError::System(format!("{what}: {e}"))
        };
        let (worker_sender, worker_events) = unbounded_channel();
        let (command_sender, command_events) = channel(16);
        let core = Core::new(super::core::CoreSettings {
            interrupt: Duration::from_millis(settings.interrupt_ms),
            terminate: Duration::from_millis(settings.terminate_ms),
            python: python.clone(),
        });
        let facts = EngineFacts {
            uuid: EngineUuid::from(uuid::Uuid::new_v4().to_string().as_str()),
            host: command::host(),
            pid: std::process::id(),
            version: crate::model::VERSION.into(),
            python: String::new(),
            capabilities: ["call", "command", "execute"].map(String::from).to_vec(),
        };
        Ok(Driver {
            settings,
            python,
            core,
            forker: Forker::new().map_err(system("cannot start a thread"))?,
            worker: None,
            workers: 0,
            has_ipython: false,
            worker_events,
            worker_sender,
            command: Running::default(),
            command_events,
            command_sender,
            facts,
            link: None,
            left: false,
            terminate: signal(SignalKind::terminate()).map_err(system("cannot watch for SIGTERM"))?,
            interrupt: signal(SignalKind::interrupt()).map_err(system("cannot watch for SIGINT"))?,
        })
    }

    pub async fn run(mut self) -> Result<(), EngineError> {
        let effects = self.core.warm_up(now());
        self.act(effects).await;
        self.wait_for_worker().await;
        let register = self.register(Vec::new());
        let registered = tokio::select! {
            connected = Link::connect(&self.settings, &register) => {
                let (link, registered) = connected?;
                tracing::info!(id = %link.id, "registered");
                self.link = Some(link);
                registered
            }
            _ = self.terminate.recv() => return Ok(()),
            _ = self.interrupt.recv() => return Ok(()),
        };
        let mut heartbeat = Duration::from_millis(registered.heartbeat_ms.max(10));
        let mut patience = Duration::from_millis(registered.controller_patience_ms.max(1000));
        self.handle(Event::Registered { drop: registered.drop }).await;
        let mut beat_at = Instant::now() + heartbeat;
        let mut last_heard = Instant::now();
        while !self.left {
            let Some(link) = &self.link else { break };
            let deadline = self.core.next_deadline().map_or(beat_at, |deadline| deadline.min(beat_at));
            tokio::select! {
                frames = link.socket.receive() => {
                    last_heard = Instant::now();
                    let mut next = Some(frames.map_err(|e| EngineError::System(format!("the connection to the controller: {e}")))?);
                    let mut count = 0;
                    while let Some(frames) = next.take() {
                        if let Some(again) = self.receive(frames).await {
                            heartbeat = Duration::from_millis(again.heartbeat_ms.max(10));
                            patience = Duration::from_millis(again.controller_patience_ms.max(1000));
                        }
                        count += 1;
                        next = self.link.as_ref().filter(|_| count < AT_ONCE).and_then(|link| link.socket.try_receive());
                    }
                }
                Some((number, event)) = self.worker_events.recv() => self.worker_said(number, event).await,
                Some(event) = self.command_events.recv() => self.command_said(event).await,
                () = tokio::time::sleep_until(deadline.into()) => self.handle(Event::Tick).await,
                _ = self.terminate.recv() => self.told_to_leave("SIGTERM").await,
                _ = self.interrupt.recv() => self.told_to_leave("SIGINT").await,
            }
            let instant = Instant::now();
            if instant >= beat_at {
                beat_at = instant + heartbeat;
                self.send(HEARTBEAT, &Heartbeat {});
            }
            if instant - last_heard > patience {
                self.end_worker().await;
                return Err(EngineError::ControllerGone(patience.as_secs()));
            }
        }
        self.end_worker().await;
        if let Some(link) = self.link.take() {
            link.socket.close().await;
        }
        Ok(())
    }

    async fn told_to_leave(&mut self, signal: &str) {
        tracing::info!("{signal}: giving tasks back and leaving");
        let event = Event::ShutdownAsked {
            drain: true,
            reason: format!("the engine got {signal}"),
            grace_ms: Some(self.settings.grace_ms),
        };
        self.handle(event).await;
    }

    /// Until the worker has said what Python it is, or that there is none.
    async fn wait_for_worker(&mut self) {
        let until = tokio::time::Instant::now() + READY_FOR_REGISTRATION;
        while self.worker.is_some() && self.facts.python.is_empty() {
            tokio::select! {
                Some((number, event)) = self.worker_events.recv() => self.worker_said(number, event).await,
                () = tokio::time::sleep_until(until) => return,
                _ = self.terminate.recv() => return self.told_to_leave("SIGTERM").await,
                _ = self.interrupt.recv() => return self.told_to_leave("SIGINT").await,
            }
        }
    }

    fn register(&self, holds: Vec<Held>) -> Register {
        Register {
            protocol: PROTOCOL_VERSION,
            facts: self.facts.clone(),
            id: self.link.as_ref().map(|link| link.id).or(self.settings.id),
            holds,
        }
    }

    fn send<T: serde::Serialize + ?Sized>(&mut self, msg_type: &str, content: &T) {
        if let Some(link) = &mut self.link {
            link.send_native(msg_type, content);
        }
    }

    // ---- what comes from the controller

    /// The answer to another registration is given back.
    async fn receive(&mut self, frames: Frames) -> Option<Registered> {
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

    async fn receive_native(&mut self, message: Message) -> Option<Registered> {
        let event = match message.msg_type() {
            HEARTBEAT => return None,
            REGISTERED => {
                let registered: Registered = read(&message)?;
                if registered.status != "ok" {
                    tracing::error!("the controller refused to take this engine back: {}", registered.evalue);
                    self.left = true;
                    return None;
                }
                if let (Some(link), Some(id)) = (&mut self.link, registered.id) {
                    link.id = id;
                }
                self.handle(Event::Registered {
                    drop: registered.drop.clone(),
                })
                .await;
                return Some(registered);
            }
            UNKNOWN_ENGINE => Event::Unknown,
            DEFINITION => {
                let Definition { map, definition } = read(&message)?;
                Event::Defined {
                    map,
                    definition: Arc::new(definition),
                }
            }
            FORGET => Event::Forgotten {
                map: read::<Forget>(&message)?.map,
            },
            TASKS => tasks_came(&message)?,
            RECORDED => Event::Recorded {
                sequence: read::<Recorded>(&message)?.sequence,
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

    /// For the command that runs, and the worker.
    fn signal_user_code(&self, signal: i32) {
        self.command.signal(signal);
        if let Some(worker) = &self.worker {
            worker.signal(signal);
        }
    }

    async fn receive_control(&mut self, message: Message) {
        let reply = match message.msg_type() {
            "abort_request" => {
                let msg_ids = requests::abort_ids(&message);
                self.handle(Event::AbortAsked { msg_ids }).await;
                "abort_reply"
            }
            "clear_request" => {
                if let Some(worker) = &self.worker {
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

    // ---- what comes from the worker and from commands

    async fn worker_said(&mut self, number: u64, event: WorkerEvent) {
        if self.worker.as_ref().is_none_or(|worker| worker.number != number) {
            return;
        }
        match event {
            WorkerEvent::Records(records) => {
                for record in records {
                    if let Some(event) = self.record_event(record) {
                        self.handle(event).await;
                    }
                }
            }
            WorkerEvent::Exited(how) => {
                let Some(mut worker) = self.worker.take() else { return };
                let how = format!("the Python worker (pid {}, {}) {how}", worker.pid, self.python);
                tracing::warn!("{how}");
                let event = Event::WorkerExited {
                    unread: worker.left_over(),
                    how,
                    stderr_tail: last_lines(&worker.stderr.last_words(4096)),
                    output: [worker.stdout.read_to(None), worker.stderr.read_to(None)],
                };
                drop(worker);
                self.handle(event).await;
            }
        }
    }

    fn record_event(&mut self, record: Record) -> Option<Event> {
        let Record {
            kind,
            ticket,
            started,
            ended,
            positions,
            body,
        } = record;
        let output = match (positions, &mut self.worker) {
            (Some((out, err)), Some(worker)) => [worker.stdout.read_to(Some(out)), worker.stderr.read_to(Some(err))],
            _ => Default::default(),
        };
        let ended_with = |result| Event::UnitEnded {
            ticket,
            started: UnixTime(started),
            ended: UnixTime(ended),
            output: output.clone(),
            result,
        };
        Some(match kind {
            b'H' => {
                self.introduce(&body);
                Event::WorkerReady
            }
            b'B' => Event::UnitBegun { ticket, output },
            b'V' => ended_with(WorkerResult::Value(body)),
            b'P' => ended_with(WorkerResult::Pickled(body)),
            b'E' => ended_with(WorkerResult::Error(body)),
            b'A' | b'I' => {
                let mut parts = parts(body)?.into_iter();
                let (meta, content) = (parts.next()?, parts.next()?);
                let buffers = parts.collect();
                match kind {
                    b'A' => ended_with(WorkerResult::Reply { meta, content, buffers }),
                    _ => Event::Published {
                        ticket,
                        output,
                        meta,
                        content,
                        buffers,
                    },
                }
            }
            _ => return None,
        })
    }

    fn introduce(&mut self, hello: &[u8]) {
        #[derive(Deserialize)]
        struct Hello {
            version: String,
            executable: String,
            apply: bool,
        }
        let Ok(hello) = serde_json::from_slice::<Hello>(hello) else {
            return;
        };
        self.facts.python = format!("{} ({})", hello.version, hello.executable);
        self.facts.capabilities.retain(|capability| capability != "apply");
        if hello.apply {
            self.facts.capabilities.push("apply".into());
        }
    }

    async fn command_said(&mut self, event: CommandEvent) {
        let event = match event {
            CommandEvent::Wrote(output) => Event::CommandWrote { output },
            CommandEvent::Ended(end) => Event::CommandEnded(end),
        };
        self.handle(event).await;
    }

    // ---- what the core wants

    async fn handle(&mut self, event: Event) {
        let effects = self.core.handle(now(), event);
        self.act(effects).await;
    }

    async fn act(&mut self, effects: Vec<Effect>) {
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

    async fn act_on(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Register { holds } => {
                let register = self.register(holds);
                self.send(REGISTER, &register);
            }
            Effect::SendResults(results) => self.send(RESULTS, &*results),
            Effect::SendProgress(progress) => self.send(PROGRESS, &progress),
            Effect::SendReturned(returned) => self.send(RETURNED, &returned),
            Effect::RequestBegun(request) => requests::status(self.link.as_mut()?, &request, "busy"),
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
                requests::status(link, &request, "idle");
            }
            Effect::Leave { reason } => {
                tracing::info!("leaving: {reason}");
                self.send(UNREGISTER, &Unregister { reason });
                self.left = true;
            }
            Effect::StartWorker => return self.start_worker().await,
            Effect::Define { map, definition } => self.tell_worker(|| vec![frame(b'D', 0, &to_json(&(map, &*definition)))], 0),
            Effect::Forget { map } => self.tell_worker(|| vec![frame(b'F', 0, &to_json(&map))], 0),
            Effect::GiveTasks { map, first, inputs } => {
                let count = inputs.len();
                self.tell_worker(|| vec![tasks_frame(map.0, first, inputs.iter())], count);
            }
            Effect::GiveRequest { ticket, request } => {
                if !std::mem::replace(&mut self.has_ipython, true) {
                    self.tell_worker(|| vec![frame(b'M', 0, IPYTHON.as_bytes())], 0);
                }
                let id = self.link.as_ref().map(|link| link.id);
                let meta = serde_json::json!({ "method": request.method.word(), "engine_uuid": self.facts.uuid, "engine_id": id });
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
                let worker = self.worker.as_mut()?;
                let output = [worker.stdout.read_to(None), worker.stderr.read_to(None)];
                return Some(Event::OutputRead { output });
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

    fn tell_worker(&mut self, frames: impl FnOnce() -> Vec<Bytes>, tokens: usize) {
        if let Some(worker) = &mut self.worker {
            worker.send(frames());
            if tokens > 0 {
                worker.allow(tokens);
            }
        }
    }

    async fn start_worker(&mut self) -> Option<Event> {
        self.workers += 1;
        self.has_ipython = false;
        let command = WorkerCommand {
            python: self.python.clone(),
            cwd: self.settings.cwd.clone(),
            env: self.settings.env.clone().into_iter().collect(),
        };
        match Worker::start(&command, self.workers, &self.forker, self.worker_sender.clone()).await {
            Ok(worker) => {
                self.worker = Some(worker);
                None
            }
            Err(reason) => {
                tracing::warn!("no Python worker: {reason}");
                self.worker = None;
                Some(Event::WorkerFailed { reason })
            }
        }
    }

    async fn end_worker(&mut self) {
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

fn read<'a, T: Deserialize<'a>>(message: &'a Message) -> Option<T> {
    message
        .content()
        .inspect_err(|e| tracing::warn!(msg_type = message.msg_type(), "a message cannot be read: {e}"))
        .ok()
}

/// Inputs stay where they are in the message.
fn tasks_came(message: &Message) -> Option<Event> {
    #[derive(Deserialize)]
    struct TasksHere<'a> {
        map: crate::model::MapId,
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
    let TasksHere { map, tasks } = read(message)?;
    let input = |raw: &RawValue| message.content_json.slice_ref(raw.get().as_bytes());
    Some(Event::TasksCame {
        map,
        tasks: tasks.into_iter().map(|task| (task.index, task.run, input(task.input))).collect(),
    })
}

/// The last lines of what was written to stderr, as many as fit into an error.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
