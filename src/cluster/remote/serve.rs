//! The tunnel's own process: makes the ssh connection, finds the cluster, opens the way, writes the connection file; and
//! does so again whenever the connection breaks, the host wakes up, or the controller is started anew.
use super::error::RemoteError;
use super::state::{LeadsTo, Phase, TunnelState};
use super::there::Host;
use super::way::{self, CHANNELS, GREETS, Wanted, Way};
use super::{there, wanted_of};
use crate::cluster::ClusterError;
use crate::connection::ConnectionFile;
use crate::connection::keep::{Clocks, LONGEST_PAUSE, Pauses, TICK};
use crate::connection::process::ProcessId;
use crate::connection::ssh::{Destination, Ssh, place};
use crate::connection::tunnel::{self, Found, Ports};
use crate::profile::ProfileDir;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// How often one looks whether the controller is still there, without being told that it is not.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Without a cluster to lead to, a tunnel ends after so long.
const IN_VAIN: Duration = Duration::from_secs(24 * 3600);

struct Tunnel {
    profile: ProfileDir,
    cluster_id: String,
    state: TunnelState,
    ports: Ports,
    wanted: Wanted,
    /// Counts ways, for the names of their sockets.
    ways: u64,
    last_up: Instant,
}

/// Runs until SIGTERM or SIGINT, or for a day without a cluster. `first`: what goes wrong before it leads anywhere ends it,
/// for who is waiting for it to be told.
pub async fn serve(profile: ProfileDir, cluster_id: &str, first: bool) -> Result<(), ClusterError> {
    let (Ok(mut terminated), Ok(mut interrupted)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return Err(ClusterError::Internal("cannot install signal handlers".into()));
    };
    let Some(mut state) = TunnelState::read(&profile, cluster_id)? else {
        return Err(super::not_connected(&profile, cluster_id));
    };
    if let Some(path) = state.place.take() {
        place::clear(&path);
    }
    let (ports, moved) = Ports::bind(&CHANNELS, &state.ports).await.map_err(RemoteError::Listen)?;
    if !moved.is_empty() {
        tracing::warn!("taken meanwhile, others are used: the ports of {}", moved.join(", "));
    }
    state.ports = ports.local().clone();
    state.tunnel = Some(ProcessId::own());
    state.supervisor = ProcessId::supervisor();
    let mut tunnel = Tunnel {
        wanted: wanted_of(&state, &profile, cluster_id),
        profile,
        cluster_id: cluster_id.into(),
        state,
        ports,
        ways: 0,
        last_up: Instant::now(),
    };
    let ended = tokio::select! {
        ended = tunnel.run(first) => ended,
        _ = terminated.recv() => Ok(()),
        _ = interrupted.recv() => Ok(()),
    };
    tunnel.remove_connection_file();
    match &ended {
        // For who waits; it removes the file.
        Err(error) => tunnel.tell(Phase::Failed, Some(error)),
        Ok(()) => {
            let _ = std::fs::remove_file(tunnel.profile.tunnel_file(&tunnel.cluster_id));
        }
    }
    ended
}

impl Tunnel {
    async fn run(&mut self, mut first: bool) -> Result<(), ClusterError> {
        let mut pauses = Pauses::default();
        loop {
            let begun = Instant::now();
            let ups = self.ways;
            let error = match self.connection(&mut first).await {
                Ok(()) => return Ok(()),
                Err(error) if first => return Err(error),
                Err(error) => error,
            };
            tracing::warn!("{error}");
            self.ports.hold();
            self.state.place = None;
            self.tell(Phase::Down, Some(&error));
            if self.in_vain() {
                return Ok(());
            }
            if self.ways > ups && begun.elapsed() > LONGEST_PAUSE {
                pauses.start_again();
            }
            pauses.wait(!matches!(&error, ClusterError::Ssh(e) if !e.may_pass())).await;
        }
    }

    /// One ssh connection, from its beginning until it is lost.
    async fn connection(&mut self, first: &mut bool) -> Result<(), ClusterError> {
        let destination = Destination::parse(&self.state.destination)?;
        let ssh = Ssh::connect(&destination).await?;
        self.state.place = Some(ssh.place().to_path_buf());
        let watched = self.lead(&ssh, first).await;
        self.ports.hold();
        ssh.close().await;
        watched
    }

    async fn lead(&mut self, ssh: &Ssh, first: &mut bool) -> Result<(), ClusterError> {
        let host = there::look(ssh).await?;
        let mut pauses = Pauses::default();
        loop {
            match self.open(ssh, &host).await {
                Ok(way) => {
                    self.up(&way, ssh)?;
                    *first = false;
                    pauses.start_again();
                    self.watch(ssh, &way).await?;
                    tracing::info!("the controller does not answer any more; looking for it");
                }
                Err(error @ ClusterError::Ssh(_)) => return Err(error),
                Err(error) if *first => return Err(error),
                Err(error) => {
                    self.ports.hold();
                    self.remove_connection_file();
                    self.tell(Phase::Waiting, Some(&error));
                    if self.in_vain() {
                        return Ok(());
                    }
                    pauses.wait(true).await;
                }
            }
            ssh.check().await?;
        }
    }

