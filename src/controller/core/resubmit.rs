//! Finished maps: run again, or deleted on request.
use super::Core;
use super::effect::QueryKind;
use super::event::FoundMap;
use super::maps::Map;
use super::outbox::RequestContext;
use crate::model::TaskId;
use crate::model::change::{Change, Purge};
use crate::model::definition::{MapDefinition, Work};
use crate::wire::Message;
use crate::wire::content::client::{self, ok};
use crate::wire::content::error::ErrorContent;
use bytes::Bytes;

impl Core {
    pub(super) fn purge_maps(&mut self, context: &RequestContext, request: client::PurgeRequest) -> Result<(), ErrorContent> {
        if let Some(open) = request
            .maps
            .iter()
            .find(|id| self.maps.is_open(**id) || self.requests.is_open_map(**id))
        {
            return Err(ErrorContent::new("MapOpen", format!("map {open} is not finished")).hint(format!(
                "cancel it first: `pcluster cancel {open}`; or wait: `pcluster wait {open}`"
            )));
        }
        for map in request.maps {
            self.maps.forget(map);
            self.out.record(Change::Purged { what: Purge::Map(map) });
        }
        self.out.answer(context, &client::Done { status: ok() });
        Ok(())
    }

    pub(super) fn resubmit(
        &mut self,
        context: &RequestContext,
        message: &Message,
        request: client::ResubmitRequest,
    ) -> Result<(), ErrorContent> {
        let client::ResubmitRequest { selection, mut definition } = request;
        if let Some(definition) = &mut definition
            && self.bundles.add_content(definition, message.buffers.first().cloned())?.is_some()
        {
            return Err(ErrorContent::new("ValueError", "the request lacks the new code"));
        }
        let definition = definition.map(Box::new);
        self.out.query(context, QueryKind::Resubmit { selection, definition });
        Ok(())
    }

    /// Replaces the code of a finished map before it is resubmitted.
    fn replace_code(&mut self, found: &mut FoundMap, definition: MapDefinition) -> Result<(), ErrorContent> {
        let id = found.map;
        let hash = |definition: &MapDefinition| definition.bundle().map(|named| named.hash.clone());
        let now = self.maps.get(id).map(|map| hash(map.definition()));
        if now.as_ref() == Some(&hash(&definition)) {
            return Ok(());
        }
        if now.is_some() {
            return Err(
                ErrorContent::new("MapOpen", format!("map {id} is not finished; its code cannot be replaced"))
                    .hint(format!("wait for it: `pcluster wait {id}`; or `--code submitted`")),
            );
        }
        found.definition.work = definition.work;
        self.out.record(Change::CodeReplaced {
            map: id,
            definition: Box::new(found.definition.clone()),
        });
        Ok(())
    }

    /// Resubmits the finished tasks that the records returned.
    pub(super) fn resubmit_found(
        &mut self,
        client: Bytes,
        parent: Bytes,
        request: &str,
        selection: client::Selection,
        mut definition: Option<Box<MapDefinition>>,
        found: Vec<FoundMap>,
    ) {
        let context = RequestContext {
            client,
            parent,
            request: request.to_string(),
        };
        let asked_for = selection.tasks.len() as u64;
        let (mut changed, mut unchanged) = (0u64, 0u64);
        let mut maps = Vec::new();
        for mut map in found {
            let id = map.map;
            if matches!(map.definition.work, Work::Client { .. }) {
                let error = ErrorContent::new("NotOurs", format!("submission {id} holds requests of an ipyparallel client"))
                    .hint("resubmit them from there: `client.resubmit(msg_ids)`");
                return self.out.answer(&context, &error);
            }
            if let Some(definition) = definition.take()
                && let Err(error) = self.replace_code(&mut map, *definition)
            {
                return self.out.answer(&context, &error);
            }
            if let Err(error) = self.check_resources(&map.definition) {
                return self.out.answer(&context, &error);
            }
            maps.push(id);
            let reopened = !self.maps.is_open(id);
            if reopened && let Err(error) = self.reopen(&map) {
                return self.out.answer(&context, &error);
            }
            for task in map.tasks {
                let task_id = TaskId::new(id, task.index);
                match self.maps.change(id, |map| map.rerun(task)).flatten() {
                    Some(run) => {
                        changed += 1;
                        self.out.record(Change::TaskResubmitted { task: task_id, run });
                    }
                    None => unchanged += 1,
                }
            }
            self.after_changes(id);
        }
        unchanged += asked_for.saturating_sub(changed + unchanged);
        self.out.answer(
            &context,
            &client::SelectionReply {
                status: ok(),
                changed,
                unchanged,
                maps,
            },
        );
    }

    /// Reopens a finished map.
    fn reopen(&mut self, found: &FoundMap) -> Result<(), ErrorContent> {
        let targets = match &found.definition.options.targets {
            None => None,
            Some(targets) => Some(self.native_targets(targets)?),
        };
        let definition = self.bundles.share_in(found.definition.clone());
        let map = Map::new(definition, found.key.clone(), targets).restored(true, false, found.counts);
        self.maps.insert(found.map, map);
        self.out.record(Change::MapCompleted { map: found.map, at: None });
        Ok(())
    }
}
