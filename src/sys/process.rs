//! Identifies processes. A process id alone is not unique: it is reused, and denotes different processes on other hosts, after a reboot,
//! and in other PID namespaces. The identification does not depend on the wall clock.
//!
//! Parts: [`ProcessId`], [`mark`] (supervisor of a process), [`related`] (children, sessions, pipes).
//!
//! Source: proc_pid_stat(5), pid_namespaces(7), random(4). A zombie (ended, but not reaped) counts as gone.
mod mark;
mod related;

pub(crate) use mark::{Mark, SUPERVISOR, marked_leaders, orphans_of};
pub(crate) use related::{children_of, descendants_of, is_stopped, processes_at_pipes_of, processes_in_sessions, session_of};

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The unit of times in `/proc/<pid>/stat`: USER_HZ, which is 100 on every Linux platform of Rust.
const TICKS_PER_SECOND: u64 = 100;
/// The initial PID namespace, in which all processes of a host are visible (`PROC_PID_INIT_INO` of the kernel).
const INITIAL_NAMESPACE: &str = "pid:[4026531836]";
/// How long to wait for processes to end after SIGTERM, and after SIGKILL.
const TERM_TIMEOUT: Duration = Duration::from_secs(8);
const KILL_TIMEOUT: Duration = Duration::from_secs(3);

/// A unique identification of a process, for files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: u32,
    /// The host name, as the host reports it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// Start time in clock ticks since the boot (`starttime` of proc_pid_stat(5)). None if the process had already ended when it was
    /// identified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticks: Option<u64>,
    /// Empty in files of version 0.1.0, as are `ticks`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
    /// `pid:[4026531836]`
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pid_namespace: String,
}

/// Whether a process is running, as far as this process can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    Runs,
    Gone,
    Unknown(Unseen),
}

/// Why it is unknown whether a process is running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unseen {
    OtherHost(String),
    OtherNamespace,
    /// A process with this id is running; version 0.1.0 recorded only the id, so it may be another process.
    OldRecord,
}

impl std::fmt::Display for Unseen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unseen::OtherHost(host) => write!(f, "it is on {host}"),
            Unseen::OtherNamespace => f.write_str("it is in another PID namespace (a container)"),
            Unseen::OldRecord => f.write_str("it was recorded by an older pcluster, and its process id may have been reused"),
        }
    }
}

/// The view of a process on others: its host, boot and PID namespace.
#[derive(Clone, Debug)]
struct ProcView {
    proc: PathBuf,
    host: String,
    boot_id: String,
    /// Empty if `/proc` does not belong to this process's namespace.
    pid_namespace: String,
}

impl ProcView {
    fn now() -> ProcView {
        static CACHE: OnceLock<ProcView> = OnceLock::new();
        let view = CACHE.get_or_init(|| ProcView::at(Path::new("/proc"), std::process::id()));
        ProcView {
            host: host(),
            ..view.clone()
        }
    }

    /// The view of the process `pid` through a file system like proc(5).
    fn at(proc: &Path, pid: u32) -> ProcView {
        let is_ours = fs::read_link(proc.join("self")).is_ok_and(|link| link.as_os_str() == pid.to_string().as_str());
        let namespace = fs::read_link(proc.join("self/ns/pid")).ok().filter(|_| is_ours);
        ProcView {
            proc: proc.into(),
            host: host(),
            boot_id: read_boot_id(proc).unwrap_or_default(),
            pid_namespace: namespace.map_or_else(String::new, |link| link.to_string_lossy().into_owned()),
        }
    }

    fn ticks(&self, pid: u32) -> Option<u64> {
        start_ticks(&fs::read_to_string(self.proc.join(pid.to_string()).join("stat")).ok()?)
    }

    fn process(&self, pid: u32) -> ProcessId {
        ProcessId {
            pid,
            host: self.host.clone(),
            ticks: self.ticks(pid).filter(|_| !self.pid_namespace.is_empty()),
            boot_id: self.boot_id.clone(),
            pid_namespace: self.pid_namespace.clone(),
        }
    }

