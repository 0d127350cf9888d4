//! The process, with a real Python.
use super::interpreter::{Interpreter, InterpreterCommand};
use super::process::{Worker, WorkerEvent, WorkerExit};
use super::protocol::{Record, frame, tasks_frame};
use crate::engine::forker::Forker;
use bytes::Bytes;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

const LONGEST: Duration = Duration::from_secs(60);

struct Started {
    worker: Worker,
    events: UnboundedReceiver<(u64, WorkerEvent)>,
    records: std::collections::VecDeque<Record>,
    code: tempfile::TempDir,
    _interpreter: Interpreter,
    _forker: Forker,
}

impl Started {
    async fn new() -> Started {
        Started::with(false).await
    }

    async fn with(in_job: bool) -> Started {
        let (sender, events) = unbounded_channel();
        let command = InterpreterCommand {
            python: std::env::var("PCLUSTER_TEST_PYTHON").unwrap_or_else(|_| "python3".into()),
            cwd: None,
            env: Vec::new(),
            in_job,
        };
        let forker = Forker::new().unwrap();
        let interpreter = Interpreter::start(&command, &forker).await.unwrap();
        let owner = forker.leftovers().owner();
        let worker = Worker::start(&interpreter, owner, false, sender).unwrap();
        let mut started = Started {
            worker,
            events,
            records: Default::default(),
            code: tempfile::tempdir().unwrap(),
            _interpreter: interpreter,
            _forker: forker,
        };
        assert_eq!(started.record().await.kind, b'H');
        started
    }

    async fn event(&mut self) -> WorkerEvent {
        let (number, event) = tokio::time::timeout(LONGEST, self.events.recv()).await.unwrap().unwrap();
        assert_eq!(number, self.worker.number);
        event
    }

    async fn record(&mut self) -> Record {
        loop {
            if let Some(record) = self.records.pop_front() {
                return record;
            }
            match self.event().await {
                WorkerEvent::Records(records) => self.records.extend(records),
                WorkerEvent::Looked => {}
                WorkerEvent::Exited(exit) => panic!("the worker {}: {}", exit.how, self.worker.stderr.last_words()),
            }
        }
    }

    async fn exit(&mut self) -> String {
        loop {
            match self.event().await {
                WorkerEvent::Records(records) => self.records.extend(records),
                WorkerEvent::Looked => {}
                WorkerEvent::Exited(exit) => return exit.how,
            }
        }
    }

    fn define(&mut self, text: &str) {
        std::fs::write(self.code.path().join("t.py"), text).unwrap();
        let source = serde_json::json!({ "bundle": { "hash": "", "name": "t.py", "entry": "t.py", "origin": "" } });
        let work = serde_json::json!({ "kind": "call", "from": source, "function": "f" });
        let definition = serde_json::json!([1, { "work": work }, { "directory": self.code.path() }]);
        self.worker.send(vec![frame(b'D', 0, definition.to_string().as_bytes())]);
    }

