//! Requests of pcluster's own clients ([`crate::wire::content::client`]). Other requests are ipyparallel's: [`super::hub`].
use super::Core;
use super::effect::QueryKind;
use super::event::FoundMap;
use super::maps::{Map, Returned, Tries, Watch};
use super::outbox::{RequestContext, Timer};
use crate::model::change::{Change, Purge};
use crate::model::definition::{MapDefinition, Work};
use crate::model::targets::Targets;
use crate::model::task::TaskState;
use crate::model::{EngineId, EngineUuid, MapId, PROTOCOL_VERSION, TaskId, VERSION};
use crate::wire::Message;
use crate::wire::content::client::{self, ok};
use crate::wire::content::error::ErrorContent;
use bytes::Bytes;
use std::time::Duration;

/// The maximum time that a watch waits for an answer.
const MAX_WATCH: Duration = Duration::from_secs(60);

impl Core {
    pub(super) fn hello(&mut self, context: &RequestContext, hello: &client::Hello) {
        let mut reply = serde_json::to_value(client::HelloReply {
            status: ok(),
            protocol: PROTOCOL_VERSION,
            version: VERSION.into(),
            cluster_id: self.facts.cluster_id.clone(),
            pid: self.facts.pid,
            host: self.facts.host.clone(),
            started: self.facts.started,
            packs: true,
            max_message_bytes: self.max_message_bytes(),
        })
        .unwrap_or_default();
        if hello.protocol != PROTOCOL_VERSION {
            reply["status"] = "error".into();
            reply["ename"] = "VersionMismatch".into();
            reply["evalue"] = format!(
                "this is pcluster {} (protocol {}), the running controller is pcluster {VERSION} (protocol {PROTOCOL_VERSION})",
                hello.version, hello.protocol
            )
            .into();
        }
        self.out.answer(context, &reply);
    }

    pub(super) fn map_request(
        &mut self,
        context: &RequestContext,
        message: &Message,
        mut request: client::MapRequest,
    ) -> Result<(), ErrorContent> {
        let again = message.metadata::<client::Again>().unwrap_or_default().again;
        if let Some(id) = self.keys.get(&request.key).copied() {
            return self.map_known(context, message, request, id);
        }
        let bundle = self.take_bundle(message, &mut request)?;
        // A repeated request with inputs may belong to a map that has finished meanwhile.
        if bundle.is_some() || (request.whole && again) {
            let (key, request) = (request.key, Box::new(message.clone()));
            self.out.query(context, QueryKind::MapOf { key, request, bundle });
            return Ok(());
        }
        self.map_new(context, message, request)
    }

    pub(super) fn map_new(&mut self, context: &RequestContext, message: &Message, request: client::MapRequest) -> Result<(), ErrorContent> {
        let lines = request.whole.then(|| message.buffers.first().cloned().unwrap_or_default());
        let inputs: Vec<Bytes> = lines.iter().flat_map(split_lines).collect();
        check_json(&inputs, 0)?;
        let client::MapRequest {
            key, definition, watch, ..
        } = request;
        if let Some(targets) = &definition.options.targets {
            check_fit(inputs.len(), self.native_targets(targets)?.len())?;
        }
        let id = self.add_map(key, definition)?;
        match lines {
            Some(lines) => {
                self.add_inputs(id, lines, inputs);
                self.close_map(id);
                self.note_runnable(id);
            }
            None => self.expect_inputs(id),
        }
        self.answer_map(context, id, watch);
        self.abort_if_hopeless(id);
        self.after_changes(id);
        Ok(())
    }

