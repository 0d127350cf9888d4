//! Between the core and the world: sockets, the worker's process, commands, signals, clocks.
//!
//! Parts: `incoming` (from the controller), `pool` (the workers), `pump` (their output), `reports` (from workers and from commands),
//! `outgoing` (effects), `signals`, `ending` (a batch job's time).
mod ending;
mod incoming;
mod outgoing;
mod pool;
mod pump;
mod reports;
mod signals;

use crate::engine::bundles::Bundles;
use crate::engine::command::{self, CommandEvent, Running};
use crate::engine::core::{Core, CoreSettings, Event, Now};
use crate::engine::forker::Forker;
use crate::engine::leftovers::Leftovers;
use crate::engine::link::{Link, unix_now};
use crate::engine::worker::process::WorkerEvent;
use crate::engine::worker::watch::OutputWatch;
use crate::engine::{EngineError, EngineSettings};
use crate::model::engine::EngineFacts;
use crate::model::job::WALLTIME_NEARLY_OVER;
use crate::model::{EngineUuid, PROTOCOL_VERSION};
use crate::wire::Message;
use crate::wire::content::engine::*;
use ending::Warning;
use pool::Pool;
use reports::Said;
use signals::Signals;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender, channel, unbounded_channel};

/// A worker that is not ready after so long does not hold up the registration.
const READY_FOR_REGISTRATION: Duration = Duration::from_secs(30);
/// How long an engine that is told to leave waits for the answer to its registration.
const FAREWELL: Duration = Duration::from_secs(2);
/// A way to a controller that is elsewhere, while it is tried.
type Moving = tokio::task::JoinHandle<Option<(EngineSettings, Link, Message)>>;
/// While output waits for room, it is looked for so often.
const BEHIND: Duration = Duration::from_millis(5);
/// Messages taken from the socket in one go.
const AT_ONCE: usize = 64;

pub struct Driver {
    settings: EngineSettings,
    python: String,
    core: Core,
    forker: Forker,
    pool: Pool,
    watch: OutputWatch,
    said: VecDeque<(u64, Said)>,
    worker_events: UnboundedReceiver<(u64, WorkerEvent)>,
    worker_sender: UnboundedSender<(u64, WorkerEvent)>,
    command: Running,
    command_events: Receiver<CommandEvent>,
    command_sender: tokio::sync::mpsc::Sender<CommandEvent>,
    facts: EngineFacts,
    /// Where the controller keeps large buffers, if this process finds it.
    buffers: Option<PathBuf>,
    /// The code of maps.
    bundles: Bundles,
    link: Option<Link>,
    left: bool,
    /// Not the end: this process goes on as another engine.
    as_another: bool,
    signals: Signals,
}

fn now() -> Now {
    Now {
        instant: Instant::now(),
        unix: unix_now(),
    }
}

fn new_uuid() -> EngineUuid {
    EngineUuid::from(uuid::Uuid::new_v4().to_string().as_str())
}

fn new_core(settings: &EngineSettings, python: &str) -> Core {
    Core::new(CoreSettings {
        interrupt: Duration::from_millis(settings.interrupt_ms),
        terminate: Duration::from_millis(settings.terminate_ms),
        python: python.to_string(),
        shell_at_start: settings.shell_at_start,
    })
}

impl Driver {
    pub fn new(settings: EngineSettings) -> Result<Driver, EngineError> {
        let python = crate::engine::settings::interpreter(settings.python.as_deref());
        let system = |what: &str| {
            let what = what.to_string();
            move |e: std::io::Error| EngineError::System(format!("{what}: {e}"))
        };
        if settings.takes_in_orphans {
            Leftovers::take_in_orphans();
        }
        let (worker_sender, worker_events) = unbounded_channel();
        let (command_sender, command_events) = channel(16);
        let core = new_core(&settings, &python);
        let keys = settings.connection.pcluster.as_ref();
        let buffers = keys.and_then(|keys| keys.buffers.as_ref()?.here().map(Path::to_path_buf));
        let files = buffers.is_some().then_some(EngineFacts::FILES);
        let facts = EngineFacts {
            uuid: new_uuid(),
            host: command::host(),
            pid: std::process::id(),
            version: crate::model::VERSION.into(),
            python: String::new(),
            capabilities: ["call", "command", "execute", EngineFacts::JOINED]
                .into_iter()
                .chain(files)
                .map(String::from)
                .collect(),
            job: crate::engine::settings::job(),
            ends: crate::engine::settings::ends(),
        };
        Ok(Driver {
            settings,
            python,
            core,
            forker: Forker::new().map_err(system("cannot start a thread"))?,
            pool: Pool::default(),
            watch: OutputWatch::new().map_err(system("cannot watch the output of workers"))?,
            said: VecDeque::new(),
            worker_events,
            worker_sender,
            command: Running::default(),
            command_events,
            command_sender,
            facts,
            buffers,
            bundles: Bundles::default(),
            link: None,
            left: false,
            as_another: false,
            signals: Signals::watch().map_err(system("cannot watch for signals"))?,
        })
    }

