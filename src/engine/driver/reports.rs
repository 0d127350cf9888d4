//! Converts reports of workers and commands into events.
use super::pool::WorkerReport;
use super::{Driver, now};
use crate::engine::command::CommandEvent;
use crate::engine::core::event::{Parent, Published};
use crate::engine::core::unit::WorkerResult;
use crate::engine::core::{Event, WorkerKey};
use crate::engine::worker::output::{CHUNK, SMALL_OUTPUT};
use crate::engine::worker::process::{WorkerEvent, WorkerExit};
use crate::engine::worker::protocol::{Record, parts};
use crate::model::UnixTime;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

impl Driver {
    pub(super) async fn receive_worker_event(&mut self, number: u64, event: WorkerEvent) {
        if matches!(event, WorkerEvent::Records(_))
            && let Some(worker) = self.pool.find(number).and_then(|key| self.pool.get_mut(key))
        {
            worker.retry_tokens();
        }
        match event {
            WorkerEvent::Records(mut records) => {
                if self.reports.is_empty() {
                    let plain = records
                        .iter()
                        .take_while(|record| record.kind == b'V' && record.positions.is_none());
                    let rest = records.split_off(plain.count());
                    self.values(number, std::mem::replace(&mut records, rest)).await;
                }
                self.reports
                    .extend(records.into_iter().map(|record| (number, WorkerReport::Record(record))));
            }
            WorkerEvent::OutputSynced => self.reports.push_back((number, WorkerReport::OutputSynced)),
            WorkerEvent::Exited(exit) => self.reports.push_back((number, WorkerReport::Exited(exit))),
        }
        self.process_reports().await;
    }

    /// Handles values of tasks that have written nothing.
    async fn values(&mut self, number: u64, records: Vec<Record>) {
        let Some(Some(worker)) = self.pool.find(number).filter(|_| !records.is_empty()) else {
            return;
        };
        let mut peak = self.pool.get_mut(Some(worker)).and_then(|worker| worker.peak);
        let events = records.into_iter().map(|record| Event::UnitEnded {
            peak_memory: {
                peak = record.peak.or(peak);
                peak
            },
            worker,
            ticket: record.ticket,
            started: UnixTime(record.started),
            ended: UnixTime(record.ended),
            output: Default::default(),
            result: WorkerResult::Value(record.body),
        });
        let effects = self.core.handle_all(now(), events);
        if let Some(worker) = self.pool.get_mut(Some(worker)) {
            worker.peak = peak;
        }
        self.act(effects).await;
    }

    /// Processes queued reports as far as buffer space allows reading the output before them.
    pub(super) async fn process_reports(&mut self) {
        while let Some((number, report)) = self.reports.pop_front() {
            let Some(key) = self.pool.find(number) else {
                if matches!(report, WorkerReport::Exited(_)) {
                    self.pool.has_ended(number);
                }
                continue;
            };
            let Some(worker) = self.pool.get_mut(key) else { continue };
            let end = match &report {
                WorkerReport::Record(record) => record.positions.map(Some),
                WorkerReport::OutputSynced => worker.sync_positions.map(Some),
                WorkerReport::Exited(_) => {
                    let written = worker.written();
                    Some(Some(*worker.ends.get_or_insert(written)))
                }
            };
            let unread = end.map_or(0, |end| worker.unread_output(end));
            // Output of an idle worker belongs to no unit.
            let is_unclaimed = matches!(&report, WorkerReport::Record(record) if record.kind == b'N');
            let is_ours = key.is_some() && self.core.running_worker() == key && !is_unclaimed;
            // The end of a unit that is being stopped is not delayed, or the stop would escalate.
            if is_ours && unread > SMALL_OUTPUT && !self.core.is_stopping() && !self.can_read_output() {
                self.reports.push_front((number, report));
                return;
            }
            let Some(worker) = self.pool.get_mut(key) else { continue };
            if unread > CHUNK {
                let output = worker.read_output(end.flatten());
                self.reports.push_front((number, report));
                match is_ours {
                    true => self.handle(Event::OutputArrived { output }).await,
                    false => self.handle(Event::OutputUnclaimed { output }).await,
                }
                continue;
            }
            match report {
                WorkerReport::Record(record) => {
                    if let Some(event) = self.record_event(key, record) {
                        self.handle(event).await;
                    }
                }
                WorkerReport::OutputSynced => {
                    let sync_positions = worker.sync_positions.take();
                    let output = sync_positions.map(|end| worker.read_output(Some(end))).unwrap_or_default();
                    let is_requested = std::mem::take(&mut worker.is_requested);
                    self.rearm(key);
                    match (is_ours, is_requested) {
                        (true, true) => self.handle(Event::OutputRead { output }).await,
                        (true, false) => self.handle(Event::OutputArrived { output }).await,
                        (false, _) => self.handle(Event::OutputUnclaimed { output }).await,
                    }
                }
                WorkerReport::Exited(exit) => self.worker_exited(key, exit).await,
            }
        }
    }

