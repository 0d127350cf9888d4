//! Makes the engine leave: on a signal, and before the time limit of its batch job, so that tasks can run to completion on other
//! engines. After a warning of the batch system the running task may continue for the known remaining time.
use super::Driver;
use super::walltime::{Warning, grace_period_ms, margin, seconds_left};
use crate::engine::core::Event;
use crate::engine::link::unix_now;
use crate::model::job::LeaveReason;
use crate::wire::content::engine::{LEAVING, Leaving};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

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

    pub(super) async fn leave_on_signal(&mut self, signal: &str) {
        self.leave_with_notice(LeaveReason::Signal(signal.into()), Warning::Terminate).await;
    }

    /// Leaves; the running unit may continue for the grace period.
    pub(super) async fn leave_with_notice(&mut self, reason: LeaveReason, warning: Warning) {
        let (reason, grace_period_ms) = (reason.to_string(), self.grace_after(warning));
        tracing::info!(
            "{reason}: returning tasks and leaving; the running task has {:.1} s",
            grace_period_ms as f64 / 1000.0
        );
        self.send(LEAVING, &Leaving { reason: reason.clone() });
        let event = Event::ShutdownRequested {
            drain: true,
            reason,
            grace_period_ms: Some(grace_period_ms),
        };
        self.handle(event).await;
    }

    /// When to leave; None if the job has no known end.
    pub(super) fn leave_at(&self) -> Option<Instant> {
        let seconds_left = self.facts.ends?.0 - unix_now().0;
        let until = (seconds_left - margin(seconds_left)).max(0.0);
        Some(Instant::now() + Duration::try_from_secs_f64(until).ok()?)
    }

    fn grace_after(&self, warning: Warning) -> u64 {
        let ends_s = self.facts.ends.map(|ends| ends.0 - unix_now().0);
        let to_stop_s = (self.settings.interrupt_timeout_ms + self.settings.terminate_timeout_ms) as f64 / 1000.0;
        grace_period_ms(
            seconds_left(warning, ends_s, &self.settings.batch),
            to_stop_s,
            self.settings.grace_period_ms,
        )
    }
}
