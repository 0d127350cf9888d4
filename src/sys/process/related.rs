//! Finds related processes of this host: by parent, session, or pipe.
//!
//! Source: proc_pid_stat(5), `CONFIG_PROC_CHILDREN` in proc_pid_task(5).
use super::start_ticks;
use std::fs;

/// The session of a process, identified by its leader; None if the process does not exist or has ended.
pub(crate) fn session_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    start_ticks(&stat)?;
    // state, parent, process group, session
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(3)?.parse().ok()
}

/// The descendants of these processes.
pub(crate) fn descendants_of(processes: &[u32]) -> Vec<u32> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let parents: Vec<(u32, u32)> = pids.filter_map(|pid| Some((pid, parent_of(pid)?))).collect();
    let (mut found, mut last) = (Vec::new(), processes.to_vec());
    while !last.is_empty() {
        let children = parents.iter().filter(|(_, parent)| last.contains(parent)).map(|(pid, _)| *pid);
        last = children.filter(|pid| !found.contains(pid)).collect();
        found.extend(&last);
    }
    found
}

/// Other processes whose stdin and stdout are pipes of these processes, such as a ProxyCommand of ssh, which is no longer ssh's child
/// after ssh went into the background.
pub(crate) fn processes_at_pipes_of(processes: &[u32]) -> Vec<u32> {
    let pipe = |path: std::path::PathBuf| {
        let link = fs::read_link(path).ok()?.into_os_string().into_string().ok()?;
        link.starts_with("pipe:").then_some(link)
    };
    let files = processes
        .iter()
        .filter_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok())
        .flatten();
    let pipes: Vec<String> = files.flatten().filter_map(|entry| pipe(entry.path())).collect();
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let others = pids.filter(|pid| !processes.contains(pid) && *pid != std::process::id());
    let is_behind = |pid: &u32| {
        [0, 1]
            .iter()
            .all(|fd| pipe(format!("/proc/{pid}/fd/{fd}").into()).is_some_and(|link| pipes.contains(&link)))
    };
    if pipes.is_empty() {
        Vec::new()
    } else {
        others.filter(is_behind).collect()
    }
}

/// The children of one process, without scanning all processes. Empty if the kernel does not support it (`CONFIG_PROC_CHILDREN`,
/// proc(5)).
pub(crate) fn children_of(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let pids = |list: String| {
        list.split_ascii_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect::<Vec<u32>>()
    };
    lists.flat_map(pids).collect()
}

/// Returns whether the process is stopped by SIGSTOP or a debugger.
pub(crate) fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').map_or("", |(_, rest)| rest.trim_start());
    state.starts_with(['T', 't'])
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    start_ticks(&stat)?;
    // state, parent
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The processes in the sessions of these leaders, which may have ended.
pub(crate) fn processes_in_sessions(leaders: &[u32]) -> Vec<u32> {
    let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
    let member = |pid: u32| leaders.contains(&session_of(pid)?).then_some(pid);
    all.filter_map(|entry| member(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .collect()
}
