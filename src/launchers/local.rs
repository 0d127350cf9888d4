//! Processes on this host, each in its own session, so that neither Ctrl-C in the shell that
//! started them nor the shell's exit affects them.
use super::engine::{controller_command, engine_command};
use super::{ControllerLaunch, EnginesLaunch, FoundEngines, LaunchError, Launched, Launcher, MemberState, Process, StopReport};
use crate::sys::child_setup::{ChildSetup, set_up_child};
use crate::sys::process::{self, Presence, ProcessId, Unseen};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Interval between checks for the end of processes.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Time limit for SIGKILL to take effect.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// The environment variable with the tag of the launch and the number of the engine.
const LAUNCH: &str = "PCLUSTER_LAUNCH";

#[derive(Default)]
pub(crate) struct Local {
    /// Children of this process: it must reap them, or they remain as zombies.
    children: Mutex<HashMap<u32, Child>>,
}

/// A command to run as a daemon.
struct DaemonCommand {
    program: PathBuf,
    arguments: Vec<OsString>,
    cwd: PathBuf,
    log: PathBuf,
    /// For engines: how many of this cluster are on this host.
    engines: Option<u32>,
    /// Marks it, so that it is found without a record.
    mark: Option<String>,
}

impl Launcher for Local {
    fn name(&self) -> &str {
        "local"
    }

    fn start_controller(&self, launch: &ControllerLaunch) -> Result<Launched, LaunchError> {
        let (program, arguments) = controller_command(launch);
        let log = launch.profile.controller_log(&launch.cluster_id);
        let daemon = DaemonCommand {
            program,
            arguments,
            cwd: launch.cwd.clone(),
            log,
            engines: None,
            mark: None,
        };
        Ok(launched(vec![self.spawn(&daemon)?]))
    }

    fn start_engines(&self, launch: &EnginesLaunch) -> Result<Launched, LaunchError> {
        let (program, arguments) = engine_command(launch)?;
        let mut started = launched(Vec::new());
        for number in launch.first..launch.first + launch.n {
            let log = launch.profile.engine_log(&launch.cluster_id, number);
            let daemon = DaemonCommand {
                program: program.clone(),
                arguments: arguments.clone(),
                cwd: launch.cwd.clone(),
                log,
                engines: Some(launch.first + launch.n),
                mark: launch.tag.as_ref().map(|tag| format!("{tag} {number}")),
            };
            match self.spawn(&daemon) {
                Ok(process) => started.processes.push(process),
                Err(error) => {
                    // Stop those that have already started; report the first error.
                    let _ = self.stop(&started, Duration::from_secs(1));
                    return Err(error);
                }
            }
        }
        Ok(started)
    }

    fn find_engines(&self, launch: &EnginesLaunch) -> FoundEngines {
        let Some(tag) = &launch.tag else { return FoundEngines::None };
        let engine = |(pid, mark): (u32, String)| {
            let number = mark.strip_prefix(tag.as_str())?.strip_prefix(' ')?.parse().ok()?;
            let process = Process {
                id: ProcessId::of(pid),
                log: launch.profile.engine_log(&launch.cluster_id, number),
                ..Process::default()
            };
            Some(process).filter(|process| process.id.ticks.is_some())
        };
        let processes: Vec<Process> = process::marked_leaders(LAUNCH).into_iter().filter_map(engine).collect();
        match processes.is_empty() {
            true => FoundEngines::None,
            false => FoundEngines::Launched(Box::new(launched(processes))),
        }
    }

    fn states(&self, launched: &Launched) -> Vec<MemberState> {
        let running: Vec<usize> = self.running(launched).into_iter().map(|(at, _)| at).collect();
        let state = |(at, process): (usize, &Process)| match (running.contains(&at), presence(launched, process)) {
            (true, _) => MemberState::running(),
            (false, Presence::Unknown(why)) => MemberState::unknown(why.to_string()),
            (false, _) => MemberState::ended(self.exit_status(process).unwrap_or_default()),
        };
        launched.processes.iter().enumerate().map(state).collect()
    }

