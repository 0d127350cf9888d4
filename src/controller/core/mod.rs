//! The controller's decisions as a pure state machine: an event and the time in, effects out. It knows no socket, file,
//! clock or random source; the driver (`controller::driver`) carries out the effects.
//!
//! [`Core`] routes events. Its state has several owners, which do not know each other:
//! - [`engines`]: the table of engines, their load, and departures that are not announced yet
//! - [`maps`]: unfinished maps, their tasks and code
//! - [`requests`]: the tasks of ipyparallel's clients, with their [`dependency`]; joined replies, and clients that reconnect
//! - [`scheduler`]: the queue of what waits, maps and requests alike, in its order
//! - [`prefetch`]: how many tasks an engine may hold
//! - [`outbox`]: effects and timers
//!
//! What happens to them, by subject:
//! - inbound: [`event`], and [`api`] for messages, with [`untrusted`] to validate what engines send
//! - engines: [`membership`] (they register and leave), [`admin`] (stop and signal them)
//! - maps: [`submit`], [`dispatch`], [`dispatch_maps`], [`level`] (queues), [`results`], [`lost`], [`cancel`], [`resubmit`], [`watch`], [`values`] (for `--reduce`)
//! - ipyparallel: [`hub`], [`request_intake`], [`dispatch_requests`] with [`policy`] (its schemes), [`replies`], [`output`]
//! - records: [`restore`] (at the start), [`retention`] (expiry), [`transition`] (a task's states)
//! - [`status`]: reports about all of it; [`explain`]: why work waits
mod admin;
mod api;
mod cancel;
pub(crate) mod dependency;
mod dispatch;
mod dispatch_bound;
mod dispatch_maps;
mod dispatch_requests;
pub(crate) mod effect;
pub(crate) mod engines;
pub(crate) mod event;
mod explain;
mod hub;
mod level;
mod lost;
mod maps;
mod membership;
mod outbox;
mod output;
mod policy;
mod prefetch;
mod replies;
mod request_intake;
mod requests;
mod restore;
mod resubmit;
mod results;
mod retention;
mod scheduler;
mod status;
mod submit;
#[cfg(test)]
mod transition;
mod untrusted;
mod values;
mod watch;
mod work;

#[cfg(test)]
mod tests;

pub use effect::{ClientChannel, Effect};
pub(crate) use effect::{Query, QueryKind};
pub use event::{Event, EventTime, Facts};

use crate::model::change::Change;
use crate::model::{EngineUuid, MapId, TaskId};
use crate::profile::config::ControllerConfig;
use bytes::Bytes;
use engines::{Departures, Engines};
use maps::{Bundles, Maps};
use outbox::{Outbox, Timer};
use policy::Policy;
use prefetch::Prefetch;
use requests::{Broadcasts, Reconnects, Requests};
use retention::Retention;
use scheduler::Queue;
use std::collections::BTreeSet;
use std::time::Duration;

pub struct Core {
    config: ControllerConfig,
    facts: Facts,
    out: Outbox,
    engines: Engines,
    queue: Queue,
    /// Maps with targets whose tasks wait for resources.
    bound_maps: BTreeSet<MapId>,
    maps: Maps,
    bundles: Bundles,
    requests: Requests,
    broadcasts: Broadcasts,
    reconnects: Reconnects,
    departures: Departures,
    prefetch: Prefetch,
    policy: Policy,
    retention: Retention,
    heartbeats: u64,
    finished_tasks: u64,
    sent_tasks: u64,
    disconnected_peers: u64,
}

