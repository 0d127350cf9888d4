//! Memory that large messages needed goes back to the system when they are through: what is kept here, and what the system's allocator
//! keeps in an arena for each thread (malloc(3), mallopt(3)).
use super::pieces::pieces;
use super::ranges::ranges;
use std::sync::atomic::Ordering;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_secs(1);
const MOST_PAUSE: Duration = Duration::from_secs(30);
/// So much more than at the least is worth a walk through the arenas.
const SLACK_BYTES: usize = 32 << 20;

/// Looks now and then, and gives back when nothing large was taken since the last look; less often where that brought little, since what is
/// there may be in use. Never ends.
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

/// Bytes (proc(5), `VmRSS`).
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
