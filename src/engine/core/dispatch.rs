//! Sends units to workers: chooses the next unit, and how many the worker prefetches.
use super::event::{Effect, Now};
use super::unit::{Unit, WorkerKey, worker_of};
use super::workers::Readiness;
use super::{Core, Dispatched, FIRST_POLL, MEMORY_POLL_INTERVAL, MemoryWatch, POLL_INTERVAL, RunningUnit, UnitOutput};
use crate::model::UnixTime;
use crate::model::task::{Outcome, TaskState};
use std::time::Duration;

/// The worker prefetches about this much work,
const PREFETCH: Duration = Duration::from_millis(5);
/// ... but at least this many units (the second one saves a round trip, and can be recalled),
const MIN_UNITS: usize = 2;
/// ... at most this many,
const MAX_UNITS: usize = 1000;
/// ... and at most about this many bytes.
const MAX_BYTES: usize = 1 << 20;
enum NextUnit {
    Nothing,
    Command,
    Worker(WorkerKey),
    /// A task whose values must be fetched first.
    Values,
    /// A task whose definition is missing.
    Undefined,
}

impl Core {
    pub(super) fn dispatch(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let stopping = self.stop_next.is_some() || self.current.as_ref().is_some_and(|current| current.stop.is_some());
        if stopping || self.leaving.is_some() || !self.has_value_capacity() {
            return;
        }
        self.reject_code_units(now, effects);
        loop {
            self.reject_python_units(now, effects);
            match self.next_unit() {
                NextUnit::Nothing => return,
                NextUnit::Undefined => {
                    if let Some(Unit::Task { held, .. }) = self.queue.pop_front() {
                        let evalue = format!("the engine has no definition of map {}", held.map);
                        self.push_outcome(
                            now,
                            held,
                            Outcome::failure(TaskState::Error, "MissingDefinition", evalue, now.unix, now.unix),
                        );
                    }
                }
                NextUnit::Command => {
                    if self.command.is_some() || !self.dispatched.is_empty() {
                        return;
                    }
                    self.start_command(now, effects);
                }
                NextUnit::Values => {
                    if !self.fetch_values(now, effects) {
                        return;
                    }
                }
                NextUnit::Worker(worker) => {
                    let other_runs = self.command.is_some() || (!self.dispatched.is_empty() && !self.workers.is_active(worker));
                    if other_runs || !self.dispatch_to_worker(now, worker, effects) {
                        return;
                    }
                }
            }
        }
    }

    fn next_unit(&self) -> NextUnit {
        match self.queue.front() {
            None => NextUnit::Nothing,
            Some(Unit::Request(_)) => NextUnit::Worker(WorkerKey::Interactive),
            Some(Unit::Task { held, input, .. }) if self.needs_values(*held, input) => NextUnit::Values,
            Some(Unit::Task { held, .. }) => match self.maps.get(&held.map) {
                None => NextUnit::Undefined,
                Some(state) => worker_of(held.map, &state.definition).map_or(NextUnit::Command, NextUnit::Worker),
            },
        }
    }

    fn start_command(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Some(unit) = self.queue.pop_front() else { return };
        let Some(definition) = unit
            .held()
            .and_then(|held| self.maps.get(&held.map))
            .map(|state| state.definition.clone())
        else {
            return;
        };
        self.command = Some(unit.clone());
        self.set_current(now, now.unix);
        effects.push(Effect::StartCommand { unit, definition });
    }

    /// Fills the worker's prefetch; returns false if no more units can be dispatched now.
    fn dispatch_to_worker(&mut self, now: Now, worker: WorkerKey, effects: &mut Vec<Effect>) -> bool {
        match self.use_worker(now, worker, effects) {
            Readiness::Ready => {}
            Readiness::NotYet => return false,
            // Just detected: return the queued units before choosing the next one.
            Readiness::Unavailable => return true,
        }
        let capacity = self.capacity(now);
        let Some(front) = self.queue.front() else { return false };
        if capacity == 0 {
            return false;
        }
        let was_empty = self.dispatched.is_empty();
        match front {
            Unit::Request(request) => {
                let request = request.clone();
                let ticket = self.ticket();
                self.queue.pop_front();
                self.dispatched.push_back(Dispatched {
                    ticket,
                    unit: Unit::Request(request.clone()),
                });
                effects.push(Effect::DispatchRequest { ticket, request });
            }
            Unit::Task { held, .. } => {
                let map = held.map;
                let Some(state) = self.maps.get_mut(&map) else { return false };
                if !state.in_worker {
                    state.in_worker = true;
                    effects.push(Effect::Define {
                        worker,
                        map,
                        definition: state.definition.clone(),
                    });
                }
                let (mut inputs, mut bytes, first) = (Vec::new(), 0, self.next_ticket);
                while let Some(Unit::Task { held, input, .. }) = self.queue.front() {
                    let waits = self.needs_values(*held, input);
                    if waits
                        || held.map != map
                        || inputs.len() >= capacity
                        || (inputs.len() >= MIN_UNITS && bytes + input.len() > MAX_BYTES)
                    {
                        break;
                    }
                    bytes += input.len();
                    inputs.push(input.clone());
                    let Some(unit) = self.queue.pop_front() else { break };
                    let ticket = self.ticket();
                    self.dispatched.push_back(Dispatched { ticket, unit });
                }
                effects.push(Effect::DispatchTasks {
                    worker,
                    map,
                    first,
                    inputs,
                });
            }
        }
        if was_empty {
            self.set_current(now, now.unix);
        }
        true
    }

