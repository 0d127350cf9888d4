//! The controller's decisions, pure: an event and the time in, effects out. No socket, file, clock or random source is
//! known here; the driver (`controller::driver`) acts.
//!
//! Parts: [`event`], [`effect`], [`engines`] (the table of engines), [`maps`] (unfinished maps), [`balanced`] (which engine gets what),
//! [`finish`] (what results, losses and cancellations do to tasks), [`membership`] (engines come and go), [`clients`] (pcluster's own requests), [`bundles`] (the code of maps),
//! [`abandoned`] (maps whose client has died), [`hub`] (ipyparallel's hub requests), [`requests`] (ipyparallel's tasks), [`placing`] (which of them run where), [`ahead`], [`broadcast`], [`output`], [`policy`] (its schemes), [`dependency`], [`returning`] (clients that reconnect), [`restore`], [`retention`] (what is forgotten unasked), [`transition`], [`untrusted`] (what engines send, checked).
mod abandoned;
mod ahead;
mod balanced;
mod broadcast;
mod bundles;
mod clients;
pub mod dependency;
pub mod effect;
pub mod engines;
pub mod event;
mod finish;
mod hub;
mod maps;
mod membership;
mod orders;
mod output;
mod placing;
pub mod policy;
mod requests;
mod restore;
mod retention;
pub mod returning;
#[cfg(test)]
mod transition;
mod untrusted;
mod values;

#[cfg(test)]
mod tests;

pub use effect::{Ask, ClientChannel, Effect, Query};
pub use event::Event;
pub use retention::Expired;

use crate::model::change::Change;
use crate::model::{EngineUuid, MapId, UnixTime};
use crate::profile::config::ControllerConfig;
use crate::wire::content::engine::Channel;
use crate::wire::{Message, Session};
use ahead::Ahead;
use bundles::Bundles;
use bytes::Bytes;
use engines::Engines;
use maps::Map;
use requests::Requests;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::time::Duration;

/// The time of an event: since the controller's start for periods, since 1970 for records.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Now {
    pub since_start: Duration,
    pub unix: UnixTime,
}

/// What the core must know of its own process.
#[derive(Clone, Debug)]
pub struct Facts {
    pub cluster_id: String,
    pub pid: u32,
    pub host: String,
    pub started: UnixTime,
    /// Unique to this run of the controller; the stem of its message ids.
    pub session: String,
    /// What an `ipengine` is told beside its id: the engine connection file as JSON.
    pub engine_file: serde_json::Value,
    /// For schemes that choose at random.
    pub seed: u64,
}

/// Something that is due at a time. What it is about may be gone by then.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// Pings, silent engines, stuck queues.
    Beat,
    Lease(EngineUuid),
    /// An `ipengine` that has not beaten yet.
    Registration(EngineUuid),
    /// Tasks that an engine was thought to hold when it came back, and did not name.
    Unconfirmed(EngineUuid, Vec<(crate::model::TaskId, u32)>),
    Watches(MapId),
    /// Its client may have died while it sent inputs.
    Inputs(MapId),
    /// Replies of this engine's have been recorded.
    RepliesRecorded(EngineUuid),
    /// It has waited long enough in this run.
    RequestTimeout(String, u32),
    /// What an `ipengine` had when it left: late replies may still come.
    Stranded(EngineUuid),
    /// ipyparallel's clients may hear that it has gone.
    Departed(EngineUuid),
    /// Is there something to be forgotten?
    Retention,
    /// Engines that have registered since then are announced again: to a client that did not listen yet.
    Announce(Duration),
}

pub struct Core {
    config: ControllerConfig,
    facts: Facts,
    session: Session,
    engines: Engines,
    /// `ipengine`s that have asked to register and not beaten yet.
    incoming: HashMap<EngineUuid, crate::model::EngineId>,
    maps: BTreeMap<MapId, Map>,
    keys: HashMap<String, MapId>,
    next_map: u32,
    bundles: Bundles,
    /// Engines to be told what is on disk and what is finished.
    unsettled: BTreeSet<EngineUuid>,
    /// The maps that wait for a map.
    followers: HashMap<MapId, Vec<MapId>>,
    /// Maps with tasks that could be sent now.
    runnable: BTreeSet<MapId>,
    /// Finished maps: whether a task failed. One entry a map, not a task.
    finished: HashMap<MapId, bool>,
    requests: Requests,
    departures: membership::Departures,
    /// Engines that broke the protocol, and how: they are not registered again.
    refused: HashMap<EngineUuid, String>,
    ahead: Ahead,
    readers: retention::Readers,
    /// [`Core::retention_clock`] at the start of this controller.
    retention_base: UnixTime,
    timers: BinaryHeap<Reverse<(Duration, Due)>>,
    dice: policy::Dice,
    beats: u64,
    finished_tasks: u64,
    sent_tasks: u64,
    cut_off: u64,
    effects: Vec<Effect>,
    now: Now,
}

