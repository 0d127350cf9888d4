//! Notices that the kernel has killed a process of this control group for lack of memory.
//!
//! Source: cgroup-v2 of the kernel's documents, `memory.events`; cgroup-v1, "Memory Resource Controller", `memory.oom_control`.
use crate::sys::cgroup;
use std::path::{Path, PathBuf};

/// The number of such kills in the group of this process.
#[derive(Debug, Default)]
pub(super) struct OomWatch {
    group: Option<PathBuf>,
    seen: u64,
}

impl OomWatch {
    /// `root` is `/`, or the root of a test's files.
    pub(super) fn new(root: &Path) -> OomWatch {
        let groups = cgroup::directories(root, &["memory"]);
        let counted = groups.into_iter().find_map(|group| Some((cgroup::oom_kills(&group)?, group)));
        let (seen, group) = counted.map_or((0, None), |(seen, group)| (seen, Some(group)));
        OomWatch { group, seen }
    }

    /// Whether there was a kill since the last call. Other processes of the group may have been meant.
    pub(super) fn has_killed(&mut self) -> bool {
        let now = self.group.as_deref().and_then(cgroup::oom_kills).unwrap_or(self.seen);
        now > std::mem::replace(&mut self.seen, now)
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
            let at = |path: &str| root.path().join(path);
            fs::create_dir_all(at("proc/self")).unwrap();
            fs::create_dir_all(at(group)).unwrap();
            fs::write(at("proc/self/cgroup"), format!("7:cpu:/\n{line}\n")).unwrap();
            let set = |kills: u64| fs::write(at(group).join(file), format!("low 0\noom 9\noom_kill {kills}\noom_group_kill 5\n")).unwrap();
            assert!(!OomWatch::new(root.path()).has_killed(), "no file");
            set(3);
            let mut watch = OomWatch::new(root.path());
            assert!(!watch.has_killed());
            set(4);
            assert!(watch.has_killed() && !watch.has_killed());
            fs::remove_file(at(group).join(file)).unwrap();
            assert!(!watch.has_killed());
        }
    }
}
