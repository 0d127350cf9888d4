//! The target of a tunnel.
use super::error::TunnelError;
use super::state::LeadsTo;
use crate::ssh::Ssh;
use std::collections::BTreeMap;

/// The location of a controller.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Endpoint {
    /// Without its address, which is found by trying.
    pub leads_to: LeadsTo,
    /// The addresses at which it may be reached, best first.
    pub addresses: Vec<String>,
    /// Its ports, by channel.
    pub ports: BTreeMap<String, u16>,
    /// Hints for the case that none of them answers.
    pub hints: Vec<String>,
}

/// Locates the controller, and is notified of changes of the tunnel.
pub(crate) trait Target: Send {
    /// Finds the controller; over `ssh`, if the other host must be queried.
    fn locate(&mut self, ssh: &Ssh) -> impl Future<Output = Result<Endpoint, TunnelError>> + Send;

    /// The tunnel reaches it, from these ports.
    fn established(&mut self, _: &LeadsTo, _ports: &BTreeMap<String, u16>) -> Result<(), TunnelError> {
        Ok(())
    }

    /// The tunnel has no target any more.
    fn lost(&mut self) {}
}
