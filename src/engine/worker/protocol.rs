//! Encoding of the protocol between engine and worker.
//!
//! To the worker, frames: kind (1 byte), 3 bytes unused, ticket (u32), length of the body (u64), body; little endian.
//!
//! | kind | ticket | body |
//! |---|---|---|
//! | `D` definition | | JSON `[map, {work, options}, location of its code]`: `{directory}`, `{missing: reason}` or null |
//! | `T` tasks | of the first; the others are consecutive | JSON `[map, [input, …]]`, each input on its own line |
//! | `R` request of an ipyparallel client | its own | parts: JSON, header, metadata, content, buffers… |
//! | `F` forget | | JSON `map` |
//! | `M` module | | the source of `origins.py`, `kernel.py` and `ipython.py` |
//! | `S` settings of IPython's shell | | JSON `{traits, profile_dir, now}` |
//! | `C` clear the namespace | | |
//!
//! From the worker, records: kind, flags (1 byte), 2 bytes unused, ticket (u32), length of the body (u64), started and
//! ended (f64, seconds since 1970), body. With flag 1 the body starts with the ends of stdout and stderr (2 × u64);
//! without it nothing was written since the last record. With flag 2 the peak memory (u64, bytes) of the unit that ends with
//! this record follows; without it that of the last record stands.
//!
//! | kind | body |
//! |---|---|
//! | `H` hello | JSON `{version, executable, apply}` |
//! | `V` value | its JSON text |
//! | `P` value that JSON cannot represent exactly | parts: JSON `{type}`, a rendering as JSON text, the pickle |
//! | `E` error | JSON `{ename, evalue, traceback}` |
//! | `B` an execution has started | |
//! | `I` published message | parts: JSON `{type, topic}` with optional `metadata` of the message, content, buffers…; with `parent`, a header, it belongs to that request, which has ended, and with `{}` to none |
//! | `L` a line for the engine's log | text |
//! | `N` output up to this position belongs to no unit | |
//! | `A` reply to a request | parts: JSON `{status, ename}`, content, buffers… |
//!
//! Parts are encoded as their number (u32), their lengths (u64 each), and their bytes.
use bytes::{Buf, Bytes, BytesMut};

pub(crate) const FRAME_HEAD: usize = 16;
pub const RECORD_HEAD: usize = 32;
const POSITIONS: usize = 16;
const PEAK: usize = 8;
/// An input of at least this many bytes is not copied into a frame.
const OWN_PIECE: usize = 32 << 10;

/// The head of a frame whose body has `length` bytes.
pub(crate) fn frame_head(kind: u8, ticket: u32, length: usize) -> [u8; FRAME_HEAD] {
    let mut head = [0; FRAME_HEAD];
    head[0] = kind;
    head[4..8].copy_from_slice(&ticket.to_le_bytes());
    head[8..].copy_from_slice(&(length as u64).to_le_bytes());
    head
}

/// Encodes a frame as one buffer.
pub(crate) fn frame(kind: u8, ticket: u32, body: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(FRAME_HEAD + body.len());
    bytes.extend_from_slice(&frame_head(kind, ticket, body.len()));
    bytes.extend_from_slice(body);
    bytes.freeze()
}

/// Encodes a `T` frame; inputs are JSON texts. The worker parses all inputs at once and, if that fails, line by line, so that an
/// invalid input does not affect the others. Long inputs are pieces of their own, not copied.
pub(crate) fn tasks_frame(map: u32, first: u32, inputs: &[Bytes]) -> Vec<Bytes> {
    let mut body = Vec::new();
    let mut piece = format!("[{map},[").into_bytes();
    for (i, input) in inputs.iter().enumerate() {
        piece.extend_from_slice(if i > 0 { b",\n" } else { b"\n" });
        if input.len() >= OWN_PIECE && !input.contains(&b'\n') {
            body.extend([std::mem::take(&mut piece).into(), input.clone()]);
            continue;
        }
        let start = piece.len();
        piece.extend_from_slice(input);
        // Between JSON tokens a line break is equivalent to a space; inside of a token it cannot occur.
        piece[start..]
            .iter_mut()
            .filter(|byte| **byte == b'\n')
            .for_each(|byte| *byte = b' ');
    }
    piece.extend_from_slice(b"\n]]");
    if body.is_empty() {
        return vec![frame(b'T', first, &piece)];
    }
    body.push(piece.into());
    let length = body.iter().map(Bytes::len).sum();
    let head = Bytes::copy_from_slice(&frame_head(b'T', first, length));
    std::iter::once(head).chain(body).collect()
}

/// Encodes a frame of parts without copying the parts.
pub(crate) fn parts_frame(kind: u8, ticket: u32, parts: Vec<Bytes>) -> Vec<Bytes> {
    let index = 4 + 8 * parts.len();
    let length = index + parts.iter().map(Bytes::len).sum::<usize>();
    let mut head = BytesMut::with_capacity(FRAME_HEAD + index);
    head.extend_from_slice(&frame_head(kind, ticket, length));
    head.extend_from_slice(&(parts.len() as u32).to_le_bytes());
    for part in &parts {
        head.extend_from_slice(&(part.len() as u64).to_le_bytes());
    }
    std::iter::once(head.freeze()).chain(parts).collect()
}

