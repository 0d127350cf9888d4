//! The controller's decisions as a pure state machine: an event and the time in, effects out. It knows no socket, file,
//! clock or random source; the driver (`controller::driver`) carries out the effects.
//!
//! Parts: [`event`], [`effect`], [`engines`] (the table of engines), [`maps`] (unfinished maps), [`balanced`] (assigns map tasks to engines),
//! [`finish`] (effects of results, losses and cancellations on tasks), [`membership`] (engines register and leave), [`clients`] (pcluster's own requests), [`bundles`] (the code of maps),
//! [`abandoned`] (maps whose client has died), [`hub`] (ipyparallel's hub requests), [`requests`] (ipyparallel's tasks), [`schedule`] (assigns them to engines), [`prefetch`], [`broadcast`], [`output`], [`policy`] (its schemes), [`dependency`], [`reconnect`] (clients that reconnect), [`admin`] (stop and signal engines), [`values`], [`restore`], [`retention`] (expiry of old records), [`transition`], [`untrusted`] (validation of what engines send).
mod abandoned;
mod admin;
mod api;
mod balanced;
mod broadcast;
mod bundles;
mod clients;
pub(crate) mod dependency;
pub(crate) mod effect;
pub(crate) mod engines;
pub(crate) mod event;
mod finish;
mod hub;
mod maps;
mod membership;
mod outbox;
mod output;
pub(crate) mod policy;
mod prefetch;
pub(crate) mod reconnect;
mod requests;
mod restore;
mod retention;
mod schedule;
#[cfg(test)]
mod transition;
mod untrusted;
mod values;

#[cfg(test)]
mod tests;

pub use effect::{ClientChannel, Effect};
pub(crate) use effect::{Query, QueryKind};
pub(crate) use event::Expired;
pub use event::{Event, EventTime, Facts};

use crate::model::change::Change;
use crate::model::{EngineUuid, MapId, UnixTime};
use crate::profile::config::ControllerConfig;
use bundles::Bundles;
use engines::{Departures, Engines};
use maps::Map;
use outbox::{Outbox, Timer};
use prefetch::Prefetch;
use requests::Requests;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

pub struct Core {
    config: ControllerConfig,
    facts: Facts,
    out: Outbox,
    engines: Engines,
    maps: BTreeMap<MapId, Map>,
    keys: HashMap<String, MapId>,
    next_map: u32,
    bundles: Bundles,
    /// For each map, the maps that wait for it.
    followers: HashMap<MapId, Vec<MapId>>,
    /// Maps with tasks that can be sent now.
    runnable: BTreeSet<MapId>,
    /// Finished maps: true if a task failed. One entry per map, not per task.
    finished: HashMap<MapId, bool>,
    requests: Requests,
    departures: Departures,
    prefetch: Prefetch,
    readers: retention::Readers,
    /// [`Core::retention_clock`] at the start of this controller.
    retention_base: UnixTime,
    rng: policy::Rng,
    heartbeats: u64,
    finished_tasks: u64,
    sent_tasks: u64,
    cut_off: u64,
}

impl Core {
    pub fn new(config: ControllerConfig, facts: Facts, now: EventTime) -> Core {
        let mut core = Core {
            config,
            out: Outbox::new(facts.session.clone(), now),
            engines: Engines::default(),
            maps: BTreeMap::new(),
            keys: HashMap::new(),
            next_map: 1,
            bundles: Bundles::default(),
            followers: HashMap::new(),
            runnable: BTreeSet::new(),
            finished: HashMap::new(),
            requests: Requests::default(),
            departures: Default::default(),
            prefetch: Prefetch::default(),
            readers: Default::default(),
            retention_base: UnixTime(now.unix.0 - now.since_start.as_secs_f64()),
            rng: policy::Rng::new(facts.seed),
            facts,
            heartbeats: 0,
            finished_tasks: 0,
            sent_tasks: 0,
            cut_off: 0,
        };
        core.out.set_timer(Duration::ZERO, Timer::Heartbeat);
        if core.config.retention_days.is_some() {
            core.out.set_timer(retention::FIRST_CHECK, Timer::Retention);
        }
        core
    }

