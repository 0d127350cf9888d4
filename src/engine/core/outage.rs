//! Something of this host that does not work and is tried again, with growing delays.
use std::time::{Duration, Instant};

/// First delay before a retry; doubles with each further failure,
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// ... up to this delay.
const MAX_RETRY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Outage {
    pub reason: String,
    /// None during a retry.
    pub retry_at: Option<Instant>,
}

/// The delay after this many consecutive earlier failures.
pub(super) fn retry_delay(failures: u32) -> Duration {
    FIRST_RETRY.saturating_mul(1 << failures.min(10)).min(MAX_RETRY)
}
