//! A list of byte strings as one blob: their number, then each one's length (both unsigned 64-bit little-endian), then
//! the bytes one after the other. An empty list is NULL in the database.
//!
//! In a file the highest bit of the number is set, and each byte string begins at a multiple of [`ALIGNMENT`]: a worker maps the file
//! and uses its content as arrays.
use bytes::{Buf, BufMut, Bytes};

/// A cache line, more than vector instructions require.
const ALIGNMENT: usize = 64;
const ALIGNED: u64 = 1 << 63;

pub(super) fn encode(buffers: &[Bytes]) -> Option<Vec<u8>> {
    if buffers.is_empty() {
        return None;
    }
    let mut blob = head(buffers, buffers.len() as u64);
    blob.reserve_exact(buffers.iter().map(Bytes::len).sum());
    for buffer in buffers {
        blob.put_slice(buffer);
    }
    Some(blob)
}

/// The content of their file, in pieces.
pub(super) fn laid_out(buffers: &[Bytes]) -> Vec<Bytes> {
    static NOTHING: [u8; ALIGNMENT] = [0; ALIGNMENT];
    let head = Bytes::from(head(buffers, buffers.len() as u64 | ALIGNED));
    let mut length = head.len();
    let mut pieces = vec![head];
    for buffer in buffers {
        let start = length.next_multiple_of(ALIGNMENT);
        pieces.push(Bytes::from_static(&NOTHING[..start - length]));
        pieces.push(buffer.clone());
        length = start + buffer.len();
    }
    pieces
}

/// The header.
fn head(buffers: &[Bytes], number: u64) -> Vec<u8> {
    let mut head = Vec::with_capacity(8 * (1 + buffers.len()));
    head.put_u64_le(number);
    for buffer in buffers {
        head.put_u64_le(buffer.len() as u64);
    }
    head
}

/// The buffers share `blob`'s memory. None if it was not written by [`encode`], nor [`laid_out`].
pub(super) fn decode(blob: Bytes) -> Option<Vec<Bytes>> {
    let mut head = blob.clone();
    let number = head.try_get_u64_le().ok()?;
    let count = usize::try_from(number & !ALIGNED).ok()?;
    if count > head.len() / 8 {
        return None;
    }
    let alignment = if number & ALIGNED == 0 { 1 } else { ALIGNMENT };
    let mut end = 8 + 8 * count;
    let mut buffers = Vec::with_capacity(count);
    for _ in 0..count {
        let start = end.checked_next_multiple_of(alignment)?;
        end = start.checked_add(usize::try_from(head.get_u64_le()).ok()?)?;
        if end > blob.len() {
            return None;
        }
        buffers.push(blob.slice(start..end));
    }
    (end == blob.len()).then_some(buffers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lists_of_buffers_round_trip(list in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 1..10)) {
            let list: Vec<Bytes> = list.into_iter().map(Bytes::from).collect();
            let blob = Bytes::from(encode(&list).unwrap());
            prop_assert_eq!(decode(blob.clone()), Some(list.clone()));
            prop_assert_eq!(decode(blob.slice(..blob.len() - 1)), None);
            let file = Bytes::from(laid_out(&list).concat());
            let found = decode(file.clone()).unwrap();
            prop_assert_eq!(&found, &list);
            for buffer in found.iter().filter(|buffer| !buffer.is_empty()) {
                prop_assert!((buffer.as_ptr() as usize - file.as_ptr() as usize).is_multiple_of(ALIGNMENT));
            }
            prop_assert_eq!(decode([&file[..], b"x"].concat().into()), None);
        }
        #[test]
        fn arbitrary_bytes_never_panic(mut blob in proptest::collection::vec(any::<u8>(), 0..60), count in 0u8..9) {
            let _ = decode(blob.clone().into());
            if let Some(number) = blob.get_mut(..8) {
                number.copy_from_slice(&[count, 0, 0, 0, 0, 0, 0, 0x80]);
                let _ = decode(blob.into());
            }
        }
    }

    #[test]
    fn no_buffers_are_null() {
        assert_eq!(encode(&[]), None);
        assert_eq!(decode(Bytes::from_static(&[255; 24])), None);
    }
}
