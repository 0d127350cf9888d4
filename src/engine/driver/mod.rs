//! Connects the core to its environment: sockets, worker processes, commands, signals, clocks.
//!
//! Parts: `incoming` (from the controller), `outgoing` (effects), `workers` (starts and ends them) and `pool` (their table), `pump` (their
//! output), `reports` (from workers and from commands), `leave` (`signals`, and `walltime`, the time limit of a batch job).
mod incoming;
mod leave;
mod outgoing;
mod pool;
mod pump;
mod reports;
mod signals;
mod walltime;
mod workers;

use crate::engine::bundles::BundleStore;
use crate::engine::code_directory::{self, CodeDirectory};
use crate::engine::command::{self, CommandEvent, RunningCommand};
use crate::engine::core::{Core, CoreSettings, Event, Now};
use crate::engine::forker::Forker;
use crate::engine::link::{Link, unix_now};
use crate::engine::node;
use crate::engine::oom::OomWatch;
use crate::engine::orphans::OrphanReaper;
use crate::engine::worker::process::WorkerEvent;
use crate::engine::worker::watch::OutputWatch;
use crate::engine::{EngineError, EngineSettings};
use crate::model::definition::ProcessSetup;
use crate::model::engine::EngineFacts;
use crate::model::job::LeaveReason;
use crate::model::node::NodeFacts;
use crate::model::{EngineUuid, PROTOCOL_VERSION};
use crate::wire::Message;
use crate::wire::content::engine::*;
use pool::{WorkerPool, WorkerReport};
use signals::EngineSignals;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender, channel, unbounded_channel};
use walltime::Warning;

/// Register without a ready worker after this time.
const WORKER_START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an engine that must leave waits for the answer to its registration.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);
/// A pending attempt to reach a controller at a new address.
type Reconnect = tokio::task::JoinHandle<Option<(EngineSettings, Link, Message)>>;
/// Poll interval while output waits for buffer space.
const BACKLOG_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Maximum number of messages to receive from the socket at a time.
const MAX_RECEIVE_BATCH: usize = 64;

pub(super) struct Driver {
    settings: EngineSettings,
    python: String,
    core: Core,
    forker: Forker,
    pool: WorkerPool,
    watch: OutputWatch,
    reports: VecDeque<(u64, WorkerReport)>,
    worker_events: UnboundedReceiver<(u64, WorkerEvent)>,
    worker_sender: UnboundedSender<(u64, WorkerEvent)>,
    command: RunningCommand,
    command_events: Receiver<CommandEvent>,
    command_sender: tokio::sync::mpsc::Sender<CommandEvent>,
    facts: EngineFacts,
    /// The controller's directory of large buffers, if this process can access it.
    buffers: Option<PathBuf>,
    /// The code of maps.
    bundles: BundleStore,
    /// Files in the environment of tasks that have a part of their job.
    host_files: Option<CodeDirectory>,
    link: Option<Link>,
    oom: OomWatch,
    left: bool,
    /// Do not exit after leaving: register as a new engine.
    as_new_engine: bool,
    signals: EngineSignals,
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

fn new_core(settings: &EngineSettings, python: &str, node: &NodeFacts) -> Core {
    Core::new(CoreSettings {
        interrupt: Duration::from_millis(settings.interrupt_timeout_ms),
        terminate: Duration::from_millis(settings.terminate_timeout_ms),
        python: python.to_string(),
        shell_at_start: settings.shell_at_start,
        process: process_setup(settings, node),
    })
}

/// The environment of tasks that ask for nothing.
fn process_setup(settings: &EngineSettings, node: &NodeFacts) -> ProcessSetup {
    let variable = |name: &str| settings.env.get(name).cloned().or_else(|| std::env::var(name).ok());
    let env = node::of_default_task(node.cpus, &variable).into_iter();
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    ProcessSetup {
        unset: names.filter(|name| node::is_of_launch(name)).collect(),
        env: env.map(|(name, value)| (name.into(), value)).collect(),
        ..ProcessSetup::default()
    }
}

impl Driver {
    pub(super) fn new(settings: EngineSettings) -> Result<Driver, EngineError> {
        let python = crate::engine::settings::interpreter(settings.python.as_deref());
        let system = |what: &str| {
            let what = what.to_string();
            move |e: std::io::Error| EngineError::System(format!("{what}: {e}"))
        };
        if settings.takes_in_orphans {
            OrphanReaper::adopt_orphans();
        }
        // Optional cleanup on its own thread, which ends by itself.
        if let Err(error) = std::thread::Builder::new().name("sweep".into()).spawn(code_directory::sweep) {
            tracing::debug!("cannot remove leftovers of killed engines: {error}");
        }
        let (worker_sender, worker_events) = unbounded_channel();
        let (command_sender, command_events) = channel(16);
        let keys = settings.connection.pcluster.as_ref();
        let buffers = keys.and_then(|keys| keys.buffers.as_ref()?.local_path().map(Path::to_path_buf));
        let files = buffers.is_some().then_some(EngineFacts::FILES);
        let host = command::host();
        let node = node::resources(&host, &settings.resources);
        let core = new_core(&settings, &python, &node);
        let facts = EngineFacts {
            uuid: new_uuid(),
            node,
            host,
            pid: std::process::id(),
            version: crate::model::VERSION.into(),
            python: String::new(),
            capabilities: ["call", "command", "execute", EngineFacts::JOINED, EngineFacts::INPUT_BUFFERS]
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
            pool: WorkerPool::default(),
            watch: OutputWatch::new().map_err(system("cannot watch the output of workers"))?,
            reports: VecDeque::new(),
            worker_events,
            worker_sender,
            command: RunningCommand::default(),
            command_events,
            command_sender,
            facts,
            buffers,
            bundles: BundleStore::default(),
            host_files: None,
            link: None,
            oom: OomWatch::new(Path::new("/"), Instant::now()),
            left: false,
            as_new_engine: false,
            signals: EngineSignals::watch().map_err(system("cannot watch for signals"))?,
        })
    }

