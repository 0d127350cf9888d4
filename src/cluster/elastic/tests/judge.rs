//! What must hold at every moment, by the truth of the simulated system. Shares no code with the decisions.
use super::system::{Job, Life, World};
use crate::cluster::elastic::decide::Outcome;
use crate::cluster::elastic::decision::{Action, Decision};
use crate::cluster::elastic::observation::{Activity, JobName, JobPhase, Observation};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub(super) struct Judge {
    launches: BTreeSet<u64>,
    /// Time, shape and jobs of each submission since a unit last finished.
    submitted: Vec<(f64, usize, u32)>,
    /// Times of all submissions.
    all_submitted: Vec<(f64, usize)>,
    finished: u64,
    paused: BTreeSet<usize>,
    rejected: BTreeMap<usize, (f64, u32)>,
    crashed: f64,
}

impl Judge {
    pub(super) fn new() -> Judge {
        Judge {
            crashed: f64::NEG_INFINITY,
            ..Judge::default()
        }
    }

    pub(super) fn crash(&mut self, world: &World) {
        self.crashed = world.now;
    }

    /// Before the decisions are carried out.
    pub(super) fn decided(&mut self, world: &World, seen: &Observation, outcome: &Outcome) {
        self.has_reasons(world, seen, outcome);
        for rejection in &seen.rejected {
            let shape = world.jobs.iter().find(|job| job.launch == rejection.launch).map(|job| job.shape);
            if let Some(shape) = shape.or_else(|| (world.settings.shapes.len() == 1).then_some(0)) {
                let (_, count) = self.rejected.get(&shape).copied().unwrap_or_default();
                self.rejected.insert(shape, (world.now, count + 1));
            }
        }
        let shapes: BTreeSet<&String> = seen.jobs.iter().map(|job| &job.shape).collect();
        for shape in shapes {
            let at = world.shape_named(shape);
            let has_new =
                |job: &&crate::cluster::elastic::observation::ObservedJob| job.shape == *shape && self.launches.contains(&job.launch);
            if seen.jobs.iter().filter(has_new).any(|job| job.phase == JobPhase::Running) {
                self.rejected.entry(at).and_modify(|(_, count)| *count = 0);
            }
        }
    }

    /// Before one decision is carried out.
    pub(super) fn carried_out(&mut self, world: &World, seen: &Observation, decision: &Decision) {
        let shape = world.shape_named(&decision.shape);
        match &decision.action {
            Action::Submit {
                launch,
                jobs,
                engines_per_job,
            } => {
                assert!(self.launches.insert(*launch), "launch {launch} was submitted twice");
                assert!(!self.paused.contains(&shape), "a submission of a paused shape");
                self.within_limits(world, shape, *jobs, *engines_per_job);
                if world.now > self.crashed + 120.0 {
                    for_work(world, seen, shape, jobs * engines_per_job);
                }
                self.no_storm(world, shape, *jobs);
            }
            Action::CancelQueued { jobs } => {
                let is_queued = |name: &JobName| seen.jobs.iter().any(|job| job.name == *name && job.phase == JobPhase::Queued);
                assert!(jobs.iter().all(is_queued), "a job is cancelled that was not seen in the queue");
                keeps_min(world, seen, shape, jobs);
            }
            Action::Retire { jobs } => {
                let idle = seen.jobs.iter().filter(|job| jobs.contains(&job.name));
                let is_idle = |activity: Activity| matches!(activity, Activity::Idle | Activity::Unusable);
                let all_idle = idle.flat_map(|job| &job.registered).all(|engine| is_idle(engine.activity));
                assert!(all_idle, "a busy engine is retired");
                keeps_min(world, seen, shape, jobs);
            }
            Action::CancelUnregistered { jobs } => {
                let own = world.jobs.iter().filter(|job| jobs.contains(&job.name));
                let registered = own.filter(|job| job.registered(world.now).count() > 0).count();
                assert_eq!(registered, 0, "a job with engines is cancelled");
            }
            Action::Drain { jobs } => keeps_min(world, seen, shape, jobs),
            Action::Pause => {
                self.paused.insert(shape);
            }
            Action::Resume => {
                self.paused.remove(&shape);
                self.rejected.remove(&shape);
                self.submitted.retain(|(_, at, _)| *at != shape);
            }
            Action::GiveUp { .. } => {}
        }
    }

    /// At any time.
    pub(super) fn always(&mut self, world: &World) {
        if world.finished > self.finished {
            self.finished = world.finished;
            self.submitted.clear();
        }
        if let Some(budget) = world.settings.budget_core_h {
            let walltime = |job: &Job| world.settings.shapes[job.shape].walltime_s.unwrap_or(f64::INFINITY);
            let running = |job: &Job| {
                job.runs_since()
                    .map_or(0.0, |since| (world.now - since).min(walltime(job)) * world.cores(job))
            };
            let granted = world.granted_core_s + world.jobs.iter().map(running).sum::<f64>();
            assert!(
                granted <= budget * 3600.0 + 1e-3,
                "{granted} core-seconds, the budget is {}",
                budget * 3600.0
            );
        }
    }

