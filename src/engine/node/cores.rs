//! The processors to which tasks may be bound: those of the engine's affinity mask, by NUMA node (the kernel's
//! Documentation/ABI, sysfs-devices-node).
use super::Surroundings;
use crate::model::cores::CoreSet;
use crate::model::node::NumaCores;
use std::collections::BTreeMap;
use std::fs;

impl Surroundings<'_> {
    /// None of a job that may run on more processors than it was given: which of them are its own is unknown.
    pub(super) fn cores(&self, given: Option<u32>) -> Vec<NumaCores> {
        let mask = self.affinity_mask();
        if given.is_some_and(|given| mask.len() > given as usize) {
            return Vec::new();
        }
        let mut left: Vec<u16> = mask.iter().collect();
        let mut groups = Vec::new();
        for (numa, near) in self.numa_nodes() {
            let cores: CoreSet = left.iter().copied().filter(|core| near.contains(*core)).collect();
            left.retain(|core| !cores.contains(*core));
            if !cores.is_empty() {
                groups.push(NumaCores { numa, cores });
            }
        }
        if !left.is_empty() {
            let cores = left.into_iter().collect();
            groups.push(NumaCores { numa: 0, cores });
        }
        groups
    }

    fn affinity_mask(&self) -> CoreSet {
        let text = fs::read_to_string(self.root.join("proc/self/status")).unwrap_or_default();
        let list = text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        list.and_then(|list| list.trim().parse().ok()).unwrap_or_default()
    }

    fn numa_nodes(&self) -> BTreeMap<u32, CoreSet> {
        let directory = self.root.join("sys/devices/system/node");
        let names = super::gpus::entries(&directory).into_iter();
        let node = |name: String| {
            let numa: u32 = name.strip_prefix("node")?.parse().ok()?;
            let list = fs::read_to_string(directory.join(name).join("cpulist")).ok()?;
            Some((numa, list.trim().parse().ok()?))
        };
        names.filter_map(node).collect()
    }
}
