//! `cargo xtask bench start`: the time of `pcluster start` until n engines have registered, on this host and on a local Slurm and Grid
//! Engine; for comparison, ipyparallel's cluster on that Slurm, and an array of n empty jobs.
use super::cluster::isolated;
use super::numbers::{Numbers, publish, table};
use super::tools::Tools;
use super::{report, timed};
use crate::Places;
use crate::python;
use crate::run::{captured, program};
use crate::schedulers::{self, Up};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The batch systems have slots for the largest number.
const ENGINES: [u32; 3] = [1, 16, 64];
const IPYPARALLEL: &str = "ipyparallel on slurm";
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// For an array of jobs.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Where engines start.
struct Site<'a> {
    tools: &'a Tools,
    launcher: &'static str,
    up: Option<Up<'a>>,
    /// Commands that list the jobs, print the version, and submit `N` jobs in `DIR`.
    commands: [&'static str; 3],
}

const SLURM: [&str; 3] = [
    "squeue --noheader",
    "sinfo --version",
    "sbatch --chdir DIR --output /dev/null --array 1-N DIR/true.sh",
];
const SGE: [&str; 3] = [
    "qstat -u *",
    "qstat -help",
    "qsub -wd DIR -S /bin/sh -j y -o /dev/null -t 1-N DIR/true.sh",
];

pub fn run(places: &Places, quick: bool) -> Result<(), String> {
    let rounds = if quick { 1 } else { 3 };
    let mut tools = Tools::prepare(places, quick, &[], false)?;
    let stock = python::test_environment(places);
    tools.missing.extend(stock.as_ref().err().map(|why| format!("ipyparallel ({why})")));
    let mut numbers = Numbers::default();
    let mut columns = vec!["local".to_string()];
    let local = |tools| Site {
        tools,
        launcher: "local",
        up: None,
        commands: SLURM,
    };
    report("local", local(&tools).measure(rounds, None, &mut numbers));
    for scheduler in &schedulers::WIDE {
        let up = match scheduler.up(places) {
            Ok(up) => up,
            Err(not_up) => {
                println!("  {}: {}", scheduler.name, not_up.reason);
                tools.missing.push(format!("{} ({})", scheduler.name, not_up.summary()));
                continue;
            }
        };
        let site = Site {
            tools: &tools,
            launcher: scheduler.name,
            up: Some(up),
            commands: if scheduler.name == "slurm" { SLURM } else { SGE },
        };
        let stock = stock.as_deref().ok().filter(|_| scheduler.name == "slurm");
        columns.push(scheduler.name.into());
        columns.extend(stock.map(|_| IPYPARALLEL.into()));
        columns.push(floor_of(scheduler.name));
        report(scheduler.name, site.measure(rounds, stock, &mut numbers));
        let version = captured(&mut site.command(&site.words(1, 0)));
        drop(site);
        tools
            .versions
            .extend(version.ok().and_then(|text| Some(text.lines().next()?.trim().to_string())));
    }
    let pages = [("docs/explanation/performance.md", lines(&columns, &numbers))];
    publish(places, &tools, rounds, quick, "cargo xtask bench start", &pages)
}

fn floor_of(system: &str) -> String {
    format!("*limit: {system} alone*")
}

