//! A list of byte strings as one blob: their number, then each one's length (both unsigned 64-bit little-endian), then
//! the bytes one after the other. An empty list is NULL in the database.
use bytes::{Buf, BufMut, Bytes};

pub fn encode(buffers: &[Bytes]) -> Option<Vec<u8>> {
    if buffers.is_empty() {
        return None;
    }
    let mut blob = head(buffers);
    blob.reserve_exact(buffers.iter().map(Bytes::len).sum());
    for buffer in buffers {
        blob.put_slice(buffer);
    }
    Some(blob)
}

/// What stands in front of the bytes.
pub fn head(buffers: &[Bytes]) -> Vec<u8> {
    let mut head = Vec::with_capacity(8 * (1 + buffers.len()));
    head.put_u64_le(buffers.len() as u64);
    for buffer in buffers {
        head.put_u64_le(buffer.len() as u64);
    }
    head
}

/// The buffers share `blob`'s memory. None if it was not written by [`encode`].
pub fn decode(blob: Bytes) -> Option<Vec<Bytes>> {
    let mut head = blob;
    let count = usize::try_from(head.try_get_u64_le().ok()?).ok()?;
    if count > head.len() / 8 {
        return None;
    }
    let mut rest = head.split_off(8 * count);
    let mut buffers = Vec::with_capacity(count);
    for _ in 0..count {
        let length = usize::try_from(head.get_u64_le()).ok()?;
        if length > rest.len() {
            return None;
        }
        buffers.push(rest.split_to(length));
    }
    rest.is_empty().then_some(buffers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lists_come_back(list in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 1..10)) {
            let list: Vec<Bytes> = list.into_iter().map(Bytes::from).collect();
            let blob = Bytes::from(encode(&list).unwrap());
            prop_assert_eq!(decode(blob.clone()), Some(list));
            prop_assert_eq!(decode(blob.slice(..blob.len() - 1)), None);
        }
        #[test]
        fn nonsense_is_refused(blob in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode(blob.into());
        }
    }

    #[test]
    fn no_buffers_are_null() {
        assert_eq!(encode(&[]), None);
        assert_eq!(decode(Bytes::from_static(&[255; 24])), None);
    }
}
