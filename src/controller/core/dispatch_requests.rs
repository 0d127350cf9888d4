//! The balanced scheduler of ipyparallel's tasks: decides which tasks may run, and on which engine.
use super::Core;
use super::effect::Effect;
use super::prefetch::Prefetch;
use super::requests::Open;
use crate::model::{EngineUuid, UnixTime};
use crate::wire::Message;
use crate::wire::content::engine::{self, Channel};
use crate::wire::message::to_json;
use bytes::Bytes;
use std::collections::{HashSet, VecDeque};

/// Engines checked for a free slot, least loaded first.
const MAX_CANDIDATES: usize = 8;
/// With fewer unfinished requests, clients probably wait for each one.
const MIN_OPEN_TO_BATCH: usize = 16;

impl Core {
    pub(super) fn task_request(&mut self, mut message: Message) {
        let client = message.sender();
        message.identities.clear();
        let msg_id = message.header.msg_id.clone();
        self.open_request(Channel::Task, client, message, None, None);
        self.admit(&msg_id);
    }

    /// Puts a balanced task into the right queue, or fails it if it can never run.
    pub(super) fn admit(&mut self, msg_id: &str) {
        let requests = &mut self.requests;
        let Some(open) = requests.open.get(msg_id) else { return };
        let unknown = |id: &String| id == msg_id || !(requests.open.contains_key(id) || requests.outcomes.contains_key(id));
        if open.after.ids.iter().chain(&open.follow.ids).any(unknown) {
            return self.fail_request(msg_id, "InvalidDependency", "it depends on itself or on an unknown task");
        }
        if open.is_unconstrained() {
            requests.ready.push_back(msg_id.to_string());
        } else {
            requests.bound.push_back(msg_id.to_string());
            requests.recheck = true;
        }
    }

    /// Sends balanced tasks to engines with a free slot.
    pub(super) fn dispatch_requests(&mut self) {
        // A bound task may have waited for an engine that was away or busy with a map.
        let freed = self.engines.take_freed() && !self.requests.bound.is_empty() && self.engine_with_room(&|_| true).is_some();
        if std::mem::take(&mut self.requests.recheck) || freed {
            self.dispatch_bound();
        }
        while !self.requests.ready.is_empty() {
            let Some(engine) = self.engine_with_room(&|_| true) else { break };
            let Some(msg_id) = self.requests.ready.pop_front() else { break };
            self.send_request(&msg_id, &engine);
        }
        self.dispatch_prefetched();
    }

    fn dispatch_bound(&mut self) {
        let mut failed: Vec<(String, &str)> = Vec::new();
        let mut waiting = VecDeque::new();
        for msg_id in std::mem::take(&mut self.requests.bound) {
            let Some(open) = self.requests.open.get(&msg_id) else { continue };
            let outcome = |id: &str| self.requests.outcome(id);
            if open.after.is_unreachable(outcome) || open.follow.is_unreachable(outcome) {
                failed.push((msg_id, "its dependency did not end as required"));
                continue;
            }
            let targets_left = open
                .targets
                .iter()
                .any(|t| !open.blacklist.contains(t) && self.engines.get(t).is_some());
            if !open.targets.is_empty() && !targets_left {
                failed.push((msg_id, "none of its target engines is left"));
                continue;
            }
            let ran_at = |id: &String| self.requests.outcomes.get(id).and_then(|(_, engine)| engine.as_ref());
            let places: HashSet<&EngineUuid> = open.follow.ids.iter().filter_map(ran_at).collect();
            if open.follow.all && places.len() > 1 {
                failed.push((msg_id, "it must follow tasks that ran on different engines"));
                continue;
            }
            let all_ended = open.follow.ids.iter().all(|id| outcome(id).is_some());
            if !open.follow.is_empty() && all_ended && !places.iter().any(|place| self.engines.get(place).is_some()) {
                failed.push((msg_id, "the engine of the tasks that it must follow left"));
                continue;
            }
            if !open.after.is_met(outcome) {
                waiting.push_back(msg_id);
                continue;
            }
            let follows = |uuid: &EngineUuid| {
                open.follow.is_met(|id| {
                    self.requests
                        .outcomes
                        .get(id)
                        .filter(|(_, e)| e.as_ref() == Some(uuid))
                        .map(|(ok, _)| *ok)
                })
            };
            let may = |uuid: &EngineUuid| {
                !open.blacklist.contains(uuid) && (open.targets.is_empty() || open.targets.contains(uuid)) && follows(uuid)
            };
            let fit: HashSet<EngineUuid> = self
                .engines
                .by_load()
                .map(|(uuid, _)| uuid)
                .filter(|uuid| may(uuid))
                .cloned()
                .collect();
            let engine = self.engine_with_room(&|uuid| fit.contains(uuid));
            match engine {
                Some(engine) => self.send_request(&msg_id, &engine),
                None => waiting.push_back(msg_id),
            }
        }
        waiting.append(&mut self.requests.bound);
        self.requests.bound = waiting;
        for (msg_id, why) in failed {
            self.fail_request(&msg_id, "ImpossibleDependency", why);
        }
    }

