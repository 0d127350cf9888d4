//! The command line: parses arguments, calls the other modules, prints. The only module that prints and chooses exit codes.
//!
//! Parts: [`args`] (the command line), [`context`] (shared by all commands), [`error`] (errors and exit codes),
//! [`explained`] (why work waits, in one line), [`ipyparallel`] (options of its programs), [`logging`], [`output`] (tables, JSON, times), [`commands`] (one file per command).
pub(crate) mod args;
pub(crate) mod commands;
pub(crate) mod context;
pub(crate) mod doctor;
pub(crate) mod error;
pub(crate) mod explained;
pub(crate) mod global;
pub(crate) mod ids;
pub(crate) mod inputs;
pub(crate) mod interruptible;
pub(crate) mod ipyparallel;
pub(crate) mod logging;
pub(crate) mod nodes;
pub(crate) mod output;
pub(crate) mod progress;
pub(crate) mod records;
pub(crate) mod reference;
pub(crate) mod resources;
pub(crate) mod tables;
pub(crate) mod values;
pub(crate) mod views;

pub(crate) use context::Context;
pub(crate) use error::{CommandError, ErrorKind, Exit};

use crate::launchers::supervisor;
use std::process::ExitCode;

/// Runs the command line of this process.
pub(crate) fn run() -> ExitCode {
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
