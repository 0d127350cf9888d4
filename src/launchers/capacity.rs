//! Estimates how many engines this host can run, before any is started. Each limit is compared with
//! the measured usage of an engine (docs/explanation/performance.md); the usage of user code is
//! unknown and not included.
//!
//! Sources: getrlimit(2), proc_meminfo(5), proc_loadavg(5), and the kernel's cgroup-v1/pids and
//! cgroup-v2 documents.
use super::LaunchError;
use crate::sys::cgroup;
use nix::sys::resource::{Resource, getrlimit};
use std::fs;
use std::path::{Path, PathBuf};

/// Threads of an engine: 1 for its supervisor, 3 for itself, 1 each for its interpreter, its spare
/// and its interactive worker; and some more for a map's worker and for starting.
const TASKS: u64 = 10;
/// Memory in bytes of an idle engine with its Python.
const MEMORY: u64 = 30 << 20;
/// The memory, threads and file descriptors of a controller without engines; each engine adds one
/// connection.
const CONTROLLER_MEMORY: u64 = 64 << 20;
const CONTROLLER_TASKS: u64 = 12;
const CONTROLLER_FILES: u64 = 128;

/// One limit, and the number of further engines that it allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub fits: u64,
    /// A description of the limit with its values and its source.
    pub words: String,
}

/// The host's limits, each with its current usage.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostLimits {
    /// Threads of this user.
    pub user_tasks: Option<(u64, u64)>,
    /// Threads of a control group, and the file that defines the limit.
    pub group_tasks: Vec<(u64, u64, PathBuf)>,
    /// Threads of the whole system.
    pub all_tasks: Option<(u64, u64)>,
    /// Available memory in bytes.
    pub memory: Option<u64>,
    /// Available memory of a control group.
    pub group_memory: Vec<(u64, PathBuf)>,
    /// Maximum number of file descriptors per process.
    pub files: Option<u64>,
}

impl HostLimits {
    pub(crate) fn this() -> HostLimits {
        let groups = cgroup::directories(Path::new("/"), &["pids", "memory"]);
        let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let all = fs::read_to_string("/proc/loadavg").ok();
        let used = all
            .as_deref()
            .and_then(|text| text.split(' ').nth(3)?.split_once('/')?.1.parse().ok());
        let maxima = [number("/proc/sys/kernel/threads-max"), number("/proc/sys/kernel/pid_max")];
        HostLimits {
            user_tasks: user_tasks(),
            group_tasks: groups.iter().filter_map(|group| group_tasks(group)).collect(),
            all_tasks: maxima.into_iter().flatten().min().zip(used),
            memory: fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text)),
            group_memory: groups.iter().filter_map(|group| group_memory(group)).collect(),
            files: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| hard),
        }
    }

    /// All known limits, the strictest first.
    pub(crate) fn limits(&self) -> Vec<Limit> {
        let tasks = |limit: u64, used: u64| limit.saturating_sub(used).saturating_sub(CONTROLLER_TASKS) / TASKS;
        let memory = |free: u64| free.saturating_sub(CONTROLLER_MEMORY) / MEMORY;
        let mb = |bytes: u64| format!("{} MB", bytes >> 20);
        let each = format!("an idle engine takes about {}", mb(MEMORY));
        let mut limits = Vec::new();
        let mut add = |fits, words| limits.push(Limit { fits, words });
        if let Some((limit, used)) = self.user_tasks {
            let words = format!("processes of this user: {used} of {limit} (ulimit -u; an engine takes up to {TASKS})");
            add(tasks(limit, used), words);
        }
        for (limit, used, path) in &self.group_tasks {
            let words = format!(
                "processes of the control group: {used} of {limit} ({}; an engine takes up to {TASKS})",
                path.display()
            );
            add(tasks(*limit, *used), words);
        }
        if let Some((limit, used)) = self.all_tasks {
            let words =
                format!("processes of this host: {used} of {limit} (kernel.threads-max, kernel.pid_max; an engine takes up to {TASKS})");
            add(tasks(limit, used), words);
        }
        if let Some(free) = self.memory {
            add(memory(free), format!("available memory: {} ({each})", mb(free)));
        }
        for (free, path) in &self.group_memory {
            add(
                memory(*free),
                format!("memory left to the control group: {} ({}; {each})", mb(*free), path.display()),
            );
        }
        if let Some(files) = self.files {
            let words = format!("open files of the controller: {files} (ulimit -Hn; one for each engine)");
            add(files.saturating_sub(CONTROLLER_FILES), words);
        }
        limits.sort_by_key(|limit| limit.fits);
        limits
    }

    pub(crate) fn check(&self, engines: u32) -> Result<(), LaunchError> {
        match self.limits().into_iter().next() {
            Some(limit) if limit.fits < u64::from(engines) => Err(LaunchError::NoRoom {
                engines,
                fits: limit.fits,
                limit: limit.words,
            }),
            _ => Ok(()),
        }
    }
}

