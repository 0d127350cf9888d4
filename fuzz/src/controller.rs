//! The controller's core, behind the check of signatures: scripts of what clients and engines say. After every event
//! the core's own invariants are checked, and at the end each task has ended at most once for each time it was begun.
//!
//! A line of a script: who, channel, msg_type, metadata, content, buffers…, between tabs. `tick` lets 100 ms pass, `gone` ends an engine's
//! connection, `pong` answers a heartbeat.
use bytes::Bytes;
use pcluster::testing::ControllerConfig;
use pcluster::testing::controller::{ClientChannel, Core, Effect, Event, EventTime, Facts};
use pcluster::testing::model::Change;
use pcluster::testing::model::{EngineUuid, TaskId, UnixTime};
use pcluster::testing::wire::content::engine::Channel;
use pcluster::testing::wire::to_json;
use pcluster::testing::wire::{Header, Message};
use std::collections::HashMap;
use std::time::Duration;

const MAX_LINES: usize = 200;

pub fn run(input: &[u8]) {
    let mut world = World::new();
    for line in input.split(|b| *b == b'\n').take(MAX_LINES) {
        let fields: Vec<&[u8]> = line.split(|b| *b == b'\t').collect();
        if let Some(event) = world.event(&fields) {
            world.handle(event);
        }
    }
    for _ in 0..20 {
        world.passed += Duration::from_secs(10);
        world.handle(Event::TimePassed);
    }
}

struct World {
    core: Core,
    passed: Duration,
    sequence: u32,
    /// Tasks that have ended (false), and those that were begun again (true).
    open: HashMap<TaskId, bool>,
}

impl World {
    fn new() -> World {
        let facts = Facts {
            cluster_id: String::new(),
            pid: 1,
            host: "here".into(),
            started: UnixTime(1e9),
            session: "s".into(),
            engine_file: serde_json::json!({}),
            seed: 1,
        };
        World {
            core: Core::new(ControllerConfig::default(), facts, now(Duration::ZERO)),
            passed: Duration::ZERO,
            sequence: 0,
            open: HashMap::new(),
        }
    }

    fn event(&mut self, fields: &[&[u8]]) -> Option<Event> {
        let (who, rest) = fields.split_first()?;
        let engine = EngineUuid::from(String::from_utf8_lossy(rest.first().unwrap_or(&&b"e1"[..])).as_ref());
        match *who {
            b"tick" => {
                self.passed += Duration::from_millis(100);
                return Some(Event::TimePassed);
            }
            b"gone" => return Some(Event::EngineDisconnected { engine }),
            b"pong" => return Some(Event::PongReceived { engine }),
            _ => {}
        }
        let (name, rest) = rest.split_first()?;
        let field = |i: usize, default: &'static str| -> Bytes {
            rest.get(i)
                .map_or(Bytes::from_static(default.as_bytes()), |f| Bytes::copy_from_slice(f))
        };
        self.sequence += 1;
        let header = Header {
            msg_id: format!("m_{}", self.sequence),
            msg_type: String::from_utf8_lossy(&field(0, "")).into_owned(),
            session: "client".into(),
            ..Header::default()
        };
        let mut message = Message {
            identities: vec![Bytes::copy_from_slice(who)],
            header_json: to_json(&header),
            header,
            parent_json: field(3, "{}"),
            metadata_json: field(1, "{}"),
            content_json: field(2, "{}"),
            buffer_file: Default::default(),
            // `|` ends a line of inputs, since a line break ends the message.
            buffers: rest
                .iter()
                .skip(4)
                .map(|buffer| buffer.iter().map(|b| if *b == b'|' { b'\n' } else { *b }).collect())
                .collect(),
        };
        let channel = match *name {
            b"registration" => ClientChannel::Registration,
            b"task" => ClientChannel::Task,
            b"control" => ClientChannel::Control,
            b"mux" | b"broadcast" => {
                message.identities.push(Bytes::from_static(b"e1"));
                if *name == b"mux" {
                    ClientChannel::Mux
                } else {
                    ClientChannel::Broadcast
                }
            }
            b"registrant" => {
                return Some(Event::RegistrantMessage {
                    identity: message.sender(),
                    message,
                });
            }
            other => {
                // `native`, or `native.task`: an engine of ours; `stock.task`: an ipengine.
                let (native, channel) = match other.strip_prefix(b"stock.") {
                    Some(channel) => (false, channel),
                    None => (true, other.strip_prefix(b"native.").unwrap_or(other)),
                };
                return Some(Event::EngineMessage {
                    engine: EngineUuid::from(String::from_utf8_lossy(who).as_ref()),
                    native,
                    channel: Channel::from_frame(channel)?,
                    client: Bytes::from_static(b"c1"),
                    message,
                });
            }
        };
        Some(Event::ClientMessage { channel, message })
    }

    fn handle(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.core.handle(now(self.passed), event, &mut effects);
        self.core.check();
        for effect in effects {
            if let Effect::Record(change) = effect {
                self.note(&change);
            }
        }
    }

    /// An account of its own: no task ends twice without being begun again.
    fn note(&mut self, change: &Change) {
        match change {
            Change::TaskFinished { task, .. } => {
                let open = self.open.insert(*task, false);
                assert!(open != Some(false), "{task} ended twice");
            }
            Change::TaskReturned { task, .. } | Change::TaskResubmitted { task, .. } => {
                self.open.insert(*task, true);
            }
            _ => {}
        }
    }
}

fn now(passed: Duration) -> EventTime {
    EventTime {
        since_start: passed,
        unix: UnixTime(1e9 + passed.as_secs_f64()),
    }
}
