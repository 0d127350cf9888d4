//! pcluster runs Python functions and commands in parallel: locally, over ssh, or on a batch system.
//!
//! Modules, from the lowest to the command line. Dependencies point only up this list
//! (`tests/it/architecture.rs` holds the exact table):
//!
//! - [`memory`]: the allocator, which keeps long messages off small pages
//! - [`model`]: plain data shared by all modules
//! - [`wire`]: signed multipart messages, bytes in and bytes out
//! - [`transport`]: sockets; the one place that knows the ZeroMQ crate
//! - [`profile`]: where a profile's files are, and what its YAML says
//! - [`sys`]: the operating system: processes, locks, private files
//! - [`ssh`]: connections to other hosts, and tunnels through them
//! - [`connection`]: connection files
//! - [`db`]: every task, in SQLite
//! - [`controller`]: the hub and the schedulers; `controller::core` decides, `controller::driver` acts
//! - [`engine`]: takes tasks, feeds a Python worker or runs commands, sends results
//! - [`client`]: what the command line uses to talk to a controller
//! - [`launchers`]: ways to start a controller or engines
//! - [`cluster`]: start, stop, status of a whole cluster
//! - [`cli`]: the command line
#![warn(unreachable_pub)]

mod cli;
mod client;
mod cluster;
mod connection;
mod controller;
mod db;
mod engine;
mod launchers;
mod memory;
mod model;
mod profile;
mod ssh;
mod sys;
mod transport;
mod wire;

#[doc(hidden)]
pub mod testing;

/// The program `pcluster`.
pub fn run() -> std::process::ExitCode {
    memory::keep_freed_blocks();
    cli::run()
}

#[global_allocator]
static ALLOCATOR: memory::Allocator = memory::Allocator;
