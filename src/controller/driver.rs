//! The loop between the sockets, the records and the core.
//!
//! Effects of several events form a batch. The records' thread commits a batch's changes, and only then are its messages
//! sent; meanwhile the next batch accumulates. So commits are grouped under load, and no message precedes its commit.
use super::bootstrap::{self, Secrets};
use super::clock::{Clock, unix_now};
use super::core::effect::UndeliveredReply;
use super::core::{Core, Effect, Event, Facts};
use super::dask::Dask;
use super::delivered::{Delivered, PendingReceipt};
use super::records::{DbReply, Records};
use super::sockets::{Arrival, PeerSocket, Ports, Sockets};
use super::{ControllerError, ControllerSettings};
use crate::db::Writer;
use crate::model::EngineUuid;
use crate::model::change::Change;
use crate::profile::config::Durability;
use crate::sys::{problem, process};
use crate::transport::{Security, TransportError};
use crate::wire::content::client::reply_type;
use crate::wire::content::engine::{Channel, without_buffers};
use crate::wire::{Frames, Message, Session};
use bytes::Bytes;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Arrivals handled in one turn of the loop.
const TURN: usize = 256;
/// How long a batch of many ipyparallel requests waits for more.
const BATCH_DELAY: Duration = Duration::from_millis(2);
/// Delivered replies are recorded with the next commit, or after this delay: a commit of their own would be a third of the cost of a
/// client that sends one request after the other. Until then they are noted in a file ([`Delivered`]).
const DELIVERED_DELAY: Duration = Duration::from_millis(20);
/// A peer is disconnected after this many rejected messages.
const MAX_BAD_MESSAGES: u32 = 16;
/// Peers whose rejected messages are counted at a time.
const MAX_SUSPECTS: usize = 4096;

pub(super) async fn run(settings: ControllerSettings) -> Result<(), ControllerError> {
    bootstrap::raise_open_file_limit();
    let _only_one = bootstrap::take_controller_lock(&settings)?;
    let (mut secrets, killed) = bootstrap::secrets(&settings)?;
    let database = settings.profile.database_file(&settings.cluster_id);
    let durability = match settings.config.durability {
        Durability::Normal => crate::db::Durability::Normal,
        Durability::Full => crate::db::Durability::Full,
    };
    if let Some(text) = crate::db::noted_loss(&database, true) {
        tracing::warn!("before this start: {text}");
    }
    let writer = Writer::open(&database, durability)?;
    // Opened by the writer: on a network file system only its connection may have the file open.
    let reader = writer.reader()?;
    let mut restored = bootstrap::restored(&reader, killed)?;
    let (delivered, delivered_before) = Delivered::open(&database, killed);
    restored.delivered = delivered_before;
    let (sockets, arrivals) = listen(&settings, &mut secrets, killed).await?;
    bootstrap::write_files(&settings, &secrets)?;
    let (records, replies) = Records::start(writer, reader).map_err(|source| ControllerError::System {
        what: "the records".into(),
        source,
    })?;
    let (later, events) = mpsc::unbounded_channel();
    let dask = Dask::new(&settings.python, &settings.config.ip, later);
    let mut driver = Driver::new(&settings, &secrets, sockets, records, dask, delivered);
    driver.core.restore(driver.clock.now(), restored, &mut driver.effects);
    tracing::info!(
        profile = %settings.profile.path().display(),
        ip = settings.config.ip,
        port = secrets.ports.client.registration,
        database = %database.display(),
        "controller ready"
    );
    problem::clear(&settings.profile.problem_file(&settings.cluster_id));
    let memory = tokio::spawn(crate::memory::release_unused());
    let result = driver.serve(arrivals, replies, events).await;
    memory.abort();
    bootstrap::retire_files(&settings, &mut secrets);
    driver.sockets.close().await;
    let Driver { records, delivered, .. } = driver;
    if records.close() {
        delivered.close();
    }
    tracing::info!("controller stopped");
    result
}