    /// No worker is available. That is the engine's fault, not that of its tasks: they are returned, to run on other engines.
    /// Units that only this engine may run fail with the reason.
    fn reject_python_units(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Some(reason) = self.workers.why_unavailable().filter(|_| !self.queue.is_empty()) else {
            return;
        };
        let reason = format!(
            "no Python worker: {reason}. Set `engine: python:` in the profile's pcluster.yaml to a Python of 3.8 or later (now: {})",
            self.settings.python
        );
        let (mut back, mut failed) = (Vec::new(), Vec::new());
        for unit in std::mem::take(&mut self.queue) {
            match &unit {
                Unit::Task { held, .. } => match self.maps.get(&held.map).map(|state| &state.definition) {
                    Some(definition) if worker_of(held.map, definition).is_none() => self.queue.push_back(unit),
                    Some(definition) if definition.options.targets.is_some() => failed.push(unit),
                    Some(_) => back.push(unit),
                    None => self.queue.push_back(unit),
                },
                Unit::Request(request) if request.is_returnable() => back.push(unit),
                Unit::Request(_) => failed.push(unit),
            }
        }
        for unit in failed {
            self.fail(now, unit, "PythonUnavailable", reason.clone(), effects);
        }
        if !back.is_empty() {
            self.return_units(back, effects);
        }
    }

    fn ticket(&mut self) -> u32 {
        let ticket = self.next_ticket;
        self.next_ticket = self.next_ticket.wrapping_add(1);
        ticket
    }

    /// Number of further units to dispatch to the worker.
    fn capacity(&self, now: Now) -> usize {
        let count = self.dispatched.len();
        if let Some(Dispatched {
            unit: Unit::Request(request),
            ..
        }) = self.dispatched.back()
            && request.stops_others
        {
            // If it fails, the units behind it must not run.
            return 0;
        }
        if count < MIN_UNITS {
            let mean = match self.queue.front() {
                Some(Unit::Task { held, .. }) => self.maps.get(&held.map).and_then(|state| state.mean),
                _ => None,
            };
            return target(mean).saturating_sub(count).max(1);
        }
        let busy = self
            .current
            .as_ref()
            .map_or(Duration::ZERO, |current| now.instant.saturating_duration_since(current.since));
        let Some(Unit::Task { held, .. }) = self.queue.front() else {
            return 0;
        };
        let target = target(self.maps.get(&held.map).and_then(|state| state.mean));
        if busy >= PREFETCH || count > target / 2 {
            return 0;
        }
        target - count
    }

    /// Starts tracking the unit that is now running.
    pub(super) fn set_current(&mut self, now: Now, started: UnixTime) {
        let unit = self.command.as_ref().or(self.dispatched.front().map(|dispatched| &dispatched.unit));
        self.current = unit.map(|unit| {
            let is_request = unit.held().is_none();
            let options = unit
                .held()
                .and_then(|held| self.maps.get(&held.map))
                .map(|state| &state.definition.options);
            let ask = unit.ask();
            let timeout = options
                .and_then(|options| ask.limit_s().or(options.timeout_s))
                .and_then(|s| Duration::try_from_secs_f64(s).ok());
            let memory = options.map(|options| {
                let limit = ask.mem_bytes.or(options.mem_bytes);
                let interval = if limit.is_some() { MEMORY_POLL_INTERVAL } else { FIRST_POLL };
                MemoryWatch {
                    limit,
                    peak: 0,
                    next: now.instant + interval,
                    interval,
                }
            });
            RunningUnit {
                since: now.instant,
                started,
                output: UnitOutput::of(unit),
                announced: false,
                next_poll: now.instant + if is_request { POLL_INTERVAL } else { FIRST_POLL },
                timeout: timeout.and_then(|timeout| now.instant.checked_add(timeout)),
                memory,
                stop: None,
            }
        });
    }

    /// Updates the average task duration of a map.
    pub(super) fn record_duration(&mut self, map: crate::model::MapId, seconds: f64) {
        if let Some(state) = self.maps.get_mut(&map) {
            state.mean = Some(match state.mean {
                Some(mean) if seconds < PREFETCH.as_secs_f64() => 0.7 * mean + 0.3 * seconds,
                _ => seconds,
            });
        }
    }
}

fn target(mean: Option<f64>) -> usize {
    match mean {
        None => MIN_UNITS,
        Some(mean) => ((PREFETCH.as_secs_f64() / mean.max(1e-6)) as usize).clamp(MIN_UNITS, MAX_UNITS),
    }
}
