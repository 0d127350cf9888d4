//! The environment variables that affect Slurm's commands, from sbatch(1), squeue(1), scancel(1),
//! sacct(1), sinfo(1), scontrol(1) of 22.05.
use super::environment::{EnvironmentRules, Names, Rule, ScriptOption};

/// sbatch(1): "Environment variables will override any options set in a batch script".
pub(crate) const RULES: EnvironmentRules = EnvironmentRules {
    submissions: Rule {
        removed: &DECIDED,
        kept: &[
            "SLURM_CLUSTERS",
            "SLURM_CONF",
            "SLURM_CONF_SERVER",
            "SLURM_HINT",
            "SLURM_JWT",
            "SLURM_MPI_TYPE",
        ],
    },
    queries: Rule {
        removed: &["SACCT_*", "SCANCEL_*", "SCONTROL_*", "SINFO_*", "SLURM_*", "SQUEUE_*"],
        kept: &["SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"],
    },
    options: OPTIONS,
};

/// The same rules for a job that must not be sent to another cluster: a name in `removed` is
/// not kept, even if `kept` lists it.
pub(crate) const WITHOUT_CLUSTERS: EnvironmentRules = EnvironmentRules {
    submissions: Rule {
        removed: &join::<12>(&DECIDED, CLUSTERS),
        ..RULES.submissions
    },
    options: TORQUE_OPTIONS,
    ..RULES
};

const DECIDED: [&str; 10] = [
    // Variables of the job in which pcluster was started; some contradict the new job's options.
    "SLURM_*",
    // Options that pcluster always decides, even by omitting them.
    "SBATCH_ARRAY_INX",
    "SBATCH_DEBUG",
    "SBATCH_ERROR",
    "SBATCH_IGNORE_PBS",
    "SBATCH_INPUT",
    "SBATCH_JOB_NAME",
    "SBATCH_OPEN_MODE",
    "SBATCH_OUTPUT",
    "SBATCH_WAIT",
];

const fn join<const N: usize>(one: Names, other: Names) -> [&'static str; N] {
    assert!(one.len() + other.len() == N);
    let mut names = [""; N];
    let mut at = 0;
    while at < N {
        names[at] = if at < one.len() { one[at] } else { other[at - one.len()] };
        at += 1;
    }
    names
}

const MEMORY: Names = &["SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU", "SBATCH_MEM_PER_NODE"];
const GPUS: Names = &[
    "SBATCH_CPUS_PER_GPU",
    "SBATCH_GPUS",
    "SBATCH_GPUS_PER_NODE",
    "SBATCH_GPUS_PER_SOCKET",
    "SBATCH_GPUS_PER_TASK",
    "SBATCH_GRES",
];
const CLUSTERS: Names = &["SBATCH_CLUSTERS", "SLURM_CLUSTERS"];
const REQUEUE: Names = &["SBATCH_NO_REQUEUE", "SBATCH_REQUEUE"];
const SWITCHES: Names = &["SBATCH_REQ_SWITCH", "SBATCH_WAIT4SWITCH"];
const THREADS: Names = &["SBATCH_HINT", "SLURM_HINT", "SBATCH_THREADS_PER_CORE"];

/// The same options in Torque's syntax (`#PBS -l mem=50M`), which Slurm's `qsub` passes on: one
/// word may set several options.
const TORQUE_OPTIONS: &[ScriptOption] = &[
    option("", "-A", &["SBATCH_ACCOUNT"]),
    option(
        "",
        "-l",
        &[
            "SBATCH_MEM_PER_CPU",
            "SBATCH_MEM_PER_GPU",
            "SBATCH_MEM_PER_NODE",
            "SBATCH_TIMELIMIT",
            "SBATCH_CPUS_PER_GPU",
            "SBATCH_GPUS",
            "SBATCH_GRES",
        ],
    ),
    option("", "-q", &["SBATCH_PARTITION"]),
];

const fn option(long: &'static str, short: &'static str, variables: Names) -> ScriptOption {
    ScriptOption { long, short, variables }
}

