//! Every request that clients and engines may send: decoded and validated here, then passed on as a typed value.
//!
//! The requests of ipyparallel's schedulers ([`super::requests`]) are forwarded undecoded.
use super::effect::{Effect, QueryKind};
use super::outbox::RequestContext;
use super::{Core, untrusted};
use crate::model::change::Change;
use crate::model::{EngineId, EngineUuid, MapId};
use crate::wire::Message;
use crate::wire::content::client::{self, ok};
use crate::wire::content::engine::{self, Channel};
use crate::wire::content::error::ErrorContent;
use crate::wire::content::hub;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::json;

/// Decodes a client's request.
fn read<T: DeserializeOwned>(message: &Message) -> Result<T, ErrorContent> {
    message
        .content()
        .map_err(|e| ErrorContent::new("BadRequest", format!("malformed {}: {e}", message.msg_type())))
}

/// Decodes a message of an engine; a malformed one is logged and ignored.
fn parse<T: DeserializeOwned>(message: &Message) -> Option<T> {
    let content = message.content();
    content
        .inspect_err(|error| tracing::warn!(kind = message.msg_type(), %error, "malformed message from an engine"))
        .ok()
}

impl Core {
    // ---- clients

    /// A request on the registration socket.
    pub(super) fn client_request(&mut self, message: &Message) {
        let context = RequestContext::of(message);
        if let Err(error) = self.route_client_request(&context, message) {
            self.out.answer(&context, &error);
        }
    }

    fn route_client_request(&mut self, context: &RequestContext, message: &Message) -> Result<(), ErrorContent> {
        match message.msg_type() {
            client::HELLO => self.hello(context, &read(message)?),
            client::MAP => return self.map_request(context, message, read(message)?),
            client::INPUTS => return self.inputs_request(context, message, &read(message)?),
            client::WATCH => return self.watch_request(context, &read(message)?),
            client::MAPS => {
                let client::MapsRequest { maps, since, label, limit } = read(message)?;
                self.out.query(context, QueryKind::Maps { maps, since, label, limit });
            }
            client::TASKS => {
                let query = Box::new(read::<client::TasksRequest>(message)?.query);
                self.out.query(context, QueryKind::Tasks { query });
            }
            client::OUTPUT => self.out.query(context, QueryKind::Output(read(message)?)),
            client::DETAILS => {
                let client::DetailsRequest { task, files } = read(message)?;
                self.out.query(context, QueryKind::Details { task, files });
            }
            client::EXPLAIN => self.explain(context, read(message)?),
            client::CANCEL => {
                let reply = self.cancel(&read::<client::SelectionRequest>(message)?.selection);
                self.out.answer(context, &reply);
            }
            client::PRIORITY => {
                let client::PriorityRequest { map, priority } = read(message)?;
                return self.set_priority(context, map, priority);
            }
            client::RESUBMIT => return self.resubmit(context, message, read(message)?),
            client::STATUS => self.status(context),
            client::WORK => self.waiting_work(context),
            client::STOP => {
                let request: client::StopRequest = read(message)?;
                self.out.answer(context, &client::Done { status: ok() });
                self.stop(request.engines);
            }
            client::STOP_ENGINES => return self.stop_engines(context, &read(message)?),
            client::JOBS => {
                let client::JobsRequest { jobs, list, gone_since } = read(message)?;
                self.note_jobs(&jobs);
                if !jobs.is_empty() {
                    self.out.record(Change::JobsSeen { jobs });
                }
                self.out.query(context, QueryKind::Jobs { list, gone_since });
            }
            client::SIGNAL_ENGINES => return self.signal_engines(context, read(message)?),
            client::PURGE => return self.purge_maps(context, read(message)?),
            _ => {
                if let Err(error) = self.route_hub_request(context, message) {
                    self.out.answer_as(context, "hub_error", &error);
                }
            }
        }
        Ok(())
    }

    /// The records' answer about a `map_request`, which goes on here.
    pub(super) fn map_found(&mut self, message: &Message, map: Option<MapId>, bundle: Option<Bytes>) {
        let context = RequestContext::of(message);
        let request = read(message);
        if let Err(error) = request.and_then(|request| self.map_request_found(&context, message, request, map, bundle)) {
            self.out.answer(&context, &error);
        }
    }

