//! Tunnels: ports of one host are forwarded to a controller which only another host can reach, over an ssh connection that is reestablished
//! whenever it breaks. The traffic stays encrypted from end to end.
//!
//! Parts: [`daemon`] (the loop that keeps a tunnel open), its two directions [`forward`] and [`reverse`], [`state`] (the recorded state),
//! [`process`] (starts, waits for and ends a daemon's process), [`error`]. A [`Target`] locates the controller.
pub mod daemon;
pub mod error;
pub mod forward;
pub mod process;
pub mod reverse;
pub mod state;
pub mod target;

pub use error::TunnelError;
pub use state::{Direction, LeadsTo, Phase, TunnelState};
pub use target::{Endpoint, Target};
