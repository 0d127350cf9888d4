//! Assigns requests of ipyparallel's clients to engines. Unknown and long functions are limited by `hwm` alone; short ones are
//! prefetched by pcluster's own engines.
use super::Core;
use super::engines::Engine;
use super::prefetch::Prefetch;
use super::requests::{OpenRequest, Placement};
use crate::model::EngineUuid;
use crate::model::change::Change;
use std::collections::VecDeque;

/// Engines checked for a free slot, least loaded first.
const MAX_CANDIDATES: usize = 8;
/// An engine holds one request of unknown duration, beyond those that `hwm` allows.
const UNKNOWN_DEPTH: u32 = 1;

impl Core {
    /// Puts a balanced task into the right queue, or fails it if it can never run.
    pub(super) fn admit(&mut self, msg_id: &str) {
        if let Err(why) = self.requests.enqueue(msg_id) {
            self.fail_request(msg_id, "InvalidDependency", why);
        }
    }

    fn engine_with_room(&mut self, may: &dyn Fn(&EngineUuid) -> bool) -> Option<EngineUuid> {
        self.policy.choose(&self.engines, may)
    }

    /// Sends balanced tasks to engines with a free slot.
    pub(super) fn dispatch_requests(&mut self) {
        // A bound task may have waited for an engine that was away or busy with a map.
        let freed = self.engines.take_freed() && self.requests.has_bound() && self.engine_with_room(&|_| true).is_some();
        if self.requests.take_recheck() || freed {
            self.dispatch_bound();
        }
        while self.requests.has_ready() {
            let Some(engine) = self.engine_with_room(&|_| true) else { break };
            let Some(msg_id) = self.requests.take_ready() else { break };
            self.send_request(&msg_id, &engine);
        }
        self.dispatch_prefetched();
    }

    fn dispatch_bound(&mut self) {
        let mut failed: Vec<(String, &str)> = Vec::new();
        let mut waiting = VecDeque::new();
        for msg_id in self.requests.take_bound() {
            let Some(open) = self.requests.get(&msg_id) else { continue };
            let engine = match self.requests.placement(open, &self.engines) {
                Placement::Impossible(why) => {
                    failed.push((msg_id, why));
                    continue;
                }
                Placement::Waits => None,
                Placement::On(engines) => self.engine_with_room(&|uuid| engines.contains(uuid)),
            };
            match engine {
                Some(engine) => self.send_request(&msg_id, &engine),
                None => waiting.push_back(msg_id),
            }
        }
        self.requests.return_bound(waiting);
        for (msg_id, why) in failed {
            self.fail_request(&msg_id, "ImpossibleDependency", why);
        }
    }

    /// Sends short requests to engines that are already at `hwm`.
    fn dispatch_prefetched(&mut self) {
        while let Some(function) = self.next_function() {
            let depth = self.prefetch.depth(self.requests.mean(function), UNKNOWN_DEPTH);
            let may = |e: &Engine| e.holds_only_quick() && self.engines.admits(e, None);
            let candidate = self.engines.by_load().take(MAX_CANDIDATES).find(|(_, e)| may(e));
            let Some((engine, load)) = candidate.map(|(uuid, e)| (uuid.clone(), e.load())) else {
                return;
            };
            let share = self.requests.ready().div_ceil(self.engines.count().max(1)) as u32;
            let count = Prefetch::room(depth, load).min(share);
            if count == 0 {
                return;
            }
            for _ in 0..count {
                if self.next_function() == Some(function)
                    && let Some(msg_id) = self.requests.take_ready()
                {
                    self.send_request(&msg_id, &engine);
                }
            }
        }
    }

    fn next_function(&self) -> Option<u64> {
        let open = self.requests.first_ready()?;
        open.function().filter(|_| open.timeout().is_none())
    }

    /// True if an engine may hold more than one such request.
    fn is_quick(&self, open: &OpenRequest) -> bool {
        let mean = open.function().map(|function| self.requests.mean(function));
        mean.is_some_and(|mean| self.prefetch.depth(mean, UNKNOWN_DEPTH) > 1)
    }

    pub(super) fn send_request(&mut self, msg_id: &str, uuid: &EngineUuid) {
        let Some(engine) = self.engines.get(uuid) else { return };
        let (id, native, supports_files) = (engine.id(), engine.is_native(), engine.facts().supports_files());
        self.sent_tasks += 1;
        let sent = if native { self.sent_tasks } else { 0 };
        self.requests.assign(msg_id, uuid, sent);
        let Some(open) = self.requests.get(msg_id) else { return };
        if open.is_balanced() {
            self.out.record(Change::TasksAssigned {
                map: open.task().map,
                first: open.task().index,
                count: 1,
                run: open.run(),
                engine: id,
            });
        }
        let is_quick = self.is_quick(open);
        self.out.push(open.to_engine(uuid, native, supports_files));
        self.requests.note_sent(is_quick);
        self.engines.change(uuid, |e| e.assign_request(msg_id, is_quick));
    }

    /// Resends requests to a reconnected engine that holds only `has`: the missing ones never reached it, or it returned them
    /// to the previous controller.
    pub(super) fn send_again(&mut self, uuid: &EngineUuid, has: &[String]) {
        let Some(engine) = self.engines.get(uuid) else { return };
        let (native, supports_files) = (engine.is_native(), engine.facts().supports_files());
        let missing = engine.requests().filter(|id| !has.contains(id));
        let mut missing: Vec<&OpenRequest> = missing.filter_map(|id| self.requests.get(id)).collect();
        missing.sort_by_key(|open| open.task());
        // Those sent by the previous controller need another run.
        let (of_before, resent): (Vec<&OpenRequest>, Vec<&OpenRequest>) =
            missing.into_iter().partition(|open| open.is_balanced() && open.sent() == 0);
        for open in resent {
            self.out.push(open.to_engine(uuid, native, supports_files));
        }
        let of_before: Vec<String> = of_before.iter().map(|open| open.message().header.msg_id.clone()).collect();
        for msg_id in of_before {
            self.engines.change(uuid, |e| e.drop_request(&msg_id));
            self.requests.withdraw(&msg_id, &mut self.out);
            self.send_request(&msg_id, uuid);
        }
    }

    pub(super) fn request_timed_out(&mut self, msg_id: &str, run: u32) {
        let is_waiting = |open: &OpenRequest| open.engine().is_none() && open.run() == run;
        if self.requests.get(msg_id).is_some_and(is_waiting) {
            self.fail_request(msg_id, "TaskTimeout", "it timed out waiting for an engine");
        }
    }
}
