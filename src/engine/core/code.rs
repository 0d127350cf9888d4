//! Whether this host can store the code and the values of maps.
use super::event::Now;
use super::outage::{Outage, retry_delay};
use std::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Code {
    outage: Option<Outage>,
    /// Number of consecutive failures, and the bundle whose arrival resets it.
    failures: u32,
    hash: String,
}

impl Code {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.outage.as_ref()?.retry_at
    }

    pub(super) fn why_unusable(&self) -> Option<&str> {
        self.outage.as_ref().map(|outage| outage.reason.as_str())
    }

    /// `hash`: of the bundle that could not be stored.
    pub(super) fn failed(&mut self, now: Now, hash: Option<String>, reason: String) {
        if let Some(hash) = hash {
            self.hash = hash;
        }
        let retry_at = self.deadline().unwrap_or_else(|| {
            let delay = retry_delay(self.failures);
            self.failures += 1;
            now.instant + delay
        });
        self.outage = Some(Outage {
            reason,
            retry_at: Some(retry_at),
        });
    }

    /// Values were stored, which resets the backoff unless a bundle could not be.
    pub(super) fn values_written(&mut self) {
        self.written("");
    }

    pub(super) fn written(&mut self, hash: &str) {
        if self.hash == hash {
            self.failures = 0;
        }
    }

    /// Returns whether there was an outage.
    pub(super) fn recovered(&mut self) -> bool {
        self.outage.take().is_some()
    }

    /// Returns whether the time for a retry has come, once.
    pub(super) fn is_retry_due(&mut self, now: Now) -> bool {
        let outage = self.outage.as_mut();
        outage.is_some_and(|outage| outage.retry_at.take_if(|at| now.instant >= *at).is_some())
    }
}
