//! Integration tests: one binary, real processes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]
mod architecture;
mod bad_input;
mod batch;
mod control_group;
mod docs;
mod engines_work;
mod explain;
mod hostile;
mod identity;
mod launch;
mod lifecycle;
mod map;
mod outputs;
mod pinning;
mod printed;
mod recovery;
mod resources;
mod results;
mod retention;
mod retry;
mod small_commands;
mod storage;
mod support;
mod unavailable;
mod values;
mod workers;
