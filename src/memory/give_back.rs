//! Returns memory that large messages needed to the system afterwards: the ranges cached here, and
//! the arenas of the system's allocator (malloc(3), mallopt(3)).
use super::pieces::pieces;
use super::ranges::ranges;
use std::sync::atomic::Ordering;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_secs(1);
const MOST_PAUSE: Duration = Duration::from_secs(30);
/// Growth above the minimum that justifies trimming the arenas.
const SLACK_BYTES: usize = 32 << 20;

/// Checks periodically, and releases memory if no large block was allocated since the last check;
/// checks less often if that released little, since the memory may be in use. Never returns.
pub async fn give_back() {
    let Some(mut least) = resident() else { return };
    super::KEEPS.store(true, Ordering::Relaxed);
    let mut last = least;
    let mut pause = LOOK_EVERY;
    let mut taken = 0;
    loop {
        tokio::time::sleep(pause).await;
        let Some(now) = resident() else { break };
        let taken_before = std::mem::replace(&mut taken, ranges().taken);
        if now > least + SLACK_BYTES && now <= last && taken == taken_before {
            let _ = tokio::task::spawn_blocking(trim).await;
            let left = resident().unwrap_or(now);
            pause = match now.saturating_sub(left) >= SLACK_BYTES {
                true => LOOK_EVERY,
                false => (pause * 2).min(MOST_PAUSE),
            };
            last = left;
        } else {
            pause = LOOK_EVERY;
            last = now;
        }
        least = least.min(last);
    }
    super::KEEPS.store(false, Ordering::Relaxed);
}

/// The resident memory in bytes (proc(5), `VmRSS`).
fn resident() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: usize = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes << 10)
}

fn trim() {
    pieces().shrink(0);
    ranges().give_back();
    trim_system();
}

#[cfg(target_env = "gnu")]
fn trim_system() {
    // SAFETY: malloc_trim(3) may be called by any thread at any time.
    #[allow(unsafe_code, reason = "the standard library has no way to ask the allocator")]
    unsafe {
        nix::libc::malloc_trim(0)
    };
}

#[cfg(not(target_env = "gnu"))]
fn trim_system() {}
