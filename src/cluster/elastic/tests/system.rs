//! A batch system, a controller and the process between them and the decisions, simulated: everything that it does wrong comes
//! from a seed.
use crate::cluster::elastic::decision::{Action, Decision};
use crate::cluster::elastic::observation::{Activity, JobName, JobPhase, Observation, ObservedEngine, ObservedJob, Rejection};
use crate::cluster::elastic::settings::{ElasticSettings, EngineShape};
use crate::cluster::elastic::work::ReadyWork;
use crate::launchers::JobOutcome;
use crate::model::node::{Gpu, GpuVendor, NodeFacts};
use crate::model::resources::{GpuAmount, Request, TaskResources};
use crate::model::{EngineId, UnixTime};
use std::collections::BTreeMap;

pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }
    pub(super) fn roll(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub(super) fn percent(&mut self, percent: u64) -> bool {
        self.roll(100) < percent
    }
    pub(super) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.roll(1_000_000) as f64 / 1e6)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Life {
    /// Accepted, and not listed before this time.
    Delayed(f64),
    Queued,
    Running {
        since: f64,
    },
    Ended {
        at: f64,
        outcome: JobOutcome,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Engine {
    pub id: u32,
    pub registers: f64,
    /// Its unit's kind, and when it is finished.
    pub unit: Option<(usize, f64)>,
    pub finished: u64,
    pub has_left: bool,
    pub silent_until: f64,
}

#[derive(Clone, Debug)]
pub(super) struct Job {
    pub name: JobName,
    pub launch: u64,
    pub shape: usize,
    pub size: u32,
    pub life: Life,
    /// When the system starts it, if there is room.
    grant: f64,
    /// When it dies by itself.
    dies: f64,
    preempted: f64,
    pub engines: Vec<Engine>,
    pub is_leaving: bool,
    /// The process that decides knows of it.
    is_known: bool,
    pub ran_s: f64,
}

impl Job {
    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.life, Life::Ended { .. })
    }
    pub(super) fn runs_since(&self) -> Option<f64> {
        match self.life {
            Life::Running { since } => Some(since),
            _ => None,
        }
    }
    pub(super) fn registered(&self, now: f64) -> impl Iterator<Item = &Engine> {
        let runs = self.runs_since().is_some();
        self.engines.iter().filter(move |e| runs && e.registers <= now && !e.has_left)
    }
}

pub(super) struct Kind {
    pub request: Request,
    pub width: u32,
    pub needs_gpu: bool,
    pub seconds: f64,
    pub limit_s: Option<f64>,
    pub ready: u64,
    pub ended: u64,
}

/// What the system answers.
enum Answer {
    Fresh,
    /// Nothing at all, for a while.
    None,
    /// An empty list, although jobs exist.
    Empty,
    /// What was true some time ago.
    Old,
}

/// How often faults occur, in percent; all 0 when the system is calm.
#[derive(Clone, Copy, Default)]
pub(super) struct Faults {
    pub lost: u64,
    pub delayed: u64,
    pub rejected: u64,
    pub query: u64,
    pub early: u64,
    pub preempted: u64,
    pub slow: u64,
    pub never_registers: u64,
    pub silent: u64,
    pub held: u64,
    pub no_controller: u64,
    pub crash: u64,
    pub clock: u64,
}

