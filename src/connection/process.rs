//! Whether a process is still the one that it was: process ids are used again, but not with the same start time.
//!
//! Source: proc_pid_stat(5) and proc_stat(5). A process that has ended and was not waited for (a zombie) counts as gone.
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs;
use std::time::{Duration, Instant};

/// The unit of times in `/proc/<pid>/stat`: USER_HZ, which is 100 on every Linux that Rust runs on.
const TICKS_A_SECOND: f64 = 100.0;
/// The boot time is a whole number of seconds and moves by one when the clock is set.
const TOLERANCE_S: f64 = 2.0;
/// How long processes may take to end when they are told to, and when they are killed.
const ENDS: Duration = Duration::from_secs(8);
const KILL_TAKES: Duration = Duration::from_secs(3);

/// When this process started, in seconds since 1970; none if there is no such process.
pub fn started_of(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks = start_ticks(&stat)?;
    Some(boot_time()? + ticks as f64 / TICKS_A_SECOND)
}

/// Whether `pid` is the process that started at `started` (as [`started_of`] said it).
pub fn is_same_process(pid: u32, started: f64) -> bool {
    started_of(pid).is_some_and(|s| (s - started).abs() < TOLERANCE_S)
}

/// The session of this process, by its leader; none if there is no such process, or it has ended.
pub fn session_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    start_ticks(&stat)?;
    // state, parent, process group, session
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(3)?.parse().ok()
}

/// The processes that these have started and that still belong to them, and those that these have started, and so on.
pub fn descendants_of(processes: &[u32]) -> Vec<u32> {
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

/// Others that read from and write to these through pipes, as a ProxyCommand of ssh does: ssh has left it to itself when it went into
/// the background.
pub fn behind_pipes_of(processes: &[u32]) -> Vec<u32> {
    let pipe = |path: std::path::PathBuf| {
        let link = fs::read_link(path).ok()?.into_os_string().into_string().ok()?;
        link.starts_with("pipe:").then_some(link)
    };
    let files = processes
        .iter()
        .filter_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok())
        .flatten();
    let theirs: Vec<String> = files.flatten().filter_map(|entry| pipe(entry.path())).collect();
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let others = pids.filter(|pid| !processes.contains(pid) && *pid != std::process::id());
    let is_behind = |pid: &u32| {
        [0, 1]
            .iter()
            .all(|fd| pipe(format!("/proc/{pid}/fd/{fd}").into()).is_some_and(|link| theirs.contains(&link)))
    };
    if theirs.is_empty() {
        Vec::new()
    } else {
        others.filter(is_behind).collect()
    }
}

/// What one process has started and what still belongs to it, without a look at all processes. Empty where the kernel does not tell
/// (`CONFIG_PROC_CHILDREN`, proc(5)).
pub fn children_of(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let pids = |list: String| {
        list.split_ascii_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect::<Vec<u32>>()
    };
    lists.flat_map(pids).collect()
}

/// By SIGSTOP, or a debugger.
pub fn is_stopped(pid: u32) -> bool {
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

/// This host's name, as connection and state files spell it.
pub fn host() -> String {
    match nix::unistd::gethostname() {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => "localhost".into(),
    }
}

/// When a process of another host started, from its `/proc/<pid>/stat` and that host's `/proc/stat`.
pub fn started_from(process_stat: &str, host_stat: &str) -> Option<f64> {
    Some(boot_time_in(host_stat)? + start_ticks(process_stat)? as f64 / TICKS_A_SECOND)
}

/// Whether two start times are one.
pub fn same_start(one: f64, other: f64) -> bool {
    (one - other).abs() < TOLERANCE_S
}

/// `pid (name) state … starttime(22)`; the name may have spaces and parentheses. None for one that has ended.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(22 - 4)?.parse().ok()
}

/// The processes of the sessions that these lead, or led: what they started and left behind.
pub fn in_sessions_of(leaders: &[u32]) -> Vec<u32> {
    let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
    let member = |pid: u32| leaders.contains(&session_of(pid)?).then_some(pid);
    all.filter_map(|entry| member(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// Names its supervisor in the environment of a process.
pub const SUPERVISOR: &str = "PCLUSTER_SUPERVISOR";

/// What stands there: the supervisor that was started first, whose session they are in. One that has taken its place says so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mark {
    pub pid: u32,
    pub started: f64,
    /// On a supervisor itself.
    pub is_supervisor: bool,
}

impl Mark {
    /// Of a process that this one is about to start, as its supervisor.
    pub fn for_supervised() -> Mark {
        let own = std::process::id();
        let first = Mark::of_this_process().filter(|mark| mark.is_supervisor);
        Mark {
            is_supervisor: false,
            ..first.unwrap_or(Mark {
                pid: own,
                started: started_of(own).unwrap_or_default(),
                is_supervisor: false,
            })
        }
    }

    pub fn of_this_process() -> Option<Mark> {
        Mark::parse(&std::env::var(SUPERVISOR).ok()?)
    }

    pub fn parse(text: &str) -> Option<Mark> {
        let mut words = text.split(' ');
        let (pid, started) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Mark {
            pid,
            started,
            is_supervisor: words.next().is_some(),
        })
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = if self.is_supervisor { " supervisor" } else { "" };
        write!(f, "{} {}{word}", self.pid, self.started)
    }
}

/// A process that a supervisor has left which is gone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Left {
    /// Which one's, by index.
    pub of: usize,
    pub pid: u32,
    pub started: f64,
}

