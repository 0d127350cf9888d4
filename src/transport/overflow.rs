//! Send queues of slow peers: one per peer, in order, with a limit.
use super::waiting::{Load, WINDOW, Weight};
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Maximum number of messages queued for one slow peer.
pub const MOST_MESSAGES: usize = 100_000;

/// A peer exceeded its queue limit; its queue was dropped.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it does not read: {messages} messages of {bytes} bytes waited for it")]
pub struct TooMuch {
    pub messages: usize,
    pub bytes: usize,
}

/// The result of an offer.
pub enum Offered<M> {
    Taken,
    Full(M),
    Gone,
}

pub struct Overflow<M> {
    by_peer: HashMap<Bytes, Queue<M>>,
    /// Whether a background task is flushing the queues.
    pub flushing: bool,
}

struct Queue<M> {
    messages: VecDeque<Kept<M>>,
    bytes: usize,
    load: Arc<Load>,
}

struct Kept<M> {
    message: M,
    size: usize,
    /// None if the message contains it.
    weight: Option<Weight>,
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
    /// Whether messages are queued for this peer, so that further ones must be queued too.
    pub fn holds(&self, peer: &Bytes) -> bool {
        self.by_peer.contains_key(peer)
    }

    pub fn is_empty(&self) -> bool {
        self.by_peer.is_empty()
    }

    /// Appends to the peer's queue. Beyond `max_bytes` (a single message may exceed it) or the
    /// message limit the whole queue is dropped: a peer that misses one message has to ask again
    /// for everything.
    pub fn push(
        &mut self,
        peer: &Bytes,
        load: &Arc<Load>,
        message: M,
        size: usize,
        most: usize,
        weight: Option<Weight>,
    ) -> Result<(), TooMuch> {
        let queue = self.by_peer.entry(peer.clone()).or_insert_with(|| Queue {
            messages: VecDeque::new(),
            bytes: 0,
            load: load.clone(),
        });
        let (messages, bytes) = (queue.messages.len() + 1, queue.bytes.saturating_add(size));
        if messages > 1 && (messages > MOST_MESSAGES || bytes > most) {
            self.by_peer.remove(peer);
            return Err(TooMuch { messages, bytes });
        }
        queue.bytes = bytes;
        queue.messages.push_back(Kept { message, size, weight });
        Ok(())
    }

    /// Drops the messages queued for a peer.
    pub fn forget(&mut self, peer: &Bytes) {
        self.by_peer.remove(peer);
    }

    /// Sends queued messages, in order per peer, until each peer's socket is full or its queue is
    /// empty.
    pub fn offer(&mut self, mut take: impl FnMut(M) -> Offered<M>) {
        self.by_peer.retain(|_, queue| {
            while let Some(Kept { message, size, weight }) = queue.messages.pop_front() {
                // The socket's own buffer for the peer is limited too.
                let inside = queue.load.bytes().saturating_sub(queue.bytes);
                let answer = if inside >= WINDOW { Offered::Full(message) } else { take(message) };
                match answer {
                    Offered::Taken => queue.bytes -= size,
                    Offered::Full(message) => {
                        queue.messages.push_front(Kept { message, size, weight });
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
    use super::super::waiting::Waiting;
    use super::*;

    const PEER: Bytes = Bytes::from_static(b"slow");
    const MOST: usize = 1000;

    struct World {
        overflow: Overflow<usize>,
        load: Arc<Load>,
    }

    impl World {
        fn new() -> World {
            World {
                overflow: Overflow::default(),
                load: Waiting::new(usize::MAX).load(0, &PEER),
            }
        }
        fn push(&mut self, peer: &Bytes, message: usize, size: usize) -> Result<(), TooMuch> {
            let weight = self.load.weigh(size);
            self.overflow.push(peer, &self.load, message, size, MOST, Some(weight))
        }
    }

    #[test]
    fn messages_are_bounded_and_the_queue_goes_as_a_whole() {
        let mut w = World::new();
        for i in 0..MOST_MESSAGES {
            w.push(&PEER, i, 0).unwrap();
        }
        let error = w.push(&PEER, 0, 0).unwrap_err();
        assert_eq!(error.messages, MOST_MESSAGES + 1);
        assert!(!w.overflow.holds(&PEER) && w.overflow.is_empty());
    }

    #[test]
    fn bytes_are_bounded_but_one_message_may_be_long() {
        let mut w = World::new();
        w.push(&PEER, 1, 2 * MOST).unwrap();
        w.push(&Bytes::from_static(b"other"), 2, 1).unwrap();
        assert!(w.push(&PEER, 3, MOST).is_err());
        assert!(!w.overflow.holds(&PEER) && !w.overflow.is_empty(), "the other's is kept");
        assert_eq!(w.load.bytes(), 1, "what is dropped weighs nothing");
    }

    #[test]
    fn offers_are_in_order_and_stop_at_what_is_full() {
        let mut w = World::new();
        for i in 0..5 {
            w.push(&PEER, i, 10).unwrap();
        }
        let mut taken = Vec::new();
        w.overflow.offer(|m| {
            if taken.len() == 3 {
                return Offered::Full(m);
            }
            taken.push(m);
            Offered::Taken
        });
        assert_eq!(taken, [0, 1, 2]);
        // The socket already buffers many messages of this peer.
        let inside = w.load.weigh(WINDOW);
        w.overflow.offer(|_| panic!("not while that is so"));
        drop(inside);
        w.overflow.offer(|m| {
            taken.push(m);
            Offered::Taken
        });
        assert_eq!(taken, [0, 1, 2, 3, 4]);
        assert!(w.overflow.is_empty() && w.load.bytes() == 0);
    }
}