/// None for root, to whom the limit does not apply, or if there is no limit.
fn user_tasks() -> Option<(u64, u64)> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NPROC).ok()?;
    let uid = nix::unistd::getuid();
    if uid.is_root() || soft == nix::libc::RLIM_INFINITY {
        return None;
    }
    let own = uid.as_raw().to_string();
    let threads = |entry: fs::DirEntry| {
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        (field("Uid:")? == own).then(|| field("Threads:")?.parse::<u64>().ok())?
    };
    let used = fs::read_dir("/proc").ok()?.flatten().filter_map(threads).sum();
    Some((soft, used))
}

/// `MemAvailable` in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

fn group_tasks(group: &Path) -> Option<(u64, u64, PathBuf)> {
    let (limit, used) = (cgroup::number(group, "pids.max")?, cgroup::number(group, "pids.current")?);
    Some((limit, used, group.join("pids.max")))
}

/// Available memory; inactive file caches count as available.
fn group_memory(group: &Path) -> Option<(u64, PathBuf)> {
    let (limit, name) = cgroup::memory_limit(group)?;
    let (used, cached) = match name {
        "memory.max" => ("memory.current", "inactive_file "),
        _ => ("memory.usage_in_bytes", "total_inactive_file "),
    };
    let used = cgroup::number(group, used)?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cached = stat.lines().find_map(|line| line.strip_prefix(cached)?.parse::<u64>().ok());
    let used = used.saturating_sub(cached.unwrap_or_default());
    Some((limit.saturating_sub(used), group.join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roomy() -> HostLimits {
        HostLimits {
            user_tasks: Some((60_000, 1000)),
            group_tasks: vec![(50_000, 10, "/g/pids.max".into())],
            all_tasks: Some((100_000, 1000)),
            memory: Some(24 << 30),
            group_memory: Vec::new(),
            files: Some(1 << 20),
        }
    }

    #[test]
    fn the_effective_limit_is_named_with_the_number_that_fits() {
        assert!(roomy().check(128).is_ok());
        let refused = |host: HostLimits| host.check(100_000).unwrap_err().to_string();
        let cases = [
            (roomy(), "817: available memory: 24576 MB (an idle engine takes about 30 MB)"),
            (
                HostLimits {
                    user_tasks: Some((400, 148)),
                    ..roomy()
                },
                "24: processes of this user: 148 of 400 (ulimit -u; an engine takes up to 10)",
            ),
            (
                HostLimits {
                    group_tasks: vec![(50, 10, "/g/pids.max".into())],
                    ..roomy()
                },
                "2: processes of the control group: 10 of 50 (/g/pids.max; an engine takes up to 10)",
            ),
            (
                HostLimits {
                    group_memory: vec![(364 << 20, "/g/memory.max".into())],
                    ..roomy()
                },
                "10: memory left to the control group: 364 MB (/g/memory.max; an idle engine takes about 30 MB)",
            ),
            (
                HostLimits {
                    files: Some(256),
                    ..roomy()
                },
                "128: open files of the controller: 256 (ulimit -Hn; one for each engine)",
            ),
            (
                HostLimits {
                    memory: Some(1),
                    ..roomy()
                },
                "0: available memory",
            ),
        ];
        for (host, words) in cases {
            let error = refused(host);
            assert!(
                error.starts_with(&format!("100000 engines do not fit on this host, at most {words}")),
                "{error}"
            );
        }
        assert!(HostLimits::default().check(u32::MAX).is_ok(), "nothing is known");
    }

    #[test]
    fn capacity_of_this_host_is_detected() {
        let host = HostLimits::this();
        assert!(
            host.memory.is_some() && host.files.is_some() && host.all_tasks.is_some(),
            "{host:?}"
        );
        assert!(host.check(u32::MAX).is_err());
    }

    #[test]
    fn control_groups_of_both_versions_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!((group_tasks(dir.path()), group_memory(dir.path())), (None, None));
        write("pids.max", "max\n");
        write("pids.current", "7\n");
        assert_eq!(group_tasks(dir.path()), None);
        write("pids.max", "100\n");
        assert_eq!(group_tasks(dir.path()).map(|(limit, used, _)| (limit, used)), Some((100, 7)));
        write("memory.limit_in_bytes", "9223372036854771712\n");
        write("memory.usage_in_bytes", "5\n");
        assert_eq!(group_memory(dir.path()), None);
        write("memory.limit_in_bytes", "1000\n");
        assert_eq!(group_memory(dir.path()).unwrap().0, 995);
        write("memory.max", "2000\n");
        write("memory.current", "600\n");
        write("memory.stat", "anon 100\ninactive_file 400\n");
        assert_eq!(group_memory(dir.path()).unwrap().0, 1800);
    }
}
