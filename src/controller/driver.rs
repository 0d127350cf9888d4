//! The loop between the sockets, the records and the core.
//!
//! Effects of many events are gathered into a batch. A batch's changes are committed by the records' thread, and only then are
//! its messages sent; meanwhile the next batch gathers. So commits are grouped under load, and nothing is told that is not on disk.
use super::bootstrap::{self, Secrets};
use super::core::returning::OwedReply;
use super::core::{Core, Effect, Event, Facts, Now};
use super::dask::Dask;
use super::delivered::{Delivered, Pending};
use super::records::{Records, Word};
use super::sockets::{Arrival, Place, Ports, Sockets};
use super::{ControllerError, ControllerSettings};
use crate::db::Writer;
use crate::model::change::Change;
use crate::model::{EngineUuid, UnixTime};
use crate::profile::config::Durability;
use crate::sys::{problem, process};
use crate::transport::{Security, TransportError};
use crate::wire::content::client::reply_type;
use crate::wire::content::engine::{Channel, without_buffers};
use crate::wire::{Frames, Message, Session};
use bytes::Bytes;
use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Events that one turn of the loop takes in.
const TURN: usize = 256;
/// A batch of many requests of ipyparallel's clients waits so long for more.
const GATHER: Duration = Duration::from_millis(2);
/// That replies were delivered is put on record with the next commit, or after so long: a commit of its own would be a third of what a
/// client costs that asks one thing after the other. Until then it is noted in a file ([`Delivered`]).
const GIVEN_WAITS: Duration = Duration::from_millis(20);
/// So many messages of one peer that cannot be opened end its connection.
const MOST_BAD: u32 = 16;
/// Peers whose bad messages are counted at a time.
const MOST_SUSPECTS: usize = 4096;

pub(super) async fn run(settings: ControllerSettings) -> Result<(), ControllerError> {
    bootstrap::raise_open_file_limit();
    let _only_one = bootstrap::only_one(&settings)?;
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
    // The writer's own: on a network file system it alone may have the file open.
    let reader = writer.reader()?;
    let mut restored = bootstrap::restored(&reader, killed)?;
    let (delivered, delivered_before) = Delivered::open(&database, killed);
    restored.delivered = delivered_before;
    let (sockets, arrivals) = listen(&settings, &mut secrets, killed).await?;
    bootstrap::write_files(&settings, &secrets)?;
    let (records, words) = Records::start(writer, reader).map_err(|source| ControllerError::System {
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
        "the controller serves"
    );
    problem::clear(&settings.profile.trouble_file(&settings.cluster_id));
    let memory = tokio::spawn(crate::memory::release_unused());
    let result = driver.serve(arrivals, words, events).await;
    memory.abort();
    bootstrap::put_away_files(&settings, &mut secrets);
    driver.sockets.close().await;
    let Driver { records, delivered, .. } = driver;
    if records.close() {
        delivered.close();
    }
    tracing::info!("the controller has ended");
    result
}

/// Whoever has a port of a killed controller may give it back soon (the start of another cluster, a test); elsewhere `ipengine`s and
/// ipyparallel's clients would not find it. Less than `start` waits for a controller by default.
const PORTS_PATIENCE: Duration = Duration::from_secs(20);
const PORTS_PAUSE: Duration = Duration::from_millis(200);

/// On the ports of the run before, where that was killed and they are free, or become so.
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
        tracing::warn!(%error, "cannot listen where the run before did; trying again");
        let until = Instant::now() + PORTS_PATIENCE;
        while listening.is_err() && Instant::now() < until {
            tokio::time::sleep(PORTS_PAUSE).await;
            listening = as_before().await;
        }
    }
    let listening = match listening {
        Err(error) if killed => {
            tracing::warn!(%error, "the ports of the run before are taken; pcluster's engines and clients find this one by its connection file, ipyparallel's will not");
            Sockets::listen(ip, &Ports::default(), &client, &engine, &settings.config).await?
        }
        other => other?,
    };
    secrets.ports = listening.0.ports.clone();
    Ok(listening)
}

struct Clock {
    start: Instant,
}

impl Clock {
    fn now(&self) -> Now {
        Now {
            since_start: self.start.elapsed(),
            unix: unix_now(),
        }
    }
}

pub(super) fn unix_now() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixTime((since.as_secs_f64() * 1e6).round() / 1e6)
}