pub(super) struct World {
    pub rng: Rng,
    pub now: f64,
    wall_offset: f64,
    pub settings: ElasticSettings,
    pub jobs: Vec<Job>,
    pub kinds: Vec<Kind>,
    pub faults: Faults,
    /// Engines that the system runs at the same time.
    pub quota: u32,
    keeps_history: bool,
    next_engine: u32,
    query_until: f64,
    answer: Answer,
    /// The phases of an earlier time.
    old: (f64, BTreeMap<JobName, JobPhase>),
    controller_back: f64,
    rejected: Vec<Rejection>,
    pub granted_core_s: f64,
    pub finished: u64,
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed);
        for _ in 0..8 {
            rng.next();
        }
        let walltime = rng.between(900.0, 7200.0);
        let engines_per_job = [1, 1, 1, 2, 4][rng.roll(5) as usize];
        let min = [0, 0, 0, 1, 2][rng.roll(5) as usize];
        let mut cpu = EngineShape::new("cpu", min, min.max(engines_per_job) + rng.roll(7) as u32);
        cpu.engines_per_job = engines_per_job;
        cpu.idle_s = rng.between(60.0, 400.0);
        cpu.max_queued = 1 + rng.roll(4) as u32;
        let budget = rng
            .percent(30)
            .then(|| rng.between(2.0, 30.0) * walltime * f64::from(engines_per_job) / 3600.0);
        cpu.walltime_s = (budget.is_some() || rng.percent(80)).then_some(walltime);
        let mut shapes = vec![cpu];
        if rng.percent(30) {
            let mut gpu = EngineShape::new("gpu", 0, 1 + rng.roll(3) as u32);
            gpu.walltime_s = Some(walltime);
            gpu.cost = 5.0;
            gpu.node.gpus = vec![Gpu {
                vendor: GpuVendor::Nvidia,
                name: "0".into(),
                model: String::new(),
                numa: None,
            }];
            shapes.insert(rng.roll(2) as usize, gpu);
        }
        let settings = ElasticSettings {
            shapes,
            budget_core_h: budget,
            work_per_engine_s: rng.between(60.0, 600.0),
            ..ElasticSettings::default()
        };
        settings.check().unwrap();
        let often = |rng: &mut Rng, percent: u64| if rng.percent(50) { rng.roll(percent + 1) } else { 0 };
        let faults = Faults {
            lost: often(&mut rng, 30),
            delayed: often(&mut rng, 40),
            rejected: often(&mut rng, 60),
            query: often(&mut rng, 20),
            early: if rng.percent(5) { 100 } else { often(&mut rng, 50) },
            preempted: often(&mut rng, 40),
            slow: often(&mut rng, 30),
            never_registers: often(&mut rng, 10),
            silent: often(&mut rng, 5),
            held: often(&mut rng, 20),
            no_controller: often(&mut rng, 5),
            crash: often(&mut rng, 10),
            clock: often(&mut rng, 5),
        };
        World {
            quota: if rng.percent(30) { 1 + rng.roll(8) as u32 } else { u32::MAX },
            keeps_history: rng.percent(50),
            rng,
            now: 0.0,
            wall_offset: 1.7e9,
            settings,
            jobs: Vec::new(),
            kinds: Vec::new(),
            faults,
            next_engine: 0,
            query_until: 0.0,
            answer: Answer::Fresh,
            old: (0.0, BTreeMap::new()),
            controller_back: 0.0,
            rejected: Vec::new(),
            granted_core_s: 0.0,
            finished: 0,
        }
    }

    pub(super) fn cores(&self, job: &Job) -> f64 {
        f64::from(job.size * self.settings.shapes[job.shape].cpus_per_engine)
    }

    pub(super) fn shape_named(&self, name: &str) -> usize {
        self.settings.shapes.iter().position(|shape| shape.name == name).unwrap()
    }

    /// A user submits a map that some shape can run.
    pub(super) fn submit_map(&mut self) {
        let has_gpu = self.settings.shapes.iter().any(|shape| shape.name == "gpu");
        let needs_gpu = has_gpu && self.rng.percent(30);
        let cpu = &self.settings.shapes[self.shape_named("cpu")];
        let whole = cpu.full_job();
        let cpus = if needs_gpu || self.rng.percent(80) {
            1
        } else {
            1 + self.rng.roll(whole.into()) as u32
        };
        let walltimes = self.settings.shapes.iter().filter_map(|shape| shape.walltime_s);
        let longest = walltimes.fold(7200.0, f64::min) / 3.0;
        let seconds = if self.rng.percent(70) {
            self.rng.between(1.0, 120.0)
        } else {
            self.rng.between(60.0, longest)
        };
        let mut resources = TaskResources {
            cpus,
            ..TaskResources::default()
        };
        if needs_gpu {
            resources.gpus = GpuAmount { thousandths: 1000 };
        }
        self.kinds.push(Kind {
            request: Request { resources, mem_bytes: 0 },
            width: whole.div_ceil(whole / cpus) * u32::from(cpus > 1) + u32::from(cpus == 1),
            needs_gpu,
            seconds,
            limit_s: self.rng.percent(30).then_some(seconds * 1.5),
            ready: 1 + self.rng.roll(if seconds > 120.0 { 8 } else { 30 }),
            ended: 0,
        });
    }

    pub(super) fn advance(&mut self, seconds: f64) {
        let end = self.now + seconds;
        while self.now < end {
            self.now = (self.now + 10.0).min(end);
            self.tick();
        }
    }

    fn tick(&mut self) {
        let now = self.now;
        let running: u32 = self.jobs.iter().filter(|job| job.runs_since().is_some()).map(|job| job.size).sum();
        let mut room = self.quota.saturating_sub(running);
        for at in 0..self.jobs.len() {
            if !self.jobs[at].is_alive() {
                continue;
            }
            let job = &mut self.jobs[at];
            match job.life {
                Life::Delayed(until) if until <= now => job.life = Life::Queued,
                Life::Queued if job.grant <= now && room >= job.size => {
                    room -= job.size;
                    job.life = Life::Running { since: now };
                    self.start(at);
                }
                Life::Running { since } => self.run(at, since),
                _ => {}
            }
        }
    }

    fn start(&mut self, at: usize) {
        let (now, faults) = (self.now, self.faults);
        let rng = &mut self.rng;
        let job = &mut self.jobs[at];
        job.dies = if rng.percent(faults.early) {
            now + rng.between(1.0, 55.0)
        } else {
            f64::INFINITY
        };
        job.preempted = if rng.percent(faults.preempted) {
            now + rng.between(1.0, 3000.0)
        } else {
            f64::INFINITY
        };
        let delay = if rng.percent(faults.slow) {
            rng.between(60.0, 3000.0)
        } else {
            rng.between(2.0, 40.0)
        };
        let never = rng.percent(faults.never_registers);
        job.engines.clear();
        for _ in 0..job.size {
            self.next_engine += 1;
            job.engines.push(Engine {
                id: self.next_engine,
                registers: if never || job.dies.is_finite() {
                    f64::INFINITY
                } else {
                    now + delay
                },
                unit: None,
                finished: 0,
                has_left: false,
                silent_until: 0.0,
            });
        }
    }

    fn run(&mut self, at: usize, since: f64) {
        let now = self.now;
        let walltime = self.settings.shapes[self.jobs[at].shape].walltime_s.unwrap_or(f64::INFINITY);
        let job = &self.jobs[at];
        let endings = [
            (job.dies, JobOutcome::Itself),
            (job.preempted, JobOutcome::Preempted),
            (since + walltime, JobOutcome::TimedOut),
        ];
        if let Some((_, outcome)) = endings.into_iter().find(|(time, _)| *time <= now) {
            let requeued = outcome == JobOutcome::Preempted && self.settings.budget_core_h.is_none() && self.rng.percent(50);
            return self.end(at, outcome, requeued);
        }
        let cpus = job.size * self.settings.shapes[job.shape].cpus_per_engine;
        let has_gpu = !self.settings.shapes[job.shape].node.gpus.is_empty();
        let job = &mut self.jobs[at];
        for engine in &mut job.engines {
            if let Some((kind, _)) = engine.unit.filter(|(_, ends)| *ends <= now) {
                (engine.unit, engine.finished) = (None, engine.finished + 1);
                self.kinds[kind].ended += 1;
                self.finished += 1;
            }
        }
        let used = |job: &Job, kinds: &[Kind]| -> u32 {
            let units = job.engines.iter().filter_map(|engine| engine.unit);
            units.map(|(kind, _)| kinds[kind].request.resources.cpus).sum()
        };
        for index in 0..job.engines.len() {
            let engine = &job.engines[index];
            if engine.registers > now || engine.has_left || engine.unit.is_some() {
                continue;
            }
            if job.is_leaving {
                job.engines[index].has_left = true;
                continue;
            }
            let free = cpus - used(job, &self.kinds);
            let gpus_used = job
                .engines
                .iter()
                .filter_map(|e| e.unit)
                .any(|(kind, _)| self.kinds[kind].needs_gpu);
            let left = since + walltime - now;
            let may = |kind: &Kind| {
                let has = free >= kind.request.resources.cpus && (!kind.needs_gpu || (has_gpu && !gpus_used));
                kind.ready > 0 && has && kind.limit_s.is_none_or(|limit| limit <= left)
            };
            // Wide units first, as reserved nodes would do it.
            let found = (0..self.kinds.len()).filter(|kind| may(&self.kinds[*kind]));
            if let Some(kind) = found.max_by_key(|kind| self.kinds[*kind].width) {
                self.kinds[kind].ready -= 1;
                job.engines[index].unit = Some((kind, now + self.kinds[kind].seconds));
                if self.rng.percent(self.faults.silent) {
                    job.engines[index].silent_until = now + self.rng.between(10.0, 900.0);
                }
            }
        }
        if job.engines.iter().all(|engine| engine.has_left) {
            self.end(at, JobOutcome::Itself, false);
        }
    }

    /// Its units are ready again.
    fn end(&mut self, at: usize, outcome: JobOutcome, requeued: bool) {
        let (now, cores) = (self.now, self.cores(&self.jobs[at]));
        let job = &mut self.jobs[at];
        for engine in &mut job.engines {
            if let Some((kind, _)) = engine.unit.take() {
                self.kinds[kind].ready += 1;
            }
        }
        if let Some(since) = job.runs_since() {
            let walltime = self.settings.shapes[job.shape].walltime_s.unwrap_or(f64::INFINITY);
            let ran_s = (now - since).min(walltime);
            job.ran_s += ran_s;
            self.granted_core_s += ran_s * cores;
        }
        job.life = Life::Ended { at: now, outcome };
        if requeued {
            job.life = Life::Queued;
            job.grant = now + self.rng.between(30.0, 600.0);
        }
    }

    fn is_controller_reachable(&mut self) -> bool {
        if self.rng.percent(self.faults.no_controller) {
            self.controller_back = self.now + self.rng.between(10.0, 600.0);
        }
        self.now >= self.controller_back
    }

    /// What the deciding process sees. `elapsed_s`: None if it has just started.
    pub(super) fn observe(&mut self, elapsed_s: Option<f64>) -> Observation {
        let (now, faults) = (self.now, self.faults);
        if now >= self.query_until {
            let was_fresh = matches!(std::mem::replace(&mut self.answer, Answer::Fresh), Answer::Fresh);
            if was_fresh && self.rng.percent(faults.query) {
                let (answer, longest) = match self.rng.roll(3) {
                    0 => (Answer::None, 1200.0),
                    // It takes longer to believe that a job is gone.
                    1 => (Answer::Empty, 110.0),
                    _ => (Answer::Old, 60.0),
                };
                (self.answer, self.query_until) = (answer, now + self.rng.between(10.0, longest));
            }
        }
        if self.rng.percent(faults.clock) {
            self.wall_offset += self.rng.between(-7200.0, 7200.0);
        }
        let phases: BTreeMap<JobName, JobPhase> = self.jobs.iter().map(|job| (job.name.clone(), self.phase(job))).collect();
        let (answer_age_s, answer) = match self.answer {
            Answer::Fresh => {
                self.old = (now, phases.clone());
                (0.0, phases)
            }
            Answer::Old => (now - self.old.0, self.old.1.clone()),
            Answer::Empty => (0.0, phases.keys().map(|name| (name.clone(), JobPhase::Missing)).collect()),
            Answer::None => (0.0, BTreeMap::new()),
        };
        let is_answered = !matches!(self.answer, Answer::None);
        let is_reachable = self.is_controller_reachable();
        let keeps_history = self.keeps_history;
        let mut jobs = Vec::new();
        for job in &mut self.jobs {
            // It is found by its name.
            let phase = answer.get(&job.name).copied();
            job.is_known |= is_answered && matches!(phase, Some(JobPhase::Queued | JobPhase::Running));
            let is_old = matches!(job.life, Life::Ended { at, .. } if now > at + 900.0);
            if !job.is_known || is_old {
                continue;
            }
            let phase = match phase {
                _ if !is_answered => JobPhase::Unknown,
                Some(JobPhase::Ended(_)) if !keeps_history => JobPhase::Missing,
                Some(phase) => phase,
                None => JobPhase::Submitted,
            };
            let ended = matches!(job.life, Life::Ended { at, .. } if now < at + 60.0);
            let is_listed =
                |e: &&Engine| is_reachable && e.registers <= now && !e.has_left && (ended || matches!(job.life, Life::Running { .. }));
            let registered = job.engines.iter().filter(is_listed).map(|engine| ObservedEngine {
                id: EngineId(engine.id),
                activity: match engine.unit {
                    _ if ended || engine.silent_until > now => Activity::Silent,
                    Some(_) => Activity::Busy,
                    None => Activity::Idle,
                },
                finished: engine.finished,
            });
            jobs.push(ObservedJob {
                name: job.name.clone(),
                launch: job.launch,
                shape: self.settings.shapes[job.shape].name.clone(),
                engines: job.size,
                phase,
                reason: if job.life == Life::Queued {
                    "Priority".into()
                } else {
                    "exit code 1".into()
                },
                ran_s: (keeps_history && !job.is_alive() && job.launch.is_multiple_of(2)).then_some(job.ran_s),
                registered: registered.collect(),
                is_leaving: job.is_leaving,
                node: None::<NodeFacts>,
                ..ObservedJob::default()
            });
        }
        let work = self.kinds.iter().enumerate().map(|(at, kind)| ReadyWork {
            name: format!("map {at}"),
            request: kind.request.clone(),
            units: kind.ready,
            ended: kind.ended,
            mean_s: kind.seconds,
            limit_s: kind.limit_s,
        });
        Observation {
            now: UnixTime(self.now + self.wall_offset),
            elapsed_s,
            work: is_reachable.then(|| work.collect()),
            is_answered,
            answer_age_s,
            jobs,
            rejected: std::mem::take(&mut self.rejected),
            controls: Vec::new(),
        }
    }

    fn phase(&self, job: &Job) -> JobPhase {
        match job.life {
            Life::Delayed(_) => JobPhase::Missing,
            Life::Queued => JobPhase::Queued,
            Life::Running { .. } => JobPhase::Running,
            Life::Ended { outcome, .. } => JobPhase::Ended(Some(outcome)),
        }
    }

    pub(super) fn carry_out(&mut self, decision: &Decision) {
        let shape = self.shape_named(&decision.shape);
        match &decision.action {
            Action::Submit {
                launch,
                jobs,
                engines_per_job,
            } => self.submit(shape, *launch, *jobs, *engines_per_job),
            Action::CancelQueued { jobs } | Action::CancelUnregistered { jobs } => {
                let is_stuck = matches!(decision.action, Action::CancelUnregistered { .. });
                for at in self.named(jobs) {
                    if matches!(self.jobs[at].life, Life::Queued) != is_stuck && self.jobs[at].is_alive() {
                        self.end(at, JobOutcome::Cancelled, false);
                    }
                }
            }
            Action::Retire { jobs } | Action::Drain { jobs } => {
                for at in self.named(jobs) {
                    self.jobs[at].is_leaving = true;
                }
            }
            Action::GiveUp { .. } | Action::Pause | Action::Resume => {}
        }
    }

    fn named(&self, names: &[JobName]) -> Vec<usize> {
        (0..self.jobs.len()).filter(|at| names.contains(&self.jobs[*at].name)).collect()
    }

    fn submit(&mut self, shape: usize, launch: u64, jobs: u32, engines: u32) {
        let (now, faults) = (self.now, self.faults);
        let rng = &mut self.rng;
        if rng.percent(faults.lost) {
            return;
        }
        let mut accepted = jobs;
        let is_rejected = rng.percent(faults.rejected);
        if is_rejected {
            // Some systems take a part of what was asked.
            accepted = if rng.percent(80) { 0 } else { rng.roll(jobs.into()) as u32 };
        }
        let is_delayed = !is_rejected && rng.percent(faults.delayed);
        for element in 0..accepted {
            let wait = match rng.roll(100) {
                roll if roll < faults.held => rng.between(600.0, 7200.0),
                roll if roll < faults.held + faults.slow => rng.between(600.0, 18_000.0),
                _ => rng.between(0.0, 60.0),
            };
            let life = if is_delayed {
                Life::Delayed(now + rng.between(10.0, 440.0))
            } else {
                Life::Queued
            };
            self.jobs.push(Job {
                name: JobName(format!("e{launch}.{element}")),
                launch,
                shape,
                size: engines,
                life,
                grant: now + wait,
                dies: f64::INFINITY,
                preempted: f64::INFINITY,
                engines: Vec::new(),
                is_leaving: false,
                is_known: is_rejected || (!is_delayed && rng.percent(90)),
                ran_s: 0.0,
            });
        }
        if is_rejected {
            self.rejected.push(Rejection {
                launch,
                text: "QOSMaxSubmitJobPerUserLimit".into(),
            });
        }
    }

    /// A crash of the deciding process: what it had not reported is lost.
    pub(super) fn crash(&mut self) {
        self.rejected.clear();
    }

    /// From now on the system works.
    pub(super) fn calm(&mut self) {
        (self.faults, self.quota) = (Faults::default(), u32::MAX);
        (self.query_until, self.controller_back) = (0.0, 0.0);
        for job in &mut self.jobs {
            job.grant = job.grant.min(self.now + 60.0);
            job.preempted = f64::INFINITY;
            for engine in job.engines.iter_mut().filter(|engine| engine.registers.is_finite()) {
                engine.registers = engine.registers.min(self.now + 40.0);
            }
        }
    }

    pub(super) fn is_done(&self) -> bool {
        let is_busy = |job: &Job| job.is_alive() && job.engines.iter().any(|engine| engine.unit.is_some());
        self.kinds.iter().all(|kind| kind.ready == 0) && !self.jobs.iter().any(is_busy)
    }
}
