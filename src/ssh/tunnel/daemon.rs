//! Keeps one tunnel open: establishes the ssh connection, opens the tunnel and monitors it; again whenever the connection breaks, this host resumes
//! after a suspend, or the controller moves. Its [`Tunnel`], one direction, defines what is opened and monitored.
use super::error::TunnelError;
use super::state::{Phase, TunnelState};
use crate::ssh::backoff::{Backoff, MAX_DELAY, SuspendDetector, TICK};
use crate::ssh::{Ssh, control_dir};
use crate::sys::clock::unix_now;
use crate::sys::process::ProcessId;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// One direction of a tunnel.
pub(crate) trait Tunnel: Send {
    /// Whether it can be opened again over the same connection.
    const REOPENS: bool;
    /// The delay after a disturbance until it is known whether the connection is lost.
    const SETTLES: Duration;
    /// Whether a tunnel that receives a stop signal removes its state file. Else it can be restarted from that.
    const REMOVES_STATE: bool;

    /// Forwards the ports to the controller, and records the result in `state`.
    fn open(&mut self, ssh: &Ssh, state: &mut TunnelState) -> impl Future<Output = Result<(), TunnelError>> + Send;
    /// Returns when something happens on the tunnel that may mean its end.
    fn disturbed(&mut self) -> impl Future<Output = ()> + Send;
    /// Checks an open tunnel whose connection is alive. An error means that the connection counts as lost.
    fn check(&mut self, ssh: &Ssh, event: LinkEvent) -> impl Future<Output = Result<Check, TunnelError>> + Send;
    /// The ssh connection ends: new connections wait for another one.
    fn close(&mut self);
    /// The tunnel has no target any more.
    fn lost(&mut self);
    /// Whether the tunnel has been without a controller beyond its timeout, and ends.
    fn is_orphaned(&self, error: &TunnelError) -> bool;
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkEvent {
    pub disturbed: bool,
    /// This host was suspended.
    pub suspended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    Fine,
    /// The controller is gone, or has moved.
    Moved,
    Orphaned,
}

/// Why a connection that is not lost was closed.
enum StopReason {
    NotWanted,
    Moved,
}

pub(crate) struct Daemon<T> {
    tunnel: T,
    state: TunnelState,
    /// The state file; the tunnel is kept as long as this file exists.
    file: Option<PathBuf>,
    /// The number of times that it was up.
    ups: u64,
}

/// The main function of a daemon's process: runs until SIGTERM or SIGINT, until its state file is gone, or until it is orphaned. `first`:
/// a failure before the tunnel is established ends the daemon, since a command is waiting for it.
pub(crate) async fn serve<T: Tunnel>(tunnel: T, mut state: TunnelState, file: &Path, first: bool) -> Result<(), TunnelError> {
    let (Ok(mut terminated), Ok(mut interrupted)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return Err(TunnelError::Internal("no signals can be received".into()));
    };
    if let Some(path) = state.control_dir.take() {
        control_dir::clear(&path);
    }
    state.daemon = Some(ProcessId::own());
    state.supervisor = ProcessId::supervisor();
    let mut daemon = Daemon::new(tunnel, state, Some(file.to_path_buf()));
    daemon.write();
    let ended = tokio::select! {
        ended = daemon.run(first) => ended,
        _ = terminated.recv() => Ok(()),
        _ = interrupted.recv() => Ok(()),
    };
    daemon.tunnel.lost();
    match &ended {
        Err(error) => daemon.report(Phase::Failed, Some(error)),
        Ok(()) if T::REMOVES_STATE => drop(std::fs::remove_file(file)),
        Ok(()) => {}
    }
    ended
}

impl<T: Tunnel> Daemon<T> {
    pub(crate) fn new(tunnel: T, state: TunnelState, file: Option<PathBuf>) -> Daemon<T> {
        Daemon {
            tunnel,
            state,
            file,
            ups: 0,
        }
    }

    pub(crate) async fn run(&mut self, first: bool) -> Result<(), TunnelError> {
        let mut backoff = Backoff::default();
        while is_wanted(self.file.as_deref()) {
            let (begun, ups) = (Instant::now(), self.ups);
            let error = match self.connection(first).await {
                Ok(StopReason::NotWanted) => break,
                Ok(StopReason::Moved) => continue,
                Err(error) if first && self.ups == 0 => return Err(error),
                Err(error) => error,
            };
            tracing::warn!("{error}; reconnecting to {}", self.state.destination);
            self.state.control_dir = None;
            self.report(Phase::Down, Some(&error));
            if self.is_orphaned(&error) {
                return Ok(());
            }
            if self.ups > ups && begun.elapsed() > MAX_DELAY {
                backoff.reset();
            }
            tokio::select! {
                () = backoff.wait(error.may_pass()) => {}
                () = until_unwanted(self.file.as_deref()) => {}
            }
        }
        tracing::info!("no longer wanted");
        Ok(())
    }

