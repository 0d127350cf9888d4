//! Times and durations for display. JSON has ISO dates and seconds instead.
use crate::model::UnixTime;
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) fn now() -> UnixTime {
    UnixTime(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map(|d| d.as_secs_f64())
            .unwrap_or_default(),
    )
}

/// `3 min ago`; a date after a week.
pub(crate) fn ago(now: UnixTime, then: UnixTime) -> String {
    let seconds = now.since(then);
    match seconds {
        s if s < 2.0 => "just now".into(),
        s if s < 60.0 => format!("{} s ago", s as u64),
        s if s < 3600.0 => format!("{} min ago", (s / 60.0) as u64),
        s if s < 86400.0 => format!("{} h ago", (s / 3600.0) as u64),
        s if s < 7.0 * 86400.0 => format!("{} d ago", (s / 86400.0) as u64),
        _ => date(then),
    }
}

/// `2026-11-20`, local time.
fn date(then: UnixTime) -> String {
    local(then)
        .map(|z| z.strftime("%Y-%m-%d").to_string())
        .unwrap_or_else(|| then.to_iso())
}

/// `2026-11-20 21:10:03`, local time.
pub(crate) fn local_time(then: UnixTime) -> String {
    local(then)
        .map(|z| z.strftime("%Y-%m-%d %H:%M:%S").to_string())
        .unwrap_or_else(|| then.to_iso())
}

/// `21:10`, local time.
pub(crate) fn time_of_day(then: UnixTime) -> String {
    local(then)
        .map(|z| z.strftime("%H:%M").to_string())
        .unwrap_or_else(|| then.to_iso())
}

fn local(then: UnixTime) -> Option<jiff::Zoned> {
    let stamp = jiff::Timestamp::from_microsecond((then.0 * 1e6).round() as i64).ok()?;
    Some(stamp.to_zoned(jiff::tz::TimeZone::system()))
}

/// `210 µs`, `3.4 ms`, `12.3 s`, `1 min 15 s`, `2 h 5 min`, `3 d 4 h`.
pub(crate) fn duration(seconds: f64) -> String {
    let seconds = if seconds.is_finite() { seconds.max(0.0) } else { 0.0 };
    // Values that round up to the next unit are shown in that unit.
    if seconds == 0.0 {
        "0 s".into()
    } else if seconds < 0.0009995 {
        format!("{:.0} µs", seconds * 1e6)
    } else if seconds < 0.00995 {
        format!("{:.1} ms", seconds * 1e3)
    } else if seconds < 0.9995 {
        format!("{:.0} ms", seconds * 1e3)
    } else if seconds < 59.95 {
        format!("{seconds:.1} s")
    } else {
        let whole = seconds.round() as u64;
        let (large, small, per) = match whole {
            s if s < 3600 => ("min", "s", (60, 1)),
            s if s < 86400 => ("h", "min", (3600, 60)),
            _ => ("d", "h", (86400, 3600)),
        };
        let rest = whole % per.0 / per.1;
        match rest {
            0 => format!("{} {large}", whole / per.0),
            _ => format!("{} {large} {rest} {small}", whole / per.0),
        }
    }
}

/// Parses `--since`: an age (`2h`), or a date (`2026-11-20`, `2026-11-20T21:10`), local unless it has an offset.
pub(crate) fn parse_since(text: &str, now: UnixTime) -> Result<UnixTime, String> {
    let how = || format!("{text:?} is neither an age (90s, 10m, 2h, 3d) nor a date (2026-11-20, 2026-11-20T21:10)");
    if let Some(seconds) = crate::model::query::parse_duration(text) {
        return Ok(UnixTime(now.0 - seconds));
    }
    if let Ok(stamp) = text.parse::<jiff::Timestamp>() {
        return Ok(UnixTime(stamp.as_microsecond() as f64 / 1e6));
    }
    let civil: jiff::civil::DateTime = text
        .parse()
        .or_else(|_| text.parse::<jiff::civil::Date>().map(|d| d.at(0, 0, 0, 0)))
        .map_err(|_| how())?;
    let zoned = civil.to_zoned(jiff::tz::TimeZone::system()).map_err(|_| how())?;
    Ok(UnixTime(zoned.timestamp().as_microsecond() as f64 / 1e6))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_read_well() {
        let formatted: Vec<_> = [0.0, 0.00021, 0.0034, 0.25, 0.9996, 12.34, 59.96, 75.0, 3600.0, 7500.0, 273_600.0]
            .map(duration)
            .into();
        assert_eq!(
            formatted,
            [
                "0 s",
                "210 µs",
                "3.4 ms",
                "250 ms",
                "1.0 s",
                "12.3 s",
                "1 min",
                "1 min 15 s",
                "1 h",
                "2 h 5 min",
                "3 d 4 h"
            ]
        );
    }

    #[test]
    fn times_ago_read_well() {
        let now = UnixTime(1_763_669_533.0);
        let formatted: Vec<_> = [0.0, 12.5, 200.0, 7300.0, 200_000.0].map(|s| ago(now, UnixTime(now.0 - s))).into();
        assert_eq!(formatted, ["just now", "12 s ago", "3 min ago", "2 h ago", "2 d ago"]);
        assert!(ago(now, UnixTime(now.0 - 1e7)).starts_with("2025-07-"));
        // A clock that was set back.
        assert_eq!(ago(now, UnixTime(now.0 + 100.0)), "just now");
    }

    #[test]
    fn since_accepts_durations_and_dates() {
        let now = UnixTime(1_763_669_533.0);
        assert_eq!(parse_since("2h", now), Ok(UnixTime(now.0 - 7200.0)));
        assert_eq!(parse_since("2025-11-20T20:12:13Z", now), Ok(now));
        let day = parse_since("2025-11-20", now).unwrap();
        assert!((now.0 - day.0).abs() < 2.0 * 86400.0);
        assert!(parse_since("2025-11-20T20:12", now).is_ok());
        assert!(parse_since("last week", now).unwrap_err().contains("2h"));
    }

    proptest! {
        #[test]
        fn formatting_times_never_panics(seconds: f64, text in ".*") {
            duration(seconds);
            ago(UnixTime(seconds), UnixTime(0.0));
            local_time(UnixTime(seconds));
            let _ = parse_since(&text, UnixTime(0.0));
        }
    }
}