    pub(super) async fn run(mut self) -> Result<(), EngineError> {
        loop {
            self.run_session().await?;
            if !self.as_new_engine {
                return Ok(());
            }
            tracing::info!("registering as a new engine");
            self.core = new_core(&self.settings, &self.python, &self.facts.node);
            self.facts.uuid = new_uuid();
            (self.left, self.as_new_engine) = (false, false);
            // The old id denotes the lost namespace.
            self.settings.id = None;
        }
    }

    /// Runs the engine from its registration until it leaves.
    async fn run_session(&mut self) -> Result<(), EngineError> {
        let effects = self.core.warm_up(now());
        self.act(effects).await;
        self.wait_for_worker().await;
        if self.settings.shell_at_start && !self.pool.has_spare() && self.facts.python.is_empty() && !self.left {
            let why = self.core.why_no_worker().unwrap_or("it ended");
            return Err(EngineError::System(format!("the engine's Python worker failed to start: {why}")));
        }
        if self.left {
            // Stopped before it registered.
            self.end_workers().await;
            return Ok(());
        }
        let Some((registered, leave_signal)) = self.connect().await? else {
            self.end_workers().await;
            return Ok(());
        };
        let mut heartbeat = Duration::from_millis(registered.heartbeat_interval_ms.max(10));
        let mut controller_timeout = Duration::from_millis(registered.engine_reconnect_timeout_ms.max(1000));
        self.settings.registration_timeout_ms = controller_timeout.as_millis() as u64;
        self.registered(&registered).await;
        if let Some(signal) = leave_signal {
            self.leave_on_signal(signal).await;
        }
        let mut heartbeat_at = Instant::now() + heartbeat;
        let mut last_message = Instant::now();
        let mut leave_at = self.leave_at();
        // Whether the connection has ended without a message since; a pending reconnect.
        let (mut is_disconnected, mut reconnecting): (bool, Option<Reconnect>) = (false, None);
        while !self.left {
            let mut deadline = self
                .core
                .next_deadline()
                .map_or(heartbeat_at, |deadline| deadline.min(heartbeat_at));
            if !self.reports.is_empty() {
                deadline = deadline.min(Instant::now() + BACKLOG_POLL_INTERVAL);
            }
            if let Some(pump) = self.next_pump() {
                deadline = deadline.min(pump);
            }
            let can_read_output = self.can_read_output();
            let Some(link) = &mut self.link else { break };
            tokio::select! {
                frames = link.socket.receive() => {
                    (last_message, is_disconnected) = (Instant::now(), false);
                    let mut next = Some(frames.map_err(|e| EngineError::System(format!("connection to the controller failed: {e}")))?);
                    let mut count = 0;
                    while let Some(frames) = next.take() {
                        if let Some(again) = self.receive(frames).await {
                            heartbeat = Duration::from_millis(again.heartbeat_interval_ms.max(10));
                            controller_timeout = Duration::from_millis(again.engine_reconnect_timeout_ms.max(1000));
                        }
                        count += 1;
                        next = self.link.as_ref().filter(|_| count < MAX_RECEIVE_BATCH).and_then(|link| link.socket.try_receive());
                    }
                }
                Some(_) = link.connections.next_disconnected() => is_disconnected = true,
                Some((number, event)) = self.worker_events.recv(), if self.reports.is_empty() => self.receive_worker_event(number, event).await,
                numbers = self.watch.written() => self.mark_written(&numbers),
                Some(event) = self.command_events.recv(), if can_read_output => self.receive_command_event(event).await,
                () = tokio::time::sleep_until(deadline.into()) => self.handle(Event::Tick).await,
                _ = self.signals.terminate.recv() => self.leave_on_signal("SIGTERM").await,
                _ = self.signals.interrupt.recv() => self.interrupted().await,
                signal = self.signals.user.recv() => self.user_signal(signal).await,
                found = async { reconnecting.as_mut()?.await.ok()? }, if reconnecting.is_some() => {
                    reconnecting = None;
                    if let Some((settings, link, answer)) = found {
                        (last_message, is_disconnected) = (Instant::now(), false);
                        self.switch_link(settings, link, answer).await;
                    }
                }
                () = tokio::time::sleep_until(leave_at.unwrap_or(deadline).into()), if leave_at.is_some() => {
                    leave_at = None;
                    self.leave_with_notice(LeaveReason::Walltime, Warning::Clock).await;
                }
            }
            self.process_reports().await;
            self.pump().await;
            let instant = Instant::now();
            if instant >= heartbeat_at {
                heartbeat_at = instant + heartbeat;
                self.send(HEARTBEAT, &Heartbeat {});
                self.oom.forget_old(instant);
                // An idle controller answers a heartbeat at least every eighth of that time.
                if reconnecting.is_none() && (is_disconnected || instant - last_message > controller_timeout / 4) {
                    reconnecting = self.try_reconnect();
                }
            }
            if instant - last_message > controller_timeout {
                self.end_workers().await;
                return Err(EngineError::ControllerGone(controller_timeout.as_secs()));
            }
        }
        self.end_workers().await;
        if let Some(link) = self.link.take() {
            link.socket.close().await;
        }
        Ok(())
    }

