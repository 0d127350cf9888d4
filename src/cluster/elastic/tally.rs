//! The engines of one shape, counted.
use super::observation::JobPhase;
use super::state::{ElasticState, JobRecord};

/// Engines of a job that runs are expected to register within this time.
pub(super) const START_S: f64 = 600.0;

/// In engines, unless noted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Tally {
    /// All that exist or may exist.
    pub present: u32,
    /// Those that were not asked to leave.
    pub staying: u32,
    pub registered: u32,
    pub registered_staying: u32,
    pub busy: u32,
    /// Those that have been busy with one unit for long, and are not expected to take another soon.
    pub occupied: u32,
    pub starting: u32,
    pub unknown: u32,
    pub leaving: u32,
    pub queued_jobs: u32,
    /// Those that can take ready work soon: idle, starting or queued, or busy with short units.
    pub available: u32,
    /// The same of the job that has most of them.
    pub largest_available: u32,
}

impl Tally {
    /// `soon_s`: an engine that has been busy with one unit for longer is not expected to take another one soon.
    pub(super) fn of(state: &ElasticState, shape: &str, soon_s: f64) -> Tally {
        let mut tally = Tally::default();
        for job in state.jobs.values().filter(|job| job.shape == shape && !job.has_ended) {
            tally.add(job, state.clock_s, soon_s);
        }
        for launch in state.launches.values().filter(|launch| launch.shape == shape) {
            let engines = launch.unseen() * launch.engines_per_job;
            tally.present += engines;
            tally.staying += engines;
            tally.available += engines;
            tally.largest_available = tally.largest_available.max(launch.engines_per_job);
            tally.queued_jobs += launch.unseen();
        }
        tally
    }

    fn add(&mut self, job: &JobRecord, clock: f64, soon_s: f64) {
        let registered = job.registered.len() as u32;
        let unregistered = job.engines.saturating_sub(registered);
        let engines = job.engines.max(registered);
        self.present += engines;
        self.registered += registered;
        self.busy += job.busy();
        match job.phase {
            JobPhase::Queued | JobPhase::Submitted => self.queued_jobs += 1,
            JobPhase::Unknown | JobPhase::Missing => {
                self.unknown += engines;
                self.queued_jobs += u32::from(!job.is_running);
            }
            _ => self.starting += unregistered,
        }
        if job.is_going() {
            self.leaving += engines;
            return;
        }
        self.staying += engines;
        self.registered_staying += registered;
        let is_soon = |engine: &&super::state::EngineRecord| {
            !engine.is_unusable && (engine.idle_since_s.is_some() || clock - engine.changed_s <= soon_s)
        };
        let expected = match job.phase {
            JobPhase::Queued | JobPhase::Submitted | JobPhase::Unknown | JobPhase::Missing => unregistered,
            JobPhase::Running if clock - job.incomplete_s <= START_S => unregistered,
            _ => 0,
        };
        let available = match job.phase {
            JobPhase::Suspended | JobPhase::Ended(_) => 0,
            _ => job.registered.values().filter(is_soon).count() as u32 + expected,
        };
        let busy_soon = job
            .registered
            .values()
            .filter(is_soon)
            .filter(|engine| engine.idle_since_s.is_none());
        self.occupied += job.busy() - busy_soon.count() as u32;
        self.available += available;
        self.largest_available = self.largest_available.max(available);
    }
}
