//! ipyparallel's hub requests, on the registration socket of clients.
use super::clients::{RequestContext, read};
use super::event::FoundRequest;
use super::{Core, Effect, QueryKind, Timer};
use crate::model::change::{Change, Purge};
use crate::model::{EngineId, EngineUuid};
use crate::wire::Message;
use crate::wire::content::error::ErrorContent;
use crate::wire::content::hub::{self, HubTarget, HubTargets, ResultRequest, TargetsRequest};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// When to repeat announcements: a client requests the engines when it connects, and learns of later ones on another connection,
/// which may be established this much later. A duplicate announcement is harmless.
const ANNOUNCE_AGAIN: [Duration; 4] = [
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(15),
];

/// The last repetition.
pub(super) const MAX_CONNECTING: Duration = Duration::from_secs(16);

impl Core {
    pub(super) fn hub_request(&mut self, context: RequestContext, message: Message) {
        let result = match message.msg_type() {
            hub::CONNECTION => {
                let engines = self.engines.iter().map(|(uuid, e)| (e.id.to_string(), uuid.to_string())).collect();
                self.answer(
                    &context,
                    &hub::ConnectionReply {
                        status: "ok".into(),
                        engines,
                    },
                );
                for after in ANNOUNCE_AGAIN {
                    self.set_timer(after, Timer::Announce(self.now.since_start));
                }
                Ok(())
            }
            "queue_request" => self.queue_status(&context, &message),
            "load_request" => self.load(&context, &message),
            "result_request" => read(&message).map(|r: ResultRequest| {
                let pending = r.msg_ids.iter().filter(|id| self.requests.is_open(id)).cloned().collect();
                self.query(
                    &context,
                    QueryKind::Results {
                        msg_ids: r.msg_ids,
                        pending,
                        status_only: r.status_only,
                    },
                );
            }),
            "history_request" => {
                self.query(&context, QueryKind::History);
                Ok(())
            }
            "db_request" => {
                self.query(
                    &context,
                    QueryKind::Records {
                        query: message.content_json.clone(),
                    },
                );
                Ok(())
            }
            "purge_request" => self.purge_requests(&context, &message),
            "resubmit_request" => {
                read(&message).map(|r: ResultRequest| self.query(&context, QueryKind::ResubmitRequests { msg_ids: r.msg_ids }))
            }
            "shutdown_request" => {
                self.answer(&context, &json!({"status": "ok"}));
                // Programs with an open client print tracebacks on this notice, so it is not sent on other kinds of stop.
                let message = self.message(hub::SHUTDOWN_NOTIFICATION, None, &json!({"status": "ok"}));
                self.effects.push(Effect::Notify { message });
                // ipyparallel's client stops the engines itself, through the control channel.
                self.stop(false);
                Ok(())
            }
            hub::BECOME_DASK => read(&message).map(|r: hub::BecomeDask| {
                self.effects.push(Effect::StartDask {
                    client: context.client.clone(),
                    parent: context.parent.clone(),
                    arguments: r.scheduler_args,
                });
            }),
            hub::STOP_DASK => {
                self.effects.push(Effect::StopDask);
                self.answer(&context, &json!({"status": "ok"}));
                Ok(())
            }
            other => Err(ErrorContent::new("KeyError", format!("'Bad Message Type: {other}'"))),
        };
        if let Err(error) = result {
            self.reply(context.client, "hub_error", &context.parent, &error);
        }
    }

    pub(super) fn dask_started(&mut self, client: Bytes, parent: Bytes, address: Result<Value, ErrorContent>) {
        let context = RequestContext {
            client,
            parent,
            request: hub::BECOME_DASK.into(),
        };
        match address {
            Ok(address) => self.answer(&context, &address),
            Err(error) => self.answer(&context, &error),
        }
    }

    fn hub_targets(&self, targets: Option<HubTargets>) -> Result<Vec<(EngineUuid, EngineId)>, ErrorContent> {
        let all = || self.engines.iter().map(|(uuid, e)| (uuid.clone(), e.id)).collect::<Vec<_>>();
        let named = match targets {
            None => return Ok(all()),
            Some(HubTargets::One(target)) => vec![target],
            Some(HubTargets::Many(targets)) => targets,
        };
        let find = |target: &HubTarget| match target {
            HubTarget::Id(id) => self.engines.uuid_of(EngineId(*id)).map(|uuid| (uuid.clone(), EngineId(*id))),
            HubTarget::Uuid(uuid) => {
                let uuid = EngineUuid::from(uuid.as_str());
                self.engines.get(&uuid).map(|e| (uuid.clone(), e.id))
            }
        };
        if named.is_empty() {
            return Err(ErrorContent::new("IndexError", "No Engines Registered"));
        }
        named
            .iter()
            .map(|target| find(target).ok_or_else(|| ErrorContent::new("IndexError", format!("No Such Engine: {target:?}"))))
            .collect()
    }

