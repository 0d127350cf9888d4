//! The control groups of this process (cgroups(7); the kernel's cgroup-v1 and cgroup-v2 documents).
use std::fs;
use std::path::{Path, PathBuf};

/// The directories of this process's control groups for these controllers of version 1, and for version 2, each followed by
/// its ancestors. `root` is `/`, or the root of a test's files.
pub(crate) fn directories(root: &Path, controllers: &[&str]) -> Vec<PathBuf> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mount = root.join("sys/fs/cgroup");
    let mut found = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(names), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let tops: Vec<PathBuf> = match names {
            "" => vec![mount.clone()],
            _ => names
                .split(',')
                .filter(|name| controllers.contains(name))
                .map(|name| mount.join(name))
                .collect(),
        };
        for top in tops {
            let own = top.join(path.trim_start_matches('/'));
            found.extend(own.ancestors().take_while(|group| group.starts_with(&top)).map(Path::to_path_buf));
        }
    }
    found
}

/// A number in one file of a group; None if there is no limit.
pub(crate) fn number(group: &Path, name: &str) -> Option<u64> {
    // "max" means no limit.
    fs::read_to_string(group.join(name)).ok()?.trim().parse().ok()
}

/// The group's memory limit in bytes, and the file that sets it.
pub(crate) fn memory_limit(group: &Path) -> Option<(u64, &'static str)> {
    let second = number(group, "memory.max").map(|limit| (limit, "memory.max"));
    // Without a limit the value of version 1 is close to the maximum integer.
    let first = || number(group, "memory.limit_in_bytes").filter(|limit| *limit < 1 << 60);
    second.or_else(|| Some((first()?, "memory.limit_in_bytes")))
}

/// How many processes of the group the kernel has killed for lack of memory.
pub(crate) fn oom_kills(group: &Path) -> Option<u64> {
    let text = fs::read_to_string(group.join("memory.events")).or_else(|_| fs::read_to_string(group.join("memory.oom_control")));
    text.ok()?
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// The number of processors whose time the group may use in total.
pub(crate) fn cpu_limit(group: &Path) -> Option<f64> {
    let (quota, period) = match fs::read_to_string(group.join("cpu.max")) {
        Ok(text) => {
            let (quota, period) = text.trim().split_once(' ')?;
            (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?)
        }
        // -1 means no limit.
        Err(_) => (
            number(group, "cpu.cfs_quota_us")? as f64,
            number(group, "cpu.cfs_period_us")? as f64,
        ),
    };
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}
