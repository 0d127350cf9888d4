//! Points in time as data. Nothing here reads a clock.
use serde::{Deserialize, Serialize};

/// Seconds since 1970-01-01T00:00:00Z, with microsecond precision. The database stores it as REAL.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct UnixTime(pub f64);

impl UnixTime {
    /// Seconds from `earlier` to `self`; never negative.
    pub fn since(self, earlier: UnixTime) -> f64 {
        (self.0 - earlier.0).max(0.0)
    }
    /// ISO 8601 in UTC with microseconds, ipyparallel's date format
    /// (`2026-11-20T20:02:13.000000Z`).
    pub fn to_iso(self) -> String {
        let micros = (self.0 * 1e6).round();
        match jiff::Timestamp::from_microsecond(micros as i64) {
            Ok(stamp) => format!("{stamp:.6}"),
            Err(_) => format!("{}", self.0),
        }
    }
    /// Parses the formats of [`UnixTime::to_iso`] and Python's `isoformat`.
    pub fn from_iso(text: &str) -> Option<UnixTime> {
        let stamp: jiff::Timestamp = text.parse().or_else(|_| format!("{text}Z").parse()).ok()?;
        Some(UnixTime(stamp.as_microsecond() as f64 / 1e6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iso_dates_round_trip() {
        let t = UnixTime(1_763_669_533.25);
        assert_eq!(t.to_iso(), "2025-11-20T20:12:13.250000Z");
        assert_eq!(UnixTime::from_iso(&t.to_iso()), Some(t));
        assert_eq!(UnixTime::from_iso("2025-11-20T20:12:13.250000"), Some(t));
        assert_eq!(UnixTime::from_iso("2025-11-20T20:12:13.250000+00:00"), Some(t));
        assert_eq!(UnixTime::from_iso("yesterday"), None);
    }
}