    pub(super) fn map_known(
        &mut self,
        context: &RequestContext,
        message: &Message,
        request: client::MapRequest,
        id: MapId,
    ) -> Result<(), ErrorContent> {
        if let (true, Some(map)) = (request.whole, self.maps.get(&id))
            && !map.closed
        {
            // The map was created with the same key, but its inputs are incomplete.
            let known = map.counts.total as usize;
            let lines = message.buffers.first().cloned().unwrap_or_default();
            let inputs: Vec<Bytes> = split_lines(&lines).skip(known).collect();
            check_json(&inputs, known)?;
            self.add_inputs(id, after_lines(&lines, known), inputs);
            self.close_map(id);
            self.note_runnable(id);
        }
        self.answer_map(context, id, request.watch);
        self.abort_if_hopeless(id);
        self.after_changes(id);
        Ok(())
    }

    /// Answers immediately, or with the map's first result.
    fn answer_map(&mut self, context: &RequestContext, id: MapId, watch: Option<client::FirstWatch>) {
        let targets = self.maps.get(&id).and_then(|m| m.targets.as_ref());
        let engines: Vec<EngineId> = targets
            .into_iter()
            .flatten()
            .filter_map(|uuid| self.engines.get(uuid))
            .map(|e| e.id())
            .collect();
        match watch {
            Some(watch) => {
                let request = client::WatchRequest {
                    map: id,
                    from: 0,
                    limit: watch.limit,
                    wait_ms: watch.wait_ms,
                    done: None,
                };
                self.watch(context, &request, Some(engines));
            }
            None => self.out.answer(
                context,
                &client::MapReply {
                    status: ok(),
                    map: id,
                    engines,
                    update: None,
                },
            ),
        }
    }

    fn add_map(&mut self, key: String, definition: MapDefinition) -> Result<MapId, ErrorContent> {
        if matches!(definition.work, Work::Client { .. }) {
            return Err(ErrorContent::new("ValueError", "a submission of kind `client` cannot be submitted"));
        }
        let waiting_for = match definition.options.after {
            None => None,
            Some(other) => self.may_follow(other)?,
        };
        let targets = match &definition.options.targets {
            None => None,
            Some(targets) => Some(self.native_targets(targets)?),
        };
        let id = MapId(self.next_map);
        self.next_map += 1;
        let mut map = Map::new(definition.clone(), key.clone());
        map.waiting_for = waiting_for;
        map.targets = targets;
        self.maps.insert(id, map);
        self.follow(id, waiting_for);
        self.keys.insert(key.clone(), id);
        let submitted = self.out.now().unix;
        self.out.record(Change::MapAdded {
            map: id,
            definition: Box::new(definition),
            client: key,
            submitted,
        });
        Ok(id)
    }

    /// Returns the map to wait for; None if it has already succeeded.
    fn may_follow(&self, other: MapId) -> Result<Option<MapId>, ErrorContent> {
        match self.finished.get(&other) {
            Some(false) => Ok(None),
            Some(true) => Err(
                ErrorContent::new("DependencyFailed", format!("map {other} finished with failed tasks")).hint(format!(
                    "see them with `pcluster results {other} --failed`, run them again with `pcluster resubmit {other} --failed`"
                )),
            ),
            None if self.maps.contains_key(&other) => Ok(Some(other)),
            None => Err(ErrorContent::new("NoSuchMap", format!("no map {other} to follow")).hint("`pcluster results` lists the maps")),
        }
    }

    fn native_targets(&self, targets: &Targets) -> Result<Vec<EngineUuid>, ErrorContent> {
        let registered: Vec<String> = self
            .engines
            .iter()
            .filter(|(_, e)| e.is_native())
            .map(|(_, e)| e.id().to_string())
            .collect();
        let list = if registered.is_empty() {
            "none is registered".to_string()
        } else {
            format!("registered: {}", registered.join(","))
        };
        let no_such = |what: String| ErrorContent::new("NoSuchEngine", what).hint("`pcluster engines` lists the engines");
        match targets {
            Targets::All if registered.is_empty() => Err(no_such("no pcluster engine is registered".into())),
            Targets::All => Ok(self
                .engines
                .iter()
                .filter(|(_, e)| e.is_native())
                .map(|(uuid, _)| uuid.clone())
                .collect()),
            Targets::Some(ids) => ids
                .iter()
                .map(|id| match self.engines.by_id(*id) {
                    Some(engine) if engine.is_native() => Ok(engine.facts().uuid.clone()),
                    Some(_) => Err(no_such(format!(
                        "engine {id} is an ipengine: it runs the requests of ipyparallel clients only"
                    ))),
                    None => Err(no_such(format!("there is no engine {id} ({list})"))),
                })
                .collect(),
        }
    }