impl Core {
    pub fn new(config: ControllerConfig, facts: Facts, now: Now) -> Core {
        let session = Session::new(b"", facts.session.clone(), "pcluster");
        let mut core = Core {
            config,
            session,
            engines: Engines::default(),
            incoming: HashMap::new(),
            maps: BTreeMap::new(),
            keys: HashMap::new(),
            next_map: 1,
            bundles: Bundles::default(),
            unsettled: BTreeSet::new(),
            followers: HashMap::new(),
            runnable: BTreeSet::new(),
            finished: HashMap::new(),
            requests: Requests::default(),
            departures: Default::default(),
            refused: HashMap::new(),
            ahead: Ahead::default(),
            readers: Default::default(),
            retention_base: UnixTime(now.unix.0 - now.since_start.as_secs_f64()),
            timers: BinaryHeap::new(),
            dice: policy::Dice::new(facts.seed),
            facts,
            beats: 0,
            finished_tasks: 0,
            sent_tasks: 0,
            cut_off: 0,
            effects: Vec::new(),
            now,
        };
        core.remind(Duration::ZERO, Due::Beat);
        if core.config.retention_days.is_some() {
            core.remind(retention::FIRST, Due::Retention);
        }
        core
    }

    /// The only way in. What is to be done is appended to `effects`.
    pub fn handle(&mut self, now: Now, event: Event, effects: &mut Vec<Effect>) {
        self.now = now;
        std::mem::swap(&mut self.effects, effects);
        match event {
            Event::ClientSaid {
                channel: ClientChannel::Registration,
                message,
            } => self.client_asked(message),
            Event::ClientSaid {
                channel: ClientChannel::Mux,
                message,
            } => self.mux_request(message),
            Event::ClientSaid {
                channel: ClientChannel::Task,
                message,
            } => self.task_request(message),
            Event::ClientSaid {
                channel: ClientChannel::Broadcast,
                message,
            } => self.broadcast_request(message),
            Event::ClientSaid {
                channel: ClientChannel::Control,
                message,
            } => self.control_request(message),
            Event::EngineSaid {
                engine,
                native,
                channel,
                client,
                message,
            } => self.engine_said(engine, native, channel, client, message),
            Event::RegistrantSaid { identity, message } => self.registrant_said(identity, message),
            Event::Ponged { engine } => self.ponged(engine),
            Event::ConnectionEnded { engine } => self.connection_ended(engine),
            Event::ClientCame { channel, identity, key } => self.client_came(channel, identity, key),
            Event::ClientLeft { channel, identity } => self.client_left(channel, &identity),
            Event::TimePassed => self.time_passed(),
            Event::ResubmitFound {
                client,
                parent,
                request,
                selection,
                definition,
                maps,
            } => self.resubmit_found(client, parent, &request, selection, definition, maps),
            Event::ValuesFound { engine, values, buffers } => self.values_found(&engine, &values, buffers),
            Event::MapFound { request, map, bundle } => self.map_found(*request, map, bundle),
            Event::RequestsFound {
                client,
                parent,
                request,
                found,
                missing,
            } => self.requests_found(client, parent, &request, found, missing),
            Event::DaskAnswered { client, parent, place } => self.dask_answered(client, parent, place),
            Event::ExpiredFound(expired) => self.expired_found(expired),
            Event::RepliesGiven { tasks } => self.record(Change::RepliesGiven { tasks }),
            Event::ReplyUnsent { channel, client, reply } => self.reply_unsent(channel, &client, reply),
            Event::PeersCutOff { total } => self.cut_off = total,
            Event::StopAsked { engines } => self.stop(engines),
        }
        self.dispatch();
        std::mem::swap(&mut self.effects, effects);
    }

