//! Manages the workers: a spare that has run no user code, the interactive one, and one for each map of a Python function.
use super::Core;
use super::event::{Effect, Now, StopStep};
use super::outage::{Outage, retry_delay};
use super::unit::WorkerKey;
use crate::model::MapId;
use crate::model::resources::Allocation;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A spare that is not ready after this time is killed.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Maximum number of idle map workers; beyond it the least recently used one is ended.
pub(super) const MAX_IDLE_MAP_WORKERS: usize = 4;
/// Delay before starting the next spare while a unit is running, so that the fork does not delay the result of a short unit.
const SPARE_DELAY: Duration = Duration::from_millis(2);
/// Number of consecutive exits of idle workers after which Python counts as unavailable.
const MAX_IDLE_DEATHS: u32 = 3;
/// The same for killed workers: the cause may lie elsewhere (the system is out of memory) and says little about Python.
const MAX_IDLE_KILLS: u32 = 10;

#[derive(Debug)]
enum Spare {
    Absent,
    Starting { until: Instant, has_shell: bool },
    Ready,
}

#[derive(Debug)]
pub(super) struct Workers {
    spare: Spare,
    /// Keep a spare ready; false until Python is first needed.
    wants_spare: bool,
    /// The latest time to start the next spare.
    spare_due: Option<Instant>,
    unavailable: Option<Outage>,
    /// Number of consecutive failures.
    failures: u32,
    /// A spare has been ready at least once: Python works on this host.
    is_proven: bool,
    /// The reason last reported to the controller.
    reported: Option<String>,
    /// Least recently used first.
    known: Vec<WorkerKey>,
    /// The worker that holds the dispatched units.
    active: Option<WorkerKey>,
    /// Number of consecutive exits of idle workers.
    idle_deaths: u32,
}

impl Default for Workers {
    fn default() -> Workers {
        Workers {
            spare: Spare::Absent,
            wants_spare: false,
            spare_due: None,
            unavailable: None,
            failures: 0,
            is_proven: false,
            reported: None,
            known: Vec::new(),
            active: None,
            idle_deaths: 0,
        }
    }
}

impl Workers {
    pub(super) fn deadline(&self) -> Option<Instant> {
        let late = match self.spare {
            Spare::Starting { until, .. } => Some(until),
            Spare::Absent => self.spare_due,
            Spare::Ready => None,
        };
        late.into_iter().chain(self.retry_at()).min()
    }

    pub(super) fn why_unavailable(&self) -> Option<&str> {
        self.unavailable.as_ref().map(|unavailable| unavailable.reason.as_str())
    }

    fn retry_at(&self) -> Option<Instant> {
        self.unavailable.as_ref()?.retry_at
    }

    pub(super) fn active(&self) -> Option<WorkerKey> {
        self.active
    }

    pub(super) fn is_active(&self, worker: WorkerKey) -> bool {
        self.active == Some(worker)
    }

    pub(super) fn record_run(&mut self) {
        self.failures = 0;
        self.idle_deaths = 0;
    }
}

/// Result of [`Core::use_worker`].
pub(super) enum Readiness {
    Ready,
    NotYet,
    Unavailable,
}

impl Core {
    /// Starts a spare in advance.
    pub fn warm_up(&mut self, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.workers.wants_spare = true;
        self.keep_spare(now, true, &mut effects);
        effects
    }

    /// Why Python functions cannot run on this engine now: the last spare failed to start, or none has been ready yet.
    pub fn why_no_worker(&self) -> Option<&str> {
        let workers = &self.workers;
        match &workers.unavailable {
            Some(unavailable) => Some(&unavailable.reason),
            None if !workers.is_proven && matches!(workers.spare, Spare::Starting { .. }) => {
                Some("its Python interpreter is still starting")
            }
            None => None,
        }
    }

    /// Why Python functions, or those shipped as code bundles, cannot run on this engine now.
    fn why_unavailable(&self) -> Option<&str> {
        self.why_no_worker().or(self.code.why_unusable())
    }

    /// The same, for the registration about to be sent.
    pub fn unavailable_at_registration(&mut self) -> Option<String> {
        self.workers.reported = self.why_unavailable().map(String::from);
        self.workers.reported.clone()
    }

    /// Reports changes to the controller. Called before tasks are returned, so that the controller does not send them again.
    pub(super) fn report_availability(&mut self, effects: &mut Vec<Effect>) {
        if self.registered && self.workers.reported.as_deref() != self.why_unavailable() {
            let reason = self.why_unavailable().map(String::from);
            self.workers.reported.clone_from(&reason);
            effects.push(Effect::ReportAvailability { reason });
        }
    }