/// A process of this host, as state files name it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Own {
    pub pid: u32,
    pub started: f64,
}

impl Own {
    pub fn of(pid: u32) -> Own {
        Own {
            pid,
            started: started_of(pid).unwrap_or_default(),
        }
    }

    /// The supervisor of this process, as it has said it.
    pub fn supervisor() -> Option<Own> {
        let mark = Mark::of_this_process()?;
        Some(Own {
            pid: mark.pid,
            started: mark.started,
        })
    }

    pub fn runs(&self) -> bool {
        is_same_process(self.pid, self.started)
    }
}

/// SIGTERM to the first that runs (a supervisor passes it on), SIGKILL to what does not end. `child`: one of them that this process
/// has started.
pub fn end(processes: &[Own], child: &mut Option<std::process::Child>) {
    let mut wait = |patience: Duration| {
        let deadline = Instant::now() + patience;
        loop {
            // Ours must be waited for, or it stays as a zombie.
            if let Some(child) = child.as_mut() {
                let _ = child.try_wait();
            }
            if !processes.iter().any(Own::runs) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    if let Some(own) = processes.iter().find(|own| own.runs()) {
        let _ = kill(Pid::from_raw(own.pid as i32), Signal::SIGTERM);
    }
    if wait(ENDS) {
        return;
    }
    for own in processes.iter().filter(|own| own.runs()) {
        let _ = kill(Pid::from_raw(own.pid as i32), Signal::SIGKILL);
    }
    wait(KILL_TAKES);
}

/// What these supervisors, which are gone, left: the supervisor that has taken the place of one, else what that kept running.
pub fn left_by(supervisors: &[(u32, f64)]) -> Vec<Left> {
    let sessions: Vec<u32> = supervisors.iter().map(|(pid, _)| *pid).collect();
    let marked = |pid: u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let variable = |entry: &[u8]| entry.strip_prefix(SUPERVISOR.as_bytes())?.strip_prefix(b"=").map(<[u8]>::to_vec);
        let mark = Mark::parse(&String::from_utf8(environment.split(|byte| *byte == 0).find_map(variable)?).ok()?)?;
        let same = |(pid, at): &(u32, f64)| *pid == mark.pid && same_start(*at, mark.started);
        let left = Left {
            of: supervisors.iter().position(same)?,
            pid,
            started: started_of(pid)?,
        };
        Some((left, mark.is_supervisor))
    };
    let found: Vec<(Left, bool)> = in_sessions_of(&sessions).into_iter().filter_map(marked).collect();
    let has_another = |of: usize| found.iter().any(|(left, is_supervisor)| left.of == of && *is_supervisor);
    let counts = |(left, is_supervisor): &&(Left, bool)| *is_supervisor || !has_another(left.of);
    found.iter().filter(counts).map(|(left, _)| *left).collect()
}

fn boot_time() -> Option<f64> {
    boot_time_in(&fs::read_to_string("/proc/stat").ok()?)
}

fn boot_time_in(stat: &str) -> Option<f64> {
    stat.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_started_not_long_ago() {
        let pid = std::process::id();
        let started = started_of(pid).unwrap();
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        assert!(started <= now + TOLERANCE_S && started > now - 86_400.0, "{started} {now}");
        assert!(is_same_process(pid, started));
        assert!(!is_same_process(pid, started - 60.0));
        let session = nix::unistd::getsid(None).unwrap().as_raw();
        assert_eq!(session_of(pid), u32::try_from(session).ok());
    }

    #[test]
    fn a_child_is_gone_when_it_has_ended_even_before_it_is_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let started = started_of(child.id()).unwrap();
        assert!(is_same_process(child.id(), started));
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while is_same_process(child.id(), started) {
            assert!(std::time::Instant::now() < deadline, "a killed process still counts as alive");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        child.wait().unwrap();
        assert_eq!(started_of(child.id()), None);
    }

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let first = Mark {
            pid: 17,
            started: 1234.56,
            is_supervisor: false,
        };
        let next = Mark {
            is_supervisor: true,
            ..first
        };
        assert_eq!(first.to_string(), "17 1234.56", "as version 0.1.0 wrote it");
        for mark in [first, next] {
            assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
        }
        assert_eq!((Mark::parse(""), Mark::parse("17"), Mark::parse("x 1.0")), (None, None, None));
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "17 (a) S (b) c) S 1 17 17 0 -1 4194560 9 8 7 6 5 4 3 2 20 0 1 0 4242 99 98";
        assert_eq!(start_ticks(stat), Some(4242));
        assert_eq!(start_ticks(&stat.replace(" S 1 ", " Z 1 ")), None);
        assert_eq!(start_ticks("17"), None);
    }
}