    fn tasks(&mut self, first: u32, inputs: &[&str], tokens: usize) {
        let inputs: Vec<Bytes> = inputs.iter().map(|input| Bytes::from(input.to_string())).collect();
        self.worker.send(vec![tasks_frame(1, first, inputs.iter())]);
        self.worker.allow(tokens);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_not_begun_can_be_called_back() {
    let mut started = Started::new().await;
    started.define("import os, time\ndef f(path):\n print('x')\n while not os.path.exists(path): time.sleep(0.005)\n return path\n");
    let dir = tempfile::tempdir().unwrap();
    let (go, input) = (dir.path().join("go"), format!("[\"{}\"]", dir.path().join("go").display()));
    started.tasks(0, &[&input, &input, &input], 3);
    while started.worker.stdout.read_to(None).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(started.worker.recall(), 2);
    assert_eq!(started.worker.recall(), 0, "what is to be skipped is not counted again");
    started.tasks(3, &["[\"/\"]"], 1);
    std::fs::write(go, "").unwrap();
    assert_eq!(started.record().await.ticket, 0);
    assert_eq!(started.record().await.ticket, 3);
    started.worker.close();
    assert_eq!(started.exit().await, "ended with exit code 0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_values_and_many_short_ones_come_in_order() {
    let mut started = Started::new().await;
    started.define("def f(n): return 'x' * n");
    let inputs: Vec<String> = (0..1000)
        .map(|i| format!("[{}]", if i % 100 == 0 { 3_000_000 } else { i }))
        .collect();
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    started.tasks(0, &inputs, 1000);
    for i in 0..1000 {
        let record = started.record().await;
        assert_eq!(record.ticket, i);
        let length = if i % 100 == 0 { 3_000_000 } else { i as usize };
        assert_eq!(record.body.len(), length + 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_is_told_behind_the_last_record_though_a_child_lives_on() {
    let mut started = Started::new().await;
    started.define("import os, time, subprocess\ndef f(k):\n if k == 2:\n  if os.fork() == 0: time.sleep(600)\n  os._exit(9)\n return k\n");
    started.tasks(0, &["[1]", "[2]", "[3]"], 3);
    assert_eq!(started.exit().await, "ended with exit code 9");
    assert_eq!(started.records.len(), 1);
    assert_eq!(started.worker.left_over(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_talks_nonsense_is_ended() {
    let mut started = Started::new().await;
    started.define(
        "import fcntl, os, time\n\
         def f():\n\
        \x20   pipes = [fd for fd in range(3, 64) if os.path.exists('/proc/self/fd/%d' % fd) and fcntl.fcntl(fd, fcntl.F_GETFL) & 3 == os.O_WRONLY]\n\
        \x20   os.write(pipes[0], b'?' * 100)\n\
        \x20   time.sleep(600)\n",
    );
    started.tasks(0, &["[]"], 1);
    let how = started.exit().await;
    assert!(how.contains("wrote what is not a record"), "{how}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interpreter_that_is_missing_or_no_python_is_named() {
    let (sender, mut events) = unbounded_channel();
    let forker = Forker::new().unwrap();
    let mut command = InterpreterCommand {
        python: "/no/python".into(),
        cwd: None,
        env: Vec::new(),
        in_job: false,
    };
    let error = Interpreter::start(&command, &forker).await.err().unwrap();
    assert!(error.contains("/no/python"), "{error}");
    command.cwd = Some("/no/dir".into());
    let error = Interpreter::start(&command, &forker).await.err().unwrap();
    assert!(error.contains("/no/dir"), "{error}");
    (command.python, command.cwd) = ("false".into(), None);
    let interpreter = Interpreter::start(&command, &forker).await.unwrap();
    let _worker = Worker::start(&interpreter, forker.leftovers().owner(), false, sender).unwrap();
    let (_, event) = tokio::time::timeout(LONGEST, events.recv()).await.unwrap().unwrap();
    assert!(matches!(event, WorkerEvent::Exited(WorkerExit { how, killed: false, .. }) if how == "ended with exit code 1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_comes_behind_the_ends_of_what_was_written_before() {
    let mut started = Started::new().await;
    started.define("import time\ndef f(word):\n print(word)\n while word == 'last': time.sleep(0.01)\n");
    started.tasks(0, &["[\"one\"]", "[\"two\"]", "[\"last\"]"], 3);
    // Nothing that it said is taken in yet, and all of it is written.
    while started.worker.stdout.size() < 13 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    started.worker.look();
    let upto = started.worker.looked_at;
    let mut ends = Vec::new();
    loop {
        match started.event().await {
            WorkerEvent::Records(records) => ends.extend(records.into_iter().filter_map(|r| r.positions)),
            WorkerEvent::Looked => break,
            WorkerEvent::Exited(exit) => panic!("the worker {}", exit.how),
        }
    }
    assert_eq!(ends, [(4, 0), (8, 0)]);
    let read = ends.iter().map(|(out, _)| started.worker.stdout.read_to(Some(*out)));
    assert_eq!(read.collect::<Vec<_>>(), ["one\n", "two\n"]);
    assert_eq!(started.worker.read_output(upto)[0], "last\n");
    // Each look is answered.
    started.worker.looked_at = None;
    started.worker.look();
    while !matches!(started.event().await, WorkerEvent::Looked) {}
    assert!(started.worker.read_output(upto)[0].is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_systems_warning_ends_no_worker_but_reaches_user_code_that_waits_for_it() {
    let mut started = Started::with(true).await;
    started.define(
        "import signal, time\n\
         def f(number):\n\
        \x20   got = []\n\
        \x20   if number: signal.signal(number, lambda n, _: got.append(n))\n\
        \x20   print('x', flush=True)\n\
        \x20   while number and not got: time.sleep(0.005)\n\
        \x20   return got\n",
    );
    for signal in [nix::libc::SIGUSR1, nix::libc::SIGUSR2] {
        started.worker.signal(signal);
    }
    started.tasks(0, &["[0]", &format!("[{}]", nix::libc::SIGUSR2)], 2);
    let record = started.record().await;
    assert_eq!((record.ticket, &record.body[..]), (0, &b"[]"[..]));
    while started.worker.stdout.size() < 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    started.worker.signal(nix::libc::SIGUSR2);
    let record = started.record().await;
    assert_eq!(
        (record.ticket, &record.body[..]),
        (1, format!("[{}]", nix::libc::SIGUSR2).as_bytes())
    );

    // Elsewhere they do what they do to every program.
    let mut started = Started::new().await;
    started.worker.signal(nix::libc::SIGUSR1);
    assert_eq!(started.exit().await, "was killed by signal 10 (SIGUSR1)");
}
