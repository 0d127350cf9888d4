//! A tunnel of the engine to a controller that it cannot reach directly, through the ssh server of the connection file. It forwards
//! a port of this host's loopback interface.
use crate::connection::file::NATIVE;
use crate::ssh::tunnel::daemon::Daemon;
use crate::ssh::tunnel::forward::Forward;
use crate::ssh::tunnel::{Direction, Endpoint, LeadsTo, Target, TunnelError, TunnelState};
use crate::ssh::{Destination, Ssh};
use std::collections::BTreeMap;
use std::path::Path;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Closes its ssh connection when dropped.
pub(super) struct SshTunnel {
    daemon: JoinHandle<Result<(), TunnelError>>,
    /// The local port on the loopback interface.
    pub port: u16,
    /// The controller's address as the server sees it.
    pub address: String,
}

/// The controller's addresses and port from the connection file.
struct ControllerTarget {
    addresses: Vec<String>,
    port: u16,
    /// Receives the address at which it answers.
    found: Option<oneshot::Sender<String>>,
}

impl Target for ControllerTarget {
    async fn locate(&mut self, _: &Ssh) -> Result<Endpoint, TunnelError> {
        Ok(Endpoint {
            addresses: self.addresses.clone(),
            ports: BTreeMap::from([(NATIVE.to_string(), self.port)]),
            ..Endpoint::default()
        })
    }

    fn established(&mut self, leads_to: &LeadsTo, _: &BTreeMap<String, u16>) -> Result<(), TunnelError> {
        if let Some(found) = self.found.take() {
            let _ = found.send(leads_to.address.clone());
        }
        Ok(())
    }
}

impl SshTunnel {
    /// Opens the tunnel. `server` is `[user@]host[:port]`, in ipyparallel's syntax.
    pub(super) async fn open(server: &str, addresses: &[String], port: u16) -> Result<SshTunnel, TunnelError> {
        let server = Destination::parse(&for_ssh(server))?;
        let (sender, found) = oneshot::channel();
        let controller = ControllerTarget {
            addresses: addresses.to_vec(),
            port,
            found: Some(sender),
        };
        let mut state = TunnelState::new(Direction::Forward, server.as_str(), Path::new(""), "", vec![NATIVE.into()]);
        // Locate the controller only when a connection is refused: there may be a thousand engines.
        let forward = Forward::bind(controller, &mut state, None).await?;
        let port = state.ports.get(NATIVE).copied().unwrap_or_default();
        let daemon = tokio::spawn(async move { Daemon::new(forward, state, None).run(true).await });
        let mut tunnel = SshTunnel {
            daemon,
            port,
            address: String::new(),
        };
        tokio::select! {
            Ok(address) = found => tunnel.address = address,
            ended = &mut tunnel.daemon => {
                let why = ended.unwrap_or_else(|e| Err(TunnelError::Internal(e.to_string())));
                return Err(why.err().unwrap_or_else(|| TunnelError::Internal("the tunnel has ended".into())));
            }
        }
        Ok(tunnel)
    }
}

impl Drop for SshTunnel {
    fn drop(&mut self) {
        self.daemon.abort();
    }
}

/// Converts `me@login:2222` to ssh's syntax.
fn for_ssh(server: &str) -> String {
    let host = server.rsplit('@').next().unwrap_or(server);
    match !server.starts_with("ssh://") && host.matches(':').count() == 1 {
        true => format!("ssh://{server}"),
        false => server.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::for_ssh;

    #[test]
    fn ipyparallel_port_syntax_is_converted_for_ssh() {
        assert_eq!(for_ssh("me@login:2222"), "ssh://me@login:2222");
        assert_eq!(for_ssh("login"), "login");
        assert_eq!(for_ssh("me@fd00::1"), "me@fd00::1");
        assert_eq!(for_ssh("ssh://login:2222"), "ssh://login:2222");
    }
}
