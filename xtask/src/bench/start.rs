//! `cargo xtask bench start`: the time of `pcluster start` until n engines have registered, on this host and on a local Slurm and Grid
//! Engine; for comparison, the time of ipyparallel's cluster on that Slurm, and of the batch system itself for an array of n empty
//! jobs.
use super::pages;
use super::table::{self, median};
use super::tools::Tools;
use crate::Places;
use crate::python;
use crate::run::{captured, program};
use crate::schedulers::{self, Up};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

const MARK: &str = "cargo xtask bench start";
/// The batch systems have slots for the largest number.
const ENGINES: [u32; 3] = [1, 16, 64];
const IPYPARALLEL: &str = "ipyparallel on slurm";
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// The timeout for an array of jobs.
const LONGEST: Duration = Duration::from_secs(300);

/// Seconds of each round, by column and number of engines.
type Found = BTreeMap<(String, u32), Vec<f64>>;

/// With `quick` once, of the development build, and only printed.
pub fn run(places: &Places, quick: bool) -> Result<(), String> {
    let rounds = if quick { 1 } else { 3 };
    let mut tools = Tools::alone(places, &python::find(places)?, quick)?;
    // Where ipyparallel is; without it that column is missing.
    let stock = python::test_environment(places);
    if let Err(why) = &stock {
        tools.missing.push(format!("ipyparallel ({why})"));
    }
    let stock = stock.ok();
    let mut found = Found::new();
    let mut columns = vec!["local".to_string()];
    said("local", &measured(&tools, &Site::Here, rounds, None, &mut found));
    for scheduler in &schedulers::WIDE {
        let up = match scheduler.up(places) {
            Ok(up) => up,
            Err(not_up) => {
                println!("  {}: {}", scheduler.name, not_up.reason);
                tools.missing.push(format!("{} ({})", scheduler.name, not_up.summary()));
                continue;
            }
        };
        let site = Site::Batch(scheduler.name, up);
        tools.versions.extend(site.version(&tools));
        columns.push(scheduler.name.to_string());
        let stock = stock.as_deref().filter(|_| scheduler.name == "slurm");
        columns.extend(stock.map(|_| IPYPARALLEL.to_string()));
        columns.push(floor_of(scheduler.name));
        said(scheduler.name, &measured(&tools, &site, rounds, stock, &mut found));
    }
    let build = if quick { "The development build; one round.\n" } else { "" };
    let text = format!("{}{build}\n{}", table::head(places, rounds, &tools), table(&columns, &found));
    let kept = tools.folder.join("start.md");
    fs::write(&kept, &text).map_err(|e| format!("cannot write {}: {e}", kept.display()))?;
    println!("\n{text}");
    if quick {
        println!("(--quick: no page is changed; the table is in {})", kept.display());
        return Ok(());
    }
    pages::put_marked(&places.root.join("docs/explanation/performance.md"), MARK, &text)
}

fn said(what: &str, done: &Result<(), String>) {
    match done {
        Ok(()) => println!("  {what}"),
        Err(why) => println!("  {what} failed: {why}"),
    }
}

fn floor_of(system: &str) -> String {
    format!("*limit: {system} alone*")
}

/// Where engines are started.
enum Site<'a> {
    Here,
    Batch(&'static str, Up<'a>),
}

/// `stock`: a Python with ipyparallel, where that is to be compared with.
fn measured(tools: &Tools, site: &Site, rounds: usize, stock: Option<&Path>, found: &mut Found) -> Result<(), String> {
    for _ in 0..rounds {
        for n in ENGINES {
            let seconds = site.start(tools, n)?;
            println!("    {}: {n} engines after {seconds:.2} s", site.launcher());
            found.entry((site.launcher().into(), n)).or_default().push(seconds);
            if let Some(python) = stock {
                // Continue if ipyparallel fails with this many engines.
                match site.start_stock(tools, python, n) {
                    Ok(seconds) => {
                        println!("    ipyparallel: {n} engines after {seconds:.2} s");
                        found.entry((IPYPARALLEL.into(), n)).or_default().push(seconds);
                    }
                    Err(why) => println!("    ipyparallel: {n} engines: {why}"),
                }
            }
            if let Site::Batch(name, _) = site {
                let seconds = site.floor(tools, n)?;
                println!("    {name}: an array of {n} has run after {seconds:.2} s");
                found.entry((floor_of(name), n)).or_default().push(seconds);
            }
        }
    }
    Ok(())
}

