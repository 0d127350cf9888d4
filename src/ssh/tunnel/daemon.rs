//! Keeps one tunnel: makes the ssh connection, opens the tunnel, watches it; and again whenever the connection breaks, this host resumes
//! after a suspend, or the controller moves. What is opened and watched is the affair of its [`Tunnel`], a direction.
use super::error::TunnelError;
use super::state::{Phase, TunnelState};
use crate::ssh::backoff::{Backoff, MAX_DELAY, SuspendDetector, TICK};
use crate::ssh::{Destination, Ssh, control_dir};
use crate::sys::clock::unix_now;
use crate::sys::process::ProcessId;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// One direction of tunnels.
pub trait Tunnel: Send {
    /// Whether it can be opened again over the same connection.
    const REOPENS: bool;
    /// How long after a disturbance it can be told whether the connection is lost.
    const SETTLES: Duration;
    /// Whether a tunnel that is told to end takes its state file with it. Else it can be started again from that.
    const REMOVES_STATE: bool;

    /// Makes the ports lead to the controller, and notes in `state` what has come of it.
    fn open(&mut self, ssh: &Ssh, state: &mut TunnelState) -> impl Future<Output = Result<(), TunnelError>> + Send;
    /// Returns when something happens on the tunnel that may mean its end.
    fn disturbed(&mut self) -> impl Future<Output = ()> + Send;
    /// Looks after an open tunnel whose connection is alive. An error: it is lost all the same.
    fn check(&mut self, ssh: &Ssh, event: Event) -> impl Future<Output = Result<Check, TunnelError>> + Send;
    /// The ssh connection ends: what comes waits for another one.
    fn close(&mut self);
    /// It leads nowhere any more.
    fn lost(&mut self);
    /// Whether there has been nothing to lead to for so long that it is given up.
    fn is_orphaned(&self, error: &TunnelError) -> bool;
}

#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub disturbed: bool,
    /// This host was suspended.
    pub suspended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    Fine,
    /// The controller is not there any more, or somewhere else.
    Moved,
    Orphaned,
}

/// Why a connection was given up that is not lost.
enum Given {
    NotWanted,
    Moved,
}

pub struct Daemon<T> {
    tunnel: T,
    state: TunnelState,
    /// Where the state is written; the tunnel is wanted for as long as it is there.
    file: Option<PathBuf>,
    /// How often it was up.
    ups: u64,
}

/// The main function of a daemon's process: runs until SIGTERM or SIGINT, until its state file is gone, or until it is orphaned. `first`:
/// what fails before it is established ends it, for whoever waits for that.
pub async fn serve<T: Tunnel>(tunnel: T, mut state: TunnelState, file: &Path, first: bool) -> Result<(), TunnelError> {
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
    pub fn new(tunnel: T, state: TunnelState, file: Option<PathBuf>) -> Daemon<T> {
        Daemon {
            tunnel,
            state,
            file,
            ups: 0,
        }
    }

    pub async fn run(&mut self, first: bool) -> Result<(), TunnelError> {
        let mut backoff = Backoff::default();
        while is_wanted(self.file.as_deref()) {
            let (begun, ups) = (Instant::now(), self.ups);
            let error = match self.connection(first).await {
                Ok(Given::NotWanted) => break,
                Ok(Given::Moved) => continue,
                Err(error) if first && self.ups == 0 => return Err(error),
                Err(error) => error,
            };
            tracing::warn!("{error}; making the connection to {} again", self.state.destination);
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

    /// One ssh connection, from its beginning until it is lost or given up.
    async fn connection(&mut self, first: bool) -> Result<Given, TunnelError> {
        let ssh = Ssh::connect(&Destination::parse(&self.state.destination)?).await?;
        self.state.control_dir = Some(ssh.control_dir().to_path_buf());
        self.write();
        let given = self.keep_open(&ssh, first).await;
        self.tunnel.close();
        ssh.close().await;
        given
    }

    async fn keep_open(&mut self, ssh: &Ssh, first: bool) -> Result<Given, TunnelError> {
        let mut backoff = Backoff::default();
        loop {
            match self.tunnel.open(ssh, &mut self.state).await {
                Ok(()) => {
                    self.opened();
                    backoff.reset();
                    let given = self.watch(ssh).await?;
                    if matches!(given, Given::NotWanted) || !T::REOPENS {
                        return Ok(given);
                    }
                    tracing::info!("the controller does not answer any more; looking for it");
                }
                Err(error) if !T::REOPENS || matches!(error, TunnelError::Ssh(_)) || (first && self.ups == 0) => return Err(error),
                Err(error) => {
                    tracing::info!("{error}");
                    self.tunnel.close();
                    self.tunnel.lost();
                    self.report(Phase::Waiting, Some(&error));
                    if self.is_orphaned(&error) {
                        return Ok(Given::NotWanted);
                    }
                    backoff.wait(true).await;
                }
            }
            if !is_wanted(self.file.as_deref()) {
                return Ok(Given::NotWanted);
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

    /// Until the controller has moved, or nobody wants the tunnel; an error when the connection is lost.
    async fn watch(&mut self, ssh: &Ssh) -> Result<Given, TunnelError> {
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
                return Ok(Given::NotWanted);
            }
            ssh.check().await?;
            match self.tunnel.check(ssh, Event { disturbed, suspended }).await? {
                Check::Fine => {}
                Check::Moved => return Ok(Given::Moved),
                Check::Orphaned => return Ok(Given::NotWanted),
            }
        }
    }

    fn is_orphaned(&self, error: &TunnelError) -> bool {
        let is_orphaned = self.tunnel.is_orphaned(error);
        if is_orphaned {
            tracing::warn!("{error}; there has been nothing to lead to for too long");
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

    /// A file that was removed must not come back.
    fn write(&self) {
        if let Some(file) = self.file.as_deref().filter(|file| is_wanted(Some(file)))
            && let Err(error) = self.state.write(file)
        {
            tracing::error!("{error}");
        }
    }
}

/// A file system that does not answer says nothing.
fn is_wanted(file: Option<&Path>) -> bool {
    file.is_none_or(|file| !matches!(file.try_exists(), Ok(false)))
}

async fn until_unwanted(file: Option<&Path>) {
    while is_wanted(file) {
        tokio::time::sleep(TICK).await;
    }
}
