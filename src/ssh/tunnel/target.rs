//! What a tunnel leads to.
use super::error::TunnelError;
use super::state::LeadsTo;
use crate::ssh::Ssh;
use std::collections::BTreeMap;

/// Where a controller is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Endpoint {
    /// Without its address: that is tried out.
    pub leads_to: LeadsTo,
    /// Where it may be reached, best first.
    pub addresses: Vec<String>,
    /// Its ports, by channel.
    pub ports: BTreeMap<String, u16>,
    /// What to do if nothing answers there.
    pub hints: Vec<String>,
}

/// Knows where the controller is, and wants to know of the tunnel.
pub trait Target: Send {
    /// Finds the controller; over `ssh`, where the other host must be asked.
    fn locate(&mut self, ssh: &Ssh) -> impl Future<Output = Result<Endpoint, TunnelError>> + Send;

    /// The tunnel leads to it, from these ports.
    fn established(&mut self, _: &LeadsTo, _ports: &BTreeMap<String, u16>) -> Result<(), TunnelError> {
        Ok(())
    }

    /// The tunnel leads nowhere any more.
    fn lost(&mut self) {}
}
