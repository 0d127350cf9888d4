//! The command line: reads arguments, asks the other rooms, prints. The only room that prints, and the only one that picks an exit code.
//!
//! Parts: [`args`] (what can be typed), [`context`] (what every command may lean on), [`error`] (what the user reads when
//! it did not work), [`ipyparallel`] (what its programs are told), [`logging`], [`output`] (tables, JSON, times), [`commands`] (one file per command).
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
        // Help and version are "errors" to clap too; its own exit code for real ones is 2, as ours.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let context = Context::new(&cli.global);
    let code = match commands::dispatch(cli.command, &context) {
        Ok(exit) => exit.code(),
        Err(error) => error.report(&context),
    };
    // A supervisor that has not started this process does not learn it from the system.
    supervisor::guard::exiting(code);
    ExitCode::from(code)
}
