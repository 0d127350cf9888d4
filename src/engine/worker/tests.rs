//! Tests of the worker process with a real Python.
use super::interpreter::{Interpreter, InterpreterCommand};
use super::process::{Worker, WorkerEvent, WorkerExit};
use super::protocol::{Record, frame, tasks_frame};
use crate::engine::forker::Forker;
use bytes::Bytes;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);

struct TestWorker {
    process: Worker,
    events: UnboundedReceiver<(u64, WorkerEvent)>,
    records: std::collections::VecDeque<Record>,
    code: tempfile::TempDir,
    _interpreter: Interpreter,
    _forker: Forker,
}

impl TestWorker {
    async fn new() -> TestWorker {
        TestWorker::with(false).await
    }

    async fn with(in_job: bool) -> TestWorker {
        let (sender, events) = unbounded_channel();
        let command = InterpreterCommand {
            python: std::env::var("PCLUSTER_TEST_PYTHON").unwrap_or_else(|_| "python3".into()),
            cwd: None,
            env: Vec::new(),
            in_job,
        };
        let forker = Forker::new().unwrap();
        let interpreter = Interpreter::start(&command, &forker).await.unwrap();
        let owner = forker.reaper().owner();
        let process = Worker::start(&interpreter, owner, false, sender).unwrap();
        let mut worker = TestWorker {
            process,
            events,
            records: Default::default(),
            code: tempfile::tempdir().unwrap(),
            _interpreter: interpreter,
            _forker: forker,
        };
        assert_eq!(worker.record().await.kind, b'H');
        worker
    }

    async fn event(&mut self) -> WorkerEvent {
        let (number, event) = tokio::time::timeout(TEST_TIMEOUT, self.events.recv()).await.unwrap().unwrap();
        assert_eq!(number, self.process.number);
        event
    }

    async fn record(&mut self) -> Record {
        loop {
            if let Some(record) = self.records.pop_front() {
                return record;
            }
            match self.event().await {
                WorkerEvent::Records(records) => self.records.extend(records),
                WorkerEvent::OutputSynced => {}
                WorkerEvent::Exited(exit) => panic!("the worker {}: {}", exit.how, self.process.stderr.last_output()),
            }
        }
    }

    async fn exit(&mut self) -> String {
        loop {
            match self.event().await {
                WorkerEvent::Records(records) => self.records.extend(records),
                WorkerEvent::OutputSynced => {}
                WorkerEvent::Exited(exit) => return exit.how,
            }
        }
    }

    fn define(&mut self, text: &str) {
        std::fs::write(self.code.path().join("t.py"), text).unwrap();
        let source = serde_json::json!({ "bundle": { "hash": "", "name": "t.py", "entry": "t.py", "origin": "" } });
        let work = serde_json::json!({ "kind": "call", "from": source, "function": "f" });
        let definition = serde_json::json!([1, { "work": work }, { "directory": self.code.path() }]);
        self.process.send(vec![frame(b'D', 0, definition.to_string().as_bytes())]);
    }

