//! `cargo xtask chaos --minutes N [--seed S]`: a real cluster under load, whose controller, engines, workers and supervisors
//! are killed or stopped at random.
//!
//! The load: maps of functions, commands with large outputs, large values, reductions, chains, detached maps, and an unmodified
//! ipyparallel client with many outstanding requests. Each execution of a task writes a line into a ledger, independent of pcluster.
//! At the end every map must have printed
//! the right values, every task must be done once according to the records, and of a task that was executed more than
//! once at most one execution may have been by a process that was neither killed nor given up by the controller because
//! its lease had run out. Whatever is killed must come back by itself, unless it was killed together with its supervisor.
//! The seed determines the faults and their targets, but not the scheduling of the processes.
//!
//! Parts: `workload` (submitted work), `faults` (injected faults), `disk`, `processes` (the running ones), `verdict` (invariants).
mod disk;
mod faults;
mod processes;
mod verdict;
mod workload;

use crate::reasons::last_lines;
use crate::run::{captured, program};
use crate::{Places, python};
use disk::Disk;
use processes::{Kind, Process};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use workload::{CLIENT, Map, WORK};

/// As [`SETTINGS`] have it.
const ENGINES: usize = 3;
/// Maps at a time.
const MAPS: usize = 3;
/// The timeouts are far above what a busy machine needs: what they find does not come at all.
const SUCCESSOR_TIMEOUT: Duration = Duration::from_secs(90);
/// From a `stop` to the end of the last process.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// After the last kill, without any task executed or any command ended.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(300);
/// Until the first cluster runs, and until the last one is whole again.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(180);
/// As [`SETTINGS`] have it.
const LEASE: Duration = Duration::from_secs(4);
/// Short, so that engines which are stopped lose their leases, and tasks that they have run are run elsewhere too.
const SETTINGS: [&str; 8] = [
    "--set",
    "launcher.n=3",
    "--set",
    "controller.heartbeat_interval_ms=500",
    "--set",
    "controller.lease_ms=4000",
    "--set",
    "launcher.engines_timeout_ms=8000",
];