/// How long to wait for the ports of a killed controller: another process may release them soon (another cluster's start, a test), and
/// `ipengine`s and ipyparallel's clients find the controller only there. Shorter than `start` waits for a controller by default.
const PORTS_TIMEOUT: Duration = Duration::from_secs(20);
const PORTS_RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Listens on the ports of the previous run if it was killed and they are free or become free.
async fn listen(
    settings: &ControllerSettings,
    secrets: &mut Secrets,
    killed: bool,
) -> Result<(Sockets, mpsc::Receiver<Arrival>), ControllerError> {
    let security = |pair| {
        if settings.config.curve {
            Security::Server(pair)
        } else {
            Security::Plain
        }
    };
    let (client, engine) = (security(secrets.client_pair()), security(secrets.engine_pair()));
    let ip = &settings.config.ip;
    if let Some(text) = &settings.config.ports {
        let ports = Ports::parse(text).map_err(|why| ControllerError::Prepare {
            what: format!("controller.ports = {text:?}"),
            why,
        })?;
        let listening = Sockets::listen(ip, &ports, &client, &engine, &settings.config).await?;
        secrets.ports = ports;
        return Ok(listening);
    }
    let ports = secrets.ports.clone();
    let as_before = || Sockets::listen(ip, &ports, &client, &engine, &settings.config);
    let mut listening = as_before().await;
    if let Err(error) = &listening
        && killed
    {
        tracing::warn!(%error, "cannot listen on the ports of the previous run; retrying");
        let until = Instant::now() + PORTS_TIMEOUT;
        while listening.is_err() && Instant::now() < until {
            tokio::time::sleep(PORTS_RETRY_INTERVAL).await;
            listening = as_before().await;
        }
    }
    let listening = match listening {
        Err(error) if killed => {
            tracing::warn!(%error, "the ports of the previous run are in use; pcluster's engines and clients find this controller by its connection file, ipyparallel's do not");
            Sockets::listen(ip, &Ports::default(), &client, &engine, &settings.config).await?
        }
        other => other?,
    };
    secrets.ports = listening.0.ports.clone();
    Ok(listening)
}

struct Driver {
    clock: Clock,
    core: Core,
    sockets: Sockets,
    records: Records,
    /// Verifies and signs messages with the clients' key; the next one with the engines' key.
    client_session: Session,
    engine_session: Session,
    /// Creates the answers to queries.
    answers: Session,
    dask: Dask,
    /// Effects of events since the last batch.
    effects: Vec<Effect>,
    /// Messages of the batch that is being committed.
    held: Vec<Effect>,
    committing: bool,
    /// When the next batch starts.
    batch_due: Option<Instant>,
    stop_at: Option<Instant>,
    bad_messages: u64,
    delivered: Delivered,
    delivered_due: Option<Instant>,
    undelivered: Vec<Event>,
    /// Peers disconnected at the send queue limit, as last reported to the core.
    disconnected_peers: u64,
    /// Rejected messages by peer since it was last disconnected for them.
    suspects: HashMap<(PeerSocket, Bytes), u32>,
}

impl Driver {
    fn new(
        settings: &ControllerSettings,
        secrets: &Secrets,
        sockets: Sockets,
        records: Records,
        dask: Dask,
        delivered: Delivered,
    ) -> Driver {
        let clock = Clock { start: Instant::now() };
        let session = uuid::Uuid::new_v4().to_string();
        let facts = Facts {
            cluster_id: settings.cluster_id.clone(),
            pid: std::process::id(),
            host: process::host(),
            started: unix_now(),
            session: session.clone(),
            engine_file: serde_json::to_value(bootstrap::engine_file(settings, secrets)).unwrap_or_default(),
            seed: uuid::Uuid::new_v4().as_u64_pair().0,
        };
        Driver {
            core: Core::new(settings.config.clone(), facts, clock.now()),
            clock,
            sockets,
            records,
            dask,
            client_session: Session::new(secrets.client_key.as_bytes(), format!("{session}-c"), "pcluster"),
            engine_session: Session::new(secrets.engine_key.as_bytes(), format!("{session}-e"), "pcluster"),
            answers: Session::new(b"", format!("{session}-r"), "pcluster"),
            effects: Vec::new(),
            held: Vec::new(),
            committing: false,
            batch_due: None,
            stop_at: None,
            bad_messages: 0,
            delivered,
            delivered_due: None,
            undelivered: Vec::new(),
            disconnected_peers: 0,
            suspects: HashMap::new(),
        }
    }

