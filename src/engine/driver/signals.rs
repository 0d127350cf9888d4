//! Signals to the engine's process.
use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub(super) struct EngineSignals {
    pub terminate: Signal,
    pub interrupt: Signal,
    pub user: UserSignals,
}

/// SIGUSR1 and SIGUSR2.
pub(super) struct UserSignals {
    first: Signal,
    second: Signal,
}

impl EngineSignals {
    pub(super) fn watch() -> io::Result<EngineSignals> {
        Ok(EngineSignals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            user: UserSignals {
                first: signal(SignalKind::user_defined1())?,
                second: signal(SignalKind::user_defined2())?,
            },
        })
    }
}

impl UserSignals {
    /// Waits for the next signal; returns its number.
    pub(super) async fn recv(&mut self) -> i32 {
        tokio::select! {
            _ = self.first.recv() => nix::libc::SIGUSR1,
            _ = self.second.recv() => nix::libc::SIGUSR2,
        }
    }
}