/// Splits the body of [`parts_frame`]; None if the lengths are inconsistent.
pub fn parts(mut body: Bytes) -> Option<Vec<Bytes>> {
    let count = (body.len() >= 4).then(|| body.get_u32_le())? as usize;
    if body.len() / 8 < count {
        return None;
    }
    let lengths: Vec<u64> = (0..count).map(|_| body.get_u64_le()).collect();
    lengths
        .into_iter()
        .map(|length| {
            let length = usize::try_from(length).ok().filter(|length| *length <= body.len())?;
            Some(body.split_to(length))
        })
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecordHead {
    pub kind: u8,
    pub flags: u8,
    pub ticket: u32,
    pub length: usize,
    pub started: f64,
    pub ended: f64,
}

/// One record of the worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub kind: u8,
    pub ticket: u32,
    pub started: f64,
    pub ended: f64,
    /// Ends of stdout and stderr, if they have changed.
    pub positions: Option<(u64, u64)>,
    /// Peak memory in bytes, if it was measured.
    pub peak: Option<u64>,
    pub body: Bytes,
}

/// Decodes the first [`RECORD_HEAD`] bytes of a record.
pub fn record_head(head: &[u8; RECORD_HEAD]) -> RecordHead {
    let mut head = &head[..];
    let (kind, flags) = (head.get_u8(), head.get_u8());
    head.advance(2);
    RecordHead {
        kind,
        flags,
        ticket: head.get_u32_le(),
        length: head.get_u64_le() as usize,
        started: head.get_f64_le(),
        ended: head.get_f64_le(),
    }
}

impl RecordHead {
    /// The record with this body; None if the positions or the peak are missing.
    pub fn with(self, mut body: Bytes) -> Option<Record> {
        let positions = match self.flags & 1 {
            0 => None,
            _ if body.len() < POSITIONS => return None,
            _ => Some((body.get_u64_le(), body.get_u64_le())),
        };
        let peak = match self.flags & 2 {
            0 => None,
            _ if body.len() < PEAK => return None,
            _ => Some(body.get_u64_le()),
        };
        Some(Record {
            kind: self.kind,
            ticket: self.ticket,
            started: self.started,
            ended: self.ended,
            positions,
            peak,
            body,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_round_trip(parts_in in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..8)) {
            let given: Vec<Bytes> = parts_in.into_iter().map(Bytes::from).collect();
            let whole: Vec<u8> = parts_frame(b'R', 7, given.clone()).concat();
            prop_assert_eq!(&whole[8..16], &((whole.len() - FRAME_HEAD) as u64).to_le_bytes());
            prop_assert_eq!(parts(Bytes::from(whole).slice(FRAME_HEAD..)), Some(given));
        }
        #[test]
        fn decoding_arbitrary_parts_never_panics(body in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parts(Bytes::from(body));
        }
    }

    #[test]
    fn tasks_frame_is_valid_json() {
        let inputs = [Bytes::from_static(b"[1]"), Bytes::from_static(b"{\"a\":\n2}")];
        let frame = tasks_frame(3, 10, &inputs).concat();
        assert_eq!(&frame[FRAME_HEAD..], b"[3,[\n[1],\n{\"a\": 2}\n]]");
        assert_eq!((frame[0], frame[4]), (b'T', 10));
    }

    #[test]
    fn long_inputs_are_not_copied() {
        let long = |text: &str| Bytes::from(format!("[\"{}\"{text}]", "x".repeat(OWN_PIECE)));
        let inputs = ["[1]".into(), long(""), "[2]".into(), long(",\n3"), long("")];
        let pieces = tasks_frame(3, 10, &inputs);
        let is_input = |at: usize| pieces.iter().any(|piece| piece.as_ptr() == inputs[at].as_ptr());
        assert_eq!([1, 3, 4].map(is_input), [true, false, true]);
        let frame = pieces.concat();
        assert_eq!(frame[8..FRAME_HEAD], ((frame.len() - FRAME_HEAD) as u64).to_le_bytes());
        let lines: Vec<&[u8]> = frame[FRAME_HEAD..].split(|byte| *byte == b'\n').collect();
        assert_eq!(lines.len(), inputs.len() + 2, "each input on its own line");
        let (map, values): (u32, Vec<serde_json::Value>) = serde_json::from_slice(&frame[FRAME_HEAD..]).unwrap();
        let expected = inputs.iter().map(|input| serde_json::from_slice(input).unwrap());
        assert_eq!((map, values), (3, expected.collect()));
    }

    #[test]
    fn records_without_positions_are_rejected() {
        let head = RecordHead {
            kind: b'V',
            flags: 1,
            ticket: 1,
            length: 3,
            started: 0.0,
            ended: 0.0,
        };
        assert_eq!(head.with(Bytes::from_static(b"abc")), None);
    }
}