    pub(super) fn keep_spare(&mut self, now: Now, idle: bool, effects: &mut Vec<Effect>) {
        let workers = &self.workers;
        let is_wanted = workers.wants_spare && workers.unavailable.is_none() && self.leaving.is_none();
        let is_due = idle || workers.spare_due.is_none_or(|due| now.instant >= due);
        if !is_wanted {
            self.workers.spare_due = None;
        } else if is_due && matches!(workers.spare, Spare::Absent) {
            self.start_spare(now, effects);
        }
    }

    pub(super) fn spare_is_ready(&mut self, effects: &mut Vec<Effect>) {
        let has_shell = matches!(self.workers.spare, Spare::Starting { has_shell: true, .. });
        self.workers.spare = Spare::Ready;
        self.workers.is_proven = true;
        // A ready spare does not refute the reason why earlier workers died: the retry is scheduled.
        if self.workers.retry_at().is_none() {
            self.workers.unavailable = None;
        }
        if has_shell {
            self.assign_spare(WorkerKey::Interactive, effects);
        }
    }

    fn assign_spare(&mut self, worker: WorkerKey, effects: &mut Vec<Effect>) {
        self.workers.spare = Spare::Absent;
        self.workers.known.push(worker);
        effects.push(Effect::AssignSpare { worker });
    }

    fn start_spare(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let has_shell = self.settings.shell_at_start && !self.workers.known.contains(&WorkerKey::Interactive);
        self.workers.wants_spare = true;
        self.workers.spare_due = None;
        if let Some(unavailable) = &mut self.workers.unavailable {
            unavailable.retry_at = None;
        }
        self.workers.spare = Spare::Starting {
            until: now.instant + START_TIMEOUT,
            has_shell,
        };
        effects.push(Effect::StartWorker { has_shell });
    }

    /// Handles a spare that failed to start.
    pub(super) fn spare_failed(&mut self, now: Now, reason: String) {
        self.workers.spare = Spare::Absent;
        self.worker_failed(now, reason);
    }

    fn worker_failed(&mut self, now: Now, reason: String) {
        let delay = retry_delay(self.workers.failures);
        self.workers.failures += 1;
        self.workers.unavailable = Some(Outage {
            reason,
            retry_at: Some(now.instant + delay),
        });
    }

    /// Kills a spare that takes too long; retries after a failure.
    pub(super) fn check_spare(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.workers.retry_at().is_some_and(|at| now.instant >= at) && self.leaving.is_none() {
            match (&self.workers.spare, &mut self.workers.unavailable) {
                (Spare::Absent, _) => self.start_spare(now, effects),
                (Spare::Starting { .. }, Some(unavailable)) => unavailable.retry_at = None,
                (Spare::Ready, _) => self.workers.unavailable = None,
                (Spare::Starting { .. }, None) => {}
            }
        }
        let is_late = matches!(self.workers.spare, Spare::Starting { until, .. } if now.instant >= until);
        if is_late {
            effects.push(Effect::SignalWorker {
                worker: None,
                signal: StopStep::Kill,
            });
            self.spare_failed(now, "the interpreter was not ready within 120 s".into());
        }
    }

    /// Makes this worker the active one if possible: it exists already, or the spare becomes it.
    pub(super) fn use_worker(&mut self, now: Now, worker: WorkerKey, effects: &mut Vec<Effect>) -> Readiness {
        if let Some(at) = self.workers.known.iter().position(|known| *known == worker) {
            if !self.workers.is_active(worker) {
                self.workers.known.remove(at);
                self.workers.known.push(worker);
                self.workers.active = Some(worker);
            }
            return Readiness::Ready;
        }
        if self.workers.unavailable.is_some() {
            return Readiness::Unavailable;
        }
        match &self.workers.spare {
            Spare::Ready => {
                self.assign_spare(worker, effects);
                self.workers.active = Some(worker);
                self.workers.spare_due = Some(now.instant + SPARE_DELAY);
                self.end_surplus_workers(effects);
                Readiness::Ready
            }
            Spare::Absent => {
                self.start_spare(now, effects);
                Readiness::NotYet
            }
            Spare::Starting { .. } => Readiness::NotYet,
        }
    }

    fn end_surplus_workers(&mut self, effects: &mut Vec<Effect>) {
        let is_idle_map = |known: &&WorkerKey| matches!(known, WorkerKey::Map(_)) && !self.workers.is_active(**known);
        let idle: Vec<WorkerKey> = self.workers.known.iter().filter(is_idle_map).copied().collect();
        for worker in &idle[..idle.len().saturating_sub(MAX_IDLE_MAP_WORKERS)] {
            self.end_worker(*worker, effects);
        }
    }

