//! The environment variables that tell a task what it may use.
use crate::model::node::GpuVendor;
use crate::model::resources::Allocation;

/// Numbers of threads: OpenMP's, and those of libraries with one of their own.
const THREADS: [&str; 3] = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"];
/// From these an `mpirun` inside a task learns what the job has (sbatch(1), "OUTPUT ENVIRONMENT VARIABLES"): of the job, a
/// task has this many processors on one node.
const SLURM_CPUS: [&str; 5] = [
    "SLURM_NTASKS",
    "SLURM_NPROCS",
    "SLURM_TASKS_PER_NODE",
    "SLURM_JOB_CPUS_PER_NODE",
    "SLURM_CPUS_ON_NODE",
];
const SLURM_NODES: [&str; 2] = ["SLURM_NNODES", "SLURM_JOB_NUM_NODES"];
const SLURM_NAMES: [&str; 2] = ["SLURM_NODELIST", "SLURM_JOB_NODELIST"];

/// Variables for tasks with this allocation. `variable` is the environment of the engine's tasks: numbers of threads that are
/// set there are kept.
pub(crate) fn environment(allocation: &Allocation, variable: &dyn Fn(&str) -> Option<String>) -> Vec<(&'static str, String)> {
    let cpus = allocation.cpus.to_string();
    let unset = THREADS.into_iter().filter(|name| variable(name).is_none());
    let mut all: Vec<(&'static str, String)> = unset.map(|name| (name, cpus.clone())).collect();
    for vendor in [GpuVendor::Nvidia, GpuVendor::Amd] {
        let names: Vec<&str> = allocation
            .gpus
            .iter()
            .filter(|gpu| gpu.vendor == vendor)
            .map(|gpu| gpu.name.as_str())
            .collect();
        if !names.is_empty() {
            all.push((vendor.variable(), names.join(",")));
        }
    }
    if allocation.gpus.iter().any(|gpu| gpu.vendor == GpuVendor::Nvidia) {
        // The indexes are in this order.
        all.push(("CUDA_DEVICE_ORDER", "PCI_BUS_ID".into()));
    }
    if let Some(node) = variable("SLURM_JOB_ID").and_then(|_| variable("SLURMD_NODENAME")) {
        all.extend(SLURM_CPUS.map(|name| (name, cpus.clone())));
        all.extend(SLURM_NODES.map(|name| (name, "1".to_string())));
        all.extend(SLURM_NAMES.map(|name| (name, node.clone())));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cores::CoreSet;
    use crate::model::node::Gpu;

    fn gpu(vendor: GpuVendor, name: &str) -> Gpu {
        Gpu {
            vendor,
            name: name.into(),
            model: String::new(),
            numa: None,
        }
    }

    #[test]
    fn threads_and_devices() {
        let allocation = Allocation {
            cpus: 4,
            gpus: vec![gpu(GpuVendor::Nvidia, "1"), gpu(GpuVendor::Nvidia, "MIG-7")],
            cores: CoreSet::default(),
        };
        let set = |name: &str| (name == "MKL_NUM_THREADS").then(|| "2".to_string());
        let shown: Vec<String> = environment(&allocation, &set).iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            shown,
            [
                "OMP_NUM_THREADS=4",
                "OPENBLAS_NUM_THREADS=4",
                "CUDA_VISIBLE_DEVICES=1,MIG-7",
                "CUDA_DEVICE_ORDER=PCI_BUS_ID"
            ]
        );
        let amd = Allocation {
            cpus: 1,
            gpus: vec![gpu(GpuVendor::Amd, "0")],
            cores: CoreSet::default(),
        };
        assert!(environment(&amd, &|_| Some(String::new())).contains(&("ROCR_VISIBLE_DEVICES", "0".into())));
    }

    #[test]
    fn a_task_in_a_slurm_job_has_its_part_of_the_job() {
        let allocation = Allocation {
            cpus: 2,
            gpus: Vec::new(),
            cores: CoreSet::default(),
        };
        let job = |name: &str| match name {
            "SLURM_JOB_ID" => Some("7".to_string()),
            "SLURMD_NODENAME" => Some("n3".to_string()),
            _ => None,
        };
        let all = environment(&allocation, &job);
        for expected in [("SLURM_TASKS_PER_NODE", "2"), ("SLURM_NNODES", "1"), ("SLURM_JOB_NODELIST", "n3")] {
            assert!(all.contains(&(expected.0, expected.1.into())), "{all:?}");
        }
        assert_eq!(environment(&allocation, &|_| None).len(), 3);
    }
}
