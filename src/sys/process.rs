//! Which process is meant: a process id alone is used again, and means another process on another host, after a boot, and in another PID
//! namespace. The wall clock has no part in it.
//!
//! Parts: [`ProcessId`], [`mark`] (whose a supervised process is), [`related`] (children, sessions, pipes).
//!
//! Source: proc_pid_stat(5), pid_namespaces(7), random(4). A process that has ended and was not waited for (a zombie) counts as gone.
mod mark;
mod related;

pub use mark::{Mark, SUPERVISOR, left_by};
pub use related::{behind_pipes_of, children_of, descendants_of, in_sessions_of, is_stopped, session_of};

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The unit of times in `/proc/<pid>/stat`: USER_HZ, which is 100 on every Linux that Rust runs on.
const TICKS_A_SECOND: u64 = 100;
/// From the first PID namespace of a host all its processes are seen (`PROC_PID_INIT_INO` of the kernel).
const FIRST_NAMESPACE: &str = "pid:[4026531836]";
/// How long processes may take to end when they are told to, and when they are killed.
const ENDS: Duration = Duration::from_secs(8);
const KILL_TAKES: Duration = Duration::from_secs(3);

/// A process, and no other one, as files name it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: u32,
    /// Its name as the host gives it to itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// When it started, in clock ticks since the boot (`starttime` of proc_pid_stat(5)). None of one that had ended already when it was
    /// looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticks: Option<u64>,
    /// Empty in files of version 0.1.0, as are `ticks`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
    /// `pid:[4026531836]`
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pid_namespace: String,
}

/// Whether a process runs, as far as this process can see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    Runs,
    Gone,
    Unknown(Unseen),
}

/// Why it cannot be told whether a process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unseen {
    OtherHost(String),
    OtherNamespace,
    /// A process of this id runs; version 0.1.0 has noted the id alone, so it may be another one.
    OldRecord,
}

impl std::fmt::Display for Unseen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unseen::OtherHost(host) => write!(f, "it is on {host}"),
            Unseen::OtherNamespace => f.write_str("it is in another PID namespace (a container)"),
            Unseen::OldRecord => f.write_str("an older pcluster has recorded it, and its process id may be another process's by now"),
        }
    }
}

/// The host, boot and PID namespace of a process that looks at others.
#[derive(Clone, Debug)]
struct Here {
    proc: PathBuf,
    host: String,
    boot_id: String,
    /// Empty where `/proc` is not that of this process's namespace.
    pid_namespace: String,
}

impl Here {
    fn now() -> Here {
        static NEVER_CHANGES: OnceLock<Here> = OnceLock::new();
        let here = NEVER_CHANGES.get_or_init(|| Here::at(Path::new("/proc"), std::process::id()));
        Here {
            host: host(),
            ..here.clone()
        }
    }

    /// As the process `pid` sees it in a file system like proc(5).
    fn at(proc: &Path, pid: u32) -> Here {
        let is_ours = fs::read_link(proc.join("self")).is_ok_and(|link| link.as_os_str() == pid.to_string().as_str());
        let namespace = fs::read_link(proc.join("self/ns/pid")).ok().filter(|_| is_ours);
        Here {
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
            let sees_all = self.pid_namespace == FIRST_NAMESPACE;
            return match sees_all && !self.has_namespace(&of.pid_namespace) {
                true => Presence::Gone,
                false => Presence::Unknown(Unseen::OtherNamespace),
            };
        }
        gone_unless(of.ticks.is_some() && self.ticks(of.pid) == of.ticks)
    }

    /// Whether a process that is seen from here is in this PID namespace.
    fn has_namespace(&self, namespace: &str) -> bool {
        let all = fs::read_dir(&self.proc).into_iter().flatten().flatten();
        all.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()))
            .any(|entry| fs::read_link(entry.path().join("ns/pid")).is_ok_and(|link| link.as_os_str() == namespace))
    }
}

impl ProcessId {
    /// A process that this one sees.
    pub fn of(pid: u32) -> ProcessId {
        Here::now().process(pid)
    }

    /// This process.
    pub fn own() -> ProcessId {
        ProcessId::of(std::process::id())
    }