    /// The only entry point. Appends the effects to carry out to `effects`.
    pub fn handle(&mut self, now: EventTime, event: Event, effects: &mut Vec<Effect>) {
        self.out.set_now(now);
        self.out.swap_effects(effects);
        match event {
            Event::ClientMessage {
                channel: ClientChannel::Registration,
                message,
            } => self.client_request(&message),
            Event::ClientMessage {
                channel: ClientChannel::Mux,
                message,
            } => self.mux_request(message),
            Event::ClientMessage {
                channel: ClientChannel::Task,
                message,
            } => self.task_request(message),
            Event::ClientMessage {
                channel: ClientChannel::Broadcast,
                message,
            } => self.broadcast_request(message),
            Event::ClientMessage {
                channel: ClientChannel::Control,
                message,
            } => self.control_request(message),
            Event::EngineMessage {
                engine,
                native,
                channel,
                client,
                message,
            } => self.engine_message(&engine, native, channel, client, message),
            Event::RegistrantMessage { identity, message } => self.registrant_message(identity, &message),
            Event::PongReceived { engine } => self.pong_received(engine),
            Event::EngineDisconnected { engine } => self.engine_disconnected(&engine),
            Event::ClientConnected { channel, identity, key } => self.client_connected(channel, identity, key),
            Event::ClientDisconnected { channel, identity } => self.client_disconnected(channel, &identity),
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
            Event::MapFound { request, map, bundle } => self.map_found(&request, map, bundle),
            Event::RequestsFound {
                client,
                parent,
                request,
                found,
                missing,
            } => self.requests_found(client, parent, &request, found, missing),
            Event::DaskStarted { client, parent, address } => self.dask_started(client, parent, address),
            Event::ExpiredFound(expired) => self.expired_found(expired),
            Event::RepliesDelivered { tasks } => self.out.record(Change::RepliesDelivered { tasks }),
            Event::ReplyUndelivered { channel, client, reply } => self.reply_undelivered(channel, &client, reply),
            Event::PeersDisconnected { total } => self.cut_off = total,
            Event::StopRequested { engines } => self.stop(engines),
        }
        self.dispatch();
        self.out.swap_effects(effects);
    }

    /// The engine named by an iopub topic such as `engine.3.stdout`.
    pub fn engine_of_topic(&self, topic: &[u8]) -> Option<EngineUuid> {
        let id = std::str::from_utf8(topic).ok()?.strip_prefix("engine.")?.split('.').next()?;
        self.engines.uuid_of(crate::model::EngineId(id.parse().ok()?)).cloned()
    }

    /// When the next [`Event::TimePassed`] is due, counted from the start.
    pub fn next_wake(&self) -> Option<Duration> {
        self.out.next_wake()
    }

    fn time_passed(&mut self) {
        while let Some(timer) = self.out.take_due_timer() {
            match timer {
                Timer::Heartbeat => self.beat(),
                Timer::Lease(engine) => self.lease_expired(engine),
                Timer::Registration(engine) => self.registration_stalled(engine),
                Timer::Unconfirmed(engine, tasks) => self.unconfirmed(engine, tasks),
                Timer::Watches(map) => self.answer_watches(map),
                Timer::Inputs(map) => self.inputs_due(map),
                Timer::RepliesRecorded(engine) => self.engines.send_replies_recorded(&engine, &mut self.out),
                Timer::RequestTimeout(msg_id, run) => self.request_timed_out(&msg_id, run),
                Timer::Orphaned(engine) => self.orphaned(engine),
                Timer::Departed(engine) => self.departures.publish_due(engine, &mut self.out),
                Timer::Announce(since) => self.announce_again(since),
                Timer::Retention => self.check_expired(),
            }
        }
    }

    fn follow(&mut self, follower: MapId, waiting_for: Option<MapId>) {
        if let Some(other) = waiting_for {
            self.followers.entry(other).or_default().push(follower);
        }
    }

    /// The size limit of incoming messages; reported to peers.
    fn max_message_bytes(&self) -> u64 {
        self.config.max_message_mb.saturating_mul(1 << 20)
    }

    fn period(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Checks all invariants; for tests and debug builds.
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
                assert!(engine.is_some_and(|e| e.holds(id, task.run)), "{id} is with engine {}", task.engine);
            }
        }
        for (uuid, engine) in self.engines.iter() {
            for (task, run) in engine.tasks() {
                let in_flight = self.maps.get(&task.map).and_then(|m| m.in_flight.get(&task.index));
                assert!(
                    in_flight.is_some_and(|t| t.engine == *uuid && t.run == run),
                    "{task} of engine {uuid} is in flight"
                );
            }
        }
        self.requests.check(&self.engines);
    }
}