pub fn run(places: &Places, minutes: f64, seed: Option<u64>) -> Result<(), String> {
    // Copied away from the sources, this program uses the pcluster that was copied with it.
    if places.target.starts_with(&places.root) {
        captured(&mut program(&places.root, &["cargo", "build", "--quiet", "--bin", "pcluster"]))?;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = seed.unwrap_or(now.as_micros() as u64);
    println!("seed {seed}, {minutes} minutes");
    let mut chaos = Chaos::new(places, seed)?;
    let done = chaos.campaign(Duration::from_secs_f64(minutes * 60.0));
    let done = done.map_err(|why| format!("{}\n{why}", chaos.evidence()));
    let left = chaos.end();
    let done = done.and_then(|verdict| match left.is_empty() {
        true => Ok(verdict),
        false => Err(format!(
            "{} processes were left {} s after the stop:\n{}",
            left.len(),
            STOP_TIMEOUT.as_secs(),
            processes::listed(&left)
        )),
    });
    println!("{}", chaos.counts_as_text());
    match done {
        Ok(verdict) => {
            let _ = fs::remove_dir_all(&chaos.home);
            println!("{verdict}");
            Ok(())
        }
        Err(why) => {
            if chaos.disk.is_some() {
                // Its disk goes with it.
                let copy = ["cp", "--archive", "ipython", "ipython-copy"];
                let _ = captured(&mut program(&chaos.home, &copy));
            }
            Err(format!("{why}\nseed {seed}; what is left to look at: {}", chaos.home.display()))
        }
    }
}

struct Chaos {
    pcluster: PathBuf,
    home: PathBuf,
    /// A Python with ipyparallel, if there is one.
    client_python: Option<String>,
    /// What the profile is on, where it could be mounted.
    disk: Option<Disk>,
    dice: Dice,
    maps: Vec<Map>,
    next_input: u64,
    counts: BTreeMap<&'static str, u64>,
    /// Engines and workers that were killed, or may have been ended by a command that failed.
    gone: BTreeSet<u32>,
    stopped: Vec<(u32, Instant)>,
    /// Engines that may have lost their leases because they were stopped.
    stopped_long: BTreeSet<u32>,
    /// Controllers and engines that were killed together with their supervisors, and those that were brought back by hand.
    lost: u64,
    healed: u64,
}

impl Chaos {
    fn new(places: &Places, seed: u64) -> Result<Chaos, String> {
        python::find(places)?;
        let home = places.target.join(format!("chaos-{}", std::process::id()));
        let failed = |e: std::io::Error| format!("cannot make {}: {e}", home.display());
        fs::create_dir_all(home.join("ipython")).map_err(failed)?;
        fs::write(home.join("work.py"), WORK).map_err(failed)?;
        fs::write(home.join("client.py"), CLIENT).map_err(failed)?;
        let disk = Disk::at(&home.join("ipython"));
        if disk.is_none() {
            println!("left out: a disk that is full for a while (only root can mount one)");
        }
        let client_python = python_with_ipyparallel(places);
        if client_python.is_none() {
            println!("left out: an ipyparallel client (there is no Python with ipyparallel; `cargo xtask test` makes one)");
        }
        Ok(Chaos {
            pcluster: places.pcluster.clone(),
            client_python,
            disk,
            home,
            dice: Dice(seed | 1),
            maps: Vec::new(),
            next_input: 0,
            counts: BTreeMap::new(),
            gone: BTreeSet::new(),
            stopped: Vec::new(),
            stopped_long: BTreeSet::new(),
            lost: 0,
            healed: 0,
        })
    }

    fn campaign(&mut self, time: Duration) -> Result<String, String> {
        self.start_first()?;
        let until = Instant::now() + time;
        while Instant::now() < until {
            // A map that finds no controller is refused, which tests nothing.
            if self.heal() {
                self.submit()?;
            }
            let pause = 100 + self.dice.roll(1200);
            sleep(Duration::from_millis(pause));
            self.harm()?;
            self.wake(false);
        }
        self.wake(true);
        self.finish()?;
        self.whole()?;
        if self.healed > self.lost {
            return Err(format!(
                "{} had to be brought back by hand, and only {} were killed together with their supervisors",
                self.healed, self.lost
            ));
        }
        verdict::of(self)
    }

    /// Engines of a busy machine may need longer than the settings give them.
    fn start_first(&mut self) -> Result<(), String> {
        let until = Instant::now() + WHOLE_TIMEOUT;
        loop {
            match self.pcluster(&start()) {
                Ok(_) => return Ok(()),
                Err(why) if Instant::now() >= until => return Err(why),
                Err(why) => println!("the first start, which is repeated: {why}"),
            }
        }
    }

    /// Waits for all that was begun.
    fn finish(&mut self) -> Result<(), String> {
        let (mut progress, mut since) = (self.progress(), Instant::now());
        while self.unfinished() + self.clients_running() > 0 {
            let now = self.progress();
            if now != progress {
                (progress, since) = (now, Instant::now());
            }
            if since.elapsed() >= PROGRESS_TIMEOUT {
                let open = self.maps.iter().filter(|m| m.code.is_none());
                let names: Vec<String> = open.map(|m| format!("{} ({:?}, {} tasks)", m.name, m.workload, m.count)).collect();
                return Err(format!(
                    "no task was executed for {} s, and these maps are not done: {}",
                    PROGRESS_TIMEOUT.as_secs(),
                    names.join(", ")
                ));
            }
            self.heal();
            sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Executions so far, and commands that still run.
    fn progress(&mut self) -> (u64, usize) {
        let length = |name: &str| fs::metadata(self.home.join(name)).map_or(0, |file| file.len());
        let executions = length("ledger") + length("ledger-of-requests");
        (executions, self.unfinished() + self.clients_running())
    }

    /// What a report of a failure needs, while the cluster still runs.
    fn evidence(&self) -> String {
        let log = fs::read(self.home.join("ipython/profile_default/log/controller.log")).unwrap_or_default();
        let log = last_lines(&String::from_utf8_lossy(&log), 12);
        let shown = |words: &[&str]| last_lines(&self.pcluster(words).unwrap_or_else(|why| why), 12);
        format!(
            "what runs:\n{}\nthe end of the controller's log:\n{log}\npcluster engines:\n{}\npcluster results --pending:\n{}",
            processes::listed(&processes::of(&self.home)),
            shown(&["engines"]),
            shown(&["results", "--pending"])
        )
    }

    /// All expected engines are registered.
    fn whole(&mut self) -> Result<(), String> {
        let until = Instant::now() + WHOLE_TIMEOUT;
        loop {
            self.heal();
            let listed = self.pcluster(&["engines", "--json"]).unwrap_or_default();
            let (all, silent) = (listed.matches("\"uuid\"").count(), listed.matches("\"silent\"").count());
            if all == ENGINES && silent == 0 {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(format!("the engine set is not whole again: {listed}"));
            }
            sleep(Duration::from_millis(200));
        }
    }

    /// Brings back by hand what was killed together with its supervisor. Whether that succeeded, if there was any.
    fn heal(&mut self) -> bool {
        let there = processes::of(&self.home);
        let has = |kind: Kind| there.iter().any(|p| p.kind == kind);
        let engines = processes::slots(&there);
        if !has(Kind::Controller) && !has(Kind::ControllerSupervisor) {
            let silent = !self.stopped.is_empty() && self.dice.roll(2) == 0;
            let what = match silent {
                true => "pcluster start beside an engine that is stopped",
                false => {
                    self.wake(true);
                    "pcluster start"
                }
            };
            // It brings the missing engines back, too.
            self.command(what, &start(), 1 + (ENGINES - engines.min(ENGINES)) as u64)
        } else if engines < ENGINES {
            // Engines that are waited for must not be stopped.
            self.wake(true);
            let missing = ENGINES - engines;
            self.command("pcluster engines add", &["engines", "add", &missing.to_string()], missing as u64)
        } else {
            true
        }
    }

    /// One that brings back `healed` processes. Whether it did.
    fn command(&mut self, what: &'static str, words: &[&str], healed: u64) -> bool {
        self.count(what);
        if let Err(why) = self.pcluster(words) {
            // What it had started it has ended again, whatever that was doing.
            let alive: BTreeSet<u32> = processes::of(&self.home).iter().map(|p| p.pid).collect();
            let known = verdict::read_ledger(self).unwrap_or_default();
            let pids = known.into_values().flatten().flat_map(|(engine, worker)| [engine, worker]);
            self.gone.extend(pids.filter(|pid| !alive.contains(pid)));
            self.count("commands that failed and were repeated");
            println!("{what}: {why}");
            sleep(Duration::from_millis(500));
            false
        } else {
            self.healed += healed;
            true
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn command_of(&self, words: &[&str]) -> Command {
        let pcluster = self.pcluster.to_string_lossy();
        self.other_program(&[&[&*pcluster], words].concat())
    }

    /// With the arguments $1, $2, …
    fn script(&self, text: &str, arguments: &[&str]) -> Command {
        self.other_program(&[&["sh", "-c", text, "sh"], arguments].concat())
    }

    fn other_program(&self, words: &[&str]) -> Command {
        let mut command = program(&self.home, words);
        command.env("IPYTHONDIR", self.home.join("ipython"));
        for name in ["PCLUSTER_PROFILE", "PCLUSTER_CLUSTER_ID", "VIRTUAL_ENV", "CONDA_PREFIX"] {
            command.env_remove(name);
        }
        // As where it is activated: the engines use it, and serve ipyparallel's clients.
        if let Some(environment) = self.client_python.as_deref().and_then(|python| python.strip_suffix("/bin/python")) {
            command.env("VIRTUAL_ENV", environment);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn pcluster(&self, words: &[&str]) -> Result<String, String> {
        captured(&mut self.command_of(words))
    }

    /// Nothing of it stays running; those that had to be ended.
    fn end(&mut self) -> Vec<Process> {
        self.wake(true);
        let _ = self.disk.as_ref().map(Disk::make_room);
        let _ = self.pcluster(&["stop"]);
        for map in &mut self.maps {
            let _ = map.child.kill();
            let _ = map.child.wait();
        }
        let until = Instant::now() + STOP_TIMEOUT;
        let mut left = Vec::new();
        loop {
            let running = processes::of(&self.home);
            if running.is_empty() {
                return left;
            }
            if Instant::now() >= until {
                running.iter().for_each(|p| processes::signal("KILL", p.pid));
                left.extend(running);
            }
            sleep(Duration::from_millis(100));
        }
    }

    fn counts_as_text(&self) -> String {
        let lines: Vec<String> = self.counts.iter().map(|(what, count)| format!("{count:6} {what}")).collect();
        lines.join("\n")
    }
}

/// That of the tests, if it was made.
fn python_with_ipyparallel(places: &Places) -> Option<String> {
    let python = places.target.join("python/bin/python").to_string_lossy().into_owned();
    captured(&mut program(&places.root, &[&python, "-c", "import ipyparallel"])).ok()?;
    Some(python)
}

fn start() -> Vec<&'static str> {
    [&["start"][..], &SETTINGS].concat()
}

/// A small seeded generator (xorshift64*).
struct Dice(u64);

impl Dice {
    /// Below `sides`, which is not 0.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }
}
