//! One of the two clusters that an unmodified ipyparallel client is measured on: pcluster's, or ipyparallel's own. What /proc says
//! of its processes, found by the `IPYTHONDIR` in their environment.
use super::tools::Tools;
use crate::run::{captured, program};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

pub struct Side<'a> {
    tools: &'a Tools,
    pub ours: bool,
    ipython: PathBuf,
}

/// CPU seconds and resident MB, summed over processes of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    pub processes: usize,
    pub cpu: f64,
    pub mb: f64,
}

impl<'a> Side<'a> {
    /// With so many engines. `settings` are for pcluster: `--set key=value`.
    pub fn start(tools: &'a Tools, ours: bool, engines: u64, settings: &[&str]) -> Result<Side<'a>, String> {
        Side::start_with(tools, ours, engines, settings, false)
    }

    /// ipyparallel's, with CURVE.
    pub fn start_encrypted(tools: &'a Tools, engines: u64) -> Result<Side<'a>, String> {
        Side::start_with(tools, false, engines, &[], true)
    }

    fn start_with(tools: &'a Tools, ours: bool, engines: u64, settings: &[&str], encrypted: bool) -> Result<Side<'a>, String> {
        let name = if ours { "side-pcluster" } else { "side-ipyparallel" };
        let side = Side {
            tools,
            ours,
            ipython: tools.folder.join(name),
        };
        side.stop();
        let _ = fs::remove_dir_all(&side.ipython);
        fs::create_dir_all(&side.ipython).map_err(|e| format!("cannot make {}: {e}", side.ipython.display()))?;
        let (count, python) = (engines.to_string(), tools.python.to_string_lossy());
        let words: Vec<&str> = match ours {
            true => [&["start", "-n", &count, "--python", &python][..], settings].concat(),
            false => vec!["start", "-n", &count, "--daemonize"],
        };
        let mut cluster = side.cluster();
        if encrypted {
            cluster.env("IPP_ENABLE_CURVE", "1");
        }
        captured(cluster.args(words))?;
        let until = Instant::now() + Duration::from_secs(60);
        while !side.client_file().exists() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(side)
    }

    fn cluster(&self) -> Command {
        let python = self.tools.python.to_string_lossy();
        let mut command = match self.ours {
            true => program(&self.tools.root, &[&self.tools.pcluster.to_string_lossy()]),
            false => program(&self.tools.folder, &[&python, "-m", "ipyparallel.cluster"]),
        };
        command.env("IPYTHONDIR", &self.ipython);
        for name in ["PCLUSTER_PROFILE", "PCLUSTER_CLUSTER_ID"] {
            command.env_remove(name);
        }
        command
    }

    pub fn client_file(&self) -> PathBuf {
        self.ipython.join("profile_default/security/ipcontroller-client.json")
    }

    /// Runs a script of `benches/peers` on it; its `name value` lines.
    pub fn script(&self, script: &str, words: &[&str]) -> Result<BTreeMap<String, f64>, String> {
        let script = self.tools.root.join("benches/peers").join(script);
        let python = self.tools.python.to_string_lossy();
        let mut command = program(&self.tools.folder, &[&python, "-W", "ignore", &script.to_string_lossy()]);
        let said = captured(command.arg(self.client_file()).args(words))?;
        Ok(values(&said))
    }

    /// The controller's processes, and the engines' with their workers.
    pub fn processes(&self) -> (Sum, Sum) {
        let own = format!("IPYTHONDIR={}", self.ipython.display());
        let (mut controller, mut engines) = (Sum::default(), Sum::default());
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        for folder in entries.map(|entry| entry.path()) {
            let read = |file: &str| fs::read(folder.join(file)).unwrap_or_default();
            let environment = read("environ");
            if !environment.split(|b| *b == 0).any(|word| word == own.as_bytes()) {
                continue;
            }
            let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let (stat, status) = (read("stat"), read("status"));
            let used = super::cluster::usage(&String::from_utf8_lossy(&stat), &String::from_utf8_lossy(&status));
            let sum = match is_controller(&line, self.ours) {
                true => &mut controller,
                false => &mut engines,
            };
            sum.processes += 1;
            sum.cpu += used.cpu;
            sum.mb += used.now_mb;
        }
        (controller, engines)
    }

    fn stop(&self) {
        // There may be none.
        let _ = captured(self.cluster().arg("stop"));
    }
}

impl Drop for Side<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// pcluster's is one process; ipyparallel's has children of Python's `multiprocessing`, and `ipcluster` itself counts with the rest.
fn is_controller(line: &str, ours: bool) -> bool {
    match ours {
        true => line.contains(" controller "),
        false => line.contains("ipyparallel.controller") || line.contains("multiprocessing"),
    }
}

pub fn values(said: &str) -> BTreeMap<String, f64> {
    let pairs = said.lines().filter_map(|line| line.split_once(' '));
    pairs
        .filter_map(|(name, value)| Some((name.to_string(), value.trim().parse().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_say_names_and_values() {
        let found = values("tasks 10\nseconds 0.5\nwords of another kind\n");
        assert_eq!((found["tasks"], found["seconds"], found.len()), (10.0, 0.5, 2));
    }

    #[test]
    fn controllers_are_told_from_engines() {
        assert!(is_controller("/x/pcluster controller --profile-dir /p ", true));
        assert!(!is_controller("/x/pcluster engine --file /p/controller.json ", true));
        assert!(is_controller("/v/bin/python -m ipyparallel.controller --profile-dir /p ", false));
        assert!(is_controller(
            "/v/bin/python -c from multiprocessing.spawn import spawn_main; ",
            false
        ));
        assert!(!is_controller("/v/bin/python -m ipyparallel.engine ", false));
    }
}
