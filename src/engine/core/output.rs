//! Output of the running unit: for a task its bytes, buffered until the controller has recorded them; for a request its
//! text, forwarded as it arrives.
//!
//! A short output is sent with the task's result. A longer one, or one that is read while the task runs, is sent ahead in
//! parts. The buffer is bounded ([`WINDOW`]): readers of pipes and files check the limit before they read more.
use super::event::{Effect, Parent, Published};
use crate::model::output::{INLINE, Output, Stream, Written};
use crate::wire::content::engine::Part;
use crate::wire::message::to_json;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// Maximum size of all buffered outputs together before reading stops, and of the unacknowledged parts of one stream.
pub(crate) const WINDOW: usize = 2 << 20;
/// Maximum size of a part in bytes.
pub(crate) const PART: usize = 256 << 10;

/// One stream of one attempt, from the first unacknowledged byte on.
#[derive(Debug, Default)]
pub(crate) struct StreamBuffer {
    /// Number of acknowledged bytes.
    start: u64,
    /// Complete parts, ready to send or sent.
    parts: VecDeque<Bytes>,
    /// Number of parts that were sent.
    sent: usize,
    /// The incomplete last part.
    last: BytesMut,
    bytes: usize,
}

impl StreamBuffer {
    pub(crate) fn push(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = PART - self.last.len();
            let taken = rest.split_to(room.min(rest.len()));
            if self.last.is_empty() && taken.len() == PART {
                self.parts.push_back(taken);
                continue;
            }
            self.last.extend_from_slice(&taken);
            if self.last.len() == PART {
                self.parts.push_back(self.last.split().freeze());
            }
        }
    }

    /// Number of buffered bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes unsent parts, up to [`WINDOW`] unacknowledged bytes: full parts, and with `all` also the incomplete one.
    pub(crate) fn take_parts(&mut self, stream: Stream, all: bool, into: &mut Vec<(Part, Bytes)>) {
        if all && !self.last.is_empty() {
            self.parts.push_back(self.last.split().freeze());
        }
        let mut in_flight: usize = self.parts.iter().take(self.sent).map(Bytes::len).sum();
        while let Some(part) = self.parts.get(self.sent).filter(|_| in_flight < WINDOW) {
            let start = self.start + in_flight as u64;
            into.push((Part { stream, start }, part.clone()));
            in_flight += part.len();
            self.sent += 1;
        }
    }

    /// Marks all unacknowledged bytes for sending again.
    pub(crate) fn rewind(&mut self) {
        self.sent = 0;
    }

    /// Drops the bytes before this position: they are acknowledged.
    pub(crate) fn recorded(&mut self, end: u64) {
        while let Some(part) = self.parts.front_mut()
            && self.start < end
        {
            let count = (end - self.start).min(part.len() as u64);
            self.start += count;
            self.bytes -= count as usize;
            if count == part.len() as u64 {
                self.parts.pop_front();
                self.sent = self.sent.saturating_sub(1);
            } else {
                *part = part.slice(count as usize..);
            }
        }
    }

    /// Returns the remaining bytes, for the result.
    pub(crate) fn finish(self) -> Output {
        let mut bytes = BytesMut::with_capacity(self.bytes);
        self.parts.iter().for_each(|part| bytes.extend_from_slice(part));
        let bytes = match bytes.is_empty() {
            true => self.last,
            false => {
                bytes.extend_from_slice(&self.last);
                bytes
            }
        };
        Output::rest(self.start, bytes.freeze())
    }
}

/// The streams of one attempt.
#[derive(Debug, Default)]
pub(crate) struct Streams([StreamBuffer; 3]);

impl Streams {
    pub(crate) fn push(&mut self, [out, err]: [Bytes; 2]) {
        self.0[0].push(out);
        self.0[1].push(err);
    }

    /// Adds a complete long value.
    pub(crate) fn push_value(&mut self, value: Bytes) {
        self.0[2].push(value);
    }

    /// Buffered bytes of stdout and stderr.
    pub(crate) fn bytes(&self) -> usize {
        self.0[0].bytes() + self.0[1].bytes()
    }

    pub(crate) fn value_bytes(&self) -> usize {
        self.0[2].bytes()
    }

