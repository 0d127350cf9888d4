//! Assigns map tasks to engines. Tasks queued on a stuck engine are requested back while another engine is idle.
use super::Core;
use super::engines::{Engine, LaneId, Room, Runs, Unit, Wanted};
use super::maps::{Map, NextTask};
use super::outbox::Timer;
use super::prefetch::Prefetch;
use crate::model::change::Change;
use crate::model::definition::{BundleRef, MapDefinition};
use crate::model::task::TaskState;
use crate::model::{EngineId, EngineUuid, MapId, TaskId};
use crate::wire::content::engine::{self, TaskToRun};
use std::sync::Arc;
use std::time::Duration;

/// An engine holds this many tasks of unknown duration: one running, one queued.
const UNKNOWN_DEPTH: u32 = 2;

/// The maximum number of nodes that run empty for one lane.
const MAX_NODES: u32 = 8;

impl Core {
    /// What tasks of this lane need of an engine; None for bound requests, which need different ones.
    pub(super) fn unit_of(&self, lane: LaneId) -> Option<Unit> {
        let Some(map) = self.maps.get(lane.map) else {
            return self.unit_of_session(lane);
        };
        let (request, limit_s) = map.needs_in(lane.lane);
        let cpus = request.as_ref().map_or(1, |request| request.resources.cpus);
        let now = self.out.now().since_start;
        Some(Unit {
            lane,
            runs: if map.is_command() { Runs::Command } else { Runs::Python },
            limit_s,
            known_s: limit_s.or_else(|| map.mean().at_most()),
            room: Room {
                below: self.depth(map) / 2 + 1,
                short: 0,
            },
            request,
            claim: self.queue.claim(lane.map, cpus, map.mean().seconds(), now),
        })
    }

    /// The number of tasks of this map that an engine may hold.
    fn depth(&self, map: &Map) -> u32 {
        match map.request() {
            Some(_) => self.prefetch.depth(map.mean(), 1),
            None => self.prefetch.depth_with_successor(map.mean(), UNKNOWN_DEPTH),
        }
    }

    /// Sends tasks of a lane to one engine. Returns false if none can take any.
    pub(super) fn send_from_map(&mut self, lane: LaneId, shape: usize) -> bool {
        let now = self.out.now();
        let Some(unit) = self.unit_of(lane) else { return false };
        let chosen = match &unit.request {
            None => self.engines.choose(&unit, now),
            Some(request) => self.engines.choose_with_share(&unit, request, self.queue.failed(shape).at, now),
        };
        let Some(engine) = chosen else { return false };
        if unit.claim.is_binding {
            self.queue.set_binding(lane.map, false);
        }
        self.send_batch(&unit, &engine)
    }

    /// Notes that the first lane of its shape waits, for an engine or for a node that is reserved for it.
    pub(super) fn wait_for_engine(&mut self, lane: LaneId, shape: usize) {
        if lane.lane == LaneId::BOUND {
            return;
        }
        let Some(mut unit) = self.unit_of(lane) else { return };
        let Some(request) = unit.request.clone() else {
            return self.engines.want(Wanted { unit, engines: None });
        };
        if self.queue.may_bind(lane.map, &unit.claim, unit.cpus()) {
            self.queue.set_binding(lane.map, true);
            unit.claim.is_binding = true;
        }
        let lag = self.queue.max_held().saturating_sub(unit.claim.held);
        let nodes = lag.saturating_mul(2).div_ceil(unit.cpus()).clamp(1, MAX_NODES) as usize;
        let failed = self
            .engines
            .reserve(&unit, &request, nodes, self.queue.failed(shape), self.out.now());
        self.queue.set_failed(shape, failed);
    }

