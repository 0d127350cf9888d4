//! One real engine with a real Python and real sockets, against a controller that the test plays.
use super::{EngineError, EngineSettings, run};
use crate::connection::ConnectionFile;
use crate::connection::file::{BroadcastPorts, PclusterKeys};
use crate::model::definition::{CallSource, MapDefinition, MapOptions, Work};
use crate::model::task::TaskState;
use crate::model::{EngineId, MapId};
use crate::transport::{KeyPair, Kind, Security, Socket};
use crate::wire::content::engine::*;
use crate::wire::{Message, Session};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::task::JoinHandle;

/// No state is waited for longer.
const LONGEST: Duration = Duration::from_secs(60);

pub(super) struct Controller {
    pub socket: Socket,
    session: Session,
    engine: Bytes,
    pub register: Register,
    pub process: JoinHandle<Result<(), EngineError>>,
    /// Results that have come and were not looked at.
    results: VecDeque<TaskResult>,
    pub progress: Vec<Progress>,
    pub record: bool,
    others: VecDeque<(Channel, Message)>,
}

impl Controller {
    pub async fn with(change: impl FnOnce(&mut EngineSettings)) -> Controller {
        let keys = KeyPair::generate();
        let socket = Socket::new(Kind::Router, None, &Security::Server(keys.clone())).unwrap();
        let port = socket.bind("127.0.0.1", 0).await.unwrap();
        let mut settings = EngineSettings::new(connection_file(port, &keys.public));
        if let Ok(python) = std::env::var("PCLUSTER_TEST_PYTHON") {
            settings.python = Some(python);
        }
        (settings.interrupt_ms, settings.terminate_ms) = (1000, 1000);
        change(&mut settings);
        let process = tokio::spawn(run(settings));
        let mut session = Session::new(b"key", "controller", "me");
        let message = session.open(socket.receive().await.unwrap()).unwrap();
        let mut controller = Controller {
            engine: message.identities[0].clone(),
            register: message.content().unwrap(),
            socket,
            session,
            process,
            results: VecDeque::new(),
            progress: Vec::new(),
            record: true,
            others: VecDeque::new(),
        };
        controller.welcome(Vec::new());
        controller
    }

    pub async fn new() -> Controller {
        Controller::with(|_| {}).await
    }

    pub fn welcome(&mut self, drop: Vec<Held>) {
        let registered = Registered {
            status: "ok".into(),
            evalue: String::new(),
            id: Some(EngineId(3)),
            heartbeat_ms: 200,
            controller_patience_ms: 20_000,
            drop,
        };
        self.native(REGISTERED, &registered);
    }

    pub fn native<T: Serialize>(&mut self, msg_type: &str, content: &T) {
        let message = self.session.message("2026-11-20T00:00:00Z", msg_type, None, content);
        self.send(Channel::Native, &[], &message);
    }

    pub fn send(&mut self, channel: Channel, route: &[Bytes], message: &Message) {
        let mut prefix = vec![self.engine.clone(), Bytes::from_static(channel.frame())];
        prefix.extend_from_slice(route);
        self.socket.send(self.session.seal(&prefix, message)).unwrap();
    }

    pub fn define(&mut self, map: u32, work: Work, options: MapOptions) {
        let definition = MapDefinition { work, options };
        self.native(
            DEFINITION,
            &Definition {
                map: MapId(map),
                definition,
            },
        );
    }

    pub fn define_file(&mut self, map: u32, text: &str) {
        let from = CallSource::File {
            name: "shipped.py".into(),
            text: text.into(),
        };
        self.define(
            map,
            Work::Call {
                from,
                function: "f".into(),
            },
            MapOptions::default(),
        );
    }

    pub fn tasks(&mut self, map: u32, first: u32, inputs: &[&str]) {
        let tasks = inputs
            .iter()
            .zip(first..)
            .map(|(input, index)| TaskToRun {
                index,
                run: 1,
                input: RawValue::from_string(input.to_string()).unwrap(),
            })
            .collect();
        self.native(TASKS, &Tasks { map: MapId(map), tasks });
    }

    /// The next message that is not one of every day.
    pub async fn next(&mut self) -> (Channel, Message) {
        if let Some(other) = self.others.pop_front() {
            return other;
        }
        loop {
            if let Some(other) = self.take_one().await {
                return other;
            }
        }
    }