    async fn serve(
        &mut self,
        mut arrivals: mpsc::Receiver<Arrival>,
        mut replies: mpsc::UnboundedReceiver<DbReply>,
        mut events: mpsc::UnboundedReceiver<Event>,
    ) -> Result<(), ControllerError> {
        let failed = |source| ControllerError::System {
            what: "signal handling".into(),
            source,
        };
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut arrived = Vec::with_capacity(TURN);
        loop {
            self.flush();
            self.report_replies();
            let disconnected_peers = self.sockets.budget.disconnected_peers();
            if disconnected_peers != self.disconnected_peers {
                self.disconnected_peers = disconnected_peers;
                self.handle(Event::PeersDisconnected { total: disconnected_peers });
            }
            // Under load there is always an arrival; timers must not wait for a pause.
            if self.core.next_wake().is_some_and(|at| at <= self.clock.start.elapsed()) {
                self.handle(Event::TimePassed);
                self.flush();
            }
            let wake = self.next_wake();
            tokio::select! {
                biased;
                Some(reply) = replies.recv() => {
                    self.on_reply(reply);
                    while let Ok(reply) = replies.try_recv() {
                        self.on_reply(reply);
                    }
                }
                Some(event) = events.recv() => self.handle(event),
                _ = terminate.recv() => self.handle(Event::StopRequested { engines: true }),
                _ = interrupt.recv() => self.handle(Event::StopRequested { engines: true }),
                count = arrivals.recv_many(&mut arrived, TURN), if self.effects.len() < TURN * 64 => {
                    if count == 0 {
                        return Ok(());
                    }
                    for arrival in arrived.drain(..) {
                        self.receive(arrival);
                    }
                }
                _ = tokio::time::sleep(wake) => self.handle(Event::TimePassed),
            }
            if self.stop_at.is_some_and(|at| at <= Instant::now()) && !self.committing && self.effects.is_empty() {
                return Ok(());
            }
        }
    }

    /// Reports delivered and undelivered replies of identifiable clients to the core.
    fn report_replies(&mut self) {
        if self.delivered.is_open() && *self.delivered_due.get_or_insert(Instant::now() + DELIVERED_DELAY) <= Instant::now() {
            self.record_delivered();
        }
        for event in std::mem::take(&mut self.undelivered) {
            self.handle(event);
        }
        self.flush();
    }

    fn record_delivered(&mut self) {
        self.delivered_due = None;
        let tasks = self.delivered.take();
        if !tasks.is_empty() {
            self.handle(Event::RepliesDelivered { tasks });
        }
    }

    fn next_wake(&self) -> Duration {
        let core = self.core.next_wake().unwrap_or(Duration::from_secs(60));
        let wake = core.saturating_sub(self.clock.start.elapsed());
        let times = [self.stop_at, self.batch_due, self.delivered_due];
        let first = times
            .into_iter()
            .flatten()
            .map(|at| at.saturating_duration_since(Instant::now()))
            .min();
        first.map_or(wake, |first| first.min(wake))
    }

    fn handle(&mut self, event: Event) {
        let now = self.clock.now();
        self.core.handle(now, event, &mut self.effects);
        #[cfg(debug_assertions)]
        if std::env::var_os("PCLUSTER_CHECK").is_some() {
            self.core.check();
        }
    }

