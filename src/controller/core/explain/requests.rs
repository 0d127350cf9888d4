//! Why requests of ipyparallel's clients wait.
use super::super::Core;
use super::super::engines::{Engine, LaneId};
use super::super::requests::OpenRequest;
use super::reasons::{Tally, Unsuitable};
use crate::model::explanation::{Reason, ReasonKind, WaitReasons, about};

impl Core {
    pub(super) fn why_request_waits(&self, request: &OpenRequest) -> WaitReasons {
        let mut general = Vec::new();
        if let Some(text) = self.requests.unmet(request) {
            general.push(Reason::general(ReasonKind::AfterRequests, text));
        }
        if self.engines.count() == 0 {
            general.push(Reason::general(ReasonKind::NoEngines, "there are no engines"));
        }
        let mut waiting = match general.is_empty() {
            true => self.why_engines_do_not_take(request),
            false => WaitReasons {
                engines: self.engines.count() as u32,
                reasons: general,
                ..WaitReasons::default()
            },
        };
        if let Some(timeout) = request.timeout() {
            let text = format!("it fails after {} without an engine", about(timeout.as_secs_f64()));
            waiting.notes.push(text);
        }
        waiting
    }

    fn why_engines_do_not_take(&self, request: &OpenRequest) -> WaitReasons {
        let map = request.task().map;
        let unit = self.message(match request.is_unconstrained() {
            true => LaneId::first(map),
            false => LaneId { map, lane: LaneId::BOUND },
        });
        let mut tally = Tally::new(None, None, self.out.now().unix);
        for (_, engine) in self.engines.iter() {
            match self.unsuitable(request, engine) {
                Some(why) => tally.add_unsuitable(why),
                None => match self.why_it_waits_for(engine, &unit) {
                    None => tally.add_able(),
                    Some(why) => self.add(&mut tally, engine, &unit, why),
                },
            }
        }
        tally.waiting()
    }

    fn unsuitable(&self, request: &OpenRequest, engine: &Engine) -> Option<Unsuitable> {
        let uuid = &engine.facts().uuid;
        match () {
            () if request.is_excluded(uuid) => Some(Unsuitable::Excluded),
            () if !request.is_target(uuid) => Some(Unsuitable::NotTarget),
            () if !self.requests.may_follow_on(request, uuid) => Some(Unsuitable::Follow),
            () => None,
        }
    }
}