    async fn take_one(&mut self) -> Option<(Channel, Message)> {
        let frames = tokio::time::timeout(LONGEST, self.socket.receive())
            .await
            .expect("a message in time")
            .unwrap();
        let channel = Channel::from_frame(&frames[1]).unwrap();
        let message = self.session.open(frames).unwrap();
        if channel == Channel::Native {
            match message.msg_type() {
                HEARTBEAT => {
                    self.native(HEARTBEAT, &Heartbeat {});
                    return None;
                }
                RESULTS => {
                    let Results { sequence, results } = message.content().unwrap();
                    self.results.extend(results);
                    if self.record {
                        self.native(RECORDED, &Recorded { sequence });
                    }
                    return None;
                }
                PROGRESS => {
                    self.progress.push(message.content().unwrap());
                    return None;
                }
                _ => {}
            }
        }
        Some((channel, message))
    }

    pub async fn result(&mut self) -> TaskResult {
        loop {
            if let Some(result) = self.results.pop_front() {
                return result;
            }
            if let Some(other) = self.take_one().await {
                self.others.push_back(other);
            }
        }
    }

    pub async fn results(&mut self, count: usize) -> Vec<TaskResult> {
        let mut results = Vec::new();
        while results.len() < count {
            results.push(self.result().await);
        }
        results
    }

    pub async fn native_answer<T: for<'a> Deserialize<'a>>(&mut self, msg_type: &str) -> T {
        loop {
            let (channel, message) = self.next().await;
            if channel == Channel::Native && message.msg_type() == msg_type {
                return message.content().unwrap();
            }
        }
    }

    /// Until it has said of this task that it runs.
    pub async fn until_running(&mut self, index: u32) {
        while !self.progress.iter().any(|progress| progress.task.index == index) {
            if let Some(other) = self.take_one().await {
                self.others.push_back(other);
            }
        }
    }

    pub async fn end(mut self) {
        self.native(SHUTDOWN, &Shutdown { drain: false });
        let _: Unregister = self.native_answer(UNREGISTER).await;
        tokio::time::timeout(LONGEST, self.process).await.unwrap().unwrap().unwrap();
    }
}

fn connection_file(port: u16, server_key: &str) -> ConnectionFile {
    ConnectionFile {
        ssh: String::new(),
        interface: "tcp://127.0.0.1".into(),
        registration: 0,
        control: 0,
        mux: 0,
        task: 0,
        iopub: 0,
        notification: None,
        task_scheme: None,
        hb_ping: None,
        hb_pong: None,
        broadcast: BroadcastPorts::One(0),
        key: "key".into(),
        curve_serverkey: Some(server_key.into()),
        location: "127.0.0.1".into(),
        pack: "json".into(),
        unpack: "json".into(),
        signature_scheme: "hmac-sha256".into(),
        pcluster: Some(PclusterKeys {
            version: "0".into(),
            protocol: 1,
            cluster_id: String::new(),
            addresses: vec!["127.0.0.1".into()],
            engine_port: Some(port),
            pid: 0,
            host: String::new(),
            started: 0.0,
        }),
    }
}

fn held(map: u32, index: u32) -> Held {
    Held {
        map: MapId(map),
        index,
        run: 1,
    }
}

fn value(result: &TaskResult) -> &str {
    let outcome = &result.outcome;
    assert_eq!(outcome.status, TaskState::Ok, "{:?}", outcome.error);
    outcome.value.as_ref().map_or("null", |value| value.get())
}

fn ename(result: &TaskResult) -> &str {
    result.outcome.error.as_ref().map_or("", |error| &error.ename)
}

