//! The command line: parses arguments, calls the other modules, prints. The only module that prints and chooses exit codes.
//!
//! Parts: [`args`] (the command line), [`context`] (shared by all commands), [`error`] (errors and exit codes),
//! [`ipyparallel`] (options of its programs), [`logging`], [`output`] (tables, JSON, times), [`commands`] (one file per command).
pub mod args;
pub mod commands;
pub mod context;
pub mod doctor;
pub mod error;
pub mod ids;
pub mod inputs;
pub mod ipyparallel;
pub mod logging;
pub mod output;
pub mod progress;
pub mod records;
pub mod reference;
pub mod resources;
pub mod tables;
pub mod values;
pub mod views;

pub use context::Context;
pub use error::{CommandError, ErrorKind, Exit};

use crate::launchers::supervisor;
use std::process::ExitCode;

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let cli = match args::parse(std::env::args_os()) {
        Ok(cli) => cli,
        // For clap, help and version are errors too; its exit code for real errors is 2, like ours.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let context = Context::new(&cli.global);
    let (code, reason) = match commands::dispatch(cli.command, &context) {
        Ok(exit) => (exit.code(), String::new()),
        Err(error) => (error.report(&context), error.error),
    };
    // A supervisor that did not start this process is not notified by the system.
    supervisor::guard::exiting(code, &reason);
    ExitCode::from(code)
}
