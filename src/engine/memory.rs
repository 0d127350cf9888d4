//! How much memory what runs takes.
//!
//! Source: proc_pid_status(5) for VmRSS, proc_pid_task(5) for `children`.
use std::fs;

/// So many processes are added up at most.
const MOST: usize = 10_000;

/// Resident memory, in bytes, of a process and all that it started, directly or not. Pages that they share count for each.
pub fn of_group(pid: i32) -> u64 {
    let (mut processes, mut at, mut bytes) = (vec![pid], 0, 0);
    while let Some(pid) = processes.get(at).copied().filter(|_| at < MOST) {
        at += 1;
        bytes += resident(pid);
        processes.extend(children(pid));
    }
    bytes
}

/// 0 for one that has ended.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_ascii_whitespace().next()?.parse().ok());
    kilobytes.unwrap_or(0u64) * 1024
}

/// Processes that it has started, directly, and not waited for.
pub fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let listed = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    listed
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_and_theirs_are_counted() {
        let own = std::process::id() as i32;
        assert!(resident(own) > 100_000);
        assert_eq!(of_group(i32::MAX), 0);
        let script = "sh -c 'sleep 100 & echo; wait' & wait";
        let mut shell = std::process::Command::new("sh")
            .args(["-c", script])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0];
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut line).unwrap();
        let pid = shell.id() as i32;
        let inner = children(pid);
        let sleep = children(inner[0]);
        assert_eq!((inner.len(), sleep.len()), (1, 1));
        // `sleep` may still be loading while it is measured: at last it is at rest.
        let counted = || of_group(pid) == resident(pid) + resident(inner[0]) + resident(sleep[0]);
        let at_last = (0..2000).any(|_| {
            counted() || {
                std::thread::sleep(std::time::Duration::from_millis(5));
                false
            }
        });
        assert!(at_last);
        for pid in [sleep[0], inner[0], pid] {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        shell.wait().unwrap();
    }
}