fn evalue(result: &TaskResult) -> &str {
    result.outcome.error.as_ref().map_or("", |error| &error.evalue)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_are_called() {
    let mut c = Controller::new().await;
    assert!(c.register.facts.python.starts_with("3."), "{:?}", c.register);
    assert!(c.register.facts.capabilities.contains(&"call".to_string()));
    c.define_file(
        1,
        "import sys\ndef f(x, y=1):\n    print('got', x)\n    if x < 0: raise ValueError('below zero')\n    return {'sum': x + y}\n",
    );
    c.tasks(1, 0, &["[1]", "[2, 3]", "{\"x\": 4, \"y\": 5}", "[-1]"]);
    let results = c.results(4).await;
    assert_eq!(results.iter().map(|r| r.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(value(&results[0]), r#"{"sum":2}"#);
    assert_eq!(value(&results[2]), r#"{"sum":9}"#);
    assert_eq!(results[1].outcome.stdout, "got 2\n");
    assert_eq!((ename(&results[3]), evalue(&results[3])), ("ValueError", "below zero"));
    // From 3.11 on Python underlines the place.
    let traceback = &results[3].outcome.error.as_ref().unwrap().traceback;
    let plain: Vec<&str> = traceback.lines().filter(|line| !line.trim().starts_with('^')).collect();
    insta::assert_snapshot!(plain.join("\n"), @r#"
    Traceback (most recent call last):
      File "shipped.py", line 4, in f
        if x < 0: raise ValueError('below zero')
    ValueError: below zero
    "#);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_json_cannot_hold_are_pickled() {
    let mut c = Controller::new().await;
    let source =
        "import threading\ndef f(k):\n    return [(1, 2), {1, 2}, float('nan'), threading.Lock(), '\\ud800', {(1, 2): 3}, 10**5000][k]\n";
    c.define_file(1, source);
    c.tasks(1, 0, &["[0]", "[1]", "[2]", "[3]", "[4]", "[5]", "[6]"]);
    let results = c.results(7).await;
    assert_eq!(value(&results[0]), "[1,2]");
    assert_eq!(results[1].outcome.repr.as_deref(), Some("{1, 2}"));
    assert!(results[1].outcome.pickled.is_some() && results[1].outcome.value.is_none());
    assert_eq!(results[2].outcome.repr.as_deref(), Some("nan"));
    assert_eq!(ename(&results[3]), "ValueNotSerializable");
    assert!(evalue(&results[3]).contains("_thread.lock"), "{}", evalue(&results[3]));
    assert_eq!(value(&results[4]), "\"\\ud800\"");
    assert_eq!(results[5].outcome.repr.as_deref(), Some("{(1, 2): 3}"));
    assert_eq!(results[6].outcome.status, TaskState::Ok);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_that_cannot_be_used_say_why() {
    let mut c = Controller::new().await;
    c.define_file(1, "def f(:\n");
    c.define_file(2, "def g(x): pass\n");
    c.define_file(3, "import no_such_module_here\ndef f(): pass\n");
    c.define_file(4, "f = 3\n");
    let from = CallSource::Module {
        module: "no_such.module".into(),
    };
    c.define(
        5,
        Work::Call {
            from,
            function: "f".into(),
        },
        MapOptions::default(),
    );
    let from = CallSource::Module { module: "os.path".into() };
    c.define(
        6,
        Work::Call {
            from,
            function: "basename".into(),
        },
        MapOptions::default(),
    );
    for map in 1..=6 {
        c.tasks(map, 0, &["[\"/a/b\"]"]);
    }
    c.tasks(7, 0, &["[]"]);
    let mut results = c.results(7).await;
    results.sort_by_key(|r| r.map);
    assert_eq!(ename(&results[0]), "SyntaxError");
    assert!(
        evalue(&results[0]).contains("shipped.py, line 1 does not compile"),
        "{}",
        evalue(&results[0])
    );
    assert!(evalue(&results[0]).contains("engine: python:"), "{}", evalue(&results[0]));
    assert_eq!(
        (ename(&results[1]), evalue(&results[1])),
        ("AttributeError", "shipped.py has no function 'f'; it has g")
    );
    assert_eq!(ename(&results[2]), "ModuleNotFoundError");
    assert!(evalue(&results[2]).contains("install the module there"), "{}", evalue(&results[2]));
    assert_eq!(
        (ename(&results[3]), evalue(&results[3])),
        ("TypeError", "shipped.py:f is a int, not a function")
    );
    assert_eq!(ename(&results[4]), "ModuleNotFoundError");
    assert_eq!(value(&results[5]), "\"b\"");
    assert_eq!(ename(&results[6]), "MissingDefinition");
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_takes_only_its_task_along() {
    let mut c = Controller::new().await;
    let source = "import os, signal, sys\ndef f(k):\n    if k == 1: os._exit(3)\n    if k == 2: print('bye', file=sys.stderr); os.kill(os.getpid(), signal.SIGSEGV)\n    if k == 3: sys.exit('enough')\n    return k\n";
    c.define_file(1, source);
    c.tasks(1, 0, &["[0]", "[1]", "[0]", "[2]", "[3]", "[0]"]);
    let results = c.results(6).await;
    let states: Vec<_> = results.iter().map(|r| (r.index, r.outcome.crashed, ename(r))).collect();
    assert_eq!(
        states,
        [
            (0, false, ""),
            (1, true, "WorkerDied"),
            (2, false, ""),
            (3, true, "WorkerDied"),
            (4, false, "SystemExit"),
            (5, false, "")
        ]
    );
    assert!(evalue(&results[1]).contains("exit code 3"), "{}", evalue(&results[1]));
    assert!(evalue(&results[3]).contains("signal 11 (SIGSEGV)") && evalue(&results[3]).ends_with("bye"));
    assert_eq!(results[3].outcome.stderr, "bye\n");
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeouts_end_a_task_and_cancelling_too() {
    let mut c = Controller::new().await;
    let from = CallSource::File {
        name: "sleepy.py".into(),
        text: "import time, signal\ndef f(kind):\n    if kind == 'deaf':\n        signal.signal(signal.SIGINT, signal.SIG_IGN)\n        signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    if kind: time.sleep(600)\n".into(),
    };
    let options = MapOptions {
        timeout_s: Some(0.3),
        ..MapOptions::default()
    };
    c.define(
        1,
        Work::Call {
            from: from.clone(),
            function: "f".into(),
        },
        options,
    );
    c.define(
        2,
        Work::Call {
            from,
            function: "f".into(),
        },
        MapOptions::default(),
    );
    c.tasks(1, 0, &["[\"sleep\"]", "[null]", "[\"deaf\"]"]);
    let results = c.results(3).await;
    assert_eq!(results[0].outcome.status, TaskState::Timeout);
    assert_eq!(
        (ename(&results[0]), evalue(&results[0])),
        ("TaskTimeout", "stopped after 0.3 s, its timeout")
    );
    assert!(results[0].outcome.error.as_ref().unwrap().traceback.contains("KeyboardInterrupt"));
    assert_eq!(value(&results[1]), "null");
    assert_eq!(results[2].outcome.status, TaskState::Timeout);
    assert!(!results[2].outcome.crashed);

    c.tasks(2, 0, &["[\"sleep\"]", "[null]", "[null]"]);
    c.until_running(0).await;
    c.native(
        CANCEL,
        &Cancel {
            tasks: vec![held(2, 0), held(2, 2), held(9, 9)],
        },
    );
    let mut results = c.results(3).await;
    results.sort_by_key(|r| r.index);
    let states: Vec<_> = results.iter().map(|r| r.outcome.status).collect();
    assert_eq!(states, [TaskState::Aborted, TaskState::Ok, TaskState::Aborted]);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unbegun_tasks_are_given_back_even_from_the_worker() {
    let mut c = Controller::new().await;
    c.define_file(1, "import time\ndef f(s): time.sleep(s)\n");
    c.tasks(1, 0, &["[0]", "[0]", "[0]", "[0]", "[0]", "[0]"]);
    c.results(6).await;
    let mut inputs = vec!["[0.0001]"; 200];
    inputs.insert(0, "[600]");
    c.tasks(1, 10, &inputs);
    c.until_running(10).await;
    c.native(GIVE_BACK, &GiveBack { at_most: 1000 });
    let returned: Returned = c.native_answer(RETURNED).await;
    assert_eq!(returned.tasks.len(), 200);
    c.native(GIVE_BACK, &GiveBack { at_most: 1000 });
    let returned: Returned = c.native_answer(RETURNED).await;
    assert_eq!(returned.tasks, []);
    // The worker skips what was taken back, and goes on.
    c.native(CANCEL, &Cancel { tasks: vec![held(1, 10)] });
    c.tasks(1, 300, &["[0]"]);
    let results = c.results(2).await;
    assert_eq!(
        results.iter().map(|r| (r.index, r.outcome.status)).collect::<Vec<_>>(),
        [(10, TaskState::Aborted), (300, TaskState::Ok)]
    );
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_comes_while_a_task_runs_and_belongs_to_it() {
    let mut c = Controller::new().await;
    let source = "import os, subprocess, sys, time\ndef f(k):\n    if k: return print('short', k)\n    print('one'); subprocess.run(['sh', '-c', 'echo two']); os.write(2, b'three\\n')\n    while not os.path.exists(sys.argv[0] or os.environ['GO']): time.sleep(0.01)\n    sys.stdout.write('four')\n";
    let go = tempfile::tempdir().unwrap();
    let path = go.path().join("go");
    let from = CallSource::File {
        name: "output.py".into(),
        text: source.into(),
    };
    let options = MapOptions {
        env: [("GO".to_string(), path.to_string_lossy().into_owned())].into(),
        ..MapOptions::default()
    };
    c.define(
        1,
        Work::Call {
            from,
            function: "f".into(),
        },
        options,
    );
    c.tasks(1, 0, &["[1]", "[0]", "[2]"]);
    let first = c.result().await;
    assert_eq!(first.outcome.stdout, "short 1\n");
    c.until_running(1).await;
    let (mut out, mut err) = (String::new(), String::new());
    while out != "one\ntwo\n" || err != "three\n" {
        c.take_one().await;
        out = c.progress.iter().map(|p| p.stdout.as_str()).collect();
        err = c.progress.iter().map(|p| p.stderr.as_str()).collect();
    }
    std::fs::write(&path, "").unwrap();
    let results = c.results(2).await;
    // What was told on the way is not told again.
    assert_eq!(
        (results[0].outcome.stdout.as_str(), results[0].outcome.stderr.as_str()),
        ("four", "")
    );
    assert_eq!(results[1].outcome.stdout, "short 2\n");
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_namespace_is_shared_by_execute_push_and_pull() {
    let mut c = Controller::new().await;
    let execute = |code: &str| Work::Execute {
        code: code.into(),
        filename: "<exec>".into(),
    };
    c.define(1, Work::Push, MapOptions::default());
    c.define(2, execute("import os\nb = a + 1\nb * 2"), MapOptions::default());
    c.define(3, Work::Pull, MapOptions::default());
    let dir = tempfile::tempdir().unwrap();
    let options = MapOptions {
        cwd: Some(dir.path().to_string_lossy().into_owned()),
        env: [("COLOUR".to_string(), "red".to_string())].into(),
        ..MapOptions::default()
    };
    c.define(4, execute("(os.getcwd(), os.environ['COLOUR'])"), options);
    c.define(5, execute("os.environ.get('COLOUR')"), MapOptions::default());
    c.define(6, execute("raise SystemExit"), MapOptions::default());
    c.define(7, execute("x = "), MapOptions::default());
    c.tasks(1, 0, &["{\"a\": 20}"]);
    c.tasks(2, 0, &["null"]);
    c.tasks(3, 0, &["[\"a\", \"b\"]", "[\"c\"]"]);
    for map in 4..=7 {
        c.tasks(map, 0, &["null"]);
    }
    let results = c.results(8).await;
    assert_eq!(value(&results[0]), "null");
    assert_eq!(value(&results[1]), "42");
    assert_eq!(value(&results[2]), r#"{"a":20,"b":21}"#);
    assert_eq!(
        (ename(&results[3]), evalue(&results[3])),
        ("NameError", "not defined on this engine: c")
    );
    let there = dir.path().canonicalize().unwrap();
    assert_eq!(value(&results[4]), format!("[\"{}\",\"red\"]", there.display()));
    assert_eq!(value(&results[5]), "null");
    assert_eq!(value(&results[6]), "null");
    assert_eq!(ename(&results[7]), "SyntaxError");
    c.end().await;
}

fn command(argv: &[&str]) -> Work {
    Work::Command {
        argv: argv.iter().map(|word| word.to_string()).collect(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_run_without_python() {
    let mut c = Controller::with(|settings| settings.python = Some("/no/such/python".into())).await;
    assert_eq!(c.register.facts.python, "");
    c.define(
        1,
        command(&["sh", "-c", "echo out $1; echo err >&2; exit $1", "sh"]),
        MapOptions::default(),
    );
    c.define(2, command(&["no-such-command-here"]), MapOptions::default());
    c.define(3, command(&["sh", "-c", "kill -9 $$"]), MapOptions::default());
    c.define_file(4, "def f(): pass\n");
    c.tasks(1, 0, &["[\"0\"]", "[\"7\"]"]);
    c.tasks(2, 0, &["[\"x\"]"]);
    c.tasks(3, 0, &["[]"]);
    c.tasks(4, 0, &["[]"]);
    let results = c.results(5).await;
    assert_eq!(
        (results[0].outcome.stdout.as_str(), results[0].outcome.stderr.as_str()),
        ("out 0\n", "err\n")
    );
    assert_eq!((results[0].outcome.exit_code, value(&results[0])), (Some(0), "null"));
    assert_eq!((results[1].outcome.exit_code, ename(&results[1])), (Some(7), "ExitCode"));
    assert_eq!(ename(&results[2]), "CommandNotFound");
    assert!(evalue(&results[2]).contains("no-such-command-here"));
    assert_eq!((ename(&results[3]), results[3].outcome.crashed), ("Signal", false));
    assert_eq!(ename(&results[4]), "PythonUnavailable");
    assert!(evalue(&results[4]).contains("/no/such/python") && evalue(&results[4]).contains("engine: python:"));
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_stopped_with_all_that_they_started() {
    let mut c = Controller::new().await;
    let options = MapOptions {
        timeout_s: Some(0.3),
        ..MapOptions::default()
    };
    c.define(1, command(&["sh", "-c", "sleep 600 & echo $!; wait"]), options);
    c.define(
        2,
        command(&["sh", "-c", "trap '' INT TERM; echo $$; while true; do sleep 1; done"]),
        MapOptions::default(),
    );
    c.tasks(1, 0, &["[]"]);
    let result = c.result().await;
    assert_eq!((result.outcome.status, ename(&result)), (TaskState::Timeout, "TaskTimeout"));
    // The child dies too (a dead process stays until its new parent has heard of it).
    let stat = format!("/proc/{}/stat", c.progress[0].stdout.trim());
    let until = std::time::Instant::now() + LONGEST;
    while std::fs::read_to_string(&stat).is_ok_and(|state| !state.contains(") Z ")) {
        assert!(std::time::Instant::now() < until, "a child of the command lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    c.tasks(2, 5, &["[]"]);
    c.until_running(5).await;
    c.native(CANCEL, &Cancel { tasks: vec![held(2, 5)] });
    let result = c.result().await;
    assert_eq!((result.outcome.status, ename(&result)), (TaskState::Aborted, "TaskCancelled"));
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_wait_for_the_word_that_they_are_recorded() {
    let mut c = Controller::new().await;
    c.record = false;
    c.define_file(1, "import time\ndef f(s): time.sleep(s)\n");
    c.tasks(1, 0, &["[0]"]);
    assert_eq!(c.result().await.index, 0);
    c.tasks(1, 1, &["[600]", "[0]"]);
    c.until_running(1).await;
    // A controller that has forgotten the engine.
    c.native(UNKNOWN_ENGINE, &());
    let again: Register = c.native_answer(REGISTER).await;
    assert_eq!(again.id, Some(EngineId(3)));
    assert_eq!(again.holds, [held(1, 1), held(1, 2)]);
    c.record = true;
    c.welcome(vec![held(1, 1)]);
    let mut results = c.results(2).await;
    results.sort_by_key(|r| r.index);
    assert_eq!(results.iter().map(|r| r.index).collect::<Vec<_>>(), [0, 2]);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_engine_finishes_what_runs_and_gives_back_the_rest() {
    let mut c = Controller::new().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("go");
    c.define_file(
        1,
        "import os, time\ndef f(path):\n    while not os.path.exists(path): time.sleep(0.01)\n    return 'done'\n",
    );
    let input = format!("[\"{}\"]", path.display());
    c.tasks(1, 0, &[&input, &input, &input]);
    c.until_running(0).await;
    c.native(SHUTDOWN, &Shutdown { drain: true });
    let returned: Returned = c.native_answer(RETURNED).await;
    assert_eq!(returned.tasks, [held(1, 1), held(1, 2)]);
    std::fs::write(&path, "").unwrap();
    assert_eq!(value(&c.result().await), "\"done\"");
    let _: Unregister = c.native_answer(UNREGISTER).await;
    tokio::time::timeout(LONGEST, c.process).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_without_a_controller_names_what_it_tried() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mut settings = EngineSettings::new(connection_file(port, &KeyPair::generate().public));
    settings.registration_timeout_ms = 100;
    let error = run(settings).await.unwrap_err().to_string();
    assert!(error.contains(&format!("127.0.0.1:{port}")), "{error}");
    assert!(error.contains("Connection refused"), "{error}");
}