    /// Verifies an arrival and passes it to the core. Counts and drops what cannot be verified.
    fn receive(&mut self, arrival: Arrival) {
        let sender = arrival.sender();
        let event = match arrival {
            Arrival::Client(channel, frames) => self
                .client_session
                .open(frames)
                .map(|message| Some(Event::ClientMessage { channel, message })),
            Arrival::Native(mut frames) => {
                if frames.len() < 2 {
                    return self.refused(sender, "missing channel frame");
                }
                let (engine, channel) = (uuid_of(&frames[0]), Channel::from_frame(&frames[1]));
                frames.drain(..2);
                self.engine_session
                    .open(frames)
                    .map(|message| engine_message(engine, true, channel, message))
            }
            Arrival::Stock(Channel::Iopub, frames) => self.engine_session.open(frames).map(|message| {
                // Only some of an `ipengine`'s messages name it in their metadata; all name it in their topic.
                let metadata: serde_json::Value = message.metadata().unwrap_or_default();
                let named = metadata.get("engine").and_then(|e| e.as_str()).map(EngineUuid::from);
                let engine = named.or_else(|| self.core.engine_of_topic(&message.sender()));
                engine_message(engine, false, Channel::Iopub, message)
            }),
            Arrival::Stock(channel, mut frames) => {
                if frames.is_empty() {
                    return;
                }
                let engine = uuid_of(&frames.remove(0));
                self.engine_session
                    .open(frames)
                    .map(|message| engine_message(engine, false, channel, message))
            }
            Arrival::Registrant(frames) => self.engine_session.open(frames).map(|message| {
                Some(Event::RegistrantMessage {
                    identity: message.sender(),
                    message,
                })
            }),
            Arrival::Pong(frames) => Ok(frames.first().and_then(uuid_of).map(|engine| Event::PongReceived { engine })),
            Arrival::ClientConnected(channel, identity, key) => Ok(Some(Event::ClientConnected { channel, identity, key })),
            Arrival::ClientDisconnected(channel, identity) => Ok(Some(Event::ClientDisconnected { channel, identity })),
            Arrival::Gone(engine) => Ok(Some(Event::EngineDisconnected { engine })),
        };
        match event {
            Ok(Some(event)) => self.handle(event),
            Ok(None) => {}
            Err(error) => self.refused(sender, &error.to_string()),
        }
    }

    /// Counts a rejected message, and disconnects a peer that has sent too many.
    fn refused(&mut self, sender: Option<(PeerSocket, Bytes)>, why: &str) {
        self.bad_messages += 1;
        if self.bad_messages.is_power_of_two() {
            tracing::warn!(why, count = self.bad_messages, "message rejected");
        }
        let Some(sender) = sender else { return };
        if self.suspects.len() >= MAX_SUSPECTS {
            self.suspects.clear();
        }
        let count = self.suspects.entry(sender.clone()).or_default();
        *count += 1;
        if *count >= MAX_BAD_MESSAGES {
            self.suspects.remove(&sender);
            let (socket, peer) = sender;
            let why = format!("{MAX_BAD_MESSAGES} of its messages were rejected, the last one: {why}");
            self.sockets.disconnect(socket, &peer, &why);
        }
    }

    fn on_reply(&mut self, reply: DbReply) {
        match reply {
            DbReply::Committed => {
                self.committing = false;
                for effect in std::mem::take(&mut self.held) {
                    self.carry_out(effect);
                }
            }
            DbReply::FromThread(reply) => {
                self.records.query_done();
                self.on_reply(*reply);
            }
            DbReply::Event(event) => self.handle(*event),
            DbReply::Answer { query, content, buffers } => {
                let date = unix_now().to_iso();
                let mut message = self.answers.message(&date, &reply_type(&query.request), Some(&query.parent), &());
                message.content_json = content;
                message.buffers = buffers;
                let frames = self.client_session.seal(&[query.client], &message);
                self.sent(self.sockets.to_client(super::core::ClientChannel::Registration, frames));
            }
        }
    }

    /// Starts the next batch once the previous one is on disk.
    fn flush(&mut self) {
        // A carried-out effect may produce an answer with further effects.
        while !self.committing && !self.effects.is_empty() {
            if self.core.may_batch() {
                let due = *self.batch_due.get_or_insert(Instant::now() + BATCH_DELAY);
                if Instant::now() < due {
                    return;
                }
            }
            self.batch_due = None;
            self.record_delivered();
            let mut changes: Vec<Change> = Vec::new();
            for effect in self.effects.drain(..) {
                match effect {
                    Effect::Record(change) => changes.push(change),
                    other => self.held.push(other),
                }
            }
            if changes.is_empty() || self.records.write(changes) {
                for effect in std::mem::take(&mut self.held) {
                    self.carry_out(effect);
                }
            } else {
                self.committing = true;
            }
        }
        self.batch_due = None;
    }

