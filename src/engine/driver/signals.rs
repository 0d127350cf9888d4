//! Handles signals to the engine's process: signals that end it, and signals for user code.
use super::Driver;
use super::walltime::Warning;
use crate::model::job::LeaveReason;
use std::io::{self, IsTerminal};
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

impl Driver {
    /// In a batch job the signal warns that the job is about to reach its time limit or to be deleted (qsub -notify,
    /// sbatch --signal); outside of one it is passed to user code.
    pub(super) async fn user_signal(&mut self, signal: i32) {
        match self.facts.job.is_empty() {
            true => self.signal_user_code(signal),
            false => {
                let name = if signal == nix::libc::SIGUSR1 { "SIGUSR1" } else { "SIGUSR2" };
                self.leave_with_notice(LeaveReason::Warned(name.into()), Warning::User).await;
            }
        }
    }

    /// SIGINT interrupts the running unit, as in ipengine. An idle engine exits if its terminal sent it (Ctrl-C).
    pub(super) async fn interrupted(&mut self) {
        if self.core.is_busy() {
            self.signal_user_code(nix::libc::SIGINT);
        } else if io::stdin().is_terminal() {
            self.leave_on_signal("SIGINT").await;
        } else {
            tracing::info!("ignored SIGINT: no unit is running (send SIGTERM to stop the engine)");
        }
    }
}
