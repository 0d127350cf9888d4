//! Values that a task of `--reduce` folds. Its input names the tasks that produced them. The engine fetches them, one part at a
//! time, into a local file before it dispatches the task; the worker then reads them one by one.
use super::Core;
use super::event::{Effect, Now};
use super::unit::Unit;
use crate::model::TaskId;
use crate::wire::content::engine::{Held, ValuePart, Values, ValuesRequest};
use crate::wire::message::to_json;
use bytes::Bytes;
use serde::Deserialize;
use std::collections::HashSet;

/// Values in one request.
const MAX_VALUES: usize = 512;
/// Prefix of an input that names tasks.
const PREFIX: &[u8] = b"{\"values\":";

#[derive(Debug)]
struct ValueFetch {
    held: Held,
    /// Each source with a description of the tasks whose reduction it is.
    sources: Vec<(TaskId, String)>,
    /// Completely received values.
    received: Vec<ValuePart>,
    /// Number of received bytes of the next value.
    start: u64,
}

impl ValueFetch {
    fn request(&self) -> ValuesRequest {
        let left = self.sources.iter().skip(self.received.len());
        ValuesRequest {
            task: self.held,
            of: left.map(|(task, _)| *task).take(MAX_VALUES).collect(),
            start: self.start,
        }
    }

    fn is_complete(&self) -> bool {
        self.received.len() == self.sources.len()
    }

    /// Adds received parts; returns false if they do not match the request.
    fn take(&mut self, values: &[ValuePart], buffers: &[Bytes]) -> bool {
        if values.len() != buffers.len() {
            return false;
        }
        for (at, (part, bytes)) in values.iter().zip(buffers).enumerate() {
            let is_last = at + 1 == values.len();
            self.start += bytes.len() as u64;
            if self.start > part.size || (self.start < part.size && !is_last) || self.is_complete() {
                return false;
            }
            if self.start == part.size {
                self.received.push(*part);
                self.start = 0;
            }
        }
        !values.is_empty()
    }
}

#[derive(Debug, Default)]
pub(super) struct ValueFetches {
    current: Option<ValueFetch>,
    /// Tasks whose values are in a file.
    files: HashSet<Held>,
}

#[derive(Deserialize)]
struct References {
    values: Vec<Reference>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Reference {
    Task(TaskId),
    Reduced(TaskId, String),
}

impl Core {
    /// Returns whether the unit needs values that are not fetched yet.
    pub(super) fn needs_values(&self, held: Held, input: &Bytes) -> bool {
        input.starts_with(PREFIX)
            && self
                .maps
                .get(&held.map)
                .is_some_and(|state| state.definition.options.reduces.is_some())
    }

    /// Starts fetching the values of the next unit; returns false while the fetch is in progress.
    pub(super) fn fetch_values(&mut self, now: Now, effects: &mut Vec<Effect>) -> bool {
        let Some(Unit::Task { held, input }) = self.queue.front() else {
            return true;
        };
        if self.fetches.current.as_ref().is_some_and(|fetch| fetch.held == *held) {
            return false;
        }
        match serde_json::from_slice::<References>(input) {
            Ok(References { values }) if !values.is_empty() => {
                let to_source = |value| match value {
                    Reference::Task(task) => (task, task.to_string()),
                    Reference::Reduced(task, source) => (task, source),
                };
                let fetch = ValueFetch {
                    held: *held,
                    sources: values.into_iter().map(to_source).collect(),
                    received: Vec::new(),
                    start: 0,
                };
                if self.registered {
                    effects.push(Effect::SendValuesRequest(fetch.request()));
                }
                self.fetches.current = Some(fetch);
                false
            }
            _ => {
                let held = *held;
                self.value_fetch_failed(now, held, "the input names no values".into(), effects);
                true
            }
        }
    }

    /// Repeats the pending request on a new connection.
    pub(super) fn resend_value_request(&self, effects: &mut Vec<Effect>) {
        effects.extend(
            self.fetches
                .current
                .as_ref()
                .map(|fetch| Effect::SendValuesRequest(fetch.request())),
        );
    }

    pub(super) fn values_received(&mut self, now: Now, received: Values, bytes: Vec<Bytes>, effects: &mut Vec<Effect>) {
        let Some(fetch) = self.fetches.current.as_mut().filter(|fetch| fetch.held == received.task) else {
            return;
        };
        let is_next = fetch
            .sources
            .get(fetch.received.len())
            .is_some_and(|(task, _)| *task == received.first);
        if !is_next || fetch.start != received.start {
            // A duplicate: the request was sent again.
            return;
        }
        let (held, is_first) = (fetch.held, fetch.received.is_empty() && fetch.start == 0);
        if let Some(reason) = received.error {
            return self.value_fetch_failed(now, held, reason, effects);
        }
        if !fetch.take(&received.values, &bytes) {
            return self.value_fetch_failed(
                now,
                held,
                format!("the parts of the value of task {} do not match the request", received.first),
                effects,
            );
        }
        let is_last = fetch.is_complete();
        effects.push(Effect::StoreValues {
            held,
            is_first,
            bytes,
            is_last,
        });
        if !is_last {
            effects.push(Effect::SendValuesRequest(fetch.request()));
        }
    }

