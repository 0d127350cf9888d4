//! The operating system: processes, locks, private files, clocks.
//!
//! Parts: [`clock`], [`process`] (identity and state of processes), [`lock`] (mutual exclusion of processes),
//! [`private_file`] (files that only their owner can read), [`private_dir`] (directories that only their owner can access),
//! [`directory_id`] (identity of directories), [`network_fs`] (detection of shared file systems),
//! [`problem`] (why a supervised process is not running).
pub mod clock;
pub mod directory_id;
pub mod lock;
pub mod network_fs;
pub mod private_dir;
pub mod private_file;
pub mod problem;
pub mod process;