    /// Sends tasks of a lane to an engine that may take some. Returns false if there are none.
    pub(super) fn send_batch(&mut self, unit: &Unit, engine: &EngineUuid) -> bool {
        let (lane, now) = (unit.lane, self.out.now());
        let Some(map) = self.maps.get(lane.map) else { return false };
        let (ready, mean, depth) = (map.ready_in(lane.lane) as u32, map.mean(), self.depth(map));
        let load = self.engines.get(engine).map_or(0, Engine::load);
        let room = Prefetch::room(depth, load).max(1);
        let count = match &unit.request {
            None => {
                let engines = self.engines.free(unit.runs == Runs::Command).max(1);
                room.min(ready.div_ceil(engines).max(mean.min_batch()))
            }
            Some(_) => room.min(mean.min_batch()).max(1),
        };
        let count = count.min(ready) as usize;
        let take = |map: &mut Map| std::iter::from_fn(|| map.take(lane.lane)).take(count).collect::<Vec<_>>();
        let tasks = self.maps.change(lane.map, take).unwrap_or_default();
        let was_sent = !tasks.is_empty();
        self.send_tasks(lane.map, engine, tasks);
        let expected_s = self
            .maps
            .get(lane.map)
            .and_then(|map| map.options().time_s.or(map.mean().seconds()));
        self.engines.change(engine, |e| e.set_pace(expected_s, load == 0, now.since_start));
        was_sent
    }

    pub(super) fn dispatch_targeted(&mut self, id: MapId) {
        let mut by_engine: Vec<(EngineUuid, Vec<NextTask>)> = Vec::new();
        let mut orphaned = Vec::new();
        let take_all = |map: &mut Map| std::iter::from_fn(|| map.take(0)).collect::<Vec<_>>();
        for task in self.maps.change(id, take_all).unwrap_or_default() {
            match &task.engine {
                Some(engine) if self.engines.get(engine).is_some() => match by_engine.iter_mut().find(|(uuid, _)| uuid == engine) {
                    Some((_, tasks)) => tasks.push(task),
                    None => by_engine.push((engine.clone(), vec![task])),
                },
                _ => orphaned.push(task),
            }
        }
        for (engine, tasks) in by_engine {
            self.send_tasks(id, &engine, tasks);
        }
        for task in orphaned {
            let why = "its target engine left";
            self.finish_unsent(TaskId::new(id, task.index), task.run, TaskState::Lost, "EngineLost", why);
        }
    }

    pub(super) fn send_tasks(&mut self, id: MapId, engine: &EngineUuid, tasks: Vec<NextTask>) {
        let Some(engine_id) = self.engines.get(engine).map(|e| e.id()) else {
            return;
        };
        let definition = self.send_definition(id, engine);
        self.record_assigned(id, engine_id, &tasks);
        let mut to_run = Vec::with_capacity(tasks.len());
        let takes_buffers = self.engines.get(engine).is_some_and(|e| e.facts().supports_input_buffers());
        let mut buffers = Vec::new();
        for task in &tasks {
            let buffers = takes_buffers.then_some(&mut buffers);
            let to_send = TaskToRun::new(task.index, task.run, task.input.clone(), buffers);
            to_run.push(TaskToRun {
                mem_bytes: task.ask().mem_bytes,
                limit_ms: task.ask().limit_ms,
                ..to_send
            });
        }
        self.maps.change(id, |map| {
            self.engines.change(engine, |e| {
                for task in tasks {
                    self.sent_tasks += 1;
                    e.assign(TaskId::new(id, task.index), task.run);
                    map.start(task, engine.clone(), self.sent_tasks);
                }
            });
        });
        let content = engine::Tasks {
            map: id,
            definition,
            allocation: self.engines.allocation(engine, id),
            tasks: to_run,
        };
        self.out.send_to_engine_with(engine, engine::TASKS, &content, buffers);
    }

    /// Sends the definition to an engine that lacks it, or returns it to be sent with the tasks.
    fn send_definition(&mut self, id: MapId, engine: &EngineUuid) -> Option<Arc<MapDefinition>> {
        let (lacks_it, joined) = self.engines.change(engine, |e| (e.learn_definition(id), e.supports_joined()))?;
        if !lacks_it {
            return None;
        }
        let definition = self.maps.change(id, |map| {
            map.note_known_by(engine.clone());
            map.definition().clone()
        })?;
        if let Some(bundle) = definition.bundle() {
            self.send_bundle(engine, bundle);
        }
        if joined {
            return Some(definition);
        }
        let content = engine::Definition {
            map: id,
            definition: (*definition).clone(),
        };
        self.out.send_to_engine(engine, engine::DEFINITION, &content);
        None
    }