    fn presence(&self, of: &ProcessId) -> Presence {
        let gone_unless = |runs: bool| if runs { Presence::Runs } else { Presence::Gone };
        if !of.host.is_empty() && of.host != self.host {
            return Presence::Unknown(Unseen::OtherHost(of.host.clone()));
        }
        if of.pid == 0 {
            return Presence::Gone;
        }
        if of.boot_id.is_empty() && of.ticks.is_none() {
            return match self.ticks(of.pid) {
                Some(_) => Presence::Unknown(Unseen::OldRecord),
                None => Presence::Gone,
            };
        }
        if of.boot_id != self.boot_id {
            return Presence::Gone;
        }
        if of.pid_namespace != self.pid_namespace {
            let is_initial = self.pid_namespace == INITIAL_NAMESPACE;
            return match is_initial && !self.has_namespace(&of.pid_namespace) {
                true => Presence::Gone,
                false => Presence::Unknown(Unseen::OtherNamespace),
            };
        }
        gone_unless(of.ticks.is_some() && self.ticks(of.pid) == of.ticks)
    }

    /// Returns whether a visible process is in this PID namespace.
    fn has_namespace(&self, namespace: &str) -> bool {
        let all = fs::read_dir(&self.proc).into_iter().flatten().flatten();
        all.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()))
            .any(|entry| fs::read_link(entry.path().join("ns/pid")).is_ok_and(|link| link.as_os_str() == namespace))
    }
}

impl ProcessId {
    /// Identifies a process of this host and namespace.
    pub fn of(pid: u32) -> ProcessId {
        ProcView::now().process(pid)
    }

    /// This process.
    pub fn own() -> ProcessId {
        ProcessId::of(std::process::id())
    }

    /// The supervisor of this process, from its mark.
    pub fn supervisor() -> Option<ProcessId> {
        let mark = Mark::of_this_process()?;
        Some(ProcessId {
            ticks: Some(mark.ticks),
            ..ProcessId::of(mark.pid)
        })
    }

    /// Parses the output of a script on another host: that of [`ProcessId::ABOUT`], and the process's line of `/proc/<pid>/stat`.
    pub fn from_script(about: &str, stat: &str) -> Option<ProcessId> {
        let line = |key: &str| about.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        Some(ProcessId {
            pid: stat.split(' ').next()?.parse().ok()?,
            host: line("node").unwrap_or_default().trim().into(),
            ticks: Some(start_ticks(stat)?),
            boot_id: line("boot")?.trim().into(),
            pid_namespace: line("pidns").unwrap_or_default().trim().into(),
        })
    }

    /// The same for a process that has already ended.
    pub fn ended_from_script(about: &str, pid: u32) -> ProcessId {
        let stat = format!("{pid} () S 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0");
        ProcessId {
            ticks: None,
            ..ProcessId::from_script(about, &stat).unwrap_or_default()
        }
    }

    /// POSIX shell commands that print host, boot and PID namespace, one per line.
    pub const ABOUT: &str = "echo \"node $(uname -n)\"\necho \"boot $(cat /proc/sys/kernel/random/boot_id 2>/dev/null)\"\necho \"pidns $(readlink /proc/self/ns/pid 2>/dev/null)\"\n";

    pub fn presence(&self) -> Presence {
        ProcView::now().presence(self)
    }

    /// Returns whether it is known to be running.
    pub fn runs(&self) -> bool {
        self.presence() == Presence::Runs
    }

    /// Returns whether it is known to have ended.
    pub fn is_gone(&self) -> bool {
        self.presence() == Presence::Gone
    }

    /// Returns whether it is on this host, by name.
    pub fn is_on_this_host(&self) -> bool {
        self.host.is_empty() || self.host == host()
    }

    /// Returns whether it was started before this host's last boot, or on another host of the same name.
    pub fn is_of_another_boot(&self) -> bool {
        !self.boot_id.is_empty() && self.is_on_this_host() && self.boot_id != ProcView::now().boot_id
    }

    /// How long it has been running.
    pub fn age(&self) -> Option<Duration> {
        let since_boot = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?);
        let started = Duration::from_millis(self.ticks?.saturating_mul(1000 / TICKS_PER_SECOND));
        (self.runs()).then(|| since_boot.saturating_sub(started))
    }
}

