//! Values that a task of `--reduce` folds. Its input names their tasks; they are fetched, a part at a time, into a file of this host
//! before the task is given to its worker, which then reads them one by one.
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
const AT_ONCE: usize = 512;
/// How an input begins that names tasks.
const PREFIX: &[u8] = b"{\"values\":";

#[derive(Debug)]
struct Gathering {
    held: Held,
    /// Each with the tasks whose reduction it is, in words.
    of: Vec<(TaskId, String)>,
    /// Those that have come.
    have: Vec<ValuePart>,
    /// So many bytes of the next have come.
    start: u64,
}

impl Gathering {
    fn request(&self) -> ValuesRequest {
        let left = self.of.iter().skip(self.have.len());
        ValuesRequest {
            task: self.held,
            of: left.map(|(task, _)| *task).take(AT_ONCE).collect(),
            start: self.start,
        }
    }

    fn is_complete(&self) -> bool {
        self.have.len() == self.of.len()
    }

    /// False where that is not what was asked for.
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
                self.have.push(*part);
                self.start = 0;
            }
        }
        !values.is_empty()
    }
}

#[derive(Debug, Default)]
pub(super) struct Gathered {
    current: Option<Gathering>,
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
    /// The next unit waits for values.
    pub(super) fn needs_values(&self, held: Held, input: &Bytes) -> bool {
        input.starts_with(PREFIX)
            && self
                .maps
                .get(&held.map)
                .is_some_and(|state| state.definition.options.reduces.is_some())
    }

    /// Has the values of the next unit fetched; false while they are under way.
    pub(super) fn gather(&mut self, now: Now, effects: &mut Vec<Effect>) -> bool {
        let Some(Unit::Task { held, input }) = self.queue.front() else {
            return true;
        };
        if self.gathered.current.as_ref().is_some_and(|gathering| gathering.held == *held) {
            return false;
        }
        match serde_json::from_slice::<References>(input) {
            Ok(References { values }) if !values.is_empty() => {
                let named = |value| match value {
                    Reference::Task(task) => (task, task.to_string()),
                    Reference::Reduced(task, whose) => (task, whose),
                };
                let gathering = Gathering {
                    held: *held,
                    of: values.into_iter().map(named).collect(),
                    have: Vec::new(),
                    start: 0,
                };
                if self.registered {
                    effects.push(Effect::SendValuesRequest(gathering.request()));
                }
                self.gathered.current = Some(gathering);
                false
            }
            _ => {
                let held = *held;
                self.not_gathered(now, held, "the input names no values".into(), effects);
                true
            }
        }
    }

    /// The connection is a new one: what was asked for is asked for again.
    pub(super) fn gather_again(&self, effects: &mut Vec<Effect>) {
        effects.extend(
            self.gathered
                .current
                .as_ref()
                .map(|gathering| Effect::SendValuesRequest(gathering.request())),
        );
    }

    pub(super) fn values_came(&mut self, now: Now, came: Values, bytes: Vec<Bytes>, effects: &mut Vec<Effect>) {
        let Some(gathering) = self.gathered.current.as_mut().filter(|gathering| gathering.held == came.task) else {
            return;
        };
        let is_next = gathering.of.get(gathering.have.len()).is_some_and(|(task, _)| *task == came.first);
        if !is_next || gathering.start != came.start {
            // The answer to a request that was sent again.
            return;
        }
        let (held, is_first) = (gathering.held, gathering.have.is_empty() && gathering.start == 0);
        if let Some(why) = came.error {
            return self.not_gathered(now, held, why, effects);
        }
        if !gathering.take(&came.values, &bytes) {
            return self.not_gathered(
                now,
                held,
                format!("the value of task {} came in parts that do not fit", came.first),
                effects,
            );
        }
        let is_last = gathering.is_complete();
        effects.push(Effect::KeepValues {
            held,
            is_first,
            bytes,
            is_last,
        });
        if !is_last {
            effects.push(Effect::SendValuesRequest(gathering.request()));
        }
    }

