//! A cluster in its own directory, pcluster's or ipyparallel's, and its use of CPU and memory from /proc.
use super::timed;
use super::tools::Tools;
use crate::run::{captured, program};
use std::fs;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub struct Cluster<'a> {
    tools: &'a Tools,
    /// None: ipyparallel's own cluster.
    pcluster: Option<&'a Path>,
    ipython: PathBuf,
}

/// Seconds of CPU (user and system), and resident memory in MB of 1,000,000 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub cpu: f64,
    pub peak_mb: f64,
    pub now_mb: f64,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Usage) {
        self.cpu += other.cpu;
        self.peak_mb += other.peak_mb;
        self.now_mb += other.now_mb;
    }
}

/// Removes the settings of the user's own cluster.
pub fn isolated(mut command: Command, ipython: &Path) -> Command {
    command
        .env("IPYTHONDIR", ipython)
        .env_remove("PCLUSTER_PROFILE")
        .env_remove("PCLUSTER_CLUSTER_ID");
    command
}

impl<'a> Cluster<'a> {
    /// The pcluster under test; 0 engines: only a controller.
    pub fn ours(tools: &'a Tools, engines: u64) -> Result<Cluster<'a>, String> {
        Cluster::start(tools, "pcluster", Some(&tools.pcluster), engines, true)
    }

    pub fn start(tools: &'a Tools, name: &str, pcluster: Option<&'a Path>, engines: u64, curve: bool) -> Result<Cluster<'a>, String> {
        let ipython = tools.folder.join(format!("ipython-{name}"));
        let cluster = Cluster { tools, pcluster, ipython };
        // Stops the cluster of an interrupted run.
        let _ = captured(&mut cluster.command(&["stop"]));
        let _ = fs::remove_dir_all(&cluster.ipython);
        fs::create_dir_all(&cluster.ipython).map_err(|e| format!("cannot create {}: {e}", cluster.ipython.display()))?;
        let mut start = cluster.command(&["start", "-n", &engines.to_string()]);
        match (pcluster, curve) {
            (Some(_), true) => start.arg("--python").arg(&tools.python),
            (Some(_), false) => start.arg("--no-curve").arg("--python").arg(&tools.python),
            (None, true) => start.arg("--daemonize").env("IPP_ENABLE_CURVE", "1"),
            (None, false) => start.arg("--daemonize"),
        };
        captured(&mut start)?;
        let until = Instant::now() + Duration::from_secs(60);
        while !cluster.file("client").exists() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(cluster)
    }

    /// A command of pcluster, or of ipyparallel's `ipcluster`.
    pub fn command(&self, words: &[&str]) -> Command {
        let python = self.tools.python.to_string_lossy();
        let mut command = match self.pcluster {
            Some(pcluster) => program(&self.tools.root, &[&pcluster.to_string_lossy()]),
            None => program(&self.tools.folder, &[&python, "-m", "ipyparallel.cluster"]),
        };
        command.args(words);
        isolated(command, &self.ipython)
    }

    /// `pcluster map` of the no-op function with all values in a file; the seconds of the whole command.
    pub fn map(&self, tasks: u64) -> Result<f64, String> {
        let file = self.tools.folder.join("values.jsonl");
        let values = file.to_string_lossy();
        let words = [
            "map",
            "benches/noop.py:noop",
            "--range",
            &format!("0..{tasks}"),
            "--output",
            &values,
        ];
        let seconds = timed(&mut self.command(&words))?;
        let text = fs::read_to_string(&file).map_err(|e| format!("cannot read {values}: {e}"))?;
        match wrong_line(&text, tasks) {
            None => Ok(seconds),
            Some(line) => Err(format!("{values} does not contain the {tasks} values: line {line} is wrong")),
        }
    }

    /// Runs a script of `benches/peers` with an unmodified client.
    pub fn script(&self, script: &str, words: &[&str]) -> Result<String, String> {
        self.tools
            .peer(script, &[&[&*self.file("client").to_string_lossy()], words].concat())
    }

    /// The connection file of clients or engines.
    pub fn file(&self, role: &str) -> PathBuf {
        self.ipython.join(format!("profile_default/security/ipcontroller-{role}.json"))
    }

    /// Of pcluster's controller alone.
    pub fn controller(&self) -> Usage {
        let text = fs::read_to_string(self.file("client")).unwrap_or_default();
        let pid = text
            .split_once("\"pid\":")
            .and_then(|(_, rest)| rest.trim_start().split(|c: char| !c.is_ascii_digit()).next());
        pid.map_or_else(Usage::default, |pid| usage(&Path::new("/proc").join(pid)))
    }

