//! Measures the memory use of a running unit.
//!
//! Source: proc_pid_status(5) for VmRSS, proc_pid_smaps(5) for `smaps_rollup`, proc_pid_task(5) for `children`.
use std::fs;

/// Maximum number of processes to add up.
const MAX_PROCESSES: usize = 10_000;

/// Resident bytes of a process and all its descendants. Pages shared by several processes (with a fork, with the interpreter) count
/// once; measuring that is slower, so it is done only if the plain sum exceeds the limit.
pub(super) fn of_group(pid: i32, limit: u64) -> u64 {
    let (mut processes, mut at, mut resident_bytes) = (vec![pid], 0, 0);
    while let Some(pid) = processes.get(at).copied().filter(|_| at < MAX_PROCESSES) {
        at += 1;
        resident_bytes += resident(pid);
        processes.extend(children(pid));
    }
    match resident_bytes > limit {
        true => processes.iter().take(MAX_PROCESSES).map(|pid| share(*pid)).sum(),
        false => resident_bytes,
    }
}

/// Proportional set size: each page is divided by the number of processes that share it; resident memory if unavailable.
fn share(pid: i32) -> u64 {
    match fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
        Ok(text) => kilobytes(&text, "Pss:").map_or_else(|| resident(pid), |kilobytes| kilobytes * 1024),
        Err(_) => resident(pid),
    }
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next()?.parse().ok())
}

/// Resident memory in bytes; 0 for a process that has ended.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    kilobytes(&status, "VmRSS:").unwrap_or_default() * 1024
}

/// Direct child processes, running or not reaped.
pub(super) fn children(pid: i32) -> Vec<i32> {
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
    fn pages_that_processes_share_count_once() {
        let script = "import os, sys, time\n\
                      data = bytearray(64 << 20)\n\
                      for i in range(0, len(data), 4096): data[i] = 1\n\
                      pids = [os.fork() for _ in range(1)]\n\
                      if pids[0]: pids.append(os.fork())\n\
                      if pids[-1]: print(flush=True)\n\
                      time.sleep(600)\n";
        let mut python = std::process::Command::new("python3")
            .args(["-c", script])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Read::read_exact(python.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let pid = python.id() as i32;
        let (all, once) = (of_group(pid, u64::MAX), of_group(pid, 0));
        let forks = children(pid);
        for pid in forks.iter().chain([&pid]) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
        }
        python.wait().unwrap();
        assert_eq!(forks.len(), 2);
        assert!(all > 3 * (64 << 20), "{all}");
        assert!(((64 << 20)..(2 * (64 << 20))).contains(&once), "{once}");
    }

    #[test]
    fn descendants_are_counted() {
        let own = std::process::id() as i32;
        assert!(resident(own) > 100_000);
        assert_eq!(of_group(i32::MAX, 0), 0);
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
        // `sleep` may still be loading while it is measured.
        let counted = || of_group(pid, u64::MAX) == resident(pid) + resident(inner[0]) + resident(sleep[0]);
        let eventually_equal = (0..2000).any(|_| {
            counted() || {
                std::thread::sleep(std::time::Duration::from_millis(5));
                false
            }
        });
        assert!(eventually_equal);
        for pid in [sleep[0], inner[0], pid] {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        shell.wait().unwrap();
    }
}
