//! The engine: one process, one slot. It takes tasks from the controller, feeds a Python worker or runs commands, and
//! keeps every result until the controller says that it is on disk. User code never runs in this process.
mod bundles;
pub mod code_directory;
mod command;
pub mod core;
mod driver;
mod exec;
mod forker;
mod leftovers;
mod link;
mod memory;
mod requests;
pub mod settings;
mod ssh_tunnel;
#[cfg(test)]
mod tests;
pub mod worker;

pub use settings::EngineSettings;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The connection file cannot be used.
    #[error("{0}")]
    BadConnectionFile(String),
    /// Each address was tried; the text names them.
    #[error("{0}")]
    Unreachable(String),
    /// The controller said no.
    #[error("the controller refused this engine: {0}")]
    Refused(String),
    /// Nothing was heard from the controller for its patience.
    #[error("nothing heard from the controller for {0} s: stopped")]
    ControllerGone(u64),
    #[error("{0}")]
    System(String),
}

/// Runs one engine until it is told to leave: by its controller, or by SIGTERM. SIGINT is for what it
/// runs, and ends an idle engine on a terminal; SIGUSR1 and SIGUSR2 go to the worker, or are a batch system's warning.
pub async fn run(settings: EngineSettings) -> Result<(), EngineError> {
    // A task of the runtime's thread, which wakes itself more cheaply than what the runtime waits for.
    match tokio::spawn(driver::Driver::new(settings)?.run()).await {
        Ok(ended) => ended,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(EngineError::System(error.to_string())),
        },
    }
}