    /// ipyparallel's hub requests.
    fn route_hub_request(&mut self, context: &RequestContext, message: &Message) -> Result<(), ErrorContent> {
        match message.msg_type() {
            hub::CONNECTION => self.hub_connection(context),
            "queue_request" => return self.queue_status(context, read(message)?),
            "load_request" => return self.load(context, read(message)?),
            "result_request" => {
                let hub::ResultRequest { msg_ids, status_only } = read(message)?;
                let pending = msg_ids.iter().filter(|id| self.requests.is_open(id)).cloned().collect();
                let kind = QueryKind::Results {
                    msg_ids,
                    pending,
                    status_only,
                };
                self.out.query(context, kind);
            }
            "history_request" => self.out.query(context, QueryKind::History),
            "db_request" => {
                let query = message.content_json.clone();
                self.out.query(context, QueryKind::Records { query });
            }
            "purge_request" => self.purge_requests(context, &read(message)?),
            "resubmit_request" => {
                let msg_ids = read::<hub::ResultRequest>(message)?.msg_ids;
                self.out.query(context, QueryKind::ResubmitRequests { msg_ids });
            }
            "shutdown_request" => self.hub_shutdown(context),
            hub::BECOME_DASK => {
                let request: hub::BecomeDask = read(message)?;
                self.out.push(Effect::StartDask {
                    client: context.client.clone(),
                    parent: context.parent.clone(),
                    arguments: request.scheduler_args,
                });
            }
            hub::STOP_DASK => {
                self.out.push(Effect::StopDask);
                self.out.answer(context, &json!({"status": "ok"}));
            }
            other => return Err(ErrorContent::new("KeyError", format!("'Bad Message Type: {other}'"))),
        }
        Ok(())
    }

    // ---- engines

    pub(super) fn engine_message(&mut self, engine: &EngineUuid, native: bool, channel: Channel, client: Bytes, message: Message) {
        if native && let Some(why) = self.engines.refusal(engine).cloned() {
            if message.msg_type() == engine::REGISTER {
                self.send_refusal(engine, &why);
            }
            return;
        }
        if channel == Channel::Native && message.msg_type() == engine::REGISTER {
            return match untrusted::registration(engine, &message) {
                Ok(register) => self.register_native(engine, register),
                Err(why) => self.send_refusal(engine, &why.to_string()),
            };
        }
        let Some(known) = self.engines.get(engine) else {
            match channel {
                _ if native => self.out.send_to_engine(engine, engine::UNKNOWN_ENGINE, &json!({})),
                Channel::Native | Channel::Iopub => {}
                // An `ipengine` has several connections: its last messages may arrive after the notice that it left.
                _ => self.reply_of_engine(engine, channel, client, message),
            }
            return;
        };
        if native && known.is_uncertain() && message.msg_type() == engine::HEARTBEAT {
            self.out.send_to_engine(engine, engine::UNKNOWN_ENGINE, &json!({}));
        }
        self.note_activity(engine);
        match channel {
            Channel::Native => self.native_message(engine, &message),
            Channel::Iopub => self.iopub(engine, client, message),
            _ => self.reply_of_engine(engine, channel, client, message),
        }
    }

    fn native_message(&mut self, engine: &EngineUuid, message: &Message) {
        match message.msg_type() {
            engine::RESULTS => match untrusted::results(message, self.out.now()) {
                Ok(results) => self.results(engine, results),
                Err(why) => self.refuse_engine(engine, &why.to_string()),
            },
            engine::PROGRESS => {
                if let Some(progress) = parse(message) {
                    self.progress(engine, progress, &message.buffers);
                }
            }
            engine::VALUES_REQUEST => {
                if let Some(request) = parse(message) {
                    self.values_requested(engine, request);
                }
            }
            engine::RETURNED => {
                if let Some(returned) = parse(message) {
                    self.engine_returned(engine, &returned);
                }
            }
            engine::HEARTBEAT => self.heartbeat(engine),
            engine::AVAILABILITY => {
                if let Some(engine::Availability { reason }) = parse(message) {
                    self.availability(engine, reason.as_deref().map(untrusted::reason));
                }
            }
            engine::LEAVING => {
                let reason = untrusted::reason(&parse::<engine::Leaving>(message).map(|l| l.reason).unwrap_or_default());
                self.engine_leaving(engine, &reason);
            }
            engine::UNREGISTER => {
                let reason = untrusted::reason(&parse::<engine::Unregister>(message).map(|u| u.reason).unwrap_or_default());
                self.engine_gone(engine, &reason);
            }
            other => tracing::warn!(kind = other, %engine, "unknown message type from an engine"),
        }
    }

    /// A message of an `ipengine` on the engines' registration socket.
    pub(super) fn registrant_message(&mut self, identity: Bytes, message: &Message) {
        match message.msg_type() {
            hub::REGISTRATION => {
                if let Some(registration) = parse(message) {
                    self.register_stock(identity, message, &registration);
                }
            }
            hub::UNREGISTRATION => {
                if let Some(hub::Unregistration { id }) = parse(message)
                    && let Some(uuid) = self.engines.uuid_of(EngineId(id)).cloned()
                {
                    self.engine_gone(&uuid, "it unregistered");
                }
            }
            other => {
                let content = ErrorContent::new("KeyError", format!("'Bad Message Type: {other}'"));
                let message = self.out.message("hub_error", Some(&message.header_json), &content);
                self.out.push(Effect::ToRegistrant { identity, message });
            }
        }
    }
}