    pub async fn run(mut self) -> Result<(), EngineError> {
        loop {
            self.live().await?;
            if !self.as_another {
                return Ok(());
            }
            tracing::info!("registering as another engine");
            self.core = new_core(&self.settings, &self.python);
            self.facts.uuid = new_uuid();
            (self.left, self.as_another) = (false, false);
            // The old id stands for a namespace that is gone.
            self.settings.id = None;
        }
    }

    /// From its registration to its leave.
    async fn live(&mut self) -> Result<(), EngineError> {
        let effects = self.core.warm_up(now());
        self.act(effects).await;
        self.wait_for_worker().await;
        if self.settings.shell_at_start && !self.pool.has_spare() && self.facts.python.is_empty() && !self.left {
            let why = self.core.why_no_worker().unwrap_or("it ended");
            return Err(EngineError::System(format!(
                "the engine's Python did not get through its start: {why}"
            )));
        }
        if self.left {
            // It was told to leave before anybody knew of it.
            self.end_workers().await;
            return Ok(());
        }
        let Some((registered, told_by)) = self.connect().await? else {
            self.end_workers().await;
            return Ok(());
        };
        let mut heartbeat = Duration::from_millis(registered.heartbeat_ms.max(10));
        let mut patience = Duration::from_millis(registered.controller_patience_ms.max(1000));
        self.settings.registration_timeout_ms = patience.as_millis() as u64;
        self.registered(&registered).await;
        if let Some(signal) = told_by {
            self.told_to_leave(signal).await;
        }
        let mut beat_at = Instant::now() + heartbeat;
        let mut last_heard = Instant::now();
        let mut leave_at = self.leave_at();
        // Since its connection ended the controller has said nothing; and what was found of it elsewhere.
        let (mut is_cut, mut moving): (bool, Option<Moving>) = (false, None);
        while !self.left {
            let mut deadline = self.core.next_deadline().map_or(beat_at, |deadline| deadline.min(beat_at));
            if !self.said.is_empty() {
                deadline = deadline.min(Instant::now() + BEHIND);
            }
            if let Some(pump) = self.next_pump() {
                deadline = deadline.min(pump);
            }
            let has_room = self.has_room();
            let Some(link) = &mut self.link else { break };
            tokio::select! {
                frames = link.socket.receive() => {
                    (last_heard, is_cut) = (Instant::now(), false);
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
                Some(_) = link.connections.next_disconnected() => is_cut = true,
                Some((number, event)) = self.worker_events.recv(), if self.said.is_empty() => self.worker_said(number, event).await,
                numbers = self.watch.written() => self.have_written(&numbers),
                Some(event) = self.command_events.recv(), if has_room => self.command_said(event).await,
                () = tokio::time::sleep_until(deadline.into()) => self.handle(Event::Tick).await,
                _ = self.signals.terminate.recv() => self.told_to_leave("SIGTERM").await,
                _ = self.signals.interrupt.recv() => self.interrupted().await,
                signal = self.signals.user.recv() => self.user_signal(signal).await,
                found = async { moving.as_mut()?.await.ok()? }, if moving.is_some() => {
                    moving = None;
                    if let Some((settings, link, answer)) = found {
                        (last_heard, is_cut) = (Instant::now(), false);
                        self.go_on_with(settings, link, answer).await;
                    }
                }
                () = tokio::time::sleep_until(leave_at.unwrap_or(deadline).into()), if leave_at.is_some() => {
                    leave_at = None;
                    self.leave_because(WALLTIME_NEARLY_OVER, Warning::Clock).await;
                }
            }
            self.hear_worker().await;
            self.pump().await;
            let instant = Instant::now();
            if instant >= beat_at {
                beat_at = instant + heartbeat;
                self.send(HEARTBEAT, &Heartbeat {});
                // A silent controller answers one heartbeat in an eighth of that time.
                if moving.is_none() && (is_cut || instant - last_heard > patience / 4) {
                    moving = self.look_for_controller();
                }
            }
            if instant - last_heard > patience {
                self.end_workers().await;
                return Err(EngineError::ControllerGone(patience.as_secs()));
            }
        }
        self.end_workers().await;
        if let Some(link) = self.link.take() {
            link.socket.close().await;
        }
        Ok(())
    }

    /// Registers; also which signal has told the engine to leave meanwhile: the controller may know of it by then, and is not to wait
    /// for it in vain. None where no controller has answered soon after the signal.
    async fn connect(&mut self) -> Result<Option<(Registered, Option<&'static str>)>, EngineError> {
        let register = self.register(Vec::new());
        let mut told_by: Option<(&'static str, tokio::time::Instant)> = None;
        let (link, registered) = {
            let connect = Link::connect(&mut self.settings, &register);
            tokio::pin!(connect);
            let soon = || tokio::time::Instant::now() + FAREWELL;
            loop {
                let until = told_by.map_or_else(soon, |(_, until)| until);
                tokio::select! {
                    connected = &mut connect => break connected?,
                    _ = self.signals.terminate.recv(), if told_by.is_none() => told_by = Some(("SIGTERM", soon())),
                    _ = self.signals.interrupt.recv(), if told_by.is_none() => told_by = Some(("SIGINT", soon())),
                    () = tokio::time::sleep_until(until), if told_by.is_some() => return Ok(None),
                }
            }
        };
        // ipengine's words: scripts look for them.
        tracing::info!("Completed registration with id {}", link.id);
        self.link = Some(link);
        Ok(Some((registered, told_by.map(|(signal, _)| signal))))
    }

    async fn registered(&mut self, registered: &Registered) {
        if let Some(max_message) = usize::try_from(registered.max_message_bytes).ok().filter(|max| *max > 0) {
            if let Some(link) = &mut self.link {
                link.max_message = max_message;
            }
            self.handle(Event::LimitKnown { max_message }).await;
        }
        self.handle(Event::Registered {
            drop: registered.drop.clone(),
        })
        .await;
    }

    /// A controller that is silent may have come back at other ports; then its file says so.
    fn look_for_controller(&self) -> Option<Moving> {
        let (mut settings, uuid) = (self.settings.clone(), self.facts.uuid.clone());
        settings.connection = settings.moved()?;
        Some(tokio::spawn(async move {
            match Link::connect_again(&settings, &uuid).await {
                Ok((link, answer)) => Some((settings, link, answer)),
                Err(why) => {
                    tracing::warn!("the connection file names another place, but no controller answers there: {why}");
                    None
                }
            }
        }))
    }

    async fn go_on_with(&mut self, settings: EngineSettings, mut link: Link, answer: Message) {
        tracing::info!("the controller has come back elsewhere");
        self.settings = settings;
        if let Some(before) = self.link.take() {
            link.succeed(before);
        }
        self.link = Some(link);
        self.receive_native(answer).await;
    }

    pub(super) async fn told_to_leave(&mut self, signal: &str) {
        self.leave_because(&format!("the engine got {signal}"), Warning::Terminate).await;
    }

    /// What runs may go on as long as is known to be left.
    async fn leave_because(&mut self, reason: &str, warning: Warning) {
        let (reason, grace_ms) = (reason.to_string(), self.grace_after(warning));
        tracing::info!(
            "{reason}: giving tasks back and leaving; what runs has {:.1} s",
            grace_ms as f64 / 1000.0
        );
        self.send(LEAVING, &Leaving { reason: reason.clone() });
        let event = Event::ShutdownAsked {
            drain: true,
            reason,
            grace_ms: Some(grace_ms),
        };
        self.handle(event).await;
    }

    /// Until the worker has said what Python it is, or that there is none.
    pub(super) async fn wait_for_worker(&mut self) {
        let until = tokio::time::Instant::now() + READY_FOR_REGISTRATION;
        while self.pool.has_spare() && self.facts.python.is_empty() {
            tokio::select! {
                Some((number, event)) = self.worker_events.recv() => self.worker_said(number, event).await,
                numbers = self.watch.written() => self.have_written(&numbers),
                () = tokio::time::sleep_until(until) => return,
                _ = self.signals.terminate.recv() => return self.told_to_leave("SIGTERM").await,
                _ = self.signals.interrupt.recv() => return self.told_to_leave("SIGINT").await,
            }
            self.pump().await;
        }
    }

    pub(super) fn register(&mut self, holds: Vec<Held>) -> Register {
        Register {
            protocol: PROTOCOL_VERSION,
            facts: self.facts.clone(),
            id: self.link.as_ref().map(|link| link.id).or(self.settings.id),
            holds,
            requests: self
                .core
                .held_requests()
                .chain(self.link.iter().flat_map(|link| link.kept()))
                .collect(),
            returned: self.core.unheard_returns(),
            unavailable: self.core.unavailable_at_registration(),
        }
    }

    pub(super) fn send<T: serde::Serialize + ?Sized>(&mut self, msg_type: &str, content: &T) {
        if let Some(link) = &mut self.link {
            link.send_native(msg_type, content);
        }
    }
}
