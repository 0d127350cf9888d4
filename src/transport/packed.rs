//! Sends small messages between pcluster's own ends as one frame: with CURVE each frame costs an
//! encryption, microseconds on either side, and the message of a task has ten frames.
//!
//! Format: the four bytes of [`MARK`], then for each part its length (u32, little-endian) and the
//! part.
use crate::wire::Frames;
use bytes::{Buf, BufMut, BytesMut};

/// No channel of the native protocol has this name, and no message of ipyparallel's protocol has
/// only one frame.
const MARK: &[u8; 4] = b"\0pk1";
/// Larger messages are sent unchanged, without a copy.
const MAX_PACKED_BYTES: usize = 32 << 10;

/// Combines the frames from `first` on into one, if they are small.
pub(super) fn pack(frames: Frames, first: usize) -> Frames {
    let parts = frames.get(first..).unwrap_or_default();
    let size: usize = parts.iter().map(|part| part.len() + 4).sum();
    if parts.len() < 2 || size > MAX_PACKED_BYTES {
        return frames;
    }
    let mut packed = BytesMut::with_capacity(MARK.len() + size);
    packed.put_slice(MARK);
    for part in parts {
        packed.put_u32_le(part.len() as u32);
        packed.put_slice(part);
    }
    let mut frames = frames;
    frames.truncate(first);
    frames.push(packed.freeze());
    frames
}

pub(super) fn is_packed(frame: &[u8]) -> bool {
    frame.starts_with(MARK)
}

/// Restores the frames from before [`pack`]; returns others unchanged. None if the lengths are
/// invalid, or the frames exceed `max_frames`.
pub(super) fn unpack(mut frames: Frames, max_frames: usize) -> Option<Frames> {
    if frames.last().is_none_or(|last| !is_packed(last)) {
        return Some(frames);
    }
    let mut packed = frames.pop()?;
    packed.advance(MARK.len());
    while packed.has_remaining() {
        let length = packed.try_get_u32_le().ok()? as usize;
        if length > packed.len() || frames.len() >= max_frames {
            return None;
        }
        frames.push(packed.split_to(length));
    }
    Some(frames)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packed_frames_round_trip(
            list in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..12),
            first in 0usize..3,
            long in any::<bool>(),
        ) {
            let mut given: Frames = list.into_iter().map(Bytes::from).collect();
            if long {
                given.push(Bytes::from(vec![1; MAX_PACKED_BYTES]));
            }
            let packed = pack(given.clone(), first);
            prop_assert_eq!(packed.len() == given.len(), long || given.len() < first + 2);
            prop_assert_eq!(unpack(packed, usize::MAX), Some(given));
        }
        #[test]
        fn foreign_frames_never_panic(body in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = unpack(vec![Bytes::from([&MARK[..], &body].concat())], 5);
        }
    }

    #[test]
    fn the_number_of_frames_is_limited() {
        let packed = pack(vec![Bytes::new(); 10], 0);
        assert_eq!(packed.len(), 1);
        assert_eq!(unpack(packed.clone(), 9), None);
        assert_eq!(unpack(packed, 10).map(|frames| frames.len()), Some(10));
    }
}
