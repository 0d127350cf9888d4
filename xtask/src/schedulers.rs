//! Real batch systems, brought up on this machine for the tests and taken down after: Slurm, Grid Engine, and Torque's commands
//! before Slurm. What cannot be brought up here (no root, no packages) is counted as not run, with the reason.
use crate::Places;
use crate::run::{captured, echo, program};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The file with the tests.
pub const TESTS: &str = "tests/python/test_batch.py";

pub struct Scheduler {
    /// As pcluster calls it.
    pub name: &'static str,
    /// Its directory under target/batch/.
    folder: &'static str,
    up: &'static str,
    down: &'static str,
    environment: &'static [(&'static str, &'static str)],
}

/// Ports, networks and host names are unlike those of the scripts by default, so that one that is up already is no obstacle.
pub const ALL: [Scheduler; 3] = [
    Scheduler {
        name: "slurm",
        folder: "slurm",
        up: "slurm-up.sh",
        down: "slurm-down.sh",
        environment: &[("SLURM_CTLD_PORT", "36817"), ("SLURM_NODE_PORT", "36820")],
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
        environment: &[("SLURM_CTLD_PORT", "37817"), ("SLURM_NODE_PORT", "37820")],
    },
];

/// With places for 64 engines at once, for the benchmark; the tests' may be up beside them.
pub const WIDE: [Scheduler; 2] = [
    Scheduler {
        name: "slurm",
        folder: "wide-slurm",
        up: "slurm-up.sh",
        down: "slurm-down.sh",
        environment: &[("SLURM_CTLD_PORT", "38817"), ("SLURM_NODE_PORT", "38820"), ("SLURM_CPUS", "16")],
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

/// One that is up; it is taken down when this is dropped.
pub struct Up<'a> {
    scheduler: &'a Scheduler,
    root: PathBuf,
    directory: PathBuf,
}

impl Scheduler {
    /// Brings it up, or says why that cannot be.
    pub fn up(&self, places: &Places) -> Result<Up<'_>, String> {
        if captured(&mut program(&places.root, &["id", "-u"]))?.trim() != "0" {
            return Err("only root may bring up a batch system here".into());
        }
        let directory = places.target.join("batch").join(self.folder);
        let up = Up {
            scheduler: self,
            root: places.root.clone(),
            directory,
        };
        // One of a run that was cut off.
        up.run(self.down);
        let log = places.target.join("batch").join(format!("{}.log", self.folder));
        let mut said = up.bring_up(&log)?;
        // Package lists of a new machine are empty or old.
        if said.as_ref().is_err_and(|last| last.contains("apt-get"))
            && captured(&mut program(&places.root, &["apt-get", "update", "-qq"])).is_ok()
        {
            said = up.bring_up(&log)?;
        }
        match said {
            Ok(()) => Ok(up),
            Err(last) => Err(format!("it could not be brought up: {last} (all that was said: {})", log.display())),
        }
    }
}

impl Up<'_> {
    /// The inner error is the script's last word.
    fn bring_up(&self, log: &Path) -> Result<Result<(), String>, String> {
        let mut command = self.command(self.scheduler.up);
        echo(&format!("ci/batch/{} {}", self.scheduler.up, self.directory.display()));
        // Its daemons hold what they have inherited: no pipe of ours may be among it.
        let opened = log
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::File::create(log));
        let file = opened.map_err(|e| format!("{}: {e}", log.display()))?;
        let again = file.try_clone().map_err(|e| e.to_string())?;
        let status = command.stdout(file).stderr(again).status().map_err(|e| e.to_string())?;
        let said = std::fs::read_to_string(log).unwrap_or_default();
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        Ok(if status.success() { Ok(()) } else { Err(last.to_string()) })
    }

    /// What the tests look for in `PCLUSTER_TEST_BATCH`.
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