    /// Returns whether the remaining output fits into the result and no part of a long value is left.
    pub(crate) fn is_short(&self) -> bool {
        self.bytes() <= INLINE && self.value_bytes() == 0
    }

    pub(crate) fn take_parts(&mut self, all: bool) -> Vec<(Part, Bytes)> {
        let mut parts = Vec::new();
        for (buffer, stream) in self.0.iter_mut().zip(Stream::ALL) {
            buffer.take_parts(stream, all, &mut parts);
        }
        parts
    }

    pub(crate) fn rewind(&mut self) {
        self.0.iter_mut().for_each(StreamBuffer::rewind);
    }

    pub(crate) fn recorded(&mut self, end: Written) {
        self.0.iter_mut().zip(end).for_each(|(buffer, end)| buffer.recorded(end));
    }

    /// Returns the rest of stdout and stderr.
    pub(crate) fn finish(self) -> [Output; 2] {
        let [stdout, stderr, _] = self.0;
        [stdout, stderr].map(StreamBuffer::finish)
    }
}

/// Output of a request: text that is forwarded as it arrives.
#[derive(Debug, Default)]
pub(crate) struct TextBuffer {
    bytes: Vec<u8>,
}

impl TextBuffer {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the text received so far; an incomplete character at the end remains buffered.
    pub(crate) fn take(&mut self) -> String {
        let whole = whole_characters(&self.bytes);
        let rest = self.bytes.split_off(whole);
        text(std::mem::replace(&mut self.bytes, rest))
    }