    pub(super) fn request_timed_out(&mut self, msg_id: &str, run: u32) {
        if self.requests.open.get(msg_id).is_some_and(|o| o.engine.is_none() && o.run == run) {
            self.fail_request(msg_id, "TaskTimeout", "it timed out waiting for an engine");
        }
    }

    /// Returns true if the effects since the last call may wait some milliseconds to share a commit and messages with later
    /// ones: if many requests are open and no engine would be idle.
    pub fn may_batch(&mut self) -> bool {
        let flush_now = std::mem::take(&mut self.flush_now);
        !flush_now && self.requests.open.len() >= MIN_OPEN_TO_BATCH
    }

    pub(super) fn learn_request(&mut self, open: &Open, started: Option<UnixTime>, ended: UnixTime) {
        if let (Some(function), Some(started)) = (open.function, started) {
            self.functions.learn(function, ended.since(started));
        }
    }

    /// The number of such requests that an engine may hold.
    fn request_depth(&self, function: u64) -> u32 {
        self.prefetch.depth(self.functions.mean(function), 1)
    }

    /// True if more than one such request fits into `prefetch_ms`.
    pub(super) fn is_quick(&self, function: u64) -> bool {
        self.request_depth(function) > 1
    }

    /// Sends short requests to engines that are already at `hwm`.
    pub(super) fn dispatch_prefetched(&mut self) {
        while let Some(function) = self.next_function() {
            let depth = self.request_depth(function);
            let room = self.engines.by_load().take(MAX_CANDIDATES).find(|(_, e)| e.holds_only_quick());
            let Some((engine, load)) = room.map(|(uuid, e)| (uuid.clone(), e.load())) else {
                return;
            };
            let room = Prefetch::room(depth, load);
            if room == 0 {
                return;
            }
            let share = self.requests.ready.len().div_ceil(self.engines.count().max(1)) as u32;
            for _ in 0..room.min(share) {
                if self.next_function() == Some(function)
                    && let Some(msg_id) = self.requests.ready.pop_front()
                {
                    self.send_request(&msg_id, &engine);
                }
            }
        }
    }

    fn next_function(&self) -> Option<u64> {
        let open = self.requests.open.get(self.requests.ready.front()?)?;
        open.function.filter(|_| !open.has_timeout)
    }

    /// Takes back requests that the engine has not started.
    pub(super) fn requests_returned(&mut self, uuid: &EngineUuid, returned: &engine::Returned) {
        for (msg_id, run) in returned.requests() {
            let open = self.requests.open.get(msg_id);
            // A repeated report may have arrived the first time, and the request may have been assigned again since.
            let is_this = |o: &&Open| o.engine.as_ref() == Some(uuid) && o.queue == Channel::Task && run.is_none_or(|run| run == o.run);
            let Some(open) = open.filter(is_this) else { continue };
            let anywhere = open.is_unconstrained();
            self.engines.change(uuid, |e| e.drop_request(msg_id));
            self.withdraw_request(msg_id);
            match anywhere {
                true => self.requests.ready.push_front(msg_id.to_string()),
                false => self.admit(msg_id),
            }
        }
    }

    /// Publishes on iopub that a request's output is complete: its reply arrived after the output.
    pub(super) fn publish_idle(&mut self, uuid: &EngineUuid, reply: &Message) {
        let Some(id) = self.engines.get(uuid).map(|e| e.id()) else { return };
        let mut message = self
            .out
            .message("status", Some(&reply.parent_json), &serde_json::json!({"execution_state": "idle"}));
        message.metadata_json = to_json(&serde_json::json!({ "engine": uuid }));
        let topic = Bytes::from(format!("engine.{id}.status"));
        self.out.push(Effect::Iopub { topic, message });
    }
}
