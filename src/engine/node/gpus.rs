//! Finds GPUs without running a vendor's program, which may be missing or slow.
//!
//! NVIDIA: `/proc/driver/nvidia/gpus/ADDRESS/information` (the driver's README, "The /proc File System Interface") and
//! `/dev/nvidiaN`. AMD: `/sys/class/kfd/kfd/topology/nodes/N/properties` (the kernel's amdkfd). What a batch job was given is in
//! `CUDA_VISIBLE_DEVICES` or `ROCR_VISIBLE_DEVICES`; its words are kept, so UUIDs and MIG instances are tasks' own.
use super::{BatchSystem, Surroundings};
use crate::model::node::{Gpu, GpuVendor};
use std::fs;
use std::path::Path;

/// A GPU of the host.
struct Installed {
    model: String,
    /// `GPU-…`, or empty.
    uuid: String,
    numa: Option<u32>,
}

impl Installed {
    /// Whether a word names it or, in the format of older drivers, an instance of it (`MIG-GPU-…/1/0`). A part of the UUID is
    /// enough.
    fn is_named(&self, word: &str) -> bool {
        let word = word.strip_prefix("MIG-").filter(|rest| rest.starts_with("GPU-")).unwrap_or(word);
        let uuid = word.split('/').next().unwrap_or_default();
        uuid.len() > "GPU-".len() && self.uuid.starts_with(uuid)
    }
}

