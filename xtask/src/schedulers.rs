//! Real batch systems, started on this machine for the tests and stopped afterwards: Slurm, Grid Engine, and Torque's commands
//! before Slurm. What cannot be brought up here (no root, no packages) is counted as not run, with the reason.
use crate::Places;
use crate::reasons::last_lines;
use crate::run::{captured, echo, program};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The file with the tests.
pub const TESTS: &str = "tests/python/test_batch.py";

/// Lines of a script that failed: its logs' last lines are among its output.
const SHOWN_LINES: usize = 40;

pub struct Scheduler {
    /// As pcluster calls it.
    pub name: &'static str,
    /// Its directory under target/batch/.
    folder: &'static str,
    up: &'static str,
    down: &'static str,
    environment: &'static [(&'static str, &'static str)],
}

/// Ports, networks and host names differ from the defaults of the scripts, so that a system that is already up is no obstacle. The
/// ports are below those that the kernel gives to connections (32768 and above): a daemon cannot listen on a port from which any
/// program's connection was made a minute ago.
pub const ALL: [Scheduler; 3] = [
    Scheduler {
        name: "slurm",
        folder: "slurm",
        up: "slurm-up.sh",
        down: "slurm-down.sh",
        environment: &[("SLURM_CTLD_PORT", "26817"), ("SLURM_NODE_PORT", "26820")],
    },
    Scheduler {
        name: "sge",
        folder: "sge",
        up: "sge-up.sh",
        down: "sge-down.sh",
        environment: &[("SGE_HOSTS", "2"), ("SGE_HOST_PREFIX", "xge"), ("SGE_NET", "10.231.98")],
    },
    Scheduler {
        name: "pbs",
        folder: "pbs",
        up: "slurm-torque-up.sh",
        down: "slurm-torque-down.sh",
        environment: &[("SLURM_CTLD_PORT", "27817"), ("SLURM_NODE_PORT", "27820")],
    },
];

/// With places for 64 engines at once, for the benchmark; the tests' may be up beside them.
pub const WIDE: [Scheduler; 2] = [
    Scheduler {
        name: "slurm",
        folder: "wide-slurm",
        up: "slurm-up.sh",
        down: "slurm-down.sh",
        environment: &[("SLURM_CTLD_PORT", "28817"), ("SLURM_NODE_PORT", "28820"), ("SLURM_CPUS", "16")],
    },
    Scheduler {
        name: "sge",
        folder: "wide-sge",
        up: "sge-up.sh",
        down: "sge-down.sh",
        environment: &[
            ("SGE_HOSTS", "2"),
            ("SGE_HOST_PREFIX", "wge"),
            ("SGE_NET", "10.231.93"),
            ("SGE_SLOTS", "64"),
        ],
    },
];

/// A running batch system, stopped on drop.
pub struct Up<'a> {
    scheduler: &'a Scheduler,
    root: PathBuf,
    directory: PathBuf,
}

/// Why a batch system is not up.
pub struct NotUp {
    pub reason: String,
}

impl NotUp {
    /// In one line.
    pub fn summary(&self) -> &str {
        let first = self.reason.lines().next().unwrap_or_default();
        first.trim_end_matches(':')
    }
}

impl Scheduler {
    /// Brings it up.
    pub fn up(&self, places: &Places) -> Result<Up<'_>, NotUp> {
        let run = |words: &[&str]| captured(&mut program(&places.root, words));
        let missing = |reason: String| NotUp { reason };
        if run(&["id", "-u"]).map_err(missing)?.trim() != "0" {
            return Err(missing("only root may bring up a batch system here".into()));
        }
        let directory = places.target.join("batch").join(self.folder);
        let up = Up {
            scheduler: self,
            root: places.root.clone(),
            directory,
        };
        let log = places.target.join("batch").join(format!("{}.log", self.folder));
        let mut attempts = Vec::new();
        // Once more: package lists of a new machine are empty or old, and daemons may be slow on a busy one.
        for _ in 0..2 {
            // What an interrupted run or the attempt before has left.
            up.run(self.down);
            match up.bring_up(&log) {
                Ok(()) => return Ok(up),
                Err(why) if why.contains("apt-get") => {
                    let _ = run(&["apt-get", "update", "-qq"]);
                    attempts.push(why);
                }
                Err(why) => attempts.push(why),
            }
        }
        Err(NotUp {
            reason: format!(
                "it could not be brought up (all of the last attempt: {}):\n{}",
                log.display(),
                attempts.join("\nsecond attempt:\n")
            ),
        })
    }
}

impl Up<'_> {
    /// The error holds the last lines of the script's output.
    fn bring_up(&self, log: &Path) -> Result<(), String> {
        let mut command = self.command(self.scheduler.up);
        echo(&format!("ci/batch/{} {}", self.scheduler.up, self.directory.display()));
        // Its daemons keep inherited file descriptors, so they must not inherit our pipes.
        let opened = log
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::File::create(log));
        let file = opened.map_err(|e| format!("{}: {e}", log.display()))?;
        let again = file.try_clone().map_err(|e| e.to_string())?;
        let status = command.stdout(file).stderr(again).status().map_err(|e| e.to_string())?;
        if status.success() {
            return Ok(());
        }
        let output = std::fs::read(log).unwrap_or_default();
        Err(last_lines(&String::from_utf8_lossy(&output), SHOWN_LINES))
    }

    /// The value of `PCLUSTER_TEST_BATCH` for the tests.
    pub fn place(&self) -> String {
        format!("{}:{}", self.scheduler.name, self.directory.display())
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn command(&self, script: &str) -> Command {
        let script = Path::new("ci/batch").join(script);
        let mut command = program(&self.root, &["bash"]);
        command.arg(script).arg(&self.directory);
        command.envs(self.scheduler.environment.iter().copied());
        command
    }

    fn run(&self, script: &str) {
        let null = std::process::Stdio::null;
        let _ = self.command(script).stdout(null()).stderr(null()).status();
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.run(self.scheduler.down);
    }
}

#[cfg(test)]
mod tests {
    use super::{ALL, WIDE};

    #[test]
    fn no_connection_of_another_program_can_have_a_daemons_port() {
        let ports = ALL.iter().chain(&WIDE).flat_map(|scheduler| scheduler.environment);
        let ports = ports.filter(|(name, _)| name.ends_with("_PORT"));
        let ports: Vec<u16> = ports.map(|(_, port)| port.parse().unwrap()).collect();
        assert_eq!(ports.len(), 6);
        assert!(ports.iter().all(|port| *port < 32_768 - 200), "{ports:?}");
    }
}
