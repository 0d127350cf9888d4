//! Signals that interrupt a command. After the first call, Ctrl-C no longer terminates the process.
use crate::cli::CommandError;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub(crate) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Interrupts {
    /// Must be called within the runtime.
    pub(crate) fn listen() -> Result<Interrupts, CommandError> {
        let on = |kind| signal(kind).map_err(|e| CommandError::environment(format!("cannot listen for signals: {e}")));
        Ok(Interrupts {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            Some(()) = self.interrupt.recv() => {}
            Some(()) = self.terminate.recv() => {}
            Some(()) = self.hangup.recv() => {}
            else => std::future::pending().await,
        }
    }

    /// Waits for the next Ctrl-C.
    pub(crate) async fn next_interrupt(&mut self) {
        if self.interrupt.recv().await.is_none() {
            std::future::pending().await
        }
    }
}