    /// The supervisor of this process, as it has said it.
    pub fn supervisor() -> Option<ProcessId> {
        let mark = Mark::of_this_process()?;
        Some(ProcessId {
            ticks: Some(mark.ticks),
            ..ProcessId::of(mark.pid)
        })
    }

    /// Of a host that was asked by a script: its own [`ProcessId::ABOUT`], and the process's line of `/proc/<pid>/stat`.
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

    /// The same of one that has ended already.
    pub fn ended_from_script(about: &str, pid: u32) -> ProcessId {
        let stat = format!("{pid} () S 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0");
        ProcessId {
            ticks: None,
            ..ProcessId::from_script(about, &stat).unwrap_or_default()
        }
    }

    /// Commands of the POSIX shell that say which host, boot and PID namespace theirs are, in lines of their own.
    pub const ABOUT: &str = "echo \"node $(uname -n)\"\necho \"boot $(cat /proc/sys/kernel/random/boot_id 2>/dev/null)\"\necho \"pidns $(readlink /proc/self/ns/pid 2>/dev/null)\"\n";

    pub fn presence(&self) -> Presence {
        Here::now().presence(self)
    }

    /// Known to run, and seen from here.
    pub fn runs(&self) -> bool {
        self.presence() == Presence::Runs
    }

    /// Known to have ended.
    pub fn is_gone(&self) -> bool {
        self.presence() == Presence::Gone
    }

    /// Whether it is of this host, as that is named.
    pub fn is_on_this_host(&self) -> bool {
        self.host.is_empty() || self.host == host()
    }

    /// It was started before this host's last boot, or on another host of this name.
    pub fn is_of_another_boot(&self) -> bool {
        !self.boot_id.is_empty() && self.is_on_this_host() && self.boot_id != Here::now().boot_id
    }

    /// For how long it has been running.
    pub fn age(&self) -> Option<Duration> {
        let since_boot = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?);
        let started = Duration::from_millis(self.ticks?.saturating_mul(1000 / TICKS_A_SECOND));
        (self.runs()).then(|| since_boot.saturating_sub(started))
    }
}

/// `process 4242 on login1`; of one whose number is not known, where it is.
impl std::fmt::Display for ProcessId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            0 => f.write_str(&self.host),
            pid => write!(f, "process {pid} on {}", self.host),
        }
    }
}

/// Unlike that of any other host, and of this host before it was booted; none where the system does not say it.
pub fn boot_id() -> Option<String> {
    read_boot_id(Path::new("/proc"))
}

fn read_boot_id(proc: &Path) -> Option<String> {
    let text = fs::read_to_string(proc.join("sys/kernel/random/boot_id")).ok()?;
    Some(text.trim().to_string()).filter(|id| !id.is_empty())
}

/// Whether there is a process of this id. It may be another one than was meant.
pub fn exists(pid: u32) -> bool {
    Here::now().ticks(pid).is_some()
}

