//! What the unit that runs has written: of a task its bytes, kept until the controller has them on disk; of a request its
//! text, passed on as it comes.
//!
//! A short output stays here and leaves with the task's result. Of one that is longer, or that is looked at while the task
//! runs, parts leave before. What is kept is bounded ([`WINDOW`]): who reads pipes and files asks before it reads more.
use crate::model::output::{INLINE, Output, Stream, Written};
use crate::wire::content::engine::Part;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// So much may be kept of all outputs together before no more is read, and so much of one stream may be on its way.
pub const WINDOW: usize = 2 << 20;
/// A part has up to so many bytes.
pub const PART: usize = 256 << 10;

/// One stream of one attempt, from the first byte that is not known to be on record.
#[derive(Debug, Default)]
pub struct Kept {
    /// So many bytes are on record.
    start: u64,
    /// Parts as they are sent.
    parts: VecDeque<Bytes>,
    /// How many of them were sent.
    sent: usize,
    /// What makes no part yet.
    last: BytesMut,
    bytes: usize,
}

impl Kept {
    pub fn push(&mut self, bytes: Bytes) {
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

    /// Bytes that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What was not sent: full parts, with `all` the rest too; as much as may be on its way at once.
    pub fn take_parts(&mut self, stream: Stream, all: bool, into: &mut Vec<(Part, Bytes)>) {
        if all && !self.last.is_empty() {
            self.parts.push_back(self.last.split().freeze());
        }
        let mut on_its_way: usize = self.parts.iter().take(self.sent).map(Bytes::len).sum();
        while let Some(part) = self.parts.get(self.sent).filter(|_| on_its_way < WINDOW) {
            let start = self.start + on_its_way as u64;
            into.push((Part { stream, start }, part.clone()));
            on_its_way += part.len();
            self.sent += 1;
        }
    }

    /// Everything that is not known to be on record is to be sent again.
    pub fn rewind(&mut self) {
        self.sent = 0;
    }

    /// So many bytes of the stream are on record.
    pub fn recorded(&mut self, upto: u64) {
        while let Some(part) = self.parts.front_mut()
            && self.start < upto
        {
            let count = (upto - self.start).min(part.len() as u64);
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

    /// What is kept, for the result.
    pub fn finish(self) -> Output {
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
pub struct Streams([Kept; 3]);

impl Streams {
    pub fn push(&mut self, [out, err]: [Bytes; 2]) {
        self.0[0].push(out);
        self.0[1].push(err);
    }

    /// A long value, all of it.
    pub fn push_value(&mut self, value: Bytes) {
        self.0[2].push(value);
    }

    /// Of what it has written.
    pub fn bytes(&self) -> usize {
        self.0[0].bytes() + self.0[1].bytes()
    }

    pub fn value_bytes(&self) -> usize {
        self.0[2].bytes()
    }

    /// It can leave with the result: no long value is left.
    pub fn is_short(&self) -> bool {
        self.bytes() <= INLINE && self.value_bytes() == 0
    }

    pub fn take_parts(&mut self, all: bool) -> Vec<(Part, Bytes)> {
        let mut parts = Vec::new();
        for (kept, stream) in self.0.iter_mut().zip(Stream::ALL) {
            kept.take_parts(stream, all, &mut parts);
        }
        parts
    }

    pub fn rewind(&mut self) {
        self.0.iter_mut().for_each(Kept::rewind);
    }

    pub fn recorded(&mut self, upto: Written) {
        self.0.iter_mut().zip(upto).for_each(|(kept, upto)| kept.recorded(upto));
    }

    /// What is left of stdout and stderr.
    pub fn finish(self) -> [Output; 2] {
        let [stdout, stderr, _] = self.0;
        [stdout, stderr].map(Kept::finish)
    }
}

/// Of a request: text that is passed on as it comes.
#[derive(Debug, Default)]
pub struct Text {
    bytes: Vec<u8>,
}

impl Text {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// What has come; a character that has come in part waits for its other part.
    pub fn take(&mut self) -> String {
        let whole = whole_characters(&self.bytes);
        let rest = self.bytes.split_off(whole);
        text(std::mem::replace(&mut self.bytes, rest))
    }

    /// All that was not taken.
    pub fn finish(self) -> String {
        text(self.bytes)
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// How many bytes hold whole characters: all but an unfinished one at the end.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A controller's record of one stream, that takes what follows and passes over the rest.
    #[derive(Default)]
    struct Record(Vec<u8>);

    impl Record {
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
        fn text_is_passed_on_whole(chunks in proptest::collection::vec(("\\PC{0,9}", any::<bool>()), 0..20)) {
            let whole: String = chunks.iter().map(|(chunk, _)| chunk.as_str()).collect();
            let (mut text, mut passed) = (Text::default(), String::new());
            for (chunk, take) in &chunks {
                // byte by byte: characters arrive in parts
                for byte in chunk.bytes() {
                    text.push(&[byte]);
                    if *take {
                        passed.push_str(&text.take());
                    }
                }
            }
            passed.push_str(&text.finish());
            prop_assert_eq!(passed, whole);
        }

        /// Parts get lost, come twice, come after later ones; words that they are on record get lost or come late: the record is exact.
        #[test]
        fn parts_make_up_the_whole(
            steps in proptest::collection::vec((0usize..3 * PART, 0u8..8, any::<bool>()), 1..30),
        ) {
            let (mut kept, mut record, mut all) = (Kept::default(), Record::default(), Vec::new());
            let mut on_their_way: VecDeque<(u64, Bytes)> = VecDeque::new();
            for (number, (length, what, flag)) in steps.into_iter().enumerate() {
                match what {
                    0..=2 => {
                        let bytes: Vec<u8> = (0..length).map(|at| (at * 31 + number) as u8).collect();
                        all.extend_from_slice(&bytes);
                        kept.push(bytes.into());
                    }
                    3 => {
                        let mut parts = Vec::new();
                        kept.take_parts(Stream::Stdout, flag, &mut parts);
                        on_their_way.extend(parts.into_iter().map(|(part, bytes)| (part.start, bytes)));
                    }
                    4 => on_their_way.drain(..).for_each(|(start, bytes)| record.take(start, &bytes)),
                    // The connection breaks: what was under way is lost, or some of it.
                    5 => {
                        if flag && let Some((start, bytes)) = on_their_way.pop_front() {
                            record.take(start, &bytes);
                        }
                        on_their_way.clear();
                        kept.rewind();
                    }
                    6 => {
                        let known = record.0.len() as u64;
                        kept.recorded(if flag { known } else { known / 2 });
                    }
                    _ => if let Some(again) = on_their_way.front().cloned() {
                        on_their_way.push_back(again);
                    },
                }
                prop_assert!(all.starts_with(&record.0));
            }
            on_their_way.drain(..).for_each(|(start, bytes)| record.take(start, &bytes));
            let rest = kept.finish();
            prop_assert!(rest.start <= record.0.len() as u64, "nothing is missing");
            record.take(rest.start, &rest.bytes);
            prop_assert_eq!(rest.size, all.len() as u64);
            prop_assert!(record.0 == all);
        }
    }

    #[test]
    fn a_long_value_leaves_in_windows_and_before_its_result() {
        let value: Vec<u8> = (0..5 * WINDOW + 7).map(|at| (at * 31) as u8).collect();
        let (mut streams, mut record) = (Streams::default(), Record::default());
        streams.push_value(value.clone().into());
        assert!(!streams.is_short() && streams.bytes() == 0);
        while !streams.is_short() {
            let parts = streams.take_parts(true);
            let on_its_way: usize = parts.iter().map(|(_, bytes)| bytes.len()).sum();
            assert!((1..WINDOW + PART).contains(&on_its_way));
            assert!(streams.take_parts(true).is_empty(), "not before some is on record");
            parts.iter().for_each(|(part, bytes)| {
                assert_eq!(part.stream, Stream::Value);
                record.take(part.start, bytes);
            });
            streams.recorded([0, 0, record.0.len() as u64]);
        }
        assert!(record.0 == value);
    }

    #[test]
    fn full_parts_leave_first_and_the_rest_when_all_is_asked_for() {
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