impl Site<'_> {
    /// `stock`: a Python with ipyparallel, for the comparison.
    fn measure(&self, rounds: usize, stock: Option<&Path>, numbers: &mut Numbers) -> Result<(), String> {
        let mut add = |column: &str, n: u32, seconds: f64| {
            println!("    {column}: {n} after {seconds:.2} s");
            numbers.add(format!("{column} {n}"), seconds);
        };
        for n in (0..rounds).flat_map(|_| ENGINES) {
            add(self.launcher, n, self.start(n)?);
            match stock.map(|python| self.start_stock(python, n)) {
                Some(Ok(seconds)) => add(IPYPARALLEL, n, seconds),
                Some(Err(why)) => println!("    ipyparallel: {n} engines: {why}"),
                None => {}
            }
            if self.up.is_some() {
                add(&floor_of(self.launcher), n, self.floor(n)?);
            }
        }
        Ok(())
    }

    fn folder(&self) -> std::path::PathBuf {
        self.tools.folder.join("start-floor")
    }

    fn words(&self, command: usize, n: u32) -> Vec<String> {
        let (folder, last) = (self.folder(), format!("1-{n}"));
        let words = self.commands[command].split(' ');
        words
            .map(|word| word.replace("DIR", &folder.to_string_lossy()).replace("1-N", &last))
            .collect()
    }

    /// A command in the environment of the batch system.
    fn command<S: AsRef<str>>(&self, words: &[S]) -> Command {
        let mut all = Vec::new();
        let file = self
            .up
            .as_ref()
            .map(|up| up.directory().join("env.sh").to_string_lossy().into_owned());
        if let Some(file) = &file {
            all.extend(["bash", "-c", ". \"$0\" && exec \"$@\"", file]);
        }
        all.extend(words.iter().map(AsRef::as_ref));
        isolated(program(&self.tools.root, &all), &self.tools.folder.join("start-ipython"))
    }

    /// Seconds until the command returns, when all engines have registered. Stops them afterwards.
    fn start(&self, n: u32) -> Result<f64, String> {
        let (pcluster, python) = (self.tools.pcluster.to_string_lossy(), self.tools.python.to_string_lossy());
        let stop = || captured(&mut self.command(&[&*pcluster, "stop"]));
        // Stops the cluster of an interrupted run.
        let _ = stop();
        let words = [
            &*pcluster,
            "start",
            "-n",
            &n.to_string(),
            "--python",
            &python,
            "--launcher",
            self.launcher,
        ];
        let seconds = timed(&mut self.command(&words));
        let stopped = stop();
        let seconds = seconds?;
        stopped?;
        self.wait_for_queue()?;
        Ok(seconds)
    }

    /// The same for ipyparallel's cluster, whose engines are a job of the same system.
    fn start_stock(&self, python: &Path, n: u32) -> Result<f64, String> {
        let script = self.tools.root.join("benches/peers/ipcluster_start.py");
        let words = [
            &*python.to_string_lossy(),
            &*script.to_string_lossy(),
            &n.to_string(),
            self.launcher,
        ];
        let mut command = self.command(&words);
        // ipyparallel's batch launchers write their scripts into the working directory.
        command
            .current_dir(&self.tools.folder)
            .env("IPYTHONDIR", self.tools.folder.join("start-ipyparallel"));
        let output = captured(&mut command)?;
        self.wait_for_queue()?;
        let seconds = output.lines().rev().find_map(|line| line.trim().parse().ok());
        seconds.ok_or_else(|| format!("ipcluster_start.py did not print its time: {output}"))
    }

    /// Seconds until each job of an array has created a file.
    fn floor(&self, n: u32) -> Result<f64, String> {
        let folder = self.folder();
        let _ = fs::remove_dir_all(&folder);
        let text = "#!/bin/sh\n: > \"done-${SLURM_ARRAY_TASK_ID:-$SGE_TASK_ID}\"\n";
        let written = fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join("true.sh"), text));
        written.map_err(|e| format!("cannot write to {}: {e}", folder.display()))?;
        let began = Instant::now();
        captured(&mut self.command(&self.words(2, n)))?;
        self.wait_until("an array of jobs to run", || {
            let entries = fs::read_dir(&folder).map_err(|e| format!("cannot read {}: {e}", folder.display()))?;
            let done = entries
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with("done-"));
            Ok(done.count() == n as usize)
        })?;
        let seconds = began.elapsed().as_secs_f64();
        self.wait_for_queue()?;
        Ok(seconds)
    }

    fn wait_for_queue(&self) -> Result<(), String> {
        let is_empty = || Ok(self.up.is_none() || captured(&mut self.command(&self.words(0, 0)))?.trim().is_empty());
        self.wait_until("the queue to be empty", is_empty)
    }

    fn wait_until(&self, what: &str, is_so: impl Fn() -> Result<bool, String>) -> Result<(), String> {
        let deadline = Instant::now() + TIMEOUT;
        while !is_so()? {
            if Instant::now() >= deadline {
                return Err(format!(
                    "{}: timed out waiting for {what} after {} s",
                    self.launcher,
                    TIMEOUT.as_secs()
                ));
            }
            sleep(POLL_INTERVAL);
        }
        Ok(())
    }
}

/// One line per number of engines, one column per launcher.
fn lines(columns: &[String], numbers: &Numbers) -> String {
    let head: Vec<&str> = std::iter::once("engines").chain(columns.iter().map(String::as_str)).collect();
    let rows = ENGINES.map(|n| {
        let cells = columns
            .iter()
            .map(|column| numbers.cell(&format!("{column} {n}"), |s| format!("{s:.2} s")));
        std::iter::once(n.to_string()).chain(cells).collect::<Vec<_>>()
    });
    table(&head, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_per_number_and_a_dash_for_missing_values() {
        let mut numbers = Numbers::default();
        [3.0, 1.0, 2.0].into_iter().for_each(|seconds| numbers.add("local 1", seconds));
        numbers.add(format!("{} 16", floor_of("slurm")), 0.25);
        assert_eq!(
            lines(&["local".to_string(), floor_of("slurm")], &numbers),
            "| engines | local | *limit: slurm alone* |\n|---|--:|--:|\n| 1 | 2.00 s | – |\n| 16 | – | 0.25 s |\n| 64 | – | – |\n"
        );
    }
}
