//! The controller: hub and schedulers in one process. [`core`] decides, the driver acts.
pub mod core;