    pub(super) fn inputs_request(
        &mut self,
        context: &RequestContext,
        message: &Message,
        request: &client::InputsRequest,
    ) -> Result<(), ErrorContent> {
        let id = request.map;
        let lines = message.buffers.first().cloned().unwrap_or_default();
        self.check_abandoned(id)?;
        self.note_input(id);
        let Some(map) = self.maps.get_mut(&id) else {
            return Err(ErrorContent::new(
                "NoSuchMap",
                format!("map {id} accepts no inputs: it has finished (its client may have been silent for too long) or does not exist"),
            ));
        };
        let total = map.counts.total as u32;
        if request.first > total {
            // An earlier message was lost: report the number of received inputs, and the client resends the rest.
            self.out.answer(context, &client::InputsReply { status: ok(), total });
            return Ok(());
        }
        let known = (total - request.first) as usize;
        let inputs: Vec<Bytes> = split_lines(&lines).skip(known).collect();
        check_json(&inputs, total as usize)?;
        if !inputs.is_empty() && map.closed {
            return Err(ErrorContent::new(
                "MapClosed",
                format!("map {id} was cancelled or has all its inputs"),
            ));
        }
        if let Some(why) = &request.abandoned {
            self.out.answer(context, &client::InputsReply { status: ok(), total });
            self.abandon(id, "Abandoned", why);
            return Ok(());
        }
        if let Some(targets) = &map.targets {
            check_fit(total as usize + inputs.len(), targets.len())?;
        }
        let count = inputs.len() as u32;
        self.add_inputs(id, after_lines(&lines, known), inputs);
        if request.last {
            self.close_map(id);
        }
        self.note_runnable(id);
        self.out.answer(
            context,
            &client::InputsReply {
                status: ok(),
                total: total + count,
            },
        );
        self.abort_if_hopeless(id);
        self.after_changes(id);
        Ok(())
    }

    /// `lines` holds the same inputs, one per line.
    fn add_inputs(&mut self, id: MapId, lines: Bytes, inputs: Vec<Bytes>) {
        let Some(map) = self.maps.get_mut(&id).filter(|_| !inputs.is_empty()) else {
            return;
        };
        let first = map.counts.total as u32;
        map.push(lines, inputs.len() as u32);
        let state = if map.waiting_for.is_some() {
            TaskState::Waiting
        } else {
            TaskState::Ready
        };
        let submitted = self.out.now().unix;
        self.out.record(Change::TasksAdded {
            map: id,
            first,
            inputs,
            state,
            submitted,
        });
    }

    fn close_map(&mut self, id: MapId) {
        let Some(map) = self.maps.get_mut(&id) else { return };
        if !std::mem::replace(&mut map.closed, true) {
            let total = map.counts.total as u32;
            self.out.record(Change::MapClosed { map: id, total });
        }
    }

    pub(super) fn watch_request(&mut self, context: &RequestContext, request: &client::WatchRequest) -> Result<(), ErrorContent> {
        let id = request.map;
        if !self.maps.contains_key(&id) && !self.finished.contains_key(&id) {
            return Err(ErrorContent::new("NoSuchMap", format!("there is no map {id}")).hint("`pcluster results` lists the maps"));
        }
        self.watch(context, request, None);
        self.after_changes(id);
        Ok(())
    }

