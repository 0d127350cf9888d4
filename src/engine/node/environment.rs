//! The environment of tasks: what they may use of their node, and of the job that the node is a share of.
//!
//! Sources: sbatch(1) and srun(1), "INPUT ENVIRONMENT VARIABLES" and "OUTPUT ENVIRONMENT VARIABLES"; qsub(1) of OpenPBS, Torque
//! and Grid Engine; bsub(1) of LSF, "Environment variables"; what `mpirun` reads of them: Open MPI's ras and schizo
//! components for slurm, tm, gridengine and lsf, MPICH's hydra/tools/bootstrap.
use super::{BatchSystem, Surroundings};
use crate::model::node::GpuVendor;
use crate::model::resources::Allocation;
use std::fs;

/// Numbers of threads: OpenMP's, and those of libraries with one of their own.
const THREADS: [&str; 3] = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"];
/// Of the job, a task has this many processors on one node.
const SLURM_CPUS: [&str; 5] = [
    "SLURM_NTASKS",
    "SLURM_NPROCS",
    "SLURM_TASKS_PER_NODE",
    "SLURM_JOB_CPUS_PER_NODE",
    "SLURM_CPUS_ON_NODE",
];
const SLURM_NODES: [&str; 2] = ["SLURM_NNODES", "SLURM_JOB_NUM_NODES"];
const SLURM_NAMES: [&str; 2] = ["SLURM_NODELIST", "SLURM_JOB_NODELIST"];
/// The same, for variables that exist only if the job was submitted with certain options.
const CPUS_IF_SET: [&str; 7] = [
    "SLURM_NTASKS_PER_NODE",
    "NCPUS",
    "PBS_NP",
    "PBS_NUM_PPN",
    "NSLOTS",
    "LSB_DJOB_NUMPROC",
    "LSB_MAX_NUM_PROCESSORS",
];
const ONE_IF_SET: [&str; 4] = ["SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK", "PBS_NUM_NODES", "NHOSTS"];

/// The launch of an MPI program to which an engine may belong, as one of its ranks: a task is not one of them.
const LAUNCH_PREFIXES: [&str; 8] = [
    "PMI_",
    "PMIX_",
    "OMPI_COMM_WORLD_",
    "OMPI_MCA_orte_",
    "OMPI_MCA_ess",
    "MV2_COMM_WORLD_",
    "SLURM_STEP_",
    "HYDI_",
];
const LAUNCH_NAMES: [&str; 13] = [
    "OMPI_APP_CTX_NUM_PROCS",
    "OMPI_ARGV",
    "OMPI_COMMAND",
    "OMPI_FILE_LOCATION",
    "OMPI_FIRST_RANKS",
    "OMPI_MCA_initial_wdir",
    "OMPI_NUM_APP_CTX",
    "OMPI_UNIVERSE_SIZE",
    "PRTE_LAUNCHED",
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "SLURM_STEPID",
    ENGINES,
];

/// The number of engines that were started on this node together, from their launcher.
const ENGINES: &str = "PCLUSTER_ENGINES";