    /// Sends the code of a map to an engine that does not have it: once, before the first definition that refers to it.
    fn send_bundle(&mut self, engine: &EngineUuid, named: &BundleRef) {
        let Some(bundle) = named.content.clone() else { return };
        if self.engines.change(engine, |e| e.use_bundle(&named.hash)) != Some(false) {
            return;
        }
        let of_map = |id: &MapId| Some(self.maps.get(*id)?.definition().bundle()?.hash.as_str());
        let forget = self
            .engines
            .change(engine, |e| e.take_superfluous_bundles(of_map))
            .unwrap_or_default();
        let content = engine::BundleContent {
            hash: named.hash.clone(),
            forget,
        };
        self.out
            .send_to_engine_with(engine, engine::BUNDLE, &content, vec![bundle.content.clone()]);
    }

    /// Records one change per range of adjacent tasks.
    fn record_assigned(&mut self, map: MapId, engine: EngineId, tasks: &[NextTask]) {
        let mut runs: Vec<(u32, u32, u32)> = Vec::new();
        for task in tasks {
            match runs.last_mut() {
                Some((first, count, run)) if *first + *count == task.index && *run == task.run => *count += 1,
                _ => runs.push((task.index, 1, task.run)),
            }
        }
        for (first, count, run) in runs {
            self.out.record(Change::TasksAssigned {
                map,
                first,
                count,
                run,
                engine,
            });
        }
    }

    /// Requests unstarted tasks back from engines without progress while another engine is idle, or while tasks with a higher
    /// priority wait for this one.
    fn relieve_stuck(&mut self) {
        let is_balanced = |map: MapId| self.maps.get(map).is_some_and(|m| m.targets().is_none());
        let idle = self.engines.idle().filter(|(_, e)| e.is_native()).count();
        // Sessions have priority 0.
        let lowest = self.maps.iter().map(|(_, map)| map.priority()).fold(0, i32::min);
        if idle == 0 && self.engines.highest_waiting().is_none_or(|highest| highest <= lowest) {
            return;
        }
        let queued = self.engines.with_queue();
        let queues: Vec<(EngineUuid, u32, bool)> = queued
            .filter(|(_, e)| e.has_queue())
            .map(|(uuid, e)| (uuid.clone(), e.load(), e.is_stuck(is_balanced)))
            .collect();
        if queues.is_empty() {
            return;
        }
        let (mut stuck, mut idle) = (Vec::new(), idle);
        for (uuid, load, _) in queues.iter().filter(|(_, _, is_stuck)| *is_stuck) {
            if idle > 0 {
                idle -= 1;
            } else if !self.is_outranked(uuid) {
                continue;
            }
            stuck.push((uuid.clone(), load - 1));
        }
        for (uuid, _, _) in &queues {
            self.engines.change(uuid, |e| e.check_progress());
        }
        for (uuid, at_most) in stuck {
            self.engines.change(&uuid, |e| e.recall());
            self.out.send_to_engine(&uuid, engine::GIVE_BACK, &engine::GiveBack { at_most });
        }
    }

    /// Whether tasks with a higher priority than all that this engine holds wait for it. Among equals the order may change with
    /// what is returned.
    fn is_outranked(&self, uuid: &EngineUuid) -> bool {
        let Some(engine) = self.engines.get(uuid) else { return false };
        let highest = engine.holders().map(|(map, _)| self.maps.get(map).map_or(0, Map::priority)).max();
        highest.is_some_and(|highest| self.engines.is_wanted_above(highest, engine, self.out.now()))
    }

    pub(super) fn beat(&mut self) {
        self.heartbeats += 1;
        let heartbeat = Self::period(self.config.heartbeat_interval_ms.max(10));
        // Stuck queues are checked more often than heartbeats are sent.
        let step = heartbeat.min(Duration::from_millis(100));
        self.out.set_timer(step, Timer::Heartbeat);
        self.engines.flush_settled(&mut self.out);
        self.relieve_stuck();
        let per_heartbeat = (heartbeat.as_millis() / step.as_millis().max(1)).max(1) as u64;
        if self.heartbeats % per_heartbeat == 1 % per_heartbeat {
            self.send_heartbeats();
        }
    }
}
