//! What every command may lean on: which cluster is meant, how to speak, and the way to the controller and to the database.
use super::args::{Color, Global};
use super::error::{CommandError, ErrorKind};
use std::cell::OnceCell;
use std::future::Future;
use std::io::IsTerminal;
use std::path::PathBuf;

pub struct Context {
    /// The profile's name as given; not yet checked.
    pub profile: String,
    pub ipython_dir: Option<PathBuf>,
    /// Empty for the profile's default cluster.
    pub cluster_id: String,
    pub json: bool,
    /// How many `-v`.
    pub verbose: u8,
    pub quiet: bool,
    pub terminal: Terminal,
    runtime: OnceCell<tokio::runtime::Runtime>,
}

/// What stdout and stderr are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    pub stdout: bool,
    pub stderr: bool,
    /// Columns of the terminal that stdout (else stderr) is; 80 where there is none.
    pub width: u16,
    /// Whether stdout may be coloured.
    pub color: bool,
    /// Whether stderr may be coloured.
    pub color_stderr: bool,
}

impl Terminal {
    /// Neither is a terminal.
    pub const NONE: Terminal = Terminal {
        stdout: false,
        stderr: false,
        width: 80,
        color: false,
        color_stderr: false,
    };

    fn of_this_process(color: Color) -> Terminal {
        let (stdout, stderr) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) || std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let may = |terminal: bool| match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && !plain,
        };
        Terminal {
            stdout,
            stderr,
            width: super::output::terminal_width().unwrap_or(80),
            color: may(stdout),
            color_stderr: may(stderr),
        }
    }
}

impl Context {
    pub fn new(global: &Global) -> Context {
        Context {
            profile: global.profile.clone(),
            ipython_dir: global.ipython_dir.clone(),
            cluster_id: global.cluster_id.clone(),
            json: global.json,
            verbose: global.verbose,
            quiet: global.quiet,
            terminal: Terminal::of_this_process(global.color),
            runtime: OnceCell::new(),
        }
    }

    /// The one runtime of this process, made when first needed.
    pub fn runtime(&self) -> Result<&tokio::runtime::Runtime, CommandError> {
        if self.runtime.get().is_none() {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .map_err(|e| CommandError::new(ErrorKind::Environment, format!("cannot start the threads of this process: {e}")))?;
            let _ = self.runtime.set(runtime);
        }
        self.runtime.get().ok_or_else(|| CommandError::internal("the runtime is gone"))
    }

    /// Runs a future to its end.
    pub fn block_on<F: Future>(&self, future: F) -> Result<F::Output, CommandError> {
        Ok(self.runtime()?.block_on(future))
    }

    /// Talk, to stderr; nothing under `--quiet`.
    pub fn say(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            super::output::stderr_line(text);
        }
    }

    /// Talk for `-v`.
    pub fn say_more(&self, text: impl std::fmt::Display) {
        if self.verbose > 0 {
            super::output::stderr_line(text);
        }
    }

    /// `--profile p --cluster-id c` as far as they are not the defaults, with a space in front: for hints that show a command.
    pub fn options(&self) -> String {
        let mut text = String::new();
        if self.profile != "default" {
            text.push_str(&format!(" --profile {}", self.profile));
        }
        if !self.cluster_id.is_empty() {
            text.push_str(&format!(" --cluster-id {}", self.cluster_id));
        }
        text
    }
}
