//! Clients create maps and send their inputs.
//!
//! Inputs may end early: the client reports why, or it has died. A client without input to send sends keep-alive messages; after
//! some leases without a message, the map is closed: its unassigned tasks are aborted, and an additional task represents the
//! missing inputs. So the map ends as failed, waiting clients are notified, and maps that follow it do not run.
use super::Core;
use super::effect::QueryKind;
use super::maps::Map;
use super::outbox::{RequestContext, Timer};
use crate::model::change::Change;
use crate::model::definition::{MapDefinition, Work};
use crate::model::targets::Targets;
use crate::model::task::{INPUTS_MISSING, Outcome, TaskState};
use crate::model::{EngineId, EngineUuid, MapId, TaskId};
use crate::wire::Message;
use crate::wire::content::client::{self, ok};
use crate::wire::content::error::{ErrorContent, Refusal};
use bytes::Bytes;
use std::time::Duration;

/// A multiple of `controller.lease_ms`: a client may be stopped, or suspended with its laptop, for longer than an engine.
const LEASES: u32 = 5;
/// A client without input to send sends a keep-alive every ten seconds.
const SHORTEST: Duration = Duration::from_secs(30);

impl Core {
    pub(super) fn map_request(
        &mut self,
        context: &RequestContext,
        message: &Message,
        mut request: client::MapRequest,
    ) -> Result<(), ErrorContent> {
        let again = message.metadata::<client::Again>().unwrap_or_default().again;
        if let Some(id) = self.maps.by_key(&request.key) {
            return self.map_known(context, message, request, id);
        }
        let bundle = self.bundles.take(message, &mut request)?;
        // A repeated request with inputs may belong to a map that has finished meanwhile.
        if bundle.is_some() || (request.whole && again) {
            let (key, request) = (request.key, Box::new(message.clone()));
            self.out.query(context, QueryKind::MapOf { key, request, bundle });
            return Ok(());
        }
        self.map_new(context, message, request)
    }

    /// Goes on with a `map_request`: `map` is the one that it created before, if any; else `bundle` is its missing code.
    pub(super) fn map_request_found(
        &mut self,
        context: &RequestContext,
        message: &Message,
        mut request: client::MapRequest,
        map: Option<MapId>,
        bundle: Option<Bytes>,
    ) -> Result<(), ErrorContent> {
        if let Some(id) = self.maps.by_key(&request.key).or(map) {
            return self.map_known(context, message, request, id);
        }
        let missing = match self.bundles.take(message, &mut request)? {
            None => None,
            Some(_) => self.bundles.add_content(&mut request.definition, bundle)?,
        };
        match missing {
            None => self.map_new(context, message, request),
            Some(hash) => Err(ErrorContent::new(Refusal::UnknownBundle.as_str(), format!("unknown bundle {hash}"))),
        }
    }

    fn map_new(&mut self, context: &RequestContext, message: &Message, request: client::MapRequest) -> Result<(), ErrorContent> {
        let lines = request.whole.then(|| message.buffers.first().cloned().unwrap_or_default());
        let inputs: Vec<Bytes> = lines.iter().flat_map(split_lines).collect();
        check_json(&inputs, 0)?;
        let client::MapRequest {
            key, definition, watch, ..
        } = request;
        if let Some(targets) = &definition.options.targets {
            check_fit(inputs.len(), self.native_targets(targets)?.len())?;
        }
        self.check_resources(&definition)?;
        let id = self.add_map(key, definition)?;
        match lines {
            Some(lines) => {
                self.add_inputs(id, lines, inputs);
                self.close_map(id);
            }
            None => self.expect_inputs(id),
        }
        self.answer_map(context, id, watch);
        Ok(())
    }