impl Core {
    pub fn new(config: ControllerConfig, facts: Facts, now: EventTime) -> Core {
        let mut out = Outbox::new(facts.session.clone(), now);
        out.set_timer(Duration::ZERO, Timer::Heartbeat);
        Core {
            prefetch: Prefetch::new(&config),
            policy: Policy::new(&config, facts.seed),
            retention: Retention::new(config.retention_days, &mut out),
            config,
            facts,
            out,
            engines: Engines::default(),
            queue: Queue::default(),
            bound_maps: BTreeSet::new(),
            departures: Departures::default(),
            maps: Maps::default(),
            bundles: Bundles::default(),
            requests: Requests::default(),
            broadcasts: Broadcasts::default(),
            reconnects: Reconnects::default(),
            heartbeats: 0,
            finished_tasks: 0,
            sent_tasks: 0,
            disconnected_peers: 0,
        }
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
            Event::ExpiredFound(expired) => {
                let (maps, requests) = (&mut self.maps, &mut self.requests);
                self.retention.purge(expired, maps, requests, &self.broadcasts, &mut self.out);
            }
            Event::RepliesDelivered { tasks } => self.out.record(Change::RepliesDelivered { tasks }),
            Event::ReplyUndelivered { channel, client, reply } => {
                self.client_disconnected(channel, &client);
                self.reconnects.undelivered(channel, reply, &mut self.out);
            }
            Event::PeersDisconnected { total } => self.disconnected_peers = total,
            Event::StopRequested { engines } => self.stop(engines),
        }
        self.dispatch();
        self.out.swap_effects(effects);
    }

    /// Returns true if the effects since the last call may wait some milliseconds to share a commit and messages with later ones.
    pub fn may_batch(&mut self) -> bool {
        self.requests.may_batch()
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
                Timer::Orphaned(engine) => self.orphaned(&engine),
                Timer::Departed(engine) => self.departures.publish_due(engine, &mut self.out),
                Timer::Announce(since) => self.announce_again(since),
                Timer::Retention => self.retention.check(&mut self.out),
            }
        }
    }

    fn client_connected(&mut self, channel: ClientChannel, identity: Bytes, key: Option<String>) {
        tracing::debug!(?channel, identity = %identity.escape_ascii(), key, "client connected");
        if let Some(curve_key) = &key {
            for map in self.requests.client_connected(channel, &identity, curve_key) {
                let curve_key = curve_key.clone();
                self.out.record(Change::ClientKnown { map, curve_key });
            }
        }
        self.reconnects.connected(channel, identity, key, &mut self.out);
    }

    fn client_disconnected(&mut self, channel: ClientChannel, identity: &Bytes) {
        tracing::debug!(?channel, identity = %identity.escape_ascii(), "client disconnected");
        self.requests.client_disconnected(channel, identity);
        self.reconnects.disconnected(channel, identity);
    }

    /// The size limit of incoming messages; reported to peers.
    fn max_message_bytes(&self) -> u64 {
        self.config.max_message_mb.saturating_mul(1 << 20)
    }

    fn period(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Whether this engine holds work, as far as the controller knows. Requests that an engine runs after its lease has expired
    /// are not known to it.
    #[cfg(test)]
    fn has_load(&self, engine: &EngineUuid) -> bool {
        self.engines.get(engine).is_some_and(|e| e.load() > 0)
    }

    /// What waits, waits for a reason: no idle engine could take it now, by the rule that explanations quote.
    fn check_waiting(&self) {
        let mut after = None;
        while let Some((place, _)) = self.queue.next(after) {
            after = Some(place);
            let Some(unit) = self.unit_of(place.lane()) else { continue };
            for (_, engine) in self.engines.iter().filter(|(_, e)| e.load() == 0) {
                let why = self.engines.why_not(engine, &unit, self.out.now());
                assert!(why.is_some(), "engine {} could take {unit:?}", engine.id());
            }
        }
    }

    /// Checks all invariants; for tests and debug builds.
    pub fn check(&self) {
        self.engines.check();
        self.queue.check();
        self.maps.check();
        self.check_waiting();
        for (id, map) in self.maps.iter() {
            for (index, task) in map.all_in_flight() {
                let id = TaskId::new(id, index);
                let engine = self.engines.get(task.engine());
                assert!(
                    engine.is_some_and(|e| e.holds(id, task.run())),
                    "{id} is with engine {}",
                    task.engine()
                );
            }
        }
        for (uuid, engine) in self.engines.iter() {
            for (task, run) in engine.tasks() {
                assert!(
                    self.maps.in_flight_at(task, run, uuid).is_some(),
                    "{task} of engine {uuid} is in flight"
                );
            }
        }
        self.requests.check(&self.engines);
        self.check_explanations();
    }
}
