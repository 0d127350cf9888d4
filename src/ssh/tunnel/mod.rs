//! Tunnels: ports of one host that lead to a controller which only another host reaches, through an ssh connection that is made again
//! whenever it breaks. What they carry stays encrypted from end to end.
//!
//! Parts: [`daemon`] (the loop that keeps a tunnel), its two directions [`forward`] and [`reverse`], [`state`] (what is known of one),
//! [`process`] (a daemon's process: started, waited for, ended), [`error`]. Where a controller is, a [`Target`] knows.
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