    fn tasks(&mut self, first: u32, inputs: &[&str], tokens: usize) {
        let inputs: Vec<Bytes> = inputs.iter().map(|input| Bytes::from(input.to_string())).collect();
        self.process.send(tasks_frame(1, first, &inputs));
        self.process.add_tokens(tokens);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_that_have_not_started_can_be_recalled() {
    let mut worker = TestWorker::new().await;
    worker.define("import os, time\ndef f(path):\n print('x')\n while not os.path.exists(path): time.sleep(0.005)\n return path\n");
    let dir = tempfile::tempdir().unwrap();
    let (go, input) = (dir.path().join("go"), format!("[\"{}\"]", dir.path().join("go").display()));
    worker.tasks(0, &[&input, &input, &input], 3);
    while worker.process.stdout.read_to(None).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(worker.process.recall(), 2);
    assert_eq!(worker.process.recall(), 0, "skipped units are not counted again");
    worker.tasks(3, &["[\"/\"]"], 1);
    std::fs::write(go, "").unwrap();
    assert_eq!(worker.record().await.ticket, 0);
    assert_eq!(worker.record().await.ticket, 3);
    worker.process.close();
    assert_eq!(worker.exit().await, "ended with exit code 0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_and_short_values_arrive_in_order() {
    let mut worker = TestWorker::new().await;
    worker.define("def f(n): return 'x' * n");
    let inputs: Vec<String> = (0..1000)
        .map(|i| format!("[{}]", if i % 100 == 0 { 3_000_000 } else { i }))
        .collect();
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    worker.tasks(0, &inputs, 1000);
    for i in 0..1000 {
        let record = worker.record().await;
        assert_eq!(record.ticket, i);
        let length = if i % 100 == 0 { 3_000_000 } else { i as usize };
        assert_eq!(record.body.len(), length + 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_is_reported_after_the_last_record_even_if_a_child_survives() {
    let mut worker = TestWorker::new().await;
    worker.define("import os, time, subprocess\ndef f(k):\n if k == 2:\n  if os.fork() == 0: time.sleep(600)\n  os._exit(9)\n return k\n");
    worker.tasks(0, &["[1]", "[2]", "[3]"], 3);
    assert_eq!(worker.exit().await, "ended with exit code 9");
    assert_eq!(worker.records.len(), 1);
    assert_eq!(worker.process.unstarted_units(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_sends_malformed_records_is_killed() {
    let mut worker = TestWorker::new().await;
    worker.define(
        "import fcntl, os, stat, time\n\
         def f():\n\
        \x20   pipes = [fd for fd in range(3, 64) if os.path.exists('/proc/self/fd/%d' % fd) and stat.S_ISFIFO(os.fstat(fd).st_mode) and fcntl.fcntl(fd, fcntl.F_GETFL) & 3 == os.O_WRONLY]\n\
        \x20   os.write(pipes[0], b'?' * 100)\n\
        \x20   time.sleep(600)\n",
    );
    worker.tasks(0, &["[]"], 1);
    let how = worker.exit().await;
    assert!(how.contains("wrote a malformed record"), "{how}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_name_a_missing_or_invalid_interpreter() {
    let (sender, mut events) = unbounded_channel();
    let forker = Forker::new().unwrap();
    let mut command = InterpreterCommand {
        python: "/no/python".into(),
        cwd: None,
        env: Vec::new(),
        in_job: false,
    };
    let error = Interpreter::start(&command, &forker).await.err().unwrap();
    assert!(error.to_string().contains("/no/python"), "{error}");
    command.cwd = Some("/no/dir".into());
    let error = Interpreter::start(&command, &forker).await.err().unwrap();
    assert!(error.to_string().contains("/no/dir"), "{error}");
    (command.python, command.cwd) = ("false".into(), None);
    let interpreter = Interpreter::start(&command, &forker).await.unwrap();
    let _worker = Worker::start(&interpreter, forker.reaper().owner(), false, sender).unwrap();
    let (_, event) = tokio::time::timeout(TEST_TIMEOUT, events.recv()).await.unwrap().unwrap();
    assert!(matches!(event, WorkerEvent::Exited(WorkerExit { how, killed: false, .. }) if how == "ended with exit code 1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sync_is_reported_after_the_ends_of_earlier_units() {
    let mut worker = TestWorker::new().await;
    worker.define("import time\ndef f(word):\n print(word)\n while word == 'last': time.sleep(0.01)\n");
    worker.tasks(0, &["[\"one\"]", "[\"two\"]", "[\"last\"]"], 3);
    // No record is processed yet, and all output is written.
    while worker.process.stdout.size() < 13 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    worker.process.sync_output();
    let end = worker.process.sync_positions;
    let mut ends = Vec::new();
    loop {
        match worker.event().await {
            WorkerEvent::Records(records) => ends.extend(records.into_iter().filter_map(|r| r.positions)),
            WorkerEvent::OutputSynced => break,
            WorkerEvent::Exited(exit) => panic!("the worker {}", exit.how),
        }
    }
    assert_eq!(ends, [(4, 0), (8, 0)]);
    let read = ends.iter().map(|(out, _)| worker.process.stdout.read_to(Some(*out)));
    assert_eq!(read.collect::<Vec<_>>(), ["one\n", "two\n"]);
    assert_eq!(worker.process.read_output(end)[0], "last\n");
    // Each sync is answered.
    worker.process.sync_positions = None;
    worker.process.sync_output();
    while !matches!(worker.event().await, WorkerEvent::OutputSynced) {}
    assert!(worker.process.read_output(end)[0].is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_warning_does_not_end_a_worker_but_reaches_user_handlers() {
    let mut worker = TestWorker::with(true).await;
    worker.define(
        "import signal, time\n\
         def f(number):\n\
        \x20   got = []\n\
        \x20   if number: signal.signal(number, lambda n, _: got.append(n))\n\
        \x20   print('x', flush=True)\n\
        \x20   while number and not got: time.sleep(0.005)\n\
        \x20   return got\n",
    );
    for signal in [nix::libc::SIGUSR1, nix::libc::SIGUSR2] {
        worker.process.signal(signal);
    }
    worker.tasks(0, &["[0]", &format!("[{}]", nix::libc::SIGUSR2)], 2);
    let record = worker.record().await;
    assert_eq!((record.ticket, &record.body[..]), (0, &b"[]"[..]));
    while worker.process.stdout.size() < 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    worker.process.signal(nix::libc::SIGUSR2);
    let record = worker.record().await;
    assert_eq!(
        (record.ticket, &record.body[..]),
        (1, format!("[{}]", nix::libc::SIGUSR2).as_bytes())
    );

    // Outside of a batch job these signals have their default action.
    let mut worker = TestWorker::new().await;
    worker.process.signal(nix::libc::SIGUSR1);
    assert_eq!(worker.exit().await, "was killed by signal 10 (SIGUSR1)");
}
