//! A temporary IPython directory with its processes.
use super::command::{Ended, Running};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

pub const PCLUSTER: &str = env!("CARGO_BIN_EXE_pcluster");

const GUARD: &str = include_str!("../../guard.sh");

pub struct Home {
    folder: TempDir,
    guard: Child,
}

impl Home {
    pub fn new() -> Home {
        let folder = TempDir::with_prefix("pcluster-test-").unwrap();
        fs::create_dir(folder.path().join("ipython")).unwrap();
        let mut guard = Command::new("setsid");
        guard.args(["sh", "-c", GUARD, "guard"]).arg(folder.path());
        let guard = guard
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Home { folder, guard }
    }

    /// The working directory of commands.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn profile(&self) -> PathBuf {
        self.path().join("ipython/profile_default")
    }

    /// Writes a file into the working directory.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// A program in a clean environment: nothing configured, no terminal.
    pub fn program(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.path()).env("IPYTHONDIR", self.path().join("ipython"));
        for name in [
            "PCLUSTER_PROFILE",
            "PCLUSTER_PYTHON",
            "VIRTUAL_ENV",
            "CONDA_PREFIX",
            "COLUMNS",
            "NO_COLOR",
            "RUST_LOG",
            "PYTHONPATH",
        ] {
            command.env_remove(name);
        }
        command
    }

    /// `pcluster …` in the background.
    pub fn spawn(&self, arguments: &[&str]) -> Running {
        Running::spawn(self.program(PCLUSTER).args(arguments), "")
    }

    /// `pcluster …` to its end.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        self.spawn(arguments).end()
    }

    /// The same with stdin.
    pub fn run_reading(&self, stdin: &str, arguments: &[&str]) -> Ended {
        Running::spawn(self.program(PCLUSTER).args(arguments), stdin).end()
    }

    /// Runs it and expects exit code 0; returns stdout.
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.run(arguments).ok()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}