    async fn open(&mut self, ssh: &Ssh, host: &Host) -> Result<Way, ClusterError> {
        let found = way::find(ssh, host, &self.wanted).await?;
        self.ways += 1;
        way::open(ssh, host, found, self.ways).await
    }

    /// The connection file is written, and read by clients: now connections must get through.
    fn up(&mut self, way: &Way, ssh: &Ssh) -> Result<(), ClusterError> {
        self.ports.lead(way.route.clone());
        let file = way::near_end(way, &self.state.destination, self.ports.local());
        let path = self.profile.client_file(&self.cluster_id);
        if !ConnectionFile::read(&path).is_ok_and(|there| there == file) {
            file.write(&path)?;
        }
        let keys = way.found.file.pcluster.as_ref();
        self.state.leads_to = Some(LeadsTo {
            profile: way.found.profile.clone(),
            cluster_id: way.found.cluster_id.clone(),
            pid: keys.map(|k| k.process.pid),
            host: keys.map(|k| k.process.host.clone()),
            address: way.address.clone(),
            path: way.found.path.clone(),
        });
        // From now on it is that one which is looked for.
        self.wanted = Wanted {
            profile: way.found.profile.clone(),
            cluster_id: way.found.cluster_id.clone(),
            exactly: true,
            ipython_dir: self.wanted.ipython_dir.clone(),
        };
        self.state.remote_profile = Some(self.wanted.profile.clone());
        self.state.remote_cluster_id = Some(self.wanted.cluster_id.clone());
        self.state.place = Some(ssh.place().to_path_buf());
        if self.ways > 1 {
            self.state.reconnects += 1;
        }
        tracing::info!("leads to {} of {}, at {}", way.found.path, self.state.destination, way.address);
        self.tell(Phase::Up, None);
        self.last_up = Instant::now();
        Ok(())
    }

    /// Returns when the controller is not there any more; with an error when the ssh connection is lost.
    async fn watch(&mut self, ssh: &Ssh, way: &Way) -> Result<(), ClusterError> {
        let mut looked = Instant::now();
        let Some(registration) = way.route.get("registration") else {
            return Err(ClusterError::Internal("the way has no registration channel".into()));
        };
        loop {
            let clocks = Clocks::now();
            let refused = tokio::select! {
                () = tokio::time::sleep(TICK) => false,
                () = self.ports.refused() => true,
            };
            let slept = clocks.slept();
            ssh.check().await?;
            self.last_up = Instant::now();
            if slept {
                tracing::info!("this host has slept");
            }
            if !refused && !slept && looked.elapsed() < LOOK_EVERY {
                continue;
            }
            looked = Instant::now();
            match self.look(ssh, registration).await? {
                true => {
                    if refused {
                        // Another channel than this one, or just started: not again at once.
                        tokio::time::sleep(TICK).await;
                    }
                }
                false => return Ok(()),
            }
        }
    }

    /// Whether the controller greets. An error when the other host itself does not answer.
    async fn look(&self, ssh: &Ssh, socket: &Path) -> Result<bool, ClusterError> {
        match tunnel::look(socket, GREETS).await {
            Found::Speaks => Ok(true),
            Found::Closed => Ok(false),
            Found::Silent => {
                let output = ssh.run(&["true"], b"", GREETS).await?;
                // The host is there, its controller is silent: it may only be busy.
                Ok(output.ok())
            }
        }
    }

    fn tell(&mut self, phase: Phase, error: Option<&ClusterError>) {
        if self.state.phase != phase {
            self.state.since = crate::cluster::now();
        }
        self.state.phase = phase;
        self.state.problem = error.map(ToString::to_string);
        self.state.missing = matches!(
            error,
            Some(ClusterError::Remote(RemoteError::NoCluster { .. } | RemoteError::Gone { .. }))
        );
        self.state.hints = error.map(ClusterError::hints).unwrap_or_default();
        if let Err(error) = self.state.write(&self.profile, &self.cluster_id) {
            tracing::error!("{error}");
        }
    }

    fn in_vain(&self) -> bool {
        let in_vain = self.last_up.elapsed() > IN_VAIN;
        if in_vain {
            tracing::warn!("for a day there was nothing to lead to: this is the end");
        }
        in_vain
    }

    /// Nobody may take it for one of a cluster that can be reached.
    fn remove_connection_file(&self) {
        super::remove_near_end(&self.profile, &self.cluster_id, &self.state.destination);
    }
}