    /// Returns everything that was not taken.
    pub(crate) fn finish(self) -> String {
        text(self.bytes)
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// Length of the prefix of whole characters: everything except an incomplete one at the end.
fn whole_characters(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let at = bytes.len() - back;
        let length = match bytes[at] {
            b if b & 0b1100_0000 == 0b1000_0000 => continue,
            b if b & 0b1110_0000 == 0b1100_0000 => 2,
            b if b & 0b1111_0000 == 0b1110_0000 => 3,
            b if b & 0b1111_1000 == 0b1111_0000 => 4,
            _ => 1,
        };
        return if length > back { at } else { bytes.len() };
    }
    bytes.len()
}

/// Publishes output that belongs to no unit, without a parent request.
pub(super) fn unclaimed(output: [Bytes; 2], effects: &mut Vec<Effect>) {
    for (name, bytes) in ["stdout", "stderr"].into_iter().zip(output) {
        let mut text = TextBuffer::default();
        text.push(&bytes);
        let text = text.finish();
        if !text.is_empty() {
            let published = Published {
                parent: Parent::None,
                kind: "stream".into(),
                topic: name.into(),
                metadata: Default::default(),
                content: to_json(&serde_json::json!({ "name": name, "text": text })),
                buffers: Vec::new(),
            };
            effects.push(Effect::Publish { parent: None, published });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A controller's record of one stream: appends the bytes that follow and ignores duplicates.
    #[derive(Default)]
    struct StreamRecord(Vec<u8>);

    impl StreamRecord {
        fn take(&mut self, start: u64, bytes: &[u8]) {
            let have = self.0.len() as u64;
            if start <= have
                && let Some(new) = bytes.get((have - start) as usize..)
            {
                self.0.extend_from_slice(new);
            }
        }
    }

    proptest! {
        #[test]
        fn text_is_forwarded_in_whole_characters(chunks in proptest::collection::vec(("\\PC{0,9}", any::<bool>()), 0..20)) {
            let whole: String = chunks.iter().map(|(chunk, _)| chunk.as_str()).collect();
            let (mut text, mut forwarded) = (TextBuffer::default(), String::new());
            for (chunk, take) in &chunks {
                // byte by byte: characters arrive in parts
                for byte in chunk.bytes() {
                    text.push(&[byte]);
                    if *take {
                        forwarded.push_str(&text.take());
                    }
                }
            }
            forwarded.push_str(&text.finish());
            prop_assert_eq!(forwarded, whole);
        }

        /// The record is exact, even if parts are lost, duplicated or reordered, or acknowledgements are lost or late.
        #[test]
        fn record_equals_the_stream(
            steps in proptest::collection::vec((0usize..3 * PART, 0u8..8, any::<bool>()), 1..30),
        ) {
            let (mut buffer, mut record, mut all) = (StreamBuffer::default(), StreamRecord::default(), Vec::new());
            let mut in_flight: VecDeque<(u64, Bytes)> = VecDeque::new();
            for (number, (length, what, flag)) in steps.into_iter().enumerate() {
                match what {
                    0..=2 => {
                        let bytes: Vec<u8> = (0..length).map(|at| (at * 31 + number) as u8).collect();
                        all.extend_from_slice(&bytes);
                        buffer.push(bytes.into());
                    }
                    3 => {
                        let mut parts = Vec::new();
                        buffer.take_parts(Stream::Stdout, flag, &mut parts);
                        in_flight.extend(parts.into_iter().map(|(part, bytes)| (part.start, bytes)));
                    }
                    4 => in_flight.drain(..).for_each(|(start, bytes)| record.take(start, &bytes)),
                    // The connection breaks: all or some of the parts in flight are lost.
                    5 => {
                        if flag && let Some((start, bytes)) = in_flight.pop_front() {
                            record.take(start, &bytes);
                        }
                        in_flight.clear();
                        buffer.rewind();
                    }
                    6 => {
                        let known = record.0.len() as u64;
                        buffer.recorded(if flag { known } else { known / 2 });
                    }
                    _ => if let Some(again) = in_flight.front().cloned() {
                        in_flight.push_back(again);
                    },
                }
                prop_assert!(all.starts_with(&record.0));
            }
            in_flight.drain(..).for_each(|(start, bytes)| record.take(start, &bytes));
            let rest = buffer.finish();
            prop_assert!(rest.start <= record.0.len() as u64, "nothing is missing");
            record.take(rest.start, &rest.bytes);
            prop_assert_eq!(rest.size, all.len() as u64);
            prop_assert!(record.0 == all);
        }
    }

    #[test]
    fn a_long_value_is_sent_in_windows_before_its_result() {
        let value: Vec<u8> = (0..5 * WINDOW + 7).map(|at| (at * 31) as u8).collect();
        let (mut streams, mut record) = (Streams::default(), StreamRecord::default());
        streams.push_value(value.clone().into());
        assert!(!streams.is_short() && streams.bytes() == 0);
        while !streams.is_short() {
            let parts = streams.take_parts(true);
            let in_flight: usize = parts.iter().map(|(_, bytes)| bytes.len()).sum();
            assert!((1..WINDOW + PART).contains(&in_flight));
            assert!(streams.take_parts(true).is_empty(), "nothing is sent before an acknowledgement");
            parts.iter().for_each(|(part, bytes)| {
                assert_eq!(part.stream, Stream::Value);
                record.take(part.start, bytes);
            });
            streams.recorded([0, 0, record.0.len() as u64]);
        }
        assert!(record.0 == value);
    }

    #[test]
    fn full_parts_are_sent_first_and_the_rest_on_request() {
        let mut streams = Streams::default();
        streams.push([vec![b'x'; PART + 3].into(), Bytes::from_static(b"oh")]);
        assert!(!streams.is_short());
        let lengths = |parts: Vec<(Part, Bytes)>| -> Vec<_> { parts.iter().map(|(part, b)| (part.stream, part.start, b.len())).collect() };
        let (out, err, part) = (Stream::Stdout, Stream::Stderr, PART as u64);
        assert_eq!(lengths(streams.take_parts(false)), [(out, 0, PART)]);
        assert_eq!(lengths(streams.take_parts(true)), [(out, part, 3), (err, 0, 2)]);
        assert_eq!(lengths(streams.take_parts(true)), []);
        streams.recorded([part, 1, 0]);
        assert!(streams.is_short());
        streams.rewind();
        assert_eq!(lengths(streams.take_parts(true)), [(out, part, 3), (err, 1, 1)]);
        let [stdout, stderr] = streams.finish();
        assert_eq!((stdout.start, stdout.bytes.len(), stdout.size), (part, 3, part + 3));
        assert_eq!((stderr.start, &stderr.bytes[..], stderr.size), (1, &b"h"[..], 2));
    }
}