    fn within_limits(&self, world: &World, shape: usize, jobs: u32, engines: u32) {
        let limits = &world.settings.shapes[shape];
        let own = || world.jobs.iter().filter(|job| job.shape == shape && job.is_alive());
        let alive: u32 = own().map(|job| job.size).sum();
        let more = jobs * engines;
        assert!(jobs > 0 && engines > 0, "nothing is submitted");
        assert!(
            alive + more <= limits.max,
            "{alive} + {more} engines, the maximum is {}",
            limits.max
        );
        let queued = own().filter(|job| job.runs_since().is_none()).count() as u32;
        let known = world.now <= self.crashed + 700.0 || queued + jobs <= limits.max_queued + 1;
        assert!(jobs <= limits.max_queued && known, "{queued} + {jobs} jobs in the queue");
        if let (Some(budget), Some(walltime)) = (world.settings.budget_core_h, limits.walltime_s) {
            let left = |job: &Job| {
                let walltime = world.settings.shapes[job.shape].walltime_s.unwrap_or(0.0);
                walltime * world.cores(job)
            };
            let reserved: f64 = world.jobs.iter().filter(|job| job.is_alive()).map(left).sum();
            let all = world.granted_core_s + reserved + f64::from(more * limits.cpus_per_engine) * walltime;
            assert!(
                all <= budget * 3600.0 + 1e-3,
                "{all} core-seconds may be used, the budget is {}",
                budget * 3600.0
            );
        }
        if let Some((at, count)) = self.rejected.get(&shape) {
            let waited = world.now - at;
            assert!(*count == 0 || waited >= 29.9, "a submission {waited} s after one was rejected");
            assert!(*count < 5, "a submission after {count} were rejected in a row");
        }
    }

    fn no_storm(&mut self, world: &World, shape: usize, jobs: u32) {
        let now = world.now;
        self.submitted.push((now, shape, jobs));
        self.all_submitted.push((now, shape));
        let recent = self.all_submitted.iter().rev().take_while(|(time, _)| *time > now - 60.0);
        assert!(
            recent.filter(|(_, at)| *at == shape).count() <= 7,
            "too many submissions within a minute"
        );
        let fruitless = self.submitted.iter().filter(|(time, at, _)| *time > now - 3600.0 && *at == shape);
        let jobs: u32 = fruitless.map(|(.., jobs)| jobs).sum();
        let allowed = 12 * world.settings.shapes[shape].max + 12;
        assert!(
            jobs <= allowed,
            "{jobs} jobs in an hour in which nothing finished, at most {allowed} are expected"
        );
    }

    fn has_reasons(&self, world: &World, seen: &Observation, outcome: &Outcome) {
        let one_line = |text: &str| assert!(!text.trim().is_empty() && !text.contains('\n'), "not one line: {text:?}");
        outcome.decisions.iter().for_each(|decision| one_line(&decision.reason));
        assert_eq!(outcome.summary.shapes.len(), world.settings.shapes.len());
        for shape in &outcome.summary.shapes {
            one_line(&shape.why_not_more.to_string());
            one_line(&shape.why_not_fewer.to_string());
            assert!(shape.wants <= shape.max.max(shape.min), "wants more than the maximum");
        }
        let lines = outcome.summary.lines(seen.now, |_| "14:20".into());
        lines.iter().for_each(|line| one_line(line));
    }
}

/// No more engines than fitting units; those that exist and could take some count.
fn for_work(world: &World, seen: &Observation, shape: usize, more: u32) {
    let limits = &world.settings.shapes[shape];
    let is_gpu = limits.name == "gpu";
    let full = u64::from(limits.engines_per_job.min(limits.max));
    let kinds = || world.kinds.iter().filter(|kind| kind.needs_gpu == is_gpu && kind.ready > 0);
    let is_wide = kinds().any(|kind| kind.width > 1);
    let mut needed: u64 = kinds().map(|kind| kind.ready * u64::from(kind.width)).sum();
    if is_wide {
        needed = needed.div_ceil(full) * full;
    }
    let (mut usable, mut staying) = (0, 0);
    for job in world
        .jobs
        .iter()
        .filter(|job| job.shape == shape && job.is_alive() && !job.is_leaving)
    {
        staying += job.size;
        let is_silent = |id: u32| {
            let engines = seen.jobs.iter().flat_map(|job| &job.registered);
            engines
                .filter(|engine| engine.id.0 == id)
                .any(|engine| engine.activity == Activity::Silent)
        };
        let registered = job.registered(world.now).count() as u32;
        let idle = job.registered(world.now).filter(|e| e.unit.is_none() && !is_silent(e.id)).count() as u32;
        usable += match job.life {
            Life::Running { since } if world.now < since + 600.0 => idle + job.size - registered,
            Life::Running { .. } => idle,
            _ => job.size,
        };
    }
    let for_work = needed.saturating_sub(usable.into());
    let for_wide = if is_wide { full } else { 0 };
    let allowed = for_work.max(for_wide).max(limits.min.saturating_sub(staying).into());
    assert!(
        u64::from(more) <= allowed,
        "{more} more engines for {needed} units, {usable} could take them; {allowed} are enough"
    );
}

/// As far as could be seen, unless there were too many.
fn keeps_min(world: &World, seen: &Observation, shape: usize, leaving: &[JobName]) {
    let limits = &world.settings.shapes[shape];
    let own = || seen.jobs.iter().filter(|job| job.shape == limits.name && !job.is_leaving);
    let is_seen = |job: &&crate::cluster::elastic::observation::ObservedJob| {
        !job.registered.is_empty() || matches!(job.phase, JobPhase::Queued | JobPhase::Running | JobPhase::Submitted)
    };
    let before: u32 = own().map(|job| job.engines).sum();
    let after: u32 = own()
        .filter(is_seen)
        .filter(|job| !leaving.contains(&job.name))
        .map(|job| job.engines)
        .sum();
    // A full job for a wide unit may need all of the room.
    let is_wide = world.kinds.iter().any(|kind| kind.width > 1 && kind.ready > 0);
    assert!(
        before > limits.max || is_wide || after >= limits.min,
        "{after} engines stay, the minimum is {}",
        limits.min
    );
}
