//! The balanced scheduler of ipyparallel's tasks: decides which tasks may run, and on which engine.
use super::Core;
use crate::model::EngineUuid;
use crate::wire::Message;
use crate::wire::content::engine::Channel;
use std::collections::{HashSet, VecDeque};

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
}
