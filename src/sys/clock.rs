//! The time of day.

/// Seconds since 1970, in whole microseconds: so many digits come back from JSON as they were.
pub fn unix_now() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0.0, |d| d.as_micros() as f64 / 1e6)
}