    /// All are in this file, or cannot be stored.
    pub(super) fn values_kept(&mut self, now: Now, held: Held, place: Result<String, String>, effects: &mut Vec<Effect>) {
        let Some(gathering) = self.gathered.current.take_if(|gathering| gathering.held == held) else {
            return;
        };
        let file = match place {
            Ok(file) => file,
            Err(why) => {
                return self.not_gathered(
                    now,
                    held,
                    format!("the values cannot be stored on the engine's host: {why}"),
                    effects,
                );
            }
        };
        let whose = gathering.of.iter().map(|(_, whose)| whose);
        let values: Vec<(&String, u64, bool)> = whose
            .zip(&gathering.have)
            .map(|(whose, part)| (whose, part.size, part.pickled))
            .collect();
        let ready = to_json(&serde_json::json!({ "file": file, "values": values }));
        if let Some(Unit::Task { input, .. }) = self.queue.iter_mut().find(|unit| unit.held() == Some(held)) {
            *input = ready;
        }
        self.gathered.files.insert(held);
    }

    fn not_gathered(&mut self, now: Now, held: Held, why: String, effects: &mut Vec<Effect>) {
        self.gathered.current = None;
        effects.push(Effect::ForgetValues { held });
        if let Some(at) = self.queue.iter().position(|unit| unit.held() == Some(held))
            && let Some(unit) = self.queue.remove(at)
        {
            self.fail(now, unit, "ValueUnavailable", why, effects);
        }
    }

    /// Files of tasks that are not here any more go.
    pub(super) fn forget_values(&mut self, effects: &mut Vec<Effect>) {
        if self.gathered.current.is_none() && self.gathered.files.is_empty() {
            return;
        }
        let holds: HashSet<Held> = self.holds().into_iter().collect();
        let current = self.gathered.current.take_if(|gathering| !holds.contains(&gathering.held));
        let gone = current.map(|gathering| gathering.held).into_iter();
        let gone = gone.chain(self.gathered.files.extract_if(|held| !holds.contains(held)));
        effects.extend(gone.map(|held| Effect::ForgetValues { held }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MapId;
    use proptest::prelude::*;

    fn gathering(count: usize) -> Gathering {
        let task = |at: usize| TaskId::new(MapId(7), at as u32);
        Gathering {
            held: Held {
                map: MapId(8),
                index: 0,
                run: 1,
            },
            of: (0..count).map(|at| (task(at), task(at).to_string())).collect(),
            have: Vec::new(),
            start: 0,
        }
    }

    proptest! {
        /// Whatever the parts in which they come: the file has the values, one behind the other, and their sizes are right.
        #[test]
        fn values_come_in_parts(sizes in proptest::collection::vec(0usize..50, 1..20), limits in proptest::collection::vec(1usize..60, 1..200)) {
            let all: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(at, size)| vec![at as u8; *size]).collect();
            let (mut gathering, mut file) = (gathering(all.len()), Vec::new());
            for limit in limits.iter().cycle().take(2_000) {
                if gathering.is_complete() {
                    break;
                }
                let request = gathering.request();
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
                prop_assert!(gathering.take(&parts, &buffers));
                buffers.iter().for_each(|bytes| file.extend_from_slice(bytes));
            }
            prop_assert!(gathering.is_complete() && file == all.concat());
            let seen: Vec<(u64, bool)> = gathering.have.iter().map(|part| (part.size, part.pickled)).collect();
            let expected: Vec<(u64, bool)> = sizes.iter().enumerate().map(|(at, size)| (*size as u64, at % 2 == 0)).collect();
            prop_assert_eq!(seen, expected);
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let part = |size| ValuePart { size, pickled: false };
        let bytes = |length| Bytes::from(vec![b'x'; length]);
        for (parts, buffers) in [
            (vec![part(3)], vec![bytes(4)]),
            (vec![part(3), part(1)], vec![bytes(2), bytes(1)]),
            (vec![part(1); 3], vec![bytes(1); 3]),
            (vec![part(1)], vec![]),
            (vec![], vec![]),
        ] {
            assert!(!gathering(2).take(&parts, &buffers), "{parts:?}");
        }
    }
}
