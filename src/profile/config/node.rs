//! `engine.resources`: what engines report of their node instead of what they detect.
use crate::model::memory::Memory;
use crate::model::node::{Gpu, GpuVendor, NodeFacts};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// Resources of a node; unset ones are detected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeResources {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpus: Option<Gpus>,
    /// Other resources: a name and a number, for example `licence: 2`.
    #[serde(flatten, deserialize_with = "named")]
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

fn named<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, u64>, D::Error> {
    let named = BTreeMap::<String, serde_json::Value>::deserialize(from)?;
    let one = |(name, value): (String, serde_json::Value)| match value.as_u64() {
        _ if !is_resource_name(&name) => Err(D::Error::custom(format!(
            "{name:?} is not a name of a resource: use letters, digits, '_', '-' and '.', first a letter"
        ))),
        _ if misspelt(&name).is_some() => {
            let right = misspelt(&name).unwrap_or_default();
            Err(D::Error::custom(format!("{name:?} is not a resource: write {right}")))
        }
        None => Err(D::Error::custom(format!("resource {name}: {value} is not a whole number"))),
        Some(number) => Ok((name, number)),
    };
    named.into_iter().map(one).collect()
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
    fn bad_resources_are_errors() {
        for (yaml, message) in [
            ("mem: 500", "write 500M"),
            ("cpus: -1", "cpus"),
            ("cpus: 1.5", "cpus"),
            ("gpu: 1", "write gpus"),
            ("RAM: 1", "write mem"),
            ("CPUS: 4", "write cpus"),
            ("gpus: [0, 0]", "different names"),
            ("gpus: ['a,b']", "use a number, or a list"),
            ("gpus: many", "use a number, or a list"),
            ("gpus: 0.5", "use a number, or a list"),
            ("licence: -1", "not a whole number"),
            ("licence: many", "not a whole number"),
            ("'a b': 1", "not a name of a resource"),
        ] {
            let error = parse(yaml).unwrap_err();
            assert!(error.contains(message), "{yaml}: {error}");
        }
    }
}
