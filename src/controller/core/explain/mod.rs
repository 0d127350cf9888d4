//! Explanations: why a task or map waits, where a task is, what an engine does. The reasons are those of
//! [`super::engines::Engines::why_not`], which dispatch obeys.
mod next_free;
mod reasons;
mod requests;

use super::Core;
use super::effect::QueryKind;
use super::engines::{Engine, LaneId, Obstacle, Unit, WhyNot};
use super::maps::Map;
use super::outbox::RequestContext;
use crate::model::explanation::{EngineWork, OpenMap, Placed, Reason, ReasonKind, Refused, WaitReasons};
use crate::model::job::is_job;
use crate::model::query::EngineQuery;
use crate::model::{EngineUuid, MapId, TaskId, UnixTime};
use crate::wire::content::client::{ExplainReply, ExplainRequest, ok};
use reasons::{Tally, Unsuitable};

/// The numbers of maps that one status looks at and reports, and that one reason names.
const MAX_EXPLAINED: usize = 100;
const MAX_NOTES: usize = 20;
const MAX_MAPS: usize = 10;

impl Core {
    pub(super) fn explain(&mut self, context: &RequestContext, request: ExplainRequest) {
        let mut reply = ExplainReply {
            status: ok(),
            ..ExplainReply::default()
        };
        let engines = match request {
            ExplainRequest::Task(task) => {
                reply.placed = self.placed(task);
                reply.waiting = self.why_task_waits(task);
                Some(EngineQuery::OfTask(task))
            }
            ExplainRequest::Map(map) => {
                reply.map = self.open_map(map);
                reply.waiting = self.why_map_waits(map);
                None
            }
            ExplainRequest::Engine(id) => {
                if let Some(engine) = self.engines.by_id(id) {
                    reply.present = vec![self.engines.status(engine)];
                    reply.work = Some(self.engine_work(engine));
                }
                Some(EngineQuery::Id(id))
            }
            ExplainRequest::Job(job) => {
                let own = self.engines.iter().map(|(_, e)| e).filter(|e| is_job(&e.facts().job, &job));
                reply.present = own.map(|e| self.engines.status(e)).collect();
                Some(EngineQuery::OfJob(job))
            }
        };
        let reply = Box::new(reply);
        self.out.query(context, QueryKind::Explain { engines, reply });
    }

    /// Where an unfinished task is, if an engine has it.
    fn placed(&self, task: TaskId) -> Option<Placed> {
        if let Some(held) = self.maps.in_flight(task) {
            return self.place(held.engine(), held.sent(), held.began(), held.is_cancelled());
        }
        let request = self.requests.of_task(task)?;
        self.place(request.engine()?, request.sent(), None, false)
    }

    fn place(&self, uuid: &EngineUuid, sent: u64, began: Option<UnixTime>, cancelled: bool) -> Option<Placed> {
        let engine = self.engines.get(uuid)?;
        let unsure = match (engine.is_connected(), engine.is_uncertain()) {
            (false, _) => Some("the engine does not answer"),
            (true, true) => Some("the engine has to register again"),
            (true, false) => None,
        };
        let ahead = self.held(engine).iter().filter(|held| held.sent < sent).count();
        Some(Placed {
            engine: engine.id(),
            host: engine.facts().host.clone(),
            ahead: if began.is_some() { 0 } else { ahead as u32 },
            began,
            unsure: unsure.map(String::from),
            cancelled,
        })
    }

    /// The tasks and requests that an engine has, in the order in which they were sent.
    fn held(&self, engine: &Engine) -> Vec<Held> {
        let tasks = engine.tasks().filter_map(|(task, _)| {
            let held = self.maps.in_flight(task)?;
            Some(Held {
                task,
                sent: held.sent(),
                began: held.began(),
                mean_s: self.maps.get(task.map)?.mean().seconds(),
            })
        });
        let requests = engine.requests().filter_map(|msg_id| {
            let request = self.requests.get(msg_id)?;
            Some(Held {
                task: request.task(),
                sent: request.sent(),
                began: None,
                mean_s: request.function().and_then(|function| self.requests.mean(function).seconds()),
            })
        });
        let mut held: Vec<Held> = tasks.chain(requests).collect();
        held.sort_by_key(|held| (held.began.is_none(), held.sent));
        held
    }

