//! Assigns map tasks to engines. Tasks queued on a stuck engine are requested back while another engine is idle.
use super::Core;
use super::engines::{Engine, Room, Runs, Unit};
use super::maps::{Map, NextTask};
use super::outbox::Timer;
use super::prefetch::Prefetch;
use crate::model::change::Change;
use crate::model::definition::{BundleRef, MapDefinition};
use crate::model::resources::Request;
use crate::model::task::TaskState;
use crate::model::{EngineId, EngineUuid, MapId, TaskId};
use crate::wire::content::engine::{self, TaskToRun};
use serde_json::value::RawValue;
use std::sync::Arc;
use std::time::Duration;

/// An engine holds this many tasks of unknown duration: one running, one queued.
const UNKNOWN_DEPTH: u32 = 2;

impl Core {
    /// Sends all tasks that can be sent.
    pub(super) fn dispatch(&mut self) {
        // True if the engines are full: for tasks that need Python, and for commands.
        let mut full = [false; 2];
        self.engines.begin_round();
        let maps: Vec<MapId> = self.maps.runnable().take(64).collect();
        for id in maps {
            let Some(map) = self.maps.get(id) else { continue };
            let full = &mut full[usize::from(map.is_command())];
            if map.targets().is_some() {
                self.dispatch_targeted(id);
            } else if let Some(request) = map.request().cloned() {
                self.dispatch_with_resources(id, &request);
            } else if !*full {
                *full = !self.dispatch_balanced(id);
            }
        }
        self.dispatch_requests();
    }

    /// Returns false if all engines are full.
    fn dispatch_balanced(&mut self, id: MapId) -> bool {
        loop {
            let Some(map) = self.maps.get(id) else { return true };
            let ready = map.ready().min(map.may_start()) as u32;
            if ready == 0 {
                return true;
            }
            let mean = map.mean();
            let depth = self.prefetch.depth(mean, UNKNOWN_DEPTH);
            let is_command = map.is_command();
            let limit = map.options().needed_s();
            let Some(least) = self.engines.least_loaded(id, is_command) else {
                return false;
            };
            let now = self.out.now().unix;
            let in_time = match least.1.has_time_for(limit, now) {
                true => Some(least),
                false => self.engines.least_loaded_of(id, is_command, |e| e.has_time_for(limit, now)),
            };
            // Other maps may have shorter tasks.
            let Some((engine, load)) = in_time.map(|(uuid, e)| (uuid.clone(), e.load())) else {
                return true;
            };
            let room = Prefetch::room(depth, load);
            if room == 0 {
                return false;
            }
            let engines = self.engines.free(is_command).max(1);
            let count = room.min(ready.div_ceil(engines).max(mean.min_batch())).min(ready) as usize;
            self.check_may_take(id, &engine);
            let take = |map: &mut Map| std::iter::from_fn(|| map.take()).take(count).collect();
            let Some(tasks) = self.maps.change(id, take) else { return true };
            self.send_tasks(id, &engine, tasks);
        }
    }

    /// The same for tasks that need more of their node than one processor.
    fn dispatch_with_resources(&mut self, id: MapId, request: &Request) {
        loop {
            let Some(map) = self.maps.get(id) else { return };
            let ready = map.ready().min(map.may_start());
            if ready == 0 {
                return;
            }
            let (mean, is_command, limit) = (map.mean(), map.is_command(), map.options().needed_s());
            let depth = self.prefetch.depth(mean, 1);
            let now = self.out.now().unix;
            let may = |e: &Engine| e.may_take(is_command) && e.has_time_for(limit, now);
            let Some(engine) = self.engines.place(id, request, may, |e| Prefetch::room(depth, e.load()) > 0) else {
                return self.engines.reserve(id, request, may);
            };
            let room = Prefetch::room(depth, self.engines.get(&engine).map_or(0, Engine::load));
            let count = (room.min(mean.min_batch()).max(1) as usize).min(ready);
            self.check_may_take(id, &engine);
            let take = |map: &mut Map| std::iter::from_fn(|| map.take()).take(count).collect();
            let Some(tasks) = self.maps.change(id, take) else { return };
            self.send_tasks(id, &engine, tasks);
        }
    }