    fn watch(&mut self, context: &RequestContext, request: &client::WatchRequest, begun: Option<Vec<EngineId>>) {
        let id = request.map;
        let wait = Duration::from_millis(request.wait_ms).min(MAX_WATCH);
        let until = self.out.now().since_start + wait;
        let Some(map) = self.maps.get_mut(&id) else {
            // The map is complete: no task waits for an engine.
            let engines = self.engines.free(true);
            self.note_reader(id);
            self.out.query(
                context,
                QueryKind::Watch {
                    map: id,
                    from: request.from,
                    limit: request.limit,
                    complete: true,
                    engines,
                    most: u64::MAX,
                    begun,
                },
            );
            return;
        };
        // A client has one watch on a map; a repeated request replaces the lost one.
        map.watches.retain(|w| w.client != context.client);
        map.watches.push(Watch {
            client: context.client.clone(),
            parent: context.parent.clone(),
            from: request.from,
            limit: request.limit,
            until,
            done: request.done,
            begun,
        });
        self.out.set_timer(wait, Timer::Watches(id));
    }

    /// Answers the watches whose results are available or whose time is up.
    pub(super) fn answer_watches(&mut self, id: MapId) {
        let now = self.out.now().since_start;
        let Some(map) = self.maps.get_mut(&id) else { return };
        let engines = self.engines.free(map.is_command());
        let complete = map.is_complete();
        let done = map.counts.done();
        let total = map.counts.total;
        let (due, waiting): (Vec<Watch>, Vec<Watch>) = std::mem::take(&mut map.watches).into_iter().partition(|w| {
            let result = w.limit > 0 && u64::from(w.from) < total && !map.is_open(w.from);
            complete || w.until <= now || result || w.done.is_some_and(|wanted| done >= wanted)
        });
        map.watches = waiting;
        let large = map.large;
        if !due.is_empty() {
            map.answered = now;
        }
        for watch in due {
            let context = RequestContext {
                client: watch.client,
                parent: watch.parent,
                request: if watch.begun.is_some() { client::MAP } else { client::WATCH }.into(),
            };
            self.out.query(
                &context,
                QueryKind::Watch {
                    map: id,
                    from: watch.from,
                    limit: watch.limit,
                    complete,
                    engines,
                    most: match large {
                        false => done.saturating_sub(u64::from(watch.from)).min(u64::from(watch.limit)),
                        true => u64::MAX,
                    },
                    begun: watch.begun,
                },
            );
        }
    }

    /// Describes maps whose tasks wait because every engine's job ends before their timeout.
    fn maps_without_time(&self) -> Vec<String> {
        let waits = |id: &&MapId| {
            let Some(map) = self.maps.get(id).filter(|map| map.targets.is_none()) else {
                return false;
            };
            let limit = map.definition.options.timeout_s;
            let is_command = map.is_command();
            let has_time = |e: &super::engines::Engine| e.has_time_for(limit, self.out.now().unix);
            self.engines.least_loaded(is_command).is_some() && self.engines.least_loaded_of(is_command, has_time).is_none()
        };
        let maps = self.runnable.iter().filter(waits);
        maps.map(|id| format!("map {id} waits: every engine's job ends before its tasks could time out (--timeout)"))
            .collect()
    }

    /// Describes requests of ipyparallel's clients that wait because no engine has a working Python.
    fn requests_without_python(&self) -> Option<String> {
        let waiting = self.requests.queued();
        let has_unavailable = self.engines.iter().any(|(_, e)| e.is_connected() && e.is_unavailable());
        let waits = waiting > 0 && has_unavailable && self.engines.by_load().next().is_none();
        waits
            .then(|| format!("requests of ipyparallel's clients wait ({waiting}): no engine has a working Python (see `pcluster engines`)"))
    }

    pub(super) fn status(&mut self, context: &RequestContext) {
        let engines = self.engines.iter().map(|(_, e)| e.status()).collect();
        let begun: usize = self.engines.iter().filter(|(_, e)| e.load() > 0).count();
        let in_flight: usize = self.engines.iter().map(|(_, e)| e.load() as usize).sum();
        let ready: usize = self.maps.values().map(|m| m.ready()).sum::<usize>() + self.requests.queued();
        let reply = client::StatusReply {
            status: ok(),
            version: VERSION.into(),
            pid: self.facts.pid,
            host: self.facts.host.clone(),
            cluster_id: self.facts.cluster_id.clone(),
            started: self.facts.started,
            engines,
            open_maps: self.maps.len() as u64,
            queued: (ready + in_flight - begun) as u64,
            running: begun as u64,
            finished: self.finished_tasks,
            disconnected_peers: self.cut_off,
            notes: self.maps_without_time().into_iter().chain(self.requests_without_python()).collect(),
        };
        self.out.answer(context, &reply);
    }

