//! What this node has: the host's processors, memory and GPUs, or the share of them that the batch job of this engine was
//! given.
//!
//! Sources: sched_getaffinity(2), cgroups(7), proc_meminfo(5), sbatch(1) "OUTPUT ENVIRONMENT VARIABLES", qsub(1) of Grid Engine
//! (NSLOTS, PE_HOSTFILE), qsub(1) of OpenPBS and Torque (NCPUS, PBS_NUM_PPN), bsub(1) of LSF (LSB_MCPU_HOSTS), and
//! HTCondor's manual, "Services for running jobs" (_CONDOR_MACHINE_AD).
mod cores;
mod environment;
mod gpus;

pub(crate) use environment::{is_of_launch, of_default_task};

use crate::model::node::NodeFacts;
use crate::profile::config::node::NodeResources;
use crate::sys::cgroup;
use std::fs;
use std::path::Path;

/// The inputs of the detection; tests have their own.
pub(crate) struct Surroundings<'a> {
    /// The root of the file system.
    pub root: &'a Path,
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    pub host: &'a str,
    /// Processors that this process may run on.
    pub affinity: Option<u32>,
}

/// The resources of this process's node, with those that the profile sets.
pub(crate) fn resources(host: &str, set: &NodeResources) -> NodeFacts {
    let mut node = detect(host);
    // Where the driver is not found, a number of GPUs begins with those that this process was given.
    if node.gpus.is_empty() && set.gpus.is_some() {
        node.gpus = gpus::named_by(&|name| std::env::var(name).ok());
    }
    set.apply(&mut node);
    node
}

fn detect(host: &str) -> NodeFacts {
    let variable = |name: &str| std::env::var(name).ok();
    let surroundings = Surroundings {
        root: Path::new("/"),
        variable: &variable,
        host,
        affinity: std::thread::available_parallelism()
            .ok()
            .and_then(|count| u32::try_from(count.get()).ok()),
    };
    surroundings.node()
}

impl Surroundings<'_> {
    pub(crate) fn node(&self) -> NodeFacts {
        let groups = cgroup::directories(self.root, &["cpu", "memory"]);
        let share = self.share();
        // A part of a processor is not enough for a task of its own.
        let quotas = groups
            .iter()
            .filter_map(|group| cgroup::cpu_limit(group))
            .map(|cpus| cpus.max(1.0) as u32);
        let cpus = self.affinity.into_iter().chain(share.cpus).chain(quotas).min();
        let limits = groups
            .iter()
            .filter_map(|group| cgroup::memory_limit(group))
            .map(|(limit, _)| limit);
        let memory = self.total_memory().into_iter().chain(share.mem_bytes).chain(limits).min();
        NodeFacts {
            cpus: cpus.unwrap_or_default(),
            cores: self.cores(share.cpus),
            mem_bytes: memory.unwrap_or_default(),
            gpus: self.gpus(),
            ..NodeFacts::default()
        }
    }

    fn number(&self, name: &str) -> Option<u64> {
        (self.variable)(name)?.trim().parse().ok()
    }

    fn count(&self, name: &str) -> Option<u32> {
        u32::try_from(self.number(name)?).ok().filter(|count| *count > 0)
    }

    /// Physical memory in bytes.
    fn total_memory(&self) -> Option<u64> {
        let text = fs::read_to_string(self.root.join("proc/meminfo")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
    }

    /// What the batch system gave this job on this host, as its variables tell.
    fn share(&self) -> Share {
        let share = |cpus| Share { cpus, mem_bytes: None };
        match self.batch_system() {
            Some(BatchSystem::Slurm) => {
                let cpus = self.count("SLURM_CPUS_ON_NODE");
                let each = || Some(self.number("SLURM_MEM_PER_CPU")? * u64::from(cpus?));
                // 0 means all of the node's memory.
                let mib = self.number("SLURM_MEM_PER_NODE").or_else(each).filter(|mib| *mib > 0);
                Share {
                    cpus,
                    mem_bytes: mib.map(|mib| mib << 20),
                }
            }
            Some(BatchSystem::GridEngine) => match self.count("NHOSTS") {
                None | Some(1) => share(self.count("NSLOTS")),
                Some(_) => share(self.slots_in_hostfile()),
            },
            Some(BatchSystem::Pbs) => share(self.count("NCPUS").or_else(|| self.count("PBS_NUM_PPN"))),
            Some(BatchSystem::Lsf) => share(self.slots_of_lsf()),
            Some(BatchSystem::HtCondor) => self.share_of_htcondor(),
            None => Share::default(),
        }
    }

    /// The batch system whose job this process is in. An interactive shell in a Slurm job is in one, too.
    fn batch_system(&self) -> Option<BatchSystem> {
        let systems = [
            ("SLURM_JOB_ID", BatchSystem::Slurm),
            ("PBS_JOBID", BatchSystem::Pbs),
            ("LSB_JOBID", BatchSystem::Lsf),
            ("_CONDOR_MACHINE_AD", BatchSystem::HtCondor),
            // Others set JOB_ID as well.
            ("SGE_TASK_ID", BatchSystem::GridEngine),
        ];
        systems
            .into_iter()
            .find_map(|(name, system)| (self.variable)(name).filter(|value| !value.is_empty()).map(|_| system))
    }

    fn is_this_host(&self, name: &str) -> bool {
        let short = |name: &str| name.split('.').next().unwrap_or_default().to_ascii_lowercase();
        short(name) == short(self.host)
    }

    /// A line of Grid Engine's file: `host slots queue processors`.
    fn slots_in_hostfile(&self) -> Option<u32> {
        let path = (self.variable)("PE_HOSTFILE")?;
        let text = fs::read_to_string(self.root.join(path.trim_start_matches('/'))).ok()?;
        let slots = text.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let host = words.next()?;
            self.is_this_host(host).then(|| words.next()?.parse::<u32>().ok())?
        });
        Some(slots.sum()).filter(|slots| *slots > 0)
    }

    /// `hostA 4 hostB 2`.
    fn slots_of_lsf(&self) -> Option<u32> {
        let text = (self.variable)("LSB_MCPU_HOSTS")?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let slots = words.chunks_exact(2).filter(|pair| self.is_this_host(pair[0]));
        Some(slots.filter_map(|pair| pair[1].parse::<u32>().ok()).sum()).filter(|slots| *slots > 0)
    }

    /// `Cpus = 2` and `Memory = 2048` (MiB) in the slot's ClassAd.
    fn share_of_htcondor(&self) -> Share {
        let path = (self.variable)("_CONDOR_MACHINE_AD").unwrap_or_default();
        let text = fs::read_to_string(self.root.join(path.trim_start_matches('/'))).unwrap_or_default();
        let value = |wanted: &str| {
            text.lines().find_map(|line| {
                let (name, value) = line.split_once('=')?;
                (name.trim().eq_ignore_ascii_case(wanted)).then(|| value.trim().parse::<u64>().ok())?
            })
        };
        Share {
            cpus: value("Cpus").and_then(|cpus| u32::try_from(cpus).ok()),
            mem_bytes: value("Memory").map(|mib| mib << 20),
        }
    }
}

#[derive(Default)]
struct Share {
    cpus: Option<u32>,
    mem_bytes: Option<u64>,
}

#[derive(Clone, Copy)]
enum BatchSystem {
    Slurm,
    GridEngine,
    Pbs,
    Lsf,
    HtCondor,
}

#[cfg(test)]
mod tests;