const OPTIONS: &[ScriptOption] = &[
    option("account", "-A", &["SBATCH_ACCOUNT"]),
    option("acctg-freq", "", &["SBATCH_ACCTG_FREQ"]),
    option("batch", "", &["SBATCH_BATCH"]),
    option("bb", "", &["SBATCH_BURST_BUFFER"]),
    option("bbf", "", &["SBATCH_BURST_BUFFER"]),
    option("cluster-constraint", "", &["SBATCH_CLUSTER_CONSTRAINT"]),
    option("clusters", "-M", CLUSTERS),
    option("constraint", "-C", &["SBATCH_CONSTRAINT"]),
    option("container", "", &["SBATCH_CONTAINER"]),
    option("core-spec", "-S", &["SBATCH_CORE_SPEC", "SBATCH_THREAD_SPEC"]),
    option("cpu-freq", "", &["SBATCH_CPU_FREQ_REQ"]),
    option("cpus-per-gpu", "", &["SBATCH_CPUS_PER_GPU"]),
    option("cpus-per-task", "-c", &["SBATCH_CPUS_PER_GPU"]),
    option("delay-boot", "", &["SBATCH_DELAY_BOOT"]),
    option("distribution", "-m", &["SBATCH_DISTRIBUTION"]),
    option("exclusive", "", &["SBATCH_EXCLUSIVE"]),
    option("export", "", &["SBATCH_EXPORT"]),
    option("get-user-env", "", &["SBATCH_GET_USER_ENV"]),
    option("gpu-bind", "", &["SBATCH_GPU_BIND"]),
    option("gpu-freq", "", &["SBATCH_GPU_FREQ"]),
    option("gpus", "-G", GPUS),
    option("gpus-per-node", "", GPUS),
    option("gpus-per-socket", "", GPUS),
    option("gpus-per-task", "", GPUS),
    option("gres", "", GPUS),
    option("gres-flags", "", &["SBATCH_GRES_FLAGS"]),
    option("hint", "", THREADS),
    option("mem", "", MEMORY),
    option("mem-bind", "", &["SBATCH_MEM_BIND"]),
    option("mem-per-cpu", "", MEMORY),
    option("mem-per-gpu", "", MEMORY),
    option("network", "", &["SBATCH_NETWORK"]),
    option("no-kill", "-k", &["SBATCH_NO_KILL"]),
    option("no-requeue", "", REQUEUE),
    option("overcommit", "-O", &["SBATCH_OVERCOMMIT"]),
    option("oversubscribe", "-s", &["SBATCH_EXCLUSIVE"]),
    option("partition", "-p", &["SBATCH_PARTITION"]),
    option("power", "", &["SBATCH_POWER"]),
    option("profile", "", &["SBATCH_PROFILE"]),
    option("qos", "-q", &["SBATCH_QOS"]),
    option("requeue", "", REQUEUE),
    option("reservation", "", &["SBATCH_RESERVATION"]),
    option("signal", "", &["SBATCH_SIGNAL"]),
    option("spread-job", "", &["SBATCH_SPREAD_JOB"]),
    option("switches", "", SWITCHES),
    option("thread-spec", "", &["SBATCH_CORE_SPEC", "SBATCH_THREAD_SPEC"]),
    option("threads-per-core", "", THREADS),
    option("time", "-t", &["SBATCH_TIMELIMIT"]),
    option("use-min-nodes", "", &["SBATCH_USE_MIN_NODES"]),
    option("wait-all-nodes", "", &["SBATCH_WAIT_ALL_NODES"]),
    option("wckey", "", &["SBATCH_WCKEY"]),
];

#[cfg(test)]
mod tests {
    use super::super::environment::is_removed;
    use super::*;

    #[test]
    fn both_kinds_of_submission_remove_the_listed_variables() {
        let (plain, here) = (RULES.submissions, WITHOUT_CLUSTERS.submissions);
        for name in DECIDED {
            assert!(plain.removed.contains(&name) && here.removed.contains(&name), "{name}");
        }
        for (name, elsewhere) in [
            ("SLURM_CLUSTERS", true),
            ("SBATCH_CLUSTERS", true),
            ("SLURM_CONF", true),
            ("SLURM_JOB_ID", false),
        ] {
            assert_eq!(!is_removed(name, plain.removed, plain.kept), elsewhere, "{name}");
        }
        assert!(CLUSTERS.iter().all(|name| here.removed.contains(name)));
    }
}
