//! Giving work out: which unit is next, and how many the worker gets ahead.
use super::event::{Effect, Now};
use super::unit::{Unit, WorkerKey, worker_of};
use super::workers::Readiness;
use super::{Core, Current, FIRST_LOOK, Given, LOOK, MEMORY_LOOK, MemoryWatch, Wrote};
use crate::model::UnixTime;
use crate::model::task::{Outcome, TaskState};
use std::time::Duration;

/// The worker gets about so much work ahead,
const AHEAD: Duration = Duration::from_millis(5);
/// ... but at least so many units (the second saves the way back and forth; it can be called back),
const FEWEST: usize = 2;
/// ... and at most so many,
const MOST: usize = 1000;
/// ... and not more than about so many bytes.
const MOST_BYTES: usize = 1 << 20;
enum Next {
    Nothing,
    Command,
    Worker(WorkerKey),
    /// Its values are to be fetched.
    Values,
    /// The definition is missing.
    Unknown,
}

impl Core {
    pub(super) fn feed(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let stopping = self.stop_next.is_some() || self.current.as_ref().is_some_and(|current| current.stop.is_some());
        if stopping || self.leaving.is_some() || !self.has_room_for_values() {
            return;
        }
        self.give_up_code(now, effects);
        loop {
            self.give_up_python(now, effects);
            match self.next() {
                Next::Nothing => return,
                Next::Unknown => {
                    if let Some(Unit::Task { held, .. }) = self.queue.pop_front() {
                        let evalue = format!("the engine was never told what map {} runs", held.map);
                        self.push_outcome(
                            now,
                            held,
                            Outcome::failure(TaskState::Error, "MissingDefinition", evalue, now.unix, now.unix),
                        );
                    }
                }
                Next::Command => {
                    if self.command.is_some() || !self.given.is_empty() {
                        return;
                    }
                    self.start_command(now, effects);
                }
                Next::Values => {
                    if !self.gather(now, effects) {
                        return;
                    }
                }
                Next::Worker(worker) => {
                    let other_runs = self.command.is_some() || (!self.given.is_empty() && !self.workers.is_active(worker));
                    if other_runs || !self.feed_worker(now, worker, effects) {
                        return;
                    }
                }
            }
        }
    }

    fn next(&self) -> Next {
        match self.queue.front() {
            None => Next::Nothing,
            Some(Unit::Request(_)) => Next::Worker(WorkerKey::Interactive),
            Some(Unit::Task { held, input }) if self.needs_values(*held, input) => Next::Values,
            Some(Unit::Task { held, .. }) => match self.maps.get(&held.map) {
                None => Next::Unknown,
                Some(state) => worker_of(held.map, &state.definition).map_or(Next::Command, Next::Worker),
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
        self.new_current(now, now.unix);
        effects.push(Effect::StartCommand { unit, definition });
    }

    /// Gives the worker what it should have ahead; false if nothing more can be given now.
    fn feed_worker(&mut self, now: Now, worker: WorkerKey, effects: &mut Vec<Effect>) -> bool {
        match self.use_worker(now, worker, effects) {
            Readiness::Ready => {}
            Readiness::NotYet => return false,
            // Known only now: what there is goes back before the next unit is looked at.
            Readiness::Unavailable => return true,
        }
        let room = self.room(now);
        let Some(front) = self.queue.front() else { return false };
        if room == 0 {
            return false;
        }
        let was_empty = self.given.is_empty();
        match front {
            Unit::Request(request) => {
                let request = request.clone();
                let ticket = self.ticket();
                self.queue.pop_front();
                self.given.push_back(Given {
                    ticket,
                    unit: Unit::Request(request.clone()),
                });
                effects.push(Effect::GiveRequest { ticket, request });
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
                while let Some(Unit::Task { held, input }) = self.queue.front() {
                    let waits = self.needs_values(*held, input);
                    if waits || held.map != map || inputs.len() >= room || (inputs.len() >= FEWEST && bytes + input.len() > MOST_BYTES) {
                        break;
                    }
                    bytes += input.len();
                    inputs.push(input.clone());
                    let Some(unit) = self.queue.pop_front() else { break };
                    let ticket = self.ticket();
                    self.given.push_back(Given { ticket, unit });
                }
                effects.push(Effect::GiveTasks {
                    worker,
                    map,
                    first,
                    inputs,
                });
            }
        }
        if was_empty {
            self.new_current(now, now.unix);
        }
        true
    }

    /// No worker can be had. That is the engine's fault, not that of its tasks: they go back, to run elsewhere. What can run nowhere
    /// else fails with the reason.
    fn give_up_python(&mut self, now: Now, effects: &mut Vec<Effect>) {
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
                Unit::Request(request) if request.may_go_back() => back.push(unit),
                Unit::Request(_) => failed.push(unit),
            }
        }
        for unit in failed {
            self.fail(now, unit, "PythonUnavailable", reason.clone(), effects);
        }
        if !back.is_empty() {
            self.send_back(back, effects);
        }
    }

