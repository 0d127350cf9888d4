//! Lives of an elastic cluster: first everything fails now and then, then the system works, and all work must get done.
use super::judge::Judge;
use super::system::{Job, World};
use crate::cluster::elastic::decide::{Outcome, decide};
use crate::cluster::elastic::decision::Action;
use crate::cluster::elastic::observation::Control;
use crate::cluster::elastic::state::ElasticState;
use crate::cluster::elastic::summary::{Summary, WhyNotMore};

struct Life {
    world: World,
    judge: Judge,
    state: ElasticState,
    stored: ElasticState,
    /// None after a start of the deciding process.
    decided: Option<f64>,
    controls: Vec<Control>,
    log: Vec<String>,
    last: Summary,
}

impl Life {
    fn new(seed: u64) -> Life {
        Life {
            world: World::new(seed),
            judge: Judge::new(),
            state: ElasticState::default(),
            stored: ElasticState::default(),
            decided: None,
            controls: Vec::new(),
            log: Vec::new(),
            last: Summary::default(),
        }
    }

    /// Time passes, then one decision, unless the process crashes on the way.
    fn step(&mut self, seconds: f64) -> Option<Outcome> {
        self.world.advance(seconds);
        self.judge.always(&self.world);
        let now = self.world.now;
        let mut seen = self.world.observe(self.decided.map(|then| now - then));
        seen.controls = self.controls.clone();
        let outcome = decide(&self.world.settings, &mut self.state, &seen);
        self.decided = Some(now);
        for decision in &outcome.decisions {
            self.log.push(format!("{now:.0}: {decision:?}"));
        }
        self.last = outcome.summary.clone();
        let crashes = self.world.rng.percent(self.world.faults.crash);
        let at = self.world.rng.roll(3);
        if crashes && at == 0 {
            self.crash();
            return None;
        }
        self.controls.clear();
        if outcome.must_store {
            self.stored = self.state.clone();
        }
        self.judge.decided(&self.world, &seen, &outcome);
        // A pause and its end are in the state that was stored.
        for decision in &outcome.decisions {
            if !(crashes && at == 1) || matches!(decision.action, Action::Pause | Action::Resume) {
                self.judge.carried_out(&self.world, &seen, decision);
                self.world.carry_out(decision);
            }
        }
        if crashes {
            self.crash();
        }
        Some(outcome)
    }

    fn crash(&mut self) {
        self.log.push(format!("{:.0}: crash", self.world.now));
        self.world.crash();
        self.judge.crash(&self.world);
        let stored = serde_json::to_string(&self.stored).unwrap();
        self.state = serde_json::from_str(&stored).unwrap();
        assert_eq!(self.state, self.stored);
        self.decided = None;
    }

    fn troubled(&mut self, steps: u32) {
        for _ in 0..steps {
            let rng = &mut self.world.rng;
            match rng.roll(100) {
                0..8 => self.world.submit_map(),
                8..10 => self.controls.push(Control::Pause(None)),
                10..16 => self.controls.push(Control::Resume(None)),
                16..18 => {
                    let more = rng.roll(6) as u32;
                    let shape = &mut self.world.settings.shapes[0];
                    shape.max = shape.min.max(shape.engines_per_job) + more;
                }
                _ => {}
            }
            let rng = &mut self.world.rng;
            let seconds = if rng.percent(80) { 10.0 } else { rng.between(1.0, 300.0) };
            self.step(seconds);
        }
    }

