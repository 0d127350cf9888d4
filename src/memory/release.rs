//! Returns memory that large messages needed to the system afterwards: the ranges cached here, and
//! the arenas of the system's allocator (malloc(3), mallopt(3)).
use super::pieces::pieces;
use super::ranges::ranges;
use std::sync::atomic::Ordering;
use std::time::Duration;

const POLL_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(30);
/// Growth above the minimum that justifies trimming the arenas.
const TRIM_THRESHOLD_BYTES: usize = 32 << 20;

/// Checks periodically, and releases memory if no large block was allocated since the last check;
/// checks less often if that released little, since the memory may be in use. Never returns.
pub(crate) async fn release_unused() {
    let Some(mut minimum) = resident() else { return };
    super::CACHING.store(true, Ordering::Relaxed);
    let mut last = minimum;
    let mut interval = POLL_INTERVAL;
    let mut allocations = 0;
    loop {
        tokio::time::sleep(interval).await;
        let Some(now) = resident() else { break };
        let previous_allocations = std::mem::replace(&mut allocations, ranges().allocations);
        if now > minimum + TRIM_THRESHOLD_BYTES && now <= last && allocations == previous_allocations {
            let _ = tokio::task::spawn_blocking(release).await;
            let left = resident().unwrap_or(now);
            interval = match now.saturating_sub(left) >= TRIM_THRESHOLD_BYTES {
                true => POLL_INTERVAL,
                false => (interval * 2).min(MAX_INTERVAL),
            };
            last = left;
        } else {
            interval = POLL_INTERVAL;
            last = now;
        }
        minimum = minimum.min(last);
    }
    super::CACHING.store(false, Ordering::Relaxed);
}

/// The resident memory in bytes (proc(5), `VmRSS`).
fn resident() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: usize = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes << 10)
}

fn release() {
    pieces().shrink(0);
    ranges().release_unused();
    trim_arenas();
}

/// Bytes that the system's allocator keeps at the end of a heap, and up to which it takes blocks from heaps. By default it maps a block
/// of 128 KiB for itself, and its pages are cleared each time.
const KEPT_BYTES: i32 = 32 << 20;

#[cfg(target_env = "gnu")]
pub(crate) fn keep_freed_blocks() {
    use nix::libc::{M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
    // SAFETY: mallopt(3) changes numbers of the allocator, before there are other threads.
    #[allow(unsafe_code, reason = "the standard library cannot configure the system's allocator")]
    unsafe {
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES);
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES);
    };
}

#[cfg(not(target_env = "gnu"))]
pub(crate) fn keep_freed_blocks() {}

#[cfg(target_env = "gnu")]
fn trim_arenas() {
    // SAFETY: malloc_trim(3) may be called by any thread at any time.
    #[allow(unsafe_code, reason = "the standard library cannot trim the allocator's arenas")]
    unsafe {
        nix::libc::malloc_trim(0)
    };
}

#[cfg(not(target_env = "gnu"))]
fn trim_arenas() {}
