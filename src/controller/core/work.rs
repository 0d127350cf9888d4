//! What waits for an engine, for those who decide how many engines there are.
use super::Core;
use super::outbox::RequestContext;
use crate::model::resources::Request;
use crate::wire::content::client::{WaitingWork, WorkReply, ok};

impl Core {
    /// Leaves out what waits for another map, and what only certain engines may run.
    pub(super) fn waiting_work(&mut self, context: &RequestContext) {
        let mut work = Vec::new();
        for (id, map) in self.maps.iter().filter(|(_, map)| map.targets().is_none()) {
            for lane in 0..map.lanes() {
                let units = map.ready_in(lane) as u64;
                if units > 0 {
                    let (request, limit_s) = map.needs_in(lane);
                    work.push(WaitingWork {
                        map: Some(id),
                        request: request.unwrap_or_default(),
                        units,
                        ended: map.counts().done(),
                        mean_s: map.mean().seconds().unwrap_or_default(),
                        limit_s,
                    });
                }
            }
        }
        let queued = self.requests.queued() as u64;
        if queued > 0 {
            work.push(WaitingWork {
                map: None,
                request: Request::default(),
                units: queued,
                ended: 0,
                mean_s: 0.0,
                limit_s: None,
            });
        }
        self.out.answer(context, &WorkReply { status: ok(), work });
    }
}
