//! Signals that the engine's process gets: what ends it, and what is meant for the user's code.
use super::Driver;
use std::io::{self, IsTerminal};
use tokio::signal::unix::{Signal, SignalKind, signal};

pub struct Signals {
    pub terminate: Signal,
    pub interrupt: Signal,
    pub user: UserSignals,
}

/// Those that only user code can make something of.
pub struct UserSignals {
    first: Signal,
    second: Signal,
}

impl Signals {
    pub fn watch() -> io::Result<Signals> {
        Ok(Signals {
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
    /// The number of the next one.
    pub async fn recv(&mut self) -> i32 {
        tokio::select! {
            _ = self.first.recv() => nix::libc::SIGUSR1,
            _ = self.second.recv() => nix::libc::SIGUSR2,
        }
    }
}

impl Driver {
    /// SIGINT is for what runs, as with ipengine. An engine with nothing to interrupt ends where someone has pressed Ctrl-C.
    pub(super) async fn interrupted(&mut self) {
        if self.core.is_busy() {
            self.signal_user_code(nix::libc::SIGINT);
        } else if io::stdin().is_terminal() {
            self.told_to_leave("SIGINT").await;
        } else {
            tracing::info!("SIGINT: nothing runs that could be interrupted (SIGTERM ends an engine)");
        }
    }
}
