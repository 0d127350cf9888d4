//! Failing starts, stopping dead clusters, and listing clusters: with scripts in place of pcluster. `tests/it/` tests the real
//! program.
use super::*;
use crate::connection::ConnectionFile;
use crate::launchers::{Launched, Process};
use crate::profile::ProfileDir;
use crate::sys::lock as file_lock;
use crate::sys::process::{self, ProcessId};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

struct TestCluster {
    dir: tempfile::TempDir,
    profile: ProfileDir,
}

impl TestCluster {
    fn new() -> TestCluster {
        let dir = tempfile::tempdir().unwrap();
        let profile = ProfileDir::named("x", Some(dir.path())).unwrap();
        profile.create().unwrap();
        TestCluster { dir, profile }
    }

    /// Options for a start with a script in place of pcluster.
    fn options(&self, script: &str) -> StartOptions {
        let program = self.dir.path().join("program");
        crate::launchers::tests::write_program(&program, script);
        StartOptions {
            n: Some(2),
            program: Some(program),
            cwd: Some(self.dir.path().to_path_buf()),
            ..StartOptions::new(self.profile.clone(), "")
        }
    }

    fn state(&self) -> Option<ClusterState> {
        ClusterState::read(&self.profile, "").unwrap()
    }

    /// Replaces temporary paths and process ids by placeholders.
    fn plain(&self, text: impl std::fmt::Display) -> String {
        let text = text.to_string().replace(&*self.dir.path().to_string_lossy(), "DIR");
        text.replace(&process::host(), "HOST")
            .replace(&std::process::id().to_string(), "PID")
    }

    fn left_in(&self, dir: PathBuf) -> Vec<String> {
        let names = std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        names.collect()
    }
}

/// The error of a start and its notes.
async fn start_fails(options: StartOptions) -> (ClusterError, Vec<String>) {
    let mut notes = Vec::new();
    let mut progress = |p| {
        if let StartProgress::Note(note) = p {
            notes.push(note);
        }
    };
    let error = start(options, &mut progress).await.unwrap_err();
    (error, notes)
}

fn message(error: &ClusterError) -> String {
    let hints: Vec<String> = error.hints().iter().map(|h| format!("\nhint: {h}")).collect();
    format!("{error}{}", hints.concat())
}

/// A process that runs until it is ended, at the latest with the test.
struct Sleeper(Child);