    /// Of all processes with this cluster's `IPYTHONDIR`: the controller's, and the engines' with their workers.
    pub fn processes(&self) -> (Usage, Usage) {
        let own = format!("IPYTHONDIR={}", self.ipython.display());
        let (mut controller, mut engines) = (Usage::default(), Usage::default());
        for folder in fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path()) {
            let read = |file: &str| fs::read(folder.join(file)).unwrap_or_default();
            if !read("environ").split(|b| *b == 0).any(|word| word == own.as_bytes()) {
                continue;
            }
            let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            match is_controller(&line, self.pcluster.is_some()) {
                true => controller += usage(&folder),
                false => engines += usage(&folder),
            }
        }
        (controller, engines)
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if let Err(why) = captured(&mut self.command(&["stop"])) {
            println!("{why}");
        }
    }
}

/// ipyparallel's controller has children of Python's `multiprocessing`; `ipcluster` counts as an engine.
fn is_controller(line: &str, ours: bool) -> bool {
    match ours {
        true => line.contains(" controller "),
        false => line.contains("ipyparallel.controller") || line.contains("multiprocessing"),
    }
}

/// The first line (from 1) that is not its input's value: the input itself, or the 1 of a light engine.
fn wrong_line(text: &str, tasks: u64) -> Option<u64> {
    let mut lines = text.lines();
    let wrong = (0..tasks).find(|i| !lines.next().is_some_and(|line| line == "1" || line.parse() == Ok(*i)));
    wrong.or_else(|| lines.next().map(|_| tasks)).map(|i| i + 1)
}

fn usage(process: &Path) -> Usage {
    let read = |file: &str| String::from_utf8_lossy(&fs::read(process.join(file)).unwrap_or_default()).into_owned();
    parse_usage(&read("stat"), &read("status"))
}

fn parse_usage(stat: &str, status: &str) -> Usage {
    let mb = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kb = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        kb.unwrap_or_default() * 1024.0 / 1e6
    };
    Usage {
        cpu: cpu(stat, [14, 15]),
        peak_mb: mb("VmHWM:"),
        now_mb: mb("VmRSS:"),
    }
}

/// The sum of two fields of `/proc/PID/stat`, which are in hundredths of a second, in seconds.
fn cpu(stat: &str, fields: [usize; 2]) -> f64 {
    // The program's name, in brackets, may contain anything.
    let rest: Vec<&str> = stat
        .rsplit_once(')')
        .map_or_else(Vec::new, |(_, rest)| rest.split_whitespace().collect());
    fields
        .iter()
        .filter_map(|field| rest.get(field - 3)?.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

/// CPU seconds of the programs that this one has run to completion.
pub fn children_cpu() -> f64 {
    cpu(&fs::read_to_string("/proc/self/stat").unwrap_or_default(), [16, 17])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_from_proc() {
        let stat = "12 (a ) b) S 1 12 12 0 -1 4194560 3000 0 0 0 150 50 30 20 20 0 8 0 100 1000000 500";
        let used = parse_usage(stat, "Name:\tx\nVmHWM:\t   10000 kB\nVmRSS:\t    5000 kB\n");
        assert_eq!((used.cpu, used.peak_mb, used.now_mb), (2.0, 10.24, 5.12));
        assert_eq!(cpu(stat, [16, 17]), 0.5);
        assert_eq!(parse_usage("", ""), Usage::default());
    }

    #[test]
    fn values_are_compared_with_inputs() {
        assert_eq!(wrong_line("0\n1\n2\n", 3), None);
        assert_eq!(wrong_line("1\n1\n", 2), None);
        assert_eq!(wrong_line("0\n2\n", 2), Some(2));
        assert_eq!(wrong_line("0\n", 2), Some(2));
        assert_eq!(wrong_line("0\n1\n", 1), Some(2));
    }

    #[test]
    fn controllers_and_engines_differ() {
        assert!(is_controller("/x/pcluster controller --profile-dir /p ", true));
        assert!(!is_controller("/x/pcluster engine --file /p/controller.json ", true));
        assert!(is_controller(
            "/v/bin/python -c from multiprocessing.spawn import spawn_main; ",
            false
        ));
        assert!(!is_controller("/v/bin/python -m ipyparallel.engine ", false));
    }
}
