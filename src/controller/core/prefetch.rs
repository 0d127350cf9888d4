//! Prefetch of ipyparallel's balanced requests: a pcluster engine holds as many short requests as fill `prefetch_ms`, so that
//! it never waits for the network, and requests share messages and commits.
//!
//! The controller does not know which function a request calls, but it hashes its bytes: the durations of earlier requests with the
//! same function predict the next one. Unknown and long functions are limited by `hwm` alone. Requests that an engine has not started
//! are requested back when another engine is idle, and rescheduled when the engine leaves.
use super::Core;
use super::effect::Effect;
use super::requests::Open;
use crate::model::{EngineUuid, UnixTime};
use crate::wire::Message;
use crate::wire::content::engine::{self, Channel};
use crate::wire::message::to_json;
use bytes::Bytes;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Functions whose mean duration is kept.
const MAX_FUNCTIONS: usize = 1024;
/// Leading bytes of a pickled function that are hashed.
const HASHED_BYTES: usize = 4096;
/// Engines checked for a free slot, least loaded first.
const MAX_CANDIDATES: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Prefetch {
    /// Mean seconds by function.
    means: HashMap<u64, f64>,
    /// A request that may be long was sent: its engine must not wait for a batch.
    pub(super) flush_now: bool,
}

/// With fewer unfinished requests, clients probably wait for each one.
const MIN_OPEN_TO_BATCH: usize = 16;

/// A hash of the function that an `apply_request` calls; None for other requests.
pub(super) fn function_of(message: &Message) -> Option<u64> {
    let pickled = message.buffers.first().filter(|_| message.msg_type() == "apply_request")?;
    let mut hasher = DefaultHasher::new();
    pickled.len().hash(&mut hasher);
    pickled.get(..HASHED_BYTES).unwrap_or(pickled).hash(&mut hasher);
    Some(hasher.finish())
}

impl Core {
    /// Returns true if the effects since the last call may wait some milliseconds to share a commit and messages with later
    /// ones: if many requests are open and no engine would be idle.
    pub fn may_batch(&mut self) -> bool {
        let flush_now = std::mem::take(&mut self.prefetch.flush_now);
        !flush_now && self.requests.open.len() >= MIN_OPEN_TO_BATCH
    }

    pub(super) fn learn_request(&mut self, open: &Open, started: Option<UnixTime>, ended: UnixTime) {
        let (Some(function), Some(started)) = (open.function, started) else {
            return;
        };
        let seconds = ended.since(started).max(0.0);
        let means = &mut self.prefetch.means;
        if means.len() >= MAX_FUNCTIONS && !means.contains_key(&function) {
            means.clear();
        }
        let mean = means.entry(function).or_insert(seconds);
        // Weigh long ones immediately: a queue behind a long request is worse than an empty queue.
        *mean = if seconds > *mean * 4.0 {
            (*mean + seconds) / 2.0
        } else {
            *mean * 0.95 + seconds * 0.05
        };
    }

    /// The number of such requests that an engine may hold.
    fn request_depth(&self, function: u64) -> u32 {
        let Some(mean) = self.prefetch.means.get(&function) else { return 1 };
        let fit = self.config.prefetch_ms as f64 / 1000.0 / mean.max(1e-6);
        (fit as u32).clamp(1, self.config.max_prefetch.max(1))
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
            // Refill at half, so that requests share messages.
            if load >= depth || load > depth / 2 {
                return;
            }
            let share = self.requests.ready.len().div_ceil(self.engines.count().max(1)) as u32;
            for _ in 0..(depth - load).min(share) {
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

    // ---- duties that pcluster engines leave to the controller

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
