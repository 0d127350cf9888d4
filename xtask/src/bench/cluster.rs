//! A pcluster cluster in a separate directory, and its controller's usage from /proc.
use super::tools::Tools;
use crate::run::{captured, program};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

pub struct Cluster<'a> {
    tools: &'a Tools,
    ipython: PathBuf,
    /// The controller's.
    pub pid: u32,
}

/// The controller's use of the machine so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Seconds of CPU, user and system.
    pub cpu: f64,
    /// The most memory that it has held, in MB of 1,000,000 bytes.
    pub peak_mb: f64,
    /// What it holds now.
    pub now_mb: f64,
}

impl<'a> Cluster<'a> {
    /// With so many engines; 0 for a controller alone.
    pub fn start(tools: &'a Tools, engines: u64) -> Result<Cluster<'a>, String> {
        let ipython = tools.folder.join("ipython");
        let mut cluster = Cluster { tools, ipython, pid: 0 };
        // Stops what an interrupted run has left.
        let _ = captured(&mut cluster.pcluster(&["stop"]));
        let _ = fs::remove_dir_all(&cluster.ipython);
        fs::create_dir_all(&cluster.ipython).map_err(|e| format!("cannot make {}: {e}", cluster.ipython.display()))?;
        let python = tools.python.to_string_lossy();
        captured(&mut cluster.pcluster(&["start", "-n", &engines.to_string(), "--python", &python]))?;
        let text = fs::read_to_string(cluster.client_file()).map_err(|e| format!("no client file: {e}"))?;
        cluster.pid = number_behind(&text, "\"pid\":").ok_or("the client file does not name the controller's pid")?;
        Ok(cluster)
    }

    pub fn pcluster(&self, words: &[&str]) -> Command {
        let mut command = program(&self.tools.root, &[&self.tools.pcluster.to_string_lossy()]);
        command.args(words).env("IPYTHONDIR", &self.ipython);
        for name in ["PCLUSTER_PROFILE", "PCLUSTER_CLUSTER_ID"] {
            command.env_remove(name);
        }
        command
    }

    /// Seconds until the command has ended well.
    pub fn timed(&self, words: &[&str]) -> Result<f64, String> {
        let began = Instant::now();
        captured(&mut self.pcluster(words))?;
        Ok(began.elapsed().as_secs_f64())
    }

    /// `pcluster map` of the no-op function, its results written out; seconds from the command's start to its end.
    pub fn map(&self, tasks: u64) -> Result<f64, String> {
        let file = self.tools.folder.join("values.jsonl");
        let values = file.to_string_lossy().into_owned();
        let range = format!("0..{tasks}");
        let seconds = self.timed(&["map", "benches/noop.py:noop", "--range", &range, "--output", &values])?;
        let text = fs::read_to_string(&file).map_err(|e| format!("cannot read {values}: {e}"))?;
        match wrong_line(&text, tasks) {
            None => Ok(seconds),
            Some(line) => Err(format!("{values} does not hold the {tasks} values: line {line} is wrong")),
        }
    }

    pub fn map_of_true(&self, tasks: u64) -> Result<f64, String> {
        self.timed(&["map", "--range", &format!("0..{tasks}"), "--no-output", "--", "/bin/true"])
    }

    pub fn client_file(&self) -> PathBuf {
        self.ipython.join("profile_default/security/ipcontroller-client.json")
    }
    pub fn engine_file(&self) -> PathBuf {
        self.ipython.join("profile_default/security/ipcontroller-engine.json")
    }

    pub fn usage(&self) -> Usage {
        let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", self.pid)).unwrap_or_default();
        usage(&read("stat"), &read("status"))
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if let Err(why) = captured(&mut self.pcluster(&["stop"])) {
            println!("{why}");
        }
    }
}

/// The first line (from 1) that is not its input's value: the input itself, or the 1 of a light engine.
fn wrong_line(text: &str, tasks: u64) -> Option<u64> {
    let mut lines = text.lines();
    let wrong = (0..tasks).find(|i| !lines.next().is_some_and(|line| line == "1" || line.parse() == Ok(*i)));
    wrong.or_else(|| lines.next().map(|_| tasks)).map(|i| i + 1)
}

/// Linux counts CPU time for `/proc` in hundredths of a second.
const TICKS: f64 = 100.0;

pub fn usage(stat: &str, status: &str) -> Usage {
    // The program's name, in brackets, may hold anything.
    let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
    let field = |number: usize| behind.split_whitespace().nth(number - 3).and_then(|f| f.parse::<f64>().ok());
    let mb = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<f64>().ok().map(|kb| kb * 1024.0 / 1e6)
    };
    Usage {
        cpu: (field(14).unwrap_or_default() + field(15).unwrap_or_default()) / TICKS,
        peak_mb: mb("VmHWM:").unwrap_or_default(),
        now_mb: mb("VmRSS:").unwrap_or_default(),
    }
}

fn number_behind(text: &str, key: &str) -> Option<u32> {
    let (_, behind) = text.split_once(key)?;
    let digits: String = behind.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_says() {
        let stat = "12 (a ) b) S 1 12 12 0 -1 4194560 3000 0 0 0 150 50 0 0 20 0 8 0 100 1000000 500";
        let used = usage(stat, "Name:\tx\nVmHWM:\t   10000 kB\nVmRSS:\t    5000 kB\n");
        assert_eq!((used.cpu, used.peak_mb, used.now_mb), (2.0, 10.24, 5.12));
        assert_eq!(usage("", ""), Usage::default());
    }

    #[test]
    fn values_are_held_against_inputs() {
        assert_eq!(wrong_line("0\n1\n2\n", 3), None);
        assert_eq!(wrong_line("1\n1\n", 2), None);
        assert_eq!(wrong_line("0\n2\n", 2), Some(2));
        assert_eq!(wrong_line("0\n", 2), Some(2));
        assert_eq!(wrong_line("0\n1\n", 1), Some(2));
    }

    #[test]
    fn numbers_in_json() {
        assert_eq!(number_behind("{\"pid\": 42,", "\"pid\":"), Some(42));
        assert_eq!(number_behind("{}", "\"pid\":"), None);
    }
}
