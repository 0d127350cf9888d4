//! Administrative requests: stop or signal engines, stop the controller.
use super::Core;
use super::effect::Effect;
use super::outbox::RequestContext;
use crate::model::targets::Targets;
use crate::model::{EngineId, EngineUuid};
use crate::wire::content::client::{self, ok};
use crate::wire::content::engine::{self, Channel};
use crate::wire::content::error::ErrorContent;
use bytes::Bytes;
use std::time::Duration;

impl Core {
    pub(super) fn stop(&mut self, engines: bool) {
        if engines {
            let all: Vec<EngineUuid> = self.engines.iter().map(|(uuid, _)| uuid.clone()).collect();
            for engine in all {
                self.shut_down_engine(&engine, false);
            }
        }
        self.out.push(Effect::Stop {
            after: Duration::from_millis(300),
        });
    }

    pub(super) fn shut_down_engine(&mut self, engine: &EngineUuid, drain: bool) {
        let Some(native) = self.engines.change(engine, |e| {
            e.leave();
            e.is_native()
        }) else {
            return;
        };
        if native {
            self.out.send_to_engine(engine, engine::SHUTDOWN, &engine::Shutdown { drain });
        } else {
            self.send_to_stock_engine(engine, "shutdown_request", &serde_json::json!({"restart": false}));
        }
    }

    pub(super) fn stop_engines(&mut self, context: &RequestContext, request: &client::StopEnginesRequest) -> Result<(), ErrorContent> {
        let engines = self.uuids_of(&request.engines)?;
        for engine in &engines {
            self.shut_down_engine(engine, request.drain);
        }
        self.out.answer(context, &client::Done { status: ok() });
        Ok(())
    }

    /// Forwards a signal. It is not recorded: it applies only to tasks that run at this moment.
    pub(super) fn signal_engines(&mut self, context: &RequestContext, request: client::SignalEnginesRequest) -> Result<(), ErrorContent> {
        let ids: Vec<EngineId> = match request.targets {
            Targets::All => self.engines.iter().map(|(_, e)| e.id()).collect(),
            Targets::Some(ids) => ids,
        };
        for engine in &self.uuids_of(&ids)? {
            match self.engines.get(engine).is_some_and(|e| e.is_native()) {
                true => self
                    .out
                    .send_to_engine(engine, engine::SIGNAL, &engine::Signal { signal: request.signal }),
                false => self.send_to_stock_engine(engine, "signal_request", &serde_json::json!({"sig": request.signal})),
            }
        }
        let status = ok();
        self.out.answer(context, &client::SignalEnginesReply { status, engines: ids });
        Ok(())
    }

    fn uuids_of(&self, engines: &[EngineId]) -> Result<Vec<EngineUuid>, ErrorContent> {
        let find = |id: &EngineId| {
            let none =
                || ErrorContent::new("NoSuchEngine", format!("there is no engine {id}")).hint("`pcluster engines` lists the engines");
            self.engines.uuid_of(*id).cloned().ok_or_else(none)
        };
        engines.iter().map(find).collect()
    }

    /// Sends a control request to an ipengine as if from a client; its reply is discarded.
    fn send_to_stock_engine(&mut self, engine: &EngineUuid, kind: &str, content: &serde_json::Value) {
        let message = self.out.message(kind, None, content);
        self.out.push(Effect::ToEngine {
            engine: engine.clone(),
            native: false,
            channel: Channel::Control,
            client: Bytes::from_static(b"pcluster"),
            message,
        });
    }
}
