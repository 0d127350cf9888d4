//! What comes from the worker and from commands, made into events.
use super::{Driver, now};
use crate::engine::command::CommandEvent;
use crate::engine::core::event::{Parent, Published};
use crate::engine::core::unit::WorkerResult;
use crate::engine::core::{Event, WorkerKey};
use crate::engine::worker::output::{CHUNK, LITTLE};
use crate::engine::worker::process::{WorkerEvent, WorkerExit};
use crate::engine::worker::protocol::{Record, parts};
use crate::model::UnixTime;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// What a worker has said and what waits until the output in front of it has been read.
#[derive(Debug)]
pub(super) enum Said {
    Record(Record),
    Looked,
    Exited(WorkerExit),
}

impl Driver {
    pub(super) async fn worker_said(&mut self, number: u64, event: WorkerEvent) {
        if matches!(event, WorkerEvent::Records(_))
            && let Some(worker) = self.pool.find(number).and_then(|key| self.pool.get_mut(key))
        {
            worker.has_moved();
        }
        match event {
            WorkerEvent::Records(mut records) => {
                if self.said.is_empty() {
                    let plain = records
                        .iter()
                        .take_while(|record| record.kind == b'V' && record.positions.is_none());
                    let rest = records.split_off(plain.count());
                    self.values(number, std::mem::replace(&mut records, rest)).await;
                }
                self.said.extend(records.into_iter().map(|record| (number, Said::Record(record))));
            }
            WorkerEvent::Looked => self.said.push_back((number, Said::Looked)),
            WorkerEvent::Exited(exit) => self.said.push_back((number, Said::Exited(exit))),
        }
        self.hear_worker().await;
    }

    /// Ends of tasks that have written nothing.
    async fn values(&mut self, number: u64, records: Vec<Record>) {
        let Some(Some(worker)) = self.pool.find(number).filter(|_| !records.is_empty()) else {
            return;
        };
        let events = records.into_iter().map(|record| Event::UnitEnded {
            worker,
            ticket: record.ticket,
            started: UnixTime(record.started),
            ended: UnixTime(record.ended),
            output: Default::default(),
            result: WorkerResult::Value(record.body),
        });
        let effects = self.core.handle_all(now(), events);
        self.act(effects).await;
    }

    /// Hands on what workers have said, as far as there is room for the output in front of it.
    pub(super) async fn hear_worker(&mut self) {
        while let Some((number, said)) = self.said.pop_front() {
            let Some(key) = self.pool.find(number) else {
                if matches!(said, Said::Exited(_)) {
                    self.pool.has_ended(number);
                }
                continue;
            };
            let Some(worker) = self.pool.get_mut(key) else { continue };
            let upto = match &said {
                Said::Record(record) => record.positions.map(Some),
                Said::Looked => worker.looked_at.map(Some),
                Said::Exited(_) => {
                    let written = worker.written();
                    Some(Some(*worker.ends.get_or_insert(written)))
                }
            };
            let unread = upto.map_or(0, |upto| worker.unread_output(upto));
            // What a worker writes in which nothing runs is nobody's.
            let is_unclaimed = matches!(&said, Said::Record(record) if record.kind == b'N');
            let is_ours = key.is_some() && self.core.running_worker() == key && !is_unclaimed;
            // The end of what is being stopped does not wait, else it would be stopped by other means.
            if is_ours && unread > LITTLE && !self.core.is_stopping() && !self.has_room() {
                self.said.push_front((number, said));
                return;
            }
            let Some(worker) = self.pool.get_mut(key) else { continue };
            if unread > CHUNK {
                let output = worker.read_output(upto.flatten());
                self.said.push_front((number, said));
                match is_ours {
                    true => self.handle(Event::Wrote { output }).await,
                    false => self.handle(Event::OutputUnclaimed { output }).await,
                }
                continue;
            }
            match said {
                Said::Record(record) => {
                    if let Some(event) = self.record_event(key, record) {
                        self.handle(event).await;
                    }
                }
                Said::Looked => {
                    let looked_at = worker.looked_at.take();
                    let output = looked_at.map(|upto| worker.read_output(Some(upto))).unwrap_or_default();
                    let is_awaited = std::mem::take(&mut worker.is_awaited);
                    self.rearm(key);
                    match (is_ours, is_awaited) {
                        (true, true) => self.handle(Event::OutputRead { output }).await,
                        (true, false) => self.handle(Event::Wrote { output }).await,
                        (false, _) => self.handle(Event::OutputUnclaimed { output }).await,
                    }
                }
                Said::Exited(exit) => self.worker_exited(key, exit).await,
            }
        }
    }

    async fn worker_exited(&mut self, key: Option<WorkerKey>, exit: WorkerExit) {
        let WorkerExit { how, killed, last_words } = exit;
        let Some(mut worker) = self.remove_worker(key) else { return };
        let how = format!("the Python worker (pid {}, {}) {how}", worker.pid.get(), self.python);
        tracing::warn!("{how}");
        let output = worker.read_output(worker.ends);
        let event = Event::WorkerExited {
            worker: key,
            unread: worker.left_over(),
            how,
            killed,
            stderr_tail: last_lines(&(last_words + &worker.stderr.last_words())),
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
            body,
        } = record;
        let output = match (positions, self.pool.get_mut(key)) {
            (Some(upto), Some(worker)) => worker.read_output(Some(upto)),
            _ => Default::default(),
        };
        if kind == b'H' {
            self.introduce(&body);
            return key.is_none().then_some(Event::WorkerReady);
        }
        if kind == b'L' {
            tracing::warn!("the Python worker: {}", String::from_utf8_lossy(&body).escape_debug());
            return None;
        }
        let worker = key?;
        let ended_with = |result| Event::UnitEnded {
            worker,
            ticket,
            started: UnixTime(started),
            ended: UnixTime(ended),
            output: output.clone(),
            result,
        };
        Some(match kind {
            b'N' => Event::OutputUnclaimed { output },
            b'B' => Event::UnitBegun { worker, ticket, output },
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

    pub(super) fn introduce(&mut self, hello: &[u8]) {
        #[derive(Deserialize)]
        struct Hello {
            version: String,
            executable: String,
            apply: bool,
        }
        let Ok(hello) = serde_json::from_slice::<Hello>(hello) else {
            return;
        };
        self.facts.python = format!("{} ({})", hello.version, hello.executable);
        self.facts.capabilities.retain(|capability| capability != "apply");
        if hello.apply {
            self.facts.capabilities.push("apply".into());
        }
    }

    pub(super) async fn command_said(&mut self, event: CommandEvent) {
        let event = match event {
            CommandEvent::Wrote(output) => Event::CommandWrote { output },
            CommandEvent::Ended(end) => Event::CommandEnded(end),
        };
        self.handle(event).await;
    }
}

/// `meta` is JSON `{type, topic}`, with `parent` where it is not of the unit that runs.
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
        .inspect_err(|e| tracing::warn!("the worker published something that cannot be read: {e}"))
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

/// The last lines of what was written to stderr, as many as fit into an error.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
