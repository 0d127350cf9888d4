//! By how much each retry asks for more than the attempt before.
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A factor greater than 1: `x1.5`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Growth {
    factor: f64,
}

/// More is assumed to be a typo.
const MAX_FACTOR: f64 = 100.0;

impl Growth {
    /// How often a task is retried with more.
    pub const MAX_RETRIES: u32 = 10;

    /// What the next attempt asks for, in the unit of `now`: at most `max`. None if that is not more.
    pub fn next(self, now: f64, max: Option<f64>) -> Option<f64> {
        let next = (now * self.factor).min(max.unwrap_or(f64::INFINITY));
        (next.is_finite() && next > now).then_some(next)
    }
}

impl FromStr for Growth {
    type Err = String;

    fn from_str(text: &str) -> Result<Growth, String> {
        let number = text.strip_prefix('x').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        let factor = number.and_then(|rest| rest.parse::<f64>().ok());
        let factor = factor.ok_or_else(|| format!("{text:?} is not a factor: write x and a number, for example x1.5"))?;
        match factor {
            _ if factor > 1.0 && factor <= MAX_FACTOR => Ok(Growth { factor }),
            _ if factor > MAX_FACTOR => Err(format!("{text:?} is more than x{MAX_FACTOR}")),
            _ => Err(format!("{text:?} is not more than before: the factor must be greater than 1")),
        }
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "x{}", self.factor)
    }
}

impl From<Growth> for String {
    fn from(growth: Growth) -> String {
        growth.to_string()
    }
}

impl TryFrom<String> for Growth {
    type Error = String;

    fn try_from(text: String) -> Result<Growth, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_has_an_x_and_is_greater_than_1() {
        for (text, shown) in [("x1.5", "x1.5"), ("x2", "x2"), ("x1.50", "x1.5"), ("x100", "x100")] {
            let growth: Growth = text.parse().unwrap();
            assert_eq!(growth.to_string(), shown);
            assert_eq!(
                serde_json::from_str::<Growth>(&serde_json::to_string(&growth).unwrap()).unwrap(),
                growth
            );
        }
        for (text, part) in [
            ("1.5", "is not a factor"),
            ("x", "is not a factor"),
            ("", "is not a factor"),
            ("1.5x", "is not a factor"),
            ("X2", "is not a factor"),
            ("x-2", "is not a factor"),
            ("xinf", "is not a factor"),
            ("xnan", "is not a factor"),
            ("x2G", "is not a factor"),
            ("x1", "must be greater than 1"),
            ("x0.5", "must be greater than 1"),
            ("x0", "must be greater than 1"),
            ("x101", "is more than x100"),
            ("x1e999", "is more than x100"),
        ] {
            let error = text.parse::<Growth>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
            assert!(serde_json::from_value::<Growth>(text.into()).is_err());
        }
        assert!(serde_json::from_str::<Growth>("1.5").is_err());
    }

    #[test]
    fn each_retry_asks_for_more_up_to_the_maximum() {
        let growth: Growth = "x1.5".parse().unwrap();
        assert_eq!(growth.next(8.0, None), Some(12.0));
        assert_eq!(growth.next(8.0, Some(10.0)), Some(10.0));
        assert_eq!(growth.next(10.0, Some(10.0)), None);
        assert_eq!(growth.next(12.0, Some(10.0)), None);
        assert_eq!(growth.next(f64::MAX, None), None);
        assert_eq!(growth.next(f64::NAN, None), None);
    }
}
