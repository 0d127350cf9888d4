//! Wall clock time.

/// Seconds since 1970, in whole microseconds, which JSON preserves exactly.
pub(crate) fn unix_now() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0.0, |d| d.as_micros() as f64 / 1e6)
}