    async fn worker_exited(&mut self, key: Option<WorkerKey>, exit: WorkerExit) {
        let WorkerExit { how, killed, last_output } = exit;
        let Some(mut worker) = self.remove_worker(key) else { return };
        let how = format!("the Python worker (pid {}, {}) {how}", worker.pid.get(), self.python);
        tracing::warn!("{how}");
        let output = worker.read_output(worker.ends);
        let event = Event::WorkerExited {
            worker: key,
            unread: worker.unstarted_units(),
            how,
            killed,
            oom_killed: killed && self.oom.has_killed(),
            stderr_tail: last_lines(&(last_output + &worker.stderr.last_output())),
            output,
        };
        drop(worker);
        self.handle(event).await;
    }

    pub(super) fn record_event(&mut self, key: Option<WorkerKey>, record: Record) -> Option<Event> {
        let Record {
            kind,
            ticket,
            started,
            ended,
            positions,
            peak,
            body,
        } = record;
        let (mut output, mut peak_memory) = (Default::default(), None);
        if let Some(worker) = self.pool.get_mut(key) {
            worker.peak = peak.or(worker.peak);
            peak_memory = worker.peak;
            if let Some(end) = positions {
                output = worker.read_output(Some(end));
            }
        }
        if kind == b'H' {
            self.record_python(&body);
            return key.is_none().then_some(Event::WorkerReady);
        }
        if kind == b'L' {
            tracing::warn!("Python worker: {}", String::from_utf8_lossy(&body).escape_debug());
            return None;
        }
        let worker = key?;
        let ended_with = |result| Event::UnitEnded {
            worker,
            ticket,
            started: UnixTime(started),
            ended: UnixTime(ended),
            output: output.clone(),
            peak_memory,
            result,
        };
        Some(match kind {
            b'N' => Event::OutputUnclaimed { output },
            b'B' => Event::UnitStarted { worker, ticket, output },
            b'V' => ended_with(WorkerResult::Value(body)),
            b'P' => {
                let mut parts = parts(body)?.into_iter();
                ended_with(WorkerResult::Pickled {
                    meta: parts.next()?,
                    rendering: parts.next()?,
                    pickle: parts.next()?,
                })
            }
            b'E' => ended_with(WorkerResult::Error(body)),
            b'A' | b'I' => {
                let mut parts = parts(body)?.into_iter();
                let (meta, content) = (parts.next()?, parts.next()?);
                let buffers = parts.collect();
                match kind {
                    b'A' => ended_with(WorkerResult::Reply { meta, content, buffers }),
                    _ => Event::Published {
                        worker,
                        output,
                        published: published(&meta, content, buffers)?,
                    },
                }
            }
            _ => return None,
        })
    }

    pub(super) fn record_python(&mut self, greeting: &[u8]) {
        #[derive(Deserialize)]
        struct Hello {
            version: String,
            executable: String,
            apply: bool,
        }
        let Ok(greeting) = serde_json::from_slice::<Hello>(greeting) else {
            return;
        };
        self.facts.python = format!("{} ({})", greeting.version, greeting.executable);
        self.facts.capabilities.retain(|capability| capability != "apply");
        if greeting.apply {
            self.facts.capabilities.push("apply".into());
        }
    }

    pub(super) async fn receive_command_event(&mut self, event: CommandEvent) {
        let event = match event {
            CommandEvent::Output(output) => Event::CommandOutput { output },
            CommandEvent::Ended(mut end) => {
                end.oom_killed = end.how.may_be_sigkill() && self.oom.has_killed();
                Event::CommandEnded(end)
            }
        };
        self.handle(event).await;
    }
}

/// `meta` is JSON `{type, topic}`, with `parent` if the message does not belong to the running unit.
fn published(meta: &[u8], content: Bytes, buffers: Vec<Bytes>) -> Option<Published> {
    #[derive(Deserialize)]
    struct Meta<'a> {
        #[serde(rename = "type")]
        kind: String,
        topic: String,
        #[serde(default)]
        metadata: Map<String, Value>,
        #[serde(borrow)]
        parent: Option<&'a RawValue>,
    }
    let Meta {
        kind,
        topic,
        metadata,
        parent,
    } = serde_json::from_slice(meta)
        .inspect_err(|e| tracing::warn!("the worker published an invalid message: {e}"))
        .ok()?;
    let parent = match parent.map(RawValue::get) {
        None => Parent::Running,
        Some(header) if header.starts_with('{') && header != "{}" => Parent::Ended(Bytes::copy_from_slice(header.as_bytes())),
        Some(_) => Parent::None,
    };
    Some(Published {
        parent,
        kind,
        topic,
        metadata,
        content,
        buffers,
    })
}

/// The last lines of stderr, for an error message.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
