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
    pub cpus: Option<u32>,
    pub mem: Option<Memory>,
    pub gpus: Option<Gpus>,
    /// Other resources: a name and a number, for example `licence: 2`.
    #[serde(flatten, deserialize_with = "named")]
    pub named: BTreeMap<String, u64>,
}

/// A number of GPUs, or their names for `CUDA_VISIBLE_DEVICES` (indexes or UUIDs).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Gpus {
    Count(u16),
    Names(Vec<String>),
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
            let model = |name: &str| node.gpus.iter().find(|gpu| gpu.name == name).map(|gpu| gpu.model.clone());
            let gpu = |name: String| Gpu {
                vendor,
                model: model(&name).unwrap_or_default(),
                name,
            };
            node.gpus = names.into_iter().map(gpu).collect();
        }
        node.named = self.named.clone();
    }
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
        None => Err(D::Error::custom(format!("resource {name}: {value} is not a whole number"))),
        Some(number) => Ok((name, number)),
    };
    named.into_iter().map(one).collect()
}