    fn open_map(&self, id: MapId) -> Option<OpenMap> {
        let map = self.maps.get(id)?;
        let now = self.out.now().unix;
        let longest = map.all_in_flight().filter_map(|(_, task)| Some(now.since(task.began()?)));
        Some(OpenMap {
            ready: map.ready() as u64,
            with_engines: map.all_in_flight().count() as u64,
            longest_s: longest.max_by(f64::total_cmp),
            mean_s: map.mean().seconds(),
            closed: map.is_closed(),
        })
    }

    // ---- waiting

    fn why_task_waits(&self, task: TaskId) -> Option<WaitReasons> {
        if let Some(map) = self.maps.get(task.map) {
            let waits = map.is_open(task.index) && map.in_flight(task.index).is_none();
            let lane = map.waits_in(task.index);
            return waits.then(|| self.why_lane_waits(map, LaneId { map: task.map, lane }, map.target_of(task.index).as_ref()));
        }
        let request = self.requests.of_task(task)?;
        request.engine().is_none().then(|| self.why_request_waits(request))
    }

    /// Why the next task of this map is not with an engine; None if no task of it waits.
    pub(super) fn why_map_waits(&self, id: MapId) -> Option<WaitReasons> {
        let map = self.maps.get(id).filter(|map| map.ready() > 0)?;
        let lane = (0..map.lanes()).find(|lane| map.ready_in(*lane) > 0).unwrap_or_default();
        Some(self.why_lane_waits(map, LaneId { map: id, lane }, None))
    }

    /// Why the next task of this lane is not with an engine. `target`: the only one that may run it.
    fn why_lane_waits(&self, map: &Map, lane: LaneId, target: Option<&EngineUuid>) -> WaitReasons {
        let general = self.why_no_engine_is_asked(map);
        let unit = self.unit_of(lane).filter(|_| general.is_empty());
        let Some(unit) = unit else {
            return WaitReasons {
                engines: self.engines.count() as u32,
                reasons: general,
                ..WaitReasons::default()
            };
        };
        let mut tally = Tally::new(unit.request.clone(), unit.limit_s, self.out.now().unix);
        for (uuid, engine) in self.engines.iter() {
            if target.is_some_and(|target| target != uuid) || map.targets().is_some_and(|targets| !targets.contains(uuid)) {
                tally.add_unsuitable(Unsuitable::NotTarget);
                continue;
            }
            match self.why_it_waits_for(engine, &unit) {
                None => tally.add_able(),
                Some(why) => self.add(&mut tally, engine, &unit, why),
            }
        }
        tally.waiting()
    }

    /// Why a task that waits is not with this engine. One that holds tasks and could take more gets them when some of them end.
    pub(super) fn why_it_waits_for(&self, engine: &Engine, unit: &Unit) -> Option<WhyNot> {
        let why = self.engines.why_not(engine, unit, self.out.now());
        why.or_else(|| (engine.load() > 0).then(|| WhyNot::Busy { load: engine.load() }))
    }

    /// Counts an engine that does not take a task.
    fn add(&self, tally: &mut Tally, engine: &Engine, unit: &Unit, why: WhyNot) {
        let is_held = matches!(why, WhyNot::Busy { .. } | WhyNot::Dedicated { .. });
        let could = |request| self.engines.could_run(engine, request);
        let why = match &unit.request {
            // It will not take it when it is free either.
            Some(request) if is_held && !could(request) => WhyNot::Node(Obstacle::TooSmall),
            _ => why,
        };
        if matches!(why, WhyNot::Busy { .. }) {
            // Behind tasks of others it is not queued.
            let below = if engine.holds_only(unit.lane.map) { unit.room.below } else { 1 };
            let works_for = self.out.now().since_start.saturating_sub(engine.works_since());
            let free_in = next_free::seconds(&self.held(engine), below, works_for.as_secs_f64(), tally.now());
            tally.add_busy(free_in);
        } else {
            tally.add(|| self.engines.status(engine).facts.node, why);
        }
    }

    /// Reasons of the map itself.
    fn why_no_engine_is_asked(&self, map: &Map) -> Vec<Reason> {
        let mut reasons = Vec::new();
        if let Some(other) = map.waiting_for() {
            let progress = self.maps.get(other).map(|map| {
                let counts = map.counts();
                format!(", of which {} of {} tasks are done", counts.done(), counts.total)
            });
            let text = format!("it starts after map {other}{}", progress.unwrap_or_default());
            reasons.push(Reason::general(ReasonKind::AfterMap, text));
        }
        if map.may_start() == 0 {
            let tasks = map.all_in_flight().count();
            let with = if tasks == 1 { "task of its map is" } else { "tasks of its map are" };
            let text = format!("{tasks} {with} with engines, and --max-running allows no more");
            reasons.push(Reason::general(ReasonKind::MaxRunning, text));
        }
        if self.engines.count() == 0 {
            reasons.push(Reason::general(ReasonKind::NoEngines, "there are no engines"));
        }
        reasons
    }