/// `process 4242 on login1`, or only the host if the process id is unknown.
impl std::fmt::Display for ProcessId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            0 => f.write_str(&self.host),
            pid => write!(f, "process {pid} on {}", self.host),
        }
    }
}

/// A unique id of this boot of this host; None if the system does not provide it.
pub(crate) fn boot_id() -> Option<String> {
    read_boot_id(Path::new("/proc"))
}

fn read_boot_id(proc: &Path) -> Option<String> {
    let text = fs::read_to_string(proc.join("sys/kernel/random/boot_id")).ok()?;
    Some(text.trim().to_string()).filter(|id| !id.is_empty())
}

/// Returns whether a process with this id exists. It may not be the intended one.
pub(crate) fn exists(pid: u32) -> bool {
    ProcView::now().ticks(pid).is_some()
}

/// This host's name, as written in connection and state files.
pub(crate) fn host() -> String {
    match nix::unistd::gethostname() {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => "localhost".into(),
    }
}

/// `pid (name) state … starttime(22)`; the name may contain spaces and parentheses. None if the process has ended.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(22 - 4)?.parse().ok()
}

/// Sends SIGTERM to the first running process (a supervisor forwards it), then SIGKILL to those that do not end. `child`: one of them
/// that is a child of this process.
pub(crate) fn end(processes: &[ProcessId], child: &mut Option<std::process::Child>) {
    let mut wait = |timeout: Duration| {
        let deadline = Instant::now() + timeout;
        loop {
            // Reap our child, or it remains a zombie.
            if let Some(child) = child.as_mut() {
                let _ = child.try_wait();
            }
            if !processes.iter().any(ProcessId::runs) {
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
    if wait(TERM_TIMEOUT) {
        return;
    }
    for own in processes.iter().filter(|own| own.runs()) {
        let _ = kill(Pid::from_raw(own.pid as i32), Signal::SIGKILL);
    }
    wait(KILL_TIMEOUT);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file system like proc(5), as seen by the process 4242.
    struct Proc(tempfile::TempDir);

    impl Proc {
        fn new(boot_id: &str, namespace: &str) -> Proc {
            let proc = Proc(tempfile::tempdir().unwrap());
            fs::create_dir_all(proc.0.path().join("sys/kernel/random")).unwrap();
            fs::write(proc.0.path().join("sys/kernel/random/boot_id"), format!("{boot_id}\n")).unwrap();
            proc.process(4242, 100, namespace);
            std::os::unix::fs::symlink("4242", proc.0.path().join("self")).unwrap();
            proc
        }

        fn process(&self, pid: u32, ticks: u64, namespace: &str) {
            let dir = self.0.path().join(pid.to_string());
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(dir.join("ns")).unwrap();
            fs::write(
                dir.join("stat"),
                format!("{pid} (x) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {ticks} 9 9\n"),
            )
            .unwrap();
            std::os::unix::fs::symlink(namespace, dir.join("ns/pid")).unwrap();
        }

        fn view(&self) -> ProcView {
            ProcView::at(self.0.path(), 4242)
        }
    }

    #[test]
    fn a_process_is_identified_by_boot_namespace_and_ticks() {
        let outside = Proc::new("boot-1", INITIAL_NAMESPACE);
        outside.process(7, 500, INITIAL_NAMESPACE);
        let process = outside.view().process(7);
        assert_eq!((process.pid, process.ticks, process.boot_id.as_str()), (7, Some(500), "boot-1"));
        assert_eq!(outside.view().presence(&process), Presence::Runs);

        // The id is reused.
        outside.process(7, 501, INITIAL_NAMESPACE);
        assert_eq!(outside.view().presence(&process), Presence::Gone);

        // The host was rebooted.
        let later = Proc::new("boot-2", INITIAL_NAMESPACE);
        later.process(7, 500, INITIAL_NAMESPACE);
        assert_eq!(later.view().presence(&process), Presence::Gone);

        // Another process in a container has the same id.
        let container = Proc::new("boot-1", "pid:[7]");
        container.process(7, 500, "pid:[7]");
        assert_eq!(container.view().presence(&process), Presence::Unknown(Unseen::OtherNamespace));

        let elsewhere = ProcessId {
            host: "elsewhere.invalid".into(),
            ..process.clone()
        };
        let unseen = Unseen::OtherHost("elsewhere.invalid".into());
        assert_eq!(outside.view().presence(&elsewhere), Presence::Unknown(unseen));
    }

    #[test]
    fn processes_of_a_removed_container_are_gone_as_seen_from_outside() {
        let outside = Proc::new("boot-1", INITIAL_NAMESPACE);
        let container = Proc::new("boot-1", "pid:[7]");
        let process = container.view().process(4242);
        outside.process(9, 600, "pid:[7]");
        assert_eq!(outside.view().presence(&process), Presence::Unknown(Unseen::OtherNamespace));
        outside.process(9, 600, "pid:[8]");
        assert_eq!(outside.view().presence(&process), Presence::Gone);
        // In another container it is unknown.
        let other = Proc::new("boot-1", "pid:[8]");
        assert_eq!(other.view().presence(&process), Presence::Unknown(Unseen::OtherNamespace));
    }

    #[test]
    fn a_proc_of_another_namespace_is_not_used() {
        let outside = Proc::new("boot-1", INITIAL_NAMESPACE);
        let process = outside.view().process(4242);
        let blind = ProcView::at(outside.0.path(), 1);
        assert_eq!(blind.process(4242).ticks, None);
        assert_eq!(blind.presence(&process), Presence::Unknown(Unseen::OtherNamespace));
    }

    /// Version 0.1.0 recorded the process id and a time of the wall clock.
    #[test]
    fn an_old_record_is_gone_without_its_process_id_and_otherwise_unknown() {
        let outside = Proc::new("boot-1", INITIAL_NAMESPACE);
        let old: ProcessId = serde_json::from_str(r#"{"pid": 4242, "started": 1700000000.25}"#).unwrap();
        assert_eq!(outside.view().presence(&old), Presence::Unknown(Unseen::OldRecord));
        let gone = ProcessId { pid: 17, ..old };
        assert_eq!(outside.view().presence(&gone), Presence::Gone);
        assert_eq!(outside.view().presence(&ProcessId::default()), Presence::Gone);
    }

    #[test]
    fn process_ids_round_trip() {
        let own = ProcessId::own();
        assert!(own.runs() && !own.is_of_another_boot() && own.age().is_some());
        let read: ProcessId = serde_json::from_value(serde_json::to_value(&own).unwrap()).unwrap();
        assert_eq!(read, own);
        let earlier = ProcessId {
            ticks: own.ticks.map(|ticks| ticks - 1),
            ..own.clone()
        };
        assert!(earlier.is_gone());
        let session = nix::unistd::getsid(None).unwrap().as_raw();
        assert_eq!(session_of(own.pid), u32::try_from(session).ok());
    }

    #[test]
    fn an_ended_child_is_gone_even_before_it_is_reaped() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = ProcessId::of(child.id());
        assert!(process.runs());
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while process.runs() {
            assert!(std::time::Instant::now() < deadline, "a killed process still counts as running");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        child.wait().unwrap();
        assert!(process.is_gone() && !exists(process.pid));
        // An id created after the end of the process does not match a later process.
        assert!(ProcessId::of(process.pid).is_gone());
    }

    #[test]
    fn a_process_of_another_host_is_parsed_from_shell_output() {
        let output = std::process::Command::new("sh").args(["-c", ProcessId::ABOUT]).output().unwrap();
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let read = ProcessId::from_script(&String::from_utf8(output.stdout).unwrap(), &stat).unwrap();
        assert_eq!(read, ProcessId::own());
        assert_eq!(ProcessId::from_script("node n\n", &stat), None, "the host has no /proc");
    }

    #[test]
    fn parentheses_in_a_name_do_not_shift_the_fields() {
        let stat = "17 (a) S (b) c) S 1 17 17 0 -1 4194560 9 8 7 6 5 4 3 2 20 0 1 0 4242 99 98";
        assert_eq!(start_ticks(stat), Some(4242));
        assert_eq!(start_ticks(&stat.replace(" S 1 ", " Z 1 ")), None);
        assert_eq!(start_ticks("17"), None);
    }
}