    /// The system works: everything gets done, then only `min` engines are left.
    fn calm(&mut self) {
        self.world.calm();
        self.controls.push(Control::Resume(None));
        self.step(10.0);
        let (mut is_spent, mut spare, mut unspent) = (false, 0.0, self.world.now);
        let start = self.world.now;
        while !self.world.is_done() && !is_spent {
            let outcome = self.step(self.pace());
            if outcome
                .iter()
                .flat_map(|o| &o.summary.shapes)
                .any(|s| matches!(s.why_not_more, WhyNotMore::Paused(_)))
            {
                self.controls.push(Control::Resume(None));
            }
            // Nothing runs, and the budget allows nothing.
            if !self.waits_for_budget(outcome.as_ref()) {
                unspent = self.world.now;
            }
            is_spent = self.world.now > unspent + 1500.0;
            let waits = self
                .world
                .jobs
                .iter()
                .filter(|job| job.is_alive())
                .all(|job| job.registered(self.world.now).count() == 0);
            spare = if waits { spare } else { self.world.now };
            let busy: u64 = self.world.kinds.iter().map(|kind| kind.ready).sum();
            assert!(
                self.world.now < start.max(spare) + 20_000.0 && self.world.now < start + 400_000.0,
                "{busy} units are never done"
            );
        }
        if is_spent {
            return self.assert_spent();
        }
        let done = self.world.now;
        let longest = self.world.settings.shapes.iter().map(|shape| shape.idle_s).fold(0.0, f64::max);
        while self.world.now < done + longest + 1000.0 {
            self.step(60.0);
        }
        // A job that reaches its walltime now is still to be replaced.
        while !self.is_at_rest() && self.world.now < done + longest + 5000.0 {
            self.step(60.0);
        }
        assert!(self.is_at_rest(), "too many or too few engines are left");
    }

    /// Only `min` engines are left, rounded up to whole jobs.
    fn is_at_rest(&self) -> bool {
        let may_be_less = self.world.settings.budget_core_h.is_some();
        self.world.settings.shapes.iter().enumerate().all(|(at, shape)| {
            let own = self.world.jobs.iter().filter(|job| job.is_alive() && job.shape == at);
            let left: u32 = own.map(|job| job.size).sum();
            (left >= shape.min || may_be_less) && left < shape.min + shape.full_job()
        })
    }

    /// Faster if only long units are left.
    fn pace(&self) -> f64 {
        let has_short = self.world.kinds.iter().any(|kind| kind.ready > 0 && kind.seconds < 200.0);
        if has_short { 45.0 } else { 85.0 }
    }

    fn waits_for_budget(&self, outcome: Option<&Outcome>) -> bool {
        let mut shapes = outcome.iter().flat_map(|outcome| &outcome.summary.shapes);
        shapes.any(|shape| matches!(shape.why_not_more, WhyNotMore::Budget { .. })) && !self.world.jobs.iter().any(Job::is_alive)
    }

    /// The budget is spent, by what jobs could have used at most.
    fn assert_spent(&self) {
        let budget = self.world.settings.budget_core_h.unwrap();
        let walltime = |job: &Job| self.world.settings.shapes[job.shape].walltime_s.unwrap_or(0.0) * self.world.cores(job);
        let most: f64 = self.world.jobs.iter().map(walltime).sum();
        let shapes = self.world.settings.shapes.iter();
        let job = shapes
            .map(|s| s.walltime_s.unwrap_or(0.0) * f64::from(s.full_job()))
            .fold(0.0, f64::max);
        assert!(
            most + job >= budget * 3600.0 - 1.0,
            "the budget is not spent: at most {most} of {}",
            budget * 3600.0
        );
    }
}

fn live(seed: u64) {
    let mut life = Life::new(seed);
    let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        life.world.submit_map();
        life.troubled(60);
        life.calm();
    }));
    if let Err(panic) = lived {
        eprintln!("{:?}", life.world.settings);
        life.log.iter().for_each(|line| eprintln!("{line}"));
        eprintln!("{:?}", life.last);
        eprintln!("this was the life of PCLUSTER_SEED={seed}, until {:.0} s", life.world.now);
        std::panic::resume_unwind(panic);
    }
}

/// `PCLUSTER_SEEDS` lives, 400 without it, shared out over two tests that run side by side.
fn lives(part: u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    match number("PCLUSTER_SEED") {
        Some(seed) => live(seed),
        None => (0..number("PCLUSTER_SEEDS").unwrap_or(400))
            .filter(|seed| seed % 2 == part)
            .for_each(live),
    }
}

#[test]
fn work_gets_done_within_all_limits_whatever_happens_1() {
    lives(0);
}

#[test]
fn work_gets_done_within_all_limits_whatever_happens_2() {
    lives(1);
}
