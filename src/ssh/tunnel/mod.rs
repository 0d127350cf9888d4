//! Tunnels: ports of one host are forwarded to a controller which only another host can reach, over an ssh connection that is reestablished
//! whenever it breaks. The traffic stays encrypted from end to end.
//!
//! Parts: [`daemon`] (the loop that keeps a tunnel open), its two directions [`forward`] and [`reverse`], [`state`] (the recorded state),
//! [`process`] (starts, waits for and ends a daemon's process), [`error`]. A [`Target`] locates the controller.
pub(crate) mod daemon;
pub(crate) mod error;
pub(crate) mod forward;
pub(crate) mod process;
pub(crate) mod reverse;
pub(crate) mod state;
pub(crate) mod target;

pub(crate) use error::TunnelError;
pub(crate) use state::{Direction, LeadsTo, Phase, TunnelState};
pub(crate) use target::{Endpoint, Target};