    /// All values are stored in this file, or storing failed.
    pub(super) fn values_stored(&mut self, now: Now, held: Held, file: Result<String, String>, effects: &mut Vec<Effect>) {
        let Some(fetch) = self.fetches.current.take_if(|fetch| fetch.held == held) else {
            return;
        };
        let file = match file {
            Ok(file) => file,
            Err(reason) => return self.values_not_stored(now, held, reason, effects),
        };
        self.storage_works();
        let source = fetch.sources.iter().map(|(_, source)| source);
        let values: Vec<(&String, u64, bool)> = source
            .zip(&fetch.received)
            .map(|(source, part)| (source, part.size, part.pickled))
            .collect();
        let ready = to_json(&serde_json::json!({ "file": file, "values": values }));
        if let Some(Unit::Task { input, .. }) = self.queue.iter_mut().find(|unit| unit.held() == Some(held)) {
            *input = ready;
        }
        self.fetches.files.insert(held);
    }

    /// The fault of this host: the task is returned without an attempt, or fails with the reason if only this engine may run it.
    fn values_not_stored(&mut self, now: Now, held: Held, reason: String, effects: &mut Vec<Effect>) {
        let reason = format!("the values of a reduction cannot be stored: {reason}");
        let options = self.maps.get(&held.map).map(|state| &state.definition.options);
        if options.is_some_and(|options| options.targets.is_some()) {
            return self.value_fetch_failed(now, held, reason, effects);
        }
        effects.push(Effect::DeleteValues { held });
        self.storage_failed(now, reason);
        self.report_availability(effects);
        if let Some(at) = self.queue.iter().position(|unit| unit.held() == Some(held)) {
            let unit = self.queue.remove(at);
            self.return_units(unit, effects);
        }
    }

    fn value_fetch_failed(&mut self, now: Now, held: Held, reason: String, effects: &mut Vec<Effect>) {
        self.fetches.current = None;
        effects.push(Effect::DeleteValues { held });
        if let Some(at) = self.queue.iter().position(|unit| unit.held() == Some(held))
            && let Some(unit) = self.queue.remove(at)
        {
            self.fail(now, unit, "ValueUnavailable", reason, effects);
        }
    }

    /// Deletes the files of tasks that this engine no longer holds.
    pub(super) fn delete_stale_values(&mut self, effects: &mut Vec<Effect>) {
        if self.fetches.current.is_none() && self.fetches.files.is_empty() {
            return;
        }
        let holds: HashSet<Held> = self.holds().into_iter().collect();
        let current = self.fetches.current.take_if(|fetch| !holds.contains(&fetch.held));
        let gone = current.map(|fetch| fetch.held).into_iter();
        let gone = gone.chain(self.fetches.files.extract_if(|held| !holds.contains(held)));
        effects.extend(gone.map(|held| Effect::DeleteValues { held }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MapId;
    use proptest::prelude::*;

    fn fetch(count: usize) -> ValueFetch {
        let task = |at: usize| TaskId::new(MapId(7), at as u32);
        ValueFetch {
            held: Held {
                map: MapId(8),
                index: 0,
                run: 1,
            },
            sources: (0..count).map(|at| (task(at), task(at).to_string())).collect(),
            received: Vec::new(),
            start: 0,
        }
    }

    proptest! {
        /// However the values are split into parts, the file has them in order and their sizes are correct.
        #[test]
        fn values_come_in_parts(sizes in proptest::collection::vec(0usize..50, 1..20), limits in proptest::collection::vec(1usize..60, 1..200)) {
            let all: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(at, size)| vec![at as u8; *size]).collect();
            let (mut fetch, mut file) = (fetch(all.len()), Vec::new());
            for limit in limits.iter().cycle().take(2_000) {
                if fetch.is_complete() {
                    break;
                }
                let request = fetch.request();
                let (mut parts, mut buffers, mut room) = (Vec::new(), Vec::new(), *limit);
                for (i, task) in request.of.iter().enumerate() {
                    let value = &all[task.index as usize];
                    let start = if i == 0 { request.start as usize } else { 0 };
                    let end = value.len().min(start + room);
                    parts.push(ValuePart { size: value.len() as u64, pickled: task.index % 2 == 0 });
                    buffers.push(Bytes::copy_from_slice(&value[start..end]));
                    room -= end - start;
                    if end < value.len() || room == 0 {
                        break;
                    }
                }
                prop_assert!(fetch.take(&parts, &buffers));
                buffers.iter().for_each(|bytes| file.extend_from_slice(bytes));
            }
            prop_assert!(fetch.is_complete() && file == all.concat());
            let seen: Vec<(u64, bool)> = fetch.received.iter().map(|part| (part.size, part.pickled)).collect();
            let expected: Vec<(u64, bool)> = sizes.iter().enumerate().map(|(at, size)| (*size as u64, at % 2 == 0)).collect();
            prop_assert_eq!(seen, expected);
        }
    }

    #[test]
    fn mismatched_parts_are_rejected() {
        let part = |size| ValuePart { size, pickled: false };
        let bytes = |length| Bytes::from(vec![b'x'; length]);
        for (parts, buffers) in [
            (vec![part(3)], vec![bytes(4)]),
            (vec![part(3), part(1)], vec![bytes(2), bytes(1)]),
            (vec![part(1); 3], vec![bytes(1); 3]),
            (vec![part(1)], vec![]),
            (vec![], vec![]),
        ] {
            assert!(!fetch(2).take(&parts, &buffers), "{parts:?}");
        }
    }
}
