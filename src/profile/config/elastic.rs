//! `elastic`: how many engines there are, if the work decides.
use crate::model::query::parse_duration;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ElasticConfig {
    /// The minimum number of engines,
    pub min: Option<u32>,
    /// and the maximum; without it, the number is fixed.
    pub max: Option<u32>,
    /// How long an engine may be idle before it is retired.
    pub idle: Span,
    /// The maximum of what all jobs together are granted.
    pub budget: Option<CoreHours>,
    /// The maximum number of jobs in the queue.
    pub max_queued: u32,
    /// What a new engine has to do at least.
    pub work_per_engine: Span,
    /// The interval between decisions when nothing happens.
    pub interval: Span,
}

impl Default for ElasticConfig {
    fn default() -> Self {
        ElasticConfig {
            min: None,
            max: None,
            idle: Span { seconds: 300.0 },
            budget: None,
            max_queued: 4,
            work_per_engine: Span { seconds: 600.0 },
            interval: Span { seconds: 10.0 },
        }
    }
}

impl ElasticConfig {
    /// The keys that mean nothing without `max`.
    pub(super) fn is_without_max(&self) -> Option<&'static str> {
        match self {
            ElasticConfig { max: Some(_), .. } => None,
            ElasticConfig { min: Some(_), .. } => Some("min"),
            ElasticConfig { budget: Some(_), .. } => Some("budget"),
            _ => None,
        }
    }
}

/// A time with a unit: `90s`, `5m`, `2h`, `1d`; a bare number is seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    pub seconds: f64,
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        let seconds = parse_duration(text).ok_or_else(|| format!("{text:?} is not a time (90s, 10m, 2h, 1d)"))?;
        Ok(Span { seconds })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seconds {
            s if s > 0.0 && s % 3600.0 == 0.0 => write!(f, "{}h", s / 3600.0),
            s if s > 0.0 && s % 60.0 == 0.0 => write!(f, "{}m", s / 60.0),
            s => write!(f, "{s}s"),
        }
    }
}

/// `500ch`: processors times hours that they are granted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CoreHours {
    pub hours: f64,
}

impl FromStr for CoreHours {
    type Err = String;

    fn from_str(text: &str) -> Result<CoreHours, String> {
        let number = text.trim().strip_suffix("ch").unwrap_or(text).trim();
        match number.parse::<f64>() {
            Ok(hours) if hours.is_finite() && hours > 0.0 => Ok(CoreHours { hours }),
            _ => Err(format!("{text:?} is not a number of core-hours: use 500ch")),
        }
    }
}

impl fmt::Display for CoreHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ch", self.hours)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(f64),
    Text(String),
}

fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err = String>>(from: D) -> Result<T, D::Error> {
    let text = match NumberOrText::deserialize(from)? {
        NumberOrText::Number(number) => number.to_string(),
        NumberOrText::Text(text) => text,
    };
    text.parse().map_err(D::Error::custom)
}

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<$name, D::Error> {
                parsed(from)
            }
        }
    )*};
}

as_text!(Span, CoreHours);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::config::Config;

    #[test]
    fn times_and_budgets_have_units() {
        let config = |text: &str| Config::parse(text, &[]).map(|config| config.elastic);
        let elastic = config("elastic: {max: 8, idle: 90s, budget: 500ch, work_per_engine: 2m, interval: 1}").unwrap();
        assert_eq!(
            (elastic.idle.seconds, elastic.work_per_engine.seconds, elastic.interval.seconds),
            (90.0, 120.0, 1.0)
        );
        assert_eq!(elastic.budget, Some(CoreHours { hours: 500.0 }));
        for (text, says) in [
            ("elastic: {max: 8, idle: soon}", "is not a time"),
            ("elastic: {max: 8, budget: much}", "is not a number of core-hours: use 500ch"),
            ("elastic: {min: 1}", "elastic.min needs elastic.max"),
            ("elastic: {budget: 5ch}", "elastic.budget needs elastic.max"),
            ("elastic: {maxi: 1}", "maxi"),
        ] {
            let error = config(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        for text in ["45s", "5m", "2h", "0s", "1.5s"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
    }
}