    /// Runs one ssh connection, until it is lost or closed.
    async fn connection(&mut self, first: bool) -> Result<StopReason, TunnelError> {
        let ssh = Ssh::connect_to(&self.state.destination).await?;
        self.state.control_dir = Some(ssh.control_dir().to_path_buf());
        self.write();
        let given = self.keep_open(&ssh, first).await;
        self.tunnel.close();
        ssh.close().await;
        given
    }

    async fn keep_open(&mut self, ssh: &Ssh, first: bool) -> Result<StopReason, TunnelError> {
        let mut backoff = Backoff::default();
        loop {
            match self.tunnel.open(ssh, &mut self.state).await {
                Ok(()) => {
                    self.opened();
                    backoff.reset();
                    let given = self.watch(ssh).await?;
                    if matches!(given, StopReason::NotWanted) || !T::REOPENS {
                        return Ok(given);
                    }
                    tracing::info!("the controller no longer answers; looking for it");
                }
                Err(error) if !T::REOPENS || matches!(error, TunnelError::Ssh(_)) || (first && self.ups == 0) => return Err(error),
                Err(error) => {
                    tracing::info!("{error}");
                    self.tunnel.close();
                    self.tunnel.lost();
                    self.report(Phase::Waiting, Some(&error));
                    if self.is_orphaned(&error) {
                        return Ok(StopReason::NotWanted);
                    }
                    backoff.wait(true).await;
                }
            }
            if !is_wanted(self.file.as_deref()) {
                return Ok(StopReason::NotWanted);
            }
            ssh.check().await?;
        }
    }

    fn opened(&mut self) {
        self.ups += 1;
        let again = if self.ups > 1 { " again" } else { "" };
        if self.ups > 1 {
            self.state.reconnects += 1;
        }
        let address = self.state.leads_to.as_ref().map_or("", |found| found.address.as_str());
        let (destination, ports) = (&self.state.destination, &self.state.ports);
        tracing::info!(?ports, "the tunnel to {destination} leads to the controller at {address}{again}");
        self.report(Phase::Up, None);
    }

    /// Runs until the controller has moved or the tunnel is no longer wanted; an error when the connection is lost.
    async fn watch(&mut self, ssh: &Ssh) -> Result<StopReason, TunnelError> {
        loop {
            let detector = SuspendDetector::now();
            let disturbed = tokio::select! {
                () = tokio::time::sleep(TICK) => false,
                () = self.tunnel.disturbed() => true,
            };
            let suspended = detector.suspended();
            if suspended {
                tracing::info!("this host was suspended");
            }
            if disturbed {
                tokio::time::sleep(T::SETTLES).await;
            }
            if !is_wanted(self.file.as_deref()) {
                return Ok(StopReason::NotWanted);
            }
            ssh.check().await?;
            match self.tunnel.check(ssh, LinkEvent { disturbed, suspended }).await? {
                Check::Fine => {}
                Check::Moved => return Ok(StopReason::Moved),
                Check::Orphaned => return Ok(StopReason::NotWanted),
            }
        }
    }

    fn is_orphaned(&self, error: &TunnelError) -> bool {
        let is_orphaned = self.tunnel.is_orphaned(error);
        if is_orphaned {
            tracing::warn!("{error}; no controller was found for too long");
        }
        is_orphaned
    }

    fn report(&mut self, phase: Phase, error: Option<&TunnelError>) {
        if self.state.phase != phase {
            self.state.since = unix_now();
        }
        self.state.phase = phase;
        self.state.problem = error.map(ToString::to_string);
        self.state.missing = error.is_some_and(TunnelError::is_missing);
        self.state.hints = error.map(TunnelError::hints).unwrap_or_default();
        self.write();
    }

    /// Does not create a file that was removed.
    fn write(&self) {
        if let Some(file) = self.file.as_deref().filter(|file| is_wanted(Some(file)))
            && let Err(error) = self.state.write(file)
        {
            tracing::error!("{error}");
        }
    }
}

/// If the file system does not answer, the file is assumed to exist.
fn is_wanted(file: Option<&Path>) -> bool {
    file.is_none_or(|file| !matches!(file.try_exists(), Ok(false)))
}

async fn until_unwanted(file: Option<&Path>) {
    while is_wanted(file) {
        tokio::time::sleep(TICK).await;
    }
}