    /// Ends an idle worker.
    fn end_worker(&mut self, worker: WorkerKey, effects: &mut Vec<Effect>) {
        if self.lose_worker(worker) {
            effects.push(Effect::EndWorker { worker });
        }
    }

    /// Applies a new allocation: a process learns of its GPUs at its start, so the map gets another worker.
    pub(super) fn allocated(&mut self, map: MapId, allocation: Allocation, env: Vec<(&'static str, String)>, effects: &mut Vec<Effect>) {
        let Some(state) = self.maps.get_mut(&map) else { return };
        if state.allocation.as_ref() == Some(&allocation) {
            return;
        }
        let mut definition = (*state.definition).clone();
        let process = &mut definition.options.process;
        process.env.extend(env.into_iter().map(|(name, value)| (name.into(), value)));
        process.cores = allocation.cores.clone();
        (state.definition, state.allocation) = (Arc::new(definition), Some(allocation));
        // The interactive worker gets it again.
        state.in_worker = false;
        let worker = super::unit::worker_of(map, &state.definition);
        if let Some(worker @ WorkerKey::Map(_)) = worker {
            self.end_worker(worker, effects);
        }
    }

    /// The allocations of the maps whose tasks it holds.
    pub fn allocations(&self) -> Vec<(MapId, Allocation)> {
        let held: std::collections::BTreeSet<MapId> = self.holds().iter().map(|held| held.map).collect();
        let allocation = |map: MapId| Some((map, self.maps.get(&map)?.allocation.clone()?));
        held.into_iter().filter_map(allocation).collect()
    }

    /// Forgets a map: ends its worker with all processes that it started, or removes its definition from the interactive worker.
    pub(super) fn forget_in_worker(&mut self, map: MapId, worker: Option<WorkerKey>, effects: &mut Vec<Effect>) {
        match worker {
            Some(worker @ WorkerKey::Map(_)) => self.end_worker(worker, effects),
            Some(worker @ WorkerKey::Interactive) if self.maps.get(&map).is_some_and(|state| state.in_worker) => {
                effects.push(Effect::Forget { worker, map });
            }
            _ => {}
        }
    }

    /// Returns whether the worker was known.
    fn lose_worker(&mut self, worker: WorkerKey) -> bool {
        let count = self.workers.known.len();
        self.workers.known.retain(|known| *known != worker);
        if self.workers.is_active(worker) {
            self.workers.active = None;
        }
        for (map, state) in &mut self.maps {
            state.in_worker &= super::unit::worker_of(*map, &state.definition) != Some(worker);
        }
        count != self.workers.known.len()
    }

    /// The spare has ended. `reason` includes its last output.
    pub(super) fn spare_exited(&mut self, now: Now, how: String, killed: bool, reason: String) {
        match self.workers.spare {
            // It was killed after its timeout.
            Spare::Absent => {}
            Spare::Starting { .. } => {
                self.workers.spare = Spare::Absent;
                // A spare that exits by itself before it is ready will do so again.
                self.workers.idle_deaths += 1;
                if !killed || self.workers.idle_deaths >= MAX_IDLE_KILLS {
                    self.workers.idle_deaths = 0;
                    self.worker_failed(now, reason);
                }
            }
            Spare::Ready => {
                self.workers.spare = Spare::Absent;
                self.count_idle_death(now, &how, killed);
            }
        }
    }

    /// A worker has ended that held this many units, of which this many had started.
    pub(super) fn record_worker_exit(
        &mut self,
        now: Now,
        worker: WorkerKey,
        (how, killed): (&str, bool),
        (units, begun): (usize, usize),
        effects: &mut Vec<Effect>,
    ) {
        if !self.lose_worker(worker) {
            return;
        }
        if begun > 0 {
            self.workers.record_run();
        } else if units > 0 {
            self.count_idle_death(now, how, killed);
        }
        if worker == WorkerKey::Interactive {
            self.leave_as_new_engine(now, how, effects);
        }
    }

    fn count_idle_death(&mut self, now: Now, how: &str, killed: bool) {
        self.workers.idle_deaths += 1;
        if self.workers.idle_deaths >= if killed { MAX_IDLE_KILLS } else { MAX_IDLE_DEATHS } {
            let times = std::mem::take(&mut self.workers.idle_deaths);
            let reason = format!("it ended {times} times while idle; most recently: {how}");
            self.worker_failed(now, reason);
        }
    }
}
