//! Starts that fail, stops of what is dead, and what is said of clusters: with programs that only pretend to be pcluster.
//! The real ones are in `tests/it/`.
use super::*;
use crate::connection::ConnectionFile;
use crate::launchers::{Launched, Process};
use crate::profile::ProfileDir;
use crate::sys::lock as file_lock;
use crate::sys::process::{self, ProcessId};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

struct World {
    dir: tempfile::TempDir,
    profile: ProfileDir,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let profile = ProfileDir::named("x", Some(dir.path())).unwrap();
        profile.create().unwrap();
        World { dir, profile }
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

    /// What normally stands in temporary paths and process ids, made the same in every run.
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

fn said(error: &ClusterError) -> String {
    let hints: Vec<String> = error.hints().iter().map(|h| format!("\nhint: {h}")).collect();
    format!("{error}{}", hints.concat())
}

/// A process that lives until it is ended, at the latest with the test.
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

/// One that is gone.
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
async fn a_controller_that_ends_at_once_is_noticed_and_quoted() {
    let world = World::new();
    let options = world.options("echo 'cannot listen on 127.0.0.1: address in use' >&2; exit 5");
    let begin = Instant::now();
    let (error, notes) = start_fails(options).await;
    assert!(begin.elapsed() < Duration::from_secs(20), "not only when its time was over");
    assert!(notes.is_empty(), "{notes:?}");
    insta::assert_snapshot!(world.plain(said(&error)), @r#"
    the controller ended at once (exit code 5); the end of its log:
      | cannot listen on 127.0.0.1: address in use
    hint: all that it said: DIR/profile_x/log/controller.log
    "#);
    assert_eq!(world.state(), None);
    assert!(world.left_in(world.profile.pid_dir()).is_empty());
    assert!(world.left_in(world.profile.security_dir()).is_empty());
    assert!(world.profile.controller_log("").exists());
}

#[tokio::test]
async fn a_controller_that_never_gets_ready_is_ended_again() {
    let world = World::new();
    let mut options = world.options("echo $$; exec sleep 1000");
    options.settings = vec![("launcher.controller_timeout_ms".into(), "300".into())];
    let (error, _) = start_fails(options).await;
    assert!(
        error
            .to_string()
            .starts_with("the controller wrote no connection file within 0.3 s"),
        "{error}"
    );
    let log = std::fs::read_to_string(world.profile.controller_log("")).unwrap();
    assert!(!process::exists(log.trim().parse().unwrap()));
    assert_eq!(world.state(), None);
}

#[tokio::test]
async fn who_stops_waiting_leaves_nothing_running() {
    let world = World::new();
    let options = world.options("echo $$; exec sleep 1000");
    let log = world.profile.controller_log("");
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
    assert_eq!(world.state(), None);
    drop(lock::Lock::take(&world.profile, "").unwrap());
}

#[tokio::test]
async fn what_will_not_work_is_refused_before_anything_starts() {
    let world = World::new();
    let mut options = world.options("exit 1");
    options.launcher = Some("cloud".into());
    assert!(matches!(start_fails(options).await.0, ClusterError::Launch(_)));
    let mut options = world.options("exit 1");
    options.python = Some("/nonexistent/python".into());
    let error = start_fails(options).await.0;
    insta::assert_snapshot!(said(&error), @r#"
    cannot run the Python interpreter /nonexistent/python: No such file or directory (os error 2)
    hint: set --python, or engine.python in the profile's pcluster.yaml, or activate a virtual environment
    "#);
    let mut options = world.options("exit 1");
    options.settings = vec![("controller.hwn".into(), "1".into())];
    assert!(matches!(start_fails(options).await.0, ClusterError::Config(_)));
    let mut options = world.options("exit 1");
    options.cluster_id = "a/b".into();
    assert!(matches!(start_fails(options).await.0, ClusterError::Profile(_)));
    assert!(!world.profile.controller_log("").exists());
}

#[tokio::test]
async fn a_second_start_of_a_running_cluster_is_refused() {
    let world = World::new();
    let (mut child, controller) = sleeper();
    let mut state = ClusterState::new("", "/".into());
    state.controller = Some(launched(vec![controller.clone()]));
    state.write(&world.profile).unwrap();
    let (error, _) = start_fails(world.options("exit 1")).await;
    insta::assert_snapshot!(world.plain(said(&error)).replace(&controller.id.pid.to_string(), "CONTROLLER"), @r#"
    the cluster of profile "x" is running already: its controller is process CONTROLLER on HOST
    hint: stop it first: pcluster stop --profile x; or see its engines: pcluster engines --profile x
    hint: a second cluster in the same profile needs a name of its own: --cluster-id NAME
    "#);
    assert_eq!(world.state(), Some(state), "what runs is still on record");
    // Nor is one cleaned away that runs.
    assert!(matches!(
        clean(&world.profile, "", true, &mut quiet()).await,
        Err(ClusterError::Running { .. })
    ));
    // One that only its connection file knows is found too.
    std::fs::remove_file(world.profile.state_file("")).unwrap();
    connection_of(&controller).write(&world.profile.client_file("")).unwrap();
    assert!(matches!(start_fails(world.options("exit 1")).await.0, ClusterError::Running { .. }));
    child.end();
}

#[tokio::test]
async fn two_starts_at_once_do_not_both_start() {
    let world = World::new();
    let lock = lock::Lock::take(&world.profile, "").unwrap();
    let (error, _) = start_fails(world.options("exit 1")).await;
    insta::assert_snapshot!(world.plain(said(&error)), @r#"
    another pcluster command is starting or stopping this cluster: process PID on HOST
    hint: wait for it to finish, then try again
    "#);
    drop(lock);
    assert!(!world.profile.controller_log("").exists());
}

#[tokio::test]
async fn a_start_after_a_crash_says_so_and_if_it_fails_keeps_the_engines_on_record() {
    let world = World::new();
    let (_child, engine) = sleeper();
    let controller = dead();
    let mut state = ClusterState::new("", "/".into());
    state.controller = Some(launched(vec![controller.clone()]));
    state.engines = vec![launched(vec![engine.clone()])];
    state.write(&world.profile).unwrap();
    connection_of(&controller).write(&world.profile.client_file("")).unwrap();
    let (error, notes) = start_fails(world.options("exit 1")).await;
    assert!(matches!(error, ClusterError::ControllerEnded { .. }), "{error}");
    assert_eq!(notes.len(), 1);
    let pid = controller.id.pid;
    assert_eq!(
        notes[0],
        format!("the controller (process {pid}) of the cluster of profile \"x\" is gone without having been stopped; starting a new one")
    );
    assert_eq!(world.state(), Some(state));
    // And then it can be stopped.
    let stopped = stop(&world.profile, "", &mut quiet()).await.unwrap();
    assert_eq!(
        (stopped.asked, stopped.was_dead, stopped.engines, stopped.ended.terminated),
        (false, true, 1, 1)
    );
    assert!(!process::exists(engine.id.pid));
}

#[tokio::test]
async fn stop_ends_the_engines_of_a_dead_controller_and_clears_all_files() {
    let world = World::new();
    let (_child, engine) = sleeper();
    let controller = dead();
    let mut state = ClusterState::new("", "/".into());
    state.controller = Some(launched(vec![controller.clone()]));
    state.engines = vec![launched(vec![engine, dead()])];
    state.write(&world.profile).unwrap();
    for path in [world.profile.client_file(""), world.profile.engine_file("")] {
        connection_of(&controller).write(&path).unwrap();
    }
    std::fs::write(world.profile.controller_file(""), "{}").unwrap();
    std::fs::write(world.profile.database_file(""), "").unwrap();
    assert_eq!(status(&world.profile, "").unwrap().state, Condition::Stale);
    let stopped = clean(&world.profile, "", false, &mut quiet()).await.unwrap();
    assert_eq!((stopped.was_dead, stopped.engines), (true, 1));
    assert!(world.left_in(world.profile.pid_dir()).is_empty());
    assert!(world.left_in(world.profile.security_dir()).is_empty());
    assert_eq!(
        status(&world.profile, "").unwrap().state,
        Condition::Stopped,
        "its tasks are still on record"
    );
    let error = stop(&world.profile, "", &mut quiet()).await.unwrap_err();
    insta::assert_snapshot!(said(&error), @r#"
    no cluster is running: the cluster of profile "x" has been stopped, or was never started
    hint: start it: pcluster start --profile x -n 4; `pcluster list` shows what runs
    "#);
}

#[tokio::test]
async fn a_controller_that_does_not_answer_is_ended_all_the_same() {
    let world = World::new();
    let (_child, controller) = sleeper();
    connection_of(&controller).write(&world.profile.client_file("")).unwrap();
    let mut notes = Vec::new();
    let stopped = stop(&world.profile, "", &mut |p| notes.push(p)).await.unwrap();
    assert_eq!((stopped.asked, stopped.ended.terminated), (false, 1));
    assert!(
        matches!(&notes[0], StopProgress::Note(n) if n.contains("does not do as it is asked")),
        "{notes:?}"
    );
    assert!(!world.profile.client_file("").exists());
}

#[tokio::test]
async fn a_profile_that_is_not_there_has_no_cluster_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let profile = ProfileDir::named("none", Some(dir.path())).unwrap();
    assert!(matches!(
        stop(&profile, "", &mut quiet()).await,
        Err(ClusterError::NotRunning { .. })
    ));
    assert!(matches!(
        add_engines(AddOptions::new(profile.clone(), "", 1), &mut |_| {}).await,
        Err(ClusterError::NotRunning { .. })
    ));
    assert!(!profile.exists());
}

#[tokio::test]
async fn a_cluster_of_another_host_is_left_alone_unless_forced() {
    let world = World::new();
    let mut file = connection_of(&dead());
    if let Some(keys) = &mut file.pcluster {
        keys.process.host = "elsewhere.invalid".into();
    }
    file.write(&world.profile.client_file("")).unwrap();
    assert_eq!(status(&world.profile, "").unwrap().state, Condition::Elsewhere);
    assert!(matches!(
        start_fails(world.options("exit 1")).await.0,
        ClusterError::Elsewhere { .. }
    ));
    assert!(matches!(
        stop(&world.profile, "", &mut quiet()).await,
        Err(ClusterError::Elsewhere { .. })
    ));
    assert!(world.profile.client_file("").exists());
    clean(&world.profile, "", true, &mut quiet()).await.unwrap();
    assert!(!world.profile.client_file("").exists());
}

/// As processes in another container are recorded: a number that here means something else, or nothing.
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
async fn a_cluster_whose_lock_is_held_runs_wherever_its_processes_are() {
    let world = World::new();
    let mut state = ClusterState::new("", "/".into());
    // In a container of this host that is gone, as far as its processes can be seen; the lock says otherwise.
    state.controller = Some(launched(vec![in_a_container()]));
    state.write(&world.profile).unwrap();
    connection_of(&in_a_container()).write(&world.profile.client_file("")).unwrap();
    let before = std::fs::read(world.profile.client_file("")).unwrap();
    let lock = file_lock::Lock::take(world.profile.controller_lock("")).unwrap();
    assert_eq!(status(&world.profile, "").unwrap().state, Condition::Running);
    for force in [false, true] {
        let refused = clean(&world.profile, "", force, &mut quiet()).await;
        assert!(matches!(refused, Err(ClusterError::Running { .. })), "{refused:?}");
    }
    assert!(matches!(start_fails(world.options("exit 1")).await.0, ClusterError::Running { .. }));
    assert_eq!(std::fs::read(world.profile.client_file("")).unwrap(), before);
    assert_eq!(world.state(), Some(state));
    assert!(world.profile.controller_lock("").exists());
    drop(lock);
}

/// Version 0.1.0 noted when a process started by the wall clock: what has its process id now may be another one.
#[tokio::test]
async fn an_old_record_of_a_process_id_that_is_in_use_is_not_taken_for_gone() {
    let world = World::new();
    let (_child, other) = sleeper();
    let mut state = ClusterState::new("", "/".into());
    let old = serde_json::json!({"pid": other.id.pid, "started": 1_700_000_000.5, "log": "/l"});
    state.controller = Some(launched(vec![serde_json::from_value(old).unwrap()]));
    state.write(&world.profile).unwrap();
    let seen = status(&world.profile, "").unwrap();
    assert_eq!(seen.state, Condition::Elsewhere);
    let (error, _) = start_fails(world.options("exit 1")).await;
    insta::assert_snapshot!(world.plain(said(&error)).replace(&other.id.pid.to_string(), "CONTROLLER"), @r#"
    it cannot be told whether the cluster of profile "x" still runs: its controller (process CONTROLLER on HOST) does not answer, and cannot be seen from here: an older pcluster has recorded it, and its process id may be another process's by now
    hint: where it was started: pcluster stop --profile x
    hint: if you know that it is gone: pcluster clean --profile x --force
    "#);
    assert!(matches!(
        clean(&world.profile, "", false, &mut quiet()).await,
        Err(ClusterError::Elsewhere { .. })
    ));
    assert!(matches!(
        stop(&world.profile, "", &mut quiet()).await,
        Err(ClusterError::Elsewhere { .. })
    ));
    let mut notes = Vec::new();
    clean(&world.profile, "", true, &mut |p| notes.push(p)).await.unwrap();
    let named = |note: &StopProgress| matches!(note, StopProgress::Note(text) if text.starts_with("may still run"));
    assert!(notes.iter().any(named), "what may be left is named: {notes:?}");
    assert!(other.id.runs(), "nothing is signalled that may be another process");
    assert_eq!(world.state(), None);
}

/// What cannot be seen from here is not forgotten by `stop`.
#[tokio::test]
async fn engines_that_cannot_be_seen_are_named_and_stay_on_record() {
    let world = World::new();
    let mut state = ClusterState::new("", "/".into());
    let mut far = in_a_container();
    far.id.host = "elsewhere.invalid".into();
    state.controller = Some(launched(vec![dead()]));
    state.engines = vec![launched(vec![dead()]), launched(vec![far.clone()])];
    state.write(&world.profile).unwrap();
    let error = stop(&world.profile, "", &mut quiet()).await.unwrap_err();
    insta::assert_snapshot!(world.plain(said(&error)), @r#"
    the cluster of profile "x" is not stopped altogether:
      | process PID: it is on elsewhere.invalid
    hint: try again: pcluster stop --profile x
    hint: if you know that it is gone: pcluster clean --profile x --force
    "#);
    let left = world.state().unwrap();
    assert_eq!((left.controller, left.engines), (None, vec![launched(vec![far])]));
    clean(&world.profile, "", true, &mut quiet()).await.unwrap();
    assert_eq!(world.state(), None);
}

#[tokio::test]
async fn a_file_of_ipyparallels_controller_is_respected_while_that_listens() {
    let world = World::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut file = crate::connection::file::tests::example();
    file.pcluster = None;
    file.registration = listener.local_addr().unwrap().port();
    file.write(&world.profile.client_file("")).unwrap();
    assert_eq!(status(&world.profile, "").unwrap().state, Condition::Foreign);
    let (error, _) = start_fails(world.options("exit 1")).await;
    insta::assert_snapshot!(world.plain(said(&error)), @r#"
    in the cluster of profile "x" runs a controller that is not pcluster's; it wrote DIR/profile_x/security/ipcontroller-client.json
    hint: stop it as it was started (ipcluster stop), or start under a name of its own: --cluster-id NAME
    hint: if you know that it is gone, remove DIR/profile_x/security/ipcontroller-client.json
    "#);
    assert!(matches!(
        stop(&world.profile, "", &mut quiet()).await,
        Err(ClusterError::Foreign { .. })
    ));
    drop(listener);
    let (error, notes) = start_fails(world.options("exit 1")).await;
    assert!(matches!(error, ClusterError::ControllerEnded { .. }), "{error}");
    assert!(notes[0].contains("the controller that wrote it is gone"), "{notes:?}");
}

#[test]
fn clusters_are_listed_by_every_trace_they_leave() {
    let world = World::new();
    let (mut child, controller) = sleeper();
    connection_of(&controller).write(&world.profile.client_file("by-hand")).unwrap();
    let mut state = ClusterState::new("dead", "/".into());
    state.controller = Some(launched(vec![dead()]));
    state.engines = vec![launched(vec![controller, dead()])];
    state.write(&world.profile).unwrap();
    std::fs::write(world.profile.database_file(""), "").unwrap();
    std::fs::write(world.profile.state_file("damaged"), "{").unwrap();
    let all = list(Some(world.dir.path())).unwrap();
    let seen: Vec<_> = all.iter().map(|c| (c.cluster_id.as_str(), c.state)).collect();
    let expected = [
        ("", Condition::Stopped),
        ("by-hand", Condition::Running),
        ("damaged", Condition::Stale),
        ("dead", Condition::Stale),
    ];
    assert_eq!(seen, expected);
    assert_eq!((all[3].engines_started, all[3].engines_alive), (2, Some(1)));
    assert!(all[2].trouble.as_ref().unwrap().contains("pcluster-damaged.json"));
    assert_eq!(status(&world.profile, "never"), None);
    child.end();
    assert_eq!(status(&world.profile, "by-hand").unwrap().state, Condition::Stale);
    assert!(list(Some(Path::new("/nonexistent"))).unwrap().is_empty());
}