    /// Registers. Also returns the signal that asked the engine to leave in the meantime: the controller may have accepted the engine
    /// by then and must be notified. None if no controller answered soon after the signal.
    async fn connect(&mut self) -> Result<Option<(Registered, Option<&'static str>)>, EngineError> {
        let register = self.register(Vec::new());
        let mut leave_signal: Option<(&'static str, tokio::time::Instant)> = None;
        let (link, registered) = {
            let connect = Link::connect(&mut self.settings, &register);
            tokio::pin!(connect);
            let soon = || tokio::time::Instant::now() + FAREWELL_TIMEOUT;
            loop {
                let until = leave_signal.map_or_else(soon, |(_, until)| until);
                tokio::select! {
                    connected = &mut connect => break connected?,
                    _ = self.signals.terminate.recv(), if leave_signal.is_none() => leave_signal = Some(("SIGTERM", soon())),
                    _ = self.signals.interrupt.recv(), if leave_signal.is_none() => leave_signal = Some(("SIGINT", soon())),
                    () = tokio::time::sleep_until(until), if leave_signal.is_some() => return Ok(None),
                }
            }
        };
        // The message of ipengine, for which scripts search the log.
        tracing::info!("Completed registration with id {}", link.id);
        self.link = Some(link);
        Ok(Some((registered, leave_signal.map(|(signal, _)| signal))))
    }

    async fn registered(&mut self, registered: &Registered) {
        if let Some(max_message) = usize::try_from(registered.max_message_bytes).ok().filter(|max| *max > 0) {
            if let Some(link) = &mut self.link {
                link.max_message = max_message;
            }
            self.handle(Event::MessageLimit { max_message }).await;
        }
        self.handle(Event::Registered {
            drop: registered.drop.clone(),
        })
        .await;
    }

    /// Tries a new address: a silent controller may have restarted at other ports and rewritten the connection file.
    fn try_reconnect(&self) -> Option<Reconnect> {
        let (mut settings, uuid) = (self.settings.clone(), self.facts.uuid.clone());
        settings.connection = settings.moved()?;
        Some(tokio::spawn(async move {
            match Link::reconnect(&settings, &uuid).await {
                Ok((link, answer)) => Some((settings, link, answer)),
                Err(why) => {
                    tracing::warn!("the connection file has a new address, but no controller answers at it: {why}");
                    None
                }
            }
        }))
    }

    async fn switch_link(&mut self, settings: EngineSettings, mut link: Link, answer: Message) {
        tracing::info!("the controller has moved to a new address");
        self.settings = settings;
        if let Some(previous) = self.link.take() {
            link.take_over(previous);
        }
        self.link = Some(link);
        self.receive_native(answer).await;
    }

    /// Waits until the worker has reported its Python version or has failed.
    pub(super) async fn wait_for_worker(&mut self) {
        let until = tokio::time::Instant::now() + WORKER_START_TIMEOUT;
        while self.pool.has_spare() && self.facts.python.is_empty() {
            tokio::select! {
                Some((number, event)) = self.worker_events.recv() => self.receive_worker_event(number, event).await,
                numbers = self.watch.written() => self.mark_written(&numbers),
                () = tokio::time::sleep_until(until) => return,
                _ = self.signals.terminate.recv() => return self.leave_on_signal("SIGTERM").await,
                _ = self.signals.interrupt.recv() => return self.leave_on_signal("SIGINT").await,
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
                .chain(self.link.iter().flat_map(|link| link.unrecorded()))
                .collect(),
            allocations: self.core.allocations(),
            returned: self.core.unconfirmed_returns(),
            unavailable: self.core.unavailable_at_registration(),
        }
    }

    pub(super) fn send<T: serde::Serialize + ?Sized>(&mut self, msg_type: &str, content: &T) {
        if let Some(link) = &mut self.link {
            link.send_native(msg_type, content);
        }
    }
}
