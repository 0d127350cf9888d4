//! Nodes: the owners of resources. A node is a host, or the share of a host that one batch job was given; all of its
//! engines draw on the same processors, memory and GPUs.
use super::cores::CoreSet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What a node has, as its engines report it at registration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeFacts {
    /// Processors that tasks may use; 0 if unknown.
    pub cpus: u32,
    /// The processors to which tasks may be bound, by NUMA node; empty if unknown, or if the job is not bound to its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cores: Vec<NumaCores>,
    /// Memory in bytes; 0 if unknown.
    pub mem_bytes: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpu>,
    /// Resources that the profile names, such as `licence`, and their numbers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub named: BTreeMap<String, u64>,
}

/// Processors that are near the same memory and devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumaCores {
    pub numa: u32,
    pub cores: CoreSet,
}

/// One GPU, or one MIG instance of a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    pub vendor: GpuVendor,
    /// Its word in [`GpuVendor::variable`]: an index, or a UUID such as `GPU-…` or `MIG-…`.
    pub name: String,
    /// The model, if known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub model: String,
    /// Its NUMA node, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuVendor {
    Nvidia,
    Amd,
}

impl GpuVendor {
    /// The environment variable that selects the GPUs of a process (CUDA C++ Programming Guide, "CUDA Environment
    /// Variables"; ROCm documentation, "GPU isolation techniques").
    pub fn variable(self) -> &'static str {
        match self {
            GpuVendor::Nvidia => "CUDA_VISIBLE_DEVICES",
            GpuVendor::Amd => "ROCR_VISIBLE_DEVICES",
        }
    }
}

impl NodeFacts {
    /// The number of processors to which tasks may be bound.
    pub fn core_count(&self) -> usize {
        self.cores.iter().map(|group| group.cores.len()).sum()
    }

    /// Whether nothing is known about it.
    pub fn is_empty(&self) -> bool {
        *self == NodeFacts::default()
    }
}

impl fmt::Display for NodeFacts {
    /// `16 cpus, 64G, 2 gpus, 3 licence`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        let counted = |n: usize, one: &str| format!("{n} {one}{}", if n == 1 { "" } else { "s" });
        if self.cpus > 0 {
            parts.push(counted(self.cpus as usize, "cpu"));
        }
        if self.mem_bytes > 0 {
            parts.push(super::memory::Memory { bytes: self.mem_bytes }.rounded());
        }
        if !self.gpus.is_empty() {
            parts.push(counted(self.gpus.len(), "gpu"));
        }
        parts.extend(self.named.iter().map(|(name, count)| format!("{count} {name}")));
        f.write_str(&parts.join(", "))
    }
}