    fn stop(&self, launched: &Launched, grace: Duration) -> Result<StopReport, LaunchError> {
        let ours = self.running(launched);
        let mut ended = StopReport {
            unseen: unseen(launched),
            ..StopReport::default()
        };
        for (_, process) in &ours {
            ended.terminated += usize::from(send(process.id.pid, Signal::SIGTERM as i32)?);
        }
        self.wait_for_end(launched, grace);
        let deadline = Instant::now() + KILL_TIMEOUT;
        let mut killed = HashSet::new();
        loop {
            // The replacement of a killed supervisor becomes visible only when the supervisor is
            // gone.
            let mut left: Vec<u32> = self.running(launched).iter().map(|(_, process)| process.id.pid).collect();
            // Kill the rest of a session only if the session certainly belongs to this launch.
            let sessions: Vec<u32> = ours.iter().map(|(at, _)| launched.processes[*at].id.pid).collect();
            left.extend(process::processes_in_sessions(&sessions));
            left.sort_unstable();
            left.dedup();
            let Some(first) = left.first() else { return Ok(ended) };
            if Instant::now() >= deadline {
                return Err(LaunchError::Unkillable { pid: *first });
            }
            for pid in left {
                ended.killed += usize::from(send(pid, Signal::SIGKILL as i32)? && killed.insert(pid));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    fn describe(&self, launched: &Launched) -> String {
        let pids: Vec<String> = launched.processes.iter().map(|p| p.id.pid.to_string()).collect();
        let word = if pids.len() == 1 { "process" } else { "processes" };
        format!("{word} {} on {}", pids.join(" "), launched.host)
    }
}

impl Local {
    /// Starts one process with any command.
    pub(crate) fn start_process(
        &self,
        program: PathBuf,
        arguments: Vec<OsString>,
        cwd: &Path,
        log: PathBuf,
    ) -> Result<Process, LaunchError> {
        let cwd = cwd.to_path_buf();
        self.spawn(&DaemonCommand {
            program,
            arguments,
            cwd,
            log,
            engines: None,
            mark: None,
        })
    }

    /// The exit status of a process, if it is a child of this process.
    fn exit_status(&self, process: &Process) -> Option<String> {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        let status = children.get_mut(&process.id.pid)?.try_wait().ok()??;
        Some(describe_exit(status))
    }

    fn spawn(&self, daemon: &DaemonCommand) -> Result<Process, LaunchError> {
        if !daemon.cwd.is_dir() {
            return Err(LaunchError::NoDirectory { path: daemon.cwd.clone() });
        }
        let failed = |source| LaunchError::Start {
            program: daemon.program.clone(),
            source,
        };
        let (log, log_from) = open_log(&daemon.log).map_err(|source| LaunchError::Log {
            path: daemon.log.clone(),
            source,
        })?;
        let mut command = Command::new(&daemon.program);
        command.args(&daemon.arguments).current_dir(&daemon.cwd).stdin(Stdio::null());
        command.stdout(log.try_clone().map_err(failed)?).stderr(log);
        if let Some(engines) = daemon.engines {
            command.env("PCLUSTER_ENGINES", engines.to_string());
        }
        // Not the mark of the caller's supervisor, if it has one.
        command.env_remove(process::SUPERVISOR);
        match &daemon.mark {
            Some(mark) => command.env(LAUNCH, mark),
            None => command.env_remove(LAUNCH),
        };
        // A caller that reads a pipe to its end would wait for a child that inherits the pipe.
        set_up_child(&mut command, vec![ChildSetup::NewSession, ChildSetup::CloseInherited]);
        let child = command.spawn().map_err(failed)?;
        // If the child has already exited, this id matches no process.
        let id = ProcessId::of(child.id());
        self.children.lock().unwrap_or_else(PoisonError::into_inner).insert(id.pid, child);
        Ok(Process {
            id,
            log: daemon.log.clone(),
            log_from,
            ..Process::default()
        })
    }

    fn is_running(&self, process: &Process) -> bool {
        if let Some(child) = self
            .children
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_mut(&process.id.pid)
            && matches!(child.try_wait(), Ok(Some(_)))
        {
            return false;
        }
        process.id.runs()
    }

    /// The running processes of a launch, each with its index: the process that was started, or, if
    /// that was a supervisor that was killed, its replacement or the process that it supervised.
    fn running(&self, launched: &Launched) -> Vec<(usize, Process)> {
        let (mut running, mut gone) = (Vec::new(), Vec::new());
        for (at, process) in launched.processes.iter().enumerate() {
            match self.is_running(process) {
                true => running.push((at, process.clone())),
                false if presence(launched, process) == Presence::Gone => gone.push(at),
                false => {}
            }
        }
        if gone.is_empty() {
            return running;
        }
        let supervisors: Vec<ProcessId> = gone.iter().map(|at| launched.processes[*at].id.clone()).collect();
        for left in process::orphans_of(&supervisors) {
            let at = gone[left.of];
            let process = Process {
                id: left.process,
                ..launched.processes[at].clone()
            };
            running.push((at, process));
        }
        running
    }

    fn wait_for_end(&self, launched: &Launched, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while !self.running(launched).is_empty() && Instant::now() < deadline {
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

fn launched(processes: Vec<Process>) -> Launched {
    Launched {
        processes,
        ..Launched::new("local", process::host())
    }
}

/// Files of version 0.1.0 contain only the launch's host.
fn presence(launched: &Launched, process: &Process) -> Presence {
    match process.id.host.is_empty() && launched.host != process::host() {
        true => Presence::Unknown(Unseen::OtherHost(launched.host.clone())),
        false => process.id.presence(),
    }
}

/// The processes whose state cannot be determined from this host.
fn unseen(launched: &Launched) -> Vec<String> {
    let why = |process: &Process| match presence(launched, process) {
        Presence::Unknown(why) => Some(format!("process {}: {why}", process.id.pid)),
        Presence::Runs | Presence::Gone => None,
    };
    launched.processes.iter().filter_map(why).collect()
}

/// Opens the log for appending; returns it with its current length.
fn open_log(path: &Path) -> io::Result<(File, u64)> {
    let log = File::options().append(true).create(true).mode(0o600).open(path)?;
    let length = log.metadata()?.len();
    Ok((log, length))
}

/// Returns false if the process has already ended.
fn send(pid: u32, signal: i32) -> Result<bool, LaunchError> {
    let failed = |why: &dyn std::fmt::Display| LaunchError::Signal {
        signal,
        pid,
        why: why.to_string(),
    };
    let number = Signal::try_from(signal).map_err(|e| failed(&e))?;
    match nix::sys::signal::kill(Pid::from_raw(pid as i32), number) {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(e) => Err(failed(&e)),
    }
}

fn describe_exit(status: ExitStatus) -> String {
    match (status.code(), status.signal().map(Signal::try_from)) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(Ok(signal))) => format!("signal {signal}"),
        (None, _) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::write_program;
    use super::*;
    use crate::profile::ProfileDir;
    use crate::profile::config::EngineKind;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// A profile in its own directory, with a program that stands in for pcluster.
    struct LocalFixture {
        dir: tempfile::TempDir,
        profile: ProfileDir,
    }

    impl LocalFixture {
        fn new() -> LocalFixture {
            let dir = tempfile::tempdir().unwrap();
            let profile = ProfileDir::named("x", Some(dir.path())).unwrap();
            profile.create().unwrap();
            LocalFixture { dir, profile }
        }
        fn program(&self, script: &str) -> PathBuf {
            let path = self.dir.path().join("program");
            write_program(&path, script);
            path
        }
        fn engines(&self, program: PathBuf, n: u32) -> EnginesLaunch {
            EnginesLaunch {
                program,
                profile: self.profile.clone(),
                cluster_id: "7".into(),
                settings: vec![("engine.cwd".into(), "/".into()), ("controller.hwm".into(), "2".into())],
                kind: EngineKind::Pcluster,
                n,
                first: 3,
                python: Some("/usr/bin/python3".into()),
                ipengine: None,
                cwd: self.dir.path().to_path_buf(),
                log_level: None,
                tag: None,
            }
        }
        fn log(&self, number: u32) -> String {
            fs::read_to_string(self.profile.engine_log("7", number)).unwrap()
        }
    }

    fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(Instant::now() < deadline, "never: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn an_engine_gets_its_arguments_directory_log_and_session() {
        let fixture = LocalFixture::new();
        let program = fixture.program("echo \"$@\"; pwd; cat /proc/$$/stat; echo fault >&2; exec sleep 100");
        let local = Local::default();
        let launched = local.start_engines(&fixture.engines(program, 2)).unwrap();
        assert_eq!(local.states(&launched), vec![MemberState::running(); 2]);
        until("both have written", || (3..5).all(|n| fixture.log(n).contains("fault")));
        for (process, number) in launched.processes.iter().zip(3..) {
            let log = fixture.log(number);
            let lines: Vec<&str> = log.lines().collect();
            let (file, dir) = (fixture.profile.engine_file("7"), fixture.profile.path());
            let expected = format!(
                "engine --supervise --file {} --profile-dir {} --python /usr/bin/python3 --set engine.cwd=/ --set controller.hwm=2",
                file.display(),
                dir.display()
            );
            assert_eq!(lines[0], expected);
            assert_eq!(lines[1], fixture.dir.path().canonicalize().unwrap().to_string_lossy());
            let after_name = lines[2].rsplit_once(") ").unwrap().1;
            let session: u32 = after_name.split(' ').nth(3).unwrap().parse().unwrap();
            assert_eq!(session, process.id.pid, "it leads its own session");
            assert_eq!(fs::metadata(&process.log).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(
            local.stop(&launched, Duration::from_secs(10)).unwrap(),
            StopReport {
                terminated: 2,
                ..StopReport::default()
            }
        );
        assert_eq!(local.states(&launched), vec![MemberState::ended("signal SIGTERM"); 2]);
        // Repeating it is harmless.
        assert_eq!(local.stop(&launched, Duration::ZERO).unwrap(), StopReport::default());
    }

    #[test]
    fn engines_are_found_by_the_tag_of_their_launch() {
        let fixture = LocalFixture::new();
        let program = fixture.program("exec sleep 100");
        let tagged = |tag: &str| EnginesLaunch {
            tag: Some(tag.into()),
            ..fixture.engines(program.clone(), 2)
        };
        let tag = format!("t{}e1", std::process::id());
        let launched = Local::default().start_engines(&tagged(&tag)).unwrap();
        let pids = |launched: &Launched| {
            let mut pids: Vec<u32> = launched.processes.iter().map(|process| process.id.pid).collect();
            pids.sort_unstable();
            pids
        };
        until("they are found", || match Local::default().find_engines(&tagged(&tag)) {
            FoundEngines::Launched(found) => pids(&found) == pids(&launched) && found.processes.iter().all(|p| p.log.exists()),
            _ => false,
        });
        assert_eq!(Local::default().find_engines(&tagged(&format!("{tag}1"))), FoundEngines::None);
        Local::default().stop(&launched, Duration::from_secs(10)).unwrap();
        assert_eq!(Local::default().find_engines(&tagged(&tag)), FoundEngines::None);
    }

    #[test]
    fn a_process_that_ignores_sigterm_is_killed_with_its_children() {
        let fixture = LocalFixture::new();
        let program = fixture.program("trap '' TERM; sleep 1000 & echo $!; while :; do sleep 1000; done");
        let starter = Local::default();
        let launched = starter.start_engines(&fixture.engines(program, 1)).unwrap();
        until("its child runs", || fixture.log(3).ends_with('\n'));
        let child: u32 = fixture.log(3).trim().parse().unwrap();
        // A process other than the starter may stop it.
        let ended = Local::default().stop(&launched, Duration::from_millis(50)).unwrap();
        assert_eq!(ended.terminated, 1);
        assert!(ended.killed >= 2, "{ended:?}");
        until("its child is gone", || !process::exists(child));
        assert_eq!(starter.states(&launched), [MemberState::ended("signal SIGKILL")]);
    }

    #[test]
    fn a_reused_process_id_is_not_signalled() {
        let mut stranger = Command::new("sleep").arg("100").spawn().unwrap();
        let process = Process {
            id: ProcessId {
                ticks: Some(1),
                ..ProcessId::of(stranger.id())
            },
            ..Process::default()
        };
        let local = Local::default();
        let launched = launched(vec![process]);
        assert_eq!(local.states(&launched), [MemberState::ended("")]);
        assert_eq!(local.stop(&launched, Duration::ZERO).unwrap(), StopReport::default());
        assert!(stranger.try_wait().unwrap().is_none(), "it still runs");
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }

    #[test]
    fn processes_on_another_host_are_unknown_and_not_stopped() {
        let mut elsewhere = launched(vec![Process {
            id: ProcessId {
                pid: std::process::id(),
                ..ProcessId::default()
            },
            ..Process::default()
        }]);
        elsewhere.host = "elsewhere.invalid".into();
        assert_eq!(
            Local::default().states(&elsewhere),
            [MemberState::unknown("it is on elsewhere.invalid")]
        );
        let ended = Local::default().stop(&elsewhere, Duration::ZERO).unwrap();
        let unseen = format!("process {}: it is on elsewhere.invalid", std::process::id());
        assert_eq!((ended.unseen, ended.terminated, ended.killed), (vec![unseen], 0, 0));
    }

    #[test]
    fn a_failed_start_reports_the_cause() {
        let fixture = LocalFixture::new();
        let local = Local::default();
        let error = local
            .start_engines(&fixture.engines("/nonexistent/pcluster".into(), 1))
            .unwrap_err();
        assert!(
            error.to_string().starts_with("cannot start /nonexistent/pcluster: No such file"),
            "{error}"
        );
        let mut launch = fixture.engines(fixture.program("true"), 1);
        launch.cwd = fixture.dir.path().join("gone");
        assert!(matches!(local.start_engines(&launch), Err(LaunchError::NoDirectory { .. })));
        launch.kind = EngineKind::Ipengine;
        launch.cwd = fixture.dir.path().to_path_buf();
        launch.ipengine = Some("  ".into());
        assert!(matches!(local.start_engines(&launch), Err(LaunchError::BadCommand { .. })));
    }

    #[test]
    fn an_ipengine_gets_the_engine_file() {
        let fixture = LocalFixture::new();
        let mut launch = fixture.engines("/opt/pcluster".into(), 1);
        launch.kind = EngineKind::Ipengine;
        launch.ipengine = Some("/opt/x/ipengine --debug".into());
        let (program, arguments) = engine_command(&launch).unwrap();
        assert_eq!(program, Path::new("/opt/pcluster"));
        let dir = fixture.profile.path().display();
        let expected = [
            "engine".into(),
            "--supervise".into(),
            "--".into(),
            "/opt/x/ipengine".into(),
            "--debug".into(),
            format!("--profile-dir={dir}"),
            format!("--file={dir}/security/ipcontroller-7-engine.json"),
            "--cluster-id=7".into(),
        ];
        assert_eq!(arguments, expected.map(OsString::from));
    }

    #[test]
    fn a_controller_gets_its_profile_and_settings() {
        let fixture = LocalFixture::new();
        let launch = ControllerLaunch {
            program: fixture.program("echo \"$@\""),
            profile: fixture.profile.clone(),
            cluster_id: String::new(),
            settings: vec![("controller.hwm".into(), "2".into())],
            cwd: fixture.dir.path().to_path_buf(),
            log_level: Some("debug".into()),
        };
        let local = Local::default();
        fs::write(fixture.profile.controller_log(""), "from before\n").unwrap();
        let launched = local.start_controller(&launch).unwrap();
        until("it has ended", || local.states(&launched) == [MemberState::ended("exit code 0")]);
        let log = fs::read_to_string(fixture.profile.controller_log("")).unwrap();
        let since = &log[launched.processes[0].log_from as usize..];
        let dir = fixture.profile.path().display();
        assert_eq!(
            since,
            format!("controller --supervise --profile-dir {dir} --cluster-id  --set controller.hwm=2 --log-level debug\n")
        );
    }

    #[test]
    fn an_unknown_launcher_is_an_error_that_lists_the_known_ones() {
        let error = super::super::by_name("cloud", &LocalFixture::new().profile, &Default::default())
            .err()
            .unwrap();
        insta::assert_snapshot!(error, @r#"unknown launcher "cloud" (available: local, mpi, ssh, slurm, sge, pbs, lsf, htcondor)"#);
    }
}
