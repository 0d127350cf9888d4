//! pcluster: IPython-parallel clusters from one binary.
//!
//! The code map, from the words up to the command line. An arrow may only point down this list
//! (`tests/it/architecture.rs` holds the exact table):
//!
//! - [`memory`]: the allocator, which keeps long messages off small pages
//! - [`model`]: the words that every room shares, plain data
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
pub mod cli;
pub mod client;
pub mod cluster;
pub mod connection;
pub mod controller;
pub mod db;
pub mod engine;
pub mod launchers;
pub mod memory;
pub mod model;
pub mod profile;
pub mod ssh;
pub mod sys;
pub mod transport;
pub mod wire;

#[global_allocator]
static ALLOCATOR: memory::Allocator = memory::Allocator;