impl Site<'_> {
    fn launcher(&self) -> &'static str {
        match self {
            Site::Here => "local",
            Site::Batch(name, _) => name,
        }
    }

    /// A command in the environment of the batch system.
    fn command(&self, tools: &Tools, words: &[&str]) -> Command {
        let mut command = match self {
            Site::Here => program(&tools.root, words),
            Site::Batch(_, up) => {
                let file = up.directory().join("env.sh");
                let mut all = vec!["bash", "-c", ". \"$0\" && exec \"$@\""];
                let file = file.to_string_lossy();
                all.push(&file);
                all.extend(words);
                program(&tools.root, &all)
            }
        };
        command.env("IPYTHONDIR", tools.folder.join("start-ipython"));
        for name in ["PCLUSTER_PROFILE", "PCLUSTER_CLUSTER_ID"] {
            command.env_remove(name);
        }
        command
    }

    /// Seconds until the command returns, when all engines have registered. Stops them afterwards.
    fn start(&self, tools: &Tools, n: u32) -> Result<f64, String> {
        let (pcluster, python) = (tools.pcluster.to_string_lossy(), tools.python.to_string_lossy());
        let stop = || captured(&mut self.command(tools, &[&pcluster, "stop"]));
        // Stops what an interrupted run has left.
        let _ = stop();
        let count = n.to_string();
        let words = [&pcluster, "start", "-n", &count, "--python", &python, "--launcher", self.launcher()];
        let began = Instant::now();
        let started = captured(&mut self.command(tools, &words));
        let seconds = began.elapsed().as_secs_f64();
        let stopped = stop();
        started?;
        stopped?;
        self.wait_until("the queue to be empty", || Ok(self.queue(tools)?.is_empty()))?;
        Ok(seconds)
    }

    /// The same for ipyparallel's cluster, whose engines are a job of the same system.
    fn start_stock(&self, tools: &Tools, python: &Path, n: u32) -> Result<f64, String> {
        let script = tools.root.join("benches/peers/ipcluster_start.py");
        let (python, script, count) = (python.to_string_lossy(), script.to_string_lossy(), n.to_string());
        let words = [&*python, &*script, &count, self.launcher()];
        let mut command = self.command(tools, &words);
        // ipyparallel's batch launchers write their scripts into the working directory.
        command.current_dir(&tools.folder);
        command.env("IPYTHONDIR", tools.folder.join("start-ipyparallel"));
        let said = captured(&mut command)?;
        let seconds = said.lines().rev().find_map(|line| line.trim().parse().ok());
        self.wait_until("the queue to be empty", || Ok(self.queue(tools)?.is_empty()))?;
        seconds.ok_or_else(|| format!("{} does not say how long it took: {said}", words[1]))
    }

    /// Seconds until each job of an array has created a file.
    fn floor(&self, tools: &Tools, n: u32) -> Result<f64, String> {
        let folder = tools.folder.join("start-floor");
        let _ = fs::remove_dir_all(&folder);
        let script = folder.join("true.sh");
        let text = "#!/bin/sh\n: > \"done-${SLURM_ARRAY_TASK_ID:-$SGE_TASK_ID}\"\n";
        let written = fs::create_dir_all(&folder).and_then(|()| fs::write(&script, text));
        written.map_err(|e| format!("cannot write {}: {e}", script.display()))?;
        let (path, script, array) = (folder.to_string_lossy(), script.to_string_lossy(), format!("1-{n}"));
        let words = match self.launcher() {
            "slurm" => vec!["sbatch", "--chdir", &path, "--output", "/dev/null", "--array", &array, &script],
            _ => vec![
                "qsub",
                "-wd",
                &path,
                "-S",
                "/bin/sh",
                "-j",
                "y",
                "-o",
                "/dev/null",
                "-t",
                &array,
                &script,
            ],
        };
        let began = Instant::now();
        captured(&mut self.command(tools, &words))?;
        self.wait_until("an array of jobs to run", || {
            let entries = fs::read_dir(&folder).map_err(|e| format!("cannot read {}: {e}", folder.display()))?;
            let done = entries
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with("done-"));
            Ok(done.count() == n as usize)
        })?;
        let seconds = began.elapsed().as_secs_f64();
        self.wait_until("the queue to be empty", || Ok(self.queue(tools)?.is_empty()))?;
        Ok(seconds)
    }

    fn queue(&self, tools: &Tools) -> Result<String, String> {
        let words: &[&str] = match self.launcher() {
            "local" => return Ok(String::new()),
            "slurm" => &["squeue", "--noheader"],
            _ => &["qstat", "-u", "*"],
        };
        Ok(captured(&mut self.command(tools, words))?.trim().to_string())
    }

    fn version(&self, tools: &Tools) -> Option<String> {
        let words: &[&str] = match self.launcher() {
            "local" => return None,
            "slurm" => &["sinfo", "--version"],
            _ => &["qstat", "-help"],
        };
        let said = captured(&mut self.command(tools, words)).ok()?;
        said.lines().next().map(|line| line.trim().to_string())
    }

    fn wait_until(&self, what: &str, is_so: impl Fn() -> Result<bool, String>) -> Result<(), String> {
        let deadline = Instant::now() + LONGEST;
        while !is_so()? {
            if Instant::now() >= deadline {
                return Err(format!(
                    "{}: timed out waiting for {what} after {} s",
                    self.launcher(),
                    LONGEST.as_secs()
                ));
            }
            sleep(POLL_INTERVAL);
        }
        Ok(())
    }
}

/// One line per number of engines, one column per launcher; a dash for what could not be measured.
fn table(columns: &[String], found: &Found) -> String {
    let mut out = format!("| engines | {} |\n|--:|{}\n", columns.join(" | "), "--:|".repeat(columns.len()));
    for n in ENGINES {
        let cell = |column: &String| match found.get(&(column.clone(), n)) {
            Some(seconds) => format!("{:.2} s", median(seconds)),
            None => "–".into(),
        };
        let cells: Vec<String> = columns.iter().map(cell).collect();
        let _ = writeln!(out, "| {n} | {} |", cells.join(" | "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_number_and_a_dash_for_what_is_missing() {
        let columns = ["local".to_string(), floor_of("slurm")];
        let found = Found::from([(("local".into(), 1), vec![3.0, 1.0, 2.0]), ((floor_of("slurm"), 16), vec![0.25])]);
        assert_eq!(
            table(&columns, &found),
            "| engines | local | *limit: slurm alone* |\n|--:|--:|--:|\n| 1 | 2.00 s | – |\n| 16 | – | 0.25 s |\n| 64 | – | – |\n"
        );
    }
}
