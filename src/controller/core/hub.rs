//! ipyparallel's hub requests, on the registration socket of clients.
use super::Core;
use super::effect::Effect;
use super::engines::ANNOUNCE_AGAIN;
use super::event::FoundRequest;
use super::outbox::{RequestContext, Timer};
use crate::model::change::{Change, Purge};
use crate::model::{EngineId, EngineUuid};
use crate::wire::content::error::ErrorContent;
use crate::wire::content::hub::{self, HubTarget, HubTargets, TargetsRequest};
use bytes::Bytes;
use serde_json::{Map, Value, json};

impl Core {
    pub(super) fn hub_connection(&mut self, context: &RequestContext) {
        let engines = self
            .engines
            .iter()
            .map(|(uuid, e)| (e.id().to_string(), uuid.to_string()))
            .collect();
        let status = "ok".into();
        self.out.answer(context, &hub::ConnectionReply { status, engines });
        for after in ANNOUNCE_AGAIN {
            self.out.set_timer(after, Timer::Announce(self.out.now().since_start));
        }
    }

    pub(super) fn hub_shutdown(&mut self, context: &RequestContext) {
        self.out.answer(context, &json!({"status": "ok"}));
        // Programs with an open client print tracebacks on this notice, so it is not sent on other kinds of stop.
        let message = self.out.message(hub::SHUTDOWN_NOTIFICATION, None, &json!({"status": "ok"}));
        self.out.push(Effect::Notify { message });
        // ipyparallel's client stops the engines itself, through the control channel.
        self.stop(false);
    }

    pub(super) fn dask_started(&mut self, client: Bytes, parent: Bytes, address: Result<Value, ErrorContent>) {
        let context = RequestContext {
            client,
            parent,
            request: hub::BECOME_DASK.into(),
        };
        match address {
            Ok(address) => self.out.answer(&context, &address),
            Err(error) => self.out.answer(&context, &error),
        }
    }

    fn hub_targets(&self, targets: Option<HubTargets>) -> Result<Vec<(EngineUuid, EngineId)>, ErrorContent> {
        let all = || self.engines.iter().map(|(uuid, e)| (uuid.clone(), e.id())).collect::<Vec<_>>();
        let named = match targets {
            None => return Ok(all()),
            Some(HubTargets::One(target)) => vec![target],
            Some(HubTargets::Many(targets)) => targets,
        };
        let find = |target: &HubTarget| match target {
            HubTarget::Id(id) => self.engines.uuid_of(EngineId(*id)).map(|uuid| (uuid.clone(), EngineId(*id))),
            HubTarget::Uuid(uuid) => {
                let uuid = EngineUuid::from(uuid.as_str());
                self.engines.get(&uuid).map(|e| (uuid.clone(), e.id()))
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

    pub(super) fn queue_status(&mut self, context: &RequestContext, request: TargetsRequest) -> Result<(), ErrorContent> {
        let targets = self.hub_targets(request.targets)?;
        let mut content = Map::new();
        content.insert("status".into(), "ok".into());
        for (uuid, id) in targets {
            let Some(engine) = self.engines.get(&uuid) else { continue };
            let (queue, tasks) = self.requests.of_engine(engine.requests());
            let status = match request.verbose {
                true => json!({"queue": queue, "completed": [], "tasks": tasks}),
                false => json!({"queue": queue.len(), "completed": engine.finished(), "tasks": tasks.len()}),
            };
            content.insert(id.to_string(), status);
        }
        let unassigned: Value = match request.verbose {
            true => self.requests.unassigned().cloned().collect::<Vec<_>>().into(),
            false => self.requests.queued().into(),
        };
        content.insert("unassigned".into(), unassigned);
        self.out.answer_as(context, "queue_reply", &content);
        Ok(())
    }

    pub(super) fn load(&mut self, context: &RequestContext, request: TargetsRequest) -> Result<(), ErrorContent> {
        let mut content = Map::new();
        content.insert("status".into(), "ok".into());
        for (uuid, id) in self.hub_targets(request.targets)? {
            let load = self.engines.get(&uuid).map_or(0, |e| e.load());
            content.insert(id.to_string(), load.into());
        }
        self.out.answer_as(context, "load_reply", &content);
        Ok(())
    }

    pub(super) fn purge_requests(&mut self, context: &RequestContext, content: &Value) {
        let mut purges = Vec::new();
        match content.get("msg_ids") {
            Some(Value::String(all)) if all == "all" => purges.push(Purge::AllRequests),
            Some(Value::Array(ids)) => {
                let ids: Vec<String> = ids.iter().filter_map(Value::as_str).map(str::to_string).collect();
                if let Some(pending) = ids.iter().find(|id| self.requests.is_open(id)) {
                    let error = ErrorContent::new("IndexError", format!("msg pending: '{pending}'"));
                    return self.out.answer_as(context, "purge_reply", &error);
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
                    return self.out.answer_as(context, "purge_reply", &error);
                }
            }
        }
        for what in purges {
            self.out.record(Change::Purged { what });
        }
        self.out.answer_as(context, "purge_reply", &json!({"status": "ok"}));
    }

    pub(super) fn requests_found(&mut self, client: Bytes, parent: Bytes, request: &str, found: Vec<FoundRequest>, missing: Vec<String>) {
        let context = RequestContext {
            client,
            parent,
            request: request.to_string(),
        };
        if !missing.is_empty() {
            let error = ErrorContent::new("KeyError", format!("'No such msg(s): {missing:?}'"));
            return self.out.answer(&context, &error);
        }
        let mut resubmitted = Map::new();
        for request in found {
            let old = request.msg_id.clone();
            let new = self.resubmit_request(context.client.clone(), request);
            self.out.record(Change::RequestResubmitted {
                msg_id: old.clone(),
                new_id: new.clone(),
            });
            resubmitted.insert(old, new.into());
        }
        self.out.answer(&context, &json!({"status": "ok", "resubmitted": resubmitted}));
    }
}
