//! `engine.resources`: what engines report of their node instead of what they detect.
use crate::model::memory::Memory;
use crate::model::node::{Gpu, GpuVendor, NodeFacts};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Resources of a node; unset ones are detected.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NodeResources {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpus: Option<Gpus>,
    /// Other resources: a name and a number, for example `licence: 2`.
    #[serde(flatten)]
    pub named: BTreeMap<String, u64>,
}

/// A number of GPUs, or their names for `CUDA_VISIBLE_DEVICES` (indexes or UUIDs).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Gpus {
    Count(u16),
    Names(Vec<String>),
}

impl<'de> Deserialize<'de> for Gpus {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Gpus, D::Error> {
        let value = serde_json::Value::deserialize(from)?;
        let invalid = || D::Error::custom("gpus: use a number, or a list of different names such as [0, 1] or [GPU-5f1…, MIG-7a2…]");
        let name = |value: &serde_json::Value| {
            let name = value
                .as_u64()
                .map(|index| index.to_string())
                .or_else(|| value.as_str().map(String::from))?;
            let is_valid = !name.is_empty() && name.len() <= 100 && name.chars().all(|c| c.is_ascii_graphic() && c != ',');
            is_valid.then_some(name)
        };
        match &value {
            serde_json::Value::Array(values) => {
                let names: Vec<String> = values.iter().map(name).collect::<Option<_>>().ok_or_else(invalid)?;
                let different: std::collections::BTreeSet<&String> = names.iter().collect();
                match different.len() == names.len() {
                    true => Ok(Gpus::Names(names)),
                    false => Err(invalid()),
                }
            }
            other => {
                let count = other.as_u64().and_then(|count| u16::try_from(count).ok());
                count.map(Gpus::Count).ok_or_else(invalid)
            }
        }
    }
}

impl NodeResources {
    /// Replaces what was detected by what is set.
    pub(crate) fn apply(&self, node: &mut NodeFacts) {
        node.cpus = self.cpus.unwrap_or(node.cpus);
        node.mem_bytes = self.mem.map_or(node.mem_bytes, |memory| memory.bytes);
        let vendor = node.gpus.first().map_or(GpuVendor::Nvidia, |gpu| gpu.vendor);
        let names = match &self.gpus {
            None => None,
            Some(Gpus::Names(names)) => Some(names.clone()),
            Some(Gpus::Count(count)) => {
                let detected = node.gpus.iter().map(|gpu| gpu.name.clone());
                let more = (node.gpus.len()..).map(|index| index.to_string());
                Some(detected.chain(more).take(usize::from(*count)).collect())
            }
        };
        if let Some(names) = names {
            let detected = |name: &str| node.gpus.iter().find(|gpu| gpu.name == name).cloned();
            let gpu = |name: String| {
                detected(&name).unwrap_or(Gpu {
                    vendor,
                    name,
                    model: String::new(),
                    numa: None,
                })
            };
            node.gpus = names.into_iter().map(gpu).collect();
        }
        node.named = self.named.clone();
    }
}

/// Likely misspellings of the resources with fixed names.
const MISSPELT: [(&str, &str); 7] = [
    ("cpu", "cpus"),
    ("core", "cpus"),
    ("cores", "cpus"),
    ("gpu", "gpus"),
    ("memory", "mem"),
    ("ram", "mem"),
    ("mib", "mem"),
];

/// The right spelling, if this looks like a resource with a fixed name.
pub(crate) fn misspelt(name: &str) -> Option<&'static str> {
    let fixed = [("cpus", "cpus"), ("mem", "mem"), ("gpus", "gpus")];
    let all = MISSPELT.iter().chain(&fixed);
    all.into_iter()
        .find(|(wrong, _)| name.eq_ignore_ascii_case(wrong))
        .map(|(_, right)| *right)
}

/// Whether a user may give a resource this name.
pub(crate) fn is_resource_name(name: &str) -> bool {
    let rest = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    name.len() <= 40 && name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(rest)
}

/// The most of a resource that a profile names; more is assumed to be a typo.
const MAX_COUNT: u64 = 1_000_000_000_000_000;