    /// The engine whose id stands in an iopub topic, such as `engine.3.stdout`.
    pub fn engine_of_topic(&self, topic: &[u8]) -> Option<EngineUuid> {
        let id = std::str::from_utf8(topic).ok()?.strip_prefix("engine.")?.split('.').next()?;
        self.engines.uuid_of(crate::model::EngineId(id.parse().ok()?)).cloned()
    }

    /// When [`Event::TimePassed`] is wanted next, counted from the start.
    pub fn next_wake(&self) -> Option<Duration> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    fn remind(&mut self, after: Duration, due: Due) {
        self.timers.push(Reverse((self.now.since_start + after, due)));
    }

    fn time_passed(&mut self) {
        while let Some(Reverse((at, _))) = self.timers.peek() {
            if *at > self.now.since_start {
                break;
            }
            let Some(Reverse((_, due))) = self.timers.pop() else { break };
            match due {
                Due::Beat => self.beat(),
                Due::Lease(engine) => self.lease_over(engine),
                Due::Registration(engine) => self.registration_stalled(engine),
                Due::Unconfirmed(engine, tasks) => self.unconfirmed(engine, tasks),
                Due::Watches(map) => self.answer_watches(map),
                Due::Inputs(map) => self.inputs_due(map),
                Due::RepliesRecorded(engine) => self.tell_recorded(&engine),
                Due::RequestTimeout(msg_id, run) => self.request_timed_out(&msg_id, run),
                Due::Stranded(engine) => self.stranded(engine),
                Due::Departed(engine) => self.departed(engine),
                Due::Announce(since) => self.announce_again(since),
                Due::Retention => self.look_for_expired(),
            }
        }
    }

    fn follow(&mut self, follower: MapId, waiting_for: Option<MapId>) {
        if let Some(other) = waiting_for {
            self.followers.entry(other).or_default().push(follower);
        }
    }

    fn record(&mut self, change: Change) {
        self.effects.push(Effect::Record(change));
    }

    fn message<T: Serialize + ?Sized>(&mut self, msg_type: &str, parent: Option<&Bytes>, content: &T) -> Message {
        let date = self.now.unix.to_iso();
        self.session.message(&date, msg_type, parent, content)
    }

    /// Answers a request on the registration socket.
    fn reply<T: Serialize + ?Sized>(&mut self, client: Bytes, msg_type: &str, parent: &Bytes, content: &T) {
        let message = self.message(msg_type, Some(parent), content);
        self.effects.push(Effect::ToClient {
            channel: ClientChannel::Registration,
            route: vec![client],
            message,
        });
    }

    fn tell_engine<T: Serialize + ?Sized>(&mut self, engine: &EngineUuid, msg_type: &str, content: &T) {
        self.tell_engine_with(engine, msg_type, content, Vec::new());
    }

    fn tell_engine_with<T: Serialize + ?Sized>(&mut self, engine: &EngineUuid, msg_type: &str, content: &T, buffers: Vec<Bytes>) {
        let message = Message {
            buffers,
            ..self.message(msg_type, None, content)
        };
        self.effects.push(Effect::ToEngine {
            engine: engine.clone(),
            native: true,
            channel: Channel::Native,
            client: Bytes::new(),
            message,
        });
    }

    /// Of messages that come here; peers are told.
    fn max_message_bytes(&self) -> u64 {
        self.config.max_message_mb.saturating_mul(1 << 20)
    }

    fn period(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Holds everything against everything; for tests and debug builds.
    pub fn check(&self) {
        self.engines.check();
        for (id, map) in &self.maps {
            map.check();
            assert_eq!(self.runnable.contains(id), map.has_ready(), "map {id} in the list of runnable ones");
            if let Some(other) = map.waiting_for {
                assert!(self.followers[&other].contains(id), "map {id} waits for {other}");
            }
            for (index, task) in &map.in_flight {
                let id = crate::model::TaskId::new(*id, *index);
                let engine = self.engines.get(&task.engine);
                let holds = engine.and_then(|e| e.tasks.get(&id));
                assert_eq!(holds, Some(&task.run), "{id} is with engine {}", task.engine);
            }
        }
        for (uuid, engine) in self.engines.iter() {
            for (task, run) in &engine.tasks {
                let in_flight = self.maps.get(&task.map).and_then(|m| m.in_flight.get(&task.index));
                assert!(
                    in_flight.is_some_and(|t| t.engine == *uuid && t.run == *run),
                    "{task} of engine {uuid} is in flight"
                );
            }
        }
        self.requests.check(&self.engines);
    }
}
