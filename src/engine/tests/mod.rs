//! Tests of a real engine with a real Python and real sockets, against a controller simulated by the test.
mod calls;
mod commands;
mod life;
mod requests;
#[expect(unreachable_pub, reason = "shared with the integration tests")]
#[path = "../../../tests/it/support/skip.rs"]
mod skip;

use super::{EngineError, EngineSettings, run};
use crate::connection::ConnectionFile;
use crate::connection::file::{BroadcastPorts, PclusterKeys};
use crate::model::definition::{CallSource, MapDefinition, MapOptions, Work};
use crate::model::task::TaskState;
use crate::model::{EngineId, MapId};
use crate::transport::{KeyPair, Security, Socket, SocketKind};
use crate::wire::content::engine::*;
use crate::wire::{Message, Session};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Upper bound of every wait.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) struct TestController {
    pub socket: Socket,
    session: Session,
    engine: Bytes,
    pub register: Register,
    pub process: JoinHandle<Result<(), EngineError>>,
    /// Received results that the test has not taken yet.
    results: VecDeque<TaskResult>,
    pub progress: Vec<TaskProgress>,
    /// Acknowledge parts of outputs.
    pub record_output: bool,
    pub record: bool,
    /// The announced message size limit.
    pub max_message_bytes: u64,
    since: std::time::Instant,
    others: VecDeque<(Channel, Message)>,
}

/// Progress reports of a task.
pub(super) struct TaskProgress {
    pub task: Held,
    pub written: [Vec<u8>; 3],
    /// Size of its largest part in bytes.
    pub largest: usize,
}

impl TaskProgress {
    pub(super) fn stdout(&self) -> &str {
        std::str::from_utf8(&self.written[0]).unwrap()
    }
    pub(super) fn stderr(&self) -> &str {
        std::str::from_utf8(&self.written[1]).unwrap()
    }
}

impl TestController {
    pub(super) async fn with(change: impl FnOnce(&mut EngineSettings)) -> TestController {
        TestController::with_answer(change, true).await
    }

    pub(super) async fn with_answer(change: impl FnOnce(&mut EngineSettings), welcome: bool) -> TestController {
        let keys = KeyPair::generate();
        let socket = Socket::new(SocketKind::Router, None, &Security::Server(keys.clone()))
            .unwrap()
            .with_packing();
        let port = socket.bind("127.0.0.1", 0).await.unwrap();
        let mut settings = EngineSettings::new(connection_file(port, &keys.public));
        if let Ok(python) = std::env::var("PCLUSTER_TEST_PYTHON") {
            settings.python = Some(python);
        }
        (settings.interrupt_timeout_ms, settings.terminate_timeout_ms) = (1000, 1000);
        change(&mut settings);
        let process = tokio::spawn(run(settings));
        let mut session = Session::new(b"key", "controller", "me");
        let message = session.open(socket.receive().await.unwrap()).unwrap();
        let mut controller = TestController {
            engine: message.identities[0].clone(),
            register: message.content().unwrap(),
            socket,
            session,
            process,
            results: VecDeque::new(),
            progress: Vec::new(),
            record_output: false,
            record: true,
            max_message_bytes: 0,
            since: std::time::Instant::now(),
            others: VecDeque::new(),
        };
        if welcome {
            controller.welcome(Vec::new());
        }
        controller
    }

    pub(super) async fn new() -> TestController {
        TestController::with(|_| {}).await
    }

    pub(super) fn welcome(&mut self, drop: Vec<Held>) {
        self.welcome_for(drop, 20_000);
    }

    pub(super) fn welcome_for(&mut self, drop: Vec<Held>, engine_reconnect_timeout_ms: u64) {
        let registered = Registered {
            status: "ok".into(),
            evalue: String::new(),
            id: Some(EngineId(3)),
            heartbeat_interval_ms: 200,
            engine_reconnect_timeout_ms,
            drop,
            max_message_bytes: self.max_message_bytes,
        };
        self.native(REGISTERED, &registered);
    }

    pub(super) fn native<T: Serialize>(&mut self, msg_type: &str, content: &T) {
        let message = self.session.message("2026-11-20T00:00:00Z", msg_type, None, content);
        self.send(Channel::Native, &[], &message);
    }

    pub(super) fn native_with<T: Serialize>(&mut self, msg_type: &str, content: &T, buffers: Vec<Bytes>) {
        let message = self.session.message("2026-11-20T00:00:00Z", msg_type, None, content);
        self.send(Channel::Native, &[], &Message { buffers, ..message });
    }

