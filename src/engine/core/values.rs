//! Values that a task of `--reduce` folds, while they arrive.
use crate::model::TaskId;
use crate::wire::content::engine::{Held, ValuePart, ValuesRequest};
use bytes::Bytes;
use std::collections::HashSet;

/// Values in one request.
const MAX_VALUES: usize = 512;
#[derive(Debug)]
pub(super) struct ValueFetch {
    pub held: Held,
    /// Each source with a description of the tasks whose reduction it is.
    pub sources: Vec<(TaskId, String)>,
    /// Completely received values.
    pub received: Vec<ValuePart>,
    /// Number of received bytes of the next value.
    pub start: u64,
}

impl ValueFetch {
    pub(super) fn request(&self) -> ValuesRequest {
        let left = self.sources.iter().skip(self.received.len());
        ValuesRequest {
            task: self.held,
            of: left.map(|(task, _)| *task).take(MAX_VALUES).collect(),
            start: self.start,
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.received.len() == self.sources.len()
    }

    /// Adds received parts; returns false if they do not match the request.
    pub(super) fn take(&mut self, values: &[ValuePart], buffers: &[Bytes]) -> bool {
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
    pub current: Option<ValueFetch>,
    /// Tasks whose values are in a file.
    pub files: HashSet<Held>,
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