/// A number of a resource that a profile names.
pub(crate) fn count(name: &str, text: &str) -> Result<u64, String> {
    let is_whole = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    match text.parse::<u64>() {
        Ok(count @ 1..=MAX_COUNT) => Ok(count),
        Ok(0) => Err(format!("{name}: must be greater than 0")),
        _ if is_whole => Err(format!("{name}: {text} is more than {MAX_COUNT}")),
        _ => Err(format!("{name}: {text:?} is not a whole number")),
    }
}

/// `NAME=VALUE` as a setting of the profile, and its value in YAML.
pub(crate) fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .filter(|(_, value)| !value.trim().is_empty())
        .ok_or_else(|| format!("{text:?} is not NAME=VALUE, for example gpus=4, mem=64G or licence=2"))?;
    if name.contains('.') {
        return Err(format!("a name with a dot, such as {name}, can only be set in the profile"));
    }
    match name {
        "cpus" | "mem" | "gpus" => {
            // YAML parsers need unbounded time or stack for deeply nested input.
            if value.matches(['[', '{', '-', '?']).count() > 1000 {
                return Err(format!("{name}: not an amount"));
            }
            let value: serde_yaml::Value = serde_yaml::from_str(value).map_err(|e| e.to_string())?;
            let one = serde_yaml::Mapping::from_iter([(name.into(), value)]);
            serde_yaml::from_value::<NodeResources>(one.into()).map_err(|e| e.to_string())?;
        }
        _ => {
            check_name(name)?;
            count(name, value)?;
        }
    }
    Ok((format!("engine.resources.{name}"), value.into()))
}

/// What should be a number, as text: also one that no integer type holds.
struct Number(String);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Number, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Number;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }
            fn visit_u64<E: Error>(self, value: u64) -> Result<Number, E> {
                Ok(Number(value.to_string()))
            }
            fn visit_u128<E: Error>(self, value: u128) -> Result<Number, E> {
                Ok(Number(value.to_string()))
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<Number, E> {
                Ok(Number(value.to_string()))
            }
            fn visit_f64<E: Error>(self, value: f64) -> Result<Number, E> {
                Ok(Number(value.to_string()))
            }
            fn visit_str<E: Error>(self, value: &str) -> Result<Number, E> {
                Ok(Number(value.to_string()))
            }
        }
        from.deserialize_any(Any)
    }
}

impl<'de> Deserialize<'de> for NodeResources {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<NodeResources, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = NodeResources;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("names and amounts of resources")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NodeResources, A::Error> {
                let (mut all, mut names) = (NodeResources::default(), BTreeSet::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format!("duplicate resource {name}")));
                    }
                    match name.as_str() {
                        "cpus" => {
                            let cpus = map.next_value::<Number>()?.0;
                            let cpus = count("cpus", &cpus).map_err(A::Error::custom)?;
                            let cpus = u32::try_from(cpus).map_err(|_| A::Error::custom(format!("cpus: {cpus} is too many")));
                            all.cpus = Some(cpus?);
                        }
                        "mem" => all.mem = Some(map.next_value()?),
                        "gpus" => all.gpus = Some(map.next_value()?),
                        _ => {
                            check_name(&name).map_err(A::Error::custom)?;
                            let amount = map.next_value::<Number>()?.0;
                            let amount = count(&name, &amount).map_err(A::Error::custom)?;
                            all.named.insert(name, amount);
                        }
                    }
                }
                Ok(all)
            }
        }
        from.deserialize_map(Pairs)
    }
}

