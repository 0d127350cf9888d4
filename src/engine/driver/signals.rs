//! Signals that the engine's process gets: what ends it, and what is meant for the user's code.
use super::Driver;
use super::ending::Warning;
use crate::model::job::WARNED_BY_BATCH_SYSTEM;
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
    /// In a batch job it is the system's word that the job's time is nearly over, or that it is to be deleted (qsub -notify,
    /// sbatch --signal); elsewhere it is for the user's code.
    pub(super) async fn user_signal(&mut self, signal: i32) {
        match self.facts.job.is_empty() {
            true => self.signal_user_code(signal),
            false => {
                let name = if signal == nix::libc::SIGUSR1 { "SIGUSR1" } else { "SIGUSR2" };
                self.leave_because(&format!("{WARNED_BY_BATCH_SYSTEM} ({name})"), Warning::User)
                    .await;
            }
        }
    }

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