    fn carry_out(&mut self, effect: Effect) {
        let result = match effect {
            Effect::Record(_) => return,
            Effect::Reply { channel, client, reply } => {
                let route: Vec<Bytes> = std::iter::once(client.clone()).chain(reply.engine.clone()).collect();
                let (message, pending) = self.watched(&reply);
                let frames = self.client_session.seal(&route, &message);
                drop(message);
                let result = self.sockets.to_client(channel, frames);
                match &result {
                    Ok(()) => pending.sent(),
                    Err(TransportError::NoPeer | TransportError::Disconnected(_)) => {
                        self.undelivered.push(Event::ReplyUndelivered { channel, client, reply });
                    }
                    Err(_) => {}
                }
                result
            }
            Effect::ToClient { channel, route, message } => {
                let frames = self.client_session.seal(&route, &message);
                self.sockets.to_client(channel, frames)
            }
            Effect::ToEngine {
                engine,
                native,
                channel,
                client,
                message,
            } => self.to_engine(engine, native, channel, client, &message),
            Effect::ToRegistrant { identity, message } => {
                let frames = self.engine_session.seal(&[identity], &message);
                self.sockets.to_registrant(frames)
            }
            Effect::Notify { message } => {
                let frames = self.client_session.seal(&[], &message);
                self.sockets.notify(frames)
            }
            Effect::Iopub { topic, message } => {
                let frames = self.client_session.seal(&[topic], &message);
                self.sockets.publish_iopub(frames)
            }
            Effect::Ping { payload } => self.sockets.ping(payload),
            Effect::Query(query) => {
                if let Some(reply) = self.records.query(query) {
                    self.on_reply(reply);
                }
                Ok(())
            }
            Effect::StartDask { client, parent, arguments } => {
                self.dask.start(client, parent, arguments);
                Ok(())
            }
            Effect::StopDask => {
                self.dask.stop();
                Ok(())
            }
            Effect::Stop { after } => {
                self.stop_at.get_or_insert(Instant::now() + after);
                Ok(())
            }
        };
        self.sent(result);
    }

    /// Attaches a receipt that notes when this reply is written to its connection.
    fn watched(&self, reply: &UndeliveredReply) -> (Message, PendingReceipt) {
        let mut message = reply.message.clone();
        let header = std::mem::take(&mut message.header_json);
        let (header, pending) = self.delivered.watch(header, reply.tasks.clone());
        message.header_json = header;
        (message, pending)
    }

    fn to_engine(
        &self,
        engine: EngineUuid,
        native: bool,
        channel: Channel,
        client: Bytes,
        message: &Message,
    ) -> Result<(), TransportError> {
        let uuid = Bytes::copy_from_slice(engine.0.as_bytes());
        if native {
            let mut prefix = vec![uuid, Bytes::from_static(channel.frame())];
            if channel != Channel::Native {
                prefix.push(client);
            }
            let frames: Frames = match message.buffer_file.name() {
                Some(name) => self.engine_session.seal(&prefix, &without_buffers(message, name)),
                None => self.engine_session.seal(&prefix, message),
            };
            self.sockets.to_native_engine(frames)
        } else {
            let frames = self.engine_session.seal(&[uuid, client], message);
            self.sockets.to_stock_engine(channel, frames)
        }
    }

    /// Logs send errors. A missing peer is reported by the end of its connection; its messages are in the records.
    fn sent(&self, result: Result<(), TransportError>) {
        match result {
            Ok(()) | Err(TransportError::NoPeer | TransportError::Disconnected(_)) => {}
            Err(error) => tracing::warn!(%error, "cannot send a message"),
        }
    }
}

fn uuid_of(frame: &Bytes) -> Option<EngineUuid> {
    std::str::from_utf8(frame).ok().filter(|s| !s.is_empty()).map(EngineUuid::from)
}

fn engine_message(engine: Option<EngineUuid>, native: bool, channel: impl Into<Option<Channel>>, message: Message) -> Option<Event> {
    Some(engine_message_event(engine?, native, channel.into()?, message))
}

fn engine_message_event(engine: EngineUuid, native: bool, channel: Channel, mut message: Message) -> Event {
    let client = message.sender();
    message.identities.clear();
    Event::EngineMessage {
        engine,
        native,
        channel,
        client,
        message,
    }
}
