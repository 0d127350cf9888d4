//! A way of the engine's own to a controller that it does not reach: through the ssh server that the connection file names. A port of
//! this host's loopback leads there; the ssh connection beneath it is made again when it breaks.
use crate::ssh::backoff::{Backoff, SuspendDetector, TICK};
use crate::ssh::forward::{self, Greeting, Ports, Route};
use crate::ssh::{Destination, Ssh};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

const CHANNEL: &str = "native";
/// How long a controller may take to greet, and the server to answer.
const GREETS: Duration = Duration::from_secs(6);

/// Ends its ssh connection when it is dropped.
pub struct Through {
    ports: Arc<Ports>,
    keeper: JoinHandle<()>,
    /// The controller's address as the server sees it.
    pub address: String,
}

/// What is led to.
#[derive(Clone)]
struct Target {
    server: Destination,
    addresses: Vec<String>,
    port: u16,
}

impl Through {
    /// Opens the way; or says why there is none. `server` is `[user@]host[:port]`, as ipyparallel writes it.
    pub async fn open(server: &str, addresses: &[String], port: u16) -> Result<Through, String> {
        let target = Target {
            server: Destination::parse(&for_ssh(server)).map_err(|e| e.to_string())?,
            addresses: addresses.to_vec(),
            port,
        };
        let bound = Ports::bind(&[CHANNEL], &BTreeMap::new()).await;
        let (ports, _) = bound.map_err(|e| format!("cannot listen on this host: {e}"))?;
        let (ssh, route, address) = target.connect().await?;
        ports.set_route(route.clone());
        let ports = Arc::new(ports);
        let keeper = tokio::spawn(keep(target, ports.clone(), ssh, route));
        Ok(Through { ports, keeper, address })
    }

    /// Of this host's loopback.
    pub fn port(&self) -> u16 {
        self.ports.local().get(CHANNEL).copied().unwrap_or_default()
    }
}

impl Drop for Through {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// `me@login:2222` as ssh takes it.
fn for_ssh(server: &str) -> String {
    let host = server.rsplit('@').next().unwrap_or(server);
    match !server.starts_with("ssh://") && host.matches(':').count() == 1 {
        true => format!("ssh://{server}"),
        false => server.to_string(),
    }
}

impl Target {
    /// A connection, and a socket that leads to the first address at which a controller greets.
    async fn connect(&self) -> Result<(Ssh, Route, String), String> {
        let ssh = Ssh::connect(&self.server).await.map_err(|e| e.to_string())?;
        let mut tried = Vec::new();
        for (at, address) in self.addresses.iter().enumerate() {
            let socket = ssh.forward_local(&format!("{CHANNEL}-{at}"), address, self.port).await;
            let socket = socket.map_err(|e| e.to_string())?;
            match forward::greeting(&socket, GREETS).await {
                Greeting::Speaks => return Ok((ssh, Route::from([(CHANNEL.to_string(), socket)]), address.clone())),
                Greeting::Closed | Greeting::Silent => tried.push(format!("{address}:{}", self.port)),
            }
        }
        let said = ssh.log_tail();
        ssh.close().await;
        Err(format!("from there nothing answers at {} {said}", tried.join(" or "))
            .trim_end()
            .to_string())
    }
}

async fn keep(target: Target, ports: Arc<Ports>, mut ssh: Ssh, mut route: Route) {
    let mut backoff = Backoff::default();
    loop {
        let why = until_lost(&ssh, &ports, &route).await;
        tracing::warn!("{why}; making the connection to {} again", target.server);
        ports.clear_route();
        ssh.close().await;
        (ssh, route) = loop {
            backoff.wait(true).await;
            match target.connect().await {
                Ok((ssh, route, address)) => {
                    tracing::info!("{} leads to the controller at {address} again", target.server);
                    break (ssh, route);
                }
                Err(why) => tracing::warn!("{why}"),
            }
        };
        backoff.reset();
        ports.set_route(route.clone());
    }
}

/// Why it is to be made again.
async fn until_lost(ssh: &Ssh, ports: &Ports, route: &Route) -> String {
    loop {
        let detector = SuspendDetector::now();
        let refused = tokio::select! {
            () = tokio::time::sleep(TICK) => false,
            () = ports.refused() => true,
        };
        if let Err(error) = ssh.check().await {
            return error.to_string();
        }
        if detector.suspended()
            && let Err(error) = ssh.run(&["true"], b"", GREETS).await
        {
            return error.to_string();
        }
        if refused {
            let Some(socket) = route.get(CHANNEL) else { continue };
            if forward::greeting(socket, GREETS).await == Greeting::Closed {
                return "the controller does not answer".into();
            }
            // Just started: not again at once.
            tokio::time::sleep(TICK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::for_ssh;

    #[test]
    fn a_port_after_the_host_is_for_ssh_what_it_is_for_ipyparallel() {
        assert_eq!(for_ssh("me@login:2222"), "ssh://me@login:2222");
        assert_eq!(for_ssh("login"), "login");
        assert_eq!(for_ssh("me@fd00::1"), "me@fd00::1");
        assert_eq!(for_ssh("ssh://login:2222"), "ssh://login:2222");
    }
}