struct Driver {
    clock: Clock,
    core: Core,
    sockets: Sockets,
    records: Records,
    /// Opens and seals what clients send and get, with their key; the other for engines.
    client_session: Session,
    engine_session: Session,
    /// Makes the answers out of the records.
    answers: Session,
    dask: Dask,
    /// Of events since the last batch.
    effects: Vec<Effect>,
    /// Messages of the batch that is being committed.
    held: Vec<Effect>,
    committing: bool,
    /// The next batch begins at that time.
    gathering: Option<Instant>,
    stop_at: Option<Instant>,
    bad_messages: u64,
    delivered: Delivered,
    given_due: Option<Instant>,
    unsent: Vec<Event>,
    /// Peers that did not read, as the core knows.
    cut_off: u64,
    /// Bad messages of each peer since its connection was last ended for that.
    suspects: HashMap<(Place, Bytes), u32>,
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
            gathering: None,
            stop_at: None,
            bad_messages: 0,
            delivered,
            given_due: None,
            unsent: Vec::new(),
            cut_off: 0,
            suspects: HashMap::new(),
        }
    }

    async fn serve(
        &mut self,
        mut arrivals: mpsc::Receiver<Arrival>,
        mut words: mpsc::UnboundedReceiver<Word>,
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
            self.tell_of_replies();
            let cut_off = self.sockets.budget.disconnected_peers();
            if cut_off != self.cut_off {
                self.cut_off = cut_off;
                self.handle(Event::PeersCutOff { total: cut_off });
            }
            // Under load there is always something that has arrived; reminders are not to wait for a pause.
            if self.core.next_wake().is_some_and(|at| at <= self.clock.start.elapsed()) {
                self.handle(Event::TimePassed);
                self.flush();
            }
            let wake = self.next_wake();
            tokio::select! {
                biased;
                Some(word) = words.recv() => {
                    self.hear(word);
                    while let Ok(word) = words.try_recv() {
                        self.hear(word);
                    }
                }
                Some(event) = events.recv() => self.handle(event),
                _ = terminate.recv() => self.handle(Event::StopAsked { engines: true }),
                _ = interrupt.recv() => self.handle(Event::StopAsked { engines: true }),
                count = arrivals.recv_many(&mut arrived, TURN), if self.effects.len() < TURN * 64 => {
                    if count == 0 {
                        return Ok(());
                    }
                    for arrival in arrived.drain(..) {
                        self.take_in(arrival);
                    }
                }
                _ = tokio::time::sleep(wake) => self.handle(Event::TimePassed),
            }
            if self.stop_at.is_some_and(|at| at <= Instant::now()) && !self.committing && self.effects.is_empty() {
                return Ok(());
            }
        }
    }

    /// What became of replies to clients that can be known again.
    fn tell_of_replies(&mut self) {
        if self.delivered.is_open() && *self.given_due.get_or_insert(Instant::now() + GIVEN_WAITS) <= Instant::now() {
            self.record_given();
        }
        for event in std::mem::take(&mut self.unsent) {
            self.handle(event);
        }
        self.flush();
    }

    fn record_given(&mut self) {
        self.given_due = None;
        let tasks = self.delivered.take();
        if !tasks.is_empty() {
            self.handle(Event::RepliesGiven { tasks });
        }
    }

    fn next_wake(&self) -> Duration {
        let core = self.core.next_wake().unwrap_or(Duration::from_secs(60));
        let wake = core.saturating_sub(self.clock.start.elapsed());
        let times = [self.stop_at, self.gathering, self.given_due];
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

    /// Opens what came and gives it to the core. What cannot be opened is counted and dropped.
    fn take_in(&mut self, arrival: Arrival) {
        let sender = arrival.sender();
        let event = match arrival {
            Arrival::Client(channel, frames) => self
                .client_session
                .open(frames)
                .map(|message| Some(Event::ClientSaid { channel, message })),
            Arrival::Native(mut frames) => {
                if frames.len() < 2 {
                    return self.refused(sender, "it has no channel");
                }
                let (engine, channel) = (uuid_of(&frames[0]), Channel::from_frame(&frames[1]));
                frames.drain(..2);
                self.engine_session.open(frames).map(|message| said(engine, true, channel, message))
            }
            Arrival::Stock(Channel::Iopub, frames) => self.engine_session.open(frames).map(|message| {
                // Only some of an `ipengine`'s messages name it in their metadata; all do in their topic.
                let metadata: serde_json::Value = message.metadata().unwrap_or_default();
                let named = metadata.get("engine").and_then(|e| e.as_str()).map(EngineUuid::from);
                let engine = named.or_else(|| self.core.engine_of_topic(&message.sender()));
                said(engine, false, Channel::Iopub, message)
            }),
            Arrival::Stock(channel, mut frames) => {
                if frames.is_empty() {
                    return;
                }
                let engine = uuid_of(&frames.remove(0));
                self.engine_session
                    .open(frames)
                    .map(|message| said(engine, false, channel, message))
            }
            Arrival::Registrant(frames) => self.engine_session.open(frames).map(|message| {
                Some(Event::RegistrantSaid {
                    identity: message.sender(),
                    message,
                })
            }),
            Arrival::Pong(frames) => Ok(frames.first().and_then(uuid_of).map(|engine| Event::Ponged { engine })),
            Arrival::ClientCame(channel, identity, key) => Ok(Some(Event::ClientCame { channel, identity, key })),
            Arrival::ClientLeft(channel, identity) => Ok(Some(Event::ClientLeft { channel, identity })),
            Arrival::Gone(engine) => Ok(Some(Event::ConnectionEnded { engine })),
        };
        match event {
            Ok(Some(event)) => self.handle(event),
            Ok(None) => {}
            Err(error) => self.refused(sender, &error.to_string()),
        }
    }

    /// Counts a message that could not be opened, and ends the connection of a peer that has sent too many.
    fn refused(&mut self, sender: Option<(Place, Bytes)>, why: &str) {
        self.bad_messages += 1;
        if self.bad_messages.is_power_of_two() {
            tracing::warn!(why, count = self.bad_messages, "a message was refused");
        }
        let Some(sender) = sender else { return };
        if self.suspects.len() >= MOST_SUSPECTS {
            self.suspects.clear();
        }
        let count = self.suspects.entry(sender.clone()).or_default();
        *count += 1;
        if *count >= MOST_BAD {
            self.suspects.remove(&sender);
            let (place, peer) = sender;
            let why = format!("{MOST_BAD} of its messages were refused, the last because: {why}");
            self.sockets.cut_off(place, &peer, &why);
        }
    }

    fn hear(&mut self, word: Word) {
        match word {
            Word::Committed => {
                self.committing = false;
                for effect in std::mem::take(&mut self.held) {
                    self.carry_out(effect);
                }
            }
            Word::Asked(word) => {
                self.records.answered();
                self.hear(*word);
            }
            Word::Found(event) => self.handle(*event),
            Word::Answer { query, content, buffers } => {
                let date = unix_now().to_iso();
                let mut message = self.answers.message(&date, &reply_type(&query.request), Some(&query.parent), &());
                message.content_json = content;
                message.buffers = buffers;
                let frames = self.client_session.seal(&[query.client], &message);
                self.sent(self.sockets.to_client(super::core::ClientChannel::Registration, frames));
            }
        }
    }

    /// Starts the next batch when the one before is on disk.
    fn flush(&mut self) {
        // What is carried out may bring an answer that the core has more to say to.
        while !self.committing && !self.effects.is_empty() {
            if self.core.may_gather() {
                let due = *self.gathering.get_or_insert(Instant::now() + GATHER);
                if Instant::now() < due {
                    return;
                }
            }
            self.gathering = None;
            self.record_given();
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
        self.gathering = None;
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
                        self.unsent.push(Event::ReplyUnsent { channel, client, reply });
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
                if let Some(word) = self.records.ask(query) {
                    self.hear(word);
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

    /// It is noted when this reply is written to its connection.
    fn watched(&self, reply: &OwedReply) -> (Message, Pending) {
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

    /// A peer that is gone is told of by its connection's end; what was for it is in the records.
    fn sent(&self, result: Result<(), TransportError>) {
        match result {
            Ok(()) | Err(TransportError::NoPeer | TransportError::Disconnected(_)) => {}
            Err(error) => tracing::warn!(%error, "a message could not be sent"),
        }
    }
}

fn uuid_of(frame: &Bytes) -> Option<EngineUuid> {
    std::str::from_utf8(frame).ok().filter(|s| !s.is_empty()).map(EngineUuid::from)
}

fn said(engine: Option<EngineUuid>, native: bool, channel: impl Into<Option<Channel>>, message: Message) -> Option<Event> {
    Some(said_by(engine?, native, channel.into()?, message))
}

fn said_by(engine: EngineUuid, native: bool, channel: Channel, mut message: Message) -> Event {
    let client = message.sender();
    message.identities.clear();
    Event::EngineSaid {
        engine,
        native,
        channel,
        client,
        message,
    }
}