    pub(super) fn send(&mut self, channel: Channel, route: &[Bytes], message: &Message) {
        let mut prefix = vec![self.engine.clone(), Bytes::from_static(channel.frame())];
        prefix.extend_from_slice(route);
        self.socket.send(self.session.seal(&prefix, message)).unwrap();
    }

    pub(super) fn define(&mut self, map: u32, work: Work, options: MapOptions) {
        let definition = MapDefinition { work, options };
        self.native(
            DEFINITION,
            &Definition {
                map: MapId(map),
                definition,
            },
        );
    }

    pub(super) fn define_file(&mut self, map: u32, text: &str) {
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

    pub(super) fn tasks(&mut self, map: u32, first: u32, inputs: &[&str]) {
        let tasks = inputs
            .iter()
            .zip(first..)
            .map(|(input, index)| TaskToRun::new(index, 1, Bytes::from(input.to_string()), None))
            .collect();
        self.native(
            TASKS,
            &Tasks {
                allocation: None,
                map: MapId(map),
                definition: None,
                tasks,
            },
        );
    }

    /// The next message other than heartbeats, results and progress.
    pub(super) async fn next(&mut self) -> (Channel, Message) {
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
        assert!(self.since.elapsed() < TEST_TIMEOUT, "the expected state was not reached");
        let frames = tokio::time::timeout(TEST_TIMEOUT, self.socket.receive())
            .await
            .expect("no message before the timeout")
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
                    let content: Results = message.content().unwrap();
                    let Results { sequence, results } = content.with_buffers(&message.buffers).unwrap();
                    self.results.extend(results);
                    if self.record {
                        self.native(RECORDED, &Recorded { sequence });
                    }
                    return None;
                }
                PROGRESS => {
                    let progress: Progress = message.content().unwrap();
                    self.add_progress(progress, &message.buffers);
                    return None;
                }
                _ => {}
            }
        }
        Some((channel, message))
    }

    /// Appends parts that continue the received output of the task.
    fn add_progress(&mut self, progress: Progress, buffers: &[Bytes]) {
        assert_eq!(progress.parts.len(), buffers.len());
        let at = self.progress.iter().position(|report| report.task == progress.task);
        let at = at.unwrap_or_else(|| {
            self.progress.push(TaskProgress {
                task: progress.task,
                written: Default::default(),
                largest: 0,
            });
            self.progress.len() - 1
        });
        let report = &mut self.progress[at];
        for (part, bytes) in progress.parts.iter().zip(buffers) {
            let written = &mut report.written[part.stream as usize];
            report.largest = report.largest.max(bytes.len());
            if let Some(known) = (written.len() as u64).checked_sub(part.start)
                && let Some(rest) = bytes.get(known as usize..)
            {
                written.extend_from_slice(rest);
            }
        }
        if self.record_output {
            let recorded = OutputRecorded {
                task: progress.task,
                stdout: report.written[0].len() as u64,
                stderr: report.written[1].len() as u64,
                value: report.written[2].len() as u64,
            };
            self.native(OUTPUT_RECORDED, &recorded);
        }
    }

    pub(super) async fn result(&mut self) -> TaskResult {
        loop {
            if let Some(result) = self.results.pop_front() {
                return result;
            }
            if let Some(other) = self.take_one().await {
                self.others.push_back(other);
            }
        }
    }

    pub(super) async fn results(&mut self, count: usize) -> Vec<TaskResult> {
        let mut results = Vec::new();
        while results.len() < count {
            results.push(self.result().await);
        }
        results
    }

    pub(super) async fn native_answer<T: for<'a> Deserialize<'a>>(&mut self, msg_type: &str) -> T {
        loop {
            let (channel, message) = self.next().await;
            if channel == Channel::Native && message.msg_type() == msg_type {
                return message.content().unwrap();
            }
        }
    }

    /// Waits until the engine has reported that this task is running.
    pub(super) async fn until_running(&mut self, index: u32) {
        while !self.progress.iter().any(|progress| progress.task.index == index) {
            if let Some(other) = self.take_one().await {
                self.others.push_back(other);
            }
        }
    }

    pub(super) async fn end(mut self) {
        self.native(SHUTDOWN, &Shutdown { drain: false });
        let _: Unregister = self.native_answer(UNREGISTER).await;
        tokio::time::timeout(TEST_TIMEOUT, self.process).await.unwrap().unwrap().unwrap();
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
            buffers: None,
            process: Default::default(),
            tunnel: None,
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
