//! What a task asks for, and what it is given while it runs.
use super::cores::CoreSet;
use super::memory::Memory;
use super::node::{Gpu, NodeFacts};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The resources of each task of a map, besides its memory ([`super::definition::MapOptions::mem_bytes`]).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskResources {
    pub cpus: u32,
    #[serde(skip_serializing_if = "GpuAmount::is_zero")]
    pub gpus: GpuAmount,
    /// Resources that profiles name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub named: BTreeMap<String, u64>,
    /// Bind it to its processors.
    #[serde(skip_serializing_if = "is_false")]
    pub pin: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Default for TaskResources {
    fn default() -> Self {
        TaskResources {
            cpus: 1,
            gpus: GpuAmount::default(),
            named: BTreeMap::new(),
            pin: false,
        }
    }
}

impl TaskResources {
    /// Whether an engine is all that such a task needs.
    pub fn is_default(&self) -> bool {
        *self == TaskResources::default()
    }
}

/// A whole number of GPUs, or a fraction of one that is shared: `2`, `0.5`. In thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GpuAmount {
    pub thousandths: u32,
}

pub(crate) const WHOLE_GPU: u32 = 1000;

impl GpuAmount {
    pub fn is_zero(&self) -> bool {
        self.thousandths == 0
    }
}

impl FromStr for GpuAmount {
    type Err = String;

    fn from_str(text: &str) -> Result<GpuAmount, String> {
        let invalid = || format!("{text:?} is not a number of GPUs: use a whole number, or a fraction of one between 0.001 and 0.999");
        let number: f64 = text.trim().parse().map_err(|_| invalid())?;
        let thousandths = number * f64::from(WHOLE_GPU);
        match thousandths {
            // Fractions are rounded down, so that three tasks with 0.333 and three with a third share one.
            _ if (1.0..1000.0).contains(&thousandths) => Ok(GpuAmount {
                thousandths: thousandths as u32,
            }),
            _ if number.fract() == 0.0 && (0.0..10_000.0).contains(&number) => Ok(GpuAmount {
                thousandths: thousandths as u32,
            }),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for GpuAmount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.thousandths) / f64::from(WHOLE_GPU))
    }
}

/// Everything that a task asks of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Request {
    pub resources: TaskResources,
    /// In bytes; 0 if unspecified.
    pub mem_bytes: u64,
}

impl Request {
    /// Whether a node with these resources could run such a task if it ran nothing else.
    pub fn fits(&self, node: &NodeFacts, engines: u32) -> bool {
        self.cpus_fit(node, engines)
            && (!self.resources.pin || self.resources.cpus as usize <= node.core_count())
            && (self.mem_bytes <= node.mem_bytes || node.mem_bytes == 0)
            && self.resources.gpus.thousandths.div_ceil(WHOLE_GPU) as usize <= node.gpus.len()
            && self
                .resources
                .named
                .iter()
                .all(|(name, count)| node.named.get(name).is_some_and(|has| count <= has))
    }

    fn cpus_fit(&self, node: &NodeFacts, engines: u32) -> bool {
        match self.resources.cpus {
            // An engine is enough.
            0..=1 => true,
            cpus if node.cpus == 0 => cpus <= engines,
            cpus => cpus <= node.cpus,
        }
    }
}

impl fmt::Display for Request {
    /// `4 cpus, 16G, 2 gpus, 1 licence`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TaskResources { cpus, gpus, named, pin } = &self.resources;
        let plural = if *cpus == 1 { "" } else { "s" };
        let mut parts = vec![format!("{cpus} cpu{plural}{}", if *pin { " to pin" } else { "" })];
        if self.mem_bytes > 0 {
            parts.push(Memory { bytes: self.mem_bytes }.rounded());
        }
        if !gpus.is_zero() {
            let plural = if gpus.thousandths > WHOLE_GPU { "s" } else { "" };
            parts.push(format!("{gpus} gpu{plural}"));
        }
        parts.extend(named.iter().map(|(name, count)| format!("{count} {name}")));
        f.write_str(&parts.join(", "))
    }
}

/// What an engine has for the tasks of one map, for as long as it holds any of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    pub cpus: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpu>,
    /// For tasks that are bound to their processors.
    #[serde(default, skip_serializing_if = "CoreSet::is_empty")]
    pub cores: CoreSet,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_whole_or_a_fraction_of_one() {
        let parse = |text: &str| text.parse::<GpuAmount>().map(|gpus| gpus.thousandths);
        assert_eq!(
            (parse("2"), parse("0.5"), parse(".25"), parse("1.0")),
            (Ok(2000), Ok(500), Ok(250), Ok(1000))
        );
        assert_eq!((parse("0"), parse("0.3333333")), (Ok(0), Ok(333)));
        for bad in ["", "1.5", "-1", "0.0001", "many", "nan", "inf", "1e9", "-0.5"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(GpuAmount { thousandths: 500 }.to_string(), "0.5");
        assert_eq!(GpuAmount { thousandths: 2000 }.to_string(), "2");
    }
}