    fn queue_status(&mut self, context: &RequestContext, message: &Message) -> Result<(), ErrorContent> {
        let request: TargetsRequest = read(message)?;
        let targets = self.hub_targets(request.targets)?;
        let mut content = Map::new();
        content.insert("status".into(), "ok".into());
        for (uuid, id) in targets {
            let Some(engine) = self.engines.get(&uuid) else { continue };
            let (queue, tasks) = self.requests.of_engine(engine.requests.iter());
            let status = match request.verbose {
                true => json!({"queue": queue, "completed": [], "tasks": tasks}),
                false => json!({"queue": queue.len(), "completed": engine.finished, "tasks": tasks.len()}),
            };
            content.insert(id.to_string(), status);
        }
        let unassigned: Value = match request.verbose {
            true => self.requests.unassigned().cloned().collect::<Vec<_>>().into(),
            false => self.requests.queued().into(),
        };
        content.insert("unassigned".into(), unassigned);
        self.reply(context.client.clone(), "queue_reply", &context.parent, &content);
        Ok(())
    }

    fn load(&mut self, context: &RequestContext, message: &Message) -> Result<(), ErrorContent> {
        let request: TargetsRequest = read(message)?;
        let mut content = Map::new();
        content.insert("status".into(), "ok".into());
        for (uuid, id) in self.hub_targets(request.targets)? {
            let load = self.engines.get(&uuid).map_or(0, |e| e.load());
            content.insert(id.to_string(), load.into());
        }
        self.reply(context.client.clone(), "load_reply", &context.parent, &content);
        Ok(())
    }

    fn purge_requests(&mut self, context: &RequestContext, message: &Message) -> Result<(), ErrorContent> {
        let content: Value = read(message)?;
        let mut purges = Vec::new();
        match content.get("msg_ids") {
            Some(Value::String(all)) if all == "all" => purges.push(Purge::AllRequests),
            Some(Value::Array(ids)) => {
                let ids: Vec<String> = ids.iter().filter_map(Value::as_str).map(str::to_string).collect();
                if let Some(pending) = ids.iter().find(|id| self.requests.is_open(id)) {
                    let error = ErrorContent::new("IndexError", format!("msg pending: '{pending}'"));
                    self.reply(context.client.clone(), "purge_reply", &context.parent, &error);
                    return Ok(());
                }
                purges.push(Purge::Requests(ids));
            }
            _ => {}
        }
        for id in content.get("engine_ids").and_then(Value::as_array).into_iter().flatten() {
            let engine = id.as_u64().and_then(|id| self.engines.uuid_of(EngineId(id as u32)));
            match engine {
                Some(uuid) => purges.push(Purge::RequestsOfEngine(uuid.clone())),
                None => {
                    let error = ErrorContent::new("IndexError", format!("No such engine: {id}"));
                    self.reply(context.client.clone(), "purge_reply", &context.parent, &error);
                    return Ok(());
                }
            }
        }
        for what in purges {
            self.record(Change::Purged { what });
        }
        self.reply(context.client.clone(), "purge_reply", &context.parent, &json!({"status": "ok"}));
        Ok(())
    }

    pub(super) fn requests_found(&mut self, client: Bytes, parent: Bytes, request: &str, found: Vec<FoundRequest>, missing: Vec<String>) {
        let context = RequestContext {
            client,
            parent,
            request: request.to_string(),
        };
        if !missing.is_empty() {
            let error = ErrorContent::new("KeyError", format!("'No such msg(s): {missing:?}'"));
            return self.answer(&context, &error);
        }
        let mut resubmitted = Map::new();
        for request in found {
            let old = request.msg_id.clone();
            let new = self.resubmit_request(context.client.clone(), request);
            self.record(Change::RequestResubmitted {
                msg_id: old.clone(),
                new_id: new.clone(),
            });
            resubmitted.insert(old, new.into());
        }
        self.answer(&context, &json!({"status": "ok", "resubmitted": resubmitted}));
    }
}