/// Whether a variable is part of such a launch; what users configure (`OMPI_MCA_btl`) is not.
pub(crate) fn is_of_launch(name: &str) -> bool {
    LAUNCH_NAMES.contains(&name) || LAUNCH_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Variables for tasks that ask for nothing: as many threads as this engine's part of the node's processors, if it is known how
/// many engines share them.
pub(crate) fn of_default_task(cpus: u32, variable: &dyn Fn(&str) -> Option<String>) -> Vec<(&'static str, String)> {
    let here = [ENGINES, "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"];
    let engines = here.into_iter().find_map(|name| variable(name)?.trim().parse::<u32>().ok());
    match engines.filter(|engines| *engines > 0 && cpus > 0) {
        Some(engines) => threads((cpus / engines).max(1), variable),
        None => Vec::new(),
    }
}

/// Numbers that are set already are kept.
fn threads(count: u32, variable: &dyn Fn(&str) -> Option<String>) -> Vec<(&'static str, String)> {
    let unset = THREADS.into_iter().filter(|name| variable(name).is_none());
    unset.map(|name| (name, count.to_string())).collect()
}

impl Surroundings<'_> {
    /// Variables for tasks with this allocation. The variables of these surroundings are those of the engine's tasks.
    /// `write` stores a file, whose name is the first argument, and returns its path.
    pub(crate) fn of_allocation(
        &self,
        allocation: &Allocation,
        write: &mut dyn FnMut(&str, &str) -> Option<String>,
    ) -> Vec<(&'static str, String)> {
        let cpus = allocation.cpus.to_string();
        let mut all = threads(allocation.cpus, self.variable);
        for vendor in [GpuVendor::Nvidia, GpuVendor::Amd] {
            let gpus = allocation.gpus.iter().filter(|gpu| gpu.vendor == vendor);
            let names: Vec<&str> = gpus.map(|gpu| gpu.name.as_str()).collect();
            if !names.is_empty() {
                all.push((vendor.variable(), names.join(",")));
            }
        }
        if allocation.gpus.iter().any(|gpu| gpu.vendor == GpuVendor::Nvidia) {
            // The indexes are in this order.
            all.push(("CUDA_DEVICE_ORDER", "PCI_BUS_ID".into()));
        }
        let Some(system) = self.batch_system() else { return all };
        if let (BatchSystem::Slurm, Some(node)) = (system, (self.variable)("SLURMD_NODENAME")) {
            all.extend(SLURM_CPUS.map(|name| (name, cpus.clone())));
            all.extend(SLURM_NODES.map(|name| (name, "1".to_string())));
            all.extend(SLURM_NAMES.map(|name| (name, node.clone())));
        }
        let is_set = |name: &&str| (self.variable)(name).is_some();
        all.extend(CPUS_IF_SET.into_iter().filter(is_set).map(|name| (name, cpus.clone())));
        all.extend(ONE_IF_SET.into_iter().filter(is_set).map(|name| (name, "1".to_string())));
        let count = allocation.cpus as usize;
        let mut host = self.host.to_string();
        for name in ["PBS_NODEFILE", "LSB_DJOB_HOSTFILE"] {
            // A line for each processor.
            if let Some(line) = self.line_of_this_host(name)
                && let Some(path) = write(&format!("{name}-{count}"), &format!("{line}\n").repeat(count))
            {
                host.clone_from(&line);
                all.push((name, path));
            }
        }
        if let Some(line) = self.line_of_this_host("PE_HOSTFILE") {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (host, queue) = (
                words.first().copied().unwrap_or_default(),
                words.get(2).copied().unwrap_or("UNDEFINED"),
            );
            let path = write(&format!("PE_HOSTFILE-{count}"), &format!("{host} {count} {queue} UNDEFINED\n"));
            all.extend(path.map(|path| ("PE_HOSTFILE", path)));
        }
        if is_set(&"LSB_MCPU_HOSTS") {
            all.push(("LSB_MCPU_HOSTS", format!("{host} {count}")));
        }
        if is_set(&"LSB_HOSTS") {
            all.push(("LSB_HOSTS", vec![host; count].join(" ")));
        }
        all
    }

    /// The first line about this host in the file that a variable names.
    fn line_of_this_host(&self, variable: &str) -> Option<String> {
        let path = (self.variable)(variable)?;
        let text = fs::read_to_string(self.root.join(path.trim_start_matches('/'))).ok()?;
        let is_this_host = |line: &&str| line.split_whitespace().next().is_some_and(|host| self.is_this_host(host));
        text.lines().find(is_this_host).map(String::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cores::CoreSet;
    use crate::model::node::Gpu;
    use std::collections::BTreeMap;
    use std::path::Path;

    fn gpu(vendor: GpuVendor, name: &str) -> Gpu {
        Gpu {
            vendor,
            name: name.into(),
            model: String::new(),
            numa: None,
        }
    }

    fn with(cpus: u32, gpus: Vec<Gpu>) -> Allocation {
        Allocation {
            cpus,
            gpus,
            cores: CoreSet::default(),
        }
    }

    /// The variables of a task, and the files that they name.
    fn task(allocation: &Allocation, engine: &[(&str, &str)], files: &[(&str, &str)]) -> BTreeMap<String, String> {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(root.path().join(name), text).unwrap();
        }
        let variable = |name: &str| Some(engine.iter().find(|(known, _)| *known == name)?.1.to_string());
        let surroundings = Surroundings {
            root: if files.is_empty() { Path::new("/nonexistent") } else { root.path() },
            variable: &variable,
            host: "n1",
            affinity: None,
        };
        let mut written = BTreeMap::new();
        let mut write = |name: &str, text: &str| {
            written.insert(name.to_string(), text.to_string());
            Some(format!("/private/{name}"))
        };
        let all = surroundings.of_allocation(allocation, &mut write);
        let all = all.into_iter().map(|(name, value)| (name.to_string(), value));
        all.chain(written).collect()
    }

    #[test]
    fn threads_and_devices() {
        let allocation = with(4, vec![gpu(GpuVendor::Nvidia, "1"), gpu(GpuVendor::Nvidia, "MIG-7")]);
        let shown: Vec<String> = task(&allocation, &[("MKL_NUM_THREADS", "2")], &[])
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        assert_eq!(
            shown,
            [
                "CUDA_DEVICE_ORDER=PCI_BUS_ID",
                "CUDA_VISIBLE_DEVICES=1,MIG-7",
                "OMP_NUM_THREADS=4",
                "OPENBLAS_NUM_THREADS=4",
            ]
        );
        assert_eq!(
            task(&with(1, vec![gpu(GpuVendor::Amd, "0")]), &[], &[])["ROCR_VISIBLE_DEVICES"],
            "0"
        );
    }

    #[test]
    fn a_task_that_asks_for_nothing_has_the_threads_of_its_engine() {
        let of = |cpus, variables: &[(&str, &str)]| {
            let variable = |name: &str| Some(variables.iter().find(|(known, _)| *known == name)?.1.to_string());
            let all = of_default_task(cpus, &variable).into_iter();
            all.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        assert_eq!(of(16, &[("PCLUSTER_ENGINES", "4")])[0], "OMP_NUM_THREADS=4");
        assert_eq!(of(2, &[("PCLUSTER_ENGINES", "8")])[0], "OMP_NUM_THREADS=1");
        assert_eq!(of(16, &[("OMPI_COMM_WORLD_LOCAL_SIZE", "2")])[0], "OMP_NUM_THREADS=8");
        let set = [("PCLUSTER_ENGINES", "1"), ("OMP_NUM_THREADS", "3")];
        assert_eq!(of(4, &set), ["MKL_NUM_THREADS=4", "OPENBLAS_NUM_THREADS=4"]);
        for unknown in [&[][..], &[("PCLUSTER_ENGINES", "0")], &[("PCLUSTER_ENGINES", "x")]] {
            assert_eq!(of(4, unknown), [""; 0]);
        }
        assert_eq!(of(0, &[("PCLUSTER_ENGINES", "1")]), [""; 0]);
    }

    #[test]
    fn a_task_in_a_slurm_job_has_its_part_of_the_job() {
        let job = [
            ("SLURM_JOB_ID", "7"),
            ("SLURMD_NODENAME", "n3"),
            ("SLURM_CPUS_PER_TASK", "4"),
            ("SLURM_NTASKS_PER_NODE", "8"),
        ];
        let all = task(&with(2, vec![]), &job, &[]);
        for (name, value) in [
            ("SLURM_TASKS_PER_NODE", "2"),
            ("SLURM_NNODES", "1"),
            ("SLURM_JOB_NODELIST", "n3"),
            ("SLURM_CPUS_PER_TASK", "1"),
            ("SLURM_NTASKS_PER_NODE", "2"),
        ] {
            assert_eq!(all[name], value, "{name}");
        }
        assert_eq!(task(&with(2, vec![]), &[], &[]).len(), 3);
    }

    #[test]
    fn tasks_in_jobs_of_other_systems_have_their_part_too() {
        let pbs = [
            ("PBS_JOBID", "7"),
            ("PBS_NODEFILE", "/nodes"),
            ("NCPUS", "8"),
            ("PBS_NUM_NODES", "3"),
        ];
        let all = task(
            &with(2, vec![]),
            &pbs,
            &[("nodes", "n0.cluster\nn1.cluster\nn1.cluster\nn2.cluster\n")],
        );
        assert_eq!((all["NCPUS"].as_str(), all["PBS_NUM_NODES"].as_str()), ("2", "1"));
        assert_eq!(all["PBS_NODEFILE"], "/private/PBS_NODEFILE-2");
        assert_eq!(all["PBS_NODEFILE-2"], "n1.cluster\nn1.cluster\n");
        assert!(!all.contains_key("PBS_NP"), "only those that exist");

        let sge = [("SGE_TASK_ID", "1"), ("PE_HOSTFILE", "/hosts"), ("NSLOTS", "9"), ("NHOSTS", "2")];
        let all = task(
            &with(3, vec![]),
            &sge,
            &[("hosts", "n0 4 all.q@n0 UNDEFINED\nn1 5 all.q@n1 UNDEFINED\n")],
        );
        assert_eq!((all["NSLOTS"].as_str(), all["NHOSTS"].as_str()), ("3", "1"));
        assert_eq!(all["PE_HOSTFILE-3"], "n1 3 all.q@n1 UNDEFINED\n");

        let lsf = [
            ("LSB_JOBID", "7"),
            ("LSB_MCPU_HOSTS", "n0 4 n1 3"),
            ("LSB_HOSTS", "n0 n0 n0 n0 n1 n1 n1"),
        ];
        let all = task(&with(2, vec![]), &lsf, &[]);
        assert_eq!((all["LSB_MCPU_HOSTS"].as_str(), all["LSB_HOSTS"].as_str()), ("n1 2", "n1 n1"));
    }

    #[test]
    fn a_task_is_no_rank_of_the_engines_launch() {
        for name in [
            "PMI_RANK",
            "PMIX_NAMESPACE",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_MCA_orte_ess_jobid",
            "SLURM_STEP_ID",
            ENGINES,
        ] {
            assert!(is_of_launch(name), "{name}");
        }
        for name in ["OMPI_MCA_btl", "SLURM_JOB_ID", "PATH", "MPICH_ASYNC_PROGRESS"] {
            assert!(!is_of_launch(name), "{name}");
        }
    }
}