    pub(super) fn purge_maps(&mut self, context: &RequestContext, request: client::PurgeRequest) -> Result<(), ErrorContent> {
        if let Some(open) = request
            .maps
            .iter()
            .find(|id| self.maps.contains_key(id) || self.requests.is_open_map(**id))
        {
            return Err(ErrorContent::new("MapOpen", format!("map {open} is not finished")).hint(format!(
                "cancel it first: `pcluster cancel {open}`; or wait: `pcluster wait {open}`"
            )));
        }
        for map in request.maps {
            self.finished.remove(&map);
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
            && self.add_content(definition, message.buffers.first().cloned())?.is_some()
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
        let now = self.maps.get(&id).map(|map| hash(&map.definition));
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
            maps.push(id);
            let reopened = !self.maps.contains_key(&id);
            if reopened && let Err(error) = self.reopen(&map) {
                return self.out.answer(&context, &error);
            }
            for task in map.tasks {
                let Some(open) = self.maps.get_mut(&id) else { break };
                if open.is_open(task.index) {
                    unchanged += 1;
                    continue;
                }
                changed += 1;
                let run = task.run + 1;
                let engine = open.targets.as_ref().and_then(|t| t.get(task.index as usize).cloned());
                open.returned.insert(
                    task.index,
                    Returned {
                        run,
                        input: task.input,
                        tries: Tries::default(),
                        engine,
                    },
                );
                if let Some(counter) = open.counts.done_counter(task.state) {
                    *counter = counter.saturating_sub(1);
                }
                self.out.record(Change::TaskResubmitted {
                    task: TaskId::new(id, task.index),
                    run,
                });
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
        let definition = self.with_shared_bundle(found.definition.clone());
        let mut map = Map::new(definition, found.key.clone());
        if let Some(targets) = &found.definition.options.targets {
            map.targets = Some(self.native_targets(targets)?);
        }
        map.closed = true;
        map.counts = found.counts;
        self.maps.insert(found.map, map);
        self.keys.insert(found.key.clone(), found.map);
        self.finished.remove(&found.map);
        self.out.record(Change::MapCompleted { map: found.map, at: None });
        Ok(())
    }
}

fn check_json(inputs: &[Bytes], first: usize) -> Result<(), ErrorContent> {
    let is_bad = |input: &Bytes| serde_json::from_slice::<serde::de::IgnoredAny>(input).is_err();
    match inputs.iter().position(is_bad) {
        Some(bad) => Err(ErrorContent::new("ValueError", format!("input {} is not JSON", first + bad))),
        None => Ok(()),
    }
}

fn check_fit(inputs: usize, engines: usize) -> Result<(), ErrorContent> {
    match inputs > engines {
        true => Err(ErrorContent::new(
            "ValueError",
            format!("the map has {inputs} inputs but only {engines} target engines"),
        )),
        false => Ok(()),
    }
}

/// The text after the first `count` lines.
fn after_lines(lines: &Bytes, count: usize) -> Bytes {
    let start: usize = split_lines(lines).take(count).map(|line| line.len() + 1).sum();
    lines.slice(start.min(lines.len())..)
}

/// Splits lines without their terminators; an empty last line is ignored.
fn split_lines(lines: &Bytes) -> impl Iterator<Item = Bytes> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= lines.len() {
            return None;
        }
        let rest = &lines[at..];
        let length = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
        let line = lines.slice(at..at + length);
        at += length + 1;
        Some(line)
    })
}