impl Surroundings<'_> {
    pub(super) fn gpus(&self) -> Vec<Gpu> {
        let (nvidia, amd) = (self.nvidia(), self.amd());
        if nvidia.is_empty() && amd.is_empty() && self.slurm_gave_gpus() {
            // A container may hide the driver. Slurm sets the variables of all vendors.
            let named = named_by(self.variable);
            let vendor = named.first().map(|gpu| gpu.vendor);
            return named.into_iter().filter(|gpu| Some(gpu.vendor) == vendor).collect();
        }
        let nvidia = self.given(GpuVendor::Nvidia, &nvidia);
        let amd = self.given(GpuVendor::Amd, &amd);
        nvidia.into_iter().chain(amd).collect()
    }

    /// Whether the job requested GPUs (sbatch(1), "OUTPUT ENVIRONMENT VARIABLES").
    fn slurm_gave_gpus(&self) -> bool {
        let given = ["SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE"];
        let is_given = |name: &str| (self.variable)(name).is_some_and(|value| !value.is_empty());
        matches!(self.batch_system(), Some(BatchSystem::Slurm)) && given.into_iter().any(is_given)
    }

    /// The GPUs of one vendor that this process may use. `installed` are those of the host, by index.
    fn given(&self, vendor: GpuVendor, installed: &[Installed]) -> Vec<Gpu> {
        let Some(first) = installed.first() else {
            return Vec::new();
        };
        let gpu = |name: String| {
            let known = match name.parse::<usize>() {
                Ok(index) => installed.get(index),
                Err(_) => installed.iter().find(|gpu| gpu.is_named(&name)),
            };
            Gpu {
                vendor,
                // One host rarely has several models.
                model: known.unwrap_or(first).model.clone(),
                numa: known.and_then(|gpu| gpu.numa),
                name,
            }
        };
        // An empty value means none, unlike a missing one.
        match (self.variable)(vendor.variable()) {
            Some(text) => visible(&text, installed.len()).into_iter().map(gpu).collect(),
            // A job that requested GPUs has the variable.
            None if self.batch_system().is_some() => Vec::new(),
            None => (0..installed.len()).map(|index| gpu(index.to_string())).collect(),
        }
    }

    /// In the order of PCI addresses, which `CUDA_DEVICE_ORDER=PCI_BUS_ID` selects.
    fn nvidia(&self) -> Vec<Installed> {
        let directory = self.root.join("proc/driver/nvidia/gpus");
        let mut found: Vec<(String, Installed)> = entries(&directory)
            .into_iter()
            .filter_map(|address| {
                let text = fs::read_to_string(directory.join(&address).join("information")).ok()?;
                let minor = field(&text, "Device Minor:");
                // A container lacks the device files of other containers' GPUs.
                let is_usable = minor.is_none_or(|minor| self.root.join(format!("dev/nvidia{minor}")).exists());
                let installed = Installed {
                    model: field(&text, "Model:").unwrap_or_default().to_string(),
                    uuid: field(&text, "GPU UUID:").unwrap_or_default().to_string(),
                    numa: self.numa_of(&address),
                };
                is_usable.then_some((address, installed))
            })
            .collect();
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        found.into_iter().map(|(_, installed)| installed).collect()
    }

    /// The NUMA node of a PCI device (the kernel's Documentation/ABI, sysfs-bus-pci); -1 if it has none.
    fn numa_of(&self, address: &str) -> Option<u32> {
        let path = self
            .root
            .join("sys/bus/pci/devices")
            .join(address.to_ascii_lowercase())
            .join("numa_node");
        fs::read_to_string(path).ok()?.trim().parse().ok()
    }

    fn amd(&self) -> Vec<Installed> {
        let directory = self.root.join("sys/class/kfd/kfd/topology/nodes");
        let mut numbers: Vec<u32> = entries(&directory).iter().filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        let installed = |number: &u32| {
            let node = directory.join(number.to_string());
            let properties = fs::read_to_string(node.join("properties")).ok()?;
            let value = |name: &str| {
                let value = |line: &str| Some(line.strip_prefix(name)?.trim().parse::<u64>().ok())?;
                properties.lines().find_map(value)
            };
            // Processors are nodes too, without SIMD units.
            value("simd_count ").filter(|count| *count > 0)?;
            let minor = value("drm_render_minor ");
            let is_usable = minor.is_none_or(|minor| self.root.join(format!("dev/dri/renderD{minor}")).exists());
            // Bus, and device with function; the domain has a property of its own.
            let address = value("location_id ").map(|id| {
                let (domain, bus, device, function) = (value("domain ").unwrap_or_default(), id >> 8 & 0xff, id >> 3 & 0x1f, id & 7);
                format!("{domain:04x}:{bus:02x}:{device:02x}.{function}")
            });
            is_usable.then(|| Installed {
                model: fs::read_to_string(node.join("name")).unwrap_or_default().trim().to_string(),
                uuid: value("unique_id ").map(|id| format!("GPU-{id:016x}")).unwrap_or_default(),
                numa: address.and_then(|address| self.numa_of(&address)),
            })
        };
        numbers.iter().filter_map(installed).collect()
    }
}

/// More than any host has: HTCondor's word for no GPU is 10000.
const MAX_GPUS: usize = 1000;

/// The GPUs that the variables name, whether they exist or not.
pub(super) fn named_by(variable: &dyn Fn(&str) -> Option<String>) -> Vec<Gpu> {
    let of = |vendor: GpuVendor| {
        let names = variable(vendor.variable()).map(|text| visible(&text, MAX_GPUS)).unwrap_or_default();
        names.into_iter().map(move |name| Gpu {
            vendor,
            name,
            model: String::new(),
            numa: None,
        })
    };
    of(GpuVendor::Nvidia).chain(of(GpuVendor::Amd)).collect()
}

/// The words of a variable that are valid: those before the first invalid one (CUDA C++ Programming Guide).
fn visible(text: &str, count: usize) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for word in text.split(',').map(str::trim) {
        let is_valid = match word.parse::<i64>() {
            Ok(index) => usize::try_from(index).is_ok_and(|index| index < count),
            Err(_) => ["GPU-", "MIG-"].iter().any(|prefix| word.starts_with(prefix)),
        };
        if !is_valid || names.iter().any(|name| name == word) {
            break;
        }
        names.push(word.to_string());
    }
    names
}

pub(super) fn entries(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).into_iter().flatten().flatten();
    names.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}