    /// Refuses a map whose tasks ask for more than any node has.
    pub(super) fn check_resources(&self, definition: &MapDefinition) -> Result<(), ErrorContent> {
        if let Err(why) = definition.options.check_retries() {
            return Err(ErrorContent::new("ValueError", why));
        }
        let Some(request) = definition.options.request() else {
            return Ok(());
        };
        if let Some(targets) = definition
            .options
            .targets
            .as_ref()
            .filter(|_| !definition.options.wait_for_resources)
        {
            let targets = self.native_targets(targets)?;
            let too_small = targets.iter().find(|uuid| !self.engines.could_run_there(uuid, &request));
            return match too_small.and_then(|uuid| self.engines.get(uuid)) {
                None => Ok(()),
                Some(engine) => {
                    let status = self.engines.status(engine);
                    let what = format!("engine {} is on {}, which has {}", status.id, status.facts.host, status.facts.node);
                    let what = format!("{what}: too little for {request}");
                    Err(ErrorContent::new("ResourcesUnavailable", what))
                }
            };
        }
        match self.engines.nodes().largest() {
            Some((host, has)) if !definition.options.wait_for_resources && !self.engines.nodes().could_run(&request) => {
                let pinnable = match request.resources.pin {
                    true => format!(", {} of them to pin", has.core_count()),
                    false => String::new(),
                };
                let what = format!("no node has {request}; the largest is {host} with {has}{pinnable}");
                let unknown = request.resources.named.keys().find(|name| !self.engines.nodes().knows(name));
                let hint = match unknown {
                    Some(name) => format!(
                        "no engine has {name}: declare it with `pcluster start --resource {name}=N` or engine.resources in the \
                         profile, or let the map wait with --wait-for-resources"
                    ),
                    None => "--wait-for-resources waits for engines that have more".into(),
                };
                Err(ErrorContent::new("ResourcesUnavailable", what).hint(hint))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn set_priority(&mut self, context: &RequestContext, map: MapId, priority: i32) -> Result<(), ErrorContent> {
        if !self.maps.set_priority(map, priority) {
            let what = match self.maps.has_failed(map) {
                Some(_) => format!("map {map} has finished"),
                None => format!("there is no map {map}"),
            };
            return Err(ErrorContent::new("ValueError", what));
        }
        self.out.record(Change::MapPriority { map, priority });
        self.out.answer(context, &client::Done { status: ok() });
        Ok(())
    }

    fn map_known(
        &mut self,
        context: &RequestContext,
        message: &Message,
        request: client::MapRequest,
        id: MapId,
    ) -> Result<(), ErrorContent> {
        if let (true, Some(map)) = (request.whole, self.maps.get(id))
            && !map.is_closed()
        {
            // The map was created with the same key, but its inputs are incomplete.
            let known = map.total() as usize;
            let lines = message.buffers.first().cloned().unwrap_or_default();
            let inputs: Vec<Bytes> = split_lines(&lines).skip(known).collect();
            check_json(&inputs, known)?;
            self.add_inputs(id, after_lines(&lines, known), inputs);
            self.close_map(id);
        }
        self.answer_map(context, id, request.watch);
        Ok(())
    }

    /// Answers immediately, or with the map's first result.
    fn answer_map(&mut self, context: &RequestContext, id: MapId, watch: Option<client::FirstWatch>) {
        let targets = self.maps.get(id).and_then(Map::targets).unwrap_or_default();
        let engines: Vec<EngineId> = targets.iter().filter_map(|uuid| self.engines.get(uuid)).map(|e| e.id()).collect();
        match watch {
            Some(watch) => {
                let request = client::WatchRequest {
                    map: id,
                    from: 0,
                    limit: watch.limit,
                    wait_ms: watch.wait_ms,
                    done: None,
                    without_inputs: watch.without_inputs,
                };
                self.watch(context, &request, Some(engines));
            }
            None => {
                let reply = client::MapReply {
                    status: ok(),
                    map: id,
                    engines,
                    update: None,
                };
                self.out.answer(context, &reply);
            }
        }
        self.abort_if_hopeless(id);
        self.after_changes(id);
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
        let id = self.maps.new_id();
        let map = Map::new(definition.clone(), key.clone(), targets).wait_for(waiting_for);
        self.maps.insert(id, map);
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
        match self.maps.has_failed(other) {
            Some(false) => Ok(None),
            Some(true) => Err(
                ErrorContent::new("DependencyFailed", format!("map {other} finished with failed tasks")).hint(format!(
                    "see them with `pcluster results {other} --failed`, run them again with `pcluster resubmit {other} --failed`"
                )),
            ),
            None if self.maps.is_open(other) => Ok(Some(other)),
            None => Err(ErrorContent::new("NoSuchMap", format!("no map {other} to follow")).hint("`pcluster results` lists the maps")),
        }
    }

    pub(super) fn native_targets(&self, targets: &Targets) -> Result<Vec<EngineUuid>, ErrorContent> {
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
        let now = self.out.now().since_start;
        self.maps.change(id, |map| map.note_input(now));
        let Some(map) = self.maps.get(id) else {
            return Err(ErrorContent::new(
                "NoSuchMap",
                format!("map {id} accepts no inputs: it has finished (its client may have been silent for too long) or does not exist"),
            ));
        };
        if map.is_abandoned() {
            return Err(ErrorContent::new(
                "MapClosed",
                format!("map {id} was closed without the rest of its inputs (pcluster results {id} --failed)"),
            ));
        }
        let total = map.total();
        if request.first > total {
            // An earlier message was lost: report the number of received inputs, and the client resends the rest.
            self.out.answer(context, &client::InputsReply { status: ok(), total });
            return Ok(());
        }
        let known = (total - request.first) as usize;
        let lines = message.buffers.first().cloned().unwrap_or_default();
        let inputs: Vec<Bytes> = split_lines(&lines).skip(known).collect();
        check_json(&inputs, total as usize)?;
        if !inputs.is_empty() && map.is_closed() {
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
        if let Some(targets) = map.targets() {
            check_fit(total as usize + inputs.len(), targets.len())?;
        }
        let total = total + inputs.len() as u32;
        self.add_inputs(id, after_lines(&lines, known), inputs);
        if request.last {
            self.close_map(id);
        }
        self.out.answer(context, &client::InputsReply { status: ok(), total });
        self.abort_if_hopeless(id);
        self.after_changes(id);
        Ok(())
    }

    /// `lines` holds the same inputs, one per line.
    fn add_inputs(&mut self, id: MapId, lines: Bytes, inputs: Vec<Bytes>) {
        if inputs.is_empty() {
            return;
        }
        let added = self.maps.change(id, |map| {
            let first = map.total();
            map.push(lines, inputs.len() as u32);
            (first, map.initial_state())
        });
        if let Some((first, state)) = added {
            let submitted = self.out.now().unix;
            self.out.record(Change::TasksAdded {
                map: id,
                first,
                inputs,
                state,
                submitted,
            });
        }
    }

    fn close_map(&mut self, id: MapId) {
        let closed = self.maps.change(id, |map| map.close().then_some(map.total()));
        if let Some(total) = closed.flatten() {
            self.out.record(Change::MapClosed { map: id, total });
        }
    }

    // ---- inputs that end early

    fn inputs_lease(&self) -> Duration {
        (Self::period(self.config.lease_ms) * LEASES).max(SHORTEST)
    }

    /// Starts the timeout for inputs.
    pub(super) fn expect_inputs(&mut self, id: MapId) {
        let now = self.out.now().since_start;
        self.maps.change(id, |map| map.note_input(now));
        self.out.set_timer(self.inputs_lease(), Timer::Inputs(id));
    }

    pub(super) fn inputs_due(&mut self, id: MapId) {
        let Some(map) = self.maps.get(id).filter(|map| !map.is_closed()) else {
            return;
        };
        let until = map.last_input() + self.inputs_lease();
        let left = until.saturating_sub(self.out.now().since_start);
        if !left.is_zero() {
            return self.out.set_timer(left, Timer::Inputs(id));
        }
        let (seconds, came) = (self.inputs_lease().as_secs(), map.total());
        tracing::warn!(map = %id, inputs = came, seconds, "the client of an open map is silent; the map is closed and ends as failed");
        let why = format!("its client was silent for {seconds} s before it sent all inputs; {came} arrived, the rest is missing");
        self.abandon(id, "ClientLost", &why);
    }

    /// Closes a map without the rest of its inputs. `ename` is the error of its unassigned tasks.
    fn abandon(&mut self, id: MapId, ename: &str, why: &str) {
        let input = Bytes::from_static(b"null");
        let abandoned = self.maps.change(id, |map| {
            let state = map.initial_state();
            (!map.is_closed()).then(|| (map.abandon(input.clone()), state))
        });
        let Some((first, state)) = abandoned.flatten() else { return };
        let submitted = self.out.now().unix;
        self.out.record(Change::TasksAdded {
            map: id,
            first,
            inputs: vec![input],
            state,
            submitted,
        });
        self.out.record(Change::MapClosed { map: id, total: first + 1 });
        let outcome = Outcome::failure(TaskState::Aborted, INPUTS_MISSING, why, submitted, submitted);
        self.finish(TaskId::new(id, first), 1, None, outcome);
        self.abort_unsent(id, ename, why);
        self.after_changes(id);
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
