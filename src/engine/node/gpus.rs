//! Finds GPUs without running a vendor's program, which may be missing or slow.
//!
//! NVIDIA: `/proc/driver/nvidia/gpus/ADDRESS/information` (the driver's README, "The /proc File System Interface") and
//! `/dev/nvidiaN`. AMD: `/sys/class/kfd/kfd/topology/nodes/N/properties` (the kernel's amdkfd). What a batch job was given is in
//! `CUDA_VISIBLE_DEVICES` or `ROCR_VISIBLE_DEVICES`; its words are kept, so UUIDs and MIG instances are tasks' own.
use super::Surroundings;
use crate::model::node::{Gpu, GpuVendor};
use std::fs;
use std::path::Path;

impl Surroundings<'_> {
    pub(super) fn gpus(&self) -> Vec<Gpu> {
        let nvidia = self.given(GpuVendor::Nvidia, self.nvidia_models());
        let amd = self.given(GpuVendor::Amd, self.amd_models());
        nvidia.into_iter().chain(amd).collect()
    }

    /// The GPUs of one vendor that this process may use. `models` are those of the host, by index.
    fn given(&self, vendor: GpuVendor, models: Vec<String>) -> Vec<Gpu> {
        if models.is_empty() {
            return Vec::new();
        }
        let gpu = |name: String, model: Option<&String>| Gpu {
            vendor,
            name,
            model: model.cloned().unwrap_or_default(),
        };
        // An empty value means none, unlike a missing one.
        match (self.variable)(vendor.variable()) {
            Some(text) => visible(&text, models.len())
                .into_iter()
                .map(|name| {
                    let model = name.parse::<usize>().ok().map(|index| models.get(index));
                    // UUIDs are not resolved; one host rarely has several models.
                    gpu(name, model.unwrap_or(models.first()))
                })
                .collect(),
            // A job that requested GPUs has the variable.
            None if self.batch_system().is_some() => Vec::new(),
            None => (0..models.len()).map(|index| gpu(index.to_string(), models.get(index))).collect(),
        }
    }

    /// In the order of PCI addresses, which `CUDA_DEVICE_ORDER=PCI_BUS_ID` selects.
    fn nvidia_models(&self) -> Vec<String> {
        let directory = self.root.join("proc/driver/nvidia/gpus");
        let mut found: Vec<(String, String)> = entries(&directory)
            .into_iter()
            .filter_map(|address| {
                let text = fs::read_to_string(directory.join(&address).join("information")).ok()?;
                let minor = field(&text, "Device Minor:");
                // A container lacks the device files of other containers' GPUs.
                let is_usable = minor.is_none_or(|minor| self.root.join(format!("dev/nvidia{minor}")).exists());
                is_usable.then(|| (address, field(&text, "Model:").unwrap_or_default().to_string()))
            })
            .collect();
        found.sort();
        found.into_iter().map(|(_, model)| model).collect()
    }

    fn amd_models(&self) -> Vec<String> {
        let directory = self.root.join("sys/class/kfd/kfd/topology/nodes");
        let mut numbers: Vec<u32> = entries(&directory).iter().filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        let model = |number: &u32| {
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
            is_usable.then(|| fs::read_to_string(node.join("name")).unwrap_or_default().trim().to_string())
        };
        numbers.iter().filter_map(model).collect()
    }
}

/// The GPUs that the variables name, whether they exist or not.
pub(super) fn named_by(variable: &dyn Fn(&str) -> Option<String>) -> Vec<Gpu> {
    let of = |vendor: GpuVendor| {
        let names = variable(vendor.variable())
            .map(|text| visible(&text, usize::MAX))
            .unwrap_or_default();
        names.into_iter().map(move |name| Gpu {
            vendor,
            name,
            model: String::new(),
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

fn entries(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).into_iter().flatten().flatten();
    names.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}
