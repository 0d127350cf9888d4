//! Forward tunnel: local ports are forwarded to a controller that the other host can reach.
use super::daemon::{Check, LinkEvent, Tunnel};
use super::error::TunnelError;
use super::state::{LeadsTo, TunnelState};
use super::target::{Endpoint, Target};
use crate::ssh::Ssh;
use crate::ssh::backoff::TICK;
use crate::ssh::forward::{self, Greeting, Ports, Route};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The timeout of a controller's greeting, and of its host's answer.
const GREETS: Duration = Duration::from_secs(6);
/// A tunnel without a controller ends after this time.
const ORPHANED: Duration = Duration::from_secs(24 * 3600);

pub(crate) struct Forward<T> {
    target: T,
    ports: Ports,
    /// The interval at which the controller is located without a disturbance; none: never.
    checks_every: Option<Duration>,
    /// The number of attempts to open it: distinguishes the sockets of one connection.
    attempts: u64,
    /// The socket of the channel that is used to check the controller.
    probe: PathBuf,
    checked: Instant,
    last_up: Instant,
}

impl<T: Target> Forward<T> {
    /// Listens on the ports of `state`, or on others if these are taken, and records them in it.
    pub(crate) async fn bind(target: T, state: &mut TunnelState, checks_every: Option<Duration>) -> Result<Forward<T>, TunnelError> {
        let channels: Vec<&str> = state.channels.iter().map(String::as_str).collect();
        let (ports, moved) = Ports::bind(&channels, &state.ports).await.map_err(TunnelError::Listen)?;
        if !moved.is_empty() {
            tracing::warn!("ports were taken meanwhile; using others for {}", moved.join(", "));
        }
        state.ports = ports.local().clone();
        Ok(Forward {
            target,
            ports,
            checks_every,
            attempts: 0,
            probe: PathBuf::new(),
            checked: Instant::now(),
            last_up: Instant::now(),
        })
    }

    /// A socket forwarded to the first address at which the controller greets, and this address.
    async fn find(&mut self, ssh: &Ssh, endpoint: &Endpoint, channel: &str) -> Result<(PathBuf, String), TunnelError> {
        let Some(port) = endpoint.ports.get(channel).copied() else {
            return Err(TunnelError::Internal(format!("the connection file has no channel {channel}")));
        };
        let mut tried = Vec::new();
        for (at, address) in endpoint.addresses.iter().enumerate() {
            let socket = ssh
                .forward_local(&format!("{}-{at}-{channel}", self.attempts), address, port)
                .await?;
            if forward::greeting(&socket, GREETS).await == Greeting::Speaks {
                return Ok((socket, address.clone()));
            }
            tried.push(format!("{address}:{port}"));
        }
        Err(TunnelError::NoAnswer {
            from: ssh.destination().to_string(),
            tried,
            log: ssh.log_tail(),
            hints: endpoint.hints.clone(),
        })
    }
}

impl<T: Target> Tunnel for Forward<T> {
    const REOPENS: bool = true;
    const SETTLES: Duration = Duration::ZERO;
    const REMOVES_STATE: bool = true;

    async fn open(&mut self, ssh: &Ssh, state: &mut TunnelState) -> Result<(), TunnelError> {
        let endpoint = self.target.locate(ssh).await?;
        self.attempts += 1;
        let Some((first, others)) = state.channels.split_first() else {
            return Err(TunnelError::Internal("a tunnel without channels".into()));
        };
        let (socket, address) = self.find(ssh, &endpoint, first).await?;
        self.probe.clone_from(&socket);
        let mut route = Route::from([(first.clone(), socket)]);
        for name in others {
            // Not every controller has every channel.
            if let Some(port) = endpoint.ports.get(name) {
                let socket = ssh.forward_local(&format!("{}-{name}", self.attempts), &address, *port).await?;
                route.insert(name.clone(), socket);
            }
        }
        // Clients use the tunnel as soon as its state is up: connections must work from now on.
        self.ports.set_route(route);
        let leads_to = LeadsTo {
            address,
            ..endpoint.leads_to
        };
        self.target.established(&leads_to, self.ports.local())?;
        state.leads_to = Some(leads_to);
        (self.checked, self.last_up) = (Instant::now(), Instant::now());
        Ok(())
    }

    async fn disturbed(&mut self) {
        self.ports.refused().await;
    }

    async fn check(&mut self, ssh: &Ssh, event: LinkEvent) -> Result<Check, TunnelError> {
        self.last_up = Instant::now();
        let is_due = self.checks_every.is_some_and(|every| self.checked.elapsed() >= every);
        if !(event.disturbed || event.suspended || is_due) {
            return Ok(Check::Fine);
        }
        self.checked = Instant::now();
        match forward::greeting(&self.probe, GREETS).await {
            Greeting::Speaks => {}
            Greeting::Closed => return Ok(Check::Moved),
            // If its host answers, a silent controller may just be busy.
            Greeting::Silent if ssh.run(&["true"], b"", GREETS).await?.ok() => {}
            Greeting::Silent => return Ok(Check::Moved),
        }
        if event.disturbed {
            // Another channel, or a controller that has just started: do not check again immediately.
            tokio::time::sleep(TICK).await;
        }
        Ok(Check::Fine)
    }

    fn close(&mut self) {
        self.ports.clear_route();
    }

    fn lost(&mut self) {
        self.target.lost();
    }

    fn is_orphaned(&self, _: &TunnelError) -> bool {
        self.last_up.elapsed() > ORPHANED
    }
}