    /// What the tasks of a balanced map need of an engine.
    pub(super) fn unit_of(&self, id: MapId) -> Option<Unit> {
        let map = self.maps.get(id)?;
        let unknown = if map.request().is_some() { 1 } else { UNKNOWN_DEPTH };
        Some(Unit {
            map: id,
            runs: if map.is_command() { Runs::Command } else { Runs::Python },
            request: map.request().cloned(),
            limit_s: map.options().needed_s(),
            room: Room {
                below: self.prefetch.depth(map.mean(), unknown) / 2 + 1,
                short: 0,
            },
        })
    }

    fn dispatch_targeted(&mut self, id: MapId) {
        let mut by_engine: Vec<(EngineUuid, Vec<NextTask>)> = Vec::new();
        let mut orphaned = Vec::new();
        let take_all = |map: &mut Map| std::iter::from_fn(|| map.take()).collect::<Vec<_>>();
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

    /// For tests and debug builds: dispatch and [`super::engines::Engines::why_not`] agree.
    fn check_may_take(&self, id: MapId, engine: &EngineUuid) {
        if !cfg!(debug_assertions) {
            return;
        }
        let Some((unit, engine)) = self.unit_of(id).zip(self.engines.get(engine)) else {
            return;
        };
        let why = self.engines.why_not(engine, &unit, self.out.now().unix);
        debug_assert_eq!(why, None, "map {id} to engine {}", engine.id());
    }

    fn send_tasks(&mut self, id: MapId, engine: &EngineUuid, tasks: Vec<NextTask>) {
        let Some(engine_id) = self.engines.get(engine).map(|e| e.id()) else {
            return;
        };
        let definition = self.send_definition(id, engine);
        self.record_assigned(id, engine_id, &tasks);
        let mut to_run = Vec::with_capacity(tasks.len());
        for task in &tasks {
            to_run.push(TaskToRun {
                index: task.index,
                run: task.run,
                input: raw(&task.input),
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
        self.out.send_to_engine(engine, engine::TASKS, &content);
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

    /// Requests unstarted tasks back from engines without progress while another engine is idle.
    fn relieve_stuck(&mut self) {
        let is_balanced = |map: MapId| self.maps.get(map).is_some_and(|m| m.targets().is_none());
        let loaded = self.engines.by_load().rev().take_while(|(_, e)| e.load() >= 2);
        let queues: Vec<(EngineUuid, u32, bool)> = loaded
            .filter(|(_, e)| e.has_queue())
            .map(|(uuid, e)| (uuid.clone(), e.load(), e.is_stuck(is_balanced)))
            .collect();
        if queues.is_empty() {
            return;
        }
        let idle = self.engines.by_load().take_while(|(_, e)| e.load() == 0);
        let idle = idle.filter(|(_, e)| e.is_native()).count();
        let stuck = queues.iter().filter(|(_, _, stuck)| *stuck).take(idle);
        let stuck: Vec<(EngineUuid, u32)> = stuck.map(|(uuid, load, _)| (uuid.clone(), load - 1)).collect();
        for (uuid, _, _) in &queues {
            self.engines.change(uuid, |e| e.check_progress());
        }
        for (uuid, at_most) in stuck {
            self.engines.change(&uuid, |e| e.recall());
            self.out.send_to_engine(&uuid, engine::GIVE_BACK, &engine::GiveBack { at_most });
        }
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

/// An input, which was validated as JSON when it arrived.
fn raw(input: &[u8]) -> Box<RawValue> {
    serde_json::from_slice(input).unwrap_or_else(|_| RawValue::NULL.to_owned())
}
