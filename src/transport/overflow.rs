//! What slow peers have not taken yet: kept per peer, in order, up to a bound.
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};

/// Messages that wait for one slow peer, at most.
pub const MOST_MESSAGES: usize = 100_000;
/// ... and how many bytes. One message alone may be longer.
pub const MOST_BYTES: usize = 1 << 30;

/// More than one peer may let wait; its queue is gone.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it does not read: {messages} messages of {bytes} bytes waited for it")]
pub struct TooMuch {
    pub messages: usize,
    pub bytes: usize,
}

/// What became of an offer.
pub enum Offered<M> {
    Taken,
    Full(M),
    Gone,
}

pub struct Overflow<M> {
    by_peer: HashMap<Bytes, Queue<M>>,
    /// Somebody offers what is kept, again and again.
    pub flushing: bool,
}

struct Queue<M> {
    messages: VecDeque<(M, usize)>,
    bytes: usize,
}

impl<M> Default for Overflow<M> {
    fn default() -> Self {
        Overflow {
            by_peer: HashMap::new(),
            flushing: false,
        }
    }
}

impl<M> Overflow<M> {
    /// Something waits for this peer, so what comes next must wait behind it.
    pub fn holds(&self, peer: &Bytes) -> bool {
        self.by_peer.contains_key(peer)
    }

    pub fn is_empty(&self) -> bool {
        self.by_peer.is_empty()
    }

    /// Appends to the peer's queue. Beyond the bound the whole queue is dropped: a peer that misses one message has to
    /// ask again for all.
    pub fn push(&mut self, peer: &Bytes, message: M, size: usize) -> Result<(), TooMuch> {
        let queue = self.by_peer.entry(peer.clone()).or_insert_with(|| Queue {
            messages: VecDeque::new(),
            bytes: 0,
        });
        let (messages, bytes) = (queue.messages.len() + 1, queue.bytes.saturating_add(size));
        if messages > 1 && (messages > MOST_MESSAGES || bytes > MOST_BYTES) {
            self.by_peer.remove(peer);
            return Err(TooMuch { messages, bytes });
        }
        queue.bytes = bytes;
        queue.messages.push_back((message, size));
        Ok(())
    }

    /// Drops what waits for a peer.
    pub fn forget(&mut self, peer: &Bytes) {
        self.by_peer.remove(peer);
    }

    /// Offers what is kept, in order per peer, until each is full or has all.
    pub fn offer(&mut self, mut take: impl FnMut(M) -> Offered<M>) {
        self.by_peer.retain(|_, queue| {
            while let Some((message, size)) = queue.messages.pop_front() {
                match take(message) {
                    Offered::Taken => queue.bytes -= size,
                    Offered::Full(message) => {
                        queue.messages.push_front((message, size));
                        return true;
                    }
                    Offered::Gone => return false,
                }
            }
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: Bytes = Bytes::from_static(b"slow");

    #[test]
    fn messages_are_bounded_and_the_queue_goes_as_a_whole() {
        let mut overflow = Overflow::default();
        for i in 0..MOST_MESSAGES {
            overflow.push(&PEER, i, 1).unwrap();
        }
        let error = overflow.push(&PEER, 0, 1).unwrap_err();
        assert_eq!(error.messages, MOST_MESSAGES + 1);
        assert!(!overflow.holds(&PEER) && overflow.is_empty());
    }

    #[test]
    fn bytes_are_bounded_but_one_message_may_be_long() {
        let mut overflow = Overflow::default();
        overflow.push(&PEER, 'a', 2 * MOST_BYTES).unwrap();
        overflow.push(&Bytes::from_static(b"other"), 'b', 1).unwrap();
        assert!(overflow.push(&PEER, 'c', usize::MAX).is_err());
        assert!(!overflow.holds(&PEER) && !overflow.is_empty(), "the other's is kept");
    }

    #[test]
    fn offers_are_in_order_and_stop_at_what_is_full() {
        let mut overflow = Overflow::default();
        for i in 0..5 {
            overflow.push(&PEER, i, 10).unwrap();
        }
        let mut taken = Vec::new();
        overflow.offer(|m| {
            if taken.len() == 3 {
                return Offered::Full(m);
            }
            taken.push(m);
            Offered::Taken
        });
        assert_eq!(taken, [0, 1, 2]);
        overflow.offer(|m| {
            taken.push(m);
            Offered::Taken
        });
        assert_eq!(taken, [0, 1, 2, 3, 4]);
        assert!(overflow.is_empty());
    }
}