impl Sleeper {
    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sleeper() -> (Sleeper, Process) {
    let mut command = std::process::Command::new("sleep");
    let child = command.arg("1000").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let process = Process {
        id: ProcessId::of(child.id()),
        ..Process::default()
    };
    (Sleeper(child), process)
}

/// A dead process.
fn dead() -> Process {
    let (mut child, process) = sleeper();
    child.end();
    process
}

fn launched(processes: Vec<Process>) -> Launched {
    Launched {
        processes,
        ..Launched::new("local", process::host())
    }
}

fn connection_of(process: &Process) -> ConnectionFile {
    let mut file = crate::connection::file::tests::example();
    file.registration = 1;
    if let Some(keys) = &mut file.pcluster {
        keys.process = process.id.clone();
    }
    file
}

fn quiet() -> impl FnMut(StopProgress) {
    |_| {}
}

#[tokio::test]
async fn a_controller_that_exits_at_once_is_reported_with_its_log() {
    let fixture = TestCluster::new();
    let options = fixture.options("echo 'cannot listen on 127.0.0.1: address in use' >&2; exit 5");
    let begin = Instant::now();
    let (error, notes) = start_fails(options).await;
    assert!(begin.elapsed() < Duration::from_secs(20), "not only when its time was over");
    assert!(notes.is_empty(), "{notes:?}");
    insta::assert_snapshot!(fixture.plain(message(&error)), @r"
    the controller exited during startup (exit code 5); the end of its log:
      | cannot listen on 127.0.0.1: address in use
    hint: full log: DIR/profile_x/log/controller.log
    ");
    assert_eq!(fixture.state(), None);
    assert!(fixture.left_in(fixture.profile.pid_dir()).is_empty());
    assert!(fixture.left_in(fixture.profile.security_dir()).is_empty());
    assert!(fixture.profile.controller_log("").exists());
}

#[tokio::test]
async fn a_controller_that_never_becomes_ready_is_stopped() {
    let fixture = TestCluster::new();
    let mut options = fixture.options("echo $$; exec sleep 1000");
    options.settings = vec![("launcher.controller_timeout_ms".into(), "300".into())];
    let (error, _) = start_fails(options).await;
    assert!(
        error
            .to_string()
            .starts_with("the controller wrote no connection file within 0.3 s"),
        "{error}"
    );
    let log = std::fs::read_to_string(fixture.profile.controller_log("")).unwrap();
    assert!(!process::exists(log.trim().parse().unwrap()));
    assert_eq!(fixture.state(), None);
}

#[tokio::test]
async fn an_interrupted_start_leaves_nothing_running() {
    let fixture = TestCluster::new();
    let options = fixture.options("echo $$; exec sleep 1000");
    let log = fixture.profile.controller_log("");
    let written = async {
        while !std::fs::read_to_string(&log).is_ok_and(|text| text.ends_with('\n')) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let mut ignore = |_| {};
    tokio::select! {
        result = start(options, &mut ignore) => panic!("it cannot end by itself: {result:?}"),
        () = written => {}
    }
    let pid = std::fs::read_to_string(&log).unwrap().trim().parse().unwrap();
    assert!(!process::exists(pid));
    assert_eq!(fixture.state(), None);
    drop(lock::Lock::take(&fixture.profile, "").unwrap());
}

#[tokio::test]
async fn invalid_options_fail_before_anything_starts() {
    let fixture = TestCluster::new();
    let mut options = fixture.options("exit 1");
    options.launcher = Some("cloud".into());
    assert!(matches!(start_fails(options).await.0, ClusterError::Launch(_)));
    let mut options = fixture.options("exit 1");
    options.python = Some("/nonexistent/python".into());
    let error = start_fails(options).await.0;
    insta::assert_snapshot!(message(&error), @r#"
    cannot run the Python interpreter /nonexistent/python: No such file or directory (os error 2)
    hint: set --python, or engine.python in the profile's pcluster.yaml, or activate a virtual environment
    "#);
    let mut options = fixture.options("exit 1");
    options.settings = vec![("controller.hwn".into(), "1".into())];
    assert!(matches!(start_fails(options).await.0, ClusterError::Config(_)));
    let mut options = fixture.options("exit 1");
    options.cluster_id = "a/b".into();
    assert!(matches!(start_fails(options).await.0, ClusterError::Profile(_)));
    assert!(!fixture.profile.controller_log("").exists());
}

#[tokio::test]
async fn a_second_start_of_a_running_cluster_fails() {
    let fixture = TestCluster::new();
    let (mut child, controller) = sleeper();
    let mut state = ClusterState::new("", "/".into());
    state.controller = Some(launched(vec![controller.clone()]));
    state.write(&fixture.profile).unwrap();
    let (error, _) = start_fails(fixture.options("exit 1")).await;
    insta::assert_snapshot!(fixture.plain(message(&error)).replace(&controller.id.pid.to_string(), "CONTROLLER"), @r#"
    the cluster of profile "x" is already running: its controller is process CONTROLLER on HOST
    hint: stop it first: pcluster stop --profile x; or list its engines: pcluster engines --profile x
    hint: start a second cluster in the same profile with --cluster-id NAME
    "#);
    assert_eq!(fixture.state(), Some(state), "what runs is still on record");
    // A running one is not removed either.
    assert!(matches!(
        clean(&fixture.profile, "", true, &mut quiet()).await,
        Err(ClusterError::Running { .. })
    ));
    // One that only its connection file knows is found too.
    std::fs::remove_file(fixture.profile.state_file("")).unwrap();
    connection_of(&controller).write(&fixture.profile.client_file("")).unwrap();
    assert!(matches!(
        start_fails(fixture.options("exit 1")).await.0,
        ClusterError::Running { .. }
    ));
    child.end();
}

#[tokio::test]
async fn of_two_concurrent_starts_one_fails() {
    let fixture = TestCluster::new();
    let lock = lock::Lock::take(&fixture.profile, "").unwrap();
    let (error, _) = start_fails(fixture.options("exit 1")).await;
    insta::assert_snapshot!(fixture.plain(message(&error)), @r#"
    another pcluster command is starting or stopping this cluster: process PID on HOST
    hint: wait for it to finish, then try again
    "#);
    drop(lock);
    assert!(!fixture.profile.controller_log("").exists());
}

#[tokio::test]
async fn a_start_after_a_crash_reports_it_and_on_failure_keeps_the_engines_on_record() {
    let fixture = TestCluster::new();
    let (_child, engine) = sleeper();
    let controller = dead();
    let mut state = ClusterState::new("", "/".into());
    state.controller = Some(launched(vec![controller.clone()]));
    state.engines = vec![launched(vec![engine.clone()])];
    state.write(&fixture.profile).unwrap();
    connection_of(&controller).write(&fixture.profile.client_file("")).unwrap();
    let (error, notes) = start_fails(fixture.options("exit 1")).await;
    assert!(matches!(error, ClusterError::ControllerEnded { .. }), "{error}");
    assert_eq!(notes.len(), 1);
    let pid = controller.id.pid;
    assert_eq!(
        notes[0],
        format!("the controller (process {pid}) of the cluster of profile \"x\" died without being stopped; starting a new one")
    );
    assert_eq!(fixture.state(), Some(state));
    // And then it can be stopped.
    let stopped = stop(&fixture.profile, "", &mut quiet()).await.unwrap();
    assert_eq!(
        (stopped.asked, stopped.was_dead, stopped.engines, stopped.ended.terminated),
        (false, true, 1, 1)
    );
    assert!(!process::exists(engine.id.pid));
}

#[tokio::test]
async fn stop_ends_the_engines_of_a_dead_controller_and_removes_all_files() {
    let fixture = TestCluster::new();
    let (_child, engine) = sleeper();
    let controller = dead();
    let mut state = ClusterState::new("", "/".into());
    state.controller = Some(launched(vec![controller.clone()]));
    state.engines = vec![launched(vec![engine, dead()])];
    state.write(&fixture.profile).unwrap();
    for path in [fixture.profile.client_file(""), fixture.profile.engine_file("")] {
        connection_of(&controller).write(&path).unwrap();
    }
    std::fs::write(fixture.profile.controller_file(""), "{}").unwrap();
    std::fs::write(fixture.profile.database_file(""), "").unwrap();
    assert_eq!(status(&fixture.profile, "").unwrap().state, Condition::Stale);
    let stopped = clean(&fixture.profile, "", false, &mut quiet()).await.unwrap();
    assert_eq!((stopped.was_dead, stopped.engines), (true, 1));
    assert!(fixture.left_in(fixture.profile.pid_dir()).is_empty());
    assert!(fixture.left_in(fixture.profile.security_dir()).is_empty());
    assert_eq!(
        status(&fixture.profile, "").unwrap().state,
        Condition::Stopped,
        "its tasks are still on record"
    );
    let error = stop(&fixture.profile, "", &mut quiet()).await.unwrap_err();
    insta::assert_snapshot!(message(&error), @r#"
    no cluster is running: the cluster of profile "x" was stopped or never started
    hint: start it: pcluster start --profile x -n 4; `pcluster list` shows running clusters
    "#);
}

#[tokio::test]
async fn a_controller_that_does_not_answer_is_terminated() {
    let fixture = TestCluster::new();
    let (_child, controller) = sleeper();
    connection_of(&controller).write(&fixture.profile.client_file("")).unwrap();
    let mut notes = Vec::new();
    let stopped = stop(&fixture.profile, "", &mut |p| notes.push(p)).await.unwrap();
    assert_eq!((stopped.asked, stopped.ended.terminated), (false, 1));
    assert!(
        matches!(&notes[0], StopProgress::Note(n) if n.contains("did not stop on request")),
        "{notes:?}"
    );
    assert!(!fixture.profile.client_file("").exists());
}

#[tokio::test]
async fn a_missing_profile_has_no_cluster_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let profile = ProfileDir::named("none", Some(dir.path())).unwrap();
    assert!(matches!(
        stop(&profile, "", &mut quiet()).await,
        Err(ClusterError::NotRunning { .. })
    ));
    assert!(matches!(
        add_engines(one_more(&profile), &mut |_| {}).await,
        Err(ClusterError::NotRunning { .. })
    ));
    assert!(!profile.exists());
}

#[tokio::test]
async fn a_cluster_of_another_host_is_not_cleaned_unless_forced() {
    let fixture = TestCluster::new();
    let mut file = connection_of(&dead());
    if let Some(keys) = &mut file.pcluster {
        keys.process.host = "elsewhere.invalid".into();
    }
    file.write(&fixture.profile.client_file("")).unwrap();
    assert_eq!(status(&fixture.profile, "").unwrap().state, Condition::Remote);
    assert!(matches!(
        start_fails(fixture.options("exit 1")).await.0,
        ClusterError::Elsewhere { .. }
    ));
    assert!(matches!(
        stop(&fixture.profile, "", &mut quiet()).await,
        Err(ClusterError::Elsewhere { .. })
    ));
    assert!(fixture.profile.client_file("").exists());
    clean(&fixture.profile, "", true, &mut quiet()).await.unwrap();
    assert!(!fixture.profile.client_file("").exists());
}

/// Holders of a lock whose process cannot be seen from here, or is gone.
fn unseen_holders() -> Vec<ProcessId> {
    let other = |change: fn(&mut ProcessId)| {
        let mut process = ProcessId::own();
        change(&mut process);
        process
    };
    vec![
        other(|p| p.host = "elsewhere.invalid".into()),
        other(|p| p.boot_id = "of-another-boot".into()),
        other(|p| p.pid_namespace = "pid:[1]".into()),
        other(|p| p.ticks = Some(1)),
    ]
}

#[tokio::test]
async fn a_held_lock_means_running_whatever_process_it_names() {
    let fixture = TestCluster::new();
    let (command, controller) = (fixture.profile.lock_file(""), fixture.profile.controller_lock(""));
    for process in unseen_holders() {
        let named = process.to_string();
        let text = serde_json::to_string(&file_lock::Holder { process, passes: false }).unwrap();
        // A file left by a killed process: this one is free, whichever process wrote it.
        for path in [&command, &controller] {
            std::fs::write(path, &text).unwrap();
            assert_eq!(file_lock::ask(path), file_lock::LockState::Free, "{named}");
        }
        assert!(status(&fixture.profile, "").is_none(), "{named}");
        drop(lock::Lock::take(&fixture.profile, "").unwrap());
        // Held, for example over a shared file system or by a container: its content is only used in the message.
        for text in [text.as_str(), "", "{\"pid\": \"none\"}"] {
            std::fs::write(&command, text).unwrap();
            let held = std::fs::File::open(&command).unwrap();
            held.lock().unwrap();
            let Err(ClusterError::Busy { holder, passes, .. }) = lock::Lock::take(&fixture.profile, "") else {
                panic!("the lock is held: {named}");
            };
            assert_eq!(holder, text.contains("host").then(|| named.clone()));
            assert!(!passes);
            assert!(matches!(start_fails(fixture.options("exit 1")).await.0, ClusterError::Busy { .. }));
            drop(held);
            assert_eq!(std::fs::read_to_string(&command).unwrap(), text, "the file is unchanged");
        }
    }
}

/// The record of a process in another container: its process id is meaningless on this host.
fn in_a_container() -> Process {
    Process {
        id: ProcessId {
            pid_namespace: "pid:[1]".into(),
            ..ProcessId::own()
        },
        ..Process::default()
    }
}

#[tokio::test]
async fn a_cluster_whose_lock_is_held_is_running() {
    let fixture = TestCluster::new();
    let mut state = ClusterState::new("", "/".into());
    // Its processes look dead, but its lock is held.
    state.controller = Some(launched(vec![in_a_container()]));
    state.write(&fixture.profile).unwrap();
    connection_of(&in_a_container()).write(&fixture.profile.client_file("")).unwrap();
    let before = std::fs::read(fixture.profile.client_file("")).unwrap();
    let lock = file_lock::Lock::take(fixture.profile.controller_lock("")).unwrap();
    assert_eq!(status(&fixture.profile, "").unwrap().state, Condition::Running);
    for force in [false, true] {
        let refused = clean(&fixture.profile, "", force, &mut quiet()).await;
        assert!(matches!(refused, Err(ClusterError::Running { .. })), "{refused:?}");
    }
    assert!(matches!(
        start_fails(fixture.options("exit 1")).await.0,
        ClusterError::Running { .. }
    ));
    assert_eq!(std::fs::read(fixture.profile.client_file("")).unwrap(), before);
    assert_eq!(fixture.state(), Some(state));
    assert!(fixture.profile.controller_lock("").exists());
    drop(lock);
}

/// Version 0.1.0 recorded the start of a process in wall-clock time: its process id may now belong to another process.
#[tokio::test]
async fn an_old_record_of_a_reused_process_id_is_not_dead() {
    let fixture = TestCluster::new();
    let (_child, other) = sleeper();
    let mut state = ClusterState::new("", "/".into());
    let old = serde_json::json!({"pid": other.id.pid, "started": 1_700_000_000.5, "log": "/l"});
    state.controller = Some(launched(vec![serde_json::from_value(old).unwrap()]));
    state.write(&fixture.profile).unwrap();
    let seen = status(&fixture.profile, "").unwrap();
    assert_eq!(seen.state, Condition::Remote);
    let (error, _) = start_fails(fixture.options("exit 1")).await;
    insta::assert_snapshot!(fixture.plain(message(&error)).replace(&other.id.pid.to_string(), "CONTROLLER"), @r#"
    cannot determine whether the cluster of profile "x" is running: its controller (process CONTROLLER on HOST) does not answer and is not visible from this host: it was recorded by an older pcluster, and its process id may have been reused
    hint: stop it on its own host: pcluster stop --profile x
    hint: if it is dead: pcluster clean --profile x --force
    "#);
    assert!(matches!(
        clean(&fixture.profile, "", false, &mut quiet()).await,
        Err(ClusterError::Elsewhere { .. })
    ));
    assert!(matches!(
        stop(&fixture.profile, "", &mut quiet()).await,
        Err(ClusterError::Elsewhere { .. })
    ));
    let mut notes = Vec::new();
    clean(&fixture.profile, "", true, &mut |p| notes.push(p)).await.unwrap();
    let named = |note: &StopProgress| matches!(note, StopProgress::Note(text) if text.starts_with("may still be running"));
    assert!(notes.iter().any(named), "what may be left is named: {notes:?}");
    assert!(other.id.runs(), "nothing is signalled that may be another process");
    assert_eq!(fixture.state(), None);
}

/// `stop` keeps invisible engines on record.
#[tokio::test]
async fn invisible_engines_are_listed_and_stay_on_record() {
    let fixture = TestCluster::new();
    let mut state = ClusterState::new("", "/".into());
    let mut far = in_a_container();
    far.id.host = "elsewhere.invalid".into();
    state.controller = Some(launched(vec![dead()]));
    state.engines = vec![launched(vec![dead()]), launched(vec![far.clone()])];
    state.write(&fixture.profile).unwrap();
    let error = stop(&fixture.profile, "", &mut quiet()).await.unwrap_err();
    insta::assert_snapshot!(fixture.plain(message(&error)), @r#"
    the cluster of profile "x" was not stopped completely:
      | process PID: it is on elsewhere.invalid
    hint: try again: pcluster stop --profile x
    hint: if it is dead: pcluster clean --profile x --force
    "#);
    let left = fixture.state().unwrap();
    assert_eq!((left.controller, left.engines), (None, vec![launched(vec![far])]));
    clean(&fixture.profile, "", true, &mut quiet()).await.unwrap();
    assert_eq!(fixture.state(), None);
}

#[tokio::test]
async fn a_file_of_ipyparallels_controller_is_kept_while_it_listens() {
    let fixture = TestCluster::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut file = crate::connection::file::tests::example();
    file.pcluster = None;
    file.registration = listener.local_addr().unwrap().port();
    file.write(&fixture.profile.client_file("")).unwrap();
    assert_eq!(status(&fixture.profile, "").unwrap().state, Condition::Foreign);
    let (error, _) = start_fails(fixture.options("exit 1")).await;
    insta::assert_snapshot!(fixture.plain(message(&error)), @r#"
    the cluster of profile "x" is in use by a controller other than pcluster's, which wrote DIR/profile_x/security/ipcontroller-client.json
    hint: stop it with ipcluster stop, or start another cluster with --cluster-id NAME
    hint: if it is dead, remove DIR/profile_x/security/ipcontroller-client.json
    "#);
    assert!(matches!(
        stop(&fixture.profile, "", &mut quiet()).await,
        Err(ClusterError::Foreign { .. })
    ));
    drop(listener);
    let (error, notes) = start_fails(fixture.options("exit 1")).await;
    assert!(matches!(error, ClusterError::ControllerEnded { .. }), "{error}");
    assert!(notes[0].contains("the controller that wrote it is dead"), "{notes:?}");
}

#[test]
fn clusters_are_listed_by_any_of_their_files() {
    let fixture = TestCluster::new();
    let (mut child, controller) = sleeper();
    connection_of(&controller).write(&fixture.profile.client_file("by-hand")).unwrap();
    let mut state = ClusterState::new("dead", "/".into());
    state.controller = Some(launched(vec![dead()]));
    state.engines = vec![launched(vec![controller, dead()])];
    state.write(&fixture.profile).unwrap();
    std::fs::write(fixture.profile.database_file(""), "").unwrap();
    std::fs::write(fixture.profile.state_file("damaged"), "{").unwrap();
    let all = list(Some(fixture.dir.path())).unwrap();
    let seen: Vec<_> = all.iter().map(|c| (c.cluster_id.as_str(), c.state)).collect();
    let expected = [
        ("", Condition::Stopped),
        ("by-hand", Condition::Running),
        ("damaged", Condition::Stale),
        ("dead", Condition::Stale),
    ];
    assert_eq!(seen, expected);
    assert_eq!((all[3].engines_started, all[3].engines_alive), (2, Some(1)));
    assert!(all[2].problem.as_ref().unwrap().contains("pcluster-damaged.json"));
    assert_eq!(status(&fixture.profile, "never"), None);
    child.end();
    assert_eq!(status(&fixture.profile, "by-hand").unwrap().state, Condition::Stale);
    assert!(list(Some(Path::new("/nonexistent"))).unwrap().is_empty());
}

fn one_more(profile: &ProfileDir) -> AddOptions {
    AddOptions {
        profile: profile.clone(),
        cluster_id: String::new(),
        n: 1,
        settings: Vec::new(),
        launcher: None,
        wait: Wait::All,
        timeout: None,
        engine_kind: None,
        python: None,
        cwd: None,
        log_level: None,
        program: None,
    }
}
