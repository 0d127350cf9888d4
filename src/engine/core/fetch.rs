//! Fetches the values that a task of `--reduce` folds. Its input names the tasks that produced them. The engine fetches them, one part at a
//! time, into a local file before it dispatches the task; the worker then reads them one by one.
use super::Core;
use super::event::{Effect, Now};
use super::unit::Unit;
use super::values::ValueFetch;
use crate::model::TaskId;
use crate::wire::content::engine::{Held, Values};
use crate::wire::message::to_json;
use bytes::Bytes;
use serde::Deserialize;
use std::collections::HashSet;

/// Prefix of an input that names tasks.
const PREFIX: &[u8] = b"{\"values\":";

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
        let Some(Unit::Task { held, input, .. }) = self.queue.front() else {
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
        self.code.values_written();
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
        self.code.failed(now, None, reason);
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
