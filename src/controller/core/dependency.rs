//! Dependencies of ipyparallel's tasks, as its `Dependency` class defines them: a set of message ids that must have
//! succeeded or failed, all of them or any.
use serde_json::Value;
use std::collections::BTreeSet;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    pub ids: BTreeSet<String>,
    pub all: bool,
    pub success: bool,
    pub failure: bool,
}

impl Default for Dependency {
    fn default() -> Self {
        Dependency {
            ids: BTreeSet::new(),
            all: true,
            success: true,
            failure: false,
        }
    }
}

impl Dependency {
    /// From a request's metadata: null, one id, a list of ids, or an object with `dependencies`, `all`, `success`, `failure`.
    pub fn from_json(value: &Value) -> Dependency {
        let ids = |value: &Value| match value {
            Value::String(id) => BTreeSet::from([id.clone()]),
            Value::Array(list) => list.iter().filter_map(|v| v.as_str()).map(str::to_string).collect(),
            _ => BTreeSet::new(),
        };
        let flag = |name: &str, default: bool| value.get(name).and_then(Value::as_bool).unwrap_or(default);
        match value {
            Value::Object(object) => Dependency {
                ids: object.get("dependencies").map(ids).unwrap_or_default(),
                all: flag("all", true),
                success: flag("success", true),
                failure: flag("failure", false),
            },
            other => Dependency {
                ids: ids(other),
                ..Dependency::default()
            },
        }
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// `outcome` returns for an id: succeeded, failed, or not finished.
    pub fn is_met(&self, outcome: impl Fn(&str) -> Option<bool>) -> bool {
        let fits = |id: &String| match outcome(id) {
            Some(true) => self.success,
            Some(false) => self.failure,
            None => false,
        };
        self.ids.is_empty()
            || if self.all {
                self.ids.iter().all(fits)
            } else {
                self.ids.iter().any(fits)
            }
    }

    /// True if it can never be met.
    pub fn is_unreachable(&self, outcome: impl Fn(&str) -> Option<bool>) -> bool {
        let hopeless = |id: &String| match outcome(id) {
            Some(true) => !self.success,
            Some(false) => !self.failure,
            None => false,
        };
        !self.ids.is_empty()
            && if self.all {
                self.ids.iter().any(hopeless)
            } else {
                self.ids.iter().all(hopeless)
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn all_and_any_success_and_failure() {
        let outcome = |id: &str| match id {
            "ok" => Some(true),
            "bad" => Some(false),
            _ => None,
        };
        let dep = |ids: &[&str], all, success, failure| {
            Dependency::from_json(&json!({"dependencies": ids, "all": all, "success": success, "failure": failure}))
        };
        // ids, all, success, failure -> met, unreachable
        type Case = (&'static [&'static str], bool, bool, bool, bool, bool);
        let cases: [Case; 8] = [
            (&[], true, true, false, true, false),
            (&["ok"], true, true, false, true, false),
            (&["ok", "open"], true, true, false, false, false),
            (&["ok", "bad"], true, true, false, false, true),
            (&["ok", "bad"], false, true, false, true, false),
            (&["bad"], false, true, false, false, true),
            (&["bad"], true, false, true, true, false),
            (&["ok"], true, false, true, false, true),
        ];
        for (ids, all, success, failure, met, unreachable) in cases {
            let d = dep(ids, all, success, failure);
            assert_eq!((d.is_met(outcome), d.is_unreachable(outcome)), (met, unreachable), "{d:?}");
        }
        assert_eq!(Dependency::from_json(&json!("a")).ids.len(), 1);
        assert!(Dependency::from_json(&json!(null)).is_empty());
    }
}
