//! Assigns map tasks to engines.
//!
//! Short tasks: an engine holds as many as fill `prefetch_ms`, so that it never waits for the network. Long tasks: one each.
//! Tasks queued on a stuck engine are requested back while another engine is idle.
use super::Core;
use super::maps::{InFlight, NextTask};
use super::outbox::Timer;
use crate::model::change::Change;
use crate::model::definition::MapDefinition;
use crate::model::task::TaskState;
use crate::model::{EngineId, EngineUuid, MapId, TaskId};
use crate::wire::content::engine::{self, TaskToRun};
use serde_json::value::RawValue;
use std::sync::Arc;

/// At least this many seconds of work go into one message, even if other engines are idle.
const MESSAGE_S: f64 = 1e-3;
/// The overhead of a task in seconds.
const TASK_S: f64 = 5e-6;

impl Core {
    /// Updates whether a map is in the list of runnable maps.
    pub(super) fn note_runnable(&mut self, map: MapId) {
        if self.maps.get(&map).is_some_and(|m| m.has_ready()) {
            self.runnable.insert(map);
        } else {
            self.runnable.remove(&map);
        }
    }

    /// Sends all tasks that can be sent.
    pub(super) fn dispatch(&mut self) {
        // True if the engines are full: for tasks that need Python, and for commands.
        let mut full = [false; 2];
        let maps: Vec<MapId> = self.runnable.iter().copied().take(64).collect();
        for id in maps {
            let Some(map) = self.maps.get(&id) else { continue };
            let full = &mut full[usize::from(map.is_command())];
            if map.targets.is_some() {
                self.dispatch_targeted(id);
            } else if !*full {
                *full = !self.dispatch_balanced(id);
            }
            self.note_runnable(id);
        }
        self.dispatch_requests();
    }

    /// The number of tasks of this map that an engine may hold.
    fn depth(&self, map: MapId) -> u32 {
        let mean = self.maps.get(&map).and_then(|m| m.mean_s);
        match mean {
            // Unknown duration: one running, one queued.
            None => 2,
            Some(mean) => {
                let fit = self.config.prefetch_ms as f64 / 1000.0 / mean.max(1e-6);
                (fit as u32).clamp(1, self.config.max_prefetch.max(1))
            }
        }
    }

    /// The number of tasks that justify a message of their own.
    fn min_batch(&self, map: MapId) -> u32 {
        let mean = self.maps.get(&map).and_then(|m| m.mean_s);
        mean.map_or(1, |mean| (MESSAGE_S / (mean + TASK_S)) as u32).max(1)
    }

    /// Returns false if all engines are full.
    fn dispatch_balanced(&mut self, id: MapId) -> bool {
        loop {
            let depth = self.depth(id);
            let Some(map) = self.maps.get(&id) else { return true };
            let ready = map.ready() as u32;
            if ready == 0 {
                return true;
            }
            let is_command = map.is_command();
            let limit = map.definition.options.timeout_s;
            let Some(least) = self.engines.least_loaded(is_command) else {
                return false;
            };
            let in_time = match least.1.has_time_for(limit, self.out.now().unix) {
                true => Some(least),
                false => self
                    .engines
                    .least_loaded_of(is_command, |e| e.has_time_for(limit, self.out.now().unix)),
            };
            // Other maps may have shorter tasks.
            let Some((engine, load)) = in_time.map(|(uuid, e)| (uuid.clone(), e.load())) else {
                return true;
            };
            // Refill at half, so that tasks are sent in batches.
            if load > depth / 2 || load >= depth {
                return false;
            }
            let engines = self.engines.free(is_command).max(1);
            let fair = ready.div_ceil(engines).max(self.min_batch(id));
            let count = (depth - load).min(fair);
            let tasks: Vec<NextTask> = match self.maps.get_mut(&id) {
                Some(map) => std::iter::from_fn(|| map.take()).take(count as usize).collect(),
                None => return true,
            };
            self.send_tasks(id, &engine, tasks);
        }
    }

    fn dispatch_targeted(&mut self, id: MapId) {
        let mut by_engine: Vec<(EngineUuid, Vec<NextTask>)> = Vec::new();
        let mut orphaned = Vec::new();
        let Some(map) = self.maps.get_mut(&id) else { return };
        while let Some(task) = map.take() {
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

    fn send_tasks(&mut self, id: MapId, engine: &EngineUuid, tasks: Vec<NextTask>) {
        let Some(engine_id) = self.engines.get(engine).map(|e| e.id()) else {
            return;
        };
        let definition = self.send_definition(id, engine);
        self.record_assigned(id, engine_id, &tasks);
        let mut to_run = Vec::with_capacity(tasks.len());
        let Some(map) = self.maps.get_mut(&id) else { return };
        for task in &tasks {
            to_run.push(TaskToRun {
                index: task.index,
                run: task.run,
                input: raw(&task.input),
            });
        }
        let sent = &mut self.sent_tasks;
        self.engines.change(engine, |e| {
            for task in tasks {
                *sent += 1;
                e.assign(TaskId::new(id, task.index), task.run);
                map.in_flight.insert(
                    task.index,
                    InFlight {
                        written: Default::default(),
                        engine: engine.clone(),
                        run: task.run,
                        input: task.input,
                        sent: *sent,
                        begun: false,
                        tries: task.tries,
                        cancelled: false,
                    },
                );
            }
        });
        self.out.send_to_engine(
            engine,
            engine::TASKS,
            &engine::Tasks {
                map: id,
                definition,
                tasks: to_run,
            },
        );
    }

    /// Sends the definition to an engine that lacks it, or returns it to be sent with the tasks.
    fn send_definition(&mut self, id: MapId, engine: &EngineUuid) -> Option<Arc<MapDefinition>> {
        let known = self.engines.change(engine, |e| (e.learn_definition(id), e.supports_joined()));
        if let Some((true, joined)) = known
            && let Some(map) = self.maps.get_mut(&id)
        {
            map.known_by.push(engine.clone());
            let definition = map.definition.clone();
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
        }
        None
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
    pub(super) fn relieve_stuck(&mut self) {
        let is_balanced = |map: MapId| self.maps.get(&map).is_some_and(|m| m.targets.is_none());
        let queues: Vec<(EngineUuid, u32, bool)> = self
            .engines
            .by_load()
            .rev()
            .take_while(|(_, e)| e.load() >= 2)
            .filter(|(_, e)| e.has_queue())
            .map(|(uuid, e)| (uuid.clone(), e.load(), e.is_stuck(is_balanced)))
            .collect();
        if queues.is_empty() {
            return;
        }
        let idle = self
            .engines
            .by_load()
            .take_while(|(_, e)| e.load() == 0)
            .filter(|(_, e)| e.is_native())
            .count();
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
        let step = heartbeat.min(std::time::Duration::from_millis(100));
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
