//! The operating system: processes, locks, private files, clocks.
//!
//! Parts: [`async_fd`] (files that tokio watches), [`cgroup`] (limits of control groups), [`child_setup`] (between fork and exec),
//! [`clock`], [`process`] (identity and state of processes), [`lock`] (mutual exclusion of processes),
//! [`private_file`] (files that only their owner can read), [`private_dir`] (directories that only their owner can access),
//! [`directory_id`] (identity of directories), [`network_fs`] (detection of shared file systems),
//! [`problem`] (why a supervised process is not running).
pub(crate) mod async_fd;
pub(crate) mod cgroup;
pub(crate) mod child_setup;
pub(crate) mod clock;
pub(crate) mod directory_id;
pub(crate) mod lock;
pub(crate) mod network_fs;
pub(crate) mod private_dir;
pub(crate) mod private_file;
pub(crate) mod problem;
pub(crate) mod process;
