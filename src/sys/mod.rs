//! The operating system: processes, locks, private files, clocks.
//!
//! Parts: [`clock`], [`process`] (which process is meant, and does it run?), [`lock`] (what one process at a time may do),
//! [`private_file`] (files that only their owner can ever read), [`private_dir`] (a directory that is one user's alone),
//! [`directory_id`] (is this still the same directory?), [`network_fs`] (may other hosts have the same file?),
//! [`problem`] (why a supervised process does not run at present).
pub mod clock;
pub mod directory_id;
pub mod lock;
pub mod network_fs;
pub mod private_dir;
pub mod private_file;
pub mod problem;
pub mod process;
