//! The memory of a node is the limit of a real control group of its engines: of version 2, or else of version 1.
use super::support::{Cluster, Home, PCLUSTER, Running, skip, wait_until};
use std::fs;
use std::path::{Path, PathBuf};

/// Removed when dropped, after its processes have ended.
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        // A failed test's processes end with its home.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

/// A new control group below that of this process with this limit; an error if none may be made.
fn limited(bytes: u64) -> Result<Group, String> {
    let text = fs::read_to_string("/proc/self/cgroup").map_err(|e| format!("/proc/self/cgroup: {e}"))?;
    let top = Path::new("/sys/fs/cgroup");
    let own = |prefix: &str| text.lines().find_map(|line| line.split_once(prefix)).map(|(_, path)| path);
    let has_memory = |group: &PathBuf| fs::read_to_string(group.join("cgroup.subtree_control")).is_ok_and(|c| c.contains("memory"));
    let join = |top: PathBuf, path: &str| top.join(path.trim_start_matches('/'));
    let second = own("0::").map(|path| join(top.into(), path)).filter(has_memory);
    let first = own(":memory:")
        .map(|path| join(top.join("memory"), path))
        .filter(|group| group.is_dir());
    let (parent, file) = match (second, first) {
        (Some(group), _) => (group, "memory.max"),
        (None, Some(group)) => (group, "memory.limit_in_bytes"),
        (None, None) => return Err("no control group of this process may limit memory".into()),
    };
    let group = Group(parent.join(format!("pcluster-test-{}", std::process::id())));
    let failed = |e: std::io::Error| format!("no control group of its own in {}: {e}", parent.display());
    fs::create_dir(&group.0).map_err(failed)?;
    fs::write(group.0.join(file), bytes.to_string()).map_err(failed)?;
    Ok(group)
}

#[test]
fn the_memory_of_a_node_is_that_of_its_control_group() {
    let group = match limited(600 << 20) {
        Ok(group) => group,
        Err(why) => return skip(&why),
    };
    let home = Home::new();
    let start = format!("echo $$ > {}/cgroup.procs && exec {PCLUSTER} start -n 1", group.0.display());
    Running::spawn(home.program("sh").args(["-c", &start]), "").end().ok();
    let cluster = Cluster::running_in(home);
    assert_eq!(cluster.json(&["engines"])["nodes"][0]["mem_bytes"], 600u64 << 20);
    let map = ["map", "--range", "0..1", "--mem", "700M", "--", "true"];
    cluster.run(&map).fails(4, &["no node has", "600M"]);
    cluster.ok(&["stop"]);
    let is_empty = || fs::read_to_string(group.0.join("cgroup.procs")).is_ok_and(|pids| pids.is_empty());
    wait_until("its processes end", || is_empty().then_some(()));
}
