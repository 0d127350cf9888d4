//! The engine: one process, one slot. It receives tasks from the controller, dispatches them to Python workers or runs them as
//! commands, and keeps every result until the controller has recorded it. User code never runs in this process.
mod bundles;
pub(crate) mod code_directory;
mod command;
pub(crate) mod core;
mod driver;
mod error;
mod exec;
mod forker;
mod link;
mod memory;
mod node;
mod oom;
mod orphans;
mod requests;
pub(crate) mod settings;
mod signal;
mod ssh_tunnel;
#[cfg(test)]
mod tests;
pub(crate) mod worker;

pub(crate) use error::EngineError;
pub(crate) use settings::EngineSettings;

/// Runs one engine until its controller or SIGTERM stops it. SIGINT interrupts the running unit, and ends an idle engine on a
/// terminal; SIGUSR1 and SIGUSR2 are passed to the worker, or are a batch system's warning.
pub(crate) async fn run(settings: EngineSettings) -> Result<(), EngineError> {
    // Spawned, because waking a task on a runtime thread is cheaper than waking `block_on`.
    match tokio::spawn(driver::Driver::new(settings)?.run()).await {
        Ok(ended) => ended,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(EngineError::System(error.to_string())),
        },
    }
}
