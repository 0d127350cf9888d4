//! What is done to the cluster: processes killed or stopped, alone or all at once, and a disk that is full for a while.
use super::processes::{self, Kind, Process};
use super::{Chaos, LEASE, SUCCESSOR_TIMEOUT};
use std::thread::sleep;
use std::time::{Duration, Instant};

impl Chaos {
    pub fn harm(&mut self) -> Result<(), String> {
        match self.dice.roll(100) {
            0..3 => self.stop_all(),
            3..5 => self.kill_all(),
            5..8 => self.fill_disk()?,
            _ => self.harm_one()?,
        }
        Ok(())
    }

    /// As a machine that is suspended, and resumed.
    fn stop_all(&mut self) {
        let until = Instant::now() + Duration::from_millis(500 + self.dice.roll(6000));
        for process in processes::of(&self.home) {
            self.stop(&process, until);
        }
        self.count("times all processes were stopped for a while");
    }

    /// As a machine that loses its power. What is stopped starts nothing else meanwhile.
    fn kill_all(&mut self) {
        let mut victims: Vec<Process> = Vec::new();
        loop {
            let there = processes::of(&self.home);
            let new: Vec<&Process> = there.iter().filter(|p| victims.iter().all(|v| v.pid != p.pid)).collect();
            if new.is_empty() {
                break;
            }
            new.iter().for_each(|p| processes::signal("STOP", p.pid));
            victims.extend(new.into_iter().cloned());
        }
        let has_controller = victims
            .iter()
            .any(|p| matches!(p.kind, Kind::Controller | Kind::ControllerSupervisor));
        self.lost += processes::slots(&victims) as u64 + u64::from(has_controller);
        victims.iter().for_each(|victim| self.kill(victim));
        self.count("times all processes were killed at once");
    }

    /// The profile's disk, with records and logs, is full for a while.
    fn fill_disk(&mut self) -> Result<(), String> {
        let Some(disk) = &self.disk else { return Ok(()) };
        disk.fill()?;
        sleep(Duration::from_millis(500 + self.dice.roll(4000)));
        if let Some(disk) = &self.disk {
            disk.make_room()?;
        }
        self.count("times the disk was full for a while");
        Ok(())
    }

    fn harm_one(&mut self) -> Result<(), String> {
        let there = processes::of(&self.home);
        let (kind, what) = match self.dice.roll(100) {
            0..20 => (Kind::Controller, "controllers killed"),
            20..38 => (Kind::Engine, "engines killed"),
            38..56 => (Kind::Worker, "workers killed"),
            56..60 => (Kind::Interpreter, "warm interpreters killed"),
            60..68 => (Kind::ControllerSupervisor, "supervisors of controllers killed"),
            68..73 => (
                Kind::ControllerSupervisor,
                "supervisors of controllers killed, and then their controllers",
            ),
            73..79 => (Kind::EngineSupervisor, "supervisors of engines killed"),
            79..86 => (Kind::EngineSupervisor, "supervisors of engines killed, and then their engines"),
            86..88 => (Kind::Controller, "controllers killed together with their supervisors"),
            88..90 => (Kind::Engine, "engines killed together with their supervisors"),
            90..95 => (Kind::Engine, "engines stopped for a while"),
            _ => (Kind::Engine, "engines stopped for longer than their lease"),
        };
        let those: Vec<&Process> = there.iter().filter(|p| p.kind == kind).collect();
        if those.is_empty() {
            return Ok(());
        }
        let victim = those[self.dice.roll(those.len() as u64) as usize].clone();
        if what.contains("stopped") {
            let shortest = if what.contains("lease") { 5000 } else { 200 };
            let pause = Duration::from_millis(shortest + self.dice.roll(4000));
            self.stop(&victim, Instant::now() + pause);
        } else if what.contains("together") {
            // What is stopped starts no other supervisor.
            processes::signal("STOP", victim.pid);
            there
                .iter()
                .filter(|p| p.session == victim.session && p.pid != victim.pid && p.kind != Kind::Worker)
                .for_each(|p| processes::signal("KILL", p.pid));
            self.kill(&victim);
            self.lost += 1;
        } else {
            let is_supervisor = matches!(kind, Kind::ControllerSupervisor | Kind::EngineSupervisor);
            if is_supervisor {
                // Only who runs can see that.
                self.wake(true);
            }
            self.kill(&victim);
            if is_supervisor {
                self.succeeded(&victim)?;
            }
            if what.contains("and then") {
                let supervised = if kind == Kind::EngineSupervisor {
                    Kind::Engine
                } else {
                    Kind::Controller
                };
                let there = processes::of(&self.home);
                let orphans = there.iter().filter(|p| p.session == victim.session && p.kind == supervised);
                orphans.for_each(|orphan| self.kill(orphan));
            }
        }
        self.count(what);
        Ok(())
    }

    fn stop(&mut self, victim: &Process, until: Instant) {
        processes::signal("STOP", victim.pid);
        self.stopped.push((victim.pid, until));
        if victim.kind == Kind::Engine && until >= Instant::now() + LEASE / 2 {
            self.stopped_long.insert(victim.pid);
        }
    }

    fn kill(&mut self, victim: &Process) {
        if victim.kind == Kind::Interpreter {
            // Its engine ends all workers that it has forked. What is stopped forks no more.
            processes::signal("STOP", victim.pid);
            let workers = processes::of(&self.home);
            self.gone.extend(workers.iter().filter(|p| p.parent == victim.pid).map(|p| p.pid));
        }
        processes::signal("KILL", victim.pid);
        if matches!(victim.kind, Kind::Engine | Kind::Worker | Kind::Interpreter) {
            self.gone.insert(victim.pid);
        }
    }

    /// Waits until another supervisor has taken the place of this one, if there is anything left to supervise.
    fn succeeded(&mut self, victim: &Process) -> Result<(), String> {
        let until = Instant::now() + SUCCESSOR_TIMEOUT;
        loop {
            let there = processes::of(&self.home);
            let mut of_session = there
                .iter()
                .filter(|p| p.session == victim.session && p.pid != victim.pid)
                .peekable();
            if of_session.peek().is_none() {
                // It was about to bring back what had been killed before.
                self.lost += 1;
                return Ok(());
            }
            if of_session.any(|p| p.kind == victim.kind) {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(format!(
                    "no other supervisor has taken the place of {} ({:?}, session {}) within {} s; these processes run:\n{}",
                    victim.pid,
                    victim.kind,
                    victim.session,
                    SUCCESSOR_TIMEOUT.as_secs(),
                    processes::listed(&there)
                ));
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// Engines that have been stopped for long enough go on.
    pub fn wake(&mut self, all: bool) {
        self.stopped.retain(|(pid, until)| {
            let due = all || Instant::now() >= *until;
            if due {
                processes::signal("CONT", *pid);
            }
            !due
        });
    }
}
