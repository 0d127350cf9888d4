//! Watches: clients wait for the results of a map.
use super::Core;
use super::effect::QueryKind;
use super::maps::Watch;
use super::outbox::{RequestContext, Timer};
use crate::model::{EngineId, MapId};
use crate::wire::content::client;
use crate::wire::content::error::ErrorContent;
use std::time::Duration;

/// The maximum time that a watch waits for an answer.
const MAX_WATCH: Duration = Duration::from_secs(60);

impl Core {
    pub(super) fn watch_request(&mut self, context: &RequestContext, request: &client::WatchRequest) -> Result<(), ErrorContent> {
        let id = request.map;
        if !self.maps.is_open(id) && self.maps.has_failed(id).is_none() {
            return Err(ErrorContent::new("NoSuchMap", format!("there is no map {id}")).hint("`pcluster results` lists the maps"));
        }
        self.watch(context, request, None);
        self.after_changes(id);
        Ok(())
    }

    pub(super) fn watch(&mut self, context: &RequestContext, request: &client::WatchRequest, begun: Option<Vec<EngineId>>) {
        let id = request.map;
        let wait = Duration::from_millis(request.wait_ms).min(MAX_WATCH);
        let until = self.out.now().since_start + wait;
        if !self.maps.is_open(id) {
            self.retention.note_reader(id, self.out.now());
            let kind = QueryKind::Watch {
                map: id,
                from: request.from,
                limit: request.limit,
                without_inputs: request.without_inputs,
                complete: true,
                // No task waits for an engine.
                engines: self.engines.free(true),
                most: u64::MAX,
                begun,
            };
            return self.out.query(context, kind);
        }
        let watch = Watch {
            client: context.client.clone(),
            parent: context.parent.clone(),
            from: request.from,
            limit: request.limit,
            without_inputs: request.without_inputs,
            until,
            done: request.done,
            begun,
        };
        self.maps.change(id, |map| map.watch(watch));
        self.out.set_timer(wait, Timer::Watches(id));
    }

    /// Answers the watches whose results are available or whose time is up.
    pub(super) fn answer_watches(&mut self, id: MapId) {
        let now = self.out.now().since_start;
        let due = self.maps.change(id, |map| map.take_due_watches(now)).unwrap_or_default();
        let Some(map) = self.maps.get(id) else { return };
        let engines = self.engines.free(map.is_command());
        for watch in due {
            let context = RequestContext {
                client: watch.client,
                parent: watch.parent,
                request: if watch.begun.is_some() { client::MAP } else { client::WATCH }.into(),
            };
            let ready = map.counts().done().saturating_sub(u64::from(watch.from));
            let kind = QueryKind::Watch {
                map: id,
                from: watch.from,
                limit: watch.limit,
                without_inputs: watch.without_inputs,
                complete: map.is_complete(),
                engines,
                most: if map.is_large() {
                    u64::MAX
                } else {
                    ready.min(u64::from(watch.limit))
                },
                begun: watch.begun,
            };
            self.out.query(&context, kind);
        }
    }
}
