//! What comes from the worker and from commands, made into events.
use super::Driver;
use crate::engine::command::CommandEvent;
use crate::engine::core::Event;
use crate::engine::core::unit::WorkerResult;
use crate::engine::worker::process::{WorkerEvent, WorkerExit};
use crate::engine::worker::protocol::{Record, parts};
use crate::model::UnixTime;
use serde::Deserialize;

impl Driver {
    pub(super) async fn worker_said(&mut self, number: u64, event: WorkerEvent) {
        if self.worker.as_ref().is_none_or(|worker| worker.number != number) {
            return;
        }
        match event {
            WorkerEvent::Records(records) => {
                for record in records {
                    if let Some(event) = self.record_event(record) {
                        self.handle(event).await;
                    }
                }
            }
            WorkerEvent::Looked => {
                let Some(worker) = &mut self.worker else { return };
                let output = worker.written();
                self.handle(Event::OutputRead { output }).await;
            }
            WorkerEvent::Exited(WorkerExit { how, killed }) => {
                let Some(mut worker) = self.worker.take() else { return };
                let how = format!("the Python worker (pid {}, {}) {how}", worker.pid, self.python);
                tracing::warn!("{how}");
                let event = Event::WorkerExited {
                    unread: worker.left_over(),
                    how,
                    killed,
                    stderr_tail: last_lines(&worker.stderr.last_words(4096)),
                    output: [worker.stdout.read_to(None), worker.stderr.read_to(None)],
                };
                drop(worker);
                self.handle(event).await;
            }
        }
    }

    pub(super) fn record_event(&mut self, record: Record) -> Option<Event> {
        let Record {
            kind,
            ticket,
            started,
            ended,
            positions,
            body,
        } = record;
        let output = match (positions, &mut self.worker) {
            (Some((out, err)), Some(worker)) => [worker.stdout.read_to(Some(out)), worker.stderr.read_to(Some(err))],
            _ => Default::default(),
        };
        let ended_with = |result| Event::UnitEnded {
            ticket,
            started: UnixTime(started),
            ended: UnixTime(ended),
            output: output.clone(),
            result,
        };
        Some(match kind {
            b'H' => {
                self.introduce(&body);
                Event::WorkerReady
            }
            b'B' => Event::UnitBegun { ticket, output },
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
                        ticket,
                        output,
                        meta,
                        content,
                        buffers,
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

/// The last lines of what was written to stderr, as many as fit into an error.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