/// Whether a profile may give a resource this name.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    match misspelt(name) {
        Some(right) => Err(format!("{name:?} is not a resource: write {right}")),
        None if !is_resource_name(name) => Err(format!(
            "{name:?} is not a name of a resource: use letters, digits, '_', '-' and '.', first a letter"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(yaml: &str) -> Result<NodeResources, String> {
        serde_yaml::from_str(yaml).map_err(|e| e.to_string())
    }

    #[test]
    fn configured_resources_replace_detected_ones() {
        let gpu = |name: &str| Gpu {
            vendor: GpuVendor::Amd,
            name: name.into(),
            model: "MI300".into(),
            numa: None,
        };
        let detected = NodeFacts {
            cpus: 8,
            mem_bytes: 1 << 30,
            gpus: vec![gpu("0")],
            ..NodeFacts::default()
        };
        let applied = |yaml: &str| {
            let mut node = detected.clone();
            parse(yaml).unwrap().apply(&mut node);
            node
        };
        assert_eq!(applied("{}"), detected);
        assert_eq!(
            applied("{cpus: 2, mem: 4G, licence: 3}").to_string(),
            "2 cpus, 4G, 1 gpu, 3 licence"
        );
        let two = applied("gpus: 2").gpus;
        assert_eq!((&two[0], two[1].vendor, two[1].name.as_str()), (&gpu("0"), GpuVendor::Amd, "1"));
        assert_eq!(applied("gpus: 0").gpus, []);
        assert_eq!(applied("gpus: [MIG-1, MIG-2]").gpus[1].name, "MIG-2");
        assert_eq!(applied("gpus: [3, 4]").gpus[1].name, "4");
    }

    #[test]
    fn an_option_is_one_setting() {
        for (text, key, value) in [
            ("gpus=4", "gpus", "4"),
            ("gpus=[GPU-5f, MIG-7]", "gpus", "[GPU-5f, MIG-7]"),
            ("mem=64G", "mem", "64G"),
            ("licence=2", "licence", "2"),
        ] {
            assert_eq!(setting(text), Ok((format!("engine.resources.{key}"), value.into())));
        }
        for (text, message) in [
            ("gpus", "not NAME=VALUE"),
            ("gpus=", "not NAME=VALUE"),
            ("=4", "not a name of a resource"),
            ("memory=4G", "write mem"),
            ("mem=500", "write 500M"),
            ("cpus=0", "greater than 0"),
            ("cpus=1.5", "not a whole number"),
            ("gpus=-1", "gpus: use a number"),
            ("licence=-1", "not a whole number"),
            ("licence={a: 1}", "not a whole number"),
            ("licence=18446744073709551616", "is more than"),
            ("cpus=[]", "expected a whole number"),
            ("licence=}", ""),
            ("a.b=1", "only be set in the profile"),
        ] {
            let error = setting(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
        assert!(setting(&format!("a={}", "[".repeat(100_000))).is_err());
    }

    #[test]
    fn bad_resources_are_errors() {
        for (yaml, message) in [
            ("mem: 500", "write 500M"),
            ("cpus: -1", "cpus: \"-1\" is not a whole number"),
            ("cpus: 1.5", "cpus: \"1.5\" is not"),
            ("cpus: 0", "cpus: must be greater than 0"),
            ("cpus: many", "is not a whole number"),
            ("cpus: 5000000000", "too many"),
            ("mem: 0G", "greater than 0"),
            ("mem: -1G", "not an amount"),
            ("gpu: 1", "write gpus"),
            ("RAM: 1", "write mem"),
            ("CPUS: 4", "write cpus"),
            ("gpus: [0, 0]", "different names"),
            ("gpus: ['a,b']", "use a number, or a list"),
            ("gpus: many", "use a number, or a list"),
            ("gpus: 0.5", "use a number, or a list"),
            ("licence: -1", "not a whole number"),
            ("licence: many", "licence: \"many\" is not a whole number"),
            ("licence: 0", "licence: must be greater than 0"),
            ("licence: 0.5", "not a whole number"),
            ("{licence: 1, licence: 2}", "duplicate"),
            ("{cpus: 1, cpus: 2}", "duplicate"),
            ("licence: 99999999999999999999999999999999999999999", "is more than"),
            ("licence: 18446744073709551616", "is more than 1000000000000000"),
            ("licence: 2000000000000000", "is more than 1000000000000000"),
            ("'a b': 1", "not a name of a resource"),
        ] {
            let error = parse(yaml).unwrap_err();
            assert!(error.contains(message), "{yaml}: {error}");
        }
    }
}