    fn ticket(&mut self) -> u32 {
        let ticket = self.next_ticket;
        self.next_ticket = self.next_ticket.wrapping_add(1);
        ticket
    }

    /// How many more units the worker should get.
    fn room(&self, now: Now) -> usize {
        let have = self.given.len();
        if let Some(Given {
            unit: Unit::Request(request),
            ..
        }) = self.given.back()
            && request.stops_others
        {
            // If it fails, what stands behind it is not to run.
            return 0;
        }
        if have < FEWEST {
            let mean = match self.queue.front() {
                Some(Unit::Task { held, .. }) => self.maps.get(&held.map).and_then(|state| state.mean),
                _ => None,
            };
            return wanted(mean).saturating_sub(have).max(1);
        }
        let busy = self
            .current
            .as_ref()
            .map_or(Duration::ZERO, |current| now.instant.saturating_duration_since(current.since));
        let Some(Unit::Task { held, .. }) = self.queue.front() else {
            return 0;
        };
        let wanted = wanted(self.maps.get(&held.map).and_then(|state| state.mean));
        if busy >= AHEAD || have > wanted / 2 {
            return 0;
        }
        wanted - have
    }

    /// Another unit is the one that runs.
    pub(super) fn new_current(&mut self, now: Now, started: UnixTime) {
        let unit = self.command.as_ref().or(self.given.front().map(|given| &given.unit));
        self.current = unit.map(|unit| {
            let is_request = unit.held().is_none();
            let options = unit
                .held()
                .and_then(|held| self.maps.get(&held.map))
                .map(|state| &state.definition.options);
            let timeout = options
                .and_then(|options| options.timeout_s)
                .and_then(|s| Duration::try_from_secs_f64(s).ok());
            let memory = options.and_then(|options| options.mem_bytes).map(|limit| MemoryWatch {
                limit,
                next: now.instant + MEMORY_LOOK,
            });
            Current {
                since: now.instant,
                started,
                wrote: Wrote::of(unit),
                told: false,
                next_look: now.instant + if is_request { LOOK } else { FIRST_LOOK },
                timeout: timeout.and_then(|timeout| now.instant.checked_add(timeout)),
                memory,
                stop: None,
            }
        });
    }

    /// A task of this map took so long.
    pub(super) fn learn(&mut self, map: crate::model::MapId, seconds: f64) {
        if let Some(state) = self.maps.get_mut(&map) {
            state.mean = Some(match state.mean {
                Some(mean) if seconds < AHEAD.as_secs_f64() => 0.7 * mean + 0.3 * seconds,
                _ => seconds,
            });
        }
    }
}

fn wanted(mean: Option<f64>) -> usize {
    match mean {
        None => FEWEST,
        Some(mean) => ((AHEAD.as_secs_f64() / mean.max(1e-6)) as usize).clamp(FEWEST, MOST),
    }
}