/// This host's name, as connection and state files spell it.
pub fn host() -> String {
    match nix::unistd::gethostname() {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => "localhost".into(),
    }
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

/// SIGTERM to the first that runs (a supervisor passes it on), SIGKILL to what does not end. `child`: one of them that this process
/// has started.
pub fn end(processes: &[ProcessId], child: &mut Option<std::process::Child>) {
    let mut wait = |patience: Duration| {
        let deadline = Instant::now() + patience;
        loop {
            // Ours must be waited for, or it stays as a zombie.
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
    if wait(ENDS) {
        return;
    }
    for own in processes.iter().filter(|own| own.runs()) {
        let _ = kill(Pid::from_raw(own.pid as i32), Signal::SIGKILL);
    }
    wait(KILL_TAKES);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file system like proc(5), as the process 4242 sees it.
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

        fn here(&self) -> Here {
            Here::at(self.0.path(), 4242)
        }
    }

    #[test]
    fn a_process_is_known_by_boot_namespace_and_ticks() {
        let outside = Proc::new("boot-1", FIRST_NAMESPACE);
        outside.process(7, 500, FIRST_NAMESPACE);
        let process = outside.here().process(7);
        assert_eq!((process.pid, process.ticks, process.boot_id.as_str()), (7, Some(500), "boot-1"));
        assert_eq!(outside.here().presence(&process), Presence::Runs);

        // The id is used again.
        outside.process(7, 501, FIRST_NAMESPACE);
        assert_eq!(outside.here().presence(&process), Presence::Gone);

        // The host was booted.
        let later = Proc::new("boot-2", FIRST_NAMESPACE);
        later.process(7, 500, FIRST_NAMESPACE);
        assert_eq!(later.here().presence(&process), Presence::Gone);

        // In a container there is another process of this id.
        let container = Proc::new("boot-1", "pid:[7]");
        container.process(7, 500, "pid:[7]");
        assert_eq!(container.here().presence(&process), Presence::Unknown(Unseen::OtherNamespace));

        let elsewhere = ProcessId {
            host: "elsewhere.invalid".into(),
            ..process.clone()
        };
        let unseen = Unseen::OtherHost("elsewhere.invalid".into());
        assert_eq!(outside.here().presence(&elsewhere), Presence::Unknown(unseen));
    }

    #[test]
    fn what_ran_in_a_container_is_gone_with_it_as_seen_from_outside() {
        let outside = Proc::new("boot-1", FIRST_NAMESPACE);
        let container = Proc::new("boot-1", "pid:[7]");
        let process = container.here().process(4242);
        outside.process(9, 600, "pid:[7]");
        assert_eq!(outside.here().presence(&process), Presence::Unknown(Unseen::OtherNamespace));
        outside.process(9, 600, "pid:[8]");
        assert_eq!(outside.here().presence(&process), Presence::Gone);
        // From another container that cannot be told.
        let other = Proc::new("boot-1", "pid:[8]");
        assert_eq!(other.here().presence(&process), Presence::Unknown(Unseen::OtherNamespace));
    }

    #[test]
    fn a_proc_of_another_namespace_says_nothing() {
        let outside = Proc::new("boot-1", FIRST_NAMESPACE);
        let process = outside.here().process(4242);
        let blind = Here::at(outside.0.path(), 1);
        assert_eq!(blind.process(4242).ticks, None);
        assert_eq!(blind.presence(&process), Presence::Unknown(Unseen::OtherNamespace));
    }

    /// Version 0.1.0 noted the process id and a time of the wall clock.
    #[test]
    fn an_old_record_is_gone_with_its_process_id_and_else_unknown() {
        let outside = Proc::new("boot-1", FIRST_NAMESPACE);
        let old: ProcessId = serde_json::from_str(r#"{"pid": 4242, "started": 1700000000.25}"#).unwrap();
        assert_eq!(outside.here().presence(&old), Presence::Unknown(Unseen::OldRecord));
        let gone = ProcessId { pid: 17, ..old };
        assert_eq!(outside.here().presence(&gone), Presence::Gone);
        assert_eq!(outside.here().presence(&ProcessId::default()), Presence::Gone);
    }

    #[test]
    fn what_is_written_is_the_same_process_when_it_is_read() {
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
    fn a_child_is_gone_when_it_has_ended_even_before_it_is_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = ProcessId::of(child.id());
        assert!(process.runs());
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while process.runs() {
            assert!(std::time::Instant::now() < deadline, "a killed process still counts as alive");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        child.wait().unwrap();
        assert!(process.is_gone() && !exists(process.pid));
        // One that had ended already when it was looked at is no process of a later time.
        assert!(ProcessId::of(process.pid).is_gone());
    }

    #[test]
    fn another_hosts_process_is_read_from_what_its_shell_says() {
        let said = std::process::Command::new("sh").args(["-c", ProcessId::ABOUT]).output().unwrap();
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let read = ProcessId::from_script(&String::from_utf8(said.stdout).unwrap(), &stat).unwrap();
        assert_eq!(read, ProcessId::own());
        assert_eq!(ProcessId::from_script("node n\n", &stat), None, "it has no /proc");
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "17 (a) S (b) c) S 1 17 17 0 -1 4194560 9 8 7 6 5 4 3 2 20 0 1 0 4242 99 98";
        assert_eq!(start_ticks(stat), Some(4242));
        assert_eq!(start_ticks(&stat.replace(" S 1 ", " Z 1 ")), None);
        assert_eq!(start_ticks("17"), None);
    }
}
