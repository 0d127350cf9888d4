//! Notices that the kernel has killed a process of this control group for lack of memory.
//!
//! Source: cgroup-v2 of the kernel's documents, `memory.events`; cgroup-v1, "Memory Resource Controller", `memory.oom_control`.
use crate::sys::cgroup;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A kill explains the end of a process that is reported at least this long after it, and at most twice as long.
const EXPLAINS: Duration = Duration::from_secs(10);

/// The number of such kills in the group of this process.
#[derive(Debug)]
pub(super) struct OomWatch {
    group: Option<PathBuf>,
    /// Those before are explained, or too old.
    seen: u64,
    counted: (Instant, u64),
}

impl OomWatch {
    /// `root` is `/`, or the root of a test's files.
    pub(super) fn new(root: &Path, now: Instant) -> OomWatch {
        let groups = cgroup::directories(root, &["memory"]);
        let counted = groups.into_iter().find_map(|group| Some((cgroup::oom_kills(&group)?, group)));
        let (seen, group) = counted.map_or((0, None), |(seen, group)| (seen, Some(group)));
        let counted = (now, seen);
        OomWatch { group, seen, counted }
    }

    /// Whether there was a kill since the last call. Other processes of the group may have been meant.
    pub(super) fn has_killed(&mut self) -> bool {
        let now = self.count();
        now > std::mem::replace(&mut self.seen, now)
    }

    /// Old kills were not those of processes of this engine.
    pub(super) fn forget_old(&mut self, now: Instant) {
        if now.duration_since(self.counted.0) >= EXPLAINS {
            self.seen = self.seen.max(self.counted.1);
            self.counted = (now, self.count());
        }
    }

    fn count(&self) -> u64 {
        self.group.as_deref().and_then(cgroup::oom_kills).unwrap_or(self.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn each_kill_is_noticed_once_in_both_versions_of_control_groups() {
        for (line, group, file) in [
            ("0::/job/step", "sys/fs/cgroup/job/step", "memory.events"),
            ("4:memory:/job/step", "sys/fs/cgroup/memory/job/step", "memory.oom_control"),
        ] {
            let root = tempfile::tempdir().unwrap();
            let start = Instant::now();
            let at = |path: &str| root.path().join(path);
            fs::create_dir_all(at("proc/self")).unwrap();
            fs::create_dir_all(at(group)).unwrap();
            fs::write(at("proc/self/cgroup"), format!("7:cpu:/\n{line}\n")).unwrap();
            let set = |kills: u64| fs::write(at(group).join(file), format!("low 0\noom 9\noom_kill {kills}\noom_group_kill 5\n")).unwrap();
            assert!(!OomWatch::new(root.path(), start).has_killed(), "no file");
            set(3);
            let mut watch = OomWatch::new(root.path(), start);
            assert!(!watch.has_killed());
            set(4);
            assert!(watch.has_killed() && !watch.has_killed());
            // Heartbeats come before the process that was killed is reported; its end may take seconds.
            set(5);
            watch.forget_old(start);
            watch.forget_old(start + EXPLAINS);
            watch.forget_old(start + EXPLAINS * 3 / 2);
            assert!(watch.has_killed());
            set(6);
            watch.forget_old(start + EXPLAINS * 2);
            watch.forget_old(start + EXPLAINS * 3);
            assert!(!watch.has_killed(), "too old");
            fs::remove_file(at(group).join(file)).unwrap();
            assert!(!watch.has_killed());
        }
    }
}