    // ---- engines

    fn engine_work(&self, engine: &Engine) -> EngineWork {
        let held = self.held(engine);
        EngineWork {
            began: held.first().and_then(|held| held.began),
            tasks: held.into_iter().map(|held| held.task).collect(),
            node_free: self.engines.node_free(engine),
            refuses: self.why_it_takes_nothing(engine),
        }
    }

    /// Why this engine takes no task of the maps that wait, other than that it is busy.
    fn why_it_takes_nothing(&self, engine: &Engine) -> Vec<Refused> {
        let now = self.out.now();
        let mut all: Vec<Refused> = Vec::new();
        for id in self.maps.runnable() {
            let Some(map) = self.maps.get(id).filter(|map| self.why_no_engine_is_asked(map).is_empty()) else {
                continue;
            };
            let Some(unit) = self.unit_of(LaneId::first(id)).filter(|_| map.targets().is_none()) else {
                continue;
            };
            let Some(why) = self.engines.why_not(engine, &unit, now) else {
                continue;
            };
            let mut tally = Tally::new(unit.request.clone(), unit.limit_s, now.unix);
            self.add(&mut tally, engine, &unit, why);
            let reason = tally.waiting().reasons.into_iter().next();
            let Some(Reason { kind, text, .. }) = reason.filter(|reason| reason.kind != ReasonKind::Busy) else {
                continue;
            };
            match all.iter_mut().find(|refused| refused.text == text) {
                Some(refused) if refused.maps.len() < MAX_MAPS => refused.maps.push(id),
                Some(_) => {}
                None => all.push(Refused {
                    maps: vec![id],
                    kind,
                    text,
                }),
            }
        }
        all
    }

    // ---- for `status`

    /// Why maps wait, if that is not obvious: if engines that are not busy do not take their tasks.
    pub(super) fn why_maps_wait(&self) -> Vec<String> {
        use ReasonKind::{Busy, EndsTooSoon, InUse, OtherResources, Reconnecting, Reserved, TooSmall};
        let is_noted = |reason: &Reason| matches!(reason.kind, InUse | Reserved | TooSmall | EndsTooSoon | Reconnecting);
        let is_busy = |reason: &Reason| matches!(reason.kind, Busy | OtherResources);
        let note = |id: MapId| {
            self.maps.get(id).filter(|map| map.targets().is_none())?;
            let waiting = self.why_map_waits(id).filter(|waiting| waiting.depends_on_engines())?;
            let noted = waiting.reasons.iter().any(is_noted) || !waiting.reasons.iter().any(is_busy);
            noted.then(|| format!("map {id} waits: {waiting}"))
        };
        self.maps.runnable().take(MAX_EXPLAINED).filter_map(note).take(MAX_NOTES).collect()
    }

    /// Checks that all work that waits has an explanation, which dispatch does not contradict; for tests and debug builds.
    pub(super) fn check_explanations(&self) {
        for id in self.maps.runnable() {
            // Each task of a map with targets has its own engine.
            let is_bound = self.maps.get(id).is_some_and(|map| map.targets().is_some());
            // An explanation without a reason is none.
            let waiting = self.why_map_waits(id).unwrap_or_default();
            assert!(is_bound || !waiting.reasons.is_empty(), "map {id} waits without a reason");
            assert!(is_bound || waiting.able == 0, "map {id} waits: {waiting}");
        }
        for msg_id in self.requests.unassigned() {
            let Some(request) = self.requests.get(msg_id) else { continue };
            let waiting = self.why_request_waits(request);
            assert!(!waiting.reasons.is_empty(), "{} waits without a reason", request.task());
            assert_eq!(waiting.able, 0, "{} waits: {waiting}", request.task());
        }
    }
}

/// A task or request that an engine has.
struct Held {
    task: TaskId,
    /// Increases with each one sent.
    sent: u64,
    began: Option<UnixTime>,
    /// The mean duration of such tasks in seconds, if known.
    mean_s: Option<f64>,
}
