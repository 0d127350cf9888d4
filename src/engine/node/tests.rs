use super::*;
use std::collections::HashMap;

/// A host with 8 processors and 64 GiB, in a file system of its own.
struct FakeHost {
    root: tempfile::TempDir,
    variables: HashMap<String, String>,
}

impl FakeHost {
    fn new() -> FakeHost {
        let host = FakeHost {
            root: tempfile::tempdir().unwrap(),
            variables: HashMap::new(),
        };
        host.with("proc/meminfo", "MemTotal:       67108864 kB\nMemFree:  1 kB\n")
    }

    fn with(self, path: &str, text: &str) -> FakeHost {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn set(mut self, variables: &[(&str, &str)]) -> FakeHost {
        self.variables
            .extend(variables.iter().map(|(name, value)| (name.to_string(), value.to_string())));
        self
    }

    fn nvidia(self, count: usize) -> FakeHost {
        (0..count).fold(self, |host, n| {
            // Minor numbers are not in the order of addresses.
            let minor = count - 1 - n;
            let text = format!("Model: \t\t NVIDIA A100\nIRQ:   \t\t 1\nGPU UUID: \t GPU-{n}\nDevice Minor: \t {minor}\n");
            host.with(&format!("proc/driver/nvidia/gpus/0000:{n}7:00.0/information"), &text)
                .with(&format!("dev/nvidia{minor}"), "")
        })
    }

    fn node(&self) -> NodeFacts {
        let variable = |name: &str| self.variables.get(name).cloned();
        let surroundings = Surroundings {
            root: self.root.path(),
            variable: &variable,
            host: "n1.cluster",
            affinity: Some(8),
        };
        surroundings.node()
    }

    fn shown(&self) -> String {
        self.node().to_string()
    }

    fn gpu_names(&self) -> Vec<String> {
        self.node().gpus.into_iter().map(|gpu| gpu.name).collect()
    }
}

#[test]
fn without_limits_the_host_counts() {
    assert_eq!(FakeHost::new().shown(), "8 cpus, 64G");
}

#[test]
fn control_groups_of_both_versions_limit() {
    let second = || FakeHost::new().with("proc/self/cgroup", "0::/user/job\n");
    let host = second()
        .with("sys/fs/cgroup/user/job/cpu.max", "max 100000\n")
        .with("sys/fs/cgroup/user/cpu.max", "350000 100000\n")
        .with("sys/fs/cgroup/user/job/memory.max", "2147483648\n")
        .with("sys/fs/cgroup/user/memory.max", "max\n");
    assert_eq!(host.shown(), "3 cpus, 2G");
    let small = second().with("sys/fs/cgroup/user/job/cpu.max", "50000 100000\n");
    assert_eq!(small.shown(), "1 cpu, 64G");
    let first = FakeHost::new()
        .with("proc/self/cgroup", "5:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/x\n")
        .with("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "1073741824\n")
        .with("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
        .with("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "400000\n")
        .with("sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n")
        .with("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
    assert_eq!(first.shown(), "4 cpus, 1G");
}

#[test]
fn a_job_has_the_share_that_its_batch_system_assigned() {
    let job = |variables: &[(&str, &str)]| FakeHost::new().set(variables);
    let slurm = job(&[("SLURM_JOB_ID", "7"), ("SLURM_CPUS_ON_NODE", "4"), ("SLURM_MEM_PER_CPU", "1024")]);
    assert_eq!(slurm.shown(), "4 cpus, 4G");
    let whole = job(&[("SLURM_JOB_ID", "7"), ("SLURM_CPUS_ON_NODE", "40"), ("SLURM_MEM_PER_NODE", "0")]);
    assert_eq!(whole.shown(), "8 cpus, 64G");
    let sge = job(&[("SGE_TASK_ID", "undefined"), ("NSLOTS", "2"), ("NHOSTS", "1")]);
    assert_eq!(sge.shown(), "2 cpus, 64G");
    let spread = job(&[
        ("SGE_TASK_ID", "3"),
        ("NSLOTS", "9"),
        ("NHOSTS", "2"),
        ("PE_HOSTFILE", "/spool/hosts"),
    ])
    .with("spool/hosts", "n0.cluster 4 all.q@n0 UNDEFINED\nn1.cluster 5 all.q@n1 UNDEFINED\n");
    assert_eq!(spread.shown(), "5 cpus, 64G");
    let pbs = job(&[("PBS_JOBID", "7.s"), ("NCPUS", "6")]);
    assert_eq!(pbs.shown(), "6 cpus, 64G");
    let lsf = job(&[("LSB_JOBID", "7"), ("LSB_MCPU_HOSTS", "n0 4 n1 3 ")]);
    assert_eq!(lsf.shown(), "3 cpus, 64G");
    let condor = job(&[("_CONDOR_MACHINE_AD", "/scratch/.machine.ad")])
        .with("scratch/.machine.ad", "Activity = \"Idle\"\nCpus = 2\nMemory = 2048\n");
    assert_eq!(condor.shown(), "2 cpus, 2G");
    // Without a job, leftovers of one say nothing.
    assert_eq!(job(&[("NSLOTS", "2"), ("SLURM_CPUS_ON_NODE", "1")]).shown(), "8 cpus, 64G");
    assert_eq!(job(&[("SGE_TASK_ID", "1"), ("NSLOTS", "many")]).shown(), "8 cpus, 64G");
}

#[test]
fn only_gpus_that_this_process_may_use_count() {
    let host = || FakeHost::new().nvidia(3);
    assert_eq!(host().gpu_names(), ["0", "1", "2"]);
    assert_eq!(host().node().gpus[0].model, "NVIDIA A100");
    let given = |value: &str| host().set(&[("CUDA_VISIBLE_DEVICES", value)]).gpu_names();
    assert_eq!(given("2,0"), ["2", "0"]);
    assert_eq!(given("GPU-1, MIG-5"), ["GPU-1", "MIG-5"]);
    for (value, count) in [("", 0), ("NoDevFiles", 0), ("-1", 0), ("1,-1,2", 1), ("1,1,2", 1), ("0,3,1", 1)] {
        assert_eq!(given(value).len(), count, "{value:?}");
    }
    // A job that requested none has none, although the host's are visible.
    let slurm = host().set(&[("SLURM_JOB_ID", "7")]);
    assert_eq!(slurm.gpu_names(), [""; 0]);
    assert_eq!(slurm.set(&[("CUDA_VISIBLE_DEVICES", "1")]).gpu_names(), ["1"]);
    // Without the driver the variable means nothing; without its device file a GPU belongs to another container.
    assert_eq!(FakeHost::new().set(&[("CUDA_VISIBLE_DEVICES", "0")]).gpu_names(), [""; 0]);
    // Unless Slurm gave them, with the variables of several vendors.
    let given = FakeHost::new().set(&[
        ("SLURM_JOB_ID", "7"),
        ("CUDA_VISIBLE_DEVICES", "0,1"),
        ("ROCR_VISIBLE_DEVICES", "0,1"),
    ]);
    assert_eq!(given.gpu_names(), [""; 0], "left over from a login");
    assert_eq!(given.set(&[("SLURM_JOB_GPUS", "4,5")]).gpu_names(), ["0", "1"]);
    let container = host();
    fs::remove_file(container.root.path().join("dev/nvidia0")).unwrap();
    assert_eq!(container.gpu_names(), ["0", "1"]);
}

#[test]
fn processors_and_gpus_know_their_numa_node() {
    let bound_to = |list: &str| {
        FakeHost::new()
            .nvidia(2)
            .with(
                "proc/self/status",
                &format!("Name:\tpcluster\nCpus_allowed:\tff\nCpus_allowed_list:\t{list}\n"),
            )
            .with("sys/devices/system/node/node0/cpulist", "0-3\n")
            .with("sys/devices/system/node/node1/cpulist", "4-7\n")
            .with("sys/devices/system/node/possible", "0-1\n")
            .with("sys/bus/pci/devices/0000:07:00.0/numa_node", "1\n")
            .with("sys/bus/pci/devices/0000:17:00.0/numa_node", "-1\n")
    };
    let cores = |host: &FakeHost| {
        let groups = host.node().cores.into_iter();
        groups.map(|group| format!("{}:{}", group.numa, group.cores)).collect::<Vec<_>>()
    };
    let numa = |host: &FakeHost| host.node().gpus.iter().map(|gpu| gpu.numa).collect::<Vec<_>>();
    let host = bound_to("0-7");
    assert_eq!(
        (cores(&host), numa(&host)),
        (vec!["0:0-3".into(), "1:4-7".into()], vec![Some(1), None])
    );
    assert_eq!(cores(&bound_to("2,5-6")), ["0:2", "1:5-6"]);
    assert_eq!(cores(&bound_to("9")), ["0:9"]);
    // By UUID, and that of an instance in the format of older drivers.
    let named = |value: &str| numa(&bound_to("0-7").set(&[("CUDA_VISIBLE_DEVICES", value)]));
    assert_eq!(named("GPU-1,GPU-0"), [None, Some(1)]);
    assert_eq!(named("MIG-GPU-0/1/0,MIG-5f1c"), [Some(1), None]);
    // A job that may run anywhere owns no particular processors.
    let job = |cpus: &str| bound_to("0-7").set(&[("SLURM_JOB_ID", "7"), ("SLURM_CPUS_ON_NODE", cpus)]);
    assert_eq!((cores(&job("4")), cores(&job("8")).len()), (vec![], 2));
}

#[test]
fn gpus_of_amd_have_a_variable_of_their_own() {
    let node = |number: u32| format!("sys/class/kfd/kfd/topology/nodes/{number}");
    let host = FakeHost::new()
        .with(&format!("{}/properties", node(0)), "cpu_cores_count 64\nsimd_count 0\n")
        .with(
            &format!("{}/properties", node(1)),
            "simd_count 440\nunique_id 2101784371093475245\nlocation_id 49408\ndomain 0\ndrm_render_minor 128\n",
        )
        .with(&format!("{}/name", node(1)), "aldebaran\n")
        .with("dev/dri/renderD128", "")
        .with("sys/bus/pci/devices/0000:c1:00.0/numa_node", "3\n");
    let [gpu] = &host.node().gpus[..] else { panic!() };
    assert_eq!(
        (gpu.vendor.variable(), gpu.name.as_str(), gpu.model.as_str(), gpu.numa),
        ("ROCR_VISIBLE_DEVICES", "0", "aldebaran", Some(3))
    );
    let by_uuid = host.set(&[("ROCR_VISIBLE_DEVICES", "GPU-1d2b")]);
    assert_eq!(
        (by_uuid.gpu_names(), by_uuid.node().gpus[0].numa),
        (vec!["GPU-1d2b".into()], Some(3))
    );
    let host = by_uuid;
    assert_eq!(host.set(&[("ROCR_VISIBLE_DEVICES", "")]).gpu_names(), [""; 0]);
}

#[test]
fn this_host_has_processors_and_memory() {
    let node = detect("here");
    assert!(node.cpus >= 1 && node.mem_bytes > 1 << 20, "{node:?}");
}
