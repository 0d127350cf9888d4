//! Balanced requests of ipyparallel's clients that are sent ahead: an engine of ours holds as many short ones as fill
//! `prefetch_ms`, so that it never waits for the wire, and messages and commits are shared.
//!
//! What a request calls is not known here, but its bytes are: the time that requests with the same function took tells how
//! long the next will take. Before anything is known, and for long ones, `hwm` alone holds. What an engine has not begun is asked back
//! when another is idle; when the engine has gone, it is run elsewhere.
use super::requests::Open;
use super::{Core, Due, Effect};
use crate::model::{EngineUuid, UnixTime};
use crate::wire::Message;
use crate::wire::content::engine::{self as say, Channel};
use crate::wire::message::to_json;
use bytes::Bytes;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// Functions whose times are remembered.
const MOST_FUNCTIONS: usize = 1024;
/// Of a function's bytes so many are looked at.
const LOOKED_AT: usize = 4096;
/// Engines that are looked at for one with room, least loaded first.
const LOOKED_FOR: usize = 8;
/// Engines are told together which replies are recorded: after so long,
const TELL_RECORDED: Duration = Duration::from_millis(20);
/// or at once when a reply has so many bytes, since they keep it until then.
const TELL_AT_ONCE: usize = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Of a function: mean seconds.
    means: HashMap<u64, f64>,
    /// Replies that are recorded and not yet called so.
    recorded: HashMap<EngineUuid, Vec<String>>,
    /// A request that may take long was sent: its engine is not to wait.
    pub(super) hurry: bool,
}

/// With fewer unfinished requests than this, a client waits for each.
const FEW: usize = 16;

/// What an `apply_request` calls, as a number; None for others.
pub(super) fn function_of(message: &Message) -> Option<u64> {
    let pickled = message.buffers.first().filter(|_| message.msg_type() == "apply_request")?;
    let mut hasher = DefaultHasher::new();
    pickled.len().hash(&mut hasher);
    pickled.get(..LOOKED_AT).unwrap_or(pickled).hash(&mut hasher);
    Some(hasher.finish())
}

impl Core {
    /// Whether what came since the last call may wait some milliseconds for more, so that they share a commit and their
    /// messages travel together: when there are many requests, and no engine is kept waiting.
    pub fn may_gather(&mut self) -> bool {
        let hurry = std::mem::take(&mut self.ahead.hurry);
        !hurry && self.requests.open.len() >= FEW
    }

    pub(super) fn learn_request(&mut self, open: &Open, started: Option<UnixTime>, ended: UnixTime) {
        let (Some(function), Some(started)) = (open.function, started) else {
            return;
        };
        let seconds = ended.since(started).max(0.0);
        let means = &mut self.ahead.means;
        if means.len() >= MOST_FUNCTIONS && !means.contains_key(&function) {
            means.clear();
        }
        let mean = means.entry(function).or_insert(seconds);
        // Long ones count at once: a queue behind a long one is worse than an empty one.
        *mean = if seconds > *mean * 4.0 {
            (*mean + seconds) / 2.0
        } else {
            *mean * 0.95 + seconds * 0.05
        };
    }

    /// How many like this an engine may hold.
    fn request_depth(&self, function: u64) -> u32 {
        let Some(mean) = self.ahead.means.get(&function) else { return 1 };
        let fit = self.config.prefetch_ms as f64 / 1000.0 / mean.max(1e-6);
        (fit as u32).clamp(1, self.config.max_prefetch.max(1))
    }

    /// More than one such request fits into `prefetch_ms`.
    pub(super) fn is_quick(&self, function: u64) -> bool {
        self.request_depth(function) > 1
    }

    /// Short requests for engines that have `hwm` already.
    pub(super) fn dispatch_ahead(&mut self) {
        while let Some(function) = self.next_function() {
            let depth = self.request_depth(function);
            let room = self.engines.by_load().take(LOOKED_FOR).find(|(_, e)| e.holds_only_quick());
            let Some((engine, load)) = room.map(|(uuid, e)| (uuid.clone(), e.load())) else {
                return;
            };
            // Refilled at half, so that they travel together.
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

    /// The engine has not begun these requests.
    pub(super) fn requests_returned(&mut self, uuid: &EngineUuid, returned: &say::Returned) {
        for (msg_id, run) in returned.requests() {
            let open = self.requests.open.get(msg_id);
            // What is said again may have been heard the first time, and it may be there again since.
            let is_this = |o: &&Open| o.engine.as_ref() == Some(uuid) && o.queue == Channel::Task && run.is_none_or(|run| run == o.run);
            let Some(open) = open.filter(is_this) else { continue };
            let anywhere = open.may_run_anywhere();
            self.engines.change(uuid, |e| e.drop_request(msg_id));
            self.take_back(msg_id);
            match anywhere {
                true => self.requests.ready.push_front(msg_id.to_string()),
                false => self.admit(msg_id),
            }
        }
    }

    // ---- what engines of ours leave to the controller

    /// Says on iopub that a request's output is complete: its reply came behind it.
    pub(super) fn publish_idle(&mut self, uuid: &EngineUuid, reply: &Message) {
        let Some(id) = self.engines.get(uuid).map(|e| e.id) else { return };
        let mut message = self.message("status", Some(&reply.parent_json), &serde_json::json!({"execution_state": "idle"}));
        message.metadata_json = to_json(&serde_json::json!({ "engine": uuid }));
        let topic = Bytes::from(format!("engine.{id}.status"));
        self.effects.push(Effect::Iopub { topic, message });
    }

    /// The engine keeps a reply until it is told that it is recorded.
    pub(super) fn note_recorded(&mut self, uuid: &EngineUuid, msg_id: String, reply: &Message) {
        let waiting = self.ahead.recorded.entry(uuid.clone()).or_default();
        waiting.push(msg_id);
        let first = waiting.len() == 1;
        if reply.buffers.iter().map(Bytes::len).sum::<usize>() >= TELL_AT_ONCE {
            self.tell_recorded(uuid);
        } else if first {
            self.remind(TELL_RECORDED, Due::RepliesRecorded(uuid.clone()));
        }
    }

    pub(super) fn tell_recorded(&mut self, uuid: &EngineUuid) {
        if let Some(msg_ids) = self.ahead.recorded.remove(uuid) {
            self.tell_engine(uuid, say::REPLIES_RECORDED, &say::RepliesRecorded { msg_ids });
        }
    }
}
